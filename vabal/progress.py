"""Progress of long stages, and what they measure meanwhile, told to whoever listens: a terminal's bars, a run's log,
MLflow. Nobody listening costs nothing, and who listens decides nothing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int | None], None]
Measured = Callable[[str, float, int], None]  # name, value, step

_listeners: list[Listener] = []
_measuring: list[Measured] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, `listener(stage, done, total)` hears of progress made in this process.

    Behind a comma `stage` may tell which of several it is: `train-committee, network 2 of 5`.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def measuring(listener: Measured) -> Iterator[None]:
    """Within the block, `listener(name, value, step)` hears what stages of this process measure while they work."""
    _measuring.append(listener)
    try:
        yield
    finally:
        _measuring.remove(listener)


def advance(stage: str, done: int, total: int | None) -> None:
    for listener in _listeners:
        listener(stage, done, total)


def measured(name: str, value: float, step: int) -> None:
    for listener in _measuring:
        listener(name, value, step)


def which(stage: str, one: str, number: int, count: int) -> str:
    """The stage's name where it is done several times over, as `train-committee, network 2 of 5`; its own for one."""
    return f"{stage}, {one} {number} of {count}" if count > 1 else stage


def track(items: Iterable[Item], stage: str, total: int | None) -> Iterator[Item]:
    """Yield the items, telling how many were dealt with."""
    advance(stage, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        advance(stage, done, total)


def duration(seconds: float) -> str:
    """For people, as 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
