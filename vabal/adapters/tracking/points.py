"""Points of a run's metrics: none is logged twice.

A point's time is the run's start plus its step, so that a repeated request (a lost answer, a stage that runs again)
names the very same point, which MLflow keeps once.
"""

from collections.abc import Iterable

from mlflow import MlflowClient
from mlflow.entities import Metric

from vabal.adapters.tracking.names import METRICS_A_CALL, chunks, metric_name

Point = tuple[str, float, int]  # name, value, step


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
