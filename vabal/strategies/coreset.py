"""Core-set: no sample is left far from a labelled one (Sener & Savarese 2018, arXiv:1708.00489).

The greedy 2-approximation of the k-centre problem in the space of the classifier's last features: the sample farthest
from its nearest centre becomes the next centre; at the start the labelled samples are the centres. Axes: the legend of
the package; L labelled samples, K centres, F samples of the front, B samples of a block.

How it is fast. Distances to the nearest centre only shrink while centres are added, so a distance of before is an upper
bound of today's, and a sample need not be looked at while its bound lies below the farthest sample. The *front*, some
hundred samples with the largest bounds, is held in float64 and brought up to date after every pick; it is picked from
until a sample outside could be farther, then the next front is taken. All others are brought up to date by *sweeps*:
float32 matrix products with many centres at once, at the end and whenever the fronts since the last one have cost as
much. What a sweep leaves includes the bound of its rounding errors. So the picks are those of the plain loop in
float64, up to ties.

Cost: O(N D (L + budget)), the multiplications of the plain loop, but in matrix products; a pick itself reads the front
alone. Memory beside the features: 28 bytes a sample (twice 8 more while a front is chosen), the front (at most 2 048
samples in float64) and blocks: with 512 features 13 % of the features of 50 000 samples, 3 % of those of 1 000 000.
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Shard
from vabal.strategies.sequential import SequentialStrategy

Numbers = NDArray[np.floating]
Exact = NDArray[np.float64]

_CENTRES = 512  # that one matrix product takes
_FRONT_BEGINS, _FRONT_ENDS = 256, 2048  # samples; a front that did not do is followed by one of twice the size
_FRONT_SHARE = 32  # and at most one of so many samples stands in it, beyond the first 256
_BLOCK_NUMBERS = 2**19  # of a block of features
_SWEEP_ROWS = 2048  # of a block of a sweep, with _CENTRES numbers each
_TOO_LARGE = 1e35  # a square that leaves float32 room for sums of a few more
_DEARER = 4  # a sample costs so many times more in a front than in a sweep


class CoresetStrategy(SequentialStrategy):
    """Picks the sample farthest from all centres, again and again; the rest ranks by the distance that is left.

    Without a labelled sample it starts from the sample nearest to the mean.
    """

    name: ClassVar[str] = "coreset"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True)

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[np.integer], NDArray[Any]]:
        assert pool.features_N_D is not None  # noqa: S101 -- gathered: it is among the columns
        features_N_D = context.deep(pool.features_N_D)
        labeled_L_D = features_N_D[:0] if context.labeled is None else context.deep(context.labeled.features_N_D)
        return k_centre_greedy(features_N_D, labeled_L_D, budget)


def k_centre_greedy(features_N_D: Numbers, labeled_L_D: Numbers, budget: int) -> tuple[NDArray[np.int64], Exact]:
    """The rows picked, in order, and distance_N to the nearest centre, the picks being centres as well (so 0 for them).

    The picks are exact; distances of samples that never came close to being picked are accurate to float32. Among
    samples equally far the choice is arbitrary, and the same every time. Raises ValueError for a budget below one or
    beyond the samples, UserError for features so large that float32 does not hold their squares.
    """
    if not 1 <= budget <= len(features_N_D):
        raise ValueError(f"expected a budget of 1 to {len(features_N_D)} samples, found {budget}")
    search = _Search(features_N_D)
    if len(labeled_L_D):
        search.add_labeled(labeled_L_D)
    else:
        search.start_from(int(search.square_N.argmin()))
    search.run(budget)
    return np.array(search.picked, dtype=np.int64), search.distances()


class _Search:
    """Squared distances to the nearest centre: `squared_N` as well as known, `bound_N` never below the true one.

    `bound_N` is -inf for a sample that is picked. `seen_N` counts the picks that a bound takes into account exactly;
    it is -1 for a sample that was in no front yet, whose bound is a sweep's. Every bound knows the first `swept` picks.
    Distances are computed from features less their mean: so fewer digits cancel. `square_N` are their squared norms.
    """

    def __init__(self, features_N_D: Numbers) -> None:
        self.features_N_D = features_N_D
        self.labeled_L_D = features_N_D[:0]
        self.mean_D = _sum_of_rows(features_N_D) / len(features_N_D)
        self.square_N = np.concatenate([_squares(self._centred(block_B_D)) for block_B_D in _blocks(features_N_D)])
        self.largest = _largest(self.square_N)
        self.bound_N = np.full(len(features_N_D), np.inf)
        self.squared_N = self.bound_N.copy()
        self.seen_N = np.full(len(features_N_D), -1, dtype=np.int32)
        self.picked: list[int] = []
        self.swept = 0

    def add_labeled(self, labeled_L_D: Numbers) -> None:
        self.labeled_L_D = labeled_L_D
        squares = [_largest(_squares(self._centred(block_B_D))) for block_B_D in _blocks(labeled_L_D)]
        self.largest = max(self.largest, *squares)
        self._sweep(labeled_L_D)

    def start_from(self, row: int) -> None:
        self.picked.append(row)
        self._sweep_picks()
        self.bound_N[row] = self.squared_N[row] = -np.inf

    def run(self, budget: int) -> None:
        """Picks until there are `budget`."""
        count = len(self.bound_N)
        most = max(_FRONT_BEGINS, min(_FRONT_ENDS, count // _FRONT_SHARE))
        rows, spent = _FRONT_BEGINS, 0
        while len(self.picked) < budget:
            self._pick_from_front(min(rows, count), budget)
            spent += rows * _DEARER
            rows = min(2 * rows, most)
            if spent >= count and len(self.picked) < budget:
                self._sweep_picks()
                rows, spent = _FRONT_BEGINS, 0

    def distances(self) -> Exact:
        self._sweep_picks()
        return np.asarray(np.sqrt(np.maximum(self.squared_N, 0)))

    # -- the front: exact, few samples ------------------------------------------------------------------------------

    def _pick_from_front(self, rows: int, budget: int) -> None:
        """Takes the samples with the largest bounds, and picks until one outside might be farther."""
        front_F, outside = self._largest_bounds(rows)
        centred_F_D = self._centred(self.features_N_D[front_F])
        square_F = self.square_N[front_F]
        squared_F = self._up_to_date(front_F, centred_F_D)
        while len(self.picked) < budget:
            farthest = int(squared_F.argmax())
            if squared_F[farthest] < outside:
                break
            self.picked.append(int(front_F[farthest]))
            to_pick_F = centred_F_D @ centred_F_D[farthest]
            to_pick_F *= -2
            to_pick_F += square_F
            to_pick_F += square_F[farthest]
            np.minimum(squared_F, to_pick_F, out=squared_F)
            squared_F[farthest] = -np.inf
        self.bound_N[front_F] = self.squared_N[front_F] = squared_F
        self.seen_N[front_F] = len(self.picked)

    def _largest_bounds(self, rows: int) -> tuple[NDArray[np.int64], float]:
        """front_F, those that have seen the least first, and the largest bound outside."""
        if rows == len(self.bound_N):
            front_F, outside = np.arange(rows), -np.inf
        else:
            order_N = np.argpartition(self.bound_N, -rows)
            front_F, outside = np.sort(order_N[-rows:]), float(self.bound_N[order_N[:-rows]].max())
        return front_F[np.argsort(self.seen_N[front_F], kind="stable")], outside

    def _up_to_date(self, front_F: NDArray[np.int64], centred_F_D: Exact) -> Exact:
        """Squared distances to the nearest of all centres, each sample catching up on those that it has not seen."""
        squared_F, seen_F, square_F = self.bound_N[front_F], self.seen_N[front_F], self.square_N[front_F]
        is_picked_F = np.isneginf(squared_F)
        new = int(np.searchsorted(seen_F, 0))
        squared_F[:new] = np.inf
        for start in range(0, len(self.labeled_L_D) if new else 0, _CENTRES):
            centred_K_D = self._centred(self.labeled_L_D[start : start + _CENTRES])
            _approach(squared_F[:new], centred_F_D[:new], square_F[:new], centred_K_D)
        for start in range(0, len(front_F), _FRONT_BEGINS):
            part = slice(start, start + _FRONT_BEGINS)
            for first in range(max(0, int(seen_F[start])), len(self.picked), _CENTRES):
                centred_K_D = self._centred(self.features_N_D[self.picked[first : first + _CENTRES]])
                _approach(squared_F[part], centred_F_D[part], square_F[part], centred_K_D)
        squared_F[is_picked_F] = -np.inf
        return squared_F

    # -- the sweep: all samples, float32 ----------------------------------------------------------------------------

    def _sweep_picks(self) -> None:
        if self.swept < len(self.picked):
            self._sweep(self.features_N_D[self.picked[self.swept :]])
            self.swept = len(self.picked)

    def _sweep(self, centres_K_D: Numbers) -> None:
        """Lowers the bounds by the distances to these centres, of which there may be many.

        The features themselves are not centred, which would copy them: with m the mean and c a centred centre,
        |x - m - c|^2 = |x - m|^2 - 2 (x c - |c|^2 / 2 - m c).
        """
        for start in range(0, len(centres_K_D), _CENTRES):
            centred_K_D = self._centred(centres_K_D[start : start + _CENTRES])
            constant_K = (-_squares(centred_K_D) / 2 - centred_K_D @ self.mean_D).astype(np.float32)
            single_D_K = centred_K_D.T.astype(np.float32)
            for begin in range(0, len(self.bound_N), _SWEEP_ROWS):
                rows = slice(begin, begin + _SWEEP_ROWS)
                near_B_K = self.features_N_D[rows].astype(np.float32, copy=False) @ single_D_K
                near_B_K += constant_K
                squared_B = self.square_N[rows] - 2 * near_B_K.max(axis=1).astype(np.float64)
                np.minimum(self.squared_N[rows], squared_B, out=self.squared_N[rows])
                squared_B += self._rounding(rows)
                np.minimum(self.bound_N[rows], squared_B, out=self.bound_N[rows])

    def _rounding(self, rows: slice) -> Exact:
        """The most that a squared distance of a sweep is wrong by.

        A float32 scalar product of length D is off by at most about D u |x| |c| with u half the machine epsilon
        (Higham 2002, Section 3.1), and 2 |x| |c| <= |x|^2 + |c|^2; the 8 leave room for the sums around it.
        """
        epsilon, dims = float(np.finfo(np.float32).eps), len(self.mean_D)
        mean = float(self.mean_D @ self.mean_D)
        return np.asarray((dims + 8) * epsilon * (2 * self.square_N[rows] + 3 * mean + self.largest))

    def _centred(self, features_B_D: Numbers) -> Exact:
        centred_B_D = features_B_D.astype(np.float64)
        centred_B_D -= self.mean_D
        return centred_B_D


def _approach(squared_F: Exact, centred_F_D: Exact, square_F: Exact, centred_K_D: Exact) -> None:
    """Lowers squared_F, in place, to the squared distance to the nearest of these centres."""
    from_each_F_K = centred_F_D @ centred_K_D.T
    from_each_F_K *= -2
    from_each_F_K += _squares(centred_K_D)
    np.minimum(squared_F, from_each_F_K.min(axis=1) + square_F, out=squared_F)


def _squares(centred_B_D: Exact) -> Exact:
    return np.asarray(np.einsum("bd,bd->b", centred_B_D, centred_B_D))


def _largest(square_N: Exact) -> float:
    largest = float(square_N.max())
    if not largest <= _TOO_LARGE:  # that is, not for a number that is none either
        distance = f"{largest**0.5:.1e}"
        raise UserError(
            f"features are {distance} from their mean, beyond what float32 can square: look at the training"
        )
    return largest


def _blocks(features_N_D: Numbers) -> Iterator[Numbers]:
    rows = max(1, _BLOCK_NUMBERS // max(1, features_N_D.shape[1]))
    for start in range(0, len(features_N_D), rows):
        yield features_N_D[start : start + rows]


def _sum_of_rows(features_N_D: Numbers) -> Exact:
    total_D = np.zeros(features_N_D.shape[1])
    for block_B_D in _blocks(features_N_D):
        total_D += block_B_D.sum(axis=0, dtype=np.float64)
    return total_D
