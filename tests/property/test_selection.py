from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vabal.strategies import Candidates, pick
from vabal.strategies.noise import gumbel_noise, uniform_noise
from vabal.strategies.quotas import allot

RULES = ("topk", "gumbel", "quota")
SCORES = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0])  # ties too
CLASS_TERM = st.floats(1e-9, 1.0)


@st.composite
def pools(draw: st.DrawFn) -> Candidates:
    ids = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True))
    ids = [sample_id.replace("\0", "0") + f"-{row}" for row, sample_id in enumerate(ids)]
    rows = len(ids)
    scores = draw(st.lists(SCORES, min_size=rows, max_size=rows))
    classes = np.array(draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows)), dtype=np.int32)
    prior, precision = (np.array(draw(st.lists(CLASS_TERM, min_size=4, max_size=4))) for _ in range(2))
    return Candidates(
        np.array(ids, dtype=object),
        np.array(scores),
        predicted_class_N=classes,
        vae_class_N=classes,
        prior_N=prior[classes],
        precision_N=precision[classes],
    )


def ids_of(picks: Candidates) -> list[str]:
    return list(picks.sample_ids)


@given(pools(), st.integers(1, 60), st.sampled_from(RULES), st.floats(0.01, 10), st.integers(0, 2**31 - 1))
def test_picks_are_distinct_available_and_as_many_as_asked_for(
    pool: Candidates, budget: int, rule: Any, beta: float, seed: int
) -> None:
    picked = ids_of(pick(pool, budget, rule, beta, seed))
    assert len(set(picked)) == len(picked) == min(budget, len(pool))
    assert set(picked) <= set(pool.sample_ids)


@given(pools(), st.integers(1, 20), st.sampled_from(RULES), st.integers(0, 99), st.data())
def test_picks_do_not_depend_on_the_pool_s_order_or_its_shards(
    pool: Candidates, budget: int, rule: Any, seed: int, data: st.DataObject
) -> None:
    order = np.array(data.draw(st.permutations(range(len(pool)))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(pool)), max_size=5)))
    shards = [pool.take(rows) for rows in np.split(order, cuts)]
    assert ids_of(pick(pool, budget, rule, 0.5, seed)) == ids_of(pick(shards, budget, rule, 0.5, seed))


@given(pools(), st.integers(1, 20), st.sampled_from(RULES), st.integers(0, 99))
def test_the_same_seed_picks_the_same(pool: Candidates, budget: int, rule: Any, seed: int) -> None:
    assert ids_of(pick(pool, budget, rule, 1.0, seed)) == ids_of(pick(pool, budget, rule, 1.0, seed))


@given(pools(), st.integers(1, 40))
def test_no_candidate_left_out_by_top_k_scores_above_one_that_is_picked(pool: Candidates, budget: int) -> None:
    picks = pick(pool, budget, "topk")
    left_out = set(pool.sample_ids) - set(ids_of(picks))
    best_left = max(
        (score for i, score in zip(pool.sample_ids, pool.score_N, strict=True) if i in left_out), default=None
    )
    assert picks.score_N.tolist() == sorted(picks.score_N, reverse=True)
    assert best_left is None or best_left <= picks.score_N.min()


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.floats(1e-12, 1e3), st.integers(0, 60)), min_size=1, max_size=8),
)
def test_quotas_sum_to_the_budget_and_never_exceed_a_class(budget: int, classes: list[tuple[float, int]]) -> None:
    weights = {number: weight for number, (weight, _) in enumerate(classes)}
    available = {number: count for number, (_, count) in enumerate(classes)}
    given_out = allot(budget, weights, available)
    assert sum(given_out.values()) == min(budget, sum(available.values()))
    assert all(0 <= given_out[number] <= available[number] for number in weights)


@given(pools(), st.integers(1, 40))
def test_quotas_take_the_best_of_each_class(pool: Candidates, budget: int) -> None:
    picks = pick(pool, budget, "quota")
    assert picks.vae_class_N is not None
    assert pool.vae_class_N is not None
    for label, count in Counter(picks.vae_class_N.tolist()).items():
        of_class = np.sort(pool.score_N[pool.vae_class_N == label])[::-1]
        assert sorted(picks.score_N[picks.vae_class_N == label], reverse=True) == of_class[:count].tolist()


def test_gumbel_picks_with_probabilities_proportional_to_the_exponentiated_score() -> None:
    wanted = np.array([0.5, 0.3, 0.15, 0.05])
    ids = np.array(["a", "b", "c", "d"], dtype=object)
    seeds = 4000
    firsts = Counter(
        ids_of(pick(Candidates(ids, np.log(wanted) / 2), 1, "gumbel", 2.0, seed))[0] for seed in range(seeds)
    )
    for sample_id, probability in zip(ids, wanted, strict=True):
        deviation = (probability * (1 - probability) / seeds) ** 0.5
        assert firsts[sample_id] / seeds == pytest.approx(probability, abs=4 * deviation)


def test_gumbel_with_a_large_beta_picks_the_best() -> None:
    scores = np.random.default_rng(0).normal(size=500)
    pool = Candidates(np.array([f"{row}" for row in range(500)]), scores)
    assert ids_of(pick(pool, 20, "gumbel", 1e9)) == ids_of(pick(pool, 20, "topk"))


def test_noise_is_uniform_over_ids_and_seeds() -> None:
    noise = uniform_noise([f"image-{row}.png" for row in range(20_000)], 5)
    counts = np.histogram(noise, bins=20, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 45  # chi-square, 19 degrees of freedom: one in a thousand
    assert abs(np.corrcoef(noise, uniform_noise([f"image-{row}.png" for row in range(20_000)], 6))[0, 1]) < 0.03
    assert np.isfinite(gumbel_noise(["a", "b"], 0)).all()
