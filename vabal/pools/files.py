"""The pools' tables as files, typed."""

import json
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal.errors import UserError
from vabal.files import write_bytes
from vabal.pools.columns import columns_of, plain, to_arrow, to_frame, without_unused
from vabal.pools.digest import digest
from vabal.pools.invariants import check
from vabal.pools.reading import read_arrow, read_names
from vabal.pools.tables import CLASSES_FILE, MEND, SCHEMAS, SPARSE, TABLE_FILES, Pools, no_rows

# --- files ------------------------------------------------------------------------------------------------------------


_ROW_GROUP = 2**16  # what is unpacked for a sample's row
_DIFFERENT = ("sample_id", "sha256", "row")


def write_table(table: pd.DataFrame, path: Path, schema: pa.Schema | None = None) -> None:
    """Write a parquet file whose bytes follow from the values alone (for one version of pyarrow), whole or not at all.

    `schema` fixes columns and types; without it they are those of the frame. No pandas metadata, no clock, no index.
    Raises ValueError if the frame does not fit the schema.
    """
    arrow = plain(columns_of(table)) if schema is None else without_unused(to_arrow(table, schema))
    sink = pa.BufferOutputStream()
    # A dictionary of what differs in every row is larger than the rows. Small tables have the bytes they always had.
    few = len(arrow) <= _ROW_GROUP or [name for name in arrow.column_names if name not in _DIFFERENT]
    pq.write_table(arrow, sink, compression="zstd", store_schema=False, row_group_size=_ROW_GROUP, use_dictionary=few)
    write_bytes(path, memoryview(sink.getvalue()))


def read_table(path: Path, schema: pa.Schema, mend: str = MEND) -> pd.DataFrame:
    """The frame that `write_table` wrote. Raises UserError as `reading.read_arrow` does."""
    return to_frame(read_arrow(path, schema, mend), schema)


def read(data: Path) -> Pools:
    """The pools in the folder `data` without the checks, for what was checked before or is only counted.

    Raises UserError for a file that is missing, damaged, or holds other columns.
    """
    classes = read_names(data / CLASSES_FILE)
    return Pools(**{name: read_one(data, name) for name in SCHEMAS}, classes=classes)


def read_one(data: Path, name: str) -> pd.DataFrame:
    """One table of the pools in the folder `data`."""
    path = data / TABLE_FILES[name]
    if name in SPARSE and not path.exists():
        return no_rows(name)
    return read_table(path, SCHEMAS[name])


def table_files(data: Path) -> list[str]:
    """The files of the pools in the folder `data`: all of `TABLE_FILES`, but those that have no row."""
    return [file for name, file in TABLE_FILES.items() if name not in SPARSE or (data / file).exists()]


def load(data: Path) -> Pools:
    """Read and check the pools in the folder `data`.

    Raises UserError naming the file, the samples and what is wrong with them.
    """
    pools = read(data)
    try:
        check(pools)
    except UserError as error:
        raise UserError(f"{data.name}/{error}; {MEND}") from None
    return pools


def save(pools: Pools, folder: Path, before: Pools | None = None) -> list[str]:
    """Check the pools and write those files into `folder` whose values differ from `before`; returns their names.

    `before` are pools that were checked: what they share with the new ones is not checked again.
    """
    check(pools, before)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, schema in SCHEMAS.items():
        table = getattr(pools, name)
        if before is not None and _same(name, table, getattr(before, name)):
            continue
        if name in SPARSE and table.empty:
            continue
        write_table(table, folder / TABLE_FILES[name], schema)
        written.append(TABLE_FILES[name])
    if before is None or before.classes != pools.classes:
        text = json.dumps(list(pools.classes), ensure_ascii=False, indent=1)
        write_bytes(folder / CLASSES_FILE, f"{text}\n".encode())
        written.append(CLASSES_FILE)
    return written


def _same(name: str, table: pd.DataFrame, other: pd.DataFrame) -> bool:
    return table is other or (len(table) == len(other) and digest(name, table) == digest(name, other))
