"""Uniform random sampling: the baseline that every strategy is measured against."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.probabilities import ClassTerms
from vabal.strategies.base import Context, ScoringStrategy, Shard, posteriors
from vabal.strategies.candidates import Candidates
from vabal.strategies.noise import uniform_noise


class RandomStrategy(ScoringStrategy):
    """The score is a number in (0, 1) drawn from (seed, sample_id)."""

    name: ClassVar[str] = "random"
    needs: ClassVar[Needs] = Needs()
    inputs: tuple[str, ...] = ("logits_N_C",)
    derivable: bool = True
    uniform: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:
        known = shard.logits_N_C is not None and len(shard.logits_N_C)
        predicted = posteriors(shard).argmax(axis=1).astype(np.int32) if known else None
        return Candidates(shard.sample_ids, uniform_noise(shard.sample_ids, context.seed), predicted)

    def rescore(
        self,
        candidates: Candidates,
        *,
        class_terms: ClassTerms | None,  # noqa: ARG002 -- the base's
        settings: Any,  # noqa: ARG002
        seed: int,
    ) -> NDArray[np.float64]:
        return uniform_noise(candidates.sample_ids, seed)
