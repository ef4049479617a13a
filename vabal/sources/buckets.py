"""Images that stay in a bucket: those below a prefix, as a folder's, or those that a manifest of addresses names."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
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

    def covers(self, uri: str) -> bool:
        """Whether the object would have been found, if it were there."""
        return uri.startswith(f"{self._top}/")

    def without(self, uris: Collection[str]) -> "Objects":
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


# --- what is known already --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Before:
    """An object that was seen before: its entity tag then, and the image that it is, if it is one."""

    etag: str
    sample_id: str | None = None
    said: str = ""  # when and where, for people


@dataclass(frozen=True)
class Compared:
    """A place against what was seen there before: the objects `new` to it, and how many are the `same`.

    `changed` and `gone` name images of the pool: (address, sample_id and when it was taken in).
    """

    new: Objects
    same: int = 0
    changed: tuple[tuple[str, str], ...] = ()
    gone: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{self.same} objects are known already, and the same"] if self.same else []
        if self.changed:
            listed = [f"{uri} ({what})" for uri, what in self.changed]
            said.append(
                f"{len(listed)} changed since taken in, which is no new data: {some(listed)}; the pool keeps "
                "what they were, and needs those bytes (`vabal audit --verify --remote`)"
            )
        if self.gone:
            listed = [f"{uri} ({what})" for uri, what in self.gone]
            said.append(f"{len(listed)} of the pool's images gone from there: {some(listed)}")
        return said


def compare(tree: Objects, seen: Mapping[str, Before]) -> Compared:
    """Nothing is read: listings have entity tags, and an object of a manifest that was seen before is looked at."""
    there = {listed.uri: listed for listed in tree.found.values()}
    asked = [uri for uri, listed in there.items() if uri in seen and not listed.etag]
    store = objects.store()
    there |= {uri: found or Listed(uri, -1) for uri, found in objects.ahead(asked, store.look, lambda _: 0)}
    changed, gone, same = [], [], []
    again: list[str] = []
    for uri, before in seen.items():
        listed = there.get(uri)
        named = (shown(uri), f"{before.sample_id}, {before.said}")
        if listed is None or listed.size == -1:
            if before.sample_id is not None and (listed is not None or tree.covers(uri)):
                gone.append(named)
        elif listed.etag == before.etag:
            same.append(uri)
        elif before.sample_id is not None:
            changed.append(named)
        else:
            again.append(uri)  # what was left out then may be an image now
    known = seen.keys() - set(again)
    return Compared(tree.without(known), len(same), tuple(sorted(changed)), tuple(sorted(gone)))


def arriving(address: str) -> Objects | None:
    """What `vabal ingest` names by an address: a manifest, or all below a prefix. None for files."""
    if address.startswith("uris:"):
        return manifest(address.removeprefix("uris:"))[0]
    if not objects.is_address(address):
        return None
    return manifest(address)[0] if is_manifest(address) else below(address)


def source_of(address: str, classes: Sequence[str] | None = None, layout: str | None = None) -> Files:
    """What `--source s3://...` names: a manifest (an address that ends in .csv), or all below a prefix."""
    if not is_manifest(address):
        return Folder(below(address), classes, layout)
    if layout is not None:
        raise UserError(f"--layout: says how folders are read; {shown(address)} is a manifest, and names each label")
    return Manifest(address, classes)


def is_manifest(address: str) -> bool:
    return address.lower().endswith(MANIFEST)
