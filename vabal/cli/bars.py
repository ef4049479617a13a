"""Progress bars on a terminal: how far each stage is, and how long it will take."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

STAGE = 33  # columns: `train-committee, network 12 of 12` fits


class Bars:
    """A bar a stage, while the block lasts. Of several that a stage is made of, its bar shows one after the other."""

    def __init__(self, console: Console | None = None) -> None:
        """What `console` prints comes above them."""
        self._progress = Progress(
            TextColumn(f"{{task.description:{STAGE}}}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            _Left(compact=True, elapsed_when_finished=True),
            console=console or Console(stderr=True),
            transient=True,
            speed_estimate_period=600,  # seconds: an epoch may take minutes
        )
        self._shown: dict[str, tuple[TaskID, str, int]] = {}  # by stage: its bar, and what it showed last

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, stage: str, done: int, total: int | None) -> None:
        name = stage.partition(",")[0]
        if name not in self._shown:
            self._shown[name] = (self._progress.add_task(stage, total=total), stage, 0)
        bar, before, far = self._shown[name]
        if stage != before or done < far:
            self._progress.reset(bar, total=total, description=stage)
        self._progress.update(bar, completed=done, total=total)
        self._shown[name] = (bar, stage, done)


class _Left(TimeRemainingColumn):
    """As `03:00 left`; how long it took, once it is done."""

    def render(self, task: Task) -> Text:
        clock = super().render(task)
        return clock if task.finished or task.time_remaining is None else clock.append(" left")
