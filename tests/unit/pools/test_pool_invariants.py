"""Faults in pools: which table is named, which samples, and what is none."""

from dataclasses import replace

import pandas as pd
import pytest

from tests.support.small_pools import catalog_of, small_pools
from vabal import pools
from vabal.errors import UserError


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("holdout", {"label": ["bird"]}, "label 'bird' of sample d is not in classes.json"),
        ("labeled", {"round": [-1]}, "round below 0: sample a"),
        ("labeled", {"annotator": [""]}, "no annotator: sample a"),
        ("label_events", {"label": ["bird", "dog"]}, "label 'bird' of sample a is not in classes.json"),
        ("label_events", {"round": [0, -1]}, "round below 0: sample d"),
        ("label_events", {"annotator": ["", "source"]}, "no annotator: sample a"),
        ("unlabeled", {"sample_id": ["b", "b"]}, "the same sample_id twice: sample b"),
        ("unlabeled", {"status": ["requested"] * 2}, "a requested_round that does not fit the status: sample b"),
        ("unlabeled", {"requested_round": [None, -3]}, "requested_round below 0: sample c"),
        ("catalog", {"sample_id": ["", "b", "c", "d"]}, "an empty sample_id: sample "),
        ("catalog", {"sample_id": ["a", "a", "c", "d"]}, "the same sample_id twice: sample a"),
        ("catalog", {"shard": ["", "p", "p", "p"]}, "no shard: sample a"),
        ("catalog", {"row": [0, -1, 2, 3]}, "a row or round below 0: sample b"),
        ("catalog", {"height": [8, 8, 0, 8]}, "a width or height below 1: sample c"),
        ("catalog", {"sha256": ["", "f" * 64, "e" * 64, "d" * 64]}, "a sha256 that is none: sample a"),
        ("catalog", {"row": [0, 1, 3, 3]}, "samples c, d share one row of one shard"),
    ],
)
def test_a_fault_is_told_with_its_table_and_samples_also_where_only_that_table_is_new(
    name: str, change: dict[str, list[object]], said: str
) -> None:
    made = small_pools()
    broken = small_pools(**{name: getattr(made, name).assign(**change)})
    for before, after in ((None, broken), (made, replace(made, **{name: getattr(broken, name)}))):
        with pytest.raises(UserError) as error:
            pools.check(after, before)
        assert str(error.value) == f"{name}.parquet: {said}"


def test_samples_whose_rows_collide_are_named_whatever_the_frames_index() -> None:
    made = small_pools()
    catalog = made.catalog.assign(row=[0, 0, 2, 3]).set_axis([9, 8, 7, 6])
    with pytest.raises(UserError, match=r"^catalog\.parquet: samples a, b share one row"):
        pools.check(replace(made, catalog=catalog))


def test_the_same_row_of_another_shard_is_another_place() -> None:
    catalog = catalog_of(list("abcd")).assign(shard=["p", "p", "q", "r"], row=[0, 1, 0, 0])
    pools.check(small_pools(catalog=catalog))


def test_pools_without_a_sample_keep_every_invariant() -> None:
    made = small_pools()
    pools.check(replace(made, **{name: getattr(made, name).iloc[:0] for name in pools.SCHEMAS}))


def test_the_first_round_is_number_0_also_for_requests() -> None:
    unlabeled = small_pools().unlabeled.assign(requested_round=pd.array([None, 0], "Int32"))
    pools.check(small_pools(unlabeled=unlabeled))


def test_of_the_samples_that_were_rejected_last_only_those_that_wait_elsewhere_are_named() -> None:
    """b waits as if nothing was said; c is rejected as the events say, d is of the holdout and lost its label."""
    made = small_pools()
    rejections = made.label_events.iloc[[0, 0, 0]].assign(sample_id=["b", "c", "d"], label=None)
    broken = small_pools(
        unlabeled=made.unlabeled.assign(status=["available", "rejected"], requested_round=None),
        holdout=made.holdout.assign(label=None),
        label_events=pools.stack([made.label_events, rejections], pools.SCHEMAS["label_events"]),
    )
    with pytest.raises(UserError) as error:
        pools.check(broken)
    assert str(error.value) == "label_events.parquet: sample b rejected last, but not in unlabeled.parquet"


def test_three_samples_are_named_without_counting_more() -> None:
    with pytest.raises(UserError, match=r"^catalog\.parquet: samples e, f, g in none of"):
        pools.check(small_pools(catalog=catalog_of(list("abcdefg"))))


def test_of_the_class_names_the_one_that_stands_there_twice_is_named() -> None:
    with pytest.raises(UserError, match="class 'dog' stands there twice"):
        pools.check(small_pools(classes=("cat", "dog", "dog")))
