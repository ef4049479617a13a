"""BALD: the samples about which draws from the posterior of the weights disagree the most."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, ScoringStrategy, Shard, with_prediction
from vabal.strategies.candidates import Candidates


class BaldStrategy(ScoringStrategy):
    """Mutual information of a sample's label and the network's weights, in nats (Houlsby et al. 2011).

    The entropy of the mean posterior less the mean entropy of the posteriors, over 100 passes of a network with dropout
    0.25 before each residual stage (Gal et al. 2017; paper, Section 4.2). The passes cost 100 forward passes a sample
    behind the stem; the score itself is O(N C), and memory does not grow with the pool.
    """

    name: ClassVar[str] = "bald"
    needs: ClassVar[Needs] = Needs(dropout=0.25, passes=100, posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C", "predictive_N_C", "expected_entropy_N")
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        return with_prediction(shard, mutual_information(shard))


def mutual_information(shard: Shard) -> NDArray[np.float64]:
    """information_N of a committee's posteriors, in nats; what rounding leaves below 0 is 0.

    Raises ValueError if the shard came without a committee's columns.
    """
    if shard.predictive_N_C is None or shard.expected_entropy_N is None:
        raise ValueError("the shard came without a committee: declare Needs(dropout=..., passes=...) or members")
    entropy_N = entr(np.asarray(shard.predictive_N_C, dtype=np.float64)).sum(axis=1)
    return np.asarray(np.maximum(entropy_N - shard.expected_entropy_N, 0.0))
