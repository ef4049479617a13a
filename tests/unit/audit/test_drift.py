"""Are a night's new images like those before: how often the test is wrong, what it sees, and what the audit checks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from tests.support.small_books import Books, forge
from vabal.audit.drift import PERMUTATIONS, drifts, two_samples
from vabal.rounds import drift, read_manifest, tables
from vabal.settings import params

PROBE = params.parse({"classifier": {"learner": "probe"}})
SCRATCH = params.parse({"classifier": {"learner": "scratch"}})


def catalog(rounds: Sequence[int], groups: Sequence[str | None] | None = None) -> pd.DataFrame:
    """An image a number: the round that it came in with."""
    names = [f"s{place:03d}" for place in range(len(rounds))]
    return pd.DataFrame({"sample_id": names, "added_round": list(rounds), "group": groups or [None] * len(rounds)})


def p_of(features_N_D: NDArray[Any], new: int, seed: int) -> float:
    """Of the first rows against the others."""
    return two_samples(drift.components(features_N_D), np.arange(len(features_N_D)) < new, seed)[1]


def test_the_distance_is_the_energy_coefficient_beyond_chance() -> None:
    values, new = np.array([[0.0], [2.0], [5.0], [6.0]]), np.array([True, True, False, False])

    def coefficient(one: list[float], other: list[float]) -> tuple[float, float]:
        pairs = ((one, other), (one, one), (other, other))
        apart = [float(np.mean([abs(a - b) for a in x for b in y])) for x, y in pairs]
        return 2 * apart[0] - apart[1] - apart[2], 2 * apart[0]

    energy, scale = coefficient([0.0, 2.0], [5.0, 6.0])
    # Six ways to take two of four: this one and its mirror image are the farthest.
    ways = [coefficient([0, 2], [5, 6]), coefficient([0, 5], [2, 6]), coefficient([0, 6], [2, 5])]
    distance, p_value = two_samples(values, new, 3)
    assert distance == pytest.approx((energy - np.mean([way[0] for way in ways])) / scale, abs=0.03)
    assert p_value == pytest.approx(1 / 3, abs=0.05)
    assert two_samples(values, new, 3) == (distance, p_value)
    assert two_samples(np.zeros((6, 2)), np.arange(6) < 3, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="both"):
        two_samples(values, np.ones(4, dtype=bool), 0)


def test_false_alarms_are_five_in_a_hundred_nights() -> None:
    random = np.random.default_rng(0)
    spread_D = random.gamma(1.0, size=30)
    # Heavy tails and unequal features, as networks have them; nights of 10 to 40 new images.
    alarms = [
        p_of(random.standard_t(3, size=(70, 30)) * spread_D, 10 + night % 31, night) <= 0.05 for night in range(300)
    ]
    assert np.mean(alarms[:100]) <= 0.05
    assert 0.02 <= np.mean(alarms) <= 0.08


def test_images_of_one_group_count_once_and_raise_no_alarm() -> None:
    random, alarms = np.random.default_rng(1), {True: 0, False: 0}
    groups = [f"g{place // 5}" for place in range(300)]
    for night in range(30):
        features_N_D = np.repeat(random.normal(size=(60, 12)), 5, axis=0) + 0.05 * random.normal(size=(300, 12))
        for grouped in alarms:
            table = catalog([1] * 75 + [0] * 225, groups if grouped else None)
            found = drift.compared(table, [], 1, PROBE, night)
            rows = [int(name[1:]) for name in found.sample_ids]
            alarms[grouped] += p_of(features_N_D[rows], len(found.new), night) <= 0.05
    assert alarms[True] <= 4
    assert alarms[False] > 10


@pytest.mark.parametrize("change", ["darker", "noise", "another class", "other shares"])
def test_a_night_of_other_images_is_found(change: str) -> None:
    digits = load_digits()
    pixels, labels, found = digits.data, digits.target, []
    for night in range(6):
        random = np.random.default_rng(night)
        known = np.flatnonzero(labels != 8) if change == "another class" else np.arange(len(labels))
        rows = random.permutation(known)[:300]
        new = pixels[rows[:60]].copy()
        if change == "darker":
            new *= 0.8
        elif change == "noise":
            new += random.normal(scale=3.0, size=new.shape)
        elif change == "another class":
            new[:15] = pixels[random.choice(np.flatnonzero(labels == 8), 15, replace=False)]
        else:
            new = pixels[random.permutation(np.flatnonzero(labels < 5))[:60]]
        found.append(p_of(np.concatenate([new, pixels[rows[60:]]]), 60, night) <= 0.05)
    assert np.mean(found) > 0.8


def test_what_is_compared_follows_from_ids_and_seed() -> None:
    table, holdout = catalog([0] * 40 + [1] * 20 + [2] * 15), [f"s{place:03d}" for place in range(12)]
    found = drift.compared(table, holdout, 2, PROBE, 7)
    assert set(found.new["added_round"]) == {2}
    assert sorted(found.earlier["sample_id"]) == [f"s{place:03d}" for place in range(12, 60)]
    again = drift.compared(table.sample(frac=1, random_state=0), holdout, 2, PROBE, 7)
    assert again.sample_ids == found.sample_ids != drift.compared(table, holdout, 2, PROBE, 8).sample_ids
    learned = drift.compared(table, holdout, 2, SCRATCH, 7)
    assert sorted(learned.earlier["sample_id"]) == holdout
    few = params.changed(PROBE, {"pool.drift_images": 11})
    assert drift.compared(table, holdout, 2, few, 7).sample_ids == [*found.sample_ids[:11], *found.sample_ids[15:26]]
    none = [
        drift.compared(table, holdout, 2, params.changed(PROBE, {"pool.drift_images": 0}), 7),
        drift.compared(table, holdout, 3, PROBE, 7),
        drift.compared(table, holdout, 0, PROBE, 7),
        drift.compared(table, [], 2, SCRATCH, 7),
        drift.compared(catalog([0] * 40 + [1] * 9), [], 1, PROBE, 7),
        drift.compared(catalog([0] * 9 + [1] * 40), [], 1, PROBE, 7),
    ]
    assert [each.sample_ids for each in none] == [[]] * len(none)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """A quiet night, one with other images, and one without any."""
    books = Books(tmp_path).begin().round(new=30, shift=0.0)
    return books.round("entropy", new=25, shift=1.5).round("random", shift=0.0)


def test_a_round_that_compared_its_images_is_intact_and_tells_of_them(books: Books) -> None:
    assert books.verify().ok, books.verify().findings
    quiet, other = drifts(books.data)
    assert [(quiet.new, quiet.earlier), (other.new, other.earlier)] == [(30, 34), (25, 64)]
    assert (quiet.found, other.found) == (False, True)
    assert other.p_value == 1 / (PERMUTATIONS + 1)
    assert other.distance > 0.2 > quiet.distance
    assert "round 2's new images are not like those before: p 0.001" in str(other)
    assert drifts(books.data, 1) == drifts(books.data, 1, last=True) == [quiet]
    assert drifts(books.data, last=True) == []


@pytest.mark.parametrize("what", ["exchanged", "gone", "damaged", "unasked"])
def test_images_that_were_not_to_be_compared_are_found(books: Books, what: str) -> None:
    path = books.data / "rounds/0002/drift.parquet"
    table = tables.read_drift(path)
    ids = np.array(table.sample_ids, dtype=object)
    if what == "gone":
        path.unlink()
    elif what == "damaged":
        tables.write_labeled(ids, table.features_N_D, path)
    elif what == "exchanged":
        ids[[0, -1]] = ids[[-1, 0]]
        tables.write_shortlist(ids, table.features_N_D, path)
    else:
        settings = read_manifest(books.data, 2).settings
        del settings["pool"]["drift_images"]  # as of a version that compared none
        forge(books, 2, settings=settings)
    forge(books, 2)
    assert [finding.file for finding in books.verify().findings] == [
        "rounds/0002/drift.parquet" if what in ("exchanged", "damaged") else "rounds/0002/manifest.json"
    ]
