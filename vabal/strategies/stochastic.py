"""Stochastic batches around any strategy: softrank acquisition (Kirsch et al. 2021)."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.strategies.base import Context
from vabal.strategies.rules import Rule
from vabal.strategies.wrapped import Ranked, Wrapper


class Stochastic(Wrapper):
    """Draws without replacement with probabilities proportional to rank^-beta, beta = 1 (arXiv:2106.12059).

    The rank is the inner strategy's, 1 for its first choice, over all candidates (of a sequential strategy: the order
    in which it picks, then its ranking of the rest). The score is -log(rank) and the rule `gumbel`, which is that
    distribution. Ranks have no scale, so one beta goes with every strategy.

    Cost: the inner strategy, and a sort of the candidates. Memory O(N): the inner strategy's columns; 1 000 000
    candidates are held whole, a few hundred bytes each.
    """

    kind: ClassVar[str] = "stochastic"
    rule: ClassVar[Rule] = "gumbel"

    def scores_are(self, candidates: int, budget: int) -> NDArray[np.float64]:  # noqa: ARG002 -- the base's
        return np.asarray(-np.log(np.arange(1, candidates + 1)))

    def scores(self, inner: Ranked, context: Context, budget: int) -> NDArray[np.float64]:  # noqa: ARG002 -- the base's
        score_N = np.empty(len(inner))
        score_N[inner.order_N] = -np.log(np.arange(1, len(inner) + 1))
        return score_N
