"""Is the record intact? Every digest, the chain of manifests, the pools' arithmetic and every pick, recomputed.

Works from the files below `data/` (and `promotions.jsonl` beside it), against the git tags' messages where they are
given. Each check is a function of its own that yields what it finds; none stops at the first finding, and what cannot
be read is a finding too.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from vabal import pools, promotion_record, round_tables, rounds
from vabal.errors import UserError
from vabal.findings import UNREADABLE, Finding, Record, few, one_line, span
from vabal.manifests import check_intake, check_manifests, check_predictions
from vabal.outside import Outside, check_outside, later_rounds
from vabal.pools import IntakeReport, Pools
from vabal.progress import track
from vabal.promotion_record import GitWitness
from vabal.rounds import digest_of, round_folder, tag_name
from vabal.store import canonical_json, file_sha256

TABLE_FILES = {name: f"{name}.parquet" for name in pools.SCHEMAS} | {"classes": "classes.json"}
_COUNTS = ("catalog", "labeled", "unlabeled", "available", "requested", "rejected", "holdout", "picks")
_TAGGED = re.compile(r"^manifest sha256:([0-9a-f]{64})$", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """What was checked, and everything that was found."""

    findings: tuple[Finding, ...]
    rounds: int
    files: int
    images: int
    notes: tuple[str, ...] = ()  # what was not looked at, and why

    @property
    def ok(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify(
    data: Path,
    tags: Mapping[str, str] | None = None,
    *,
    images: bool = True,
    outside: Outside | None = None,
    promotions: GitWitness | None = None,
) -> Report:
    """Check the whole record in the folder `data`.

    `tags` maps the names of the rounds' git tags to their messages; None leaves the tags out. `images=False` leaves out
    the images' own bytes against the catalog (their shards' digests are checked in any case). `outside` is where git,
    DVC's cache, S3 and the anchor can be asked; `promotions` is what git knows of the promotion record
    (`champion.witness_of`).
    """
    records, findings = read_records(data)
    findings += check_chain(records)
    findings += check_manifests(records)
    later = later_rounds(records, outside.repository) if outside else []
    pending = outside.pending if outside else None
    findings += check_tags(records, tags, later, pending) if tags is not None else []
    findings += check_outside(data, records, outside) if outside else []
    findings += check_files(data, records)
    findings += check_strangers(data, records)
    current, unread = read_pools(data, records)
    findings += unread
    selections, unread = read_selections(data, records)
    findings += unread
    if current is not None and records:
        findings += _guarded(check_pools(data, current, records, selections), records[-1].round, "label_events.parquet")
    if images and current is not None:
        findings += check_images(data, current.catalog, records)
    findings += check_promotions(data, promotions)
    hashed = sum(len(record.files) for record in records) + (
        len(records[-1].shards) + len(records[-1].tables) if records else 0
    )
    seen = len(current.catalog) if images and current is not None else 0
    notes = [*_said_of(records, later, pending), *(outside.notes if outside else [])]
    return Report(tuple(dict.fromkeys(findings)), len(records), hashed, seen, tuple(notes))


def _said_of(records: Sequence[Record], later: Sequence[int], pending: int | None) -> list[str]:
    if pending is not None:
        return [f"round {pending} is half published: `vabal round` finishes it, `vabal abandon` drops it"]
    if not later:
        return []
    return [
        f"this is a checkout of round {records[-1].round}: {span(later[0], later[-1])} came later and stayed unseen "
        "(`vabal checkout newest` goes back)"
    ]


def _guarded(findings: Iterator[Finding], round_number: int, file: str) -> Iterator[Finding]:
    """The findings; and one more where damage that no reader notices (text that is none, say) stops the check."""
    try:
        yield from findings
    except UNREADABLE as error:
        yield Finding(round_number, file, f"damaged, the check ended early: {one_line(error)}")


# -- manifests, their chain and the tags --------------------------------------------------------------------------


def read_records(data: Path) -> tuple[list[Record], list[Finding]]:
    """Every manifest that can be read, oldest first."""
    records: list[Record] = []
    findings: list[Finding] = []
    names = sorted(path.name for path in (data / "rounds").glob("*") if path.is_dir() and path.name.isdecimal())
    if not names:
        findings.append(Finding(None, "rounds", "there is no round"))
    for name in names:
        file = f"rounds/{name}/manifest.json"
        try:
            record = _parse((data / file).read_bytes())
        except FileNotFoundError:
            findings.append(Finding(int(name), file, "missing"))
        except UNREADABLE as error:
            findings.append(Finding(int(name), file, f"not a readable manifest: {one_line(error)}"))
        else:
            if record.round != int(name):
                findings.append(Finding(int(name), file, f"it is the manifest of round {record.round}"))
            else:
                records.append(record)
    return records, findings


def _parse(content: bytes) -> Record:
    document = json.loads(content)
    if not isinstance(document, dict):
        raise ValueError("no mapping")  # noqa: TRY004
    names = [each.name for each in fields(Record) if each.name not in ("digest", "document", "canonical")]
    missing = [name for name in names if name not in document and name != "selection"]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    values: dict[str, Any] = {name: document.get(name) for name in names}
    if not isinstance(values["round"], int) or not isinstance(values["strategy"], str):
        raise ValueError("round or strategy has the wrong type")  # noqa: TRY004
    mappings = ("settings", "pools_after", "tables", "files", "shards", "counts")
    if not all(isinstance(values[name], dict) for name in mappings):
        raise ValueError(f"one of {', '.join(mappings)} is no mapping")
    return Record(digest=digest_of(content), document=document, canonical=content == canonical_json(document), **values)


def check_chain(records: Sequence[Record]) -> Iterator[Finding]:
    """Rounds without gaps, each naming the digest of the manifest before it."""
    previous: Record | None = None
    for record in records:
        expected = 0 if previous is None else previous.round + 1
        if record.round != expected:
            missing = span(expected, record.round - 1)
            yield Finding(expected, round_folder(Path(), expected).as_posix(), f"no readable record of {missing}")
        elif previous is None and record.parent is not None:
            yield Finding(0, f"{record.folder}/manifest.json", "round 0 names a manifest before it")
        elif previous is not None and record.parent != previous.digest:
            what = f"its sha256 is not the one that round {record.round} was built on"
            yield Finding(previous.round, f"{previous.folder}/manifest.json", what)
        if previous is not None and record.round == expected and record.pools_before != previous.pools_after:
            what = f"pools_before are not the pools that round {previous.round} left"
            yield Finding(record.round, f"{record.folder}/manifest.json", what)
        previous = record


def check_tags(
    records: Sequence[Record], tags: Mapping[str, str], later: Collection[int] = (), pending: int | None = None
) -> Iterator[Finding]:
    """Every round's tag stands, and names the digest of its manifest; no tag stands for a round that is gone.

    `later`: rounds that came after this checkout. `pending`: the round whose publication was cut short, maybe before
    its tag.
    """
    by_tag = {tag_name(record.round): record for record in records}
    for name, record in by_tag.items():
        file = f"{record.folder}/manifest.json"
        said = _TAGGED.search(tags.get(name, ""))
        if name not in tags and record.round == pending:
            continue
        if name not in tags:
            yield Finding(record.round, file, f"git has no tag {name} (`git fetch --tags` brings tags)")
        elif said is None:
            yield Finding(record.round, file, f"git tag {name} names no manifest digest")
        elif said.group(1) != record.digest:
            yield Finding(record.round, file, f"its sha256 is not the one in git tag {name}")
    for name in sorted(set(tags) - set(by_tag)):
        round_number = rounds.number_of(name)
        if round_number is not None and round_number not in later and round_number != pending:
            file = round_folder(Path(), round_number).as_posix()
            what = f"git tag {name} stands for a round that is not here"
            yield Finding(
                round_number, file, f"{what}: undone, or this branch is behind (`git pull`, `vabal checkout`)"
            )


# -- files --------------------------------------------------------------------------------------------------------


def check_files(data: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """The sha256 of every file of every round, of every shard, and of the tables as the newest round published them."""
    expected: list[tuple[int, str, str]] = []
    shards: dict[str, tuple[int, str]] = {}
    for record in records:
        expected += [(record.round, f"{record.folder}/{name}", sha256) for name, sha256 in record.files.items()]
        for shard, sha256 in record.shards.items():
            first, known = shards.setdefault(_shard_file(shard), (record.round, sha256))
            if known != sha256:
                what = f"names another sha256 for {_shard_file(shard)} than round {first}"
                yield Finding(record.round, f"{record.folder}/manifest.json", what)
    expected += [(first, file, sha256) for file, (first, sha256) in shards.items()]
    if records:
        expected += [(records[-1].round, name, sha256) for name, sha256 in records[-1].tables.items()]
    for round_number, file, sha256 in track(expected, "verify files", len(expected)):
        problem = _file_problem(data / file, sha256)
        if problem is not None:
            yield Finding(round_number, file, problem)


def _file_problem(path: Path, sha256: str) -> str | None:
    try:
        return None if file_sha256(path) == sha256 else "changed: its sha256 is not the recorded one"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _shard_file(shard: str) -> str:
    return f"images/{shard.removesuffix('.parquet')}.parquet"


def check_strangers(data: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Files that no manifest names. Half-written ones (`.*.tmp`) are passed over, as DVC does."""
    known = {*TABLE_FILES.values()} | {_shard_file(shard) for record in records for shard in record.shards}
    for record in records:
        known |= {f"{record.folder}/{name}" for name in (*record.files, "manifest.json")}
    for path in sorted(data.rglob("*")):
        name = path.relative_to(data).as_posix()
        if path.is_dir() or name in known or re.fullmatch(r"\..*\.tmp", path.name):
            continue
        number = re.match(r"rounds/(\d+)/", name)
        if number and path.name == "manifest.json":
            continue  # one that cannot be read is a finding already
        yield Finding(int(number.group(1)) if number else None, name, "belongs to no published round")


# -- pools --------------------------------------------------------------------------------------------------------


def read_pools(data: Path, records: Sequence[Record]) -> tuple[Pools | None, list[Finding]]:
    """The pools as they are now. Those that hold together nowhere are named; None if a table cannot be read."""
    head = records[-1].round if records else None
    findings: list[Finding] = []
    tables: dict[str, pd.DataFrame] = {}
    classes: tuple[str, ...] | None = None
    for name, schema in pools.SCHEMAS.items():
        try:
            tables[name] = pools.read_table(data / f"{name}.parquet", schema)
        except UNREADABLE as error:
            findings.append(Finding(head, f"{name}.parquet", one_line(error)))
    try:
        classes = tuple(json.loads((data / "classes.json").read_text(encoding="utf-8")))
    except UNREADABLE as error:
        findings.append(Finding(head, "classes.json", one_line(error)))
    if findings or classes is None:
        return None, findings
    current = Pools(**tables, classes=classes)
    try:
        pools.check(current)
    except UNREADABLE as error:
        file, _, what = str(error).partition(": ")
        findings.append(Finding(head, file, what))
    return current, findings


@dataclass(frozen=True)
class Replayed:
    """What the events and selections say a round's pools were: after intake, and after its picks were requested."""

    taken_in: Pools
    after: Pools
    problems: tuple[str, ...]  # of its picks
    images: int = 0  # that came in with the round
    came: IntakeReport = field(default_factory=IntakeReport)  # of its labels
    events: int = 0  # that it took in


def replay(current: Pools, records: Sequence[Record], selections: Mapping[int, pd.DataFrame]) -> Iterator[Replayed]:
    """The pools of every round, made again from nothing: images by their round, then label events, then picks.

    Starts with every image of round 0 unlabelled, those of the holdout aside.
    """
    state = _before_labels(current)
    added = current.catalog["added_round"]
    events = current.label_events
    for record in records:
        images = 0
        if record.round > 0:
            incoming = current.catalog.loc[added == record.round, pools.INCOMING.names]
            state, came = pools.apply_images(state, incoming, record.round)
            images = came.images
        told = events.loc[events["round"] == record.round, pools.EVENTS.names]
        taken_in, came = _apply(state, told, record.round)
        state, problems = _request(taken_in, selections.get(record.round), record.round)
        yield Replayed(taken_in, state, problems, images, came, len(told))


def _before_labels(current: Pools) -> Pools:
    catalog = current.catalog[current.catalog["added_round"] == 0].reset_index(drop=True)
    holdout = current.holdout.assign(label=None)
    rest = catalog.loc[~catalog["sample_id"].isin(holdout["sample_id"]), ["sample_id"]]
    unlabeled = rest.assign(status=pools.AVAILABLE, requested_round=None)
    return Pools(
        catalog=catalog,
        labeled=_no_rows("labeled"),
        unlabeled=pools.typed(pools.by_id(unlabeled), pools.SCHEMAS["unlabeled"]),
        holdout=pools.typed(holdout, pools.SCHEMAS["holdout"]),
        label_events=_no_rows("label_events"),
        classes=current.classes,
    )


def _no_rows(name: str) -> pd.DataFrame:
    schema = pools.SCHEMAS[name]
    return pools.typed(pd.DataFrame(columns=schema.names), schema)


def _apply(state: Pools, told: pd.DataFrame, round_number: int) -> tuple[Pools, IntakeReport]:
    try:
        return pools.apply_labels(state, told, round_number)
    except UserError:  # a label outside the classes: `pools.check` has named it
        return state, IntakeReport()


def _request(state: Pools, picks: pd.DataFrame | None, round_number: int) -> tuple[Pools, tuple[str, ...]]:
    if picks is None:
        return state, ()
    available = state.unlabeled.loc[state.unlabeled["status"] == pools.AVAILABLE, "sample_id"]
    good = pools.among(picks["sample_id"], available) & ~picks["sample_id"].duplicated()
    wrong = picks.loc[~good, "sample_id"]
    problems = (f"picks {few(wrong)}, which could not be picked then",) if len(wrong) else ()
    return pools.mark_requested(state, list(picks.loc[good, "sample_id"]), round_number), problems


def check_pools(
    data: Path, current: Pools, records: Sequence[Record], selections: Mapping[int, pd.DataFrame]
) -> Iterator[Finding]:
    """What the events and selections lead to, against every manifest's digests and counts, every round's candidates,
    picks and predictions, and the tables of now."""
    from vabal.derivation import check_round  # noqa: PLC0415 -- loads torch, which the other checks do without

    wrong: dict[str, list[int]] = {}
    digests: dict[str, str] = {}
    step = Replayed(current, current, ())
    steps = zip(records, replay(current, records, selections), strict=True)
    for record, step in track(steps, "verify pools", len(records)):
        digests = pools.digests(step.after)
        for name, digest in digests.items():
            if record.pools_after.get(name) != digest:
                wrong.setdefault(name, []).append(record.round)
        yield from _check_counts(record, step.after)
        file = f"{record.folder}/selection.parquet"
        yield from (Finding(record.round, file, problem) for problem in step.problems)
        yield from check_candidates(data, record, step.taken_in, selections.get(record.round))
        yield from check_intake(record, step.images, step.events, step.came)
        yield from check_predictions(data, record, step.taken_in)
        if record.round > 0:  # the first round's labels came with the source, or were asked for before any model was
            picks = selections.get(record.round)
            recorded = None if picks is None else [str(name) for name in picks["sample_id"]]
            yield from check_round(data, record, step.taken_in, recorded)
    order = current.label_events["round"]
    if not order.is_monotonic_increasing:
        yield Finding(records[-1].round, "label_events.parquet", "its events do not stand in the order of their rounds")
    for name, rounds_ in wrong.items():
        for first, last in _runs(rounds_):
            what = f"made again from images, label events and picks, it is not what {span(first, last)} recorded"
            yield Finding(first, TABLE_FILES[name], what)
    head = records[-1].round
    for name, digest in _digests_now(current).items():
        if digest != digests[name]:
            what = f"is not what the label events and picks lead to{_difference(name, current, step.after)}"
            yield Finding(head, TABLE_FILES[name], what)
        elif digest != records[-1].pools_after.get(name):
            yield Finding(head, TABLE_FILES[name], f"its digest is not the one that round {head} recorded")


def _digests_now(current: Pools) -> dict[str, str]:
    try:
        return pools.digests(current)
    except ValueError:  # the same sample twice, which `pools.check` has named
        return {}


def _check_counts(record: Record, after: Pools) -> Iterator[Finding]:
    counted = count(after) | {"picks": int((after.unlabeled["requested_round"] == record.round).sum())}
    wrong = [
        f"{name} {record.counts.get(name)}, counted {counted[name]}"
        for name in _COUNTS
        if record.counts.get(name) != counted[name]
    ]
    if wrong:
        yield Finding(record.round, f"{record.folder}/manifest.json", f"wrong counts: {'; '.join(wrong)}")


def count(state: Pools) -> dict[str, int]:
    """The sizes of the pools and of the unlabelled pool's parts."""
    status = state.unlabeled["status"].value_counts()
    parts = {name: int(status.get(name, 0)) for name in (pools.AVAILABLE, pools.REQUESTED, pools.REJECTED)}
    return {name: len(getattr(state, name)) for name in ("catalog", "labeled", "unlabeled", "holdout")} | parts


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


def _difference(name: str, current: Pools, expected: Pools) -> str:
    if name == "classes":
        return ""
    both = pd.concat([getattr(current, name), getattr(expected, name)])
    odd = both.loc[~both.duplicated(keep=False), "sample_id"]
    return f": {few(odd)}" if len(odd) else ""


# -- picks --------------------------------------------------------------------------------------------------------


def read_selections(data: Path, records: Sequence[Record]) -> tuple[dict[int, pd.DataFrame], list[Finding]]:
    """Each round's selection, by rank; those that cannot be read are findings."""
    selections: dict[int, pd.DataFrame] = {}
    findings: list[Finding] = []
    for record in records:
        if "selection.parquet" not in record.files:
            if record.round > 0:
                findings.append(Finding(record.round, f"{record.folder}/manifest.json", "names no selection.parquet"))
            continue
        file = f"{record.folder}/selection.parquet"
        try:
            table = round_tables.read_selection(data / file)
            selections[record.round] = table.sort_values("rank")
        except UNREADABLE as error:
            if (data / file).exists():  # else `check_files` names it
                findings.append(Finding(record.round, file, f"cannot be read: {one_line(error)}"))
        else:
            if not table["rank"].is_monotonic_increasing:
                findings.append(Finding(record.round, file, "its rows do not stand in the order of their ranks"))
    return selections, findings


def check_candidates(data: Path, record: Record, taken_in: Pools, selection: pd.DataFrame | None) -> Iterator[Finding]:
    """Every sample that could be picked is a candidate, and the selection says of its picks what the candidates say."""
    file = f"{record.folder}/candidates.parquet"
    if not (data / file).is_file():  # `check_files` names it
        return
    try:
        candidates = _read_frame(data / file, ["rank", *_SHARED])
    except UNREADABLE as error:
        yield Finding(record.round, file, f"cannot be read: {one_line(error)}")
        return
    unlabeled = taken_in.unlabeled
    available = unlabeled.loc[unlabeled["status"] == pools.AVAILABLE, "sample_id"]
    ids = candidates["sample_id"]
    odd = pd.concat([ids[~pools.among(ids, available)], available[~pools.among(available, ids)], ids[ids.duplicated()]])
    if len(odd):
        what = f"are not the samples that could be picked then: {few(odd)}"
        yield Finding(record.round, file, what)
    if selection is not None:
        yield from _check_selection(record, selection, candidates)


def _check_selection(record: Record, selection: pd.DataFrame, candidates: pd.DataFrame) -> Iterator[Finding]:
    file = f"{record.folder}/selection.parquet"
    missing = [name for name in _SHARED if name not in selection.columns]
    if missing:
        yield Finding(record.round, file, f"lacks the column {', '.join(missing)}")
        return
    ranks = selection["rank"].tolist()
    if ranks != list(range(1, len(ranks) + 1)):
        yield Finding(record.round, file, "ranks are not 1, 2, 3, ...")
    picked = candidates[candidates["rank"].notna()].sort_values("rank")
    one, other = (table[["rank", *_SHARED]].astype(object).reset_index(drop=True) for table in (selection, picked))
    if len(one) != len(other):
        yield Finding(record.round, file, f"holds {len(one)} picks, candidates.parquet ranks {len(other)}")
        return
    same = (one == other) | (one.isna() & other.isna())
    odd = one.loc[~same.all(axis=1), "sample_id"]
    if len(odd):
        yield Finding(record.round, file, f"differs from candidates.parquet in {few(odd)}")


_SHARED = ("sample_id", "score", "predicted_class", "vae_class", "log_likelihood", "prior", "precision", "strategy")


def _read_frame(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Some columns of a round's parquet file. Raises ValueError if one is missing, and what pyarrow raises."""
    file = pq.ParquetFile(path)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"it lacks the column {', '.join(missing)}")
    table = file.read(columns=list(columns))
    table.validate(full=True)  # text that is none would stop pandas later
    frame: pd.DataFrame = table.to_pandas()
    return frame


def check_promotions(data: Path, witness: GitWitness | None = None) -> Iterator[Finding]:
    """The chain of `promotions.jsonl`, which lies beside `data/`; against the manifests, and what git knows of it."""
    try:
        content = promotion_record.read_bytes(data.parent)
        entries = promotion_record.parse(content, data.parent / promotion_record.RECORD)
    except UNREADABLE as error:
        yield Finding(None, promotion_record.RECORD, one_line(error))
        return
    anchors, models = {}, {}
    for number in rounds.manifest_numbers(data):
        try:
            manifest = rounds.read_manifest(data, number).manifest
            anchors[number], models[number] = manifest.get("promotions"), (manifest.get("model") or {}).get("version")
        except (*UNREADABLE, AttributeError):  # `read_records` names it
            continue
    disagreements = [*promotion_record.manifest_disagreements(entries, anchors)]
    if witness is not None:
        deciding = promotion_record.deciding(data.parent / ".vabal")
        disagreements += promotion_record.git_disagreements(content, entries, witness, deciding=deciding)
    for entry in entries:
        if not rounds.round_folder(data, entry.round).is_dir():
            disagreements.append(f"entry {entry.sequence} is about round {entry.round}, which is not here")
        elif entry.round in models and models[entry.round] != entry.version:
            disagreements.append(f"entry {entry.sequence} is about version {entry.version}, which is not its round's")
    yield from (Finding(None, promotion_record.RECORD, what) for what in disagreements)


# -- images -------------------------------------------------------------------------------------------------------


def check_images(data: Path, catalog: pd.DataFrame, records: Sequence[Record]) -> Iterator[Finding]:
    """The sha256 of every image's bytes against the catalog, shard by shard, one row group in memory."""
    first = {_shard_file(shard): record.round for record in reversed(records) for shard in record.shards}
    groups = catalog.groupby("shard", sort=True)
    for shard, rows in track(groups, "verify images", groups.ngroups):
        file = _shard_file(str(shard))
        if file not in first:
            yield Finding(None, "catalog.parquet", f"names the shard {shard}, which no round published")
        if not (data / file).is_file():
            continue  # `check_files` names it
        try:
            wrong = _wrong_images(data / file, rows)
        except UNREADABLE as error:
            yield Finding(first.get(file), file, f"cannot be read: {one_line(error)}")
        else:
            if wrong:
                what = f"holds other images than the catalog says: {few(pd.Series(wrong))}"
                yield Finding(first.get(file), file, what)


def _wrong_images(path: Path, rows: pd.DataFrame) -> list[str]:
    """Samples whose row of the shard has another id or other bytes than the catalog says."""
    expected = {
        int(row): (sample_id, sha256)
        for row, sample_id, sha256 in zip(rows["row"], rows["sample_id"], rows["sha256"], strict=True)
    }
    place = 0
    right: set[int] = set()
    file = pq.ParquetFile(path, pre_buffer=False)
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["sample_id", "image"])
        for sample_id, image in zip(table.column("sample_id"), table.column("image"), strict=True):
            if place in expected:
                found = (sample_id.as_py(), hashlib.sha256(image.as_buffer()).hexdigest())
                if found == expected[place]:
                    right.add(place)
            place += 1
    return [sample_id for row, (sample_id, _) in sorted(expected.items()) if row not in right]
