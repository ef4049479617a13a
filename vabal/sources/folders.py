"""The files below a folder: what is there, what is left out and why, and how names are written down.

Names are kept as the system spells them (bytes that are no UTF-8 as surrogates); `shown` and `class_name` make of them
what people, tables and ids can bear.
"""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from vabal.errors import UserError, shown, some
from vabal.images import Unreadable
from vabal.images.shards import too_large
from vabal.objects import Reference
from vabal.settings.models import ImageSettings

IMAGE_SUFFIXES: Final = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".mpo", ".apng"),
}
# What file servers, systems and editors put beside people's files; names that begin with a dot are hidden anyway.
_SIDE_FOLDERS: Final = {
    *("@eadir", "#recycle", "#snapshot", "@tmp", "@recycle", "@recently-snapshot", "@sharebin", "~snapshot"),
    *("lost+found", "$recycle.bin", "recycler", "recycled", "$extend", "system volume information", "found.000"),
    *("__macosx", "network trash folder", "temporary items", "thevolumesettingsfolder", "_vti_cnf", "__pycache__"),
}
_SIDE_FILES: Final = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_WAYS: Final = 8  # in which one folder may be reached by links
_LOOKED_THROUGH: Final = 10_000  # entries of what is left out, to say how many images it holds

HIDDEN: Final = "hidden files and folders"
SIDE: Final = "side folders of a file server or a system"
DANGLING: Final = "links to nothing"
LOOPS: Final = "links back to a folder around them"
MANY_WAYS: Final = f"folders that were reached by {_WAYS} links already"
SPECIAL: Final = "no regular files (devices, pipes, sockets)"


@dataclass(frozen=True, order=True)
class Found:
    """A file: its path relative to the folder, the device and inode behind it, whether a link led there."""

    path: PurePosixPath
    real: tuple[int, int]
    linked: bool


@dataclass(frozen=True)
class Got:
    """A file as it was read; without its bytes, and with the `reason`, where it cannot be used."""

    path: PurePosixPath
    data: bytes = b""
    reason: str | None = None
    reference: Reference | None = None  # where it stays, if its bytes do


class Tree(Protocol):
    """Files below one place: a folder (`Walk`), or a bucket (`vabal.sources.buckets.Objects`)."""

    @property
    def kind(self) -> str:
        """What `--source` calls such a place."""

    @property
    def place(self) -> str:
        """For people."""

    @property
    def files(self) -> Sequence[Found]: ...

    @property
    def folders(self) -> Sequence[PurePosixPath]:
        """Those that were looked through."""

    @property
    def linked(self) -> frozenset[PurePosixPath]:
        """Files whose bytes are someone else's."""

    def notes(self) -> list[str]:
        """What was left out, a line for each reason."""

    def images(self, paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
        """Those that look like images, by their names or first bytes."""

    def tops(self) -> list[str]:
        """What the whole address of a file begins with, any of these."""

    def name_of(self, path: PurePosixPath) -> str:
        """What people know a file by."""

    def table(self, path: PurePosixPath) -> bytes:
        """The bytes of a table. Raises UserError."""

    def read(self, paths: Sequence[PurePosixPath], limits: ImageSettings) -> Iterator[Got]:
        """The files, in this order."""


@dataclass
class Walk:
    """What is below a folder. `left_out`: paths (for people) by the reason why they are not among the files.

    `folders` are those that were looked through, `links` those that were followed.
    """

    kind = "folder"

    root: Path
    files: list[Found] = field(default_factory=list)
    folders: list[PurePosixPath] = field(default_factory=list)
    links: list[PurePosixPath] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return shown(self.root)

    @property
    def paths(self) -> list[PurePosixPath]:
        return [file.path for file in self.files]

    @property
    def linked(self) -> frozenset[PurePosixPath]:
        return frozenset(file.path for file in self.files if file.linked)

    def images(self, paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
        return [path for path in paths if looks_like_an_image(self.root / path)]

    def tops(self) -> list[str]:
        return [str(self.root.absolute()), str(self.root.resolve())]

    def name_of(self, path: PurePosixPath) -> str:
        return shown(self.root / path)

    def table(self, path: PurePosixPath) -> bytes:
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.name_of(path)}: {error.strerror}") from None

    def read(self, paths: Sequence[PurePosixPath], limits: ImageSettings) -> Iterator[Got]:
        for path in paths:
            file = self.root / path
            try:
                too_large(file.stat().st_size, limits)
                yield Got(path, file.read_bytes())
            except (OSError, Unreadable) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                yield Got(path, reason=reason or type(error).__name__)

    def leave_out(self, reason: str, path: PurePosixPath | str) -> None:
        self.left_out.setdefault(reason, []).append(shown(path))

    def notes(self) -> list[str]:
        """What was left out, a line for each reason."""
        odd = sorted(shown(path) for path in self.paths if not is_utf8(str(path)))
        names = [f"not valid UTF-8, their names are written with \\x..: {some(odd)}"] if odd else []
        links = sorted(map(shown, self.links))
        followed = [f"{len(links)} link{'s' * (len(links) > 1)} followed: {some(links)}"] if links else []
        return [
            *names,
            *followed,
            *(f"left out, {reason}: {some(paths)}" for reason, paths in sorted(self.left_out.items())),
        ]


def walk(root: Path) -> Walk:
    """All files below a folder, sorted by path. Links are followed, to files and to folders, but never in circles.

    Hidden files, side folders of systems and file servers, what cannot be listed, and links that lead nowhere are left
    out and noted; of what is hidden or at the side, only what holds images is worth a note.
    Raises UserError if the folder is missing, cannot be read, or has no files.
    """
    try:
        status = root.stat()
        above = frozenset(_identity(folder.stat()) for folder in root.resolve().parents)
    except FileNotFoundError:
        raise UserError(f"{shown(root)}: no such folder") from None
    except OSError as error:
        raise UserError(f"{shown(root)}: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{shown(root)}: a file, not a folder")
    found = Walk(root)
    ways: Counter[tuple[int, int]] = Counter()
    waiting = [(PurePosixPath(), above | {_identity(status)}, False)]
    while waiting:
        folder, above, linked = waiting.pop()
        for path, status, is_link in _entries(found, folder):
            identity = _identity(status)
            if not stat.S_ISDIR(status.st_mode):
                found.files.append(Found(path, identity, linked or is_link))
                found.links += [path] if is_link else []
            elif identity in above:
                found.leave_out(LOOPS, path)
            elif ways[identity] == _WAYS:
                found.leave_out(MANY_WAYS, path)
            else:
                ways[identity] += 1
                found.folders.append(path)
                found.links += [path] if is_link else []
                waiting.append((path, above | {identity}, linked or is_link))
    found.files.sort()
    if not found.files:
        raise UserError("; ".join([f"{shown(root)}: no files in this folder", *found.notes()]))
    return found


def _entries(found: Walk, folder: PurePosixPath) -> Iterator[tuple[PurePosixPath, os.stat_result, bool]]:
    """Files and folders directly in a folder, with what they are behind links; the rest is left out."""
    try:
        with os.scandir(found.root / folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        if folder == PurePosixPath():
            raise UserError(f"{shown(found.root)}: {error.strerror}") from None
        found.leave_out(f"folders that cannot be read ({error.strerror})", folder)
        return
    for entry in entries:
        path = folder / entry.name
        reason = aside(entry.name)
        if reason:
            if count := _images_in(Path(entry.path)):
                found.leave_out(reason, f"{path} ({count})" if entry.is_dir(follow_symlinks=False) else path)
            continue
        try:
            status = entry.stat()
        except FileNotFoundError:
            found.leave_out(DANGLING, path)
        except OSError as error:
            found.leave_out(error.strerror or type(error).__name__, path)
        else:
            if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                yield path, status, entry.is_symlink()
            else:
                found.leave_out(SPECIAL, path)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def aside(name: str) -> str | None:
    """Why a file or folder of that name is no image of people's; None for any other."""
    folded = name.casefold()
    if folded in _SIDE_FOLDERS or folded in _SIDE_FILES:
        return SIDE
    return HIDDEN if name.startswith(".") else None


def _images_in(path: Path) -> str:
    """How many files of what is left out are named as images: "12 images", or nothing; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return "an image" if path.suffix.lower() in IMAGE_SUFFIXES else ""
    seen = images = 0
    for _, _, names in os.walk(path):
        images += sum(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names)
        seen += 1 + len(names)
        if seen > _LOOKED_THROUGH:
            return f"at least {images} images" if images else ""
    return ("1 image" if images == 1 else f"{images} images") if images else ""


def once(files: Sequence[Found], known: Mapping[PurePosixPath, Hashable]) -> tuple[list[Found], list[str]]:
    """Files without those that a link reaches a second time, with the same known of them; and these, for people."""
    first: dict[tuple[tuple[int, int], Hashable], Found] = {}
    again: dict[PurePosixPath, str] = {}
    for file in sorted(files, key=lambda file: (file.linked, file.path)):
        before = first.setdefault((file.real, known.get(file.path)), file)
        if before is not file and file.linked:
            again[file.path] = f"{shown(file.path)} (is {shown(before.path)})"
    return [file for file in files if file.path not in again], [again[path] for path in sorted(again)]


def looks_like_an_image(path: Path) -> bool:
    """By its name, else by its first bytes: whether it is worth reading as an image."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return False
    return (
        head.startswith((b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"\xff\x4f\xff\x51"))
        or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")
        or (head.startswith(b"BM") and head[6:10] == bytes(4))
        or (head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace())
        or head[4:8] == b"jP  "
    )


def is_utf8(text: str) -> bool:
    """Whether a path, as Python keeps it, is valid UTF-8."""
    return not any("\udc80" <= sign <= "\udcff" for sign in text)


def class_name(folder: str) -> str:
    """The class that a folder (or a label, or a word of `--classes`) names: one Unicode form, no blanks around it."""
    return unicodedata.normalize("NFC", shown(folder)).strip()
