"""Sources that are image files below a place (a folder, a bucket), with or without a table of labels."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from vabal.errors import UserError, shown, some
from vabal.images import Unreadable, shape
from vabal.labels import delimited, listings
from vabal.labels.names import sample_id_of
from vabal.settings.models import ImageSettings
from vabal.sources import layouts
from vabal.sources.base import Item, hint, natural, without_images
from vabal.sources.folders import Found, Tree, Walk, class_name, once
from vabal.sources.listing import Known, resolve

# --- files ------------------------------------------------------------------------------------------------------------


class Files:
    """Image files below a place, with what is known of them.

    `linked` are those that a link led to. `notes` tell people what was left out before anything was read.
    """

    name = "files"
    classes: tuple[str, ...] | None = None
    given = True  # a class without an image is one all the same

    def __init__(
        self,
        tree: Tree,
        paths: Sequence[PurePosixPath],
        known: Mapping[PurePosixPath, Known] | None = None,
        *,
        linked: Collection[PurePosixPath] = (),
        notes: Sequence[str] = (),
    ) -> None:
        self.place = tree.place
        self._tree = tree
        self._paths = paths
        self._known = known or {}
        self._linked = linked
        self.notes = tuple(notes)
        self.unreadable: list[tuple[str, str]] = []

    @property
    def size_hint(self) -> tuple[int, int]:
        """From the first file that can be read."""
        for got in self._tree.read(self._paths, ImageSettings()):
            with suppress(Unreadable):
                if got.reason is None:
                    return hint(*shape(got.data))
        return (64, 3)

    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]:
        self.unreadable.clear()
        for got in self._tree.read(self._paths, limits or ImageSettings()):
            if got.reason is not None:
                self.unreadable.append((self._tree.name_of(got.path), got.reason))
                continue
            known = self._known.get(got.path, Known())
            yield Item(
                sample_id_of(str(got.path)),
                got.data,
                known.label,
                known.group,
                known.split,
                origin=self._tree.name_of(got.path),
                linked=got.path in self._linked,
                reference=got.reference,
            )


def files_below(tree: Tree) -> Files:
    """All files below a place as images of which nothing is known."""
    files, again = once(tree.files, {})
    notes = tree.notes() + ([f"left out, links to files that are there: {some(again)}"] if again else [])
    return Files(tree, [file.path for file in files], linked=tree.linked, notes=notes)


def one_file(path: Path) -> Files:
    """A file as an image of which nothing is known."""
    name = PurePosixPath(path.name)
    return Files(Walk(path.parent, [Found(name, (0, 0), path.is_symlink())]), [name], linked=[name] * path.is_symlink())


class Folder(Files):
    """Images below a place: labels from a table in it, else from its folders' names, else none.

    The table (`labels.csv`, `metadata.jsonl` or `metadata.csv`) has path (or file_name), label and, if wanted, group.
    Images that it leaves out, or whose label is empty there, are unlabelled. How folders are read,
    `vabal.sources.layouts` decides, or the user (`layout`). With `classes` given, only these names may occur, in this
    order; else a class without an image is none.
    Raises UserError if the folder is missing or empty, if its labels contradict each other or `classes`, or if it is
    ambiguous what its folders mean.
    """

    def __init__(self, found: Tree, classes: Sequence[str] | None = None, layout: str | None = None) -> None:
        self.name = found.kind
        self.given = classes is not None
        chosen = tuple(map(class_name, classes)) if classes else None
        listing = None if _is_by_folders(layout) else _listing_of(found, layout)
        tables = set() if listing is None else {listing, *map(PurePosixPath, listings.TABLES)}
        files = [file for file in found.files if file.path not in tables]
        images = found.images([file.path for file in files])
        place, about = found.place, [] if listing is None else [f"labels come from {listing}"]
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
            where = found.name_of(listing)
            listed = resolve(where, found.tops(), _read_listing(found.table(listing), where), list(known))
            nothing = Known()
            missing, about = listed.missing, [*about, *listed.notes]
            if layout is None:
                labelled = [path for path, said in listed.known.items() if said.label]
                about += layouts.splits_beside_table(place, str(listing), images, labelled)
            about += layouts.check_names(where, [said.label for said in listed.known.values() if said.label], chosen)
            known = {path: _as_listed(listed.known.get(path, nothing), said) for path, said in known.items()}
        files, again = once([file for file in files if file.path in known], known)
        if again:
            about.append(f"left out, links to files that are there: {some(again)}")
        empty = without_images(found.folders, images)
        if empty:
            about.append(f"folders without an image: {some(empty)}")
        # the holdout first: an image that is in both splits stays there
        paths = sorted((file.path for file in files), key=lambda path: known[path].split == "pool")
        super().__init__(found, paths, known, linked=found.linked, notes=(*reading.notes, *about, *found.notes()))
        self._missing = [
            (found.name_of(PurePosixPath(name)), f"listed in {listing}, but not there") for name in missing
        ]
        self.classes = classes_of(place, [said.label for said in known.values()], chosen)

    def items(self, limits: ImageSettings | None = None, /) -> Iterator[Item]:
        yield from super().items(limits)
        self.unreadable += self._missing


def _listing_of(found: Tree, layout: str | None) -> PurePosixPath | None:
    """The table of labels on top. Raises UserError for two of them, or one further down where no layout is chosen.

    Tables of Hugging Face's that hold no label (captions, boxes) are none.
    """
    place = found.place
    for table in listings.TABLES:
        tables = [file.path for file in found.files if file.path.name.lower() == table]
        if table != listings.TABLES[0]:
            tables = [path for path in tables if _holds_labels(found.table(path))]
        on_top = [path for path in tables if len(path.parts) == 1]
        if len(on_top) > 1:
            raise UserError(f"{place}: {some(list(map(str, on_top)))}: keep one of them")
        if tables and not on_top and layout is None:
            further = shown(tables[0].parent)
            raise UserError(
                f"{place}: {shown(tables[0])} is read only on top: name {place}/{further} as the source, or "
                f"say by --layout {layouts.CLASS_FOLDERS} that folders are classes"
            )
        if on_top:
            return on_top[0]
    return None


def _holds_labels(table: bytes) -> bool:
    return re.search(rb'(^|[,;\t"])label($|[,;\t"\r\n])', table[: 1 << 16].partition(b"\n")[0]) is not None


def _as_listed(listed: Known, by_folders: Known) -> Known:
    """What a table says of a file, in the split where it lies; its label as classes are named."""
    return replace(listed, label=class_name(listed.label) if listed.label else None, split=by_folders.split)


def _is_by_folders(layout: str | None) -> bool:
    """Whether the user said that folders are the classes, whatever a table says."""
    return layout in (layouts.CLASS_FOLDERS, layouts.PARENT_FOLDERS)


def classes_of(root: str, labels: Sequence[str | None], given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The classes in their order. Raises UserError for a label that is none of those given."""
    found = natural({label for label in labels if label is not None})
    strangers = [name for name in found if given and name not in given]
    if strangers:
        raise UserError(f"{root}: label {strangers[0]!r} is not among the classes given: {', '.join(given or ())}")
    return tuple(given or found) or None


def _read_listing(content: bytes, name: str) -> dict[PurePosixPath, Known]:
    """Label and group of every path that a table of labels names."""
    listed: dict[PurePosixPath, Known] = {}
    rows = _rows_of_json if name.lower().endswith(".jsonl") else _rows_of_csv
    for number, said, values, problem in rows(delimited.text_of(content, name), name):
        at = f"{name}: line {number}"
        if problem is not None:
            raise UserError(f"{at}: {problem}")
        place = PurePosixPath(said.replace("\\", "/"))
        if not said:
            raise UserError(f"{at}: {said!r} is no path below this folder")
        if listed.setdefault(place, values) != values:
            raise UserError(f"{at}: {place} stands there twice, with different values")
    return listed


_Row = tuple[int, str, Known, str | None]  # the line, the path, what is known of it, what is wrong


def _rows_of_csv(text: str, name: str) -> Iterator[_Row]:
    lines = delimited.lines_of(text, name, (*listings.FILE_COLUMNS, "label", "group"))
    header = delimited.header_of(lines[0]) if lines else []
    where = next((column for column in listings.FILE_COLUMNS if column in header), None)
    if where is None or "label" not in header:
        found = ", ".join(header) or "nothing"
        raise UserError(f"{name}: the first line must name the columns path and label, found {found}")
    columns = delimited.Columns.of(header, (where, "label", "group"), (where, "label", "group"), name)
    for line in lines[1:]:
        values = Known(columns.cell(line, "label") or None, columns.cell(line, "group") or None)
        yield line.number, columns.cell(line, where), values, columns.problem(line)


def _rows_of_json(text: str, name: str) -> Iterator[_Row]:
    for number, row in listings.lines_of_json(text, name):
        said, missing = listings.text_in(row, *listings.FILE_COLUMNS)
        label, wrong = listings.text_in(row, "label")
        group, odd = listings.text_in(row, "group")
        yield number, said, Known(label or None, group or None), missing or wrong or odd
