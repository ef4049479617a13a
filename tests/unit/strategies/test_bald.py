import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.small_shards import context
from vabal import strategies
from vabal.errors import UserError
from vabal.strategies import Needs, Shard
from vabal.strategies.bald import BaldStrategy, mutual_information
from vabal.strategies.power_bald import PowerBaldStrategy


def entropy(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def shard_of(posteriors_T_N_C: Any, ids: Any = None) -> Shard:
    """A shard whose committee gave these posteriors; the classifier's logits are the first's."""
    posteriors = np.asarray(posteriors_T_N_C, dtype=np.float64)
    entropies_T_N = np.array([[entropy(*row) for row in answer] for answer in posteriors])
    return Shard(
        np.array([f"s{row}" for row in range(posteriors.shape[1])] if ids is None else ids, dtype=object),
        logits_N_C=np.log(posteriors[0] + 1e-30),
        predictive_N_C=posteriors.mean(axis=0),
        expected_entropy_N=entropies_T_N.mean(axis=0),
    )


def random_shard(samples: int = 60, seed: int = 0) -> Shard:
    return shard_of(np.random.default_rng(seed).dirichlet([0.5] * 3, size=(5, samples)))


def test_the_information_is_the_entropy_of_the_mean_less_the_mean_of_the_entropies() -> None:
    shard = shard_of([[[1, 0], [0.5, 0.5], [0.8, 0.2]], [[0, 1], [0.5, 0.5], [0.4, 0.6]]])
    expected = [
        math.log(2),  # two sure answers that contradict each other
        0.0,  # two that agree that nothing is known
        entropy(0.6, 0.4) - (entropy(0.8, 0.2) + entropy(0.4, 0.6)) / 2,
    ]
    assert mutual_information(shard).tolist() == pytest.approx(expected)
    assert expected[2] == pytest.approx(0.0863, abs=1e-4)


def test_what_rounding_leaves_below_zero_is_zero() -> None:
    shard = replace(shard_of([[[0.3, 0.7]]]), expected_entropy_N=np.array([entropy(0.3, 0.7) + 1e-15]))
    assert mutual_information(shard).tolist() == [0.0]


def test_a_shard_without_a_committee_is_refused() -> None:
    with pytest.raises(ValueError, match="without a committee"):
        BaldStrategy().score(replace(random_shard(), expected_entropy_N=None), context())


@pytest.mark.parametrize("name", ["bald", "power_bald"])
def test_both_ask_for_a_hundred_passes_with_the_papers_dropout(name: str) -> None:
    assert strategies.get(name).needs == Needs(dropout=0.25, passes=100, posteriors=True)


def test_bald_picks_the_most_information_first_and_names_what_the_classifier_predicts() -> None:
    shard = random_shard()
    selection = BaldStrategy().select(context(shard), 5)
    best = np.argsort(-mutual_information(shard))[:5]
    assert selection.sample_ids == [f"s{row}" for row in best]
    assert selection.rule == "topk"
    assert shard.logits_N_C is not None
    assert selection.picks.predicted_class_N is not None
    assert selection.picks.predicted_class_N.tolist() == shard.logits_N_C[best].argmax(axis=1).tolist()


def test_power_bald_scores_the_logarithm_and_samples_at_a_beta_of_one_whatever_is_set() -> None:
    shard = random_shard()
    written: list[strategies.Candidates] = []
    given = replace(context(shard, seed=0, selection={"beta": 7.0}), write=written.append)
    selection = PowerBaldStrategy().select(given, 5)
    np.testing.assert_allclose(written[0].score_N, np.log(mutual_information(shard)))
    assert (selection.rule, selection.beta) == ("gumbel", 1.0)
    assert selection.sample_ids == [str(name) for name in strategies.pick(written, 5, "gumbel", 1.0, 0).sample_ids]
    assert BaldStrategy().select(given, 5).beta == 7.0


def test_power_bald_draws_in_proportion_to_the_information() -> None:
    information = np.array([0.6, 0.3, 0.1])
    shard = Shard(
        np.array(["a", "b", "c"], dtype=object),
        logits_N_C=np.zeros((3, 2)),
        predictive_N_C=np.full((3, 2), 0.5),
        expected_entropy_N=math.log(2) - information,
    )
    first = [PowerBaldStrategy().select(context(shard, seed=seed), 1).sample_ids[0] for seed in range(2000)]
    assert [first.count(name) / 2000 for name in "abc"] == pytest.approx(information, abs=0.04)


def test_a_sample_without_information_has_a_finite_score_and_is_drawn_last() -> None:
    shard = shard_of([[[1, 0], [0.9, 0.1]], [[1, 0], [0.2, 0.8]]])
    for seed in range(20):
        assert PowerBaldStrategy().select(context(shard, seed=seed), 2).sample_ids == ["s1", "s0"]


@pytest.mark.parametrize("strategy", [BaldStrategy(), PowerBaldStrategy()])
def test_the_picks_do_not_depend_on_the_pools_order_or_shards(strategy: Any) -> None:
    posteriors = np.random.default_rng(1).dirichlet([0.5] * 3, size=(5, 40))
    ids = np.array([f"x{row}" for row in range(40)], dtype=object)
    order = np.random.default_rng(2).permutation(40)
    parts = [shard_of(posteriors[:, rows], ids[rows]) for rows in (order[:7], order[7:7], order[7:])]
    whole = strategy.select(context(shard_of(posteriors, ids)), 9)
    assert strategy.select(context(*parts), 9).sample_ids == whole.sample_ids
    assert len(set(whole.sample_ids)) == 9


def test_information_that_is_not_finite_names_the_sample() -> None:
    shard = random_shard(3)
    assert shard.expected_entropy_N is not None
    entropies = shard.expected_entropy_N.copy()
    entropies[1] = np.nan
    for strategy in (BaldStrategy(), PowerBaldStrategy()):
        with pytest.raises(UserError, match="not finite for s1"):
            strategy.select(context(replace(shard, expected_entropy_N=entropies)), 2)
