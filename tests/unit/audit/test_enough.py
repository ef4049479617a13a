"""When there are enough labels: what the rules come to, and that a round asks for nothing where and only where one says
so."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.small_books import Books, forge
from vabal.audit import enough
from vabal.audit.forecast import Point, gain
from vabal.audit.settled import Settled, settled
from vabal.rounds import read_manifest
from vabal.settings import params

ALWAYS = {"stop_rule": "forecast", "stop_below": 1000.0}


def test_how_settled_a_model_is_is_counted() -> None:
    before, now = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2]), np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 0])
    found = settled(before, now, 4, np.array([[1.0, 0, 0, 0], [0.25] * 4]))
    assert found.changed == pytest.approx(0.2)
    chance = 0.3 * 0.3 + 0.2 * 0.3 + 0.5 * 0.4
    assert found.kappa == pytest.approx((0.8 - chance) / (1 - chance))
    assert found.delta_f == pytest.approx(1 - np.mean([2 * 2 / 6, 2 * 2 / 5, 2 * 4 / 9]))  # nobody says the fourth
    assert found.entropy == pytest.approx(0.5)
    assert settled(np.zeros(3, dtype=int), np.zeros(3, dtype=int), 2, None) == Settled(0.0, 1.0, 0.0, None)
    with pytest.raises(ValueError, match="in both rounds"):
        settled(before[:0], now[:0], 4, None)


def test_a_rule_speaks_from_three_rounds_on_and_averages_three_changes() -> None:
    points = [Point(labels, value, 0.01, 5, 400) for labels, value in ((50, 0.7), (100, 0.8), (150, 0.84))]
    assert enough.forecast_points(points[:2], 50) is None
    assert enough.forecast_points(points, 50) == pytest.approx(100 * gain(points, 50).high)
    changes = [Settled(0.1, kappa, 0.1, None) for kappa in (0.2, 0.9, 0.96, 0.99)]
    assert enough.disagreement(changes[:2]) is None
    assert enough.disagreement(changes) == pytest.approx(5.0)


def test_without_a_rule_nothing_is_looked_at(tmp_path: Path) -> None:
    assert enough.verdict(tmp_path, params.parse({})) is None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Three rounds that ask, and one that does not, though its labels came."""
    books = Books(tmp_path_factory.mktemp("made")).begin(total=60, holdout=12)
    labels: dict[str, str | None] = {}
    for _ in range(4):
        books.round("entropy", labels=labels, stop=ALWAYS)
        labels = dict.fromkeys(books.picked(books.number), "dog")
    return books


@pytest.fixture
def books(made: Books, tmp_path: Path) -> Books:
    """A copy of the same, to go on with."""
    return made.copied(tmp_path)


@pytest.fixture(scope="module")
def taken_back(made: Books, tmp_path_factory: pytest.TempPathFactory) -> Books:
    """The same and one more, which asks again without the rule."""
    books = made.copied(tmp_path_factory.mktemp("taken-back")).round("entropy")
    assert books.verify().ok
    return books


def test_a_round_asks_for_nothing_once_the_rounds_before_say_enough(books: Books) -> None:
    assert [len(books.picked(number)) for number in (1, 2, 3, 4)] == [6, 6, 6, 0]
    assert books.verify().ok, books.verify().findings
    settings = params.recorded(read_manifest(books.data, 4).settings)
    found = enough.verdict(books.data, settings, 4)
    assert found is not None
    assert str(found).startswith("enough labels: the next 6 would add at most ")
    assert str(found).endswith(" points (labelling.stop_below: 1000)")
    early = enough.verdict(books.data, settings, 3)
    assert early is not None
    assert (early.points, early.reached) == (None, False)
    assert str(early) == "too few rounds for the rule forecast to say anything"
    books.round("entropy")  # the rule is taken back
    assert len(books.picked(5)) == 6
    assert books.verify().ok, books.verify().findings


def test_a_round_that_asks_for_nothing_asks_nothing_again_and_the_next_that_asks_does(books: Books) -> None:
    first = list(books.pools.labeled["sample_id"])[:5]
    said = [(name, label, who) for name in first for label, who in (("cat", "ann"), ("dog", "bob"))]
    books.round("entropy", opinions=said, stop=ALWAYS, ask_again=0.5)
    assert (books.picked(5), len(books.asked)) == ([], 0)
    assert books.verify().ok, books.verify().findings
    books.round("entropy", ask_again=0.5)  # the rule is taken back: they are disputed still
    assert (len(books.picked(6)), set(books.asked["sample_id"]) <= set(first), len(books.asked)) == (3, True, 3)
    assert books.verify().ok, books.verify().findings
    settings = read_manifest(books.data, 6).settings
    settings["labelling"] |= ALWAYS
    forge(books, 6, settings=settings)
    assert any("asked about again does not follow" in finding.what for finding in books.verify().findings)


@pytest.mark.parametrize(("number", "stop"), [(4, {"stop_rule": "never"}), (3, {"stop_below": 1e-9}), (5, ALWAYS)])
def test_a_round_that_asks_or_does_not_against_its_rule_is_found(
    taken_back: Books, tmp_path: Path, number: int, stop: dict[str, Any]
) -> None:
    books = taken_back.copied(tmp_path)
    settings = read_manifest(books.data, number).settings
    settings["labelling"] |= stop
    forge(books, number, settings=settings)
    found = {finding.round for finding in books.verify().findings}
    assert found == (set() if number == 3 else {number})


def test_agreement_looks_at_what_could_be_picked_in_both_rounds(tmp_path: Path) -> None:
    books = Books(tmp_path).begin(total=60)
    stop = {"stop_rule": "agreement", "stop_below": 1000.0}
    for _ in range(5):
        books.round("entropy", stop=stop)
    assert [len(books.picked(number)) for number in range(1, 6)] == [6, 6, 6, 6, 0]
    assert books.verify().ok, books.verify().findings
    found = enough.verdict(books.data, params.recorded(read_manifest(books.data, 5).settings))
    assert found is not None
    assert found.reached  # a round without candidates changes nothing
    assert found.points == pytest.approx(100, abs=25)  # these books' classifiers guess
    assert "one model and the next differ by" in str(found)


def test_agreement_says_nothing_where_no_image_could_be_picked_twice(tmp_path: Path) -> None:
    """All that there was is picked each night, and others come: no model is asked about the same image again."""
    books = Books(tmp_path).begin(total=30)
    stop = {"stop_rule": "agreement", "stop_below": 1000.0}
    for _ in range(5):
        books.round("entropy", stop=stop, budget=100, new=8)
    assert all(books.picked(number) for number in range(1, 6))
    assert books.verify().ok, books.verify().findings
    found = enough.verdict(books.data, params.recorded(read_manifest(books.data, 5).settings))
    assert found is not None
    assert found.points is None
    assert not found.reached
