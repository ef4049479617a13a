"""Files that are whole and durable or not there at all, and the bytes and digests of documents."""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from vabal.errors import UserError


def canonical_json(document: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: equal documents have equal bytes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def sha256(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Durable and whole, or not at all: temporary name, fsync, rename, fsync of the folder."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_once(path: Path, content: bytes) -> None:
    """Durable and whole, unless the file is there already: then it stays as it is, whoever writes at the same time."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    write_bytes(temporary, content)
    try:
        path.hardlink_to(temporary)
    except OSError:
        if not path.exists():  # else: another process was first. Here: a file system without links
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """What was written to the file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: a rename alone may be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """The folder, and what is missing above it, durable."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def private_folder(folder: Path) -> Path:
    """The folder, made with what is missing above it, each for its owner only."""
    if not folder.is_dir():
        private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def sync_tree(folder: Path) -> None:
    """Make a folder's files and entries durable, what lies deepest first."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def remove(path: Path) -> None:
    """A file, a link or a folder with what is in it; another process may be quicker."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[None]:
    """Holds the lock `path`, a file that is made and stays; the lock ends with its process.

    Where another process holds it, waits, or, with a `refusal`, raises UserError with that line.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise UserError(str(refusal)) from None
        yield


class Remote(Protocol):
    """A file that lies elsewhere, whole, and never changes."""

    name: str
    size: int  # bytes

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range (offset, bytes), in the order given."""

    def here(self) -> Path:
        """The file brought to this machine, and kept."""


class Shared(Protocol):
    """Files that are made once and never change, by names like `decoded/....npy`, where several machines find them."""

    def find(self, name: str, path: Path) -> Remote | None:
        """The file, if it is there; its `here` brings it to `path`."""

    def publish(self, name: str, path: Path) -> None:
        """Put the file there, for all to find; whole, or not at all."""

    def names(self, folder: str) -> set[str]:
        """What is there below `folder`: names behind the slash."""


def touched(path: Path) -> bool:
    """Marks a file or folder as asked for, as what nobody asks for goes first; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def found(shared: Shared | None, name: str, path: Path) -> Path | Remote | None:
    """The file at `path`, or where others can have put it; None if it is nowhere."""
    if touched(path):
        return path
    return None if shared is None else shared.find(name, path)
