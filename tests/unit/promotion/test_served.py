"""Which version was champion on a day, since when, and why: read from the record alone."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.small_registry import NOW, SETTINGS, Place, even, make_place
from vabal.errors import UserError
from vabal.promotion import champion
from vabal.promotion.record import read_record
from vabal.promotion.served import Champions, champions_on

LATER = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Version 1, version 2 the day after, which is rolled back three days later."""
    place = make_place(tmp_path_factory.mktemp("served") / "workspace")
    for number, right in ((1, 0.7), (2, 0.9)):
        place.publish(number, even(right))
        champion.promote(place.office, place.data, SETTINGS, now=NOW + timedelta(days=number))
    champion.rollback(place.office, now=NOW + timedelta(days=5), reason="  misses cracks\non line 3 ")
    return place


def on(place: Place, day: str | None) -> Champions:
    return champions_on(read_record(place.root), day, now=LATER)


def test_the_reason_of_a_rollback_stands_in_the_record_as_one_line(place: Place) -> None:
    last = read_record(place.root)[-1]
    assert (last.action, last.why) == ("rollback", "misses cracks on line 3")


def test_the_present_champion_is_told_with_who_put_it_back_and_why_it_was_promoted(place: Place) -> None:
    told = on(place, None)
    [row] = told.to_json()["champions"]
    assert (row["version"], row["round"], row["since"], row["until"]) == ("1", 1, "2026-03-09T02:00:00+00:00", None)
    assert (row["began"]["why"], row["promoted"]["action"]) == ("misses cracks on line 3", "promote")
    assert row["promoted"]["decision"]["promoted"] is True
    assert told.lines()[0] == "version 1 (round 1): champion since 2026-03-09 02:00 UTC"
    assert told.lines()[1].endswith(": misses cracks on line 3")
    assert told.lines()[2].startswith("promoted on 2026-03-05 02:00 UTC by Ada")


@pytest.mark.parametrize(
    ("day", "versions"),
    [("2026-03-05", ["1"]), ("2026-03-06", ["1", "2"]), ("2026-03-07", ["2"]), ("2026-03-09", ["2", "1"])],
)
def test_a_day_has_every_champion_that_served_on_it(place: Place, day: str, versions: list[str]) -> None:
    assert [row["version"] for row in on(place, day).to_json()["champions"]] == versions


def test_before_the_first_promotion_nothing_was_champion(place: Place, tmp_path: Path) -> None:
    assert on(place, "2026-03-04").lines() == [
        "no version was champion on 2026-03-04: the first one was promoted on 2026-03-05 02:00 UTC"
    ]
    assert "no version was promoted yet" in champions_on((), None, now=LATER).lines()[0]


@pytest.mark.parametrize(("day", "said"), [("yesterday", "YEAR-MONTH-DAY"), ("2026-06-02", "is yet to come")])
def test_a_day_that_is_none_or_yet_to_come_is_refused(place: Place, day: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        on(place, day)


@pytest.mark.parametrize(("reason", "said"), [(" \n", "is empty"), ("x" * 501, "501 characters")])
def test_a_reason_that_is_none_or_too_long_is_refused_and_nothing_moves(place: Place, reason: str, said: str) -> None:
    before = place.state()
    with pytest.raises(UserError, match=said):
        champion.rollback(place.office, now=LATER, reason=reason)
    assert place.state() == before
