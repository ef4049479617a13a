"""Typed columns: between pandas and Arrow, and rows picked by them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.pools.tables import OPTIONAL, TIME


def typed(table: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """The frame with exactly the schema's columns and types. Raises ValueError if its values do not fit."""
    return to_frame(to_arrow(table, schema), schema)


# --- types ------------------------------------------------------------------------------------------------------------


def to_arrow(table: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    unused = [name for name in OPTIONAL if name in schema.names and (name not in table or table[name].isna().all())]
    missing = [name for name in schema.names if name not in table.columns and name not in unused]
    if missing:
        raise ValueError(f"columns missing: {', '.join(missing)}")
    columns = [
        pa.nulls(len(table), field.type) if field.name in unused else column(table[field.name], field.type)
        for field in schema
    ]
    arrow = pa.table(columns, schema=nullable(schema))
    for field in schema:
        if not field.nullable and arrow.column(field.name).null_count:
            raise ValueError(f"column {field.name} holds nulls")
    return arrow.cast(schema)


def without_unused(table: pa.Table) -> pa.Table:
    names = table.column_names
    unused = [name for name in OPTIONAL if name in names and table.column(name).null_count == table.num_rows]
    return table.drop_columns(unused)


def columns_of(table: pd.DataFrame) -> pa.Table:
    return pa.table({str(name): column(table[name]) for name in table.columns})


def column(values: pd.Series, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        moments: Any = values.array
        array = pa.array(np.asarray(moments.as_unit("us").tz_convert(None)), from_pandas=True).cast(TIME)
    else:
        # pyarrow makes no list column of pandas' empty one
        array = pa.array([] if kind is not None and values.empty else values, type=kind, from_pandas=True)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def to_frame(table: pa.Table, schema: pa.Schema) -> pd.DataFrame:
    """Of arrays: aligning as many Series by their index takes most of the time of a small table."""
    columns = {}
    for field in schema:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise ValueError(f"column {field.name} holds nulls")
        kind = _KINDS.get((field.type, field.nullable))
        columns[field.name] = column.to_numpy() if kind is None else kind.__from_arrow__(column)
    return pd.DataFrame(columns)


_TEXT: Any = pd.StringDtype("pyarrow", na_value=np.nan)
_MOMENT: Any = pd.DatetimeTZDtype("us", "UTC")
_KINDS: dict[tuple[pa.DataType, bool], Any] = {  # by type, and whether nulls may be there
    **{(pa.string(), nullable): _TEXT for nullable in (True, False)},
    **{(TIME, nullable): _MOMENT for nullable in (True, False)},
    (pa.int32(), True): pd.Int32Dtype(),
}


def plain(table: pa.Table) -> pa.Table:
    """pandas' large strings as strings, no metadata: the file does not show which library made the frame."""
    fields = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def among(column: pd.Series, values: Iterable[str]) -> pd.Series:
    """Which strings of the column are among the values. As `isin`, at Arrow's speed also for a million values."""
    wanted = strings(values if isinstance(values, pd.Series) else pd.Series(list(values), dtype="str"))
    given = strings(column)
    if len(wanted) > 4 * len(given):  # hashing the values would cost most: only those that occur are needed
        wanted = wanted.filter(pc.is_in(wanted, value_set=given))
    found = pc.is_in(given, value_set=wanted)
    return pd.Series(np.asarray(found.to_numpy(), dtype=bool), index=column.index)


def strings(column: pd.Series) -> pa.ChunkedArray:
    array = pa.array(column, from_pandas=True)
    chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    return chunked.cast(pa.large_string())


def stack(parts: Sequence[pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    """The rows of several frames, one after the other, with the schema's columns and types."""
    if not parts:
        return to_frame(schema.empty_table(), schema)
    return to_frame(pa.concat_tables([to_arrow(part, schema) for part in parts]), schema)
