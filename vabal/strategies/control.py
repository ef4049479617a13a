"""The control arm: a part of each request that is drawn uniformly, before the picks and whatever they are.

Its labels are a simple random sample of what could be picked that night, so that what is counted among them holds for
that pool without bias: docs/decisions/control-arm.md.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vabal.strategies.base import Shard, Strategy, record_of, with_prediction
from vabal.strategies.candidates import Candidates
from vabal.strategies.noise import uniform_noise


def size(strategy: Strategy, share: float, budget: int, candidates: int) -> int:
    """How many are drawn: that share of the budget, rounded, at least one; none where the share is 0.

    One place is always left to the strategy; one that draws uniformly itself needs no arm beside it.
    """
    if share <= 0 or record_of(strategy).uniform:
        return 0
    return min(max(1, round(share * budget)), budget - 1, candidates)


def draw(sample_ids: Iterable[NDArray[Any]], count: int, seed: int) -> list[str]:
    """`count` of the ids, each with the same probability, in the order in which they were drawn.

    They depend on the set of ids and the seed alone, not on order or parts. Memory: one part, and the draw.
    """
    best: list[tuple[float, str]] = []
    if count < 1:
        return []
    for part in sample_ids:
        noise_N = uniform_noise(part, seed)
        rows = np.argpartition(noise_N, count - 1)[:count] if len(noise_N) > count else np.arange(len(noise_N))
        best = sorted([*best, *((float(noise_N[row]), str(part[row])) for row in rows)])[:count]
    return [sample_id for _, sample_id in best]


def as_candidates(shard: Shard) -> Candidates:
    """What is recorded of those drawn: what the classifier says of them. No score put them there: it is zero."""
    told = with_prediction(shard, np.zeros(len(shard)))
    return Candidates(
        told.sample_ids, told.score_N, told.predicted_class_N, margin_N=told.margin_N, logits_N_C=shard.logits_N_C
    )
