from collections import Counter
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support import small_shards
from tests.support.small_strategies import Backwards, ByNumber, written
from vabal import strategies
from vabal.strategies import Candidates, Context, Labeled, Needs, Shard
from vabal.strategies.stochastic import Stochastic


class SeedSeen(ByNumber):
    """Writes down the seed that it is given."""

    seen: ClassVar[list[int]] = []

    def select(self, context: Context, budget: int) -> strategies.Selection:
        self.seen.append(context.seed)
        return super().select(context, budget)


def context(samples: int, parts: int = 1, seed: int = 3) -> Context:
    """Candidates s0, s1, ...: odd ones are of class 1."""
    ids = small_shards.names("s", samples)
    logits = np.eye(2, dtype=np.float32)[np.arange(samples) % 2] * np.linspace(1, 4, samples, dtype=np.float32)[:, None]
    shards = small_shards.in_parts(Shard(ids, logits_N_C=logits, features_N_D=logits), parts)
    labeled = Labeled(np.zeros((3, 2), dtype=np.float32), np.array([0, 0, 1]))
    return small_shards.context(*shards, seed=seed, labeled=labeled)


def scores(parts: list[Candidates]) -> NDArray[np.float64]:
    return np.concatenate([part.score_N for part in parts])


def test_the_score_is_minus_the_logarithm_of_the_inner_rank() -> None:
    selection, parts = written(Stochastic(ByNumber()), context(4, parts=2), 2)
    assert np.exp(-scores(parts)) == pytest.approx([4, 3, 2, 1])
    assert [len(part) for part in parts] == [2, 2]
    assert np.concatenate([part.predicted_class_N for part in parts]).tolist() == [0, 1, 0, 1]
    assert (selection.strategy, selection.rule, selection.beta) == ("stochastic:by-number", "gumbel", 1.0)


def test_a_sequential_strategys_own_order_is_the_ranking() -> None:
    # backwards, budget 2: picks s4, s3, then ranks s0, s1, s2
    _, parts = written(Stochastic(Backwards()), context(5), 2)
    assert np.exp(-scores(parts)) == pytest.approx([3, 4, 5, 2, 1])


def test_samples_are_drawn_with_probabilities_inverse_to_their_ranks() -> None:
    draws = 1500
    counts = Counter(Stochastic(ByNumber()).select(context(4, seed=seed), 1).sample_ids[0] for seed in range(draws))
    expected = np.array([1 / 4, 1 / 3, 1 / 2, 1]) / (1 / 4 + 1 / 3 + 1 / 2 + 1)
    found = np.array([counts[f"s{row}"] for row in range(4)]) / draws
    assert found == pytest.approx(expected, abs=4 * (0.25 / draws) ** 0.5)


def test_equal_scores_are_ranked_by_hash_and_not_by_the_order_of_the_pool() -> None:
    found = context(12)
    whole = next(iter(found.shards()))
    flat = replace(whole, logits_N_C=np.zeros((12, 2), dtype=np.float32))
    order = np.random.default_rng(0).permutation(12)
    turned = Shard(flat.sample_ids[order], np.zeros((12, 2), dtype=np.float32))

    def table(shard: Shard) -> dict[str, float]:
        _, parts = written(strategies.get("stochastic:entropy"), replace(found, shards=lambda: iter([shard])), 3)
        return dict(zip(parts[0].sample_ids, parts[0].score_N, strict=True))

    tables = [table(flat), table(turned)]
    assert tables[0] == tables[1]
    assert len(set(tables[0].values())) == 12
    assert list(tables[0].values()) != sorted(tables[0].values(), reverse=True)


@pytest.mark.parametrize(
    "inner", ["margin", "random", "entropy", "coreset", "balanced:margin", "stochastic:margin", "balanced:coreset"]
)
def test_every_strategy_can_be_wrapped_and_its_picks_derived_again(inner: str) -> None:
    strategy = strategies.get(f"stochastic:{inner}")
    selection, parts = written(strategy, context(20, parts=3), 6)
    assert strategy.name == f"stochastic:{inner}"
    assert len(set(selection.sample_ids)) == 6
    again = strategies.pick(parts, 6, selection.rule, selection.beta, selection.seed)
    assert list(again.sample_ids) == selection.sample_ids
    assert sorted(np.exp(-scores(parts)).round().astype(int)) == list(range(1, 21))
    other = strategy.select(context(20, seed=4), 6)
    assert other.sample_ids != selection.sample_ids


def test_wrappers_nest_the_outer_one_ranks_what_the_inner_one_chose() -> None:
    found = context(20)
    _, parts = written(strategies.get("stochastic:balanced:margin"), found, 4)
    _, inner = written(strategies.get("balanced:margin"), found, 4)
    best = np.argsort(-scores(parts))
    assert list(best) == list(np.argsort(-scores(inner)))
    # one labelled sample of class 1 and two of class 0: odd ones come first, then in turn
    assert [int(row) % 2 for row in best[:4]] == [1, 0, 1, 0]


def test_the_inner_strategy_runs_on_noise_of_its_own() -> None:
    SeedSeen.seen.clear()
    for seed in (3, 3, 4):
        Stochastic(SeedSeen()).select(context(5, seed=seed), 2)
    first, again, other = SeedSeen.seen
    assert first == again
    assert first not in (3, other)


def test_a_wrapper_asks_for_what_the_inner_strategy_needs_and_posteriors() -> None:
    wrapper = Stochastic(ByNumber())
    assert wrapper.needs == Needs(features=True, posteriors=True)
    assert isinstance(wrapper, strategies.Strategy)


def test_no_candidates_give_no_picks_and_few_candidates_are_all_picked() -> None:
    nothing = small_shards.context(seed=0)
    assert Stochastic(ByNumber()).select(nothing, 2).sample_ids == []
    assert Stochastic(Backwards()).select(nothing, 2).sample_ids == []
    few = Stochastic(ByNumber()).select(context(3), 5)
    assert sorted(few.sample_ids) == ["s0", "s1", "s2"]
    assert few.notes == ("5 asked for, 3 left to pick from: all of them are picked",)


def test_a_strategy_that_does_not_write_its_candidates_is_refused() -> None:
    class Silent(ByNumber):
        def select(self, context: Context, budget: int) -> strategies.Selection:
            return super().select(replace(context, write=None), budget)

    with pytest.raises(ValueError, match="by-number did not write every candidate once"):
        Stochastic(Silent()).select(context(3), 1)
