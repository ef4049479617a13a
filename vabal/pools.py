"""The pools: which images there are, who labelled them, which wait. Five tables and the class names, as files.

Every image of the catalog is in exactly one of `labeled`, `unlabeled` and `holdout`. The functions that change pools
are pure: they return new ones. Labels are class names here and in all files; indices exist only inside the core.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vabal.errors import BRING_BACK, UserError
from vabal.folders import shown
from vabal.store import write_bytes

AVAILABLE: Final = "available"
REQUESTED: Final = "requested"
REJECTED: Final = "rejected"
FROM_SOURCE: Final = "source"  # the annotator of labels that came with the images


def _schema(*columns: tuple[str, pa.DataType, bool]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, nullable=nullable) for name, kind, nullable in columns])


_TIME = pa.timestamp("us", tz="UTC")

#: What an image brings before it has a round: the catalog without `added_round`.
INCOMING: Final = _schema(
    ("sample_id", pa.string(), False),
    ("shard", pa.string(), False),
    ("row", pa.int64(), False),
    ("sha256", pa.string(), False),
    ("width", pa.int32(), False),
    ("height", pa.int32(), False),
)
#: A label as it comes in: `label_events` without the round that takes it. `imported_at` is set where `labeled_at` is
#: the time that the file gave; where it is null, `labeled_at` is the time of the import.
EVENTS: Final = _schema(
    ("sample_id", pa.string(), False),
    ("label", pa.string(), True),
    ("annotator", pa.string(), False),
    ("labeled_at", _TIME, True),
    ("source", pa.string(), False),
    ("imported_at", _TIME, True),
)
#: Columns that a table has only where one of their values is set: those of earlier versions keep bytes and digests.
OPTIONAL: Final = ("imported_at",)
SCHEMAS: Final[dict[str, pa.Schema]] = {
    "catalog": INCOMING.append(pa.field("added_round", pa.int32(), nullable=False)),
    "labeled": _schema(
        ("sample_id", pa.string(), False),
        ("label", pa.string(), False),
        ("annotator", pa.string(), False),
        ("round", pa.int32(), False),
        ("labeled_at", _TIME, True),
    ),
    "unlabeled": _schema(
        ("sample_id", pa.string(), False),
        ("status", pa.string(), False),
        ("requested_round", pa.int32(), True),
    ),
    "holdout": _schema(("sample_id", pa.string(), False), ("label", pa.string(), True)),
    "label_events": _schema(
        ("sample_id", pa.string(), False),
        ("label", pa.string(), True),
        ("annotator", pa.string(), False),
        ("round", pa.int32(), False),
        ("labeled_at", _TIME, True),
        ("source", pa.string(), False),
        ("imported_at", _TIME, True),
    ),
}
_CLASSES = "classes.json"
_MEND = f"if data/ was changed by hand, {BRING_BACK}"


@dataclass(frozen=True, eq=False)
class Pools:
    """The five tables (columns and types: `SCHEMAS`) and the class names in index order.

    A null label of `holdout` has been asked for and not come yet; a null label of `label_events` is a rejection; a null
    `labeled_at` came with the source. Which event of a sample counts, `standing` says. `requested_round` is set exactly
    where the status is `requested`.
    """

    catalog: pd.DataFrame
    labeled: pd.DataFrame
    unlabeled: pd.DataFrame
    holdout: pd.DataFrame
    label_events: pd.DataFrame
    classes: tuple[str, ...]


@dataclass(frozen=True)
class IntakeReport:
    """What came of labels and images that were taken in. Counts of label events, then of images."""

    received: int = 0
    new: int = 0
    repeated: int = 0
    corrected: int = 0
    rejected: int = 0
    outdated: int = 0
    unknown: tuple[str, ...] = ()
    images: int = 0
    duplicates: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


# --- files ------------------------------------------------------------------------------------------------------------


def write_table(table: pd.DataFrame, path: Path, schema: pa.Schema | None = None) -> None:
    """Write a parquet file whose bytes follow from the values alone (for one version of pyarrow), whole or not at all.

    `schema` fixes columns and types; without it they are those of the frame. No pandas metadata, no clock, no index.
    Raises ValueError if the frame does not fit the schema.
    """
    arrow = _plain(_columns(table)) if schema is None else _without_unused(_to_arrow(table, schema))
    sink = pa.BufferOutputStream()
    pq.write_table(arrow, sink, compression="zstd", store_schema=False, row_group_size=1 << 20)
    write_bytes(path, memoryview(sink.getvalue()))


def read_table(path: Path, schema: pa.Schema, mend: str = _MEND) -> pd.DataFrame:
    """The frame that `write_table` wrote. Raises UserError if the file is missing, damaged, or holds other columns.

    `mend` ends the message: what to do about it.
    """
    try:
        table = pq.ParquetFile(path).read()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {mend}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({_one_line(error)}); {mend}") from None
    for name in OPTIONAL:
        if name in schema.names and name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        found = [f"column {name} is missing" for name in missing] + [f"unknown column {name}" for name in extra]
        raise UserError(f"{path}: {', '.join(found)}; {mend}")
    try:
        return _to_frame(table.select(schema.names).cast(_nullable(schema)), schema)
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: wrong types ({_one_line(error)}); {mend}") from None


def read(data: Path) -> Pools:
    """The pools in the folder `data` without the checks, for what was checked before or is only counted.

    Raises UserError for a file that is missing, damaged, or holds other columns.
    """
    classes = _read_classes(data / _CLASSES)
    tables = {name: read_table(data / f"{name}.parquet", schema) for name, schema in SCHEMAS.items()}
    return Pools(**tables, classes=classes)


def load(data: Path) -> Pools:
    """Read and check the pools in the folder `data`.

    Raises UserError naming the file, the samples and what is wrong with them.
    """
    pools = read(data)
    try:
        check(pools)
    except UserError as error:
        raise UserError(f"{data.name}/{error}; {_MEND}") from None
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
        write_table(table, folder / f"{name}.parquet", schema)
        written.append(f"{name}.parquet")
    if before is None or before.classes != pools.classes:
        text = json.dumps(list(pools.classes), ensure_ascii=False, indent=1)
        write_bytes(folder / _CLASSES, f"{text}\n".encode())
        written.append(_CLASSES)
    return written


def typed(table: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """The frame with exactly the schema's columns and types. Raises ValueError if its values do not fit."""
    return _to_frame(_to_arrow(table, schema), schema)


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {_MEND}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({_one_line(error)}); {_MEND}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: expected a list of class names; {_MEND}")
    return tuple(names)


def _same(name: str, table: pd.DataFrame, other: pd.DataFrame) -> bool:
    return table is other or (len(table) == len(other) and _digest(name, table) == _digest(name, other))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


# --- types ------------------------------------------------------------------------------------------------------------


def _to_arrow(table: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    unused = [name for name in OPTIONAL if name in schema.names and (name not in table or table[name].isna().all())]
    table = table.assign(**dict.fromkeys(unused)) if unused else table
    missing = [name for name in schema.names if name not in table.columns]
    if missing:
        raise ValueError(f"columns missing: {', '.join(missing)}")
    arrow = pa.table([_column(table[field.name], field.type) for field in schema], schema=_nullable(schema))
    for field in schema:
        if not field.nullable and arrow.column(field.name).null_count:
            raise ValueError(f"column {field.name} holds nulls")
    return arrow.cast(schema)


def _without_unused(table: pa.Table) -> pa.Table:
    names = table.column_names
    unused = [name for name in OPTIONAL if name in names and table.column(name).null_count == table.num_rows]
    return table.drop_columns(unused)


def _columns(table: pd.DataFrame) -> pa.Table:
    return pa.table({str(name): _column(table[name]) for name in table.columns})


def _column(values: pd.Series, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        naive = values.dt.tz_convert(None).dt.as_unit("us").to_numpy()
        array = pa.array(naive, from_pandas=True).cast(_TIME)
    else:
        # pyarrow makes no list column of pandas' empty one
        array = pa.array([] if kind is not None and values.empty else values, type=kind, from_pandas=True)
    return array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def _to_frame(table: pa.Table, schema: pa.Schema) -> pd.DataFrame:
    columns = {}
    for field in schema:
        column = table.column(field.name)
        if not field.nullable and column.null_count:
            raise ValueError(f"column {field.name} holds nulls")
        kinds: dict[pa.DataType, Any] = {pa.string(): pd.StringDtype("pyarrow", na_value=np.nan)}
        if field.nullable:
            kinds[pa.int32()] = pd.Int32Dtype()
        columns[field.name] = column.to_pandas(types_mapper=kinds.get)
    return pd.DataFrame(columns)


def _plain(table: pa.Table) -> pa.Table:
    """pandas' large strings as strings, no metadata: the file does not show which library made the frame."""
    fields = [
        pa.field(field.name, pa.string() if pa.types.is_large_string(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


# --- invariants -------------------------------------------------------------------------------------------------------


def check(pools: Pools, before: Pools | None = None) -> None:
    """Raise UserError, naming the table and the samples, unless every invariant holds.

    Classes: at least two, distinct, plain text. Catalog: ids unique and not empty, one row of one shard each, sha256 in
    hexadecimal, positive sizes. Catalog = labeled + unlabeled + holdout, disjoint. Labels among the classes. Statuses
    known; `requested_round` set exactly for the requested. The standing event of a sample agrees with the pool it is
    in, and every label that stands has an event.

    `before`: pools in which all of this holds. Where the new ones have the same tables (the very same objects), what
    depends on these alone is not looked at again.
    """
    changed = {name for name in SCHEMAS if before is None or getattr(pools, name) is not getattr(before, name)}
    if before is None or pools.classes != before.classes:
        _check_classes(pools.classes)
        changed = set(SCHEMAS)
    if "catalog" in changed:
        _check_catalog(pools.catalog)
    if before is None or not _same_ids(pools, before, changed):
        _check_membership(pools)
    for name in ("labeled", "holdout", "label_events"):
        if name not in changed:
            continue
        table = getattr(pools, name)
        wrong = table["label"].notna() & ~among(table["label"], pools.classes)
        if wrong.any():
            label = table.loc[wrong, "label"].iloc[0]
            raise UserError(f"{name}.parquet: label {label!r} of {_few(table[wrong])} is not in {_CLASSES}")
    for name in ("labeled", "label_events"):
        if name not in changed:
            continue
        table = getattr(pools, name)
        _refuse(table, (table["round"] < 0), name, "round below 0")
        _refuse(table, (table["annotator"] == ""), name, "no annotator")
    if "unlabeled" in changed:
        _check_requests(pools.unlabeled)
    if before is None or changed - {"unlabeled"} or not _same_rejected(pools, before):
        _check_events(pools)


def _same_ids(pools: Pools, before: Pools, changed: set[str]) -> bool:
    """Whether catalog and pools hold the same samples in the same rows as before."""
    return all(
        _equal(getattr(pools, name)["sample_id"], getattr(before, name)["sample_id"])
        for name in changed - {"label_events"}
    )


def _same_rejected(pools: Pools, before: Pools) -> bool:
    now, then = (table.loc[table["status"] == REJECTED, "sample_id"] for table in (pools.unlabeled, before.unlabeled))
    return _equal(now, then)


def _equal(column: pd.Series, other: pd.Series) -> bool:
    same: bool = _strings(column).equals(_strings(other))
    return same


def _check_classes(classes: tuple[str, ...]) -> None:
    if len(classes) < 2:
        raise UserError(f"{_CLASSES}: at least two classes are needed, found {len(classes)}")
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise UserError(f"{_CLASSES}: class {twice[0]!r} stands there twice")
    for name in classes:
        if not name or name != name.strip() or shown(name) != name:
            raise UserError(f"{_CLASSES}: {name!r} is no class name (empty, spaces around it, or control characters)")


def _check_catalog(catalog: pd.DataFrame) -> None:
    _refuse(catalog, catalog["sample_id"] == "", "catalog", "an empty sample_id")
    _refuse(catalog, catalog["shard"] == "", "catalog", "no shard")
    _refuse(catalog, (catalog["row"] < 0) | (catalog["added_round"] < 0), "catalog", "a row or round below 0")
    _refuse(catalog, (catalog["width"] < 1) | (catalog["height"] < 1), "catalog", "a width or height below 1")
    _refuse(catalog, catalog["sha256"].str.len() != 64, "catalog", "a sha256 that is none")
    shard = pd.factorize(catalog["shard"])[0].astype(np.int64)
    place = shard * (int(catalog["row"].max()) + 1 if len(catalog) else 1) + catalog["row"].to_numpy()
    ordered = np.sort(place)
    if (ordered[1:] == ordered[:-1]).any():
        twice = pd.Series(place, index=catalog.index).duplicated(keep=False)
        raise UserError(f"catalog.parquet: {_few(catalog[twice])} share one row of one shard")


def _check_membership(pools: Pools) -> None:
    position = _positions(pools)
    if not position.null_count:
        counts = np.bincount(position.to_numpy(), minlength=len(pools.catalog))
        if (counts == 1).all():
            return
    _explain_membership(pools.catalog, {name: getattr(pools, name) for name in _MEMBERS})


_MEMBERS: Final = ("labeled", "unlabeled", "holdout")


def _positions(pools: Pools) -> pa.ChunkedArray:
    """The catalog's row of each member of the three pools, one pool behind the other; null for a stranger."""
    chunks = [chunk for name in _MEMBERS for chunk in _strings(getattr(pools, name)["sample_id"]).chunks]
    members = pa.chunked_array(chunks, pa.large_string())
    return pc.index_in(members, value_set=_strings(pools.catalog["sample_id"]))


def places(pools: Pools) -> dict[str, np.ndarray]:
    """The catalog's row of each row of `labeled`, `unlabeled` and `holdout`. The pools must hold their invariants."""
    ends = np.cumsum([len(getattr(pools, name)) for name in _MEMBERS])
    return dict(zip(_MEMBERS, np.split(_positions(pools).to_numpy(), ends[:-1]), strict=True))


def _explain_membership(catalog: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> None:
    for name, table in [("catalog", catalog), *parts.items()]:
        _refuse(table, table["sample_id"].duplicated(), name, "the same sample_id twice")
    for name, table in parts.items():
        strangers = table[~among(table["sample_id"], catalog["sample_id"])]
        if len(strangers):
            raise UserError(f"{name}.parquet: {_few(strangers)} not in catalog.parquet")
    names = list(parts)
    for first, second in ((first, second) for i, first in enumerate(names) for second in names[i + 1 :]):
        shared = parts[first][among(parts[first]["sample_id"], parts[second]["sample_id"])]
        if len(shared):
            raise UserError(f"{first}.parquet: {_few(shared)} also in {second}.parquet")
    members = pd.concat([table["sample_id"] for table in parts.values()])
    lost = catalog[~among(catalog["sample_id"], members)]
    raise UserError(f"catalog.parquet: {_few(lost)} in none of {', '.join(f'{name}.parquet' for name in names)}")


def _check_requests(unlabeled: pd.DataFrame) -> None:
    unknown = ~among(unlabeled["status"], [AVAILABLE, REQUESTED, REJECTED])
    if unknown.any():
        status = unlabeled.loc[unknown, "status"].iloc[0]
        raise UserError(f"unlabeled.parquet: unknown status {status!r} of {_few(unlabeled[unknown])}")
    asked = unlabeled["requested_round"].notna()
    wrong = asked != (unlabeled["status"] == REQUESTED)
    _refuse(unlabeled, wrong, "unlabeled", "a requested_round that does not fit the status")
    _refuse(unlabeled, asked & (unlabeled["requested_round"].fillna(0) < 0), "unlabeled", "requested_round below 0")


def _check_events(pools: Pools) -> None:
    events = pools.label_events
    strangers = events[~among(events["sample_id"], pools.catalog["sample_id"])]
    if len(strangers):
        raise UserError(f"label_events.parquet: {_few(strangers)} not in catalog.parquet")
    last = standing(events).set_index("sample_id")["label"]
    told = last.dropna()
    labels = _standing_labels(pools)
    expected = told.reindex(labels.index)
    wrong = labels[(expected != labels).fillna(True).to_numpy(dtype=bool)]
    if len(wrong):
        raise UserError(f"labeled.parquet, holdout.parquet: {_few_ids(wrong.index)} with a label that no event gave")
    if len(told) != len(labels):
        lost = told.index[~told.index.isin(labels.index)]
        raise UserError(f"label_events.parquet: {_few_ids(lost)} labelled last, but without a label in the pools")
    refused = last.index[last.isna()]
    rejected = pools.unlabeled.loc[pools.unlabeled["status"] == REJECTED, "sample_id"]
    invented = rejected[~among(rejected, refused)]
    if len(invented):
        raise UserError(f"unlabeled.parquet: {_few_ids(invented)} rejected, but no event says so")
    if len(refused) != len(rejected) + int(among(pools.holdout["sample_id"], refused).sum()):
        waiting = refused[~refused.isin(rejected) & ~refused.isin(pools.holdout["sample_id"])]
        raise UserError(f"label_events.parquet: {_few_ids(waiting)} rejected last, but not in unlabeled.parquet")


def _standing_labels(pools: Pools) -> pd.Series:
    """Labels that count now, by sample_id: the labelled pool's and the holdout's."""
    both = pd.concat([pools.labeled[["sample_id", "label"]], pools.holdout[["sample_id", "label"]]])
    return both.dropna().set_index("sample_id")["label"]


def _refuse(table: pd.DataFrame, wrong: pd.Series, name: str, what: str) -> None:
    if wrong.any():
        raise UserError(f"{name}.parquet: {what}: {_few(table[wrong])}")


def _few(rows: pd.DataFrame) -> str:
    return _few_ids(rows["sample_id"])


def _few_ids(ids: Iterable[str]) -> str:
    """The first three ids and how many more."""
    names = list(dict.fromkeys(ids))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"sample{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"


def among(column: pd.Series, values: Iterable[str]) -> pd.Series:
    """Which strings of the column are among the values. As `isin`, at Arrow's speed also for a million values."""
    wanted = _strings(values if isinstance(values, pd.Series) else pd.Series(list(values), dtype="str"))
    given = _strings(column)
    if len(wanted) > 4 * len(given):  # hashing the values would cost most: only those that occur are needed
        wanted = wanted.filter(pc.is_in(wanted, value_set=given))
    found = pc.is_in(given, value_set=wanted)
    return pd.Series(np.asarray(found.to_numpy(), dtype=bool), index=column.index)


def _strings(column: pd.Series) -> pa.ChunkedArray:
    array = pa.array(column, from_pandas=True)
    chunked = array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array])
    return chunked.cast(pa.large_string())


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
    arrow = _ordered(_columns(table), list(key))
    hasher = hashlib.sha256(b"vabal table 1\n" + _int64([arrow.num_rows, arrow.num_columns]))
    for name in sorted(arrow.column_names, key=lambda text: text.encode()):
        encoded = name.encode()
        hasher.update(_int64([len(encoded)]) + encoded)
        _hash_column(hasher, arrow.column(name))
    return hasher.hexdigest()


def digests(pools: Pools) -> dict[str, str]:
    """The canonical digest of every table, and of the class names under "classes".

    Rows are identified by `sample_id`; those of `label_events` by their position, since their order is their meaning.
    """
    values = {name: _digest(name, getattr(pools, name)) for name in SCHEMAS}
    text = json.dumps(list(pools.classes), ensure_ascii=False, separators=(",", ":"))
    return {**values, "classes": hashlib.sha256(text.encode()).hexdigest()}


def _digest(name: str, table: pd.DataFrame) -> str:
    if name == "label_events":
        table = table.drop(columns=[column for column in OPTIONAL if table[column].isna().all()])
        return table_digest(table.assign(position=np.arange(len(table), dtype=np.int64)), ["position"])
    return table_digest(table, ["sample_id"])


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


# --- changes ----------------------------------------------------------------------------------------------------------


def standing(events: pd.DataFrame, by: Sequence[str] = ("sample_id",)) -> pd.DataFrame:
    """Of all events (in the order of their arrival) those that count now, one a sample: the newest opinion on it.

    `by` with `annotator`: the newest of each person.

    An opinion is as old as its `labeled_at` says: where that came with the import, as the import, and never older than
    an import before it; where the file gave it (`imported_at` is set), as old as the file says, but not younger than
    its import. Of opinions of the same age the one that came last counts.
    """
    if "imported_at" not in events.columns or events["imported_at"].isna().all():
        return events.drop_duplicates(list(by), keep="last")
    ordered = events.iloc[np.argsort(_opinion_times(events), kind="stable")]
    return ordered.drop_duplicates(list(by), keep="last").sort_index()


def _opinion_times(events: pd.DataFrame) -> np.ndarray:
    """How young each event's opinion is, to be compared within a sample: microseconds, as `standing` says."""
    said, imported = (_micros(events[name]) for name in ("labeled_at", "imported_at"))
    told = events["imported_at"].notna().to_numpy(dtype=bool)
    arrived = pd.Series(np.where(told, imported, said)).groupby(events["sample_id"].to_numpy(dtype=object)).cummax()
    arrived_N = arrived.to_numpy(dtype=np.int64)
    return np.where(told, np.minimum(said, arrived_N), arrived_N)


def _micros(times: pd.Series) -> np.ndarray:
    """Microseconds since 1970, the smallest number for a null: what came with the source is older than all."""
    array = _column(times, _TIME).combine_chunks().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    filled: np.ndarray = pc.fill_null(array, np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return filled


def apply_labels(pools: Pools, events: pd.DataFrame, round_number: int) -> tuple[Pools, IntakeReport]:
    """Pools after labels came in (`events` in the order of arrival, columns of `EVENTS`), and what came of them.

    Which opinion on a sample counts, `standing` says: one that is older than what stands changes nothing (`outdated`).
    A null label rejects a sample: it is never asked for again, unless somebody labels it after all. The same label
    again changes nothing, but that a known time makes it the opinion that stands; another one corrects. All events
    enter the history, but those of samples that the catalog does not know: they are left out and reported. Samples of
    the holdout keep their pool.
    Raises UserError if a label is not among the classes.
    """
    incoming = typed(events, EVENTS)
    known = among(incoming["sample_id"], pools.catalog["sample_id"])
    unknown = tuple(dict.fromkeys(incoming.loc[~known, "sample_id"]))
    taken = incoming[known].reset_index(drop=True)
    codes = _codes(taken, pools.classes)
    previous, counts = _before_each(pools, taken, codes)
    same = codes == previous
    report = IntakeReport(
        received=len(incoming),
        new=int((counts & (codes >= 0) & (previous < 0)).sum()),
        repeated=int(same.sum()),
        corrected=int((counts & (codes >= 0) & (previous >= 0) & ~same).sum()),
        rejected=int((counts & (codes == _REJECTED_CODE) & ~same).sum()),
        outdated=int((~counts & ~same).sum()),
        unknown=unknown,
    )
    if taken.empty:
        return pools, report
    history = taken.assign(round=np.int32(round_number))
    timed = taken["imported_at"].notna().to_numpy(dtype=bool)
    deciding = history[counts & (~same | timed)].drop_duplicates("sample_id", keep="last")
    changed = _settle(pools, deciding)
    label_events = stack([pools.label_events, history], SCHEMAS["label_events"])
    return replace(changed, label_events=label_events), report


_REJECTED_CODE = -1
_UNTOLD_CODE = -2


def _codes(events: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Class index of every event, -1 for a rejection."""
    codes: np.ndarray = pd.Index(classes).get_indexer(pd.Index(events["label"].astype(object)))
    wrong = events["label"].notna().to_numpy() & (codes < 0)
    if wrong.any():
        label = events.loc[wrong, "label"].iloc[0]
        raise UserError(f"label {label!r} of {_few(events[wrong])} is not in {_CLASSES}")
    return codes


def _before_each(pools: Pools, taken: pd.DataFrame, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What stood of a sample before each event, and whether the event counts: is no older than that."""
    past = pools.label_events[among(pools.label_events["sample_id"], taken["sample_id"])]
    both = pd.concat([past[EVENTS.names], taken], ignore_index=True)
    sample = both["sample_id"].to_numpy(dtype=object)
    time = pd.Series(_opinion_times(both))
    newest = time.groupby(sample).cummax()
    counts = time == newest
    code = pd.Series(np.concatenate([_codes(past, pools.classes), codes]), dtype="float64").where(counts)
    before = code.groupby(sample).ffill().groupby(sample).shift().fillna(_UNTOLD_CODE)
    return before.to_numpy(dtype=np.int64)[len(past) :], counts.to_numpy(dtype=bool)[len(past) :]


def _settle(pools: Pools, deciding: pd.DataFrame) -> Pools:
    """Pools with the last word on each sample of `deciding` (one row a sample) put in force."""
    in_holdout = among(deciding["sample_id"], pools.holdout["sample_id"])
    holdout = pools.holdout
    if in_holdout.any():
        said = deciding[in_holdout].set_index("sample_id")["label"]
        touched = among(holdout["sample_id"], said.index)
        holdout = holdout.copy()
        holdout.loc[touched, "label"] = said.reindex(holdout.loc[touched, "sample_id"]).to_numpy()
    rest = deciding[~in_holdout]
    rejected = rest.loc[rest["label"].isna(), "sample_id"]
    labeled = pools.labeled[~among(pools.labeled["sample_id"], rest["sample_id"])]
    unlabeled = pools.unlabeled[~among(pools.unlabeled["sample_id"], rest["sample_id"])]
    refused = pd.DataFrame({"sample_id": rejected, "status": REJECTED, "requested_round": None})
    return replace(
        pools,
        holdout=holdout,
        labeled=by_id(stack([labeled, rest[rest["label"].notna()]], SCHEMAS["labeled"])),
        unlabeled=by_id(stack([unlabeled, refused], SCHEMAS["unlabeled"])),
    )


def apply_images(pools: Pools, new_catalog_rows: pd.DataFrame, round_number: int) -> tuple[Pools, IntakeReport]:
    """Pools with new images (columns of `INCOMING`) available, and what came of them.

    An image whose sample_id or content the catalog has already is left out and reported, so that the same rows may
    come twice.
    """
    incoming = typed(new_catalog_rows, INCOMING)
    known = among(incoming["sample_id"], pools.catalog["sample_id"]) | among(
        incoming["sha256"], pools.catalog["sha256"]
    )
    known |= incoming["sample_id"].duplicated() | incoming["sha256"].duplicated()
    report = IntakeReport(images=int((~known).sum()), duplicates=tuple(incoming.loc[known, "sample_id"]))
    if not report.images:
        return pools, report
    fresh = incoming[~known].assign(added_round=np.int32(round_number))
    waiting = pd.DataFrame({"sample_id": fresh["sample_id"], "status": AVAILABLE, "requested_round": None})
    catalog = stack([pools.catalog, fresh], SCHEMAS["catalog"])
    unlabeled = by_id(stack([pools.unlabeled, waiting], SCHEMAS["unlabeled"]))
    return replace(pools, catalog=catalog, unlabeled=unlabeled), report


def open_requests(pools: Pools) -> pd.DataFrame:
    """What people are asked to label: sample_id, requested_round and purpose ("label" or "holdout"), oldest first."""
    asked = pools.unlabeled.loc[pools.unlabeled["status"] == REQUESTED, ["sample_id", "requested_round"]]
    blank = pools.holdout.loc[pools.holdout["label"].isna(), ["sample_id"]]
    told = pools.label_events.loc[among(pools.label_events["sample_id"], blank["sample_id"]), "sample_id"]
    blank = blank[~among(blank["sample_id"], told)]  # what stands of it can only be a rejection
    parts = [asked.assign(purpose="label"), blank.assign(requested_round=0, purpose="holdout")]
    frame = typed(pd.concat(parts), _REQUESTS)
    return frame.sort_values(["requested_round", "purpose", "sample_id"], kind="stable").reset_index(drop=True)


_REQUESTS = _schema(
    ("sample_id", pa.string(), False), ("requested_round", pa.int32(), False), ("purpose", pa.string(), False)
)


def mark_requested(pools: Pools, sample_ids: Sequence[str], round_number: int) -> Pools:
    """Pools in which labels for these available samples have been asked for.

    Raises ValueError if one of them is not available.
    """
    wanted = pd.Series(list(sample_ids), dtype="str")
    chosen = among(pools.unlabeled["sample_id"], wanted)
    available = pools.unlabeled.loc[chosen & (pools.unlabeled["status"] == AVAILABLE), "sample_id"]
    if len(available) != len(wanted):
        raise ValueError(f"not available, or named twice: {_few_ids(_other_than(wanted, available))}")
    unlabeled = pools.unlabeled.copy()
    unlabeled.loc[chosen, "status"] = REQUESTED
    unlabeled.loc[chosen, "requested_round"] = round_number
    return replace(pools, unlabeled=unlabeled)


def _other_than(wanted: pd.Series, available: pd.Series) -> pd.Series:
    return wanted[~among(wanted, available) | wanted.duplicated()]


def by_id(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of their ids' UTF-8 bytes, which is how tables are kept: digests need no sorting then."""
    ids = _strings(table["sample_id"]).combine_chunks()
    if pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() is False:
        table = table.iloc[pc.sort_indices(ids).to_numpy()]
    return table.reset_index(drop=True)


def stack(parts: Sequence[pd.DataFrame], schema: pa.Schema) -> pd.DataFrame:
    """The rows of several frames, one after the other, with the schema's columns and types."""
    if not parts:
        return _to_frame(schema.empty_table(), schema)
    return _to_frame(pa.concat_tables([_to_arrow(part, schema) for part in parts]), schema)
