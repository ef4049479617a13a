"""A batch of high scores that lie far from one another: the batch rule `spread`.

Top-k takes near copies of one hard sample, for their scores are near as well. Here each pick is the candidate with the
highest beta * score + log(squared distance to the nearest sample picked before), on features of unit length: margin
sampling made diverse as BADGE (Ash et al. 2020) and k-centre greedy are, without a distance to the labelled pool, which
the score knows of through its class terms. Axes: N candidates, D features.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHORTLIST = 50  # candidates a pick among which a spread batch is searched, those with the highest scores
NEAREST = 1e-9  # squared distance of two equal samples, where log would be minus infinity
FARTHEST = 4.0  # of two samples of unit length
ROUNDING = 1e-5  # of a squared distance, summed in float32


class Rooms(NamedTuple):
    """How many rows of each group may be picked: quotas."""

    group_N: NDArray[np.integer]
    room: Mapping[int, int]

    def full(self, picked: NDArray[np.integer]) -> NDArray[np.bool_]:
        """full_N: the rows of groups of which no more may be picked."""
        taken = dict(zip(*(part.tolist() for part in np.unique(self.group_N[picked], return_counts=True)), strict=True))
        full = [group for group, room in self.room.items() if taken.get(group, 0) >= room]
        return np.isin(self.group_N, full)


def spread(
    score_N: NDArray[np.float64],
    features_N_D: NDArray[np.floating],
    budget: int,
    beta: float = 1.0,
    rooms: Rooms | None = None,
) -> NDArray[np.int64]:
    """Rows in the order picked; a tie goes to the lower row. Where `rooms` are given, no group gets more than its own.

    The first pick has the highest score. Complexity: O(N D) a pick; memory: the features in float32 and one number a
    candidate. Raises ValueError for a budget above N.
    """
    count = len(score_N)
    if budget > count:
        raise ValueError(f"{budget} asked for of {count} candidates")
    unit_N_D = unit(features_N_D)
    distance_N = np.full(count, FARTHEST)
    weighted_N = beta * np.asarray(score_N, dtype=np.float64)
    left_N = np.ones(count, dtype=bool)
    picked = np.empty(budget, dtype=np.int64)
    for place in range(budget):
        open_N = left_N if rooms is None else left_N & ~rooms.full(picked[:place])
        value_N = np.where(open_N, weighted_N + np.log(np.maximum(distance_N, NEAREST)), -np.inf)
        row = int(value_N.argmax())
        picked[place] = row
        left_N[row] = False
        similarity_N = unit_N_D @ unit_N_D[row]
        np.minimum(distance_N, 2 - 2 * similarity_N.astype(np.float64), out=distance_N)
    return picked


def departures(
    score_N: NDArray[np.float64],
    features_N_D: NDArray[np.floating],
    picked: NDArray[np.integer],
    beta: float = 1.0,
    rooms: Rooms | None = None,
) -> list[int]:
    """The places at which these picks leave the search: another candidate was better there, by more than rounding.

    Distances are taken to be right to ROUNDING only, so that another processor's sums give no departure.
    """
    unit_N_D = unit(features_N_D).astype(np.float64)
    distance_N = np.full(len(score_N), FARTHEST)
    weighted_N = beta * np.asarray(score_N, dtype=np.float64)
    left_N = np.ones(len(score_N), dtype=bool)
    found = []
    for place, row in enumerate(picked):
        least_N = weighted_N + np.log(np.maximum(distance_N - ROUNDING, NEAREST))
        most = weighted_N[row] + np.log(max(distance_N[row] + ROUNDING, NEAREST))
        open_N = left_N if rooms is None else left_N & ~rooms.full(picked[:place])
        if not (open_N[row] and most >= least_N[open_N].max()):
            found.append(place)
        left_N[row] = False
        np.minimum(distance_N, 2 - 2 * (unit_N_D @ unit_N_D[row]), out=distance_N)
    return found


def walk(
    score_N: NDArray[np.float64],
    features_N_D: NDArray[np.floating],
    picked: NDArray[np.integer],
    beta: float = 1.0,
    rooms: Rooms | None = None,
) -> Iterator[Callable[[NDArray[np.integer]], NDArray[np.float64]]]:
    """At the place of each of these picks, what the search went by then: the value of given rows."""
    unit_N_D = unit(features_N_D)
    distance_N = np.full(len(score_N), FARTHEST)
    for place, row in enumerate(picked):
        value_N = beta * np.asarray(score_N, dtype=np.float64) + np.log(np.maximum(distance_N, NEAREST))
        if rooms is not None:
            value_N[rooms.full(picked[:place])] = -np.inf
        yield value_N.__getitem__
        np.minimum(distance_N, 2 - 2 * (unit_N_D @ unit_N_D[row]).astype(np.float64), out=distance_N)


def unit(features_N_D: NDArray[np.floating]) -> NDArray[np.float32]:
    """Features of length one; of length zero where they are all zero."""
    features = np.asarray(features_N_D, dtype=np.float32)
    largest_N = np.maximum(features.max(axis=1, initial=0), -features.min(axis=1, initial=0))
    # A power of two changes no digit, and squares stay within range.
    features = np.ldexp(features, -np.frexp(largest_N)[1][:, None])
    lengths_N_1 = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.maximum(lengths_N_1, np.finfo(np.float32).tiny), dtype=np.float32)
