from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare
from threadpoolctl import threadpool_limits

from tests.support.small_shards import context
from vabal import strategies
from vabal.errors import UserError
from vabal.strategies import Candidates, Shard, badge
from vabal.strategies.badge import BadgeStrategy, seeds


def embeddings(residual_N_C: Any, features_N_D: Any) -> Any:
    """What the strategy never makes: the gradients themselves, C D numbers a sample."""
    return np.einsum("nc,nd->ncd", residual_N_C, features_N_D).reshape(len(residual_N_C), -1).astype(np.float64)


def plain(embedding_N_E: Any, budget: int, seed: int, patience: int) -> tuple[list[int], Any]:
    """k-means++ seeding on the embeddings, drawn from bounds with the same random numbers.

    A row is drawn by what its distance was when it was last looked at; all are looked at at the first seed, and when
    more than `patience` rows were rejected since.
    """
    numbers = np.random.default_rng(seed)
    picked = [int((embedding_N_E**2).sum(axis=1).argmax())]
    bound_N, rejected = distances(embedding_N_E, picked), 0
    while len(picked) < budget:
        share_N = np.cumsum(bound_N) / bound_N.sum()
        uniform = numbers.random()
        row = next(row for row, share in enumerate(share_N) if uniform < share)
        distance = distances(embedding_N_E, picked)[row]
        if numbers.random() * bound_N[row] < distance:
            picked.append(row)
            bound_N[row] = 0
            continue
        bound_N[row], rejected = distance, rejected + 1
        if rejected > patience:
            bound_N, rejected = distances(embedding_N_E, picked), 0
    return picked, distances(embedding_N_E, picked)


def distances(embedding_N_E: Any, picked: list[int]) -> Any:
    return ((embedding_N_E[:, None] - embedding_N_E[picked]) ** 2).sum(axis=2).min(axis=1)


def one_by_one(work: Any, blocks: Any) -> None:
    for rows in blocks:
        work(rows)


def random_pool(seed: int, kind: Any = np.float64) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    residual_N_C = numbers.dirichlet(np.ones(4), size=80)
    residual_N_C[np.arange(80), residual_N_C.argmax(axis=1)] -= 1
    return residual_N_C.astype(kind), np.maximum(numbers.standard_normal((80, 6)), 0).astype(kind)


@pytest.mark.parametrize("patience", [0, 5, 1000])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_the_draws_are_those_of_k_means_plus_plus_on_the_embeddings(
    seed: int, kind: Any, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    residual_N_C, features_N_D = random_pool(seed, kind)
    monkeypatch.setattr(badge, "_READ_IN_A_DRAW", 80 * 10 / (patience + 0.5))
    picked, distance_N = seeds(residual_N_C, features_N_D, 30, seed)
    expected, expected_N = plain(embeddings(residual_N_C, features_N_D), 30, seed, patience)
    assert picked.tolist() == expected
    np.testing.assert_allclose(distance_N, expected_N, atol=1e-5)


@pytest.mark.parametrize("patience", [0, 10**6])
def test_pairs_of_seeds_are_as_frequent_as_k_means_plus_plus_has_them(
    patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.random.default_rng(1)
    residual_N_C, features_N_D = (
        numbers.normal(size=(6, 2)),
        numbers.normal(size=(6, 3)) * [[3], [1], [1], [2], [1], [1]],
    )
    embedding_N_E = embeddings(residual_N_C, features_N_D)
    first = int((embedding_N_E**2).sum(axis=1).argmax())
    share_N = distances(embedding_N_E, [first])
    expected: dict[tuple[int, int], float] = {}
    for second in range(6):
        left_N = distances(embedding_N_E, [first, second])
        for third in range(6):
            if third != second and first not in (second, third):
                expected[second, third] = share_N[second] / share_N.sum() * left_N[third] / left_N.sum()
    assert sum(expected.values()) == pytest.approx(1)
    draws = 4000
    uniform, found = np.random.default_rng(2).random, Counter[tuple[int, int]]()
    monkeypatch.setattr(badge._Search, "patience", property(lambda _: patience))
    for _ in range(draws):
        search = badge._Search(residual_N_C, features_N_D, 3, one_by_one)
        search.add(first)
        for _ in range(2):
            row = search.draw(uniform)
            assert row is not None
            search.add(row)
        found[search.picked[1], search.picked[2]] += 1
    assert set(found) <= set(expected)
    counts = [found[pair] for pair in expected]
    assert chisquare(counts, np.array(list(expected.values())) * draws).pvalue > 0.001


def test_seeds_are_the_same_bit_for_bit_on_any_number_of_threads() -> None:
    numbers = np.random.default_rng(0)
    residual_N_C = numbers.standard_normal((9000, 5), dtype=np.float32)
    features_N_D = numbers.standard_normal((9000, 33), dtype=np.float32)
    found = []
    for threads in (1, 2, 3):
        with threadpool_limits(threads):
            picked, distance_N = seeds(residual_N_C, features_N_D, 200, seed=1)
        found.append((picked.tobytes(), distance_N.tobytes()))
    assert found[0] == found[1] == found[2]
    expected_N = distances_of(residual_N_C, features_N_D, picked)
    np.testing.assert_allclose(distance_N, expected_N, rtol=1e-4, atol=1e-3)


def distances_of(residual_N_C: Any, features_N_D: Any, picked: Any) -> Any:
    """By one seed after another: all embeddings at once would be large."""
    embedding_N_E = embeddings(residual_N_C, features_N_D)
    return np.min([((embedding_N_E - embedding_N_E[row]) ** 2).sum(axis=1) for row in picked], axis=0)


def test_features_of_half_precision_are_read_as_they_are() -> None:
    residual_N_C, features_N_D = random_pool(0, np.float32)
    half_N_D = features_N_D.astype(np.float16)
    picked, distance_N = seeds(residual_N_C, half_N_D, 30, seed=0)
    expected, expected_N = seeds(residual_N_C, half_N_D.astype(np.float32), 30, seed=0)
    assert picked.tolist() == expected.tolist()
    assert distance_N.tobytes() == expected_N.tobytes()


def test_distances_come_from_the_two_scalar_products() -> None:
    residual_N_C = np.array([[-0.5, 0.5], [-0.5, 0.5], [0.5, -0.5]])
    features_N_D = np.array([[2.0, 0], [0, 1], [2, 0]])
    # norms: 0.5 * 4, 0.5 * 1, 0.5 * 4; to the first, 1 is orthogonal (2 + 0.5), 2 is its opposite (2 + 2 + 2 * 2)
    picked, distance_N = seeds(residual_N_C, features_N_D, 1, seed=0)
    assert picked.tolist() == [0]
    np.testing.assert_allclose(distance_N, [0, 2.5, 8])


def test_farther_embeddings_are_drawn_more_often_in_proportion_to_the_squared_distance() -> None:
    residual_N_C, features_N_D = np.array([[-1.0], [-1], [-1]]), np.array([[3.0], [2], [1]])  # 0, 1 and 4 apart
    second = [int(seeds(residual_N_C, features_N_D, 2, seed)[0][1]) for seed in range(1000)]
    assert second.count(0) == 0
    assert second.count(2) == pytest.approx(800, abs=50)  # four standard deviations


def test_where_no_embedding_is_apart_the_rest_is_drawn_uniformly() -> None:
    first = [seeds(np.zeros((5, 1)), np.ones((5, 2)), 2, seed)[0].tolist() for seed in range(500)]
    assert all(len(set(picked)) == 2 for picked in first)
    assert [sum(row in picked for picked in first) for row in range(5)] == pytest.approx([200] * 5, abs=45)
    numbers = np.random.default_rng(0)
    for dims in (3, 100, 512):
        scale_N_1 = np.array([[1], [3], [7], [1.1], [0.3], [1]], dtype=np.float32)  # other roundings of one embedding
        copies_N_C = scale_N_1 * numbers.standard_normal((1, 10), dtype=np.float32)
        copies_N_D = numbers.standard_normal((1, dims), dtype=np.float32) / scale_N_1
        assert not seeds(copies_N_C, copies_N_D, 1, seed=0)[1].any()
        assert sorted(seeds(copies_N_C, copies_N_D, 6, seed=0)[0].tolist()) == list(range(6))


def test_a_copy_of_a_seed_is_not_drawn_while_another_embedding_is_apart() -> None:
    numbers = np.random.default_rng(0)
    features_N_D = np.repeat(numbers.standard_normal((2, 512), dtype=np.float32), 50, axis=0)
    residual_N_C = np.repeat(numbers.standard_normal((2, 10), dtype=np.float32), 50, axis=0)
    for seed in range(20):
        picked = seeds(residual_N_C, features_N_D, 2, seed)[0]
        assert len(set(picked // 50)) == 2


def test_the_strategy_takes_the_last_stage_s_features_and_the_posteriors() -> None:
    ids = np.array(["a", "b", "c"], dtype=object)
    posteriors_N_C = np.array([[0.5, 0.5], [0.9, 0.1], [0.5, 0.5]])
    features_N_D = np.array([[100.0, 1], [0, 1], [0, 3]])  # the first column is another stage's
    written: list[Candidates] = []
    given = Shard(ids, np.log(posteriors_N_C), features_N_D)
    chosen = context(given, feature_dims=(1, 1), write=written.append)
    selection = strategies.get("badge").select(chosen, 1)
    assert selection.sample_ids == ["c"]  # norms 0.5, 0.02 and 4.5
    # c to a: (3 - 1)^2 * 0.5 = 2 ; c to b: 4.5 + 0.02 - 2 * (0.5 * 0.1 * 2) * 3 = 3.92
    assert dict(zip(written[0].sample_ids, written[0].score_N, strict=True)) == {"c": 1, "b": -1, "a": -2}
    np.testing.assert_allclose(BadgeStrategy().order(given, chosen, 1)[1], [2, 3.92, 0], atol=1e-9)


def test_a_budget_beyond_the_samples_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="budget of 1 to 3 samples, found 4"):
        seeds(np.zeros((3, 2)), np.zeros((3, 2)), 4, seed=0)
    given = Shard(np.array(["a", "b"], dtype=object), np.array([[0.0, 1], [0, np.nan]]), np.ones((2, 1)))
    with pytest.raises(UserError, match="logits_N_C is not finite for b"):
        strategies.get("badge").select(context(given), 1)
