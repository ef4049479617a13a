"""Sources that are arrays: digits, `.npz`, CIFAR."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile, is_zipfile

import numpy as np

from vabal.errors import UserError
from vabal.images.shards import png
from vabal.labels.names import sample_id_of
from vabal.settings.bounds import check_npz
from vabal.settings.models import ImageSettings
from vabal.sources import cifar
from vabal.sources.base import Item, hint
from vabal.sources.folder_names import Split

# --- arrays -----------------------------------------------------------------------------------------------------------


@dataclass
class Digits:
    """scikit-learn's 1 797 handwritten digits, 8 x 8; their values 0 to 16 become 0 to 255."""

    name: str = "digits"
    classes: tuple[str, ...] | None = tuple("0123456789")
    size_hint: tuple[int, int] = (8, 1)
    unreadable: list[tuple[str, str]] = field(default_factory=list)

    def items(self, _: ImageSettings | None = None, /) -> Iterator[Item]:
        from sklearn.datasets import load_digits  # noqa: PLC0415  (takes a second)

        bunch = load_digits()
        images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
        for index, (image, target) in enumerate(zip(images, bunch.target, strict=True)):
            yield Item(f"digits-{index:04d}", png(image), str(target))


class Npz:
    """Arrays in an .npz file: `images` uint8 N x H x W or N x H x W x 3; if there, `labels`, `groups` and `classes`.

    Raises UserError naming the array that is not as it should be.
    """

    name = "npz"

    def __init__(self, path: Path, classes: Sequence[str] | None = None) -> None:
        arrays = _read_npz(path)
        self._path = path
        self._images = _npz_images(path, arrays)
        self._labels = _npz_labels(path, arrays, len(self._images))
        self._groups = _npz_column(path, arrays, "groups", len(self._images))
        self.classes = self._class_names(arrays, classes)
        self.size_hint = hint(self._images.shape[2], self._images.shape[1], 3 if self._images.ndim == 4 else 1)
        self.unreadable: list[tuple[str, str]] = []

    def _class_names(self, arrays: Mapping[str, np.ndarray], given: Sequence[str] | None) -> tuple[str, ...] | None:
        if self._labels is None:
            return tuple(given) if given else None
        stored = [str(name) for name in arrays["classes"]] if "classes" in arrays else None
        top = int(self._labels.max(initial=0))
        names = tuple(given or stored or [str(number) for number in range(top + 1)])
        if top >= len(names):
            raise UserError(f"{self._path}: label {top} in `labels`, but only {len(names)} classes are named")
        return names

    def items(self, _: ImageSettings | None = None, /) -> Iterator[Item]:
        stem = sample_id_of(self._path.name)
        digits = max(4, len(str(len(self._images) - 1)))
        for index, image in enumerate(self._images):
            label = None if self._labels is None or self.classes is None else self.classes[int(self._labels[index])]
            group = None if self._groups is None else str(self._groups[index])
            sample_id = f"{stem}-{index:0{digits}d}"
            yield Item(sample_id, png(image), label, group, origin=f"{self._path}[{index}]")


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    names = ("images", "labels", "groups", "classes")
    try:
        if is_zipfile(path):
            check_npz(path, names)
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise UserError(f"{path}: a single array; an .npz file with the array `images` is needed")
        with file:
            return {name: file[name] for name in names if name in file}
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable .npz file: {' '.join(str(error).split())[:200]}") from None


def _npz_images(path: Path, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    images = arrays.get("images")
    if images is None:
        raise UserError(f"{path}: no array `images`")
    grey = images.ndim == 3
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[3] == 3)) or 0 in images.shape:
        found = f"{images.dtype} {' x '.join(map(str, images.shape))}"
        raise UserError(f"{path}: `images` must be uint8 N x H x W or N x H x W x 3, found {found}")
    return images


def _npz_labels(path: Path, arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray | None:
    labels = _npz_column(path, arrays, "labels", count)
    if labels is not None and (labels.dtype.kind not in "iu" or (count and labels.min() < 0)):
        raise UserError(f"{path}: `labels` must be whole numbers from 0, found {labels.dtype}")
    return labels


def _npz_column(path: Path, arrays: Mapping[str, np.ndarray], name: str, count: int) -> np.ndarray | None:
    column = arrays.get(name)
    if column is None:
        return None
    if column.size != count or column.shape[0] != count:
        raise UserError(f"{path}: `{name}` has shape {column.shape}, but there are {count} images")
    return column.reshape(count)


class Cifar:
    """CIFAR-10 or CIFAR-100 as torchvision stores them; the published test split is the holdout."""

    size_hint = (32, 3)

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self._layout = cifar.LAYOUTS[name]
        self._folder = cifar.folder_of(self._layout, root)
        names = cifar.class_names(self._layout, self._folder)
        self._names = names
        self.classes: tuple[str, ...] | None = names
        self.unreadable: list[tuple[str, str]] = []

    def items(self, _: ImageSettings | None = None, /) -> Iterator[Item]:
        """The test split first, so that an image that is in both stays in the holdout."""
        splits: tuple[tuple[str, Split], ...] = (("test", "holdout"), ("train", "pool"))
        for split, role in splits:
            index = 0
            for images, labels in cifar.batches(self._layout, self._folder, split):
                if len(labels) and not 0 <= labels.min() <= labels.max() < len(self._names):
                    raise UserError(f"{self._folder}: a label of the {split} split has no name in {self._layout.meta}")
                for image, label in zip(images, labels, strict=True):
                    yield Item(f"{self.name}-{split}-{index:05d}", png(image), self._names[label], split=role)
                    index += 1
