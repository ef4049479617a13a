from typing import Any

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.support.small_shards import context
from vabal import strategies
from vabal.errors import UserError
from vabal.strategies import Labeled, Shard, k_means, typiclust
from vabal.strategies.typiclust import cluster_centres, mean_distance, nearest, typical

NOTHING = np.zeros((0, 2))
NO_CLUSTERS = np.zeros(0, dtype=np.int64)


def directions(*degrees: float) -> Any:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_the_mean_distance_to_the_nearest_neighbours_is_that_on_a_line() -> None:
    line_M_D = np.array([[0.0], [1], [3], [7]])
    np.testing.assert_allclose(mean_distance(line_M_D, 2), [2, 1.5, 2.5, 5])
    np.testing.assert_allclose(mean_distance(line_M_D), [11 / 3, 3, 3, 17 / 3])  # there are but three others
    assert mean_distance(line_M_D[:1]).tolist() == [0]


def test_the_mean_distances_of_many_samples_are_those_of_sorted_distances() -> None:
    features_M_D = np.random.default_rng(0).standard_normal((700, 5)).astype(np.float32)
    distance_M_M = np.linalg.norm(features_M_D[:, None].astype(np.float64) - features_M_D, axis=2)
    np.testing.assert_allclose(mean_distance(features_M_D), np.sort(distance_M_M)[:, 1:21].mean(axis=1), atol=1e-6)


def test_the_largest_cluster_without_a_label_gives_its_most_typical_sample_first() -> None:
    features_N_D = directions(0, 1, 2, 3, 4, 90, 91, 92, 93, 94, 100, 101, 180, 181, 182, 183, 190, 200, 210, 220)
    cluster_N = np.repeat([0, 1, 2], [5, 7, 8])
    # the cluster of 8 has a label; of the 7, 93 degrees has 3 + 2 + 1 + 1 + 7 + 8 to the others, 92 and 94 one more;
    # of the 5, 2 degrees is the middle
    picked = typical(features_N_D, cluster_N, directions(185), np.array([2]), 2)
    assert picked.tolist() == [8, 2]


def plain(features_N_D: Any, cluster_N: Any, labeled_L_D: Any, cluster_L: Any, budget: int) -> list[int]:
    """Typical samples by their definition, everything counted again for each pick."""
    unit_N_D = np.concatenate([features_N_D, labeled_L_D])
    unit_N_D = unit_N_D / np.linalg.norm(unit_N_D, axis=1, keepdims=True)
    clusters_N = np.concatenate([cluster_N, cluster_L])
    picked: list[int] = []
    while len(picked) < budget:
        options = []
        for cluster in np.unique(clusters_N):
            members = np.flatnonzero(clusters_N == cluster)
            free = [row for row in members if row < len(features_N_D) and row not in picked]
            if not free:
                continue
            labels = len(members) - len(free)
            distances = np.sort(np.linalg.norm(unit_N_D[free][:, None] - unit_N_D[members], axis=2))[:, 1:21]
            means = distances.mean(axis=1) if distances.size else [0]
            options.append((len(members) < 5, labels, -len(members), cluster, free[int(np.argmin(means))]))
        picked.append(int(min(options)[-1]))
    return picked


@pytest.mark.parametrize("seed", range(4))
def test_the_picks_are_those_of_the_definition(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    features_N_D, labeled_L_D = numbers.standard_normal((90, 4)), numbers.standard_normal((12, 4))
    cluster_N, cluster_L = (np.minimum(numbers.geometric(0.25, size), 12) for size in (90, 12))
    for budget in (1, 20, 90):
        picked = typical(features_N_D, cluster_N, labeled_L_D, cluster_L, budget).tolist()
        assert picked == plain(features_N_D, cluster_N, labeled_L_D, cluster_L, budget)


def test_small_clusters_wait_until_the_others_are_used_up() -> None:
    cluster_N = np.array([0, 0, 1, 1, 1, 1, 1, 2])
    features_N_D = directions(0, 1, 90, 91, 92, 93, 94, 180)
    picked = typical(features_N_D, cluster_N, NOTHING, NO_CLUSTERS, 8).tolist()
    assert sorted(picked[:5]) == [2, 3, 4, 5, 6]
    assert picked[5] in (0, 1)
    assert picked[6] == 7


def test_of_a_large_cluster_a_part_is_measured_and_all_can_be_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typiclust, "_MEASURED_ROWS", 3)
    features_N_D = directions(0, 10, 11, 12, 12, 12)
    picked = typical(features_N_D, np.zeros(6, dtype=np.int64), NOTHING, NO_CLUSTERS, 6).tolist()
    assert picked == [1, 2, 0, 3, 4, 5]  # of 0, 10 and 11 degrees; then those that were not measured


def blobs(numbers: np.random.Generator, count: int, groups: int) -> tuple[Any, Any]:
    centres_K_D = np.linalg.qr(np.random.default_rng(1).standard_normal((64, 64)))[0][:groups]
    group_N = np.arange(count) % groups
    length_N = numbers.uniform(0.5, 30, count)  # normalising takes it away again
    return length_N[:, None] * (centres_K_D[group_N] + 0.01 * numbers.standard_normal((count, 64))), group_N


@pytest.mark.parametrize(("groups", "fitted"), [(8, 2**16), (8, 100), (60, 2**16)])
def test_each_group_that_has_no_label_is_picked_from_once(
    groups: int, fitted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typiclust, "_FITTED_ROWS", fitted)
    deep_N_D, group_N = blobs(np.random.default_rng(0), 20 * groups, groups)
    features_N_D = np.concatenate(
        [1e3 * np.random.default_rng(2).standard_normal((len(deep_N_D), 3)), deep_N_D], axis=1
    )
    ids = np.array([f"{group}:{row}" for row, group in enumerate(group_N)], dtype=object)
    known = 3
    labeled = Labeled(features_N_D[:known], group_N[:known])
    given = Shard(ids, np.zeros((len(ids), 2)), features_N_D.astype(np.float32))
    chosen = context(given, labeled=labeled, feature_dims=(3, 64))  # the first stage's features must not count
    picked = strategies.get("typiclust").select(chosen, groups - known).sample_ids
    found = {int(sample_id.partition(":")[0]) for sample_id in picked}
    if groups <= 50:
        assert found == set(range(known, groups))
    else:  # mini-batch k-means seeds two centres in one group now and then
        assert len(found) > 0.8 * (groups - known)


@pytest.mark.parametrize("clusters", [5, 70])
def test_clusters_are_the_same_bit_for_bit_every_time(clusters: int) -> None:
    features_N_D = np.random.default_rng(0).standard_normal((3000, 16), dtype=np.float32)
    found = set()
    for threads in (1, 1, 2):
        with threadpool_limits(threads):
            first = cluster_centres(features_N_D, features_N_D[:0], clusters, seed=7)
            found.add((first.tobytes(), nearest(features_N_D, first).tobytes(), mean_distance(features_N_D).tobytes()))
    assert len(found) == 1
    assert cluster_centres(features_N_D, features_N_D[:0], clusters, seed=8).tobytes() != first.tobytes()


def test_each_sample_belongs_to_the_nearest_centre_of_its_direction() -> None:
    centres_K_D = directions(0, 90, 45).astype(np.float32)
    assert nearest(100 * directions(1, 89, 60, 30, 20), centres_K_D).tolist() == [0, 1, 2, 2, 0]
    assert len(nearest(NOTHING, centres_K_D)) == 0


def test_equal_samples_features_of_zero_and_a_budget_beyond_the_pool_are_borne() -> None:
    ids = np.array([f"s{row}" for row in range(12)], dtype=object)
    for features_N_D in (np.zeros((12, 3)), np.ones((12, 3), dtype=np.float32), np.full((12, 3), 1e-40)):
        given = Shard(ids, np.zeros((12, 1)), features_N_D)
        assert len(set(strategies.get("typiclust").select(context(given), 7).sample_ids)) == 7
        selection = strategies.get("typiclust").select(context(given), 99)
        assert sorted(selection.sample_ids) == sorted(ids)
        assert "99 asked for, 12 left" in selection.notes[0]


def test_features_that_are_not_finite_are_refused_with_the_samples_names() -> None:
    given = Shard(np.array(["a", "b"], dtype=object), np.zeros((2, 2)), np.array([[np.nan], [1]]))
    with pytest.raises(UserError, match="not finite for a"):
        strategies.get("typiclust").select(context(given), 1)


# -- clusters -----------------------------------------------------------------------------------------------------


def unit(features_N_D: Any) -> Any:
    return (features_N_D / np.linalg.norm(features_N_D, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("labels", "budget", "clusters"), [(0, 3, 3), (2, 3, 5), (5, 3, 6), (9, 3, 6)])
def test_there_are_as_many_clusters_as_labels_after_the_round_and_no_more_than_the_most(
    labels: int, budget: int, clusters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []

    def counted(features_N_D: Any, labeled_L_D: Any, clusters: int, seed: int) -> Any:
        seen.append((clusters, seed))
        return cluster_centres(features_N_D, labeled_L_D, clusters, seed)

    monkeypatch.setattr(typiclust, "MOST_CLUSTERS", 6)
    monkeypatch.setattr(typiclust, "cluster_centres", counted)
    numbers = np.random.default_rng(0)
    whole = Shard(np.arange(20).astype(str), numbers.normal(size=(20, 3)), numbers.normal(size=(20, 4)))
    known = Labeled(numbers.normal(size=(labels, 4)), np.zeros(labels, dtype=int))
    strategies.get("typiclust").select(context(whole, seed=7, labeled=known), budget)
    assert seen == [(clusters, 7)]


@pytest.mark.parametrize("seed", [7, -1, 2**32 + 7])
@pytest.mark.parametrize("clusters", [3, 50, 51])
def test_centres_are_those_of_k_means_and_of_many_clusters_of_mini_batches(clusters: int, seed: int) -> None:
    numbers = np.random.default_rng(0)
    features_N_D, labeled_L_D = numbers.normal(size=(90, 4)), numbers.normal(size=(10, 4))
    fit = k_means.mini_batches if clusters > 50 else k_means.lloyd
    expected = fit(unit(np.concatenate([features_N_D, labeled_L_D])), clusters, seed % 2**32)
    found = cluster_centres(features_N_D, labeled_L_D, clusters, seed)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-5)


def test_of_a_large_pool_a_drawn_part_is_fitted_labelled_samples_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    features_N_D, labeled_L_D = numbers.normal(size=(60, 3)), numbers.normal(size=(40, 3))
    together = unit(np.concatenate([features_N_D, labeled_L_D]))
    monkeypatch.setattr(typiclust, "_FITTED_ROWS", 100)
    assert typiclust._sample(features_N_D, labeled_L_D, 5) == pytest.approx(together, abs=1e-6)
    monkeypatch.setattr(typiclust, "_FITTED_ROWS", 50)
    found = typiclust._sample(features_N_D, labeled_L_D, 5)
    rows = np.abs(found[:, None] - together).max(axis=2).argmin(axis=1)
    assert found == pytest.approx(together[rows], abs=1e-6)
    assert rows.tolist() == sorted(set(rows.tolist()))  # each once, the unlabelled first
    assert len(rows) == 50
    assert 10 <= (rows >= 60).sum() <= 30
    assert typiclust._sample(features_N_D, labeled_L_D, 6).tolist() != found.tolist()


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_the_nearest_centre_is_found_in_whatever_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(0)
    features_N_D, centres_K_D = numbers.normal(size=(20, 3)), (numbers.normal(size=(6, 3)) / 2).astype(np.float32)
    distance_N_K = np.linalg.norm(unit(features_N_D)[:, None] - centres_K_D, axis=2)
    monkeypatch.setattr(typiclust, "_BLOCK_ROWS", rows)
    found = nearest(features_N_D, centres_K_D)
    assert found.dtype == np.int64
    assert found.tolist() == distance_N_K.argmin(axis=1).tolist()


@pytest.mark.parametrize("rows", [1, 4, 50])
def test_mean_distances_are_the_same_in_whatever_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features_M_D = np.random.default_rng(0).normal(size=(9, 3))
    distance_M_M = np.linalg.norm(features_M_D[:, None] - features_M_D, axis=2)
    monkeypatch.setattr(typiclust, "_BLOCK_NEIGHBOURS", rows)
    assert mean_distance(features_M_D, 4) == pytest.approx(np.sort(distance_M_M)[:, 1:5].mean(axis=1))
    assert mean_distance(features_M_D[:2]).tolist() == pytest.approx([distance_M_M[0, 1]] * 2)


def test_features_without_a_direction_stay_as_they_are() -> None:
    found = typiclust._normalised(np.array([[3.0, 4.0], [0.0, 0.0], [0.0, 1e-31], [0.0, -1e-20]]))
    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx([0.6, 0.8]), [0, 0], pytest.approx([0, 1e-31]), pytest.approx([0, -1])]
