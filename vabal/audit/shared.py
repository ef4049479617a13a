"""Checks shared among processes: as many as were asked for do the same work on different items, and answer in order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from vabal.errors import UserError

MOST: Final = 4  # processes, where nobody says how many: each reads the pools for itself
_SMALL: Final = 2**28  # bytes in `data/`: below, starting a process takes longer than it saves


class Each(Protocol):
    """As `map`: what the function says of each item, in the order of the items."""

    def __call__(self, function: Callable[[Any], Any], items: Iterable[Any], /) -> Iterator[Any]: ...


def usual(data: Path) -> int:
    """How many processes pay: one for each core that may be used, up to `MOST`; one where the record is small."""
    size = 0
    for path in data.rglob("*"):
        size += path.stat().st_size if path.is_file() else 0
        if size > _SMALL:
            return min(len(os.sched_getaffinity(0)), MOST)
    return 1


@contextmanager
def among(workers: int) -> Iterator[Each]:
    """`map`, shared among so many processes; with one it is this process that does the work, item by item as asked.

    Functions and items are pickled; items are handed out in their order, so that each process sees later ones only.
    Within the block a process that dies raises UserError. However the block is left, nothing that waits is begun.
    """
    if workers < 2:
        yield map
        return
    start = multiprocessing.get_context("spawn")  # a fork would copy the locks of threads that it does not copy
    executor = ProcessPoolExecutor(workers, mp_context=start, initializer=_begin)
    try:
        yield executor.map
        # Else the interpreter's end may wake a thread that ends at that moment, and says so in a traceback.
        executor.shutdown(cancel_futures=True)
    except BrokenProcessPool:
        raise UserError(
            "a process of the check died, maybe for lack of memory: nothing is known of the rest; with `--workers 1` "
            "the check runs in one process"
        ) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _begin() -> None:
    """Ctrl-C ends a worker without a word, and so does the end of the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
