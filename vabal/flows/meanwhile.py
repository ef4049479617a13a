"""What a long step tells while it works: a line in the run's log now and then, and its metrics in MLflow."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Protocol

from prefect.logging import get_run_logger

from vabal.flows.context import Ticket, tracking_of
from vabal.progress import duration, listening, measuring
from vabal.settings.models import Params

QUIET_S = 30.0  # at least, between two lines of a stage and before its first
SILENT_S = 300.0  # at most, where something was done
SHARE = 0.1  # of the stage, between two lines that are less than that apart
OF_PROGRESS = "vabal_progress"  # marks such a line, for a console that shows bars
EVERY_S = 5.0  # between two requests to MLflow: a step that is quicker makes none before its end
LEAVING_S = 5.0  # that the end of a step waits for a request which is on its way

Point = tuple[str, float, int]  # name, value, step


@contextmanager
def telling(ticket: Ticket) -> Iterator[None]:
    """Within the block, of a task: progress goes into the run's log, what is measured into the round's MLflow run."""
    log, params = get_run_logger(), Params.model_validate(ticket["params"])
    say = partial(log.info, extra={OF_PROGRESS: True})
    with (
        Stream(lambda: tracking_of(params).points(ticket["mlflow_run"]), log) as stream,
        measuring(stream.add),
        listening(Lines(say)),
    ):
        yield


class Lines:
    """Hears of progress, and tells it in lines: how far, and how long it will take."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._stage = ""
        self._since = self._told_at = 0.0
        self._from = self._told = 0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = self._clock()
        if stage != self._stage or done < self._told:
            self._stage, self._since, self._told_at, self._from, self._told = stage, now, now, done, done
            return
        quiet = now - self._told_at
        if not total or done >= total or done == self._told or quiet < QUIET_S:
            return
        if done - self._told < SHARE * total and quiet < SILENT_S:
            return
        left = (now - self._since) / (done - self._from) * (total - done)
        self._say(f"{stage}: {done} of {total}, about {duration(left)} left")
        self._told_at, self._told = now, done


class Points(Protocol):
    """Of an MLflow run."""

    def log(self, metrics: Sequence[Point]) -> None: ...


class Stream:
    """Within the block, points are sent by a thread of its own, many at a time, and nobody waits for MLflow.

    What is not there at the end is left to who logs the whole: so a server that is slow, away or silent costs a stage
    `LEAVING_S` seconds at most. The first failure ends the stream, and is logged in a line.
    """

    def __init__(self, open_points: Callable[[], Points], log: logging.Logger | logging.LoggerAdapter[Any]):
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
