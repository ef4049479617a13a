"""Published sets of image files: NEU, ELPV."""

import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Final

from vabal.errors import UserError
from vabal.settings.models import ImageSettings
from vabal.sources.base import Item
from vabal.sources.files import Files
from vabal.sources.folders import IMAGE_SUFFIXES, Walk, walk
from vabal.sources.listing import Known


class Neu(Files):
    """NEU surface defects: 6 classes at 200 x 200, or the 9 classes at 64 x 64, in whatever folders they lie.

    The class stands in the file's name (`Cr_1.bmp`, `crazing_1.jpg`) or in the name of its folder. Other files
    (annotations) are left out. Raises UserError if there are no such images.
    """

    name = "neu"
    size_hint = (64, 1)
    # Of what is measured on a holdout that was drawn image by image.
    caveat: Final = (
        "optimistic: many of these images overlap, cut from the same picture, and here nobody knows which, so that a "
        "third of the holdout shows steel of the pool; an .npz with `groups` keeps them apart"
    )
    _NAMES: Final = {
        "cr": "crazing",
        "gg": "grooves_and_gouges",
        "in": "inclusion",
        "pa": "patches",
        "ps": "pitted_surface",
        "rp": "rolled-in_particle",
        "rs": "rolled-in_scale",
        "sc": "scratches",
        "sp": "spots",
    }

    def __init__(self, root: Path) -> None:
        found = walk(root)
        paths = [path for path in found.paths if path.suffix.lower() in IMAGE_SUFFIXES]
        known = {path: Known(self._class_of(path)) for path in paths}
        unknown = [path for path, file in known.items() if file.label is None]
        if unknown or not paths:
            said = f"no NEU class in the name of {unknown[0]} or of its folder" if unknown else "no images"
            raise UserError(f"{root}: {said}; expected files such as Cr_1.bmp, crazing_1.jpg or crazing/1.jpg")
        super().__init__(found, paths, known, linked=found.linked, notes=found.notes())
        present = {file.label for file in known.values()}
        self.classes = tuple(name for name in self._NAMES.values() if name in present)

    def _class_of(self, path: PurePosixPath) -> str | None:
        stem = re.sub(r"[\s_-]*\d*$", "", path.stem)
        for text in (stem, *reversed(path.parts[:-1])):
            key = re.sub(r"[\s-]+", "_", text.lower())
            for code, name in self._NAMES.items():
                if key in (code, name.replace("-", "_")):
                    return name
        return None


class Elpv(Files):
    """The ELPV data set: 2 624 solar cells, 300 x 300 grey. Classes are cell type and defect probability, 8 in all.

    `labels` says which: `levels`, the four probabilities of the published labels; `two-levels`, `functional` below a
    half and `defective` above, as a user sorts cells. Needs the package `elpv-dataset`, which carries the images.
    Raises UserError if it is not installed, or for other labels.
    """

    size_hint = (64, 1)
    LABELS: Final = ("levels", "two-levels")

    def __init__(self, labels: str = LABELS[0]) -> None:
        if labels not in self.LABELS:
            raise UserError(f"--source elpv:{labels}: labels of elpv are {' or '.join(self.LABELS)} (docs/sources.md)")
        try:
            root = Path(str(resources.files("elpv_dataset"))) / "data"
            lines = (root / "labels.csv").read_text(encoding="utf-8").splitlines()
        except (ModuleNotFoundError, FileNotFoundError):
            raise UserError("source elpv needs the package elpv-dataset: install it, or take another source") from None
        self.name = "elpv" if labels == self.LABELS[0] else f"elpv:{labels}"
        word = self._level if labels == self.LABELS[0] else self._verdict
        rows = [line.split() for line in lines if line.strip()]
        known = {PurePosixPath(path): f"{kind}-{word(float(share))}" for path, share, kind in rows}
        super().__init__(Walk(root), list(known), {path: Known(label) for path, label in known.items()})
        self.classes = tuple(sorted(set(known.values())))
        self.place = ""  # in an installed package: nobody's folder, and no news

    @staticmethod
    def _level(share: float) -> str:
        return f"{share:.2f}"

    @staticmethod
    def _verdict(share: float) -> str:
        return "functional" if share < 0.5 else "defective"

    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]:
        for item in super().items(limits):
            yield Item(item.sample_id.removeprefix("images-"), item.data, item.label, origin=item.origin)
