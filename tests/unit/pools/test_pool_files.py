"""What is written of pools, to the byte where others read it, and what is passed over."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_pools import small_pools
from vabal import pools
from vabal.errors import UserError
from vabal.pools import reading


def test_the_files_are_named_in_the_order_of_the_tables_the_class_names_last(tmp_path: Path) -> None:
    written = pools.save(small_pools(), tmp_path / "new" / "data")
    assert written == [*(f"{name}.parquet" for name in pools.SCHEMAS if name not in pools.SPARSE), "classes.json"]
    assert sorted(path.name for path in (tmp_path / "new" / "data").iterdir()) == sorted(written)


def test_class_names_are_written_one_a_line_in_utf_8(tmp_path: Path) -> None:
    made = small_pools(classes=("cat", "dog", "Käfer"))
    pools.save(made, tmp_path)
    assert (tmp_path / "classes.json").read_bytes() == '[\n "cat",\n "dog",\n "Käfer"\n]\n'.encode()
    assert pools.load(tmp_path).classes == made.classes


def test_tables_are_compressed_in_groups_of_some_ten_thousand_rows(tmp_path: Path) -> None:
    pools.write_table(pd.DataFrame({"n": np.zeros((1 << 17) + 1, np.int8)}), tmp_path / "t.parquet")
    written = pq.read_metadata(tmp_path / "t.parquet")
    assert [written.row_group(number).num_rows for number in range(written.num_row_groups)] == [1 << 16, 1 << 16, 1]
    assert written.row_group(0).column(0).compression == "ZSTD"


def test_large_tables_have_no_dictionary_of_what_is_different_in_every_row(tmp_path: Path) -> None:
    table = pd.DataFrame({"sample_id": [f"s{number:06d}" for number in range(1 << 17)], "status": "available"})
    pools.write_table(table, tmp_path / "t.parquet")
    columns = pq.read_metadata(tmp_path / "t.parquet").row_group(0)
    assert [columns.column(place).has_dictionary_page for place in (0, 1)] == [False, True]
    assert (tmp_path / "t.parquet").stat().st_size < len(table)


def test_label_events_in_another_order_are_written_again(tmp_path: Path) -> None:
    before = small_pools()
    turned = replace(before, label_events=before.label_events.iloc[::-1].reset_index(drop=True))
    assert pools.save(turned, tmp_path, before) == ["label_events.parquet"]


def test_missing_and_broken_class_names_are_told_with_what_is_wrong(tmp_path: Path) -> None:
    pools.save(small_pools(), tmp_path)
    (tmp_path / "classes.json").write_text('["cat", ')
    with pytest.raises(UserError, match=r"classes\.json: not valid JSON \(Expecting value: line 1 column \d+"):
        pools.load(tmp_path)
    (tmp_path / "classes.json").unlink()
    with pytest.raises(UserError, match=f"^{re.escape(str(tmp_path))}/classes.json is missing; .*vabal checkout"):
        pools.load(tmp_path)


def test_a_file_that_is_no_table_is_told_with_what_the_reader_says(tmp_path: Path) -> None:
    pools.save(small_pools(), tmp_path)
    (tmp_path / "labeled.parquet").write_text("sample_id,label\n" * 9)
    with pytest.raises(UserError, match=r"labeled\.parquet: not a readable parquet file \(.*[Pp]arquet.*\); "):
        pools.load(tmp_path)


# --- what was checked before ------------------------------------------------------------------------------------------


def test_what_pools_share_with_checked_ones_is_not_looked_at_again(tmp_path: Path) -> None:
    """Told by faults that only a second look at labels, events or membership would find."""
    made = small_pools()
    beside = made.catalog.tail(1).assign(sample_id="e", row=9)
    before = replace(
        made,
        labeled=made.labeled.assign(label="dog"),
        catalog=pools.stack([made.catalog, beside], pools.SCHEMAS["catalog"]),
    )
    with pytest.raises(UserError):
        pools.check(before)
    assert pools.save(pools.mark_requested(before, ["b"], 2), tmp_path, before) == ["unlabeled.parquet"]


def test_label_events_do_not_tell_who_is_a_member() -> None:
    made = small_pools()
    beside = made.catalog.tail(1).assign(sample_id="e", row=9)
    before = replace(made, catalog=pools.stack([made.catalog, beside], pools.SCHEMAS["catalog"]))
    again = pools.stack([made.label_events, made.label_events.tail(1)], pools.SCHEMAS["label_events"])
    pools.check(replace(before, label_events=again), before)


def test_rows_are_those_of_to_pylist_times_included() -> None:
    moments = [datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), None, datetime(2026, 3, 29, 1, 30, tzinfo=UTC)]
    columns = {
        "aware": pa.array(moments, pa.timestamp("us", "UTC")),
        "seconds": pa.array([0, None, 86_400], pa.timestamp("s", "UTC")),
        "naive": pa.array([None, 5, -5], pa.timestamp("ms")),
        "name": pa.array(["a", None, "c"]),
    }
    for table in (pa.table(columns), pa.table(columns)[:0]):
        assert reading.rows(table) == table.to_pylist()
