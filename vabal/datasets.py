"""Where a pool's images can come from. Every kind of source yields the same items, in the same order every time."""

import re
import unicodedata
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Final, Protocol
from zipfile import BadZipFile, is_zipfile

import numpy as np

from vabal import cifar, delimited, layouts
from vabal.bounds import check_npz
from vabal.errors import UserError
from vabal.folders import IMAGE_SUFFIXES, class_name, is_utf8, looks_like_an_image, once, shown, some, walk
from vabal.images import Unreadable, png, shape, too_large
from vabal.layouts import Split
from vabal.listing import Known, resolve
from vabal.params import ImageSettings


@dataclass(frozen=True)
class Item:
    """One image as its file's bytes. `split` is set where a source brings its own; `origin` is for messages.

    Where a link led to the file (`linked`), its bytes are someone else's: they are not copied aside if unreadable.
    """

    sample_id: str
    data: bytes
    label: str | None = None
    group: str | None = None
    split: Split | None = None
    origin: str = ""
    linked: bool = False


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
        self.size_hint = _hint(self._images.shape[2], self._images.shape[1], 3 if self._images.ndim == 4 else 1)
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


# --- files ------------------------------------------------------------------------------------------------------------


class Files:
    """Image files below a folder, with what is known of them.

    `linked` are those that a link led to. `notes` tell people what was left out before anything was read.
    """

    name = "files"
    classes: tuple[str, ...] | None = None

    def __init__(
        self,
        root: Path,
        paths: Sequence[PurePosixPath],
        known: Mapping[PurePosixPath, Known] | None = None,
        *,
        linked: Collection[PurePosixPath] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.place = shown(root)
        self._root = root
        self._paths = paths
        self._known = known or {}
        self._linked = linked
        self.notes = tuple(notes)
        self.unreadable: list[tuple[str, str]] = []

    @property
    def size_hint(self) -> tuple[int, int]:
        """From the first file that can be read."""
        for path in self._paths:
            try:
                too_large((self._root / path).stat().st_size, ImageSettings())
                return _hint(*shape((self._root / path).read_bytes()))
            except (OSError, Unreadable):
                continue
        return (64, 3)

    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]:
        self.unreadable.clear()
        for path in self._paths:
            file = self._root / path
            try:
                too_large(file.stat().st_size, limits or ImageSettings())
                data = file.read_bytes()
            except (OSError, Unreadable) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                self.unreadable.append((shown(file), reason or type(error).__name__))
                continue
            known = self._known.get(path, Known())
            yield Item(
                sample_id_of(str(path)),
                data,
                known.label,
                known.group,
                known.split,
                origin=shown(file),
                linked=path in self._linked,
            )


def files_below(root: Path) -> Files:
    """All files below a folder as images of which nothing is known. Raises UserError if there are none."""
    found = walk(root)
    files, again = once(found.files, {})
    notes = found.notes() + ([f"left out, links to files that are there: {some(again)}"] if again else [])
    return Files(root, [file.path for file in files], linked=found.linked, notes=notes)


class Folder(Files):
    """A folder of images: labels from a `labels.csv` in it, else from its folders' names, else none.

    `labels.csv` has the columns path (or filename), label and, if wanted, group. Images that it leaves out, or whose
    label is empty there, are unlabelled. How folders are read, `vabal.layouts` decides, or the user (`layout`). With
    `classes` given, only these names may occur, in this order; else a class without an image is none.
    Raises UserError if the folder is missing or empty, if its labels contradict each other or `classes`, or if it is
    ambiguous what its folders mean.
    """

    name = "folder"

    def __init__(self, root: Path, classes: Sequence[str] | None = None, layout: str | None = None) -> None:
        found = walk(root)
        self.given = classes is not None
        chosen = tuple(map(class_name, classes)) if classes else None
        listing = None if _is_by_folders(layout) else _listing_of(shown(root), found.paths, layout)
        files = [file for file in found.files if file.path != listing]
        images = [file.path for file in files if looks_like_an_image(root / file.path)]
        place, about = shown(root), [] if listing is None else [f"labels come from {listing}"]
        if listing is None:
            reading = layouts.read_folders(place, images, chosen, layout)
        elif layout == layouts.SPLITS:
            reading = layouts.read_folders(place, images, None, layout)
        else:
            reading = layouts.Reading(layouts.FLAT)
        self.layout = reading.layout
        known = {
            file.path: Known(said.label, None, said.split)
            for file in files
            if (said := reading.place(file.path)) is not None
        }
        missing: list[str] = []
        if listing is not None:
            listed = resolve(root, str(listing), _read_listing(root / listing), list(known))
            nothing = Known()
            missing, about = listed.missing, [*about, *listed.notes]
            if layout is None:
                labelled = [path for path, said in listed.known.items() if said.label]
                about += layouts.splits_beside_table(place, str(listing), images, labelled)
            about += layouts.check_names(
                f"{place}/{listing}", [said.label for said in listed.known.values() if said.label], chosen
            )
            known = {path: _as_listed(listed.known.get(path, nothing), said) for path, said in known.items()}
        files, again = once([file for file in files if file.path in known], known)
        if again:
            about.append(f"left out, links to files that are there: {some(again)}")
        empty = _without_images(found.folders, images)
        if empty:
            about.append(f"folders without an image: {some(empty)}")
        # the holdout first: an image that is in both splits stays there
        paths = sorted((file.path for file in files), key=lambda path: known[path].split == "pool")
        super().__init__(root, paths, known, linked=found.linked, notes=(*reading.notes, *about, *found.notes()))
        self._missing = [(f"{place}/{name}", f"listed in {listing}, but not there") for name in missing]
        self.classes = _classes(place, [said.label for said in known.values()], chosen)

    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]:
        yield from super().items(limits)
        self.unreadable += self._missing


def _listing_of(root: str, paths: Sequence[PurePosixPath], layout: str | None) -> PurePosixPath | None:
    """The table of labels on top. Raises UserError for two of them, or one further down where no layout is chosen."""
    tables = [path for path in paths if path.name.lower() == "labels.csv"]
    on_top = [path for path in tables if len(path.parts) == 1]
    if len(on_top) > 1:
        raise UserError(f"{root}: {some(list(map(str, on_top)))}: keep one of them")
    if tables and not on_top and layout is None:
        place = shown(tables[0].parent)
        raise UserError(
            f"{root}: {shown(tables[0])} is read only on top: name {root}/{place} as the source, or say by --layout "
            f"{layouts.CLASS_FOLDERS} that folders are classes"
        )
    return on_top[0] if on_top else None


def _as_listed(listed: Known, by_folders: Known) -> Known:
    """What a table says of a file, in the split where it lies; its label as classes are named."""
    return replace(listed, label=class_name(listed.label) if listed.label else None, split=by_folders.split)


def _is_by_folders(layout: str | None) -> bool:
    """Whether the user said that folders are the classes, whatever a table says."""
    return layout in (layouts.CLASS_FOLDERS, layouts.PARENT_FOLDERS)


def _without_images(folders: Sequence[PurePosixPath], images: Sequence[PurePosixPath]) -> list[str]:
    """The outermost folders that hold no image at any depth."""
    holding = {above for path in images for above in path.parents}
    empty = {folder for folder in folders if folder not in holding}
    return [shown(folder) for folder in sorted(empty) if folder.parent not in empty]


def _classes(root: str, labels: Sequence[str | None], given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The classes in their order. Raises UserError for a label that is none of those given."""
    found = natural({label for label in labels if label is not None})
    strangers = [name for name in found if given and name not in given]
    if strangers:
        raise UserError(f"{root}: label {strangers[0]!r} is not among the classes given: {', '.join(given or ())}")
    return tuple(given or found) or None


def _read_listing(path: Path) -> dict[PurePosixPath, Known]:
    """Label and group of every path that a labels.csv names."""
    name = str(path)
    lines = delimited.lines_of(delimited.text_of(_content(path), name), name, (*_PATH_COLUMNS, "label", "group"))
    header = delimited.header_of(lines[0]) if lines else []
    where = next((column for column in _PATH_COLUMNS if column in header), None)
    if where is None or "label" not in header:
        found = ", ".join(header) or "nothing"
        raise UserError(f"{path}: the first line must name the columns path and label, found {found}")
    columns = delimited.Columns.of(header, (where, "label", "group"), (where, "label", "group"), name)
    listed: dict[PurePosixPath, Known] = {}
    for line in lines[1:]:
        at = f"{path}: line {line.number}"
        problem = columns.problem(line)
        if problem is not None:
            raise UserError(f"{at}: {problem}")
        said = columns.cell(line, where)
        place = PurePosixPath(said.replace("\\", "/"))
        if not said:
            raise UserError(f"{at}: {said!r} is no path below this folder")
        values = Known(columns.cell(line, "label") or None, columns.cell(line, "group") or None)
        if listed.setdefault(place, values) != values:
            raise UserError(f"{at}: {place} stands there twice, with different values")
    return listed


_PATH_COLUMNS: Final = ("path", "filename", "file", "image")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


class Neu(Files):
    """NEU surface defects: 6 classes at 200 x 200, or the 9 classes at 64 x 64, in whatever folders they lie.

    The class stands in the file's name (`Cr_1.bmp`, `crazing_1.jpg`) or in the name of its folder. Other files
    (annotations) are left out. Raises UserError if there are no such images.
    """

    name = "neu"
    size_hint = (64, 1)
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
        super().__init__(root, paths, known, linked=found.linked, notes=found.notes())
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

    Needs the package `elpv-dataset`, which carries the images. Raises UserError if it is not installed.
    """

    name = "elpv"
    size_hint = (64, 1)

    def __init__(self) -> None:
        try:
            root = Path(str(resources.files("elpv_dataset"))) / "data"
            lines = (root / "labels.csv").read_text(encoding="utf-8").splitlines()
        except (ModuleNotFoundError, FileNotFoundError):
            raise UserError("source elpv needs the package elpv-dataset: install it, or take another source") from None
        rows = [line.split() for line in lines if line.strip()]
        labels = {PurePosixPath(path): f"{kind}-{float(share):.2f}" for path, share, kind in rows}
        super().__init__(root, list(labels), {path: Known(label) for path, label in labels.items()})
        self.classes = tuple(sorted(set(labels.values())))

    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]:
        for item in super().items(limits):
            yield Item(item.sample_id.removeprefix("images-"), item.data, item.label, origin=item.origin)


# --- names ------------------------------------------------------------------------------------------------------------


def sample_id_of(path: str) -> str:
    """A sample id from a relative path: without the extension, letters, digits and `._-` only."""
    pure = PurePosixPath(unicodedata.normalize("NFC", shown(path) if not is_utf8(path) else path))
    text = re.sub(r"[^\w.]+", "-", str(pure.with_suffix("")))
    return text.strip("-.") or "image"


def natural(names: set[str]) -> list[str]:
    """Sorted, with numbers inside the names by their value: 2 before 10."""

    def key(name: str) -> tuple[Any, ...]:
        return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name))

    return sorted(names, key=lambda name: (key(name), name))


def _hint(width: int, height: int, channels: int) -> tuple[int, int]:
    return (min(max(width, height, 4), 64), channels)
