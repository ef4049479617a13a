"""DIRECT: each class's best separating threshold, and the candidates next to it (Nuggehalli et al.)."""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Shard, posteriors
from vabal.strategies.candidates import margin
from vabal.strategies.galaxy import confidence, labeled_posteriors
from vabal.strategies.sequential import SequentialStrategy

MOST_NARROWING = 60  # picks of a class's first phase at most (LabelBench's `min_budget_per_class`)


class DirectStrategy(SequentialStrategy):
    """Picks where each class may end, then around its optimal separation (arXiv:2312.09196), classes sharing alike.

    For class k the samples stand on a line by falling confidence that they are of class k (GALAXY's order). Its
    threshold is where the labelled samples give the fewest errors: of class k below it, or not of class k above it
    (as in the authors' LabelBench every label counts once: an error is an error whatever its class, which is what
    makes it robust to wrong labels).

    The first phase narrows the threshold down: half of a class's share, `MOST_NARROWING` at most, is drawn at random
    from the candidates between its last label before the first of another class and the first label of another class
    behind its last (`interval`). The paper draws so many in several parts and shrinks the interval with the labels of
    each; a nightly batch has no labels until the morning, which is its case of as many annotators as samples: one
    part. The second phase picks the candidates next to the threshold, in turn above and below. In both the classes
    take turns, in the first from the most labels to the fewest, in the second in an order drawn from the seed, so that
    a candidate of two classes is asked for once. `selection.narrowing: false` leaves the first phase out.

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
        numbers = np.random.default_rng([context.seed % 2**64, classes])
        turns = numbers.permutation(classes)
        narrowing = min(budget // classes // 2, MOST_NARROWING) if context.settings.selection.narrowing else 0
        picked: dict[int, None] = {}  # in order
        for k in _most_labels_first(labels_M, classes) if narrowing else ():
            ends = interval(confidence(known_M_C, k, largest_M), labels_M == k)
            inside = between(confidence(probabilities_N_C, k, largest_N), ends)
            free = inside[~np.isin(inside, list(picked))]
            picked |= dict.fromkeys(numbers.permutation(free)[:narrowing].tolist())
        queues = []
        for k in range(classes):
            threshold = separation(confidence(known_M_C, k, largest_M), labels_M == k)
            queues.append(iter(nearest(confidence(probabilities_N_C, k, largest_N), threshold, budget)))
        for place in range(budget - len(picked)):
            queue = queues[turns[place % classes]]
            picked[next(int(row) for row in queue if int(row) not in picked)] = None
        return np.array(list(picked), dtype=np.int64), -margin(probabilities_N_C)


def _most_labels_first(labels_M: NDArray[np.integer], classes: int) -> list[int]:
    order: list[int] = np.argsort(-np.bincount(labels_M, minlength=classes), kind="stable").tolist()
    return order


def interval(confidence_M: NDArray[np.float64], positive_M: NDArray[np.bool_]) -> tuple[float, float]:
    """The confidences between which a class's threshold can lie, the first included, the second not.

    By falling confidence: that of the last sample of the class before the first of another, and that of the first of
    another behind the last of the class. inf and -inf where there is no such sample.
    """
    falling = np.argsort(-confidence_M, kind="stable")
    sorted_M, positive_M = confidence_M[falling], np.asarray(positive_M, dtype=bool)[falling]
    leading = int(np.argmin(np.append(positive_M, False)))  # samples of the class before the first of another
    behind = len(positive_M) - int(np.argmax(np.append(positive_M[::-1], True)))  # the place behind the last of it
    upper = float(sorted_M[leading - 1]) if leading else float("inf")
    lower = float(sorted_M[behind]) if behind < len(sorted_M) else float("-inf")
    return upper, lower


def between(confidence_N: NDArray[np.float64], ends: tuple[float, float]) -> NDArray[np.int64]:
    """The rows at or below the upper end and above the lower one."""
    upper, lower = ends
    return np.flatnonzero((confidence_N <= upper) & (confidence_N > lower))


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
