"""What a long step tells while it works: a line in the run's log now and then, and its metrics in MLflow."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from prefect.logging import get_run_logger

from vabal.flows.context import Ticket, tracking_of
from vabal.progress import duration, listening, measuring
from vabal.settings.models import Params

QUIET_S = 30.0  # at least, between two lines of a stage and before its first
SILENT_S = 300.0  # at most, where something was done
SHARE = 0.1  # of the stage, between two lines that are less than that apart
OF_PROGRESS = "vabal_progress"  # marks such a line, for a console that shows bars


@contextmanager
def telling(ticket: Ticket) -> Iterator[None]:
    """Within the block, of a task: progress goes into the run's log, what is measured into the round's MLflow run."""
    from vabal.adapters.tracking import Stream  # noqa: PLC0415 -- MLflow takes seconds to import

    log = get_run_logger()
    tracking = tracking_of(Params.model_validate(ticket["params"]))
    say = partial(log.info, extra={OF_PROGRESS: True})
    with (
        Stream(partial(tracking.points, ticket["mlflow_run"]), log) as stream,
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
