import numpy as np

from tests.support.small_shards import context
from tests.support.small_strategies import written
from vabal import strategies
from vabal.strategies import Candidates, Selection, Shard


def shard(*posteriors: list[float]) -> Shard:
    logits_N_C = np.log(np.array(posteriors))
    return Shard(np.array([f"s{row}" for row in range(len(posteriors))], dtype=object), logits_N_C)


def select(given: Shard, budget: int) -> tuple[Selection, list[Candidates]]:
    return written(strategies.get("margin"), context(given), budget)


def test_the_score_is_minus_the_best_posterior_less_the_second() -> None:
    given = shard([0.6, 0.3, 0.1], [0.45, 0.1, 0.45], [0.05, 0.9, 0.05])
    selection, (part,) = select(given, 2)
    np.testing.assert_allclose(part.score_N, [-0.3, 0, -0.85], atol=1e-12)
    assert selection.sample_ids == ["s1", "s0"]
    assert part.predicted_class_N is not None
    assert part.predicted_class_N[[0, 2]].tolist() == [0, 1]


def test_the_margin_of_many_samples_is_that_of_sorted_posteriors() -> None:
    posteriors_N_C = np.random.default_rng(0).dirichlet(np.ones(7), size=40)
    _, (part,) = select(shard(*posteriors_N_C.tolist()), 1)
    ordered = [sorted(posteriors) for posteriors in posteriors_N_C.tolist()]
    np.testing.assert_allclose(part.score_N, [values[-2] - values[-1] for values in ordered], atol=1e-12)


def test_the_scores_can_be_derived_again_from_the_margins_that_were_written() -> None:
    _, (part,) = select(shard([0.6, 0.4], [0.7, 0.3]), 1)
    strategy, settings = strategies.get("margin"), context().settings
    again_N = strategy.rescore(part, class_terms=None, settings=settings, seed=0)
    assert again_N is not None
    assert again_N.tobytes() == part.score_N.tobytes()
    bare = Candidates(part.sample_ids, part.score_N)
    assert strategy.rescore(bare, class_terms=None, settings=settings, seed=0) is None


def test_with_a_single_class_every_sample_is_certain_and_the_budget_still_exact() -> None:
    selection, (part,) = select(shard([1.0], [1.0], [1.0]), 2)
    assert part.score_N.tolist() == [-1, -1, -1]
    assert len(set(selection.sample_ids)) == 2


def test_an_empty_shard_has_no_scores() -> None:
    empty = Shard(np.zeros(0, dtype=object), np.zeros((0, 3), dtype=np.float32))
    selection, (part,) = select(empty, 2)
    assert (selection.sample_ids, len(part)) == ([], 0)
