"""The batch rule `spread`, by itself and as the default strategy's batch."""

import math
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import small_shards
from vabal import strategies
from vabal.errors import UserError
from vabal.probabilities import ClassTerms
from vabal.settings import params
from vabal.strategies import Candidates, Context, Labeled, Picker, Shard, pick, rule_named
from vabal.strategies.spread import Rooms, departures, spread, unit

spreads = import_module("vabal.strategies.spread")


def test_picks_by_hand() -> None:
    """Unit vectors at 0, 10, 90 and 180 degrees; squared distances are 2 - 2 cos."""
    angles = np.radians([0, 10, 90, 180])
    features = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    score = np.array([1.0, 0.9, 0.0, -1.5])
    # then: 0.9 + log(0.030) = -2.6, 0 + log(2) = 0.69, -1.5 + log(4) = -0.11
    # then: -2.6 as before (nearer to 0 than to 90 degrees), -1.5 + log(2) = -0.81
    assert spread(score, features, 4).tolist() == [0, 2, 3, 1]
    assert spread(score, features, 2, beta=5.0).tolist() == [0, 1]  # 4.5 + log(0.030) = 0.99 beats 0.69


def reference(score_N: NDArray[Any], features_N_D: NDArray[Any], budget: int, beta: float) -> list[int]:
    """Float64, with a loop over candidates and picks."""
    unit = [row / math.sqrt(sum(value**2 for value in row)) for row in features_N_D.astype(np.float64)]
    picked: list[int] = []
    for _ in range(budget):
        best, best_value = -1, -math.inf
        for row, score in enumerate(score_N):
            if row in picked:
                continue
            nearest = min([4.0, *(float(((unit[row] - unit[other]) ** 2).sum()) for other in picked)])
            value = beta * score + math.log(max(nearest, 1e-9))
            if value > best_value:
                best, best_value = row, value
        picked.append(best)
    return picked


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
def test_picks_are_those_of_the_literal_search(beta: float) -> None:
    numbers = np.random.default_rng(3)
    score_N, features_N_D = numbers.normal(size=60), numbers.normal(size=(60, 5)).astype(np.float32)
    assert spread(score_N, features_N_D, 25, beta).tolist() == reference(score_N, features_N_D, 25, beta)


def test_a_copy_of_a_pick_comes_last_however_high_its_score() -> None:
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert spread(np.array([2.0, 1.9, 0.1]), features, 3).tolist() == [0, 2, 1]


def test_samples_without_any_feature_and_too_large_a_budget() -> None:
    assert sorted(spread(np.zeros(3), np.zeros((3, 4)), 3).tolist()) == [0, 1, 2]
    with pytest.raises(ValueError, match="4 asked for of 3 candidates"):
        spread(np.zeros(3), np.zeros((3, 4)), 4)


# -- as the default's batch ---------------------------------------------------------------------------------------

TERMS = ClassTerms(torch.tensor([0.9, 0.1]).double().log(), torch.tensor([0.9, 0.4]).double().log())


@dataclass(frozen=True)
class Settings:
    probabilities: Any
    selection: Any


def settings(**probabilities: Any) -> Settings:
    raw = {"probabilities": {"likelihood_reduction": "sum", "likelihood_weight": 0.0, "members": 1, **probabilities}}
    chosen = params.parse({**raw, "selection": {"batch": "spread"}})
    return Settings(chosen.probabilities, chosen.selection)


def pool(posteriors: NDArray[Any], features: NDArray[Any]) -> Shard:
    count = len(posteriors)
    return Shard(
        np.array([f"s{row}" for row in range(count)], dtype=object),
        logits_N_C=np.log(posteriors),
        features_N_D=features,
        log_likelihood_N_C=np.zeros((count, 2)),
        vae_class_N=np.zeros(count, dtype=np.int64),
    )


def selected(
    shard: Shard, chosen: Settings, budget: int, terms: ClassTerms = TERMS
) -> tuple[list[str], list[Candidates]]:
    written: list[Candidates] = []
    context = Context(lambda: [shard], chosen, seed=1, class_terms=terms, write=written.append)
    return strategies.get("vabal").select(context, budget).sample_ids, written


def test_lengths_are_one_however_large_or_small_the_numbers_are_and_ordinary_ones_keep_every_digit() -> None:
    ordinary = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    expected = ordinary / np.linalg.norm(ordinary, axis=1, keepdims=True)
    assert np.array_equal(unit(ordinary), expected)
    for factor in (2.0**-100, 2.0**100):
        assert np.array_equal(unit(ordinary * np.float32(factor)), expected)
    assert np.array_equal(unit(np.zeros((2, 3))), np.zeros((2, 3)))
    assert unit(np.zeros((2, 0))).shape == (2, 0)


def test_of_equally_doubtful_samples_that_of_the_rare_and_hard_class_comes_first() -> None:
    posteriors = np.array([[0.7, 0.3], [0.3, 0.7]])
    features = np.eye(2)
    with_terms = settings(use_prior=True, use_precision=True)
    assert selected(pool(posteriors, features), with_terms, 2)[0] == ["s1", "s0"]
    even = ClassTerms(torch.tensor([0.1, 0.9]).double().log(), torch.tensor([0.9, 0.9]).double().log())
    assert selected(pool(posteriors, features), with_terms, 2, even)[0] == ["s0", "s1"]
    # precision alone decides as well
    hard = ClassTerms(torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.3, 0.9]).double().log())
    assert selected(pool(posteriors, features), with_terms, 2, hard)[0] == ["s0", "s1"]


def test_the_table_s_scores_and_the_shortlist_give_the_same_picks() -> None:
    numbers = np.random.default_rng(0)
    shard = pool(numbers.dirichlet([1, 1], size=40), numbers.normal(size=(40, 3)).astype(np.float32))
    written: list[Candidates] = []
    context = Context(lambda: [shard], settings(), seed=1, class_terms=TERMS, write=written.append)
    selection = strategies.get("vabal").select(context, 7)
    assert (selection.rule, selection.beta) == ("spread", 1.0)
    (table,) = written
    assert table.prior_N is not None
    assert set(np.round(table.prior_N, 6)) == {0.9, 0.1}
    again = strategies.get("vabal").rescore(table, class_terms=selection.class_terms, settings=settings(), seed=1)
    assert again is not None
    assert again.tolist() == table.score_N.tolist()
    listed = selection.shortlist
    assert listed is not None
    best = pick(table, spreads.SHORTLIST * 7, seed=1)
    assert list(listed.sample_ids) == list(best.sample_ids)
    rows = spread(best.score_N, listed.features_N_D, 7)
    assert [str(sample_id) for sample_id in best.sample_ids[rows]] == selection.sample_ids
    assert selection.picks.score_N.tolist() == best.score_N[rows].tolist()


def test_departures_from_the_search_are_told_by_their_place() -> None:
    numbers = np.random.default_rng(5)
    score_N, features_N_D = numbers.normal(size=60), numbers.normal(size=(60, 5)).astype(np.float32)
    picked = spread(score_N, features_N_D, 20)
    assert departures(score_N, features_N_D, picked) == []
    assert departures(score_N, features_N_D * 2, picked) == []  # angles alone count
    exchanged = picked.copy()
    exchanged[[4, 11]] = exchanged[[11, 4]]
    assert departures(score_N, features_N_D, exchanged) == list(range(4, 11))  # until the fifth comes, in the end
    worse = np.append(picked[:-1], np.setdiff1d(np.arange(60), picked)[0])
    assert departures(score_N, features_N_D, worse) == [19]
    assert departures(score_N, features_N_D, np.append(picked[:-1], picked[0])) == [19]  # the same one twice
    assert departures(score_N, features_N_D, picked, beta=3.0) != []


def test_rounding_alone_is_no_departure() -> None:
    """Two candidates that differ by less than float32 sums do."""
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1e-6, 1.0]], dtype=np.float32)
    score = np.array([1.0, 0.0, 0.0])
    assert departures(score, features, np.array([0, 1])) == departures(score, features, np.array([0, 2])) == []
    assert departures(np.array([1.0, 0.0, -0.001]), features, np.array([0, 2])) == [1]


def test_only_a_shortlist_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreads, "SHORTLIST", 2)
    posteriors = np.array([[0.5, 0.5], [0.51, 0.49], [0.99, 0.01]])
    features = np.array([[1.0, 0.0], [1.0, 0.001], [-1.0, 0.0]])
    assert selected(pool(posteriors, features), settings(), 1)[0] == ["s0"]
    monkeypatch.setattr(spreads, "SHORTLIST", 1)
    picked, written = selected(pool(posteriors, features), settings(), 2)
    assert picked == ["s0", "s1"]  # the far one is not on the list of two
    assert len(written[0]) == 3


@pytest.mark.parametrize("name", ["balanced:vabal", "stochastic:vabal"])
def test_a_wrapper_hands_on_the_shortlist_that_its_ranking_was_searched_in(name: str) -> None:
    numbers = np.random.default_rng(0)
    shard = pool(numbers.dirichlet([1, 1], size=40), numbers.normal(size=(40, 3)).astype(np.float32))
    known = Labeled(np.zeros((2, 3)), np.array([0, 1]))
    context = Context(lambda: [shard], settings(), seed=1, class_terms=TERMS, labeled=known)
    selection = strategies.get(name).select(context, 5)
    assert len(set(selection.sample_ids)) == 5
    assert selection.rule != "spread"
    assert selection.shortlist is not None


def test_features_that_are_no_numbers_name_the_samples() -> None:
    features = np.eye(2)
    features[1, 0] = np.nan
    with pytest.raises(UserError, match="features_N_D is not finite for s1"):
        selected(pool(np.array([[0.7, 0.3], [0.3, 0.7]]), features), settings(), 2)


def test_a_night_without_candidates_has_no_picks() -> None:
    context = Context(lambda: [], settings(), seed=0, class_terms=TERMS)
    assert strategies.get("vabal").select(context, 3).sample_ids == []


# -- within quotas ----------------------------------------------------------------------------------------------


def slow_quota_spread(score: Any, features: Any, group: Any, room: dict[int, int], budget: int) -> list[int]:
    """One pick after the other, each by a look at every candidate whose group has room."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    picked: list[int] = []
    for _ in range(budget):
        best, best_value = -1, -np.inf
        for row in range(len(score)):
            if row in picked or sum(group[other] == group[row] for other in picked) >= room[int(group[row])]:
                continue
            nearest = min((float(((unit[row] - unit[other]) ** 2).sum()) for other in picked), default=4.0)
            value = float(score[row]) + np.log(max(nearest, 1e-9))
            if value > best_value:
                best, best_value = row, value
        picked.append(best)
    return picked


@pytest.mark.parametrize("seed", range(8))
def test_a_spread_batch_within_quotas_agrees_with_a_slow_search(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    score, features = numbers.normal(size=25), numbers.normal(size=(25, 3)).astype(np.float32)
    group = numbers.integers(0, 3, 25)
    room = {0: 1, 1: 4, 2: 3}
    rooms = Rooms(group, room)
    picked = spread(score, features, 8, 1.0, rooms)
    assert picked.tolist() == slow_quota_spread(score, features, group, room, 8)
    assert np.bincount(group[picked], minlength=3).tolist() == [1, 4, 3]
    assert departures(score, features, picked, 1.0, rooms) == []
    assert departures(score, features, picked) != [] or picked.tolist() == spread(score, features, 8).tolist()


def test_quotas_and_search_together_give_the_rare_class_its_share() -> None:
    # prior * precision are .63, .1 and .04: shares of 14 proportional to 1.6, 10 and 25
    shard = small_shards.shard(200)
    found = small_shards.context(shard, selection={"batch": "quota_spread"})
    selection = strategies.get("vabal").select(found, 14)
    assert (selection.rule, len(set(selection.sample_ids))) == ("quota_spread", 14)
    assert selection.picks.own_class_N is not None
    assert np.bincount(selection.picks.own_class_N, minlength=3).tolist() == [1, 4, 9]
    rule, listed = rule_named("quota_spread"), selection.shortlist
    assert listed is not None
    with_rows = Picker.among(rule, 14, 1.0, 3, listed.per_pick)
    written: list[strategies.Candidates] = []
    strategies.get("vabal").select(replace(found, write=written.append), 14)
    for part in written:
        with_rows.add(part)
    best = with_rows.picks()
    assert best.sample_ids.tolist() == listed.sample_ids.tolist()
    assert rule.follow(best, listed.features_N_D, selection.sample_ids, 14, 1.0) == selection.sample_ids
    others = selection.sample_ids[::-1]
    assert rule.follow(best, listed.features_N_D, others, 14, 1.0) == selection.sample_ids
