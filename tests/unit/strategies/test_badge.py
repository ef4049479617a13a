from typing import Any

import numpy as np
import pytest

from tests.support.small_shards import context
from vabal import strategies
from vabal.errors import UserError
from vabal.strategies import Candidates, Shard
from vabal.strategies.badge import BadgeStrategy, seeds


def embeddings(residual_N_C: Any, features_N_D: Any) -> Any:
    """What the strategy never makes: the gradients themselves, C D numbers a sample."""
    return np.einsum("nc,nd->ncd", residual_N_C, features_N_D).reshape(len(residual_N_C), -1).astype(np.float64)


def plain(embedding_N_E: Any, budget: int, seed: int) -> tuple[list[int], Any]:
    """k-means++ seeding on the embeddings, drawn with the same random numbers."""
    numbers = np.random.default_rng(seed)
    picked = [int((embedding_N_E**2).sum(axis=1).argmax())]
    while True:
        difference_N_P_E = embedding_N_E[:, None] - embedding_N_E[picked]
        distance_N = (difference_N_P_E**2).sum(axis=2).min(axis=1)
        if len(picked) == budget:
            return picked, distance_N
        share_N = np.cumsum(distance_N) / distance_N.sum()
        uniform = numbers.random()
        picked.append(next(row for row, share in enumerate(share_N) if uniform < share))


def random_pool(seed: int, kind: Any = np.float64) -> tuple[Any, Any]:
    numbers = np.random.default_rng(seed)
    residual_N_C = numbers.dirichlet(np.ones(4), size=80)
    residual_N_C[np.arange(80), residual_N_C.argmax(axis=1)] -= 1
    return residual_N_C.astype(kind), np.maximum(numbers.standard_normal((80, 6)), 0).astype(kind)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_the_draws_are_those_of_k_means_plus_plus_on_the_embeddings(seed: int, kind: Any) -> None:
    residual_N_C, features_N_D = random_pool(seed, kind)
    picked, distance_N = seeds(residual_N_C, features_N_D, 30, seed)
    expected, expected_N = plain(embeddings(residual_N_C, features_N_D), 30, seed)
    assert picked.tolist() == expected
    np.testing.assert_allclose(distance_N, expected_N, atol=1e-5)


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
