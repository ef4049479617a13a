"""What several people's opinions come to: an opinion of its own, which stands, and follows from theirs."""

from pathlib import Path

import pandas as pd
import pytest

from tests.support.label_files import imported, taken
from tests.support.small_pools import WHEN, small_pools
from vabal import pools
from vabal.labels.consensus import CONSENSUS, settle
from vabal.pools import EVENTS, Pools

Said = tuple[str, str | None, str]  # sample, label, annotator


def events(*said: Said, start: int = 0) -> pd.DataFrame:
    """Opinions, each a minute after the one before."""
    table = pd.DataFrame(list(said), columns=["sample_id", "label", "annotator"], dtype=object)
    when = pd.date_range(WHEN, periods=start + len(table), freq="min")[start:]
    return pools.typed(table.assign(labeled_at=when, source="x.csv"), EVENTS)


def settled(*said: Said, history: tuple[Said, ...] = ()) -> dict[str, str | None]:
    found = settle(events(*history), events(*said, start=len(history)), "majority")
    assert set(found["annotator"]) <= {CONSENSUS}
    labels = found["label"].astype(object)
    return dict(zip(found["sample_id"], labels.where(labels.notna(), None), strict=True))


def test_what_most_say_is_set_where_something_else_stands() -> None:
    assert settled(("b", "cat", "ann"), ("b", "cat", "bob"), ("b", "dog", "eve")) == {"b": "cat"}
    assert settled(("b", "cat", "ann"), ("b", "dog", "bob"), ("b", "cat", "eve")) == {}  # it stands
    assert settled(("b", None, "ann"), ("b", None, "bob"), ("b", "dog", "eve")) == {"b": None}


def test_of_a_tie_and_of_one_opinion_the_newest_stands() -> None:
    assert settled(("b", "cat", "ann"), ("b", "dog", "bob")) == {}
    assert settled(("b", "cat", "ann"), ("b", "dog", "ann")) == {}
    assert settled(("b", "dog", "ann"), history=(("b", "cat", "source"), ("b", "cat", "source"))) == {}


def test_a_persons_last_word_counts_once_and_what_was_settled_before_does_not_count() -> None:
    before: tuple[Said, ...] = (("b", "cat", "ann"), ("b", "cat", "bob"), ("b", "dog", "eve"), ("b", "cat", CONSENSUS))
    assert settled(("b", "dog", "ann"), history=before) == {}  # dog, dog, cat: and dog is the newest
    assert settled(("b", "dog", "eve"), history=before) == {"b": "cat"}


def test_images_that_nobody_spoke_of_again_are_left_as_they_are() -> None:
    before: tuple[Said, ...] = (("b", "cat", "ann"), ("b", "cat", "bob"), ("b", "dog", "eve"))
    assert settled(("c", "cat", "ann"), history=before) == {}
    assert settle(events(*before), events(("b", "dog", "eve")), "latest").empty


def test_what_was_settled_stands_until_somebody_says_something_again(tmp_path: Path) -> None:
    made = small_pools()

    def night(before: Pools, number: int, *said: Said) -> Pools:
        came = events(*said, start=10 * number)
        with_consensus = pools.stack([came, settle(before.label_events, came, "majority")], EVENTS)
        after, _ = pools.apply_labels(before, with_consensus, number)
        pools.check(after)
        return after

    first = night(made, 2, ("b", "cat", "ann"), ("b", "cat", "bob"), ("b", "dog", "eve"))
    assert first.labeled.set_index("sample_id")["label"]["b"] == "cat"
    second = night(first, 3, ("b", "dog", "dan"))
    assert second.labeled.set_index("sample_id")["label"]["b"] == "dog"  # a tie
    third = night(second, 4, ("b", "dog", "fay"))
    assert third.labeled.set_index("sample_id")["label"]["b"] == "dog"


@pytest.mark.parametrize("who", [CONSENSUS, "ann"])
def test_a_consensus_that_comes_back_with_an_export_is_nobodys_opinion(tmp_path: Path, who: str) -> None:
    report = imported(tmp_path / "inbox", f"sample_id,label,annotator\nb,cat,{who}\n")
    assert (report.labels, report.repeated) == ((0, 1) if who == CONSENSUS else (1, 0))
    assert taken(tmp_path / "inbox") == ([] if who == CONSENSUS else [("b", "cat", "ann")])
