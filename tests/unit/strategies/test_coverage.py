"""The batch rule `coverage`, by itself and as the default strategy's batch."""

import math
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import small_shards
from vabal import strategies
from vabal.rounds import tables
from vabal.strategies import Candidates, Labeled, Picker, Shard, rule_named
from vabal.strategies.coverage import cover, departures, labeled_distances

coverage = import_module("vabal.strategies.coverage")


def test_picks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples lie together, one apart, one opposite; a kernel so narrow that only equal ones cover each other."""
    features = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [-1, 0]])
    monkeypatch.setattr(coverage, "_width", lambda _: 0.01)
    weights = np.log([0.2, 0.2, 0.2, 0.5, 0.3])
    # gains: 0.6 for each of the three, 0.5, 0.3
    assert cover(weights, features, 5).tolist()[:3] == [0, 3, 4]
    # squared: 0.12, 0.25, 0.09
    assert cover(weights, features, 3, beta=2.0).tolist() == [3, 0, 4]
    # a label upon the three, and one far from all the others
    assert cover(weights, features, 3, labeled_distance_N=np.array([0, 0, 0, 4, 4.0])).tolist() == [3, 4, 0]


def reference(
    score: NDArray[Any], features: NDArray[Any], budget: int, labeled: NDArray[Any], width: float
) -> list[int]:
    """Float64; every candidate's gain, at every place, with loops."""
    unit = [row / math.sqrt(sum(value**2 for value in row)) for row in features.astype(np.float64)]
    known = [row / math.sqrt(sum(value**2 for value in row)) for row in labeled.astype(np.float64)]

    def kernel(one: NDArray[Any], other: NDArray[Any]) -> float:
        return math.exp(-float(((one - other) ** 2).sum()) / width)

    alike = [[kernel(one, other) for other in unit] for one in unit]  # looked up below, a thousand times each
    labelled = [[kernel(one, other) for other in known] for one in unit]
    picked: list[int] = []
    for _ in range(budget):
        gains = {}
        for candidate in range(len(unit)):
            if candidate not in picked:
                gains[candidate] = sum(
                    math.exp(score[n])
                    * max(
                        0.0,
                        alike[n][candidate] - max([*labelled[n], *(alike[n][other] for other in picked)], default=0.0),
                    )
                    for n in range(len(unit))
                )
        picked.append(max(gains, key=lambda candidate: (gains[candidate], -candidate)))
    return picked


def drawn(seed: int, count: int = 90) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    numbers = np.random.default_rng(seed)
    features = numbers.normal(size=(count, 4)).astype(np.float32)
    return numbers.normal(size=count), features, numbers.normal(size=(5, 4)).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("labels", [0, 5])
def test_picks_are_those_of_the_literal_search(seed: int, labels: int) -> None:
    """More candidates than are looked at again at once, so that bounds stand in for most of them."""
    score, features, labeled = drawn(seed)
    labeled = labeled[:labels]
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    apart = [float(((unit[i] - unit[j]) ** 2).sum()) for i in range(90) for j in range(i)]
    expected = reference(score, features, 12, labeled, float(np.quantile(apart, 0.1)))
    picked = cover(score, features, 12, labeled_distance_N=labeled_distances(features, labeled))
    assert picked.tolist() == expected


def test_level_doubt_asks_for_the_typical_and_a_steep_one_for_the_doubtful() -> None:
    """Forty samples in a crowd and one by itself that is doubted a little, or much, more."""
    numbers = np.random.default_rng(0)
    crowd = np.array([1.0, 0, 0]) + 0.05 * numbers.normal(size=(40, 3))
    features = np.vstack([crowd, [[0, 0, 1.0]]])
    little, much = np.append(np.zeros(40), 0.1), np.append(np.zeros(40), 6.0)
    assert cover(little, features, 1)[0] < 40
    assert cover(much, features, 1)[0] == 40


def test_departures_from_the_search_are_told_by_their_place() -> None:
    score, features, labeled = drawn(5)
    near = labeled_distances(features, labeled)
    picked = cover(score, features, 20, labeled_distance_N=near)
    assert departures(score, features, picked, labeled_distance_N=near) == []
    assert departures(score, features * 2, picked, labeled_distance_N=near) == []  # angles alone count
    exchanged = picked.copy()
    exchanged[[4, 11]] = exchanged[[11, 4]]
    told = departures(score, features, exchanged, labeled_distance_N=near)
    assert told
    assert set(told) <= set(range(4, 11))
    assert departures(score, features, np.append(picked[:-1], picked[0]), labeled_distance_N=near) == [19]  # twice
    assert departures(score, features, picked, 3.0, near) != []
    assert departures(score, features, picked) != []  # without what the labels cover


def test_rounding_alone_is_no_departure() -> None:
    """Two candidates that cover each other, and differ by less than float32 sums do."""
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1e-6, 1.0]], dtype=np.float32)
    for first in (1, 2):
        assert departures(np.zeros(3), features, np.array([first, 0])) == []
    assert departures(np.zeros(3), features, np.array([0, 1])) == [0]  # it covers itself alone


def test_a_pick_exchanged_for_any_other_is_told_where_all_samples_lie_close_together() -> None:
    """As a network's features do that are never negative: a narrow kernel, and gains that are small shares of all."""
    numbers = np.random.default_rng(0)
    score, features = np.sort(numbers.normal(size=400))[::-1], 1 + 0.05 * numbers.normal(size=(400, 16))
    near = labeled_distances(features, features[:20] + 0.01)
    picked = cover(score, features, 30, labeled_distance_N=near)
    assert departures(score, features[:, ::-1], picked, labeled_distance_N=near) == []  # other sums
    for place in range(0, 30, 3):
        other = numbers.choice(np.setdiff1d(np.arange(400), picked))
        exchanged = np.where(np.arange(30) == place, other, picked)
        assert place in departures(score, features, exchanged, labeled_distance_N=near)


@pytest.mark.parametrize("case", ["all alike", "all labelled", "few weigh anything"])
def test_where_nothing_is_left_to_cover_few_candidates_are_looked_at_again(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, features, _ = drawn(0, 1000)
    near = np.zeros(1000) if case == "all labelled" else None
    features = np.ones((1000, 4)) if case == "all alike" else features
    score = np.where(np.arange(1000) < 3, score, -1e6) if case == "few weigh anything" else score
    looked_at: list[int] = []
    gains_of = coverage._Gains.of

    def counted(self: Any, rows: NDArray[Any]) -> Any:
        looked_at.append(len(rows))
        return gains_of(self, rows)

    monkeypatch.setattr(coverage._Gains, "of", counted)
    picked = cover(score, features, 100, labeled_distance_N=near)
    assert len(set(picked.tolist())) == 100
    assert sum(looked_at) < 10 * 1000  # 100 x 1000, were all of them looked at for each pick


@pytest.mark.parametrize("beta", [1e-300, 1.0, 1e308])
def test_scores_as_far_apart_as_numbers_go_give_a_batch(beta: float) -> None:
    score = np.array([1.7e308, 1.0, 0.0, -1.7e308])
    assert cover(score, np.eye(4), 4, beta).tolist() == [0, 1, 2, 3]
    assert departures(score, np.eye(4), np.arange(4), beta) == []


def test_all_are_picked_if_asked_for_and_no_more() -> None:
    assert sorted(cover(np.zeros(3), np.zeros((3, 4)), 3).tolist()) == [0, 1, 2]
    assert cover(np.zeros(1), np.ones((1, 2)), 1).tolist() == [0]
    with pytest.raises(ValueError, match="4 asked for of 3 candidates"):
        cover(np.zeros(3), np.zeros((3, 4)), 4)


def test_where_nothing_is_left_to_cover_the_highest_score_of_the_list_comes_next() -> None:
    """Those that the guard shuts out weigh nothing, and stand last in the list."""
    score = np.array([0.0, -0.1, -1e6, -1e6])
    assert cover(score, np.eye(4), 4).tolist() == [0, 1, 2, 3]


def test_of_a_long_list_a_part_is_covered_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    score, features, _ = drawn(2, 200)
    whole = cover(score, features, 10)
    monkeypatch.setattr(coverage, "_COVERED", 100)
    monkeypatch.setattr(coverage, "_LEAST_COVERED", 100)
    part = cover(score, features, 10)
    assert len(set(part.tolist())) == 10
    assert part.tolist() != whole.tolist()
    assert departures(score, features, part) == []


def test_distances_to_the_labelled_pool_by_hand() -> None:
    features = np.array([[2.0, 0], [0, 3], [1, 1]])
    labeled = np.array([[5.0, 0], [-1, 0]])
    assert labeled_distances(features, labeled).tolist() == pytest.approx([0, 2, 2 - math.sqrt(2)], abs=1e-6)
    assert np.isinf(labeled_distances(features, labeled[:0])).all()


# -- as the default's batch ---------------------------------------------------------------------------------------


def test_the_default_s_batch_follows_from_its_record(tmp_path: Path) -> None:
    """What is written of a round's shortlist gives the picks again, and other picks are told."""
    others = small_shards.shard(20, seed=1)
    assert others.features_N_D is not None
    known = Labeled(others.features_N_D, np.zeros(20, dtype=np.int64))
    found = replace(small_shards.context(small_shards.shard(200), selection={"batch": "coverage"}), labeled=known)
    written: list[Candidates] = []
    selection = strategies.get("vabal").select(replace(found, write=written.append), 14)
    listed, rule = selection.shortlist, rule_named("coverage")
    assert (selection.rule, len(set(selection.sample_ids)), rule.looks_at_labels) == ("coverage", 14, True)
    assert listed is not None
    assert listed.labeled_distance_N is not None
    assert (
        listed.labeled_distance_N.tolist()
        == labeled_distances(listed.features_N_D, found.deep(known.features_N_D)).tolist()
    )
    path = tmp_path / "shortlist.parquet"
    tables.write_shortlist(listed.sample_ids, listed.features_N_D, path, listed.labeled_distance_N)
    ids, features, near = tables.read_shortlist(path)
    assert near is not None
    picker = Picker.among(rule, 14, 1.0, selection.seed, listed.per_pick)
    for part in written:
        picker.add(part)
    best = picker.picks()
    assert ids == best.sample_ids.tolist()
    assert rule.follow(best, features, selection.sample_ids, 14, 1.0, near) == selection.sample_ids
    assert rule.follow(best, features, selection.sample_ids[::-1], 14, 1.0, near) == selection.sample_ids
    assert rule.follow(best, features, selection.sample_ids, 14, 1.0) != selection.sample_ids


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_picks_do_not_depend_on_the_order_of_shards_or_their_size(rows: int) -> None:
    whole, others = small_shards.shard(200), small_shards.shard(20, seed=1)
    assert others.features_N_D is not None
    known = Labeled(others.features_N_D, np.zeros(20, dtype=np.int64))

    def picks(*shards: Shard) -> list[str]:
        found = replace(small_shards.context(*shards, selection={"batch": "coverage"}), labeled=known)
        return strategies.get("vabal").select(found, 14).sample_ids

    order = np.random.default_rng(2).permutation(200)
    parts = [small_shards.rows_of(whole, order[start : start + rows]) for start in range(0, 200, rows)]
    assert picks(*parts) == picks(whole)


def test_distances_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shortlist.parquet"
    for wrong in ([-1.0, 1.0], [np.nan, 1.0], [4.1, 1.0], [np.inf, 1.0], [-np.inf, np.inf]):
        tables.write_shortlist(np.array(["a", "b"]), np.ones((2, 2), np.float32), path, np.array(wrong, np.float32))
        with pytest.raises(ValueError, match="labeled_distance: not all of them are distances"):
            tables.read_shortlist(path)
