"""Images that stay in a bucket: those below a prefix, as a folder's, or those that a manifest of addresses names."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from vabal import objects
from vabal.errors import UserError, shown, some
from vabal.images import Unreadable
from vabal.images.shards import too_large
from vabal.labels import delimited
from vabal.objects import Gone, Listed, Reference
from vabal.settings.models import ImageSettings
from vabal.sources.files import Files, Folder, classes_of
from vabal.sources.folder_names import Split, split_roles
from vabal.sources.folders import HIDDEN, IMAGE_SUFFIXES, SIDE, Found, Got, aside, class_name
from vabal.sources.listing import Known

MANIFEST: Final = ".csv"
NO_PATH: Final = "keys that are no path (//, . or .. in them)"
FOLDER_MARKS: Final = "empty objects that stand for folders"
_SIZE: Final = 1_000_000  # bytes that an object is taken to have which nobody has looked at
_MOST_TABLE: Final = 4_000_000_000
_COLUMNS: Final = ("uri", "label", "group", "split")


class Objects:
    """Objects of a bucket by the path that their keys are below a prefix; `vabal.sources.folders.Tree` of S3.

    Each is read once, several at a time; what is kept of it says where it is and what it was.
    """

    kind = "s3"

    def __init__(
        self, place: str, found: Mapping[PurePosixPath, Listed], left_out: Mapping[str, Sequence[str]]
    ) -> None:
        self.place = shown(place)
        self._top = place
        self.found = dict(sorted(found.items()))
        self.files = [Found(path, (0, number), linked=True) for number, path in enumerate(self.found)]
        self.folders: list[PurePosixPath] = []  # there are none without an object in them
        self._left_out = left_out

    @property
    def linked(self) -> frozenset[PurePosixPath]:
        return frozenset(self.found)

    def notes(self) -> list[str]:
        return [f"left out, {reason}: {some([*map(shown, keys)])}" for reason, keys in sorted(self._left_out.items())]

    def images(self, paths: Sequence[PurePosixPath]) -> list[PurePosixPath]:
        """By their names: nothing is read; all of them where no name tells."""
        return [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES] or list(paths)

    def tops(self) -> list[str]:
        return [self._top]

    def name_of(self, path: PurePosixPath) -> str:
        return shown(self.found[path].uri if path in self.found else f"{self._top}/{path}")

    def table(self, path: PurePosixPath) -> bytes:
        return read_table(self.found[path].uri)

    def read(self, paths: Sequence[PurePosixPath], limits: ImageSettings) -> Iterator[Got]:
        wanted = ((path, self.found[path]) for path in paths)
        most = int(limits.max_megabytes * 1e6)
        come = objects.ahead(wanted, lambda pair: _read(pair[1], most), lambda pair: pair[1].size or _SIZE)
        for (path, _), (reference, data) in come:
            try:
                if reference is None:
                    raise Unreadable("gone before it was read")
                too_large(reference.size, limits)
            except Unreadable as reason:
                yield Got(path, reason=str(reason))
            else:
                yield Got(path, data or b"", reference=reference)

    def without(self, uris: Mapping[str, object]) -> "Objects":
        """The others."""
        rest = {path: listed for path, listed in self.found.items() if listed.uri not in uris}
        return Objects(self._top, rest, self._left_out)


def _read(listed: Listed, most: int) -> tuple[Reference | None, bytes | None]:
    try:
        return objects.first_read(listed, most)
    except Gone:
        return None, None


def below(address: str) -> Objects:
    """Every object below an s3://bucket/prefix. Raises UserError if there is none, Unavailable if S3 is."""
    try:
        bucket, prefix = objects.parts_of(address)
    except ValueError as error:
        raise UserError(f"{error}: name a bucket and, behind it, a prefix") from None
    top = f"s3://{bucket}/{prefix.strip('/')}".rstrip("/")
    found: dict[PurePosixPath, Listed] = {}
    left_out: dict[str, list[str]] = {}
    for listed in objects.store().below(address):
        name = listed.uri.removeprefix(f"{top}/") if listed.uri != top else PurePosixPath(top).name
        path = PurePosixPath(name)
        reason = _left_out(name, path, listed)
        if reason is None:
            found[path] = listed
        else:
            left_out.setdefault(reason, []).append(name)
    tree = Objects(top, found, left_out)
    if not found:
        raise UserError("; ".join([f"{tree.place}: no objects there", *tree.notes()]))
    return tree


def _left_out(name: str, path: PurePosixPath, listed: Listed) -> str | None:
    if name.endswith("/") and not listed.size:
        return FOLDER_MARKS
    if _is_no_path(name):
        return NO_PATH
    reasons = {aside(part) for part in path.parts} - {None}
    return (SIDE if SIDE in reasons else HIDDEN) if reasons else None


def _is_no_path(key: str) -> bool:
    return any(part in ("", ".", "..") for part in key.split("/"))


def read_table(address: str) -> bytes:
    """A table's bytes, from S3 or from a file. Raises UserError if it is not there, Unavailable if S3 is away."""
    if not objects.is_address(address):
        try:
            return Path(address).expanduser().read_bytes()
        except OSError as error:
            raise UserError(f"{shown(address)}: {error.strerror}") from None
    try:
        return objects.store().read(address, most=_MOST_TABLE).data or b""
    except Gone:
        raise UserError(f"{shown(address)}: no such object") from None


# --- manifests --------------------------------------------------------------------------------------------------------


def manifest(address: str) -> tuple[Objects, dict[PurePosixPath, Known]]:
    """The objects that a CSV with the columns uri and, if wanted, label, group and split names, and what it says.

    Raises UserError naming the line of what cannot be used.
    """
    name = shown(address)
    lines = delimited.lines_of(delimited.text_of(read_table(address), name), name, _COLUMNS)
    header = delimited.header_of(lines[0]) if lines else []
    if "uri" not in header:
        raise UserError(f"{name}: the first line must name the column uri, found {', '.join(header) or 'nothing'}")
    columns = delimited.Columns.of(header, _COLUMNS, _COLUMNS, name)
    splits = {columns.cell(line, "split") for line in lines[1:]} - {""}
    roles = _roles(name, sorted(splits))
    rows: dict[str, Known] = {}
    for line in lines[1:]:
        uri, at = columns.cell(line, "uri"), f"{name}: line {line.number}"
        problem = columns.problem(line) or _problem(uri)
        if problem is not None:
            raise UserError(f"{at}: {problem}")
        label, group = columns.cell(line, "label"), columns.cell(line, "group")
        known = Known(class_name(label) if label else None, group or None, roles.get(columns.cell(line, "split")))
        if rows.setdefault(uri, known) != known:
            raise UserError(f"{at}: {shown(uri)} stands there twice, with different values")
    if not rows:
        raise UserError(f"{name}: it names no object")
    paths = dict(zip(_paths(list(rows)), rows, strict=True))
    tree = Objects(address, {path: Listed(uri) for path, uri in paths.items()}, {})
    return tree, {path: rows[uri] for path, uri in paths.items()}


def _problem(uri: str) -> str | None:
    try:
        _, key = objects.parts_of(uri)
    except ValueError as error:
        return str(error)
    return f"{shown(uri)}: the key is no path" if _is_no_path(key) else None


def _paths(uris: Sequence[str]) -> Iterator[PurePosixPath]:
    """What ids are made of: keys, with their buckets where there are several."""
    several = len({objects.parts_of(uri)[0] for uri in uris}) > 1
    for uri in uris:
        bucket, key = objects.parts_of(uri)
        yield PurePosixPath(bucket, key) if several else PurePosixPath(key)


def _roles(name: str, splits: Sequence[str]) -> dict[str, Split]:
    if set(splits) <= {"pool", "holdout"}:
        return {"pool": "pool", "holdout": "holdout"}
    roles = split_roles(splits)
    unknown = [split for split in splits if split not in roles]
    if unknown:
        raise UserError(f"{name}: split {shown(unknown[0])!r}: pool and holdout are known, or train and test (or val)")
    return roles


class Manifest(Files):
    """The objects that a manifest names, with its labels, groups and splits."""

    name = "s3"

    def __init__(self, address: str, classes: Sequence[str] | None = None) -> None:
        tree, known = manifest(address)
        paths = sorted(tree.found, key=lambda path: known[path].split == "pool")  # as a folder's
        super().__init__(tree, paths, known, linked=tree.linked, notes=tree.notes())
        chosen = tuple(map(class_name, classes)) if classes else None
        self.given = classes is not None
        self.classes = classes_of(tree.place, [said.label for said in known.values()], chosen)


def source_of(address: str, classes: Sequence[str] | None = None, layout: str | None = None) -> Files:
    """What `--source s3://...` names: a manifest (an address that ends in .csv), or all below a prefix."""
    if not is_manifest(address):
        return Folder(below(address), classes, layout)
    if layout is not None:
        raise UserError(f"--layout: says how folders are read; {shown(address)} is a manifest, and names each label")
    return Manifest(address, classes)


def is_manifest(address: str) -> bool:
    return address.lower().endswith(MANIFEST)
