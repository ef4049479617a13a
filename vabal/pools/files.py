"""The pools' tables as files, typed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal.errors import UserError
from vabal.files import write_bytes
from vabal.pools.classes import Classes, classes_at
from vabal.pools.columns import columns_of, nullable, plain, to_arrow, to_frame, without_unused
from vabal.pools.digest import digest
from vabal.pools.invariants import check
from vabal.pools.tables import CLASSES_FILE, MEND, OPTIONAL, SCHEMAS, SPARSE, TABLE_FILES, Pools, no_rows

# --- files ------------------------------------------------------------------------------------------------------------


def write_table(table: pd.DataFrame, path: Path, schema: pa.Schema | None = None) -> None:
    """Write a parquet file whose bytes follow from the values alone (for one version of pyarrow), whole or not at all.

    `schema` fixes columns and types; without it they are those of the frame. No pandas metadata, no clock, no index.
    Raises ValueError if the frame does not fit the schema.
    """
    arrow = plain(columns_of(table)) if schema is None else without_unused(to_arrow(table, schema))
    sink = pa.BufferOutputStream()
    pq.write_table(arrow, sink, compression="zstd", store_schema=False, row_group_size=1 << 20)
    write_bytes(path, memoryview(sink.getvalue()))


@contextmanager
def readable(path: Path, mend: str) -> Iterator[None]:
    """For reading the parquet file within: raises UserError, ending in what to do, if it is missing or damaged."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {mend}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({_one_line(error)}); {mend}") from None


def read_table(path: Path, schema: pa.Schema, mend: str = MEND) -> pd.DataFrame:
    """The frame that `write_table` wrote. Raises UserError if the file is missing, damaged, or holds other columns.

    `mend` ends the message: what to do about it.
    """
    with readable(path, mend):
        table = pq.ParquetFile(path).read()
    for name in OPTIONAL:
        if name in schema.names and name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        found = [f"column {name} is missing" for name in missing] + [f"unknown column {name}" for name in extra]
        raise UserError(f"{path}: {', '.join(found)}; {mend}")
    try:
        return to_frame(table.select(schema.names).cast(nullable(schema)), schema)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: wrong types ({_one_line(error)}); {mend}") from None


def read(data: Path) -> Pools:
    """The pools in the folder `data` without the checks, for what was checked before or is only counted.

    Raises UserError for a file that is missing, damaged, or holds other columns.
    """
    classes = _read_classes(data / CLASSES_FILE)
    return Pools(**{name: read_one(data, name) for name in SCHEMAS}, classes=classes)


def read_one(data: Path, name: str) -> pd.DataFrame:
    """One table of the pools in the folder `data`."""
    path = data / TABLE_FILES[name]
    if name in SPARSE and not path.exists():
        return no_rows(name)
    return read_table(path, SCHEMAS[name])


def read_classes(data: Path, round_number: int | None = None) -> Classes:
    """The classes that a round worked with, by the pools in the folder `data`; None: those of now.

    Raises UserError if their files are missing or damaged.
    """
    return classes_at(read_one(data, "class_events"), _read_classes(data / CLASSES_FILE), round_number)


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


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {MEND}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({_one_line(error)}); {MEND}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list of class names; {MEND}")
    return tuple(names)


def _same(name: str, table: pd.DataFrame, other: pd.DataFrame) -> bool:
    return table is other or (len(table) == len(other) and digest(name, table) == digest(name, other))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
