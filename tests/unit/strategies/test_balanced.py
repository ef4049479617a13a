from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from tests.support import small_shards
from tests.support.small_strategies import Backwards, ByNumber, written
from vabal import strategies
from vabal.strategies import Context, Labeled, Needs, Shard
from vabal.strategies.balanced import Balanced, fill


def context(predicted: list[int], labels: list[int], parts: int = 1, **more: Any) -> Context:
    """Candidates s0, s1, ... with these predicted classes, and labels."""
    ids = small_shards.names("s", len(predicted))
    logits = np.eye(4, dtype=np.float32)[np.asarray(predicted, dtype=int)] * np.linspace(1, 4, len(ids))[:, None]
    shards = small_shards.in_parts(Shard(ids, logits_N_C=logits.astype(np.float32)), parts)
    return small_shards.context(*shards, labeled=small_shards.labeled(labels), **more)


def classes(selection: strategies.Selection) -> list[int]:
    """How many picks each of the classes 0, 1 and 2 has."""
    assert selection.picks.predicted_class_N is not None
    return [int(count) for count in np.bincount(selection.picks.predicted_class_N, minlength=3)]


# -- water filling ----------------------------------------------------------------------------------------------


def test_the_emptiest_class_is_filled_first_as_by_hand() -> None:
    # 5, 1, 0 labels: class 2 comes to 1, then classes 1 and 2 in turn, until both have 4
    assert fill(np.array([5, 1, 0]), np.array([9, 9, 9]), 7) == [2, 1, 2, 1, 2, 1, 2]
    assert fill(np.array([5, 1, 0]), np.array([9, 9, 1]), 4) == [2, 1, 1, 1]
    assert fill(np.array([0, 0]), np.array([1, 0]), 3) == [0]


def every_quota(available: list[int], budget: int) -> Iterator[tuple[int, ...]]:
    yield from (quota for quota in product(*(range(most + 1) for most in available)) if sum(quota) == budget)


@pytest.mark.parametrize("seed", range(25))
def test_no_other_quotas_come_nearer_to_even(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    labeled, available = numbers.integers(0, 7, 3), numbers.integers(0, 6, 3)
    budget = int(numbers.integers(0, available.sum() + 1))
    turns = fill(labeled, available, budget)
    found = labeled + np.bincount(np.array(turns, dtype=int), minlength=3)
    assert len(turns) == budget
    assert (found - labeled <= available).all()
    least = min(((labeled + np.array(quota)) ** 2).sum() for quota in every_quota(list(available), budget))
    assert (found**2).sum() == least


# -- around a strategy ------------------------------------------------------------------------------------------


def test_within_a_class_the_inner_ranking_decides() -> None:
    # labels: two of class 0, one of class 1; class 1 is filled first, with s5, then both in turn, lower class first
    found = context([0, 0, 0, 1, 1, 1], [0, 0, 1])
    selection, _ = written(Balanced(ByNumber()), found, 4)
    assert selection.sample_ids == ["s5", "s2", "s4", "s1"]
    assert selection.picks.score_N.tolist() == [4, 3, 2, 1]
    assert (selection.strategy, selection.rule, selection.budget) == ("balanced:by-number", "topk", 4)


def test_every_candidate_is_written_once_in_the_order_of_the_shards_and_gives_the_picks_again() -> None:
    found = context([0, 1, 2, 0, 1, 2, 0, 0, 0, 0], [0], parts=3)
    selection, parts = written(Balanced(ByNumber()), found, 4)
    assert [len(part) for part in parts] == [len(shard) for shard in found.shards()]
    assert [name for part in parts for name in part.sample_ids] == [f"s{row}" for row in range(10)]
    assert np.concatenate([part.predicted_class_N for part in parts]).tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 0, 0]
    again = strategies.pick(parts, 4, selection.rule, selection.beta, selection.seed)
    assert list(again.sample_ids) == selection.sample_ids == ["s4", "s5", "s9", "s1"]
    rest = np.concatenate([part.score_N for part in parts])[[8, 7, 6, 3, 2, 0]]
    assert rest.tolist() == [-1, -2, -3, -4, -5, -6]


def test_a_sequential_strategys_own_order_is_the_ranking() -> None:
    # backwards, budget 3: picks s5, s4, s3, then ranks s0, s1, s2; class 1 has s0 and s1 only
    selection, _ = written(Balanced(Backwards()), context([1, 1, 0, 0, 0, 0], [0, 0, 0]), 3)
    assert selection.sample_ids == ["s0", "s1", "s5"]


@pytest.mark.parametrize("inner", ["margin", "random", "entropy", "coreset", "stochastic:margin"])
def test_the_quotas_are_the_same_around_every_strategy(inner: str) -> None:
    found = context([0] * 30 + [1] * 5 + [2] * 2, [0] * 6 + [1] * 2)
    shards = [replace(shard, features_N_D=shard.logits_N_C) for shard in found.shards()]
    labeled = Labeled(np.zeros((8, 4), dtype=np.float32), np.array([0] * 6 + [1] * 2))
    complete = replace(found, shards=lambda: iter(shards), labeled=labeled)
    selection, parts = written(strategies.get(f"balanced:{inner}"), complete, 8)
    # 6, 2, 0 labels: both of class 2, four of class 1 until it has 6, then one of class 0, then the fifth of class 1
    assert classes(selection) == [1, 5, 2]
    again = strategies.pick(parts, 8, selection.rule, selection.beta, selection.seed)
    assert list(again.sample_ids) == selection.sample_ids


def test_a_wrapper_asks_for_what_the_inner_strategy_needs_and_posteriors() -> None:
    wrapper = Balanced(ByNumber())
    assert (wrapper.name, wrapper.needs) == ("balanced:by-number", Needs(features=True, posteriors=True))
    assert Balanced(Backwards()).name == "balanced:backwards"
    assert isinstance(wrapper, strategies.Strategy)


def test_a_budget_larger_than_the_pool_takes_all_and_says_so() -> None:
    selection, _ = written(Balanced(ByNumber()), context([0, 1, 1], [0]), 9)
    assert sorted(selection.sample_ids) == ["s0", "s1", "s2"]
    assert selection.notes == ("9 asked for, 3 left to pick from: all of them are picked",)


def test_nothing_labelled_fills_evenly_and_no_candidates_give_no_picks() -> None:
    selection, _ = written(Balanced(ByNumber()), context([0, 0, 0, 1, 2, 2], []), 3)
    assert classes(selection) == [1, 1, 1]
    empty, _ = written(Balanced(ByNumber()), context([], [0, 1]), 3)
    assert empty.sample_ids == []
    nothing = small_shards.context(seed=0, labeled=small_shards.labeled([]))
    for inner in (ByNumber(), Backwards()):
        assert Balanced(inner).select(nothing, 2).sample_ids == []


def test_a_context_without_a_labelled_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="balanced:by-number: the context must carry the labelled pool"):
        Balanced(ByNumber()).select(replace(context([0], [0]), labeled=None), 1)


def test_picks_depend_on_neither_the_order_of_the_pool_nor_its_shards() -> None:
    found = context([0] * 20 + [1] * 9 + [3] * 4, [0, 3])
    whole = next(iter(found.shards()))
    order = np.random.default_rng(1).permutation(len(whole))
    halves = [Shard(whole.sample_ids[rows], whole.logits_N_C[rows]) for rows in np.array_split(order, 4)]  # type: ignore[index]
    for inner in ("random", "entropy", "stochastic:entropy"):
        strategy = strategies.get(f"balanced:{inner}")
        straight = strategy.select(found, 9).sample_ids
        assert strategy.select(replace(found, shards=lambda: iter(halves)), 9).sample_ids == straight
