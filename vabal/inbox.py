"""The inbox: labels and images that came and that no round has taken yet. What is in it is durable.

`labels/000001-<digest>.parquet` holds what one imported file brought; `images/000002-<digest>/` one ingestion,
`catalog.parquet` beside its shards in `images/`. The numbers tell the order in which they came.
"""

import fcntl
import hashlib
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, Final

import pandas as pd

from vabal import images, near_copies
from vabal.datasets import Files, Item, Npz, Source, files_below
from vabal.errors import UserError
from vabal.folders import shown
from vabal.params import Params
from vabal.pools import EVENTS, FROM_SOURCE, INCOMING, Pools, among, read_table, stack, standing, typed, write_table
from vabal.sources import Sieve, Sifted, name_of
from vabal.store import make_folder, sync_folder

_NAME: Final = re.compile(r"\d{6,}-[0-9a-f]{8}(\.parquet)?")
_HALF: Final = re.compile(r"\.[0-9a-f]{32}\.tmp")  # an ingestion that is being written
_KINDS: Final = ("labels", "images")
MEND: Final = "move this entry out of inbox/, and import or ingest again what it came from"
_LISTED: Final = 10
UNNAMED: Final = "unknown"  # the annotator of a label that names none


@dataclass(frozen=True)
class Arrival:
    """Images of one ingestion: their catalog rows (columns of `pools.INCOMING`) and the folder of their shards."""

    name: str
    catalog: pd.DataFrame
    shards: Path


def pending(inbox: Path) -> list[str]:
    """What no round has taken yet, in the order it came: names relative to the inbox."""
    found = [
        f"{kind}/{path.name}" for kind in _KINDS for path in (inbox / kind).glob("*") if _NAME.fullmatch(path.name)
    ]
    return sorted(found, key=lambda name: (_number(name), name))


def _number(name: str) -> int:
    return int(PurePosixPath(name).name.partition("-")[0])


def read(inbox: Path, names: Sequence[str]) -> tuple[pd.DataFrame, list[Arrival]]:
    """Label events (columns of `pools.EVENTS`) and images behind these names, in order.

    Raises UserError if something of it is gone or damaged.
    """
    ordered = sorted(names, key=lambda name: (_number(name), name))
    events = [read_table(inbox / name, EVENTS, MEND) for name in ordered if name.startswith("labels/")]
    arrivals = [
        Arrival(name, read_table(inbox / name / "catalog.parquet", INCOMING, MEND), inbox / name / "images")
        for name in ordered
        if name.startswith("images/")
    ]
    return stack(events, EVENTS), arrivals


def remove(inbox: Path, names: Sequence[str]) -> None:
    """Take these names out of the inbox; those that are gone already are no error."""
    for name in names:
        path = inbox / name
        if path.parent.parent != inbox or path.parent.name not in _KINDS or not _NAME.fullmatch(path.name):
            continue  # no name that the inbox gave
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


@contextmanager
def _one_at_a_time(inbox: Path) -> Iterator[None]:
    """Imports and ingestions wait for each other, so that each sees what came before it. Ends with the process."""
    make_folder(inbox)
    with (inbox / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _next_name(inbox: Path, digest: str) -> str:
    return f"{max(map(_number, pending(inbox)), default=0) + 1:06d}-{digest[:8]}"


# --- labels -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImportReport:
    """What became of a file of labels. `name` is its place in the inbox, None if there was nothing to take in.

    `repeated` opinions were known and are left out. `disagreeing` are the images on which people's last opinions
    differ, or of which one person says two things at one time; `changed` those of which another label stands now
    (sample, label before, label now; None: rejected), `outdated` those of which a newer opinion stands than the file's.
    """

    file: str
    name: str | None
    labels: int = 0
    rejections: int = 0
    unanswered: int = 0
    imported_before: bool = False
    images: int = 0
    repeated: int = 0
    outdated: tuple[str, ...] = ()
    disagreeing: tuple[str, ...] = ()
    changed: tuple[tuple[str, str | None, str | None], ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        if self.imported_before:
            return [f"{self.file} was imported before, as it is: nothing to do"]
        if self.name is None:
            said = [f"{self.file}: no label in it" + (" that is new" if self.repeated else "")]
        else:
            taken = f"{self.labels} labels and {self.rejections} rejections taken in, of {self.images} images"
            said = [f"{self.file}: {taken}; the next round learns from them"]
        if self.changed:
            listed = [f"{sample} {old or 'rejected'} -> {new or 'rejected'}" for sample, old, new in self.changed]
            said.append(f"{len(listed)} earlier labels change: {_some(listed)}")
        if self.disagreeing:
            said.append(f"{len(self.disagreeing)} images have opinions that disagree: {_some(self.disagreeing)}")
        if self.outdated:
            said.append(f"{len(self.outdated)} images keep a newer opinion than the file's: {_some(self.outdated)}")
        if self.repeated:
            said.append(f"{self.repeated} repeat what was taken in before: left out")
        if self.unanswered:
            said.append(f"{self.unanswered} without a label or an annotator: not answered yet")
        return said

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def take_labels(
    inbox: Path,
    pools: Pools,
    answers: pd.DataFrame,
    *,
    file: str,
    content: bytes,
    when: datetime,
    reject: bool = True,
) -> ImportReport:
    """Put a file's answers into the inbox: all of them or, if one is wrong, none.

    `answers` has the columns where (as "line 3"), sample_id, label, annotator and problem, null where there is none,
    and, if wanted, labeled_at: when the opinion was given; where that is not known, `when` stands for it. A line with
    an annotator and no label rejects the sample; one with neither is not answered yet, and skipped. What is known
    already is left out: the same opinion of the same time or, without a time, what its annotator said last of the
    sample.
    `file` and `content` are the file's name and bytes: the very same bytes are taken in once. The labels are on disk,
    durable, when this returns.

    Raises UserError that lists the wrong lines: unknown samples (those waiting in the inbox are known), labels outside
    the classes, and what the reader found wrong; and, without `reject`, for a file that rejects most of the images that
    it names.
    """
    digest = hashlib.sha256(content).hexdigest()
    with _one_at_a_time(inbox):
        events_before, arrivals = read(inbox, pending(inbox))
        sources = pd.concat([events_before["source"], pools.label_events["source"]])
        if sources.str.endswith(f"#{digest[:16]}").any():
            return ImportReport(file, None, imported_before=True)
        known = pd.concat([pools.catalog["sample_id"], *(arrival.catalog["sample_id"] for arrival in arrivals)])
        _refuse_wrong_lines(answers, known, pools.classes, file)
        blank = answers["label"].isna() & answers["annotator"].isna()
        said = _events(answers[~blank], when, f"{file}#{digest[:16]}")
        past = stack([pools.label_events, events_before], EVENTS)
        past = past[among(past["sample_id"], said["sample_id"])].reset_index(drop=True)
        events = said[~_repeated(said, past)].reset_index(drop=True)
        if not reject:
            _refuse_many_rejections(events, answers["sample_id"].nunique(), file)
        report = ImportReport(
            file,
            None,
            labels=int(events["label"].notna().sum()),
            rejections=int(events["label"].isna().sum()),
            unanswered=int(blank.sum()),
            images=int(events["sample_id"].nunique()),
            repeated=len(said) - len(events),
            **_consequences(past, events),
        )
        if events.empty:
            return report
        name = f"labels/{_next_name(inbox, digest)}.parquet"
        make_folder(inbox / "labels")
        write_table(events, inbox / name, EVENTS)
    return replace(report, name=name)


def _events(taken: pd.DataFrame, when: datetime, source: str) -> pd.DataFrame:
    """Label events of the answers that say something."""
    times = [when] * len(taken)
    imported: list[datetime | None] = [None] * len(taken)
    for place, time in enumerate(taken.get("labeled_at", [])):
        if not pd.isna(time):
            times[place], imported[place] = time, when
    columns = {"labeled_at": times, "imported_at": imported}
    timed = {name: pd.Series(values, index=taken.index, dtype=object) for name, values in columns.items()}
    return typed(taken.assign(annotator=taken["annotator"].fillna(UNNAMED), source=source, **timed), EVENTS)


def _repeated(events: pd.DataFrame, past: pd.DataFrame) -> "pd.Series[bool]":
    """Which events are no new opinions: the same of the same time, or, of no time, what the annotator said last."""
    opinion = ["sample_id", "label", "annotator", "labeled_at"]
    timed = events["imported_at"].notna()
    both = pd.concat([past[past["imported_at"].notna()], events[timed]])
    again = both.duplicated(opinion).iloc[len(both) - int(timed.sum()) :]
    last = standing(past, by=["sample_id", "annotator"])[opinion[:3]]
    same = events[opinion[:3]].merge(last, how="left", indicator=True)["_merge"] == "both"
    repeated: pd.Series[bool] = same & ~timed & (events["annotator"] != UNNAMED)
    repeated[again.index[again]] = True
    return repeated


def _consequences(past: pd.DataFrame, events: pd.DataFrame) -> dict[str, Any]:
    """What the opinions `events` come to beside those of `past`: `changed`, `outdated` and `disagreeing`."""
    both = stack([past, events], EVENTS)
    stands = standing(both)
    fresh = among(stands["sample_id"], events["sample_id"])
    outdated = stands.loc[fresh & (stands.index < len(past)), "sample_id"]
    pairs = standing(past).merge(stands, on="sample_id", suffixes=("", "_now"))[["sample_id", "label", "label_now"]]
    pairs = pairs.astype(object).where(pairs.notna(), None)
    people = standing(both[both["annotator"] != FROM_SOURCE], by=["sample_id", "annotator"])
    opinions = people.groupby("sample_id", sort=False)["label"].nunique(dropna=False)
    at_once = events.groupby(["sample_id", "annotator", "labeled_at"], sort=False)["label"].nunique(dropna=False)
    torn = set(at_once.index[at_once > 1].get_level_values("sample_id"))
    return {
        "changed": tuple((sample, old, new) for sample, old, new in pairs.to_numpy() if old != new),
        "outdated": tuple(outdated),
        "disagreeing": tuple(name for name, count in opinions.items() if count > 1 or name in torn),
    }


def _refuse_many_rejections(events: pd.DataFrame, named: int, file: str) -> None:
    rejected = standing(events)["label"].isna().sum()
    if 2 * rejected > named:
        raise UserError(
            f"{file}: nothing was taken in: it rejects {rejected} of the {named} images that it names (an annotator "
            "and no label: the image is not asked for again); if that is meant, import it with --reject"
        )


def _refuse_wrong_lines(answers: pd.DataFrame, known: pd.Series, classes: tuple[str, ...], file: str) -> None:
    strange = ~among(answers["sample_id"], known)
    outside = answers["label"].notna() & ~among(answers["label"], classes)
    problems = answers["problem"].astype(object)
    problems = problems.where(problems.notna() | ~outside, "label " + answers["label"].map(repr) + " is no class")
    problems = problems.where(answers["problem"].notna() | ~strange, "unknown sample " + answers["sample_id"].map(repr))
    wrong = problems.notna()
    if not wrong.any():
        return
    count = int(wrong.sum())
    said = (answers["where"] + ": " + problems)[wrong].head(_LISTED)
    more = f"; and {count - _LISTED} more" if count > _LISTED else ""
    named = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    raise UserError(
        f"{file}: nothing was taken in, {count} of {len(answers)} lines are wrong: {'; '.join(said)}{more} "
        f"(classes: {named})"
    )


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
    near_holdout: tuple[tuple[str, str], ...] = ()  # left out: (path, id of the image of the holdout)
    near_pool: tuple[tuple[str, str], ...] = ()  # taken in: (path, id of another image of the pool)

    def lines(self) -> list[str]:
        """For people."""
        said = [
            f"{len(self.sample_ids)} new images from {self.path}" + ("; the next round takes them in" * bool(self.name))
        ]
        if self.duplicates:
            said.append(
                f"{len(self.duplicates)} left out, the pool or the inbox has their content: {_some(self.duplicates)}"
            )
        if self.near_holdout:
            listed = [f"{path} ({twin})" for path, twin in self.near_holdout]
            said.append(f"{len(listed)} left out, near copies of images in the holdout: {_some(listed)}")
            if len(listed) > len(self.sample_ids):
                said.append("if they are different pictures that look alike: pool.near_copies: 0, and ingest again")
        if self.near_pool:
            listed = [f"{path} ({twin})" for path, twin in self.near_pool]
            said.append(f"{len(listed)} taken in are near copies of images in the pool: {_some(listed)}")
        if self.unreadable:
            listed = [f"{path} ({reason})" for path, reason in self.unreadable]
            said.append(f"{len(listed)} unreadable, listed in quarantine/quarantine.csv: {_some(listed)}")
        return [*said, *self.notes]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def ingest(
    inbox: Path,
    pools: Pools,
    path: Path,
    params: Params,
    *,
    quarantine: Path,
    when: datetime,
    data: Path | None = None,
    fingerprints: Path | None = None,
) -> IngestReport:
    """Put the images of a file, a folder (with all below it) or an .npz file into the inbox, unlabelled.

    What counts as a file below a folder, `folders.walk` says. Their ids come from their paths relative to `path`; an id
    that is taken gets the first digits of the content behind it. Images that the pool or the inbox has, by content or
    by pixels, and near copies of images in the holdout are left out, unreadable files go to `quarantine`, and all are
    told. The pools' pictures are read from `data`, what is known of them kept in `fingerprints`; without, only contents
    are compared. Everything is on disk, durable, when this returns, and nothing is if it is killed.
    Raises UserError if `path` is missing, empty, or an .npz file that is not as it should be.
    """
    source = _arriving(path)
    with _one_at_a_time(inbox):
        _, arrivals = read(inbox, [name for name in pending(inbox) if name.startswith("images/")])
        there = [pools.catalog, *(arrival.catalog for arrival in arrivals)]
        known = _known(pools, arrivals, data, fingerprints, params)
        twins = _Twins(known, set(pools.holdout["sample_id"]), params.pool.near_copies)
        sieve = Sieve(
            params.images,
            ids={name for table in there for name in table["sample_id"]},
            contents={sha256 for table in there for sha256 in table["sha256"]},
            pixels=dict(zip(known["pixels"], known["sample_id"], strict=True)),
            refuse=twins.refuse,
        )
        catalog, folder = _store(inbox, source, sieve, params)
        sieve.quarantine(quarantine, when)
        duplicates = tuple(name_of(item) for item, _ in sieve.duplicates)
        images.note_left_out(quarantine, _reasons(sieve, twins), when)
        name = None
        if folder is not None:
            name = f"images/{_next_name(inbox, _content_digest(catalog))}"
            folder.replace(inbox / name)
            sync_folder(inbox / "images")
    return IngestReport(
        path=shown(path),
        name=name,
        sample_ids=tuple(catalog["sample_id"]),
        duplicates=duplicates,
        unreadable=tuple((place, reason) for place, reason, _ in sieve.unreadable),
        notes=source.notes if isinstance(source, Files) else (),
        near_holdout=tuple(twins.held),
        near_pool=tuple(twins.free),
    )


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
    """Near copies of what is known: those of the holdout are kept out, the others told."""

    def __init__(self, known: pd.DataFrame, holdout: set[str], distance: int) -> None:
        self._ids = known["sample_id"].tolist()
        self._holdout = holdout
        self._index = near_copies.Index(known["print"].tolist(), distance) if distance else None
        self.held: list[tuple[str, str]] = []
        self.free: list[tuple[str, str]] = []

    def refuse(self, item: Item, fingerprint: bytes) -> bool:
        near = [self._ids[place] for _, place in self._index.near([fingerprint])] if self._index else []
        held = [sample_id for sample_id in near if sample_id in self._holdout]
        if near:
            (self.held if held else self.free).append((name_of(item), (held or near)[0]))
        return bool(held)


def _reasons(sieve: Sieve, twins: _Twins) -> list[tuple[str, str]]:
    same = [(name_of(item), f"same picture as {twin}" if twin else "same content") for item, twin in sieve.duplicates]
    return same + [(path, f"near copy of {twin} in the holdout") for path, twin in twins.held]


def _arriving(path: Path) -> Source:
    if path.is_dir():
        return files_below(path)
    if not path.exists():
        raise UserError(f"{shown(path)}: no such file or folder")
    if path.suffix.lower() == ".npz":
        return Npz(path)
    name = PurePosixPath(path.name)
    return Files(path.parent, [name], linked=[name] if path.is_symlink() else [])


def _store(inbox: Path, source: Source, sieve: Sieve, params: Params) -> tuple[pd.DataFrame, Path | None]:
    """Catalog rows, and a folder under a temporary name with them and their shards; None where nothing is new."""
    make_folder(inbox / "images")
    for left in (inbox / "images").iterdir():  # of a process that was killed: the lock is ours
        if _HALF.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            shutil.rmtree(left)
    folder = inbox / "images" / f".{uuid.uuid4().hex}.tmp"
    facts: dict[str, tuple[str, int, int]] = {}
    try:
        placed = images.write_shards(
            _noting(sieve.sift(source), facts), folder / "images", settings=params.pool, name_prefix="new"
        )
        rows = [(sample_id, shard, row, *facts[sample_id]) for shard, row, sample_id in placed]
        catalog = typed(pd.DataFrame(rows, columns=INCOMING.names), INCOMING)
        if catalog.empty:
            shutil.rmtree(folder)
            return catalog, None
        prefix = f"ingest-{_content_digest(catalog)[:8]}"
        for shard in catalog["shard"].unique():
            path = folder / "images" / f"{shard}.parquet"
            path.rename(path.with_name(path.name.replace("new", prefix, 1)))
        catalog["shard"] = catalog["shard"].str.replace("new", prefix, n=1, regex=False)
        write_table(catalog, folder / "catalog.parquet", INCOMING)
        sync_folder(folder / "images")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return catalog, folder


def _noting(sifted: Iterator[Sifted], facts: dict[str, tuple[str, int, int]]) -> Iterator[tuple[str, bytes]]:
    for new in sifted:
        facts[new.item.sample_id] = (new.sha256, new.width, new.height)
        yield new.item.sample_id, new.item.data


def _content_digest(catalog: pd.DataFrame) -> str:
    hasher = hashlib.sha256()
    for sample_id, sha256 in zip(catalog["sample_id"], catalog["sha256"], strict=True):
        hasher.update(f"{sample_id}\0{sha256}\n".encode())
    return hasher.hexdigest()
