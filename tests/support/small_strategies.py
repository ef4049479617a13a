"""Strategies as plug-ins write them, and what any strategy writes."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.strategies import Candidates, Context, Needs, ScoringStrategy, Selection, SequentialStrategy, Shard, Strategy
from vabal.strategies.wrapped import Wrapper


class ByNumber(ScoringStrategy):
    """The score grows tenfold with the number in the id, and there is no predicted class: as of a plain plug-in."""

    name: ClassVar[str] = "by-number"
    needs: ClassVar[Needs] = Needs(features=True)

    def score(self, shard: Shard, context: Context) -> Candidates:
        return Candidates(shard.sample_ids, np.array([10 ** float(name[1:]) for name in shard.sample_ids]))


class Backwards(SequentialStrategy):
    """Picks the highest numbers in the id first; ranks the rest the other way round."""

    name: ClassVar[str] = "backwards"
    columns: ClassVar[tuple[str, ...]] = ("logits_N_C",)

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[Any], NDArray[Any]]:
        number_N = np.array([float(name[1:]) for name in pool.sample_ids])
        return np.argsort(-number_N)[:budget], -number_N


def written(strategy: Strategy | Wrapper, context: Context, budget: int) -> tuple[Selection, list[Candidates]]:
    """The batch, and the candidates that were written on the way, part by part."""
    parts: list[Candidates] = []
    return strategy.select(replace(context, write=parts.append), budget), parts
