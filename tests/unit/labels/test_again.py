"""Which images people are asked about once more, and until when that request is open."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.support.small_pools import WHEN
from vabal import pools
from vabal.errors import UserError
from vabal.labels.again import HeldOut, choose, size
from vabal.pools import EVENTS, FROM_SOURCE, Pools

IDS = [f"s{number}" for number in range(10)]
CLASSES = ("cat", "dog", "emu")


def events(*said: tuple[str, str | None, str], start: int = 0) -> pd.DataFrame:
    """Opinions (sample, label, annotator), each a minute after the one before."""
    table = pd.DataFrame(list(said), columns=["sample_id", "label", "annotator"], dtype=object)
    when = pd.date_range(WHEN, periods=start + len(table), freq="min")[start:]
    return pools.typed(table.assign(labeled_at=when, source="x.csv"), EVENTS)


@pytest.fixture
def made() -> Pools:
    """Ten images; s9 is held out, s0 to s5 are labelled cat, dog, cat ... by the source."""
    columns = {"shard": "one", "row": range(10), "sha256": "0" * 64, "width": 4, "height": 4, "added_round": 0}
    tables = {
        "catalog": pd.DataFrame({"sample_id": IDS, **columns}),
        "unlabeled": pd.DataFrame({"sample_id": IDS[:9], "status": "available", "requested_round": None}),
        "holdout": pd.DataFrame({"sample_id": IDS[9:], "label": None}),
    }
    typed = {name: pools.typed(table, pools.SCHEMAS[name]) for name, table in tables.items()}
    empty = {name: pools.no_rows(name) for name in ("labeled", "label_events")}
    source = [(name, CLASSES[place % 2], FROM_SOURCE) for place, name in enumerate([*IDS[:6], "s9"])]
    return said(Pools(**typed, **empty, classes=CLASSES), 0, *source)


def said(before: Pools, number: int, *opinions: tuple[str, str | None, str]) -> Pools:
    """After a night's intake."""
    after, _ = pools.apply_labels(before, events(*opinions, start=20 * number), number)
    pools.check(after)
    return after


def asked(before: Pools, number: int, held_out: HeldOut | None = None, most: int = 5) -> tuple[Pools, list[str]]:
    """After a night's request; what it asks about again."""
    wanted = choose(before, held_out, most)
    after = pools.ask_again(before, wanted, number)
    pools.check(after, before)
    return after, list(wanted["sample_id"])


def believed(state: Pools, doubted: dict[str, float]) -> HeldOut:
    """A classifier that believes every label, but for the next class in these images."""
    posterior_L_C = np.zeros((len(state.labeled), 3), dtype=np.float32)
    for row, (sample_id, label) in enumerate(state.labeled[["sample_id", "label"]].to_numpy()):
        own = CLASSES.index(label)
        posterior_L_C[row, own] = doubted.get(sample_id, 0.9)
        posterior_L_C[row, 1 - own] = 1 - doubted.get(sample_id, 0.9)
    return HeldOut(list(state.labeled["sample_id"]), posterior_L_C)


def test_what_people_are_split_about_is_asked_again_and_the_most_divided_first(made: Pools) -> None:
    state = said(
        made,
        1,
        *[("s0", "cat", "ann"), ("s0", "dog", "bob")],
        *[("s1", "cat", "ann"), ("s1", "dog", "bob"), ("s1", "dog", "eve")],  # two agree
        *[("s2", "cat", "ann"), ("s2", "dog", "bob"), ("s2", None, "eve")],
        *[("s3", "dog", "ann"), ("s3", "dog", "bob")],
        *[("s4", "dog", "ann")],  # against the source, which is nobody
        *[("s9", "cat", "ann"), ("s9", "dog", "bob")],  # held out
    )
    assert asked(state, 1)[1] == ["s2", "s0"]
    assert asked(state, 1, most=1)[1] == ["s2"]
    assert asked(state, 1, most=0)[1] == asked(state, 1, most=-1)[1] == asked(made, 1)[1] == []


def test_a_request_is_open_until_somebody_says_something(made: Pools) -> None:
    state, again = asked(said(made, 1, ("s0", "cat", "ann"), ("s0", "dog", "bob")), 1)
    assert again == ["s0"]
    table = pools.open_requests(state)
    assert table.to_numpy().tolist() == [["s0", 1, "again"]]
    assert state.labeled.set_index("sample_id")["label"]["s0"] == "dog"  # what stood goes on to stand
    assert asked(state, 2)[1] == []  # while it waits
    answered = said(state, 2, ("s0", "cat", "eve"))
    assert pools.open_requests(answered).empty
    assert asked(answered, 2)[1] == []  # two of three say cat


def test_an_image_is_asked_about_twice_at_most_and_only_if_its_label_changed(made: Pools) -> None:
    state, _ = asked(said(made, 1, ("s0", "cat", "ann"), ("s0", "dog", "bob")), 1)
    same = said(state, 2, ("s0", "cat", "ann"), ("s0", "dog", "bob"))
    assert asked(same, 2)[1] == []  # both say what they said: another question tells nothing
    state, again = asked(said(state, 2, ("s0", "emu", "eve")), 2)
    assert again == ["s0"]
    assert asked(said(state, 3, ("s0", "cat", "eve"), ("s0", "dog", "ann"), ("s0", "emu", "bob")), 3)[1] == []


def test_labels_that_a_classifier_does_not_believe_come_behind_the_disputed(made: Pools) -> None:
    state = said(made, 1, ("s5", "cat", "ann"), ("s5", "dog", "bob"))
    doubted = believed(state, {"s1": 0.2, "s2": 0.1, "s5": 0.05})
    wanted = choose(state, doubted, 5)
    assert wanted.to_numpy().tolist() == [["s5", "disputed"], ["s2", "suspected"], ["s1", "suspected"]]
    state, _ = asked(state, 1, doubted)
    kept = said(state, 2, ("s2", "cat", "ann"), ("s1", "cat", "ann"), ("s5", "dog", "eve"))
    assert kept.asked_again["label"].tolist() == ["dog", "cat", "dog"]
    assert asked(kept, 2, believed(kept, {"s1": 0.05, "s2": 0.1}))[1] == ["s1"]  # s2 stood the question
    with pytest.raises(ValueError, match="not the posteriors of the labelled pool"):
        choose(state, HeldOut(["s1"], np.ones((1, 3), dtype=np.float32)), 5)


def test_a_renamed_class_is_no_change_of_a_label_and_a_merged_one_settles_a_dispute(made: Pools) -> None:
    state, _ = asked(said(made, 1, ("s0", "cat", "ann"), ("s0", "dog", "bob")), 1)
    change = pd.DataFrame({"action": ["rename"], "name": ["dog"], "into": ["wolf"]}, dtype=object)
    changes = pools.typed(change.assign(author="eve", reason=None, at=WHEN), pools.CLASS_CHANGES)
    renamed, _ = pools.apply_classes(state, changes, 2)
    renamed = said(renamed, 2, ("s0", "wolf", "bob"))
    assert asked(renamed, 2)[1] == []
    merged, _ = pools.apply_classes(
        said(made, 1, ("s0", "cat", "ann"), ("s0", "dog", "bob")), changes.assign(action="merge", into="cat"), 2
    )
    assert asked(merged, 2)[1] == []


@pytest.mark.parametrize(
    ("share", "budget", "beside", "expected"),
    [(0.0, 100, 0, 0), (0.1, 100, 10, 10), (0.01, 10, 0, 1), (1.0, 10, 2, 7), (0.5, 1, 0, 0)],
)
def test_the_share_is_of_the_budget_and_leaves_the_strategy_a_place(
    share: float, budget: int, beside: int, expected: int
) -> None:
    assert size(share, budget, beside) == expected


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"sample_id": ["s8"]}, "no label event: sample s8"),
        ({"sample_id": ["s9"]}, "in the holdout: sample s9"),
        ({"reason": ["bored"]}, "unknown reason: sample s0"),
        ({"label": ["cow"]}, "a label that is not in classes.json: sample s0"),
    ],
)
def test_a_row_that_no_round_can_have_written_is_refused(made: Pools, changes: dict[str, list[str]], what: str) -> None:
    state, _ = asked(said(made, 1, ("s0", "cat", "ann"), ("s0", "dog", "bob")), 1)
    with pytest.raises(UserError, match=what):
        pools.check(replace(state, asked_again=state.asked_again.assign(**changes)))
