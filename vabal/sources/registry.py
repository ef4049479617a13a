"""Which sources there are, by what `--source` names."""

from collections.abc import Sequence
from pathlib import Path

from vabal.errors import UserError
from vabal.sources.arrays import Cifar, Digits, Npz
from vabal.sources.base import Source
from vabal.sources.files import Folder
from vabal.sources.layouts import LAYOUTS
from vabal.sources.published import Elpv, Neu

KINDS = {
    "digits": "digits",
    "folder": "folder:PATH",
    "npz": "npz:PATH",
    "cifar10": "cifar10:ROOT",
    "cifar100": "cifar100:ROOT",
    "neu": "neu:ROOT",
    "elpv": "elpv",
}


def open_source(spec: str, classes: Sequence[str] | None = None, layout: str | None = None) -> Source:
    """The source that a `--source` names; `classes` names the classes of one without labels, or fixes their order.

    `layout` says how the folders of a folder are read; `folder+splits:PATH` is `folder:PATH` with the layout `splits`.
    Raises UserError if the kind is unknown or what it names cannot be used.
    """
    kind, _, place = with_layout(spec, layout).partition(":")
    kind, _, layout = kind.partition("+")
    if kind not in KINDS:
        raise UserError(f"--source {spec!r}: unknown kind {kind!r}; known are {', '.join(KINDS.values())}")
    if bool(place) != (":" in KINDS[kind]):
        raise UserError(f"--source {spec!r}: expected {KINDS[kind]}")
    if classes and kind not in ("folder", "npz"):
        raise UserError(f"--classes: source {kind} has its own class names")
    if classes is not None and (not all(classes) or len(set(classes)) < len(classes)):
        raise UserError(f"--classes {','.join(classes)}: each class is named once, between commas")
    path = Path(place).expanduser()
    if kind == "folder":
        return Folder(path, classes, layout or None)
    if kind == "npz":
        return Npz(path, classes)
    if kind == "neu":
        return Neu(path)
    if kind.startswith("cifar"):
        return Cifar(kind, path)
    return Digits() if kind == "digits" else Elpv()


def with_layout(spec: str, layout: str | None) -> str:
    """A `--source` with its layout in front of the colon. Raises UserError for a layout that there is not."""
    kind, colon, place = spec.partition(":")
    chosen = layout or kind.partition("+")[2]
    if "+" not in kind and layout is None:
        return spec
    if kind.partition("+")[0] != "folder":
        raise UserError(f"--layout: says how a folder:PATH is read, not {spec!r}")
    if chosen not in LAYOUTS:
        raise UserError(f"--layout {chosen!r}: known are {', '.join(LAYOUTS)}")
    return f"folder+{chosen}{colon}{place}"
