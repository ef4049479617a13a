"""The pools' files read as Arrow has them: all that short commands need, for pandas takes half a second to load.

Who makes an array of Python's objects (`pa.array`, `pa.scalar`, `empty_table`), or a time of Arrow's one of Python's
(`to_pylist`), has pyarrow load pandas: it is not done.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vabal.errors import UserError
from vabal.pools.class_names import Classes, classes_after
from vabal.pools.tables import CLASSES_FILE, MEND, OPTIONAL, SCHEMAS, SPARSE, TABLE_FILES


@contextmanager
def readable(path: Path, mend: str) -> Iterator[None]:
    """For reading the parquet file within: raises UserError, ending in what to do, if it is missing or damaged."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {mend}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({one_line(error)}); {mend}") from None


def opened(path: Path, names: Sequence[str]) -> pq.ParquetFile:
    """A table whose columns `names`, as far as it has them, are read as dictionaries."""
    metadata = pq.read_metadata(path)
    there = [name for name in names if name in metadata.schema.names]
    return pq.ParquetFile(path, metadata=metadata, read_dictionary=there)


def read_arrow(path: Path, schema: pa.Schema, mend: str = MEND) -> pa.Table:
    """The table that `files.write_table` wrote, with the schema's types. Raises UserError if the file is missing,
    damaged, or holds other columns.

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
        typed = table.select(schema.names).cast(pa.schema([field.with_nullable(True) for field in schema]))
        for field in schema:
            if not field.nullable and typed.column(field.name).null_count:
                raise ValueError(f"column {field.name} holds nulls")
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: wrong types ({one_line(error)}); {mend}") from None
    return typed


def read_one_arrow(data: Path, name: str) -> pa.Table:
    """One table of the pools in the folder `data`."""
    path = data / TABLE_FILES[name]
    if name in SPARSE and not path.exists():
        return pa.Table.from_batches([], schema=SCHEMAS[name])
    return read_arrow(path, SCHEMAS[name])


def rows(table: pa.Table) -> list[dict[str, Any]]:
    """The table's rows as `to_pylist` has them; times, which are in UTC, to the microsecond."""
    kinds = {field.name: field.type for field in table.schema if pa.types.is_timestamp(field.type)}
    for name, kind in kinds.items():
        micros = table.column(name).cast(pa.timestamp("us", kind.tz)).cast(pa.int64())
        table = table.set_column(table.schema.get_field_index(name), name, micros)
    found: list[dict[str, Any]] = table.to_pylist()
    for name, kind in kinds.items():
        start = datetime(1970, 1, 1, tzinfo=None if kind.tz is None else UTC)
        for row in found:
            if row[name] is not None:
                row[name] = start + timedelta(microseconds=row[name])
    return found


def read_classes(data: Path, round_number: int | None = None) -> Classes:
    """The classes that a round worked with, by the pools in the folder `data`; None: those of now.

    Raises UserError if their files are missing or damaged.
    """
    events = rows(read_one_arrow(data, "class_events"))
    names = read_names(data / CLASSES_FILE)
    taken = [row for row in events if round_number is None or row["round"] <= round_number]
    return classes_after([(row["action"], row["name"], row["into"]) for row in taken], None if events else names)


def read_names(path: Path) -> tuple[str, ...]:
    """The class names of `classes.json`."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {MEND}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({one_line(error)}); {MEND}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list of class names; {MEND}")
    return tuple(names)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
