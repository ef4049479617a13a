"""Ensemble: the samples about whose class independently trained classifiers disagree."""

from typing import ClassVar

import numpy as np

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, ScoringStrategy, Shard, with_prediction
from vabal.strategies.candidates import Candidates


class EnsembleStrategy(ScoringStrategy):
    """The variation ratio of five classifiers, the round's own among them (Beluch et al. 2018).

    One less the share of members that vote for the class with the most votes: of five members 0, 0.2, 0.4, 0.6 or 0.8.
    So ties are the rule; a hash of seed and sample id breaks them. Costs four trainings and four forward passes a
    sample; the score is O(N C), and memory does not grow with the pool.
    """

    name: ClassVar[str] = "ensemble"
    needs: ClassVar[Needs] = Needs(members=5, posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C", "votes_N_C")
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        if shard.votes_N_C is None:
            raise ValueError("the shard came without votes: declare Needs(members=...)")
        votes_N_C = np.asarray(shard.votes_N_C)
        if not len(votes_N_C):
            return with_prediction(shard, np.zeros(0))
        return with_prediction(shard, 1 - votes_N_C.max(axis=1) / votes_N_C.sum(axis=1))
