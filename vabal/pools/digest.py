"""Digests of tables by their values, whatever their files' bytes are."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.files import sha256
from vabal.pools.columns import columns_of, without_unused
from vabal.pools.tables import SCHEMAS, SPARSE, Pools

# --- digests ----------------------------------------------------------------------------------------------------------


def table_digest(table: pd.DataFrame, key: Sequence[str]) -> str:
    """SHA-256, in hexadecimal, of a table's values: the same for any row order, column order, file or pandas dtype.

    `key` names the columns whose values identify a row. The bytes that are hashed, all integers little-endian int64:

        "vabal table 1\\n", number of rows, number of columns; then per column, in the order of the names' UTF-8 bytes:
        length of the name, the name in UTF-8, and the column's values in the order of the rows sorted by `key`
        (strings by their UTF-8 bytes):
        one letter for the type, then where a value is null as bits (least significant first, padded to a byte), then
          i  whole numbers: int64 each           t  times: microseconds since 1970 UTC, int64 each
          f  other numbers: IEEE float64 each    b  truth values: one byte each
          s  strings: the length in bytes of each, then all bytes in UTF-8
          l  lists: the number of elements of each, then the elements as a column of their own
          n  a column without any value: nothing follows, not even the bits
        A null has the value 0 and the length 0. NaN counts as null, -0.0 as 0.0. Numbers that are all whole and below
        2^53 are whole numbers, whatever their dtype.

    Raises ValueError if the key is null somewhere or does not identify a row.
    """
    return _digest(columns_of(table), key)


def _digest(arrow: pa.Table, key: Sequence[str]) -> str:
    arrow = _ordered(arrow, list(key))
    hasher = hashlib.sha256(b"vabal table 1\n" + _int64([arrow.num_rows, arrow.num_columns]))
    for name in sorted(arrow.column_names, key=lambda text: text.encode()):
        encoded = name.encode()
        hasher.update(_int64([len(encoded)]) + encoded)
        _hash_column(hasher, arrow.column(name))
    return hasher.hexdigest()


def digests(pools: Pools, known: dict[str, tuple[pd.DataFrame, str]] | None = None) -> dict[str, str]:
    """The canonical digest of every table, and of the class names under "classes".

    Rows are identified by `sample_id`; those of events by their position, since their order is their meaning. Of a
    table of `SPARSE` without a row there is no digest. `known` remembers tables and digests from call to call, for who
    asks of one pools after the other: a table that is still the same object is not read again.
    """
    there = [name for name in SCHEMAS if name not in SPARSE or len(getattr(pools, name))]
    before = {} if known is None else known
    for name in there:
        table = getattr(pools, name)
        if name not in before or before[name][0] is not table:
            before[name] = table, digest(name, table)
    values = {name: before[name][1] for name in there}
    text = json.dumps(list(pools.classes), ensure_ascii=False, separators=(",", ":"))
    return {**values, "classes": sha256(text.encode())}


def digest(name: str, table: pd.DataFrame) -> str:
    arrow = without_unused(columns_of(table))
    if name in ("label_events", *SPARSE):
        arrow = arrow.append_column("position", pa.array(np.arange(len(table), dtype=np.int64)))
        return _digest(arrow, ["position"])
    return _digest(arrow, ["sample_id"])


def _ordered(table: pa.Table, key: list[str]) -> pa.Table:
    keys = [_large(table.column(name)).combine_chunks() for name in key]
    if any(column.null_count for column in keys):
        raise ValueError(f"the key {', '.join(key)} holds nulls")
    if len(keys) == 1 and pc.all(pc.less(keys[0][:-1], keys[0][1:])).as_py() is not False:
        return table
    columns = pa.table(dict(zip(key, keys, strict=True)))
    order = pc.sort_indices(columns, sort_keys=[(name, "ascending") for name in key])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for name in key:
        column = columns.column(name).take(order).combine_chunks()
        same &= np.asarray(pc.equal(column[:-1], column[1:]).to_numpy(zero_copy_only=False), dtype=bool)
    if same.any():
        raise ValueError(f"the key {', '.join(key)} is the same in several rows")
    return table.take(order)


def _large(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string()) if pa.types.is_string(column.type) else column


def _hash_column(hasher: Any, column: pa.ChunkedArray) -> None:
    array = _large(column).combine_chunks()
    kind = array.type
    null = np.asarray(pc.is_null(array, nan_is_null=True).to_numpy(zero_copy_only=False), dtype=bool)
    if null.all():
        hasher.update(b"n")
        return
    bits = np.packbits(null, bitorder="little").tobytes()
    if pa.types.is_large_string(kind):
        hasher.update(b"s" + bits)
        _hash_strings(hasher, pc.fill_null(array, ""))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        hasher.update(b"l" + bits)
        hasher.update(_int64(pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)))
        _hash_column(hasher, pa.chunked_array([pc.list_flatten(array)]))
    elif pa.types.is_timestamp(kind):
        micros = array.cast(pa.timestamp("us", tz=kind.tz)).cast(pa.int64())
        hasher.update(b"t" + bits + _int64(pc.fill_null(micros, 0).to_numpy()))
    elif pa.types.is_boolean(kind):
        hasher.update(b"b" + bits + pc.fill_null(array, False).cast(pa.uint8()).to_numpy().tobytes())
    elif pa.types.is_integer(kind):
        hasher.update(b"i" + bits + _int64(pc.fill_null(array.cast(pa.int64()), 0).to_numpy()))
    elif pa.types.is_floating(kind):
        _hash_floats(hasher, array, null, bits)
    else:
        raise ValueError(f"values of type {kind} have no digest")


def _hash_strings(hasher: Any, array: pa.Array) -> None:
    offsets = np.frombuffer(array.buffers()[1], dtype="<i8")[array.offset : array.offset + len(array) + 1]
    hasher.update(_int64(np.diff(offsets)))
    data = array.buffers()[2]
    if data is not None:
        hasher.update(memoryview(data)[offsets[0] : offsets[-1]])


def _hash_floats(hasher: Any, array: pa.Array, null: np.ndarray, bits: bytes) -> None:
    values = np.array(array.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype="<f8")
    values[null] = 0.0
    if (np.isfinite(values) & (np.abs(values) < 2.0**53)).all() and (values == np.floor(values)).all():
        hasher.update(b"i" + bits + _int64(values))
    else:
        hasher.update(b"f" + bits + (values + 0.0).tobytes())


def _int64(values: Any) -> bytes:
    return np.asarray(values).astype("<i8").tobytes()
