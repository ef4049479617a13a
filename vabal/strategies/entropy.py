"""Maximum entropy: the samples whose predicted distribution is the most even."""

from typing import ClassVar

import numpy as np
from scipy.special import entr  # type: ignore[import-untyped]

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, ScoringStrategy, Shard, margin, posteriors
from vabal.strategies.candidates import Candidates


class EntropyStrategy(ScoringStrategy):
    """The score is the entropy of the classifier's distribution, in nats."""

    name: ClassVar[str] = "entropy"
    needs: ClassVar[Needs] = Needs(posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C",)
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the seam's
        probabilities_N_C = posteriors(shard)
        score_N = entr(probabilities_N_C).sum(axis=1)
        predicted_N = probabilities_N_C.argmax(axis=1) if len(score_N) else np.zeros(0)
        return Candidates(shard.sample_ids, score_N, predicted_N.astype(np.int32), margin_N=margin(probabilities_N_C))
