"""Stochastic batches around any strategy: softrank acquisition (Kirsch et al. 2021)."""

from dataclasses import replace
from typing import Any

import numpy as np

from vabal.probabilities import ClassTerms
from vabal.strategies.batch import Picker
from vabal.strategies.candidates import Candidates
from vabal.strategies.seam import Context, Needs, Selection, Strategy, no_picks
from vabal.strategies.wrapped import ranked


class Stochastic:
    """Draws without replacement with probabilities proportional to rank^-beta, beta = 1 (arXiv:2106.12059).

    The rank is the inner strategy's, 1 for its first choice, over all candidates (of a sequential strategy: the order
    in which it picks, then its ranking of the rest). The score is -log(rank) and the rule `gumbel`, which is that
    distribution. Ranks have no scale, so one beta goes with every strategy.

    Cost: the inner strategy, and a sort of the candidates. Memory O(N): the inner strategy's columns; 1 000 000
    candidates are held whole, a few hundred bytes each.
    """

    BETA = 1.0

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.name = f"stochastic:{inner.name}"
        self.needs: Needs = replace(inner.needs, posteriors=True)

    def select(self, context: Context, budget: int) -> Selection:
        """Raises what the inner strategy raises."""
        inner = ranked(self.inner, context, budget)
        score_N = np.empty(len(inner))
        score_N[inner.order_N] = -np.log(np.arange(1, len(inner) + 1))
        picker = Picker(budget, "gumbel", self.BETA, context.seed)
        for part in inner.rescored(score_N):
            picker.add(part)
            if context.write is not None:
                context.write(part)
        return replace(
            inner.selection,
            strategy=self.name,
            picks=picker.picks() if inner.parts else no_picks(self.name, budget, context.seed).picks,
            rule="gumbel",
            beta=self.BETA,
            seed=context.seed,
        )

    def rescore(
        self,
        candidates: Candidates,  # noqa: ARG002 -- a rank is not a function of a row
        *,
        class_terms: ClassTerms | None,  # noqa: ARG002
        settings: Any,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> None:
        return None
