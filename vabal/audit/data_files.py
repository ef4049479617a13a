"""The files below `data/`: digests, strangers, images."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from vabal import pools
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.audit.shared import Each
from vabal.files import file_sha256
from vabal.images.shards import contents_of, open_shard
from vabal.progress import track

# -- files --------------------------------------------------------------------------------------------------------


def check_files(data: Path, records: Sequence[Record], since: int = 0, each: Each = map) -> Iterator[Finding]:
    """The sha256 of every file of every round, of every shard, and of the tables as the newest round published them.

    Of rounds before `since` the files are not read.
    """
    for record, shard, first in _contradictions(records):
        what = f"names another sha256 for {_shard_file(shard)} than round {first}"
        yield Finding(record.round, record.file, what)
    expected = expected_files(records, since)
    problems = each(partial(_file_problem, data), [(file, digest) for _, file, digest in expected])
    for (round_number, file, _), problem in track(zip(expected, problems, strict=True), "verify files", len(expected)):
        if problem is not None:
            yield Finding(round_number, file, problem)


def _contradictions(records: Sequence[Record]) -> Iterator[tuple[Record, str, int]]:
    first: dict[str, tuple[int, str]] = {}
    for record in records:
        for shard, digest in record.shards.items():
            number, known = first.setdefault(_shard_file(shard), (record.round, digest))
            if known != digest:
                yield record, shard, number


def expected_files(records: Sequence[Record], since: int = 0) -> list[tuple[int, str, str]]:
    """Round, name below `data/` and sha256 of what rounds from `since` on published, the tables being the newest's."""
    expected: list[tuple[int, str, str]] = []
    shards: dict[str, tuple[int, str]] = {}
    for record in records:
        expected += [(record.round, f"{record.folder}/{name}", digest) for name, digest in record.files.items()]
        for shard, digest in record.shards.items():
            shards.setdefault(_shard_file(shard), (record.round, digest))
    expected += [(first, file, digest) for file, (first, digest) in shards.items()]
    if records:
        expected += [(records[-1].round, name, digest) for name, digest in records[-1].tables.items()]
    return [item for item in expected if item[0] >= since]


def _file_problem(data: Path, expected: tuple[str, str]) -> str | None:
    file, recorded = expected
    try:
        return None if file_sha256(data / file) == recorded else "changed: its sha256 is not the recorded one"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _shard_file(shard: str) -> str:
    return f"images/{shard.removesuffix('.parquet')}.parquet"


def check_strangers(data: Path, records: Sequence[Record]) -> Iterator[Finding]:
    """Files that no manifest names. Half-written ones (`.*.tmp`) are passed over: they are versioned nowhere."""
    known = {file for name, file in pools.TABLE_FILES.items() if name not in pools.SPARSE}
    known |= {name for record in records for name in record.tables}
    known |= {_shard_file(shard) for record in records for shard in record.shards}
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


# -- images -------------------------------------------------------------------------------------------------------


def check_images(
    data: Path, catalog: pd.DataFrame, records: Sequence[Record], since: int = 0, each: Each = map
) -> Iterator[Finding]:
    """The sha256 of every image's bytes against the catalog, shard by shard, one row group in memory.

    Of images that stay where they are, what the shard says it was: their bytes are not fetched.

    Shards that came before round `since` are not read.
    """
    first = {_shard_file(shard): record.round for record in reversed(records) for shard in record.shards}
    groups = [(_shard_file(str(shard)), rows) for shard, rows in catalog.groupby("shard", sort=True)]
    groups = [(file, rows) for file, rows in groups if first.get(file, since) >= since]
    told = each(partial(_check_shard, data), groups)
    for (file, rows), what in track(zip(groups, told, strict=True), "verify images", len(groups)):
        if file not in first:
            shard = rows["shard"].iloc[0]
            yield Finding(None, "catalog.parquet", f"names the shard {shard}, which no round published")
        if what is not None:
            yield Finding(first.get(file), file, what)


def _check_shard(data: Path, expected: tuple[str, pd.DataFrame]) -> str | None:
    file, rows = expected
    if not (data / file).is_file():
        return None  # `check_files` names it
    try:
        wrong = _wrong_images(data / file, rows)
    except UNREADABLE as error:
        return f"cannot be read: {one_line(error)}"
    return f"holds other images than the catalog says: {few(pd.Series(wrong))}" if wrong else None


def _wrong_images(path: Path, rows: pd.DataFrame) -> list[str]:
    """Samples whose row of the shard has another id or other bytes than the catalog says."""
    expected = {
        int(row): (sample_id, sha256)
        for row, sample_id, sha256 in zip(rows["row"], rows["sample_id"], rows["sha256"], strict=True)
    }
    right: set[int] = set()
    for place, found in enumerate(contents_of(open_shard(path))):
        if expected.get(place) == found:
            right.add(place)
    return [sample_id for row, (sample_id, _) in sorted(expected.items()) if row not in right]
