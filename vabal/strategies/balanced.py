"""A class balancer around any strategy: the fewest labels first, by predicted class."""

import heapq
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.strategies.base import Context
from vabal.strategies.sequential import places
from vabal.strategies.wrapped import Ranked, Wrapper


class Balanced(Wrapper):
    """Fills up the classes with the fewest labels, so that labelled pool and batch together come as near to even as
    the predicted classes of the candidates allow; within a class the inner strategy's ranking decides.

    Each pick goes to the class that has the fewest labelled samples and picks so far and has candidates left (a tie
    goes to the lower class): water filling, in the spirit of class-balanced active learning (Bengar et al., WACV
    2022, which states it as an optimisation over the posteriors). Predicted classes can be wrong, so the labels that
    come back need not be even. The order of the picks is the order of filling, and the score is budget - place, as
    for a sequential strategy, so that the table gives the same picks under `topk`.

    Cost: the inner strategy, a sort of the candidates, and O(B log C) for a budget B. Memory O(N): the inner
    strategy's columns; 1 000 000 candidates are held whole, a few hundred bytes each.
    """

    kind: ClassVar[str] = "balanced"

    def scores_are(self, candidates: int, budget: int) -> NDArray[np.float64]:
        return places(candidates, budget)

    def scores(self, inner: Ranked, context: Context, budget: int) -> NDArray[np.float64]:
        """budget - place for the picks, -1, -2, ... for the others, as the inner strategy ranks them.

        Raises ValueError if the context carries no labelled pool.
        """
        if context.labeled is None:
            raise ValueError(f"strategy {self.name}: the context must carry the labelled pool")
        return _scores(inner, np.asarray(context.labeled.labels_N), budget)


def _scores(inner: Ranked, labels_M: NDArray[np.integer], budget: int) -> NDArray[np.float64]:
    predicted_N = inner.predicted_class_N[inner.order_N]  # from here on in the inner strategy's order
    classes = int(max(labels_M.max(initial=-1), predicted_N.max(initial=-1))) + 1
    available_C = np.bincount(predicted_N, minlength=classes)
    turns = np.array(fill(np.bincount(labels_M, minlength=classes), available_C, budget), dtype=np.int64)
    best_first = np.argsort(predicted_N, kind="stable")  # class by class
    starts_C = np.cumsum(available_C) - available_C
    picked = np.empty(len(turns), dtype=np.int64)
    for k in np.unique(turns):
        places = np.flatnonzero(turns == k)
        picked[places] = best_first[starts_C[k] : starts_C[k] + len(places)]
    ranked_N = np.empty(len(predicted_N))
    rest = np.ones(len(predicted_N), dtype=bool)
    rest[picked] = False
    ranked_N[rest] = -np.arange(1, rest.sum() + 1)
    ranked_N[picked] = budget - np.arange(len(picked))
    score_N = np.empty(len(predicted_N))
    score_N[inner.order_N] = ranked_N
    return score_N


def fill(labeled_C: NDArray[np.integer], available_C: NDArray[np.integer], budget: int) -> list[int]:
    """The class of each pick in turn: the one with the fewest so far, of those that have candidates left."""
    fewest = [(int(labeled), k) for k, labeled in enumerate(labeled_C) if available_C[k]]
    heapq.heapify(fewest)
    left = [int(available) for available in available_C]
    turns: list[int] = []
    while fewest and len(turns) < budget:
        count, k = heapq.heappop(fewest)
        turns.append(k)
        left[k] -= 1
        if left[k]:
            heapq.heappush(fewest, (count + 1, k))
    return turns
