"""Strategies around others: one ranking of every candidate by the inner strategy, whatever its rule, scored anew."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.strategies.base import (
    BaseStrategy,
    Context,
    Selection,
    Shard,
    Strategy,
    needs_of,
    no_picks,
    posteriors,
    record_of,
)
from vabal.strategies.batch import Picker
from vabal.strategies.candidates import Candidates
from vabal.strategies.noise import hash_ids
from vabal.strategies.rules import Rule, rule_named

_INNER_SEED = 2  # a purpose of its own, beside those of batch.py


@dataclass(frozen=True)
class Ranked:
    """The inner strategy's selection, and its candidates shard by shard.

    order_N are their rows, counted through the shards, from its first choice to its last. Every part has a predicted
    class: the classifier's, where the inner strategy gives none.
    """

    selection: Selection
    parts: tuple[Candidates, ...]
    order_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.order_N)

    @property
    def predicted_class_N(self) -> NDArray[np.int32]:
        columns = [part.predicted_class_N for part in self.parts if part.predicted_class_N is not None]
        return np.concatenate(columns) if columns else np.zeros(0, dtype=np.int32)

    def rescored(self, score_N: NDArray[np.float64]) -> Iterator[Candidates]:
        """The candidates with these scores instead, shard by shard."""
        start = 0
        for part in self.parts:
            yield replace(part, score_N=score_N[start : start + len(part)])
            start += len(part)


class Wrapper(BaseStrategy):
    """A strategy that scores what another one ranks: it defines `scores`, and the rule that turns them into a batch."""

    kind: ClassVar[str]
    rule: ClassVar[Rule] = "topk"
    beta: ClassVar[float] = 1.0

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.name = f"{self.kind}:{inner.name}"
        self.needs: Needs = replace(inner.needs, posteriors=True)
        record = record_of(inner)
        self.derivable, self.inputs, self.labeled_inputs = record.derivable, record.inputs, record.labeled_inputs

    def batch(self, settings: Any) -> tuple[Rule, float]:  # noqa: ARG002 -- the same under all settings
        return self.rule, self.beta

    def needs_under(self, settings: Any) -> Needs:
        return replace(needs_of(self.inner, settings), posteriors=True)

    def scores(self, inner: Ranked, context: Context, budget: int) -> NDArray[np.float64]:
        """score_N of the candidates, counted through the shards."""
        raise NotImplementedError(f"{type(self).__name__} does not define scores")

    def select(self, context: Context, budget: int) -> Selection:
        """Raises what the inner strategy raises."""
        inner = ranked(self.inner, context, budget)
        picker = Picker(budget, self.rule, self.beta, context.seed)
        for part in inner.rescored(self.scores(inner, context, budget)):
            picker.add(part)
            if context.write is not None:
                context.write(part)
        return replace(
            inner.selection,
            strategy=self.name,
            picks=picker.picks() if inner.parts else no_picks(self.name, budget, context.seed).picks,
            rule=self.rule,
            beta=self.beta,
            seed=context.seed,
        )


def ranked(inner: Strategy, context: Context, budget: int) -> Ranked:
    """Runs the inner strategy, and ranks: its picks in their order, then the rest by what its rule goes by.

    It runs with a seed of its own, derived from the context's, so that noise it may have added does not come back in
    the wrapper's. Memory: its columns for all candidates. Raises ValueError if it did not write all of them.
    """
    parts: list[Candidates] = []
    seed = int(hash_ids(["inner"], context.seed, _INNER_SEED)[0] >> np.uint64(33))
    selection = inner.select(replace(context, seed=seed, write=parts.append), budget)
    if sum(len(part) for part in parts) != selection.candidates:
        raise ValueError(f"strategy {inner.name} did not write every candidate once")
    filled = tuple(_with_class(part, shard) for part, shard in _beside(parts, context, inner.name))
    return Ranked(selection, filled, _order(selection, filled))


def _order(selection: Selection, parts: tuple[Candidates, ...]) -> NDArray[np.int64]:
    if not sum(len(part) for part in parts):
        return np.zeros(0, dtype=np.int64)
    ids_N = np.array([str(sample_id) for part in parts for sample_id in part.sample_ids])
    rule = rule_named(selection.rule)
    key_N = np.concatenate([rule.key(part, selection.beta, selection.seed) for part in parts])
    places = {sample_id: place for place, sample_id in enumerate(selection.sample_ids)}
    place_N = np.fromiter((places.get(str(name), len(places)) for name in ids_N), dtype=np.int64, count=len(ids_N))
    return np.lexsort((ids_N, hash_ids(ids_N, selection.seed), -key_N, place_N))


def _beside(parts: list[Candidates], context: Context, name: str) -> Iterator[tuple[Candidates, Shard]]:
    if not parts:
        return
    for part, shard in zip(parts, context.shards(), strict=True):
        if len(part) != len(shard):
            raise ValueError(f"strategy {name} wrote {len(part)} candidates for a shard of {len(shard)}")
        yield part, shard


def _with_class(part: Candidates, shard: Shard) -> Candidates:
    if part.predicted_class_N is not None:
        return part
    predicted_N: NDArray[Any] = posteriors(shard).argmax(axis=1) if len(shard) else np.zeros(0)
    return replace(part, predicted_class_N=predicted_N.astype(np.int32))
