"""One sample's rows of the tables below `data/`, without the rest of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vabal.errors import BRING_BACK
from vabal.pools.reading import opened, readable, rows


def rows_of(path: Path, sample_id: str) -> list[dict[str, Any]]:
    """A sample's rows of a table, in the file's order, a row group in memory at a time."""
    found_rows: list[dict[str, Any]] = []
    with readable(path, BRING_BACK):
        file = pq.ParquetFile(path)
        for group in _groups(file, sample_id):
            ids = file.read_row_group(group, columns=["sample_id"], use_threads=False).column("sample_id")
            found = pc.equal(ids, _text(sample_id))
            if pc.any(found).as_py():
                found_rows += rows(file.read_row_group(group, use_threads=False).filter(found))
    return found_rows


def row_of(
    path: Path,
    sample_id: str,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    names: Sequence[str] = (),
) -> dict[str, Any] | None:
    """These columns of the sample's first row of a table, and those of `optional` that it has; None without a row.

    Nothing behind the row is read, of its row group neither. `names` are columns of few names. Raises UserError if the
    file is missing or damaged, or lacks a column.
    """
    with readable(path, BRING_BACK):
        file = opened(path, names)
        _require(file, columns)
        there = [*columns, *(name for name in optional if name in file.schema_arrow.names)]
        for group in _groups(file, sample_id):
            place = _place(file, group, sample_id)
            if place is not None:
                reader = file.iter_batches(place + 1, row_groups=[group], columns=there, use_threads=False)
                return _row(reader, place)
    return None


def _require(file: pq.ParquetFile, columns: Sequence[str]) -> None:
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise pa.ArrowInvalid(f"column {', '.join(missing)} is missing")


def _groups(file: pq.ParquetFile, sample_id: str) -> list[int]:
    """The row groups that may hold the sample: not those whose ids, by their statistics, lie all before or all behind.

    Where rows stand in the order of their ids, that is one at most.
    """
    _require(file, ["sample_id"])
    column = file.schema_arrow.get_field_index("sample_id")
    metadata = file.metadata
    return [
        group
        for group in range(metadata.num_row_groups)
        if _may_hold(metadata.row_group(group).column(column).statistics, sample_id)
    ]


def _may_hold(statistics: Any, sample_id: str) -> bool:
    """False where the least and the largest id of a row group say that the sample is not there.

    Parquet orders text by its UTF-8 bytes, and statistics may be cut short: a shorter least value is less, and of a
    largest one the writer sees to it that it is not less.
    """
    if statistics is None or not statistics.has_min_max:
        return True
    least, largest, wanted = (str(value).encode() for value in (statistics.min, statistics.max, sample_id))
    return bool(least <= wanted <= largest)


def _place(file: pq.ParquetFile, group: int, sample_id: str) -> int | None:
    """In which row of the group the sample stands."""
    before, wanted = 0, _text(sample_id)
    for batch in file.iter_batches(_IDS_AT_ONCE, row_groups=[group], columns=["sample_id"], use_threads=False):
        found = pc.index(batch.column(0), wanted).as_py()
        if found >= 0:
            return int(before + found)
        before += batch.num_rows
    return None


_IDS_AT_ONCE = 2**13


def _text(value: str) -> pa.Scalar:
    """As `pa.scalar`, which loads pandas."""
    content = value.encode()
    ends = np.array([0, len(content)], dtype=np.int32)
    return pa.StringArray.from_buffers(1, pa.py_buffer(ends), pa.py_buffer(content))[0]


def _row(batches: Any, place: int) -> dict[str, Any]:
    """Row `place` of all batches together; of a column of few names they may end where its dictionary does."""
    before = 0
    for batch in batches:
        if place < before + batch.num_rows:
            one: pa.RecordBatch = batch.slice(place - before, 1)
            row: dict[str, Any] = one.to_pylist()[0]
            return row
        before += batch.num_rows
    raise pa.ArrowInvalid(f"row {place} is missing")
