"""What a machine keeps because it may be needed again: stages' outputs, decoded images, embeddings, fetched shards.

All of it can be made or fetched again, so it has a limit, and what was not used for longest goes first. Who works marks
the moment in which it began: what was used since then stays, whatever the limit.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Final

from vabal.files import locked, private_folder, remove
from vabal.rounds.context import own_store
from vabal.workspace import Workspace

_MARKS: Final = "at_work"
_LOCK: Final = "scratch.lock"


@dataclass(frozen=True)
class Dropped:
    """What went, and what is left of it, in bytes."""

    files: int
    bytes: int
    left: int

    def line(self, gigabytes: float) -> str | None:
        """For people; None where there is nothing to say."""
        if not self.files and self.left <= gigabytes * 1e9:
            return None
        told = []
        if self.files:
            told.append(
                f"dropped {self.files} of what was not used for longest ({self.bytes / 1e9:.3g} GB), which is made or "
                "fetched again where it is needed"
            )
        if self.left > gigabytes * 1e9:
            told.append(f"{self.left / 1e9:.3g} GB are in use")
        return f"scratch: {', '.join(told)}; compute.scratch_gigabytes is {gigabytes:g}"


@contextmanager
def at_work(place: Workspace) -> Iterator[None]:
    """Within the block nothing is dropped of what was used since it began."""
    marks = private_folder(place.state / _MARKS)
    path = marks / f"{os.getpid()}-{uuid.uuid4().hex}"
    with ExitStack() as held:
        with locked(place.state / _LOCK):  # nothing is being dropped while somebody begins
            file = held.enter_context(path.open("w"))
            flock(file, LOCK_EX)  # it ends with the process
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def trim(place: Workspace, gigabytes: float, before: float | None = None) -> Dropped:
    """Drop what was not used for longest until there are no more than `gigabytes`.

    Only of what was used before that time (seconds since 1970; default: now) and before anybody at work began.
    """
    with locked(place.state / _LOCK):
        before = min([time.time() if before is None else before, *_begun(place)])
        kept = sorted((path.lstat().st_mtime, path) for path in _kept(place) if path.exists())
        sizes = {path: _size(path) for _, path in kept}
        left, files, gone = sum(sizes.values()), 0, 0
        for used, path in kept:
            if left <= gigabytes * 1e9 or used >= before:
                break
            if path.exists() and path.lstat().st_mtime > used:
                continue  # somebody asked for it just now
            remove(path)
            left, files, gone = left - sizes[path], files + 1, gone + sizes[path]
        return Dropped(files, gone, left)


def _kept(place: Workspace) -> Iterator[Path]:
    yield from own_store(place).outputs()
    for folder in (place.decoded, place.embeddings, place.shards, place.weights, place.bench):
        if folder.is_dir():
            yield from (path for path in folder.iterdir() if not path.name.endswith(".lock"))


def _begun(place: Workspace) -> Iterator[float]:
    """When those began who are at work now; the marks of the dead go."""
    marks = place.state / _MARKS
    for path in sorted(marks.iterdir()) if marks.is_dir() else []:
        try:
            with path.open() as file:
                began = os.fstat(file.fileno()).st_mtime
                flock(file, LOCK_EX | LOCK_NB)
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # it ended meanwhile
        except BlockingIOError:
            yield began


def _size(path: Path) -> int:
    """Bytes that go with the file or folder; a file that has another name as well costs nothing here."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    sizes = [found.st_size for found in map(_status, files) if found is not None and found.st_nlink == 1]
    return sum(sizes)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except FileNotFoundError:
        return None
