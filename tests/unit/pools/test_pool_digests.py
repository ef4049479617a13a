"""Digests of tables, against the bytes that their description promises, put together by hand."""

import hashlib
import struct

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.support.small_pools import small_pools
from vabal import pools

KEY = struct.pack("<q", 1) + b"k" + b"i\x00"


def digest_of(values: bytes, *, rows: int = 2) -> str:
    """Of a table with a key column k, whole numbers from 1, and a column v whose bytes are given."""
    keys = struct.pack(f"<{rows}q", *range(1, rows + 1))
    whole = b"vabal table 1\n" + struct.pack("<qq", rows, 2) + KEY + keys + struct.pack("<q", 1) + b"v" + values
    return hashlib.sha256(whole).hexdigest()


def table_of(values: pa.Array | pd.Series | list[object]) -> pd.DataFrame:
    """The table of `digest_of`; an Arrow array keeps its type and what lies below its nulls."""
    if isinstance(values, pa.Array):
        values = pd.Series(pd.arrays.ArrowExtensionArray(values))
    return pd.DataFrame({"k": np.arange(1, len(values) + 1), "v": values})


def test_a_null_string_is_one_without_length() -> None:
    expected = digest_of(b"s\x02" + struct.pack("<qq", 1, 0) + b"a")
    assert pools.table_digest(table_of(["a", None]), ["k"]) == expected
    assert pools.table_digest(table_of(pd.Series(["a", None], dtype=object)), ["k"]) == expected


def test_what_lies_below_a_null_is_not_part_of_the_digest() -> None:
    buffers = [pa.py_buffer(b"\x01"), pa.py_buffer(struct.pack("<qqq", 0, 1, 4)), pa.py_buffer(b"aold")]
    table = table_of(pa.Array.from_buffers(pa.large_string(), 2, buffers))
    assert pools.table_digest(table, ["k"]) == digest_of(b"s\x02" + struct.pack("<qq", 1, 0) + b"a")


def test_a_part_of_a_longer_table_has_the_digest_of_its_own_rows() -> None:
    table = table_of(["a", "bb", "ccc"])
    assert pools.table_digest(table.iloc[:2], ["k"]) == digest_of(b"s\x00" + struct.pack("<qq", 1, 2) + b"abb")


def test_a_null_truth_value_is_false_and_marked() -> None:
    table = table_of(pd.Series([True, None], dtype="boolean"))
    assert pools.table_digest(table, ["k"]) == digest_of(b"b\x02" + b"\x01\x00")


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)])
def test_a_null_list_has_no_elements_whatever_kind_of_list_it_is(kind: pa.DataType) -> None:
    expected = digest_of(b"l\x02" + struct.pack("<qq", 2, 0) + b"i\x00" + struct.pack("<qq", 7, 8))
    assert pools.table_digest(table_of(pa.array([[7, 8], None], kind)), ["k"]) == expected


def test_nan_is_null_also_where_arrow_tells_them_apart() -> None:
    expected = digest_of(b"f\x02" + struct.pack("<dd", 0.5, 0.0))
    assert pools.table_digest(table_of(pa.array([0.5, float("nan")])), ["k"]) == expected


def test_minus_zero_is_zero_among_other_numbers() -> None:
    assert pools.table_digest(table_of([0.5, -0.0]), ["k"]) == digest_of(b"f\x00" + struct.pack("<dd", 0.5, 0.0))


@pytest.mark.parametrize("most", [107.0, 2.0**53 - 1, 1 - 2.0**53])
def test_numbers_that_are_whole_and_below_two_to_the_53_are_whole_numbers(most: float) -> None:
    assert pools.table_digest(table_of([most, 3.0]), ["k"]) == digest_of(b"i\x00" + struct.pack("<qq", int(most), 3))


@pytest.mark.parametrize("more", [2.0**53, -(2.0**53), 2.0**60])
def test_from_two_to_the_53_on_they_are_floats(more: float) -> None:
    assert pools.table_digest(table_of([more, 3.0]), ["k"]) == digest_of(b"f\x00" + struct.pack("<dd", more, 3.0))


def test_values_of_another_kind_have_no_digest_and_the_kind_is_named() -> None:
    with pytest.raises(ValueError, match="date32"):
        pools.table_digest(table_of(pa.array([1, 2], pa.date32())), ["k"])


def test_one_row_is_identified_by_a_key_of_two_columns() -> None:
    expected = digest_of(b"i\x00" + struct.pack("<q", 9), rows=1)
    assert pools.table_digest(pd.DataFrame({"k": [1], "v": [9]}), ["k", "v"]) == expected


def test_rows_that_share_one_column_of_a_key_of_two_are_told_apart_by_the_other() -> None:
    expected = digest_of(b"i\x00" + struct.pack("<qq", 5, 5))
    for key in (["k", "v"], ["v", "k"]):
        assert pools.table_digest(pd.DataFrame({"k": [2, 1], "v": [5, 5]}), key) == expected


def test_the_digest_of_the_class_names_is_that_of_their_list_as_json_without_spaces() -> None:
    made = small_pools(classes=("kätzchen", "dog"))
    assert pools.digests(made)["classes"] == hashlib.sha256('["kätzchen","dog"]'.encode()).hexdigest()
