"""Items one by one: read, or set aside; the same picture only once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from vabal import images
from vabal.files import sha256
from vabal.images import near_copies
from vabal.progress import track
from vabal.settings.models import ImageSettings
from vabal.sources.base import Item, Source


@dataclass(frozen=True)
class FilteredItem:
    """An image that a sieve let through."""

    item: Item
    sha256: str
    width: int
    height: int
    fingerprint: bytes  # for near copies
    pixels: str  # digest


@dataclass
class ItemFilter:
    """Lets through images that can be read and that no other one shows; remembers the others.

    `ids`, `contents` (sha256) and `pixels` (digest, to the id of what shows it) are those known before; they grow.
    `duplicates` holds (item, id of what shows the same), `unreadable` (path, reason, bytes or None). `refuse` may leave
    one out by its fingerprint.
    """

    settings: ImageSettings
    ids: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    pixels: dict[str, str] = field(default_factory=dict)
    refuse: Callable[[Item, bytes], bool] | None = None
    duplicates: list[tuple[Item, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    guessed_bits: int = 0

    def sift(self, source: Source) -> Iterator[FilteredItem]:
        """Yield what is new; an id that is taken gets the first digits of the content behind it."""
        for item in track(source.items(self.settings), "read images", None):
            try:
                picture = images.read(item.data, self.settings)
            except images.Unreadable as reason:
                self.unreadable.append((name_of(item), str(reason), None if item.linked else item.data))
                continue
            content, pixels = sha256(item.data), picture.digest()
            if content in self.contents or pixels in self.pixels:
                self.duplicates.append((item, self.pixels.get(pixels, "")))
                continue
            fingerprint = near_copies.fingerprint(picture.image)
            if self.refuse is not None and self.refuse(item, fingerprint):
                continue
            sample_id = next(name for name in self._names(item.sample_id, content) if name not in self.ids)
            self.ids.add(sample_id)
            self.contents.add(content)
            self.pixels[pixels] = sample_id
            self.guessed_bits = max(self.guessed_bits, picture.guessed_bits or 0)
            if picture.first_of_several:
                self.several.append(name_of(item))
            yield FilteredItem(replace(item, sample_id=sample_id), content, *picture.image.size, fingerprint, pixels)
        self.unreadable += [(path, reason, None) for path, reason in source.unreadable]

    @property
    def reasons(self) -> list[tuple[str, str]]:
        """What could not be read, (path, reason) each."""
        return [(path, reason) for path, reason, _ in self.unreadable]

    @staticmethod
    def _names(sample_id: str, content: str) -> tuple[str, str, str]:
        return sample_id, f"{sample_id}-{content[:8]}", f"{sample_id}-{content}"

    def quarantine(self, folder: Path, when: datetime) -> None:
        """Put what could not be read aside."""
        for path, reason, data in self.unreadable:
            images.quarantine(folder, path, data, reason, when)


def name_of(item: Item) -> str:
    """What people know an image by."""
    return item.origin or item.sample_id
