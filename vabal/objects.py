"""Images that stay where they are: objects (s3://bucket/key), read when needed and kept in a folder within a limit.

What reads them is told from above (`reach`), and so is the folder that keeps what was read (`keep_in`): this room knows
no vendor and no workspace. An object is found by its address. Its entity tag tells whether it is still the same object,
and nothing else; what an image's bytes are, their sha256 decides.
"""

import json
import logging
import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from vabal.errors import UserError, shown
from vabal.files import canonical_json, locked, private_folder, sha256

AT_ONCE: Final = 16  # requests
_AHEAD_BYTES: Final = 64_000_000  # of objects that were asked for and not taken yet
_LEAST_ROOM: Final = 50  # what is kept is counted again after a fiftieth of the limit came, at least
_AFTER: Final = 0.9  # of the limit that is left once something was dropped
_ABANDONED_S: Final = 3600.0  # a half-written file of a process that was killed
_LOG: Final = logging.getLogger("vabal.objects")

Item = TypeVar("Item")
Result = TypeVar("Result")


class Gone(UserError):  # noqa: N818 -- says what is so
    """There is no such object."""


@dataclass(frozen=True)
class Listed:
    """An object that is there; `size` in bytes is None, and `etag` empty, where nobody has asked yet."""

    uri: str
    size: int | None = None
    etag: str = ""


@dataclass(frozen=True)
class Content:
    """An object as it was read; `data` is None where it has more bytes than were wanted."""

    size: int
    etag: str
    version: str | None  # where the bucket keeps versions
    data: bytes | None


@dataclass(frozen=True)
class Reference:
    """An image that stays where it is: where, and what it was when it was taken in."""

    uri: str
    etag: str
    version: str | None
    sha256: str
    size: int


class Store(Protocol):
    """Where objects are read: `vabal.adapters.storage.Objects`. Each call raises Unavailable if it cannot be asked."""

    def below(self, uri: str) -> Iterator[Listed]:
        """Every object below a prefix, or the one that has this address, in the order of their keys."""

    def read(self, uri: str, version: str | None = None, most: int | None = None) -> Content:
        """The object, or that version of it. Raises Gone."""

    def look(self, uri: str, version: str | None = None) -> Listed | None:
        """The object without its bytes; None if it is not there."""


_open: Callable[[], Store] | None = None
_opened: tuple[int, Store] | None = None  # by process: no connection outlives a fork
_kept: "_Kept | None" = None
_guard = threading.Lock()


def reach(opener: Callable[[], Store]) -> None:
    """What opens the store, for this process: called when the first object is needed."""
    global _open, _opened
    _open, _opened = opener, None


def keep_in(folder: Path, gigabytes: Callable[[], float]) -> None:
    """Where this process keeps what it read, and how much at most; asked for when the first object is kept."""
    global _kept  # noqa: PLW0603 -- of the process
    if _kept is None or _kept.folder != folder:
        _kept = _Kept(folder, gigabytes)


def keep_nowhere() -> None:
    """Every read of an object fetches it."""
    global _kept  # noqa: PLW0603 -- of the process
    _kept = None


def store() -> Store:
    """What reads objects in this process."""
    global _opened  # noqa: PLW0603 -- of the process
    with _guard:
        if _opened is None or _opened[0] != os.getpid():
            if _open is None:
                raise RuntimeError("nothing was told to read objects with: call vabal.objects.reach first")
            _opened = (os.getpid(), _open())
        return _opened[1]


# --- reading ----------------------------------------------------------------------------------------------------------


def first_read(found: Listed, most: int) -> tuple[Reference, bytes | None]:
    """An object that is seen for the first time; without its bytes if it has more than `most`.

    What an earlier call that was cut short has read of the same object is not fetched again. Raises Gone.
    """
    if found.size is not None and found.size > most:
        return Reference(found.uri, found.etag, None, "", found.size), None
    kept = _kept.get(found.uri, found.etag) if _kept is not None and found.etag else None
    if kept is not None and len(kept.data) == found.size:
        return Reference(found.uri, found.etag, kept.version, kept.sha256, len(kept.data)), kept.data
    came = store().read(found.uri, most=most)
    if came.data is None:
        return Reference(found.uri, came.etag, came.version, "", came.size), None
    _keep(found.uri, came.etag, came.version, came.data)
    return Reference(found.uri, came.etag, came.version, sha256(came.data), len(came.data)), came.data


def read(sample_id: str, image: Reference) -> bytes:
    """The image's bytes as they were taken in.

    Raises UserError naming sample and address where the object is gone or holds other bytes, Unavailable where nobody
    can be asked.
    """
    kept = _kept.get(image.uri, image.etag) if _kept is not None else None
    if kept is not None and kept.sha256 == image.sha256:
        return kept.data
    try:
        came = _versioned(image)
    except Gone:
        raise UserError(f"sample {sample_id}: {shown(image.uri)} is gone: {_WAY_OUT}") from None
    if came.data is None or sha256(came.data) != image.sha256:
        raise UserError(
            f"sample {sample_id}: {shown(image.uri)} holds other bytes than were taken in ({came.size} bytes, entity "
            f"tag {came.etag}; {image.size} bytes, entity tag {image.etag}): {_WAY_OUT}"
        )
    _keep(image.uri, image.etag, came.version, came.data)
    return came.data


_WAY_OUT: Final = (
    "put the same bytes there again (a bucket with versioning keeps them, and then they are read by themselves); "
    "`vabal audit --verify --remote` names all such images"
)


def _versioned(image: Reference) -> Content:
    """The version that was taken in, where the bucket keeps it; else what is there now."""
    if image.version is not None:
        with suppress(Gone):
            return store().read(image.uri, image.version, image.size)
    return store().read(image.uri, None, image.size)


def read_many(images: Iterable[tuple[str, Reference]]) -> Iterator[tuple[str, bytes]]:
    """(sample_id, bytes) in the order given, several of them asked for at once. Raises as `read` does."""
    pairs = ahead(images, lambda pair: read(*pair), lambda pair: pair[1].size)
    return ((sample_id, data) for (sample_id, _), data in pairs)


def ahead(
    items: Iterable[Item], work: Callable[[Item], Result], size: Callable[[Item], int]
) -> Iterator[tuple[Item, Result]]:
    """Each item with what `work` makes of it, in order; a few are worked on ahead, in threads.

    No more than fit: `size` says how many bytes come of an item.
    """
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    room = _AHEAD_BYTES
    executor = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="objects")
    try:
        for item in items:
            waiting.append((item, executor.submit(work, item)))
            room -= size(item)
            while waiting and (room < 0 or len(waiting) >= 2 * AT_ONCE):
                first, future = waiting.popleft()
                yield first, future.result()
                room += size(first)
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


# --- keeping ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    data: bytes
    sha256: str
    version: str | None


def _keep(uri: str, etag: str, version: str | None, data: bytes) -> None:
    if _kept is not None and etag:
        _kept.put(uri, etag, version, data)


class _Kept:
    """Objects in a folder, each a file named for address and entity tag, by any number of processes.

    A file tells behind the bytes what their digest is, so one that was cut or damaged is none. What was not asked for
    for longest goes first.
    """

    def __init__(self, folder: Path, gigabytes: Callable[[], float]) -> None:
        self.folder = folder
        self._gigabytes = gigabytes
        self._limit: float | None = None
        self._room = 0.0  # bytes that may come before what is there is counted again
        self._is_told = False
        self._guard = threading.Lock()

    def get(self, uri: str, etag: str) -> _Found | None:
        path = self._path(uri, etag)
        try:
            content = path.read_bytes()
            size = len(content) - 4 - int.from_bytes(content[-4:], "big")
            digest, version = json.loads(content[size:-4])
        except (FileNotFoundError, ValueError, TypeError):
            return None
        data = content[:size]
        if sha256(data) != digest:
            return None
        with suppress(FileNotFoundError):  # dropped by another process meanwhile
            os.utime(path)
        return _Found(data, digest, version)

    def put(self, uri: str, etag: str, version: str | None, data: bytes) -> None:
        about = canonical_json([sha256(data), version])
        content = data + about + len(about).to_bytes(4, "big")
        if not self._has_room(len(content)):
            return
        path = self._path(uri, etag)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            private_folder(path.parent)
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError:  # a full disk: what cannot be kept is fetched again, and the bytes are at hand now
            temporary.unlink(missing_ok=True)

    def _path(self, uri: str, etag: str) -> Path:
        name = sha256(canonical_json([uri, etag]))
        return self.folder / name[:2] / name

    def _has_room(self, size: int) -> bool:
        with self._guard:
            if self._limit is None:
                self._limit = self._gigabytes() * 1e9
            if size > self._limit:
                return False
            self._room -= size
            if self._room < 0:
                left = self._trim(size)
                self._room = max((self._limit - left) / 4, self._limit / _LEAST_ROOM) - size
            return True

    def _trim(self, coming: int) -> int:
        """Drop what was not used for longest until there is room; the bytes that are left."""
        limit = self._limit or 0.0
        with locked(private_folder(self.folder) / ".lock"):
            found = sorted(self._files())
            left, files, gone = sum(size for _, size, _ in found), 0, 0
            if left + coming <= limit:
                return left
            for _, size, path in found:
                if left + coming <= _AFTER * limit:
                    break
                path.unlink(missing_ok=True)
                left, files, gone = left - size, files + 1, gone + size
        if not self._is_told:
            self._is_told = True
            _LOG.warning(
                "%s: dropped %d objects (%.3g GB) that were not used for longest, as compute.objects_gigabytes = %g "
                "asks for; such are fetched again where they are needed, from here on without a word",
                *(self.folder, files, gone / 1e9, limit / 1e9),
            )
        return left

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """When it was used, bytes and path of each; what a killed process left half written goes."""
        newest = 0.0
        half: list[tuple[float, Path]] = []
        for folder in self.folder.iterdir():
            if not folder.is_dir() or folder.is_symlink():
                continue
            for entry in os.scandir(folder):
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    newest = max(newest, status.st_mtime)
                    if entry.name.endswith(".tmp"):
                        half.append((status.st_mtime, Path(entry.path)))
                    else:
                        yield status.st_mtime, status.st_size, Path(entry.path)
        for when, path in half:
            if when < newest - _ABANDONED_S:
                path.unlink(missing_ok=True)


def parts_of(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3://bucket/key, as it stands: nothing in a key is an escape. Raises ValueError."""
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() != "s3" or not separator or not bucket:
        raise ValueError(f"{shown(uri)} is no s3://bucket/key")
    return bucket, key


def is_address(text: Any) -> bool:
    """Whether this names objects rather than files."""
    return str(text).lower().startswith("s3://")
