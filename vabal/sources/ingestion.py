"""Images into the inbox: read, sifted and stored, so that the next round takes them."""

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from vabal import images
from vabal.errors import UserError, shown
from vabal.files import make_folder, sync_folder
from vabal.images import near_copies
from vabal.images.shards import reference_table
from vabal.labels.arrivals import HALF, Arrival, content_digest, next_name, one_at_a_time, pending, read, some_of
from vabal.objects import Reference
from vabal.pools import INCOMING, NEAR, Pools, merged, typed, write_table
from vabal.settings.models import Params
from vabal.sources import buckets
from vabal.sources.arrays import Npz
from vabal.sources.base import Item, Source
from vabal.sources.files import Files, files_below, one_file
from vabal.sources.folders import walk
from vabal.sources.sifting import FilteredItem, ItemFilter, name_of

# --- images -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IngestReport:
    """What became of new images. `name` is their place in the inbox, None if there were none to take in."""

    path: str
    name: str | None
    sample_ids: tuple[str, ...] = ()
    duplicates: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    near_holdout: tuple[tuple[str, str], ...] = ()  # left out, also for a group: (path, id of the holdout's image)
    near_pool: tuple[tuple[str, str], ...] = ()  # taken in: (path, id of another image of the pool)
    known: int = 0  # objects that were seen before, not read
    changed: tuple[tuple[str, str], ...] = ()  # not taken in: (address, the pool's image that it was)
    gone: tuple[tuple[str, str], ...] = ()  # the same, of objects that are not there any more

    def lines(self) -> list[str]:
        """For people."""
        said = [
            f"{len(self.sample_ids)} new images from {self.path}" + ("; the next round takes them in" * bool(self.name))
        ]
        if self.duplicates:
            said.append(
                f"{len(self.duplicates)} left out, the pool or the inbox has their content: {some_of(self.duplicates)}"
            )
        if self.near_holdout:
            listed = [f"{path} ({twin})" for path, twin in self.near_holdout]
            said.append(
                f"{len(listed)} left out, near copies or of the group of an image in the holdout: {some_of(listed)}"
            )
            if len(listed) > len(self.sample_ids):
                said.append("if they are different pictures that look alike: pool.near_copies: 0, and ingest again")
        if self.near_pool:
            listed = [f"{path} ({twin})" for path, twin in self.near_pool]
            said.append(f"{len(listed)} taken in are near copies of images in the pool: {some_of(listed)}")
        if self.unreadable:
            listed = [f"{path} ({reason})" for path, reason in self.unreadable]
            said.append(f"{len(listed)} unreadable, listed in quarantine/quarantine.csv: {some_of(listed)}")
        return [*said, *self.notes]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ingest(
    inbox: Path,
    pools: Pools,
    path: Path | str,
    params: Params,
    *,
    quarantine: Path,
    when: datetime,
    data: Path | None = None,
    fingerprints: Path | None = None,
) -> IngestReport:
    """Put the images of a file, a folder (with all below it) or an .npz file into the inbox, unlabelled.

    Of an s3://bucket/prefix, or of a manifest, the images stay there, and objects that were seen before are not read:
    one that changed since is told, and is no new image.

    What counts as a file below a folder, `folders.walk` says. Their ids come from their paths relative to `path`; an id
    that is taken gets the first digits of the content behind it. Images that the pool or the inbox has, by content or
    by pixels, and near copies of images in the holdout are left out, and so are images of a group (`groups` of an
    .npz) that has an image in the holdout; unreadable files go to `quarantine`; all are told. The pools' pictures are
    read from `data`, what is known of them kept in `fingerprints`; without, only contents are compared. Everything is
    on disk, durable, when this returns, and nothing is if it is killed.
    Raises UserError if `path` is missing, empty, or an .npz file that is not as it should be.
    """
    tree = buckets.arriving(str(path))
    with one_at_a_time(inbox):
        _, arrivals = read(inbox, [name for name in pending(inbox) if name.startswith("images/")])
        there = [pools.catalog, *(arrival.catalog for arrival in arrivals)]
        compared = None if tree is None else buckets.compare(tree, _seen(pools, arrivals, data, quarantine))
        source = _arriving(Path(path)) if compared is None else files_below(compared.new)
        known = _known(pools, arrivals, data, fingerprints, params)
        twins = _Twins(known, pools, arrivals, params.pool.near_copies)
        sieve = ItemFilter(
            params.images,
            ids={name for table in there for name in table["sample_id"]},
            contents={sha256 for table in there for sha256 in table["sha256"]},
            pixels=dict(zip(known["pixels"], known["sample_id"], strict=True)),
            refuse=twins.refuse,
        )
        catalog, folder = _store(inbox, source, sieve, params, twins, fingerprints)
        sieve.quarantine(quarantine, when)
        duplicates = tuple(name_of(item) for item, _ in sieve.duplicates)
        left_out = _reasons(sieve, twins)
        if compared is not None:
            left_out += [(uri, f"changed since it was taken in ({what})") for uri, what in compared.changed]
        images.note_left_out(quarantine, left_out, when)
        name = None
        if folder is not None:
            name = f"images/{next_name(inbox, content_digest(catalog))}"
            folder.replace(inbox / name)
            sync_folder(inbox / "images")
        if compared is not None:
            names = {item[0] for item in (*_reasons(sieve, twins), *sieve.reasons)}
            _note_seen(quarantine, compared.new, names)
    return IngestReport(
        path=shown(path),
        name=name,
        sample_ids=tuple(catalog["sample_id"]),
        duplicates=duplicates,
        unreadable=tuple(sieve.reasons),
        notes=(*(source.notes if isinstance(source, Files) else ()), *(compared.lines() if compared else ())),
        near_holdout=tuple(twins.held),
        near_pool=tuple(twins.free),
        known=compared.same if compared else 0,
        changed=compared.changed if compared else (),
        gone=compared.gone if compared else (),
    )


_SEEN: Final = "objects.jsonl"  # below quarantine/: objects that were read and left out


def _seen(pools: Pools, arrivals: Sequence[Arrival], data: Path | None, quarantine: Path) -> dict[str, buckets.Before]:
    """Objects that the pools or the inbox hold, or that were left out, by their addresses."""
    seen: dict[str, buckets.Before] = {}
    path = quarantine / _SEEN
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):  # cut by a kill: then it is read once more
            uri, etag = json.loads(line)
            seen[uri] = buckets.Before(etag)
    for arrival in arrivals:
        seen |= _held(arrival.shards.parent, arrival.catalog.assign(said="in the inbox"))
    if data is not None:
        rounds = "round " + pools.catalog["added_round"].astype(str)
        seen |= _held(data, pools.catalog[["sample_id", "shard"]].assign(said=rounds))
    return seen


def _held(data: Path, catalog: pd.DataFrame) -> dict[str, buckets.Before]:
    said = dict(zip(catalog["sample_id"], catalog["said"], strict=True))
    held: dict[str, buckets.Before] = {}
    for shard in catalog["shard"].unique():
        table = reference_table(data, str(shard), ("sample_id", "uri", "etag"))
        if table is None:
            continue
        for sample_id, uri, etag in zip(*(column.to_pylist() for column in table.columns), strict=True):
            held[uri] = buckets.Before(etag, sample_id if sample_id in said else None, said.get(sample_id, ""))
    return held


def _note_seen(quarantine: Path, tree: buckets.Objects, left_out: set[str]) -> None:
    """Objects that were read and left out are not read again as long as they are the same."""
    found = [listed for path, listed in tree.found.items() if listed.etag and tree.name_of(path) in left_out]
    if found:
        quarantine.mkdir(parents=True, exist_ok=True)
        with (quarantine / _SEEN).open("a", encoding="utf-8") as file:
            file.writelines(f"{json.dumps([listed.uri, listed.etag])}\n" for listed in found)


def _known(
    pools: Pools, arrivals: Sequence[Arrival], data: Path | None, fingerprints: Path | None, params: Params
) -> pd.DataFrame:
    """sample_id, pixels and print of what the pools and the inbox hold."""
    nothing = pd.DataFrame({"sample_id": [], "pixels": [], "print": []}, dtype=object)
    if data is None or fingerprints is None:
        return nothing
    tables = [near_copies.of_shards(data, pools.catalog, fingerprints, params.images)]
    tables += [
        near_copies.of_shards(arrival.shards.parent, arrival.catalog, fingerprints, params.images)
        for arrival in arrivals
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[table["pixels"] != ""]


class _Twins:
    """Near copies of what is known, and images of its groups: those of the holdout are kept out, the others told."""

    def __init__(self, known: pd.DataFrame, pools: Pools, arrivals: Sequence[Arrival], distance: int) -> None:
        self._ids = known["sample_id"].tolist()
        self._holdout = set(pools.holdout["sample_id"])
        self._distance = distance
        self._index = near_copies.Index(known["print"].tolist(), distance) if distance else None
        there = pd.concat([pools.catalog, *(arrival.catalog for arrival in arrivals)], ignore_index=True)
        told = there["group"].notna()
        self._group = dict(zip(there.loc[told, "sample_id"], there.loc[told, "group"], strict=True))
        self._held_groups = {name: one for one, name in self._group.items() if one in self._holdout}
        self.held: list[tuple[str, str]] = []
        self.free: list[tuple[str, str]] = []
        self._twin: list[str | None] = []  # of each image that was let through
        self._prints: list[bytes] = []

    def refuse(self, item: Item, fingerprint: bytes) -> bool:
        near = [self._ids[place] for _, place in self._index.near([fingerprint])] if self._index else []
        held = [sample_id for sample_id in near if sample_id in self._holdout]
        if item.group in self._held_groups:
            held.append(self._held_groups[item.group])
        if near or held:
            (self.held if held else self.free).append((name_of(item), (held or near)[0]))
        if not held:
            self._twin.append(near[0] if near else None)
            self._prints.append(fingerprint)
        return bool(held)

    def groups(self, new: pd.DataFrame) -> pd.Series:
        """The groups of what was let through (sample_id, group as told), in that order: near copies share one, among
        themselves and with what was known."""
        twins = list(dict.fromkeys(name for name in self._twin if name is not None))
        place = {name: row for row, name in enumerate(twins)}
        known = pd.DataFrame({"sample_id": twins, "group": [self._group.get(name, f"{NEAR}{name}") for name in twins]})
        first = len(twins)
        near = [(place[name], first + row) for row, name in enumerate(self._twin) if name is not None]
        among = near_copies.pairs(self._prints, self._distance)
        near += [(first + one, first + other) for one, other in among]
        items = pd.concat([known, new], ignore_index=True).astype(object)
        return merged(items, near, known=first)[first:].reset_index(drop=True)


def _reasons(sieve: ItemFilter, twins: _Twins) -> list[tuple[str, str]]:
    same = [(name_of(item), f"same picture as {twin}" if twin else "same content") for item, twin in sieve.duplicates]
    return same + [(path, f"near copy or of the group of {twin} in the holdout") for path, twin in twins.held]


def _arriving(path: Path) -> Source:
    if path.is_dir():
        return files_below(walk(path))
    if not path.exists():
        raise UserError(f"{shown(path)}: no such file or folder")
    if path.suffix.lower() == ".npz":
        return Npz(path)
    return one_file(path)


def _store(
    inbox: Path, source: Source, sieve: ItemFilter, params: Params, twins: _Twins, fingerprints: Path | None
) -> tuple[pd.DataFrame, Path | None]:
    """Catalog rows, and a folder under a temporary name with them and their shards; None where nothing is new."""
    make_folder(inbox / "images")
    for left in (inbox / "images").iterdir():  # of a process that was killed: the lock is ours
        if HALF.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
    folder = inbox / "images" / f".{uuid.uuid4().hex}.tmp"
    facts: dict[str, tuple[str, int, int, str | None]] = {}
    looks: dict[str, tuple[str, bytes]] = {}  # of images that stay where they are
    try:
        placed = images.write_shards(
            _noting(sieve.sift(source), facts, looks), folder / "images", settings=params.pool, name_prefix="new"
        )
        rows = [(sample_id, shard, row, *facts[sample_id]) for shard, row, sample_id in placed]
        catalog = pd.DataFrame(rows, columns=INCOMING.names)
        catalog["group"] = twins.groups(catalog[["sample_id", "group"]])
        catalog = typed(catalog, INCOMING)
        if catalog.empty:
            shutil.rmtree(folder)
            return catalog, None
        prefix = f"ingest-{content_digest(catalog)[:8]}"
        for shard in catalog["shard"].unique():
            path = folder / "images" / f"{shard}.parquet"
            path.rename(path.with_name(path.name.replace("new", prefix, 1)))
        catalog["shard"] = catalog["shard"].str.replace("new", prefix, n=1, regex=False)
        write_table(catalog, folder / "catalog.parquet", INCOMING)
        sync_folder(folder / "images")
        if fingerprints is not None and looks:
            for shard, of_shard in catalog.groupby("shard", sort=False):
                known = [(name, *looks[name]) for name in of_shard["sample_id"]]
                near_copies.remember(folder, str(shard), known, fingerprints, params.images)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return catalog, folder


def _noting(
    sifted: Iterator[FilteredItem],
    facts: dict[str, tuple[str, int, int, str | None]],
    looks: dict[str, tuple[str, bytes]],
) -> Iterator[tuple[str, bytes | Reference]]:
    for new in sifted:
        facts[new.item.sample_id] = (new.sha256, new.width, new.height, new.item.group)
        if new.item.reference is None:
            yield new.item.sample_id, new.item.data
        else:
            looks[new.item.sample_id] = (new.pixels, new.fingerprint)
            yield new.item.sample_id, new.item.reference
