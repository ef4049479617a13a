"""Points of a run's metrics: none is logged twice; and those that are logged while a stage still works.

A point's time is the run's start plus its step, so that a repeated request (a lost answer, a stage that runs again)
names the very same point, which MLflow keeps once.
"""

import logging
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType

from mlflow import MlflowClient
from mlflow.entities import Metric

from vabal.adapters.tracking.names import METRICS_A_CALL, chunks, metric_name

Point = tuple[str, float, int]  # name, value, step
EVERY_S = 5.0  # between two requests: a stage that is quicker makes none before its end
LEAVING_S = 5.0  # that the end of a stage waits for a request which is on its way


class Points:
    """Of one run: what it has is looked up once a name, and stays as it is."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self._client, self._run_id = client, run_id
        info = client.get_run(run_id)
        self._start = info.info.start_time
        self._unseen = set(info.data.metrics)  # names of which the run has points that were not looked up
        self._logged: set[tuple[str, int]] = set()

    def log(self, metrics: Iterable[Point]) -> None:
        """Log those of a step that the run does not have of that name yet."""
        points = {(metric_name(name), step): float(value) for name, value, step in metrics}
        for name in sorted({name for name, _ in points} & self._unseen):
            self._logged |= {(name, point.step) for point in self._client.get_metric_history(self._run_id, name)}
            self._unseen.remove(name)
        fresh = [
            Metric(name, value, self._start + step, step)
            for (name, step), value in points.items()
            if (name, step) not in self._logged
        ]
        for chunk in chunks(fresh, METRICS_A_CALL):
            self._client.log_batch(self._run_id, metrics=chunk)
        self._logged |= points.keys()


class Stream:
    """Within the block, points are sent by a thread of its own, many at a time, and nobody waits for MLflow.

    What is not there at the end is left to who logs the whole: so a server that is slow, away or silent costs a stage
    `LEAVING_S` seconds at most. The first failure ends the stream, and is logged in a line.
    """

    def __init__(self, open_points: Callable[[], Points], log: logging.Logger | logging.LoggerAdapter[logging.Logger]):
        self._open_points, self._log = open_points, log
        self._waiting: SimpleQueue[Point] = SimpleQueue()
        self._over = Event()
        self._thread: Thread | None = None

    def add(self, name: str, value: float, step: int) -> None:
        """A point, to be sent with the others that come in these seconds."""
        self._waiting.put((name, value, step))
        if self._thread is None:
            self._thread = Thread(target=self._send, name="metrics to MLflow", daemon=True)
            self._thread.start()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None and error is None:
            self._thread.join(LEAVING_S)

    def _send(self) -> None:
        points: Points | None = None
        while not self._over.wait(EVERY_S):
            batch = [self._waiting.get() for _ in range(self._waiting.qsize())]
            if not batch:
                continue
            try:
                points = points or self._open_points()
                points.log(batch)
            except Exception as failed:  # noqa: BLE001 -- whatever it is, the stage goes on and logs at its end
                if not self._over.is_set():
                    why = " ".join(str(failed).split())[:300] or type(failed).__name__
                    self._log.warning("metrics go to MLflow at the end of the stage, not meanwhile: %s", why)
                return
