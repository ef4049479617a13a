"""Progress of long stages, told to whoever listens (the command line's bars). Nobody listening costs nothing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Listener = Callable[[str, int, int | None], None]

_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block, `listener(stage, done, total)` hears of progress made in this process."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def advance(stage: str, done: int, total: int | None) -> None:
    for listener in _listeners:
        listener(stage, done, total)


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
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
