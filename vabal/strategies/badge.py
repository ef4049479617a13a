"""BADGE: a batch whose gradients are large and point in different directions (Ash et al. 2020, arXiv:1906.03671).

A sample's gradient embedding is the gradient of the loss in the last layer's weights if the predicted class were true:
g = q h^T with q = p - onehot(predicted class) and h the features that the layer sees. The batch is drawn as k-means++
draws its seeds: the first is the embedding with the largest norm (as the authors' code has it), each further one is
drawn with probability proportional to its squared distance to the nearest of those before.

The embeddings have C D numbers and are never made: (q h^T) . (q' h'^T) = (q . q') (h . h').

How it is fast. Distances to the nearest seed only shrink, so one of before is an upper bound of today's. A row is drawn
in proportion to its bound, its distance brought up to date, and the row accepted with probability distance / bound: the
seeds are distributed as if every distance had been known (rejection sampling, as Cohen-Addad et al. 2020,
arXiv:2012.11891, have it with coarser bounds). All other rows are brought up to date by *sweeps*, matrix products with
many seeds at once: one for every 128 seeds, one whenever the rows that were rejected have cost as much as it does to
read the features, and one at the end, for the ranks of the rest.

Cost: O(N (C + D)) a pick, in matrix products; a draw itself is O((C + D) seeds since the last sweep). Memory beside the
features: N (C + 5) numbers, and blocks. Picks and ranks are the same on any number of threads.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Shard, posteriors
from vabal.strategies.sequential import SequentialStrategy
from vabal.strategies.side_by_side import Runner, blocks, side_by_side

Numbers = NDArray[np.floating]
Exact = NDArray[np.float64]

_BLOCK_ROWS = 2**14
_SWEEP_ROWS = 2**11  # of a block of a sweep
_SEEDS = 128  # that one sweep takes
_MASS_ROWS = 2**10  # whose bounds are added up once, not for every draw
_READ_IN_A_DRAW = 10**5  # numbers of features that a sweep reads in the time of one draw


class BadgeStrategy(SequentialStrategy):
    """k-means++ seeds among gradient embeddings; the rest ranks by the squared distance to the nearest seed."""

    name: ClassVar[str] = "badge"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True)

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[np.integer], NDArray[Any]]:
        assert pool.features_N_D is not None  # noqa: S101 -- gathered: it is among the columns
        features_N_D = context.deep(pool.features_N_D)
        kind = np.result_type(features_N_D.dtype, np.float32)
        return seeds(_residuals(pool, kind), features_N_D, budget, context.seed)


def seeds(
    residual_N_C: Numbers, features_N_D: Numbers, budget: int, seed: int, first: int | None = None
) -> tuple[NDArray[np.int64], Exact]:
    """The rows drawn, in order, and the squared distance_N of each embedding to the nearest of them.

    The first is the one with the largest norm, if it is not given.
    Products are of the residuals' type, float32 or float64; features of another are converted in blocks. Where no
    embedding is apart from those drawn (all zero, say: a single class, or a classifier that is certain), the rest is
    drawn uniformly. Raises ValueError for a budget below one or beyond the samples.
    """
    if not 1 <= budget <= len(features_N_D):
        raise ValueError(f"expected a budget of 1 to {len(features_N_D)} samples, found {budget}")
    numbers = np.random.default_rng(seed)
    with side_by_side() as run:
        search = _Search(residual_N_C, features_N_D, budget, run)
        search.add(int(search.norm_N.argmax()) if first is None else first)
        while len(search.picked) < budget:
            row = search.draw(numbers.random)
            if row is None:
                break
            search.add(row)
        distance_N = search.distances()
    # where all are zero the first was no larger than the others
    picked = search.picked if search.norm_N.any() else []
    rest = np.setdiff1d(np.arange(len(distance_N)), picked)
    picked.extend(numbers.permutation(rest)[: budget - len(picked)].tolist())
    return np.array(picked, dtype=np.int64), distance_N


class _Search:
    """Squared distances to the nearest seed, or what they were before the last seeds: `bound_N`, and never below.

    A bound knows the first `swept` seeds, that of a row that was drawn since the first `seen_N`. `mass_M` are the sums
    of _MASS_ROWS bounds each. A distance that rounding alone can make is 0: a copy of a seed must not be drawn for its
    rounding error.
    """

    def __init__(self, residual_N_C: Numbers, features_N_D: Numbers, budget: int, run: Runner) -> None:
        self.residual_N_C, self.features_N_D, self._run = residual_N_C, features_N_D, run
        kind = residual_N_C.dtype
        count, numbers = len(features_N_D), residual_N_C.shape[1] + features_N_D.shape[1]
        self.norm_N = np.empty(count)
        run(self._square, blocks(count, _SWEEP_ROWS))
        # of |g|^2, which is nearly |g'|^2 where the distance is as small as that
        self._rounding = 2 * (numbers + 8) * float(np.finfo(kind).eps)
        self.bound_N = np.full(count, np.inf)
        self.seen_N = np.zeros(count, dtype=np.int32)
        self.mass_M = np.empty(-(-count // _MASS_ROWS))
        self.picked: list[int] = []
        self._residual_K_C = np.empty((budget, residual_N_C.shape[1]), dtype=kind)
        self._features_K_D = np.empty((budget, features_N_D.shape[1]), dtype=kind)
        self._norm_K = np.empty(budget, dtype=kind)
        self.swept = self._rejected = 0

    @property
    def patience(self) -> int:
        """So many rows are rejected before a sweep."""
        return (self.residual_N_C.size + self.features_N_D.size) // _READ_IN_A_DRAW

    def add(self, row: int) -> None:
        place = len(self.picked)
        self._residual_K_C[place], self._features_K_D[place] = self.residual_N_C[row], self.features_N_D[row]
        self._residual_K_C[place] *= -2
        self._norm_K[place] = self.norm_N[row]
        self.picked.append(row)
        if len(self.picked) == 1 or len(self.picked) - self.swept == _SEEDS:
            self._sweep()
        else:
            self._lower(row, 0.0)

    def draw(self, uniform: Callable[[], float]) -> int | None:
        """A row, with probability proportional to its squared distance to the nearest seed; None where all are 0."""
        while True:
            mass_M = np.cumsum(self.mass_M)
            if not mass_M[-1] > 0:
                return None
            row, bound = self._propose(mass_M, uniform())
            distance = self._up_to_date(row)
            if uniform() * bound < distance:
                return row
            self._lower(row, distance)
            self._rejected += 1
            if self._rejected > self.patience:
                self._sweep()

    def distances(self) -> Exact:
        self._sweep()
        return self.bound_N

    def _propose(self, mass_M: Exact, uniform: float) -> tuple[int, float]:
        place = _draw(mass_M, uniform)
        left = uniform * mass_M[-1] - (mass_M[place - 1] if place else 0)
        start = place * _MASS_ROWS
        bounds = self.bound_N[start : start + _MASS_ROWS]
        row = _draw(np.cumsum(bounds), max(left, 0) / self.mass_M[place])
        return start + row, float(bounds[row])

    def _up_to_date(self, row: int) -> float:
        new = slice(max(self.swept, int(self.seen_N[row])), len(self.picked))
        to_new_K = self._residual_K_C[new] @ self.residual_N_C[row]
        to_new_K *= self._features_K_D[new] @ self.features_N_D[row].astype(to_new_K.dtype, copy=False)
        to_new_K += self._norm_K[new]
        nearest = float(to_new_K.min(initial=np.inf)) + self.norm_N[row]
        return min(float(self.bound_N[row]), 0.0 if nearest <= self._rounding * self.norm_N[row] else nearest)

    def _lower(self, row: int, distance: float) -> None:
        self.bound_N[row], self.seen_N[row] = distance, len(self.picked)
        place = row // _MASS_ROWS
        self.mass_M[place] = self.bound_N[place * _MASS_ROWS : (place + 1) * _MASS_ROWS].sum()

    def _sweep(self) -> None:
        """Brings every row up to date."""
        if self.swept == len(self.picked):
            return
        self._run(self._approach, blocks(len(self.bound_N), _SWEEP_ROWS))
        self.bound_N[self.picked] = 0
        self.mass_M[:] = np.add.reduceat(self.bound_N, np.arange(0, len(self.bound_N), _MASS_ROWS))
        self.swept, self._rejected = len(self.picked), 0

    def _approach(self, rows: slice) -> None:
        new = slice(self.swept, len(self.picked))
        to_new_B_K = self.residual_N_C[rows] @ self._residual_K_C[new].T
        to_new_B_K *= self._features(rows) @ self._features_K_D[new].T
        to_new_B_K += self._norm_K[new]
        nearest_B = to_new_B_K.min(axis=1, initial=np.inf) + self.norm_N[rows]
        nearest_B[nearest_B <= self._rounding * self.norm_N[rows]] = 0
        np.minimum(self.bound_N[rows], nearest_B, out=self.bound_N[rows])

    def _square(self, rows: slice) -> None:
        self.norm_N[rows] = _squares(self.residual_N_C[rows]) * _squares(self._features(rows))

    def _features(self, rows: slice) -> Numbers:
        return self.features_N_D[rows].astype(self.residual_N_C.dtype, copy=False)


def _draw(mass_N: NDArray[np.float64], uniform: float) -> int:
    """The row whose share of the cumulated mass_N contains `uniform`, in [0, 1): never one without mass."""
    row = int(np.searchsorted(mass_N, uniform * mass_N[-1], side="right"))
    last = int(np.searchsorted(mass_N, mass_N[-1], side="left"))
    return min(row, last)


def _residuals(pool: Shard, kind: np.dtype[Any]) -> Numbers:
    """residual_N_C: posteriors less the one-hot predicted class. In blocks: no float64 copy of the whole."""
    assert pool.logits_N_C is not None  # noqa: S101 -- gathered: it is among the columns
    residual_N_C = np.empty(pool.logits_N_C.shape, dtype=kind)
    for start in range(0, len(pool), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        probabilities_B_C = posteriors(Shard(pool.sample_ids[rows], logits_N_C=pool.logits_N_C[rows]))
        predicted_B = probabilities_B_C.argmax(axis=1)
        probabilities_B_C[np.arange(len(predicted_B)), predicted_B] -= 1
        residual_N_C[rows] = probabilities_B_C
    return residual_N_C


def _squares(values_N_D: Numbers) -> Numbers:
    return np.asarray(np.einsum("nd,nd->n", values_N_D, values_N_D))
