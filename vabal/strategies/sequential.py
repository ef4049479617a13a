"""Strategies that pick one sample in view of the others."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs, check_finite
from vabal.strategies.base import BaseStrategy, Context, Selection, Shard, no_picks, shortfall, with_prediction
from vabal.strategies.candidates import Candidates
from vabal.strategies.noise import hash_ids
from vabal.strategies.rules import Rule

# -- strategies that pick one sample in view of the others --------------------------------------------------------


@dataclass(frozen=True)
class Gathered:
    """All candidates at once, in an order that depends on their ids and the seed alone; `lengths` are the shards'.

    `place_N` tells where each candidate of the shards' order stands in `pool`.
    """

    pool: Shard
    place_N: NDArray[np.int64]
    lengths: tuple[int, ...]


def gather(context: Context, *columns: str) -> Gathered:
    """The named columns of every candidate, held once: two passes over the shards, the second one fills the arrays.

    Of the features only the last stage's are kept. Memory: N rows of the columns asked for. Raises ValueError for a
    column that the shards do not carry, or an id that comes twice.
    """
    parts = [np.asarray(shard.sample_ids, dtype=object) for shard in context.shards()]
    ids_N = np.concatenate(parts) if parts else np.zeros(0, dtype=object)
    names_N = np.array([str(sample_id) for sample_id in ids_N], dtype=str)
    order_N = np.lexsort((names_N, hash_ids(names_N, context.seed)))
    if len(np.unique(names_N)) != len(names_N):
        raise ValueError("a sample came more than once")
    place_N = np.empty(len(ids_N), dtype=np.int64)
    place_N[order_N] = np.arange(len(ids_N))
    gathered: dict[str, NDArray[Any]] = {}
    start = 0
    for shard in context.shards() if columns else ():
        rows = place_N[start : start + len(shard)]
        for column in columns:
            values = getattr(shard, column)
            if values is None:
                raise ValueError(f"the shards came without {column}: the strategy's needs must declare it")
            if column == "features_N_D":
                values = context.deep(values)
            if column not in gathered:
                gathered[column] = np.empty((len(ids_N), *values.shape[1:]), dtype=values.dtype)
            gathered[column][rows] = values
        start += len(shard)
    return Gathered(Shard(ids_N[order_N], **gathered), place_N, tuple(len(part) for part in parts))


class SequentialStrategy(BaseStrategy):
    """A strategy that picks one sample after another, each in view of those before: it defines `columns` and `order`.

    The score is budget - place for the sample picked at that place (0, 1, ...) and at most 0 for those not picked, so
    that the candidates' table gives the same picks again.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True)
    columns: ClassVar[tuple[str, ...]] = ("features_N_D", "logits_N_C")
    ranks_all: bool = True  # that is, `order` gives a key
    inputs: tuple[str, ...] = ("logits_N_C",)

    def batch(self, settings: Any) -> tuple[Rule, float]:  # noqa: ARG002 -- the same under all settings
        return "topk", 1.0

    def scores_are(self, candidates: int, budget: int) -> NDArray[np.float64]:
        return places(candidates, budget, ranks_all=self.ranks_all)

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[np.integer], NDArray[Any] | None]:
        """Rows of the pool in the order picked (at most `budget`), and a key by which the rest is ranked, or None.

        The highest key comes first. The pool's order depends on ids and seed alone, so `order` may rely on it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define order")

    def select(self, context: Context, budget: int) -> Selection:
        """Gathers, searches, and writes every candidate in the order of the shards.

        Raises UserError naming the samples whose features or logits are not finite.
        """
        gathered = gather(context, *self.columns)
        pool, count = gathered.pool, len(gathered.pool)
        if not count:
            return no_picks(self.name, budget, context.seed)
        self._check_finite(pool, context)
        picked, key_N = self.order(pool, context, min(budget, count))
        if len(np.unique(picked)) != min(budget, count):
            raise ValueError(f"strategy {self.name} picked {len(np.unique(picked))} of {min(budget, count)} samples")
        whole = self._candidates(pool, _scores(picked, key_N, budget, count))
        if context.write is not None:
            ends = np.cumsum(gathered.lengths)
            for end, length in zip(ends, gathered.lengths, strict=True):
                context.write(whole.take(gathered.place_N[end - length : end]))
        return Selection(
            strategy=self.name,
            picks=whole.take(np.asarray(picked, dtype=np.int64)),
            budget=budget,
            rule="topk",
            beta=1.0,
            seed=context.seed,
            candidates=count,
            class_terms=context.class_terms,
            notes=shortfall(budget, count),
        )

    def _check_finite(self, pool: Shard, context: Context) -> None:
        for column in self.columns:
            check_finite(column, getattr(pool, column), pool.sample_ids)
        labeled = context.labeled
        if labeled is not None and "features_N_D" in self.columns:
            ids = np.arange(len(labeled.labels_N)) if labeled.sample_ids is None else labeled.sample_ids
            check_finite("features_N_D of the labelled pool", labeled.features_N_D, ids)

    def _candidates(self, pool: Shard, score_N: NDArray[np.float64]) -> Candidates:
        """The pool with its scores, and what the classifier says of it, where its logits are among the columns."""
        if pool.logits_N_C is None:
            return Candidates(pool.sample_ids, score_N)
        recorded = pool.logits_N_C if "logits_N_C" in self.inputs else None
        return replace(with_prediction(pool, score_N), logits_N_C=recorded)


def _scores(picked: NDArray[np.integer], key_N: NDArray[Any] | None, budget: int, count: int) -> NDArray[np.float64]:
    """budget - place for the picks; for the others -1, -2, ... by their keys, or 0 where there are none."""
    score_N = np.zeros(count)
    if key_N is not None:
        rest = np.setdiff1d(np.arange(count), picked)
        ranked = rest[np.argsort(-np.asarray(key_N, dtype=np.float64)[rest], kind="stable")]
        score_N[ranked] = -np.arange(1, len(ranked) + 1)
    score_N[picked] = budget - np.arange(len(picked))
    return score_N


def places(candidates: int, budget: int, *, ranks_all: bool = True) -> NDArray[np.float64]:
    """The scores of a search, the highest first: budget - place of the picks, then -1, -2, ..., or 0 for all others."""
    picked = min(budget, candidates)
    rest = -np.arange(1, candidates - picked + 1.0) if ranks_all else np.zeros(candidates - picked)
    return np.concatenate([budget - np.arange(picked, dtype=np.float64), rest])
