"""Checking pools against ones that were checked before: what is shared is passed over, what changed never is."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.support.small_pools import catalog_of, small_pools
from vabal import pools
from vabal.errors import UserError


def changed(table: pd.DataFrame, row: int, column: str, value: str) -> pd.DataFrame:
    copy = table.copy()
    copy.loc[row, column] = value
    return copy


def test_marking_requests_passes() -> None:
    before = small_pools()
    pools.check(pools.mark_requested(before, ["b"], 2), before)


def test_a_sample_that_left_its_pool_is_found_although_the_catalog_is_the_same() -> None:
    before = small_pools()
    after = replace(before, unlabeled=before.unlabeled.iloc[:1].reset_index(drop=True))
    with pytest.raises(UserError, match=r"catalog.parquet: sample c in none of"):
        pools.check(after, before)


def test_an_image_that_entered_the_catalog_alone_is_found() -> None:
    before = small_pools()
    with pytest.raises(UserError, match="in none of"):
        pools.check(replace(before, catalog=catalog_of(["a", "b", "c", "d", "e"])), before)


def test_a_status_that_is_none_is_found_although_the_samples_are_the_same() -> None:
    before = small_pools()
    after = replace(before, unlabeled=changed(before.unlabeled, 0, "status", "lost"))
    with pytest.raises(UserError, match="unknown status 'lost'"):
        pools.check(after, before)


def test_a_rejection_without_an_event_is_found_although_only_statuses_changed() -> None:
    before = small_pools()
    after = replace(before, unlabeled=changed(before.unlabeled, 0, "status", pools.REJECTED))
    with pytest.raises(UserError, match="rejected, but no event says so"):
        pools.check(after, before)


def test_a_label_that_no_event_gave_is_found_although_the_samples_are_the_same() -> None:
    before = small_pools()
    after = replace(before, labeled=changed(before.labeled, 0, "label", "dog"))
    with pytest.raises(UserError, match="with a label that no event gave"):
        pools.check(after, before)


def test_a_label_that_the_new_classes_lack_is_found_although_the_tables_are_the_same() -> None:
    before = small_pools()
    with pytest.raises(UserError, match=r"is not in classes.json"):
        pools.check(replace(before, classes=("cat", "cow")), before)


def test_saving_checks_what_changed(tmp_path: Path) -> None:
    before = small_pools()
    after = replace(before, unlabeled=changed(before.unlabeled, 0, "status", "lost"))
    with pytest.raises(UserError, match="unknown status"):
        pools.save(after, tmp_path / "data", before)
    assert not (tmp_path / "data").exists()


def test_places_are_the_catalogs_rows_of_each_pool() -> None:
    made = small_pools()
    found = pools.places(made)
    for name, rows in found.items():
        assert list(made.catalog["sample_id"].iloc[rows]) == list(getattr(made, name)["sample_id"])
    assert sum(map(len, found.values())) == len(made.catalog)
