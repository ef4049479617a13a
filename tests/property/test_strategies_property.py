"""What every strategy must keep to, those around others and plug-ins included, whatever the pool."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.small_shards import Settings
from tests.support.small_strategies import written
from vabal import strategies
from vabal.probabilities import ClassTerms
from vabal.settings.models import ProbabilitySettings
from vabal.strategies import Candidates, Context, Labeled, Selection, Shard, pick, vaal

CLASSES, FEATURE_DIMS = 5, (2, 2, 2, 6)
NAMES = [*strategies.names(), "balanced:entropy", "balanced:coreset", "stochastic:margin", "stochastic:badge"]
EXAMPLES = 8
FEW = {"vaal": 3}  # which trains two networks each time
TERMS = ClassTerms(
    torch.tensor([0.4, 0.3, 0.2, 0.06, 0.04]).double().log(), torch.tensor([0.9, 0.8, 0.5, 0.7, 0.6]).double().log()
)


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaal, "FEWEST_STEPS", 5)
    monkeypatch.setattr(vaal, "STEPS", 5)


def samples(numbers: np.random.Generator, count: int, prefix: str, alike: bool) -> Shard:
    """With every column that a strategy may ask for; `alike` ones have equal features, images and posteriors."""
    posteriors_N_C = numbers.dirichlet(np.ones(CLASSES), count)
    made = Shard(
        sample_ids=np.array([f"{prefix}{row}" for row in range(count)], dtype=object),
        logits_N_C=np.log(posteriors_N_C).astype(np.float32),
        features_N_D=np.maximum(numbers.standard_normal((count, sum(FEATURE_DIMS))), 0).astype(np.float32),
        log_likelihood_N_C=numbers.normal(-5, 2, (count, CLASSES)).astype(np.float32),
        vae_class_N=numbers.integers(0, CLASSES, count).astype(np.int32),
        predictive_N_C=posteriors_N_C.astype(np.float32),
        expected_entropy_N=(numbers.uniform(0, 1, count) * entropy(posteriors_N_C)).astype(np.float32),
        votes_N_C=numbers.multinomial(5, posteriors_N_C).astype(np.int32),
        predicted_loss_N=numbers.normal(size=count).astype(np.float32),
        images_N_H_W_K=numbers.integers(0, 256, (count, 8, 8, 1), dtype=np.uint8),
    )
    return take(made, np.zeros(count, dtype=np.int64), made.sample_ids) if alike else made


def entropy(posteriors_N_C: Any) -> Any:
    return -(posteriors_N_C * np.log(posteriors_N_C)).sum(axis=1)


def take(shard: Shard, rows: Any, sample_ids: Any = None) -> Shard:
    filled = [field.name for field in fields(Shard) if getattr(shard, field.name) is not None]
    columns = {name: getattr(shard, name)[rows] for name in filled}
    return Shard(**columns if sample_ids is None else columns | {"sample_ids": sample_ids})


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Shard, Context, int]:
    """A pool, the context without its shards, and a budget that may be larger than the pool."""
    numbers = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pool = samples(numbers, draw(st.integers(1, 30)), "s", alike=draw(st.booleans()))
    known = samples(numbers, draw(st.integers(1, 12)), "known", alike=False)
    labels_L = numbers.integers(0, draw(st.sampled_from([1, CLASSES])), len(known))  # of one class alone, now and then
    assert known.features_N_D is not None
    context = Context(
        shards=lambda: iter(()),
        settings=Settings(ProbabilitySettings(likelihood_reduction="sum")),
        seed=draw(st.integers(0, 2**31 - 1)),
        class_terms=TERMS,
        labeled=Labeled(known.features_N_D, labels_L, known.sample_ids, known.logits_N_C, known.images_N_H_W_K),
        feature_dims=FEATURE_DIMS,
    )
    return pool, context, draw(st.integers(1, 35))


def select(name: str, shards: list[Shard], context: Context, budget: int) -> tuple[Selection, list[Candidates]]:
    return written(strategies.get(name), replace(context, shards=lambda: iter(shards)), budget)


def cut(shard: Shard, rows: Any, cuts: list[int]) -> list[Shard]:
    return [take(shard, part) for part in np.split(np.asarray(rows, dtype=np.int64), cuts)]


@pytest.mark.parametrize("name", NAMES)
def test_picks_are_distinct_available_as_many_as_asked_for_and_derived_from_what_is_written(name: str) -> None:
    @given(rounds(), st.data())
    @settings(max_examples=FEW.get(name, EXAMPLES), database=None)
    def holds(a_round: tuple[Shard, Context, int], data: st.DataObject) -> None:
        pool, context, budget = a_round
        cuts = sorted(data.draw(st.lists(st.integers(0, len(pool)), max_size=3)))
        shards = cut(pool, np.arange(len(pool)), cuts)
        selection, parts = select(name, shards, context, budget)
        assert len(set(selection.sample_ids)) == len(selection.sample_ids) == min(budget, len(pool))
        assert set(selection.sample_ids) <= set(pool.sample_ids)
        assert (selection.strategy, selection.candidates) == (name, len(pool))
        assert bool(selection.notes) == (budget > len(pool))
        assert [list(part.sample_ids) for part in parts] == [list(shard.sample_ids) for shard in shards]
        again = pick(parts, selection.budget, selection.rule, selection.beta, selection.seed)
        assert list(again.sample_ids) == selection.sample_ids
        for part in parts:
            score_N = strategies.get(name).rescore(
                part, class_terms=selection.class_terms, settings=context.settings, seed=context.seed
            )
            assert score_N is None or np.asarray(score_N).tobytes() == part.score_N.tobytes()

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_picks_the_same_in_whatever_order_and_shards_the_pool_comes(name: str) -> None:
    @given(rounds(), st.data())
    @settings(max_examples=FEW.get(name, EXAMPLES), database=None)
    def holds(a_round: tuple[Shard, Context, int], data: st.DataObject) -> None:
        pool, context, budget = a_round
        first, there = select(name, [pool], context, budget)
        again, _ = select(name, [pool], context, budget)
        assert again.sample_ids == first.sample_ids
        rows = data.draw(st.permutations(range(len(pool))))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(pool)), max_size=3)))
        other, parts = select(name, cut(pool, rows, cuts), context, budget)
        assert other.sample_ids == first.sample_ids
        assert scores(parts) == pytest.approx(scores(there), rel=1e-6, abs=1e-9)

    holds()


def scores(parts: list[Candidates]) -> dict[str, float]:
    return {
        str(sample_id): float(score)
        for part in parts
        for sample_id, score in zip(part.sample_ids, part.score_N, strict=True)
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_night_without_candidates_picks_nothing(name: str) -> None:
    numbers = np.random.default_rng(0)
    known, nothing = (samples(numbers, count, "s", alike=False) for count in (6, 0))
    assert known.features_N_D is not None
    labeled = Labeled(known.features_N_D, np.arange(6) % 5, known.sample_ids, known.logits_N_C, known.images_N_H_W_K)
    context = Context(lambda: iter(()), Settings(), 0, TERMS, labeled, feature_dims=FEATURE_DIMS)
    for shards in ([], [nothing]):
        selection, parts = select(name, shards, context, 3)
        assert (selection.sample_ids, sum(len(part) for part in parts)) == ([], 0)
