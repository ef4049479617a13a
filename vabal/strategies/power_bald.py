"""PowerBALD: a batch drawn in proportion to the BALD score, so that it is not one sample a hundred times over."""

from typing import Any, ClassVar

import numpy as np

from vabal.learning.needs import Needs
from vabal.strategies.bald import mutual_information
from vabal.strategies.base import Context, ScoringStrategy, Shard, with_prediction
from vabal.strategies.candidates import Candidates
from vabal.strategies.rules import Rule

_SMALLEST = float(np.finfo(np.float64).tiny)


class PowerBaldStrategy(ScoringStrategy):
    """Samples without replacement with probabilities proportional to the mutual information (see `bald`).

    The score is the logarithm of the information, to which Gumbel noise is added: the power variant of stochastic batch
    acquisition at beta = 1, whatever `selection` says (Kirsch et al. 2021, arXiv:2106.12059). Costs what `bald` costs.
    """

    name: ClassVar[str] = "power_bald"
    needs: ClassVar[Needs] = Needs(dropout=0.25, passes=100, posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C", "predictive_N_C", "expected_entropy_N")
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        return with_prediction(shard, np.log(np.maximum(mutual_information(shard), _SMALLEST)))

    def rule(self, settings: Any) -> Rule:  # noqa: ARG002 -- another rule would be another strategy
        return "gumbel"

    def beta(self, settings: Any) -> float:  # noqa: ARG002
        return 1.0
