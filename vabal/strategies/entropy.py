"""Maximum entropy: the samples whose predicted distribution is the most even."""

from typing import ClassVar

from scipy.special import entr

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, ScoringStrategy, Shard, posteriors, with_prediction
from vabal.strategies.candidates import Candidates


class EntropyStrategy(ScoringStrategy):
    """The score is the entropy of the classifier's distribution, in nats."""

    name: ClassVar[str] = "entropy"
    needs: ClassVar[Needs] = Needs(posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C",)
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        return with_prediction(shard, entr(posteriors(shard)).sum(axis=1))
