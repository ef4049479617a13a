"""A batch that covers the pool's doubt: the batch rule `coverage`.

Uncertainty herding (Bae, Oliveira and Sutherland, ICLR 2025, arXiv:2412.20644): every sample weighs as much as it is
doubted, a labelled or picked sample covers those that look like it, and each pick is the candidate that covers most of
the weight that is left,

    gain(s) = sum_n w_n max(0, k(x_n, x_s) - c_n),   c_n = max over labelled and picked l of k(x_n, x_l),
    w_n = exp(beta * score_n),   k(x, y) = exp(-|x - y|^2 / width), on features of unit length.

While the classifier knows little, weights are nearly level and the picks are typical of their surroundings (MaxHerding,
arXiv:2407.12212); once it knows much, they are those that it still doubts. No threshold tells the two apart.

Otherwise than theirs: the weight is the strategy's score, so class terms and the guard enter it; the width is a
quantile of the squared distances among the candidates, not the least among labelled samples; candidates and what they
cover are the shortlist's. The gain is submodular, so a bound computed earlier stays one: only candidates whose bound is
highest are looked at again (lazy greedy, Minoux 1978). Axes: N candidates, D features, G of them that are to be
covered.
"""

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vabal.strategies.spread import ROUNDING, unit

WIDTH: Final = 0.1  # this quantile of the squared distances among candidates is the kernel's width
_MEASURED: Final = 512  # candidates among which distances are measured, evenly along the list
_COVERED: Final = 2**12  # candidates to be covered at most, evenly along the list ...
_KERNEL: Final = 2**27  # ... and fewer where the kernel would have more numbers, but
_LEAST_COVERED: Final = 2**10
_BLOCK: Final = 64  # candidates looked at again at once


def labeled_distances(features_N_D: NDArray[np.floating], labeled_L_D: NDArray[np.floating]) -> NDArray[np.float32]:
    """distance_N: squared, at unit length, to the nearest labelled sample; infinite where none is labelled."""
    if not len(labeled_L_D):
        return np.full(len(features_N_D), np.inf, dtype=np.float32)
    unit_L_D, unit_N_D = unit(labeled_L_D), unit(features_N_D)
    nearest_N = np.empty(len(unit_N_D), dtype=np.float32)
    for start in range(0, len(unit_N_D), _COVERED):
        rows = slice(start, start + _COVERED)
        nearest_N[rows] = (unit_N_D[rows] @ unit_L_D.T).max(axis=1)
    return np.maximum(2 - 2 * nearest_N, 0)


def cover(
    score_N: NDArray[np.float64],
    features_N_D: NDArray[np.floating],
    budget: int,
    beta: float = 1.0,
    labeled_distance_N: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Rows in the order picked; a tie goes to the lower row.

    `labeled_distance_N` are those of `labeled_distances`; without them nothing is covered at the start. Complexity:
    O(N G D) once, a few rows of G numbers a pick; memory: N x G float32, 0.5 GB up to
    130 000 candidates. Raises ValueError for a budget above N.
    """
    count = len(score_N)
    if budget > count:
        raise ValueError(f"{budget} asked for of {count} candidates")
    gains = _Gains(score_N, features_N_D, beta, labeled_distance_N)
    bound_N, looked_at_N = gains.of(np.arange(count)), np.zeros(count, dtype=np.int64)
    picked = np.empty(budget, dtype=np.int64)
    for place in range(budget):
        while looked_at_N[row := int(bound_N.argmax())] < place:
            again = _highest(bound_N, looked_at_N < place, row)
            bound_N[again] = gains.of(again)
            looked_at_N[again] = place
        picked[place] = row
        bound_N[row] = -np.inf
        gains.cover(row)
    return picked


def departures(
    score_N: NDArray[np.float64],
    features_N_D: NDArray[np.floating],
    picked: NDArray[np.integer],
    beta: float = 1.0,
    labeled_distance_N: NDArray[np.floating] | None = None,
) -> list[int]:
    """The places at which these picks leave the search: another candidate gained more there, by more than rounding.

    Squared distances are taken to be right to ROUNDING only, so that another processor's sums give no departure.
    """
    gains = _Gains(score_N, features_N_D, beta, labeled_distance_N)
    bound_N = gains.of(np.arange(len(score_N)))
    left_N = np.ones(len(score_N), dtype=bool)
    found = []
    for place, row in enumerate(picked):
        itself = np.array([row])
        most = gains.of(itself) + gains.rounding(itself)
        again = np.flatnonzero(left_N & (bound_N > most))
        bound_N[again] = gains.of(again)
        higher = again[bound_N[again] > most]
        if not left_N[row] or (bound_N[higher] - gains.rounding(higher) > most).any():
            found.append(place)
        left_N[row] = False
        gains.cover(int(row))
    return found


def walk(
    score_N: NDArray[np.float64],
    features_N_D: NDArray[np.floating],
    picked: NDArray[np.integer],
    beta: float = 1.0,
    labeled_distance_N: NDArray[np.floating] | None = None,
) -> Iterator[Callable[[NDArray[np.integer]], NDArray[np.float64]]]:
    """At the place of each of these picks, what the search went by then: the gain of given rows."""
    gains = _Gains(score_N, features_N_D, beta, labeled_distance_N)
    for row in picked:
        yield gains.of
        gains.cover(int(row))


class _Gains:
    """What each candidate adds to the covered weight, as the batch grows."""

    def __init__(
        self,
        score_N: NDArray[np.float64],
        features_N_D: NDArray[np.floating],
        beta: float,
        labeled_distance_N: NDArray[np.floating] | None,
    ) -> None:
        unit_N_D, count = unit(features_N_D), len(score_N)
        rows_G = _evenly(count, max(_LEAST_COVERED, min(_COVERED, _KERNEL // max(count, 1))))
        width = _width(unit_N_D[_evenly(count, _MEASURED)])
        score_G = np.asarray(score_N, dtype=np.float64)[rows_G]
        with np.errstate(over="ignore"):  # of scores that lie further apart than numbers go: such a weight is zero
            self._weight_G = np.exp(beta * (score_G - score_G.max(initial=-np.inf))).astype(np.float32)
        self._kernel_N_G, unit_D_G = np.empty((count, len(rows_G)), dtype=np.float32), unit_N_D[rows_G].T
        for start in range(0, count, _COVERED):
            rows = slice(start, start + _COVERED)
            np.matmul(unit_N_D[rows], unit_D_G, out=self._kernel_N_G[rows])
        for start in range(0, count, _BLOCK):  # which a processor's cache holds
            part_B_G = self._kernel_N_G[start : start + _BLOCK]
            part_B_G *= -2
            part_B_G += 2
            _kernel(np.maximum(part_B_G, 0, out=part_B_G), width)
        distance_N = np.full(count, np.inf) if labeled_distance_N is None else np.asarray(labeled_distance_N)
        self._covered_G = _kernel(np.array(distance_N[rows_G], dtype=np.float32), width)
        self._off = ROUNDING / width  # what of a kernel's value rounding may change

    def of(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """gain_R of these rows."""
        return self._weighed(rows, lambda kernel_B_G: np.maximum(kernel_B_G - self._covered_G, 0))

    def rounding(self, rows: NDArray[np.integer]) -> NDArray[np.float64]:
        """By how much gain_R may be off: what both kernels are off by, wherever the row covers more, or could."""

        def off(kernel_B_G: NDArray[np.float32]) -> NDArray[np.float32]:
            both_B_G = kernel_B_G + self._covered_G
            could_B_G = kernel_B_G > self._covered_G - self._off * both_B_G
            return np.asarray(both_B_G * could_B_G, dtype=np.float32)

        return np.asarray(self._off * self._weighed(rows, off))

    def _weighed(
        self, rows: NDArray[np.integer], of: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    ) -> NDArray[np.float64]:
        sum_R = np.empty(len(rows))
        for start in range(0, len(rows), _BLOCK):
            sum_R[start : start + _BLOCK] = of(self._kernel_N_G[rows[start : start + _BLOCK]]) @ self._weight_G
        return sum_R

    def cover(self, row: int) -> None:
        """The row is picked."""
        np.maximum(self._covered_G, self._kernel_N_G[row], out=self._covered_G)


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    """At most so many of the rows, from the first to the last."""
    return np.arange(count) if count <= most else np.linspace(0, count - 1, most).astype(np.int64)


def _width(unit_M_D: NDArray[np.float32]) -> float:
    """The WIDTH-quantile of the squared distances, where these are more than rounding."""
    squared_M_M = 2 - 2 * (unit_M_D @ unit_M_D.T)
    apart = squared_M_M[np.triu_indices(len(unit_M_D), 1)]
    return max(float(np.quantile(apart, WIDTH)) if len(apart) else 1.0, ROUNDING)


def _kernel(squared: NDArray[np.float32], width: float) -> NDArray[np.float32]:
    """In their place."""
    squared /= -np.float32(width)
    return np.exp(squared, out=squared)


def _highest(bound_N: NDArray[np.float64], stale_N: NDArray[np.bool_], row: int) -> NDArray[np.int64]:
    """The rows of the highest bounds, of those that are out of date; a block at most. `row`, one of them, is among
    them, for where nothing is left to cover all bounds are equal."""
    value_N = np.where(stale_N, bound_N, -np.inf)
    value_N[row] = np.inf
    if len(value_N) <= _BLOCK:
        return np.flatnonzero(stale_N & np.isfinite(bound_N))
    top = np.argpartition(-value_N, _BLOCK - 1)[:_BLOCK]
    return np.asarray(top[value_N[top] > -np.inf])
