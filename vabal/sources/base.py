"""What every kind of source yields: the same items, in the same order every time."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from vabal.errors import shown
from vabal.objects import Reference
from vabal.settings.models import ImageSettings
from vabal.sources.folder_names import Split


@dataclass(frozen=True)
class Item:
    """One image as its file's bytes. `split` is set where a source brings its own; `origin` is for messages.

    Where a link led to the file (`linked`), its bytes are someone else's: they are not copied aside if unreadable. One
    with a `reference` stays where it is: the pool keeps that in the place of its bytes.
    """

    sample_id: str
    data: bytes
    label: str | None = None
    group: str | None = None
    split: Split | None = None
    origin: str = ""
    linked: bool = False
    reference: Reference | None = None


class Source(Protocol):
    """A kind of source. `items` may be asked for several times; `unreadable` is complete after it ran to its end.

    `classes` is None where neither labels nor the user name them; `size_hint` is a good (image size, channels) for it.
    The argument of `items` limits the size of the files that are read.
    """

    @property
    def name(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def size_hint(self) -> tuple[int, int]: ...
    @property
    def unreadable(self) -> list[tuple[str, str]]: ...
    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]: ...


def without_images(folders: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[str]:
    """The outermost folders that hold no image at any depth."""
    holding = {above for path in images for above in path.parents}
    empty = {folder for folder in folders if folder not in holding}
    return [shown(folder) for folder in sorted(empty) if folder.parent not in empty]


# --- names ------------------------------------------------------------------------------------------------------------


def natural(names: set[str]) -> list[str]:
    """Sorted, with numbers inside the names by their value: 2 before 10."""

    def key(name: str) -> tuple[Any, ...]:
        return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name))

    return sorted(names, key=lambda name: (key(name), name))


def hint(width: int, height: int, channels: int) -> tuple[int, int]:
    return (min(max(width, height, 4), 64), channels)
