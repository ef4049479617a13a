import tracemalloc
from typing import Any

import numpy as np
import pytest

from tests.support.small_shards import context
from vabal import strategies
from vabal.errors import UserError
from vabal.strategies import Candidates, Labeled, Shard, coreset
from vabal.strategies.coreset import k_centre_greedy


def plain(features_N_D: Any, labeled_L_D: Any, budget: int) -> tuple[list[int], np.ndarray]:
    """All distances to every new centre, in float64."""
    exact_N_D = features_N_D.astype(np.float64)
    distance_N = np.full(len(exact_N_D), np.inf)
    picked: list[int] = []
    for centre_D in labeled_L_D.astype(np.float64):
        distance_N = np.minimum(distance_N, np.linalg.norm(exact_N_D - centre_D, axis=1))
    while len(picked) < budget:
        if picked or len(labeled_L_D):
            distance_N[picked] = -1
            row = int(distance_N.argmax())
        else:
            row = int(np.linalg.norm(exact_N_D - exact_N_D.mean(axis=0), axis=1).argmin())
        picked.append(row)
        distance_N = np.minimum(distance_N, np.linalg.norm(exact_N_D - exact_N_D[row], axis=1))
    distance_N[picked] = 0
    return picked, distance_N


def gaussian(numbers: np.random.Generator, count: int) -> Any:
    return numbers.standard_normal((count, 24))


def activations(numbers: np.random.Generator, count: int) -> Any:
    """As a ReLU network's: a few classes, few dimensions behind many, never negative, far from the origin."""
    centres_K_Z = 3 * numbers.standard_normal((10, 6))
    latent_N_Z = centres_K_Z[numbers.integers(0, 10, count)] + numbers.standard_normal((count, 6))
    return np.maximum(latent_N_Z @ np.random.default_rng(5).standard_normal((6, 24)) + 4, 0)


def tight_clusters(numbers: np.random.Generator, count: int) -> Any:
    """Where bounds help the least: each pick brings a whole cluster near, so that fronts last for one pick."""
    return 5 * np.random.default_rng(6).standard_normal((90, 24))[numbers.integers(0, 90, count)] + 0.05 * gaussian(
        numbers, count
    )


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("labeled", [0, 1, 30])
@pytest.mark.parametrize("made", [gaussian, activations, tight_clusters])
def test_the_picks_are_those_of_the_plain_loop(made: Any, labeled: int, kind: Any) -> None:
    numbers = np.random.default_rng(labeled)
    features_N_D, labeled_L_D = made(numbers, 4000).astype(kind), made(numbers, labeled).astype(kind)
    picked, distance_N = k_centre_greedy(features_N_D, labeled_L_D, 120)
    expected, expected_N = plain(features_N_D, labeled_L_D, 120)
    assert picked.tolist() == expected
    np.testing.assert_allclose(distance_N, expected_N, atol=0.01)
    assert not distance_N[picked].any()


@pytest.mark.parametrize("labeled", [0, 30])
def test_small_fronts_without_any_sweep_between_them_pick_the_same(
    labeled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "_FRONT_BEGINS", 8)
    monkeypatch.setattr(coreset, "_FRONT_SHARE", 100)
    monkeypatch.setattr(coreset, "_DEARER", 0)
    monkeypatch.setattr(coreset, "_CENTRES", 16)
    numbers = np.random.default_rng(0)
    features_N_D, labeled_L_D = tight_clusters(numbers, 1000), tight_clusters(numbers, labeled)
    picked, _ = k_centre_greedy(features_N_D, labeled_L_D, 120)
    assert picked.tolist() == plain(features_N_D, labeled_L_D, 120)[0]


def test_more_centres_than_one_product_takes_are_all_seen() -> None:
    numbers = np.random.default_rng(3)
    features_N_D, labeled_L_D = (gaussian(numbers, count).astype(np.float32) for count in (1500, 700))
    picked, distance_N = k_centre_greedy(features_N_D, labeled_L_D, 1300)
    expected, expected_N = plain(features_N_D, labeled_L_D, 1300)
    assert picked.tolist() == expected
    np.testing.assert_allclose(distance_N, expected_N, atol=1e-3)


def test_on_a_line_the_far_end_comes_first_and_then_the_widest_gap() -> None:
    line_N_D = np.array([[0.0], [1], [4], [10]])
    picked, distance_N = k_centre_greedy(line_N_D, np.array([[0.0]]), 2)
    assert picked.tolist() == [3, 2]  # 10 away from 0; then 4 is 4 away from 0, 1 only 1
    np.testing.assert_allclose(distance_N, [0, 1, 0, 0], atol=1e-6)


def test_without_labelled_samples_the_one_nearest_to_the_mean_is_first() -> None:
    picked, _ = k_centre_greedy(np.array([[0.0], [3], [4], [13]]), np.zeros((0, 1)), 3)  # the mean is 5
    assert picked.tolist() == [2, 3, 0]


def test_all_samples_can_be_picked_even_where_all_are_equal() -> None:
    for features_N_D in (np.zeros((300, 3)), np.full((300, 3), 1e3, dtype=np.float32)):
        picked, distance_N = k_centre_greedy(features_N_D, features_N_D[:2], 300)
        assert sorted(picked.tolist()) == list(range(300))
        assert not distance_N.any()


def test_a_budget_beyond_the_samples_and_numbers_beyond_float32_are_refused() -> None:
    with pytest.raises(ValueError, match="budget of 1 to 3 samples, found 4"):
        k_centre_greedy(np.zeros((3, 2)), np.zeros((0, 2)), 4)
    with pytest.raises(UserError, match=r"1\.0e\+20 from their mean, beyond what float32 can square"):
        k_centre_greedy(np.array([[-1e20], [1e20]]), np.zeros((0, 1)), 1)
    with pytest.raises(UserError, match="nan from their mean"):
        k_centre_greedy(np.zeros((3, 1)), np.array([[np.nan]]), 1)


def test_memory_beside_the_features_is_small() -> None:
    features_N_D = np.random.default_rng(0).standard_normal((40_000, 256), dtype=np.float32)
    tracemalloc.start()
    k_centre_greedy(features_N_D, features_N_D[:50], 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.3 * features_N_D.nbytes


def test_the_last_stage_s_features_count_and_the_rest_ranks_by_the_distance_left() -> None:
    features_N_D = np.array([[9.0, 0], [0, 1], [0, 4], [0, 10]])  # the first column is another stage's
    ids = np.array(["a", "b", "c", "d"], dtype=object)
    written: list[Candidates] = []
    known = Labeled(np.array([[0.0, 0]]), np.array([0]))
    chosen = context(
        Shard(ids, np.zeros((4, 2)), features_N_D), labeled=known, feature_dims=(1, 1), write=written.append
    )
    selection = strategies.get("coreset").select(chosen, 2)
    assert selection.sample_ids == ["d", "c"]
    assert dict(zip(written[0].sample_ids, written[0].score_N, strict=True)) == {"d": 2, "c": 1, "b": -1, "a": -2}


def test_features_that_are_not_finite_are_refused_with_the_samples_names() -> None:
    given = Shard(np.array(["a", "b"], dtype=object), np.zeros((2, 2)), np.array([[1.0], [np.inf]]))
    with pytest.raises(UserError, match="not finite for b"):
        strategies.get("coreset").select(context(given), 1)
