"""What the control arm tells: shares with intervals that hold, and picks against a uniform draw."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.small_books import CLASSES, Books
from vabal.audit.control import Difference, Share, arms
from vabal.rounds import tables


def coverage(share: float, draws: int, pool: int, nights: int = 1, seed: int = 0) -> float:
    """How often the interval holds the mean share of the nights' pools, from which arms are drawn without return."""
    random, held, times = np.random.default_rng(seed), 0, 4000
    right = [round(pool * (share - 0.05 * night)) for night in range(nights)]
    truth = sum(right) / (nights * pool)
    for _ in range(times):
        found = sum(int(random.hypergeometric(count, pool - count, draws)) for count in right)
        told = Share.counted(found, draws * nights)
        assert told.low is not None
        assert told.high is not None
        held += told.low <= truth <= told.high
    return held / times


def test_intervals_hold_in_93_to_97_per_cent_over_shares_and_sizes() -> None:
    found = [coverage(share, draws, 5000) for share in (0.5, 0.7, 0.8, 0.9) for draws in (50, 100, 200)]
    found += [coverage(share, 20, 5000, nights=5) for share in (0.8, 0.9)]
    assert 0.93 <= np.mean(found) <= 0.97, found
    assert min(found) >= 0.92, found


def test_the_interval_of_a_difference_holds() -> None:
    random, held = np.random.default_rng(1), []
    for wrong_picks, wrong_drawn in ((0.4, 0.2), (0.3, 0.3), (0.2, 0.1)):
        for _ in range(2000):
            picks = Share.counted(int(random.binomial(270, wrong_picks)), 270)
            drawn = Share.counted(int(random.binomial(30, wrong_drawn)), 30)
            more = Difference.between(picks, drawn)
            assert more is not None
            held.append(more.low <= wrong_picks - wrong_drawn <= more.high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_arms_are_counted_by_the_labels_that_came(tmp_path: Path) -> None:
    books = Books(tmp_path).begin(total=60).round("vabal", control_share=0.5)
    table = tables.read_selection(books.data / "rounds/0001/selection.parquet")
    arm = table[table["probability"].notna()]
    right, wrong, rejected = arm["sample_id"]
    predicted = dict(zip(arm["sample_id"], arm["predicted_class"], strict=True))
    other = next(name for name in CLASSES if name != predicted[wrong])
    books.round("margin", labels={right: predicted[right], wrong: other, rejected: None}, control_share=0.5)
    first, second, together = arms(books.data)
    assert (first.drawn, first.answered, first.rejected) == (3, 2, 1)
    assert (first.accuracy.count, first.accuracy.of) == (1, 2)
    assert sum(share.count for share in first.classes.values()) == 2
    assert first.wrong_more is None  # no pick has a label yet
    assert (second.answered, second.accuracy.value) == (0, None)
    assert together.rounds == (1, 2)
    assert (together.drawn, together.answered) == (6, 2)
    assert dict(first.metrics())["control/accuracy"] == pytest.approx(0.5)
    assert arms(books.data, up_to=1) == [first]


def test_rounds_without_an_arm_tell_nothing(tmp_path: Path) -> None:
    assert arms(Books(tmp_path).begin().round("vabal").data) == []


def test_arms_go_by_todays_classes(tmp_path: Path) -> None:
    books = Books(tmp_path).begin(total=60).round("vabal", control_share=0.5)
    table = tables.read_selection(books.data / "rounds/0001/selection.parquet")
    arm = table[table["probability"].notna()]
    said = dict(zip(arm["sample_id"], arm["predicted_class"], strict=True))
    books.round("margin", labels=said, control_share=0.5)
    books.round("margin", changes=[("rename", "cat", "lion"), ("merge", "emu", "dog")], control_share=0.5)
    assert books.verify().ok, books.verify().findings
    first = arms(books.data)[0]
    assert set(first.classes) == {"lion", "dog"}
    assert sum(share.count for share in first.classes.values()) == first.accuracy.count == len(said)
