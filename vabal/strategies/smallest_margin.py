"""Smallest margin: the samples that the classifier can hardly decide on between two classes.

Scheffer, Decomain & Wrobel 2001 ("Active hidden Markov models for information extraction"); Roth & Small 2006
("Margin-based active learning for structured output spaces"). Cost: O(N C); memory: one shard, whatever the pool.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.probabilities import ClassTerms
from vabal.strategies.base import Context, ScoringStrategy, Shard, posteriors
from vabal.strategies.candidates import Candidates, margin


class MarginStrategy(ScoringStrategy):
    """The score is minus the margin: the second posterior less the best, from -1 (certain) to 0 (undecided).

    With a single class every sample is certain, and the hash of its id decides.
    """

    name: ClassVar[str] = "margin"
    needs: ClassVar[Needs] = Needs(posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C",)
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        probabilities_N_C = posteriors(shard)
        margin_N = margin(probabilities_N_C)
        predicted_N = probabilities_N_C.argmax(axis=1) if len(margin_N) else np.zeros(0)
        return Candidates(shard.sample_ids, -margin_N, predicted_N.astype(np.int32), margin_N=margin_N)

    def rescore(
        self,
        candidates: Candidates,
        *,
        class_terms: ClassTerms | None,  # noqa: ARG002 -- the base's
        settings: Any,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> NDArray[np.float64] | None:
        return None if candidates.margin_N is None else -candidates.margin_N
