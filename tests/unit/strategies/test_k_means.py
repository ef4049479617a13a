from typing import Any

import numpy as np
import pytest

from vabal.strategies import k_means
from vabal.strategies.badge import seeds
from vabal.strategies.k_means import lloyd, mini_batches, sums


def samples(count: int, groups: int = 12) -> Any:
    """Of length one, around a few directions."""
    numbers = np.random.default_rng(0)
    features_M_D = numbers.normal(size=(groups, 8))[numbers.integers(groups, size=count)]
    features_M_D += 0.6 * numbers.normal(size=(count, 8))
    return (features_M_D / np.linalg.norm(features_M_D, axis=1, keepdims=True)).astype(np.float32)


def seeded(features_M_D: Any, clusters: int, seed: int) -> Any:
    first = int(np.random.default_rng(seed).integers(len(features_M_D)))
    ones_M_1 = np.ones((len(features_M_D), 1), dtype=np.float32)
    return features_M_D[seeds(ones_M_1, features_M_D, clusters, seed, first)[0]]


def nearest(features_M_D: Any, centres_K_D: Any) -> Any:
    return np.linalg.norm(features_M_D[:, None].astype(np.float64) - centres_K_D, axis=2).argmin(axis=1)


def plain(features_M_D: Any, centres_K_D: Any, settled: int) -> Any:
    """Lloyd's algorithm by its definition: every distance, every time."""
    cluster_M = np.full(len(features_M_D), -1)
    while True:
        before_M, cluster_M = cluster_M, nearest(features_M_D, centres_K_D)
        if (before_M != cluster_M).sum() <= settled:
            return centres_K_D
        centres_K_D = np.array(
            [
                features_M_D[cluster_M == k].mean(axis=0, dtype=np.float64) if (cluster_M == k).any() else centre_D
                for k, centre_D in enumerate(centres_K_D)
            ]
        )


def test_two_groups_on_a_circle_have_their_means_as_centres() -> None:
    features_M_D = np.array([[1, 0], [0.8, 0.6], [-1, 0], [-0.8, 0.6], [-0.8, -0.6]], dtype=np.float32)
    for seed in range(5):
        found = sorted(lloyd(features_M_D, 2, seed).tolist())
        assert found == [pytest.approx([-2.6 / 3, 0], abs=1e-6), pytest.approx([0.9, 0.3], abs=1e-6)]


@pytest.mark.parametrize("settled", [10**9, 100])
@pytest.mark.parametrize("seed", range(4))
def test_centres_are_those_of_the_plain_algorithm(seed: int, settled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_means, "_BLOCK_ROWS", 100)
    monkeypatch.setattr(k_means, "_SETTLED", settled)
    features_M_D = samples(700)
    first = seeded(features_M_D, 15, seed)
    found = lloyd(features_M_D, 15, seed)
    assert found.dtype == np.float32
    assert found == pytest.approx(plain(features_M_D, first, 700 // settled), abs=1e-5)


def test_many_samples_start_from_the_centres_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_means, "_SETTLED", 10**9)
    features_M_D = samples(2000)
    rows = np.sort(np.random.default_rng(3).choice(2000, 250, replace=False))
    expected = plain(features_M_D, lloyd(features_M_D[rows], 12, 3).astype(np.float64), 0)
    monkeypatch.setattr(k_means, "_PARTED_ROWS", 2000)
    assert lloyd(features_M_D, 12, 3) == pytest.approx(expected, abs=1e-5)


def test_a_centre_of_mini_batches_is_the_mean_of_all_that_came_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(k_means, "_BATCH_ROWS", 150)
    monkeypatch.setattr(k_means, "_BATCHES", 9)
    features_M_D = samples(400)
    numbers = np.random.default_rng(5)
    order = numbers.permutation(400)
    centres_K_D = seeded(features_M_D, 10, 5).astype(np.float64)
    came: list[list[Any]] = [[] for _ in range(10)]
    batches = [order[:150], order[150:300], order[300:]]
    for _ in range(2):
        order = numbers.permutation(400)
        batches += [order[:150], order[150:300], order[300:]]
    for batch in batches:
        for row, cluster in zip(batch, nearest(features_M_D[batch], centres_K_D), strict=True):
            came[cluster].append(features_M_D[row])
        centres_K_D = np.array([np.mean(own, axis=0) if own else centres_K_D[k] for k, own in enumerate(came)])
    assert mini_batches(features_M_D, 10, 5) == pytest.approx(centres_K_D, abs=1e-5)


def test_fewer_different_samples_than_clusters_leave_centres_where_they_are() -> None:
    features_M_D = np.repeat(np.eye(3, dtype=np.float32), 5, axis=0)
    for fit in (lloyd, mini_batches):
        assert {tuple(centre) for centre in fit(features_M_D, 6, 0).tolist()} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}
    assert not lloyd(np.zeros((4, 3), dtype=np.float32), 2, 0).any()


def test_sums_are_of_each_cluster_s_samples() -> None:
    features_B_D = np.array([[1.0, 2], [3, 4], [5, 6]], dtype=np.float32)
    assert sums(features_B_D, np.array([2, 0, 2]), 4).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    assert not sums(features_B_D[:0], np.zeros(0, dtype=np.int64), 2).any()
