"""Which sources there are, by what `--source` names."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vabal import objects
from vabal.errors import UserError
from vabal.sources.arrays import Cifar, Digits, Npz
from vabal.sources.base import Source
from vabal.sources.buckets import MANIFEST, is_manifest, source_of
from vabal.sources.files import Folder
from vabal.sources.folders import walk
from vabal.sources.layouts import LAYOUTS
from vabal.sources.published import Elpv, Neu


class Asked(NamedTuple):
    """What stands behind a kind: the place, and what goes with it for kinds that take it."""

    text: str
    classes: Sequence[str] | None
    layout: str | None

    @property
    def place(self) -> Path:
        return Path(self.text).expanduser()


class Kind(NamedTuple):
    """How `--source` names a kind of source, and how one is opened; whether people may name its classes."""

    form: str
    open: Callable[[Asked], Source]
    takes_classes: bool = False

    @property
    def needs_place(self) -> bool:
        return ":" in self.form and not self.takes_place_or_none

    @property
    def takes_place_or_none(self) -> bool:
        return "[:" in self.form


KINDS = {
    "digits": Kind("digits", lambda _: Digits()),
    "folder": Kind(
        "folder:PATH", lambda asked: Folder(walk(asked.place), asked.classes, asked.layout), takes_classes=True
    ),
    "s3": Kind("s3://BUCKET/PREFIX", lambda asked: _in_bucket(f"s3:{asked.text}", asked), takes_classes=True),
    "uris": Kind("uris:MANIFEST.csv", lambda asked: _in_bucket(asked.text, asked), takes_classes=True),
    "npz": Kind("npz:PATH", lambda asked: Npz(asked.place, asked.classes), takes_classes=True),
    "cifar10": Kind("cifar10:ROOT", lambda asked: Cifar("cifar10", asked.place)),
    "cifar100": Kind("cifar100:ROOT", lambda asked: Cifar("cifar100", asked.place)),
    "neu": Kind("neu:ROOT", lambda asked: Neu(asked.place)),
    "elpv": Kind("elpv[:LABELS]", lambda asked: Elpv(str(asked.place) if asked.place.parts else Elpv.LABELS[0])),
}


def open_source(spec: str, classes: Sequence[str] | None = None, layout: str | None = None) -> Source:
    """The source that a `--source` names; `classes` names the classes of one without labels, or fixes their order.

    `layout` says how the folders of a folder are read; `folder+splits:PATH` is `folder:PATH` with the layout `splits`.
    Raises UserError if the kind is unknown or what it names cannot be used.
    """
    kind, _, place = with_layout(spec, layout).partition(":")
    kind, _, layout = kind.partition("+")
    known = KINDS.get(kind)
    if known is None:
        forms = ", ".join(each.form for each in KINDS.values())
        meant = f"; for the images in that folder: --source folder:{spec}" if Path(spec).is_dir() else ""
        raise UserError(f"--source {spec!r}: unknown kind {kind!r}; known are {forms}{meant}")
    if bool(place) != known.needs_place and not known.takes_place_or_none:
        raise UserError(f"--source {spec!r}: expected {known.form}")
    if classes and not known.takes_classes:
        raise UserError(f"--classes: source {kind} has its own class names")
    if classes is not None and (not all(classes) or len(set(classes)) < len(classes)):
        raise UserError(f"--classes {','.join(classes)}: each class is named once, between commas")
    return known.open(Asked(place, classes, layout or None))


def with_layout(spec: str, layout: str | None) -> str:
    """A `--source` with its layout in front of the colon. Raises UserError for a layout that there is not."""
    kind, colon, place = spec.partition(":")
    chosen = layout or kind.partition("+")[2]
    if "+" not in kind and layout is None:
        return spec
    if kind.partition("+")[0] not in ("folder", "s3"):
        raise UserError(f"--layout: says how a folder:PATH is read, or an s3://BUCKET/PREFIX, not {spec!r}")
    if chosen not in LAYOUTS:
        raise UserError(f"--layout {chosen!r}: known are {', '.join(LAYOUTS)}")
    return f"{kind.partition('+')[0]}+{chosen}{colon}{place}"


def _in_bucket(address: str, asked: Asked) -> Source:
    if not objects.is_address(address) and not is_manifest(address):
        raise UserError(f"--source: {address!r} is no s3://BUCKET/PREFIX, and no manifest (which ends in {MANIFEST})")
    return source_of(address, asked.classes, asked.layout)
