"""Groups of images in the catalog: only where there are some, and never in the way of pools that know none."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.support.small_pools import small_pools
from vabal import pools
from vabal.errors import UserError


def grouped(*groups: str | None) -> pools.Pools:
    known = small_pools()
    table = known.catalog.assign(group=pd.Series(groups, dtype=object))
    return replace(known, catalog=pools.typed(table, pools.SCHEMAS["catalog"]))


def test_a_catalog_without_groups_has_neither_the_column_nor_another_digest(tmp_path: Path) -> None:
    known = small_pools()
    assert pools.digests(known)["catalog"] == pools.table_digest(known.catalog.drop(columns="group"), ["sample_id"])
    pools.save(known, tmp_path)
    assert "group" not in pq.read_schema(tmp_path / "catalog.parquet").names
    assert pools.load(tmp_path).catalog["group"].isna().all()
    assert pools.groups_of(pools.load(tmp_path).catalog) is None


def test_groups_are_written_read_and_part_of_the_digest(tmp_path: Path) -> None:
    known = grouped("x", None, "x", "y")
    assert pools.digests(known)["catalog"] != pools.digests(small_pools())["catalog"]
    pools.save(known, tmp_path)
    again = pools.load(tmp_path).catalog
    assert again["group"].astype(object).where(again["group"].notna(), None).tolist() == ["x", None, "x", "y"]
    with pytest.raises(UserError, match="a group without a name: sample d"):
        pools.check(grouped("x", None, "x", ""))


def test_an_image_without_a_group_is_one_of_its_own_whose_near_copies_can_join_it() -> None:
    assert pools.groups_of(grouped("x", None, "x", "y").catalog).tolist() == ["x", "near b", "x", "y"]  # type: ignore[union-attr]
    assert pools.groups_of(grouped("near b", None, None, None).catalog)[:2].tolist() == ["near b"] * 2  # type: ignore[index]
    assert pools.groups_of(grouped("x", "y", "z", None).catalog) is None  # no two are of one


def test_near_copies_join_the_group_of_what_was_known() -> None:
    items = pd.DataFrame({"sample_id": list("abcdef"), "group": ["near a", "g", "g", None, None, None]}, dtype=object)
    merged = pools.merged(items, [(0, 3), (3, 4)], known=1)
    assert merged.where(merged.notna(), None).tolist() == ["near a", "g", "g", "near a", "near a", None]
    joined = pools.merged(items, [(0, 3), (1, 3)], known=2)
    assert joined.where(joined.notna(), None).tolist() == [*["near a"] * 4, None, None]
