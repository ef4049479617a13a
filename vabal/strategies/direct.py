"""DIRECT: each class's best separating threshold, and the candidates next to it (Nuggehalli et al.)."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Shard, margin, posteriors
from vabal.strategies.galaxy import confidence, labeled_posteriors
from vabal.strategies.sequential import SequentialStrategy


class DirectStrategy(SequentialStrategy):
    """Picks around each class's optimal separation, an equal share of the budget for every class (arXiv:2312.09196).

    For class k the samples stand on a line by falling confidence that they are of class k (GALAXY's order). Its
    threshold is where the labelled samples give the fewest errors: of class k below it, or not of class k above it
    (as in the authors' LabelBench every label counts once: an error is an error whatever its class, which is what
    makes it robust to wrong labels). Then the candidates next to the threshold are picked, in turn above and below.
    The classes take turns, in an order drawn from the seed, so that a candidate next to two thresholds is asked for
    once and every prefix of the picks is shared evenly.

    The paper spends half of a class's budget on narrowing the threshold down, with labels that come in within the
    batch. A nightly batch has no labels until the morning: here all of it goes to the candidates next to the threshold
    that the labels of the nights before give, and each morning's labels move it.

    A class without a labelled sample has the threshold above everything: its most likely candidates are picked. With
    labelled samples of that class alone it is below everything: the least likely ones.

    Cost: a pass over the pool for each class, O(C N), then O(C B log B) for a budget B. Memory O(N C + C B), the
    posteriors and a queue per class. 1 000 000 candidates of 10 classes are searched whole: 1 000 picks took 3.3 s on
    one core and 1.1 GB, everything included.
    """

    name: ClassVar[str] = "direct"
    needs: ClassVar[Needs] = Needs(posteriors=True)
    columns: ClassVar[tuple[str, ...]] = ("logits_N_C",)
    labeled_inputs: bool = True
    derivable: bool = True

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[np.integer], NDArray[Any]]:
        """Raises ValueError if the context carries no logits of the labelled pool."""
        known_M_C, labels_M = labeled_posteriors(self.name, context)
        probabilities_N_C = posteriors(pool)
        classes = probabilities_N_C.shape[1]
        largest_M, largest_N = known_M_C.max(axis=1), probabilities_N_C.max(axis=1)
        queues = []
        for k in range(classes):
            threshold = separation(confidence(known_M_C, k, largest_M), labels_M == k)
            queues.append(iter(nearest(confidence(probabilities_N_C, k, largest_N), threshold, budget)))
        turns = np.random.default_rng([context.seed % 2**64, classes]).permutation(classes)
        picked: dict[int, None] = {}  # in order
        while len(picked) < budget:
            queue = queues[turns[len(picked) % classes]]
            picked[next(int(row) for row in queue if int(row) not in picked)] = None
        return np.array(list(picked), dtype=np.int64), -margin(probabilities_N_C)


def separation(confidence_M: NDArray[np.float64], positive_M: NDArray[np.bool_]) -> float:
    """The threshold with the fewest errors, where a sample at or above it is taken to be of the class.

    It lies half way between two confidences, or beyond the first (inf) or the last (-inf). Of equally good ones the
    highest, as in the authors' code.
    """
    falling = np.argsort(-confidence_M, kind="stable")
    sorted_M, positive_M = confidence_M[falling], np.asarray(positive_M, dtype=bool)[falling]
    wrong_above = np.concatenate([[0], np.cumsum(~positive_M)])
    missed_below = positive_M.sum() - np.concatenate([[0], np.cumsum(positive_M)])
    between = np.concatenate([[True], sorted_M[:-1] > sorted_M[1:], [True]])[: len(sorted_M) + 1]
    places = np.flatnonzero(between)  # how many samples lie above
    above = places[(wrong_above + missed_below)[places].argmin()]
    if above == 0:
        return float("inf")
    if above == len(sorted_M):
        return float("-inf")
    upper, lower = float(sorted_M[above - 1]), float(sorted_M[above])
    middle = lower + (upper - lower) / 2
    return middle if middle > lower else upper


def nearest(confidence_N: NDArray[np.float64], threshold: float, count: int) -> NDArray[np.int64]:
    """The `count` candidates next to the threshold, by index: in turn the next above and the next below.

    Of equal ones above the higher row comes first, of those below the lower: the order of one list by falling
    confidence, read from the threshold outwards. O(N + count log count)."""
    is_above_N = confidence_N >= threshold
    above = _lowest(confidence_N, np.flatnonzero(is_above_N)[::-1], count)
    below = _lowest(-confidence_N, np.flatnonzero(~is_above_N), count)
    sides = np.concatenate([above, below])
    turn = np.concatenate([2 * np.arange(len(above)), 2 * np.arange(len(below)) + 1])
    return np.asarray(sides[np.argsort(turn)][:count])


def _lowest(value_N: NDArray[np.float64], rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Of the rows the `count` with the lowest values, ascending; a tie goes to the row that is given first."""
    value_R = value_N[rows]
    if len(rows) > count:
        kept = value_R <= np.partition(value_R, count - 1)[count - 1]
        rows, value_R = rows[kept], value_R[kept]
    return np.asarray(rows[np.argsort(value_R, kind="stable")][:count])
