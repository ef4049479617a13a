"""Classes over time: what a change does to lists, names and pools, and what every round's list was."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.small_pools import WHEN, events_of, small_pools
from vabal import pools
from vabal.errors import UserError
from vabal.pools import Classes, Pools
from vabal.pools.classes import merging

Change = tuple[str, str, str | None]


def changes_of(*changes: Change, at: Any = WHEN, author: str = "eve") -> pd.DataFrame:
    table = pd.DataFrame(list(changes), columns=["action", "name", "into"], dtype=object)
    return pools.typed(table.assign(author=author, reason=None, at=at), pools.CLASS_CHANGES)


def changed(before: Pools, round_number: int, *changes: Change) -> Pools:
    """Pools after the changes; each of them must have been taken."""
    after, said = pools.apply_classes(before, changes_of(*changes, author=f"of {round_number}"), round_number)
    pools.check(after, before)
    pools.check(after)
    assert not [line for line in said if "left out" in line]
    return after


def test_each_round_has_its_own_list_and_a_name_means_what_its_class_became() -> None:
    made = changed(small_pools(), 1, ("add", "emu", None))
    made = changed(made, 3, ("rename", "cat", "lion"), ("merge", "emu", "dog"))
    lists = [pools.classes_at(made.class_events, made.classes, number).names for number in range(4)]
    assert lists == [("cat", "dog"), ("cat", "dog", "emu"), ("cat", "dog", "emu"), ("lion", "dog")]
    assert dict(Classes.of(made).meaning) == {"cat": "lion", "lion": "lion", "dog": "dog", "emu": "dog"}
    assert Classes.of(made).earlier("dog") == ["emu"]


def test_pools_show_todays_name_and_events_what_was_said() -> None:
    made, _ = pools.apply_labels(changed(small_pools(), 1, ("add", "emu", None)), events_of(("b", "emu")), 1)
    made = changed(made, 2, ("rename", "cat", "lion"), ("merge", "dog", "emu"))
    assert dict(made.labeled[["sample_id", "label"]].to_numpy()) == {"a": "lion", "b": "emu"}
    assert list(made.holdout["label"]) == ["emu"]
    assert list(made.label_events["label"]) == ["cat", "dog", "emu"]


def test_a_label_under_an_earlier_name_counts_as_todays_and_repeats_it() -> None:
    made = changed(small_pools(), 1, ("rename", "cat", "lion"))
    after, came = pools.apply_labels(made, events_of(("a", "cat"), ("a", "lion"), ("b", "cat"), ("c", "dog")), 2)
    pools.check(after)
    assert (came.repeated, came.new, came.corrected) == (2, 2, 0)
    assert dict(after.labeled[["sample_id", "label"]].to_numpy()) == {"a": "lion", "b": "lion", "c": "dog"}
    assert list(after.label_events["label"])[-4:] == ["cat", "lion", "cat", "dog"]
    with pytest.raises(UserError, match=r"label 'puma' of sample b is not in classes.json: `vabal classes add`"):
        pools.apply_labels(made, events_of(("b", "puma")), 2)


def test_a_class_gets_a_name_back_that_it_had_and_no_other_class_does() -> None:
    made = changed(small_pools(), 1, ("rename", "cat", "lion"), ("rename", "lion", "cat"))
    assert made.classes == ("cat", "dog")
    with pytest.raises(UserError, match="'lion' is an earlier name of 'cat', and its labels count there"):
        Classes.of(made).after("add", "lion", None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("add", "cat", None), "there is a class 'cat' already"),
        (("add", "", None), "'' is no class name"),
        (("add", " puma", None), "' puma' is no class name"),
        (("add", "pu\nma", None), r"'pu\\\\nma' is no class name"),
        (("add", "\u202egod", None), "is no class name"),
        (("rename", "puma", "lion"), r"no class 'puma' \(classes: cat, dog\)"),
        (("rename", "cat", "dog"), "there is a class 'dog' already: `vabal classes merge` makes one of the two"),
        (("rename", "cat", "cat"), "the class is called 'cat' already"),
        (("rename", "cat", ""), "'' is no class name"),
        (("merge", "cat", "cat"), "class 'cat' cannot be merged with itself"),
        (("merge", "cat", "puma"), "no class 'puma'"),
        (("merge", "cat", "dog"), "cat and dog are the last two classes"),
        (("split", "cat", None), "'split' is no change of classes: add, rename, merge"),
    ],
)
def test_what_is_no_change_is_refused_in_one_line(change: Change, told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        Classes.of(small_pools()).after(*change)
    assert "\n" not in str(refused.value)


def test_a_merge_may_bring_a_new_name_and_either_of_the_two() -> None:
    made = changed(small_pools(), 1, ("add", "emu", None), ("add", "owl", None))
    for into, names in [(None, ("cat", "dog", "owl")), ("owl", ("cat", "dog", "owl")), ("emu", ("cat", "dog", "emu"))]:
        assert changed(made, 2, *merging("emu", "owl", into)).classes == names
    assert changed(made, 2, *merging("emu", "owl", "bird")).classes == ("cat", "dog", "bird")
    merge, rename = merging("emu", "owl", "dog")  # of three, by two merges
    with pytest.raises(UserError, match="there is a class 'dog' already"):
        Classes.of(made).after(*merge).after(*rename)


def test_a_change_is_taken_once_and_one_that_another_machine_forestalled_is_left_out() -> None:
    asked = changes_of(("rename", "cat", "lion"))
    made, said = pools.apply_classes(small_pools(), asked, 1)
    assert said == ("class cat is called lion from round 1 on",)
    again, said = pools.apply_classes(made, asked, 2)
    assert (again, said) == (made, ())
    late, said = pools.apply_classes(made, changes_of(("rename", "cat", "puma"), ("add", "emu", None)), 2)
    assert said[0] == "class cat is called puma: left out, no class 'cat' (it is called 'lion' now)"
    assert late.classes == ("lion", "dog", "emu")


def test_pools_without_a_change_have_neither_file_nor_digest_of_changes(tmp_path: Path) -> None:
    before, made = small_pools(), changed(small_pools(), 1, ("rename", "cat", "lion"))
    assert "class_events.parquet" not in pools.save(before, tmp_path / "before")
    assert "class_events" not in pools.digests(before)
    assert set(pools.save(made, tmp_path / "made", before)) == {
        *("labeled.parquet", "class_events.parquet", "classes.json")
    }
    pools.save(made, tmp_path / "made")
    assert pools.digests(pools.load(tmp_path / "made")) == pools.digests(made)
    assert pools.read_classes(tmp_path / "made", 0).names == pools.read_classes(tmp_path / "before").names


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (lambda made: {"classes": ("cat", "dog")}, "labeled.parquet: label 'lion'|not the list that the events"),
        (lambda made: {"classes": ("dog", "lion")}, "not the list that the events of class_events.parquet lead to"),
        (lambda made: {"class_events": made.class_events.iloc[:-1]}, "not the list that the events"),
        (lambda made: {"class_events": made.class_events.iloc[::-1]}, "do not stand in the order of their rounds"),
        (lambda made: {"class_events": made.class_events.iloc[:0]}, "label 'cat' of sample a is not in classes.json"),
    ],
)
def test_pools_whose_list_does_not_follow_from_its_events_are_refused(odd: Any, told: str) -> None:
    made = changed(small_pools(), 1, ("rename", "cat", "lion"))
    with pytest.raises(UserError, match=told):
        pools.check(Pools(**{**vars(made), **odd(made)}))
