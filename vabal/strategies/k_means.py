"""k-means of many samples, as matrix products: centres of clusters for strategies that ask in each of them.

`lloyd` is exact: a sample is looked at again only where the centres' moves could have changed which one is nearest
(Hamerly 2010, "Making k-means even faster"). `mini_batches` is Sculley's (2010): each centre is the mean of all samples
of drawn batches that came to it. Both start from k-means++ seeds, drawn as `badge` draws its own. All are the same bit
for bit on any number of threads. Axes: M samples, D features, K clusters, B samples of a block.
"""

import numpy as np
from numpy.typing import NDArray

from vabal.strategies.badge import seeds
from vabal.strategies.side_by_side import Runner, blocks, side_by_side

Single = NDArray[np.float32]
Exact = NDArray[np.float64]
Indices = NDArray[np.int64]

_BLOCK_ROWS = 2**11
_MOST_ITERATIONS = 300
_SETTLED = 100  # one in so many samples may still go to another centre
_PART = 8  # one in so many samples, whose centres the others start from
_PARTED_ROWS, _ROWS_OF_A_CLUSTER = 2**14, 20  # from so many samples on, and so many of the part for each cluster
_ROUNDING = 1e-5  # of a distance, of samples of length one in float32
_BATCH_ROWS, _BATCHES = 5000, 32
_SEEDED_ROWS = 3 * _BATCH_ROWS  # among which mini-batches' seeds are drawn, or as many as there are clusters


def lloyd(features_M_D: Single, clusters: int, seed: int) -> Single:
    """centres_K_D, each the mean of the samples nearest to it but for one sample in 100, of samples of length one.

    Many samples start from the centres of a part of them. A centre to which no sample comes stays where it is. Memory:
    28 bytes a sample, blocks, and the part.
    """
    if len(features_M_D) >= max(_PARTED_ROWS, _PART * _ROWS_OF_A_CLUSTER * clusters):
        rows = np.random.default_rng(seed).choice(len(features_M_D), len(features_M_D) // _PART, replace=False)
        centres_K_D = lloyd(features_M_D[np.sort(rows)], clusters, seed).astype(np.float64)
    else:
        centres_K_D = _seeds(features_M_D, clusters, seed).astype(np.float64)
    with side_by_side() as run:
        search = _Nearest(features_M_D, clusters, run)
        for _ in range(_MOST_ITERATIONS):
            if search.move_to(centres_K_D) <= len(features_M_D) // _SETTLED:
                break
            centres_K_D = search.means()
    return centres_K_D.astype(np.float32)


class _Nearest:
    """The cluster_M nearest to each sample, and the sum_K_D of the samples of each.

    `own_M` is no less than the distance to the own centre, `other_M` no more than that to any other.
    """

    def __init__(self, features_M_D: Single, clusters: int, run: Runner) -> None:
        self.features_M_D, self._run, self.iterations = features_M_D, run, 0
        self.square_M = np.einsum("md,md->m", features_M_D, features_M_D).astype(np.float64)
        self.own_M = np.full(len(features_M_D), np.inf)
        self.other_M = np.zeros(len(features_M_D))
        self.cluster_M = np.full(len(features_M_D), -1)
        self.sum_K_D = np.zeros((clusters, features_M_D.shape[1]))
        self.count_K = np.zeros(clusters, dtype=np.int64)
        self._centres_K_D = np.zeros_like(self.sum_K_D)
        self._single_D_K = self._constant_K = np.zeros(0, dtype=np.float32)

    def move_to(self, centres_K_D: Exact) -> int:
        """Samples come to the nearest of these centres; how many come to another than before."""
        moved_K = np.linalg.norm(centres_K_D - self._centres_K_D, axis=1)
        if self.iterations:
            self.own_M += moved_K[self.cluster_M]
            self.other_M -= moved_K.max()
        before_M = self.cluster_M.copy()
        self._centres_K_D, self.iterations = centres_K_D, self.iterations + 1
        self._single_D_K = np.ascontiguousarray(centres_K_D.T, dtype=np.float32)
        self._constant_K = (-(centres_K_D**2).sum(axis=1) / 2).astype(np.float32)
        self._run(self._look, blocks(len(before_M), _BLOCK_ROWS))
        return self._carry(before_M)

    def means(self) -> Exact:
        """centres_K_D: each the mean of its samples."""
        count_K_1 = self.count_K[:, None]
        return np.asarray(np.where(count_K_1, self.sum_K_D / np.maximum(count_K_1, 1), self._centres_K_D))

    def _look(self, block: slice) -> None:
        rows = block.start + np.flatnonzero(self.own_M[block] + _ROUNDING >= self.other_M[block])
        if not len(rows):
            return
        there = slice(rows[0], rows[-1] + 1)
        features_B_D = self.features_M_D[there if there.stop - there.start == len(rows) else rows]
        near_B_K = features_B_D @ self._single_D_K
        near_B_K += self._constant_K
        each = np.arange(len(rows))
        self.cluster_M[rows] = nearest_B = near_B_K.argmax(axis=1)
        self.own_M[rows] = self._distances(rows, near_B_K[each, nearest_B])
        near_B_K[each, nearest_B] = -np.inf
        self.other_M[rows] = self._distances(rows, near_B_K.max(axis=1))

    def _distances(self, rows: Indices, near_B: Single) -> Exact:
        return np.asarray(np.sqrt(np.maximum(self.square_M[rows] - 2 * near_B.astype(np.float64), 0)))

    def _carry(self, before_M: Indices) -> int:
        """Sums and counts, by the samples that came to another cluster; how many there are."""
        changed = np.flatnonzero(before_M != self.cluster_M)
        for start in range(0, len(changed), _BLOCK_ROWS):
            rows = changed[start : start + _BLOCK_ROWS]
            self.sum_K_D += sums(self.features_M_D[rows], self.cluster_M[rows], len(self.sum_K_D))
            left = rows[before_M[rows] >= 0]
            self.sum_K_D -= sums(self.features_M_D[left], before_M[left], len(self.sum_K_D))
        self.count_K = np.bincount(self.cluster_M, minlength=len(self.count_K))
        return len(changed)


def mini_batches(features_M_D: Single, clusters: int, seed: int) -> Single:
    """centres_K_D after 32 batches of 5 000 samples, drawn without replacement as long as there are any left."""
    numbers = np.random.default_rng(seed)
    order = numbers.permutation(len(features_M_D))
    seeded = np.sort(order[: max(_SEEDED_ROWS, clusters)])
    centres_K_D = _seeds(features_M_D[seeded], clusters, seed)
    count_K = np.zeros(clusters, dtype=np.int64)
    begin = 0
    room_B_D = np.empty((min(_BATCH_ROWS, len(order)), features_M_D.shape[1]), dtype=np.float32)  # for all batches
    with side_by_side() as run:
        for _ in range(_BATCHES):
            if begin >= len(order):
                order, begin = numbers.permutation(len(order)), 0
            rows_B = order[begin : begin + _BATCH_ROWS]
            batch_B_D = np.take(features_M_D, rows_B, axis=0, out=room_B_D[: len(rows_B)], mode="clip")
            begin += _BATCH_ROWS
            cluster_B = _nearest(batch_B_D, centres_K_D, run)
            came_K = np.bincount(cluster_B, minlength=clusters)
            count_K += came_K
            away_K_D = sums(batch_B_D, cluster_B, clusters) - came_K[:, None] * centres_K_D
            centres_K_D = (centres_K_D + away_K_D / np.maximum(count_K, 1)[:, None]).astype(np.float32)
    return centres_K_D


def _nearest(features_B_D: Single, centres_K_D: Single, run: Runner) -> Indices:
    nearest_B = np.empty(len(features_B_D), dtype=np.int64)
    constant_K = -(centres_K_D**2).sum(axis=1) / 2

    def look(rows: slice) -> None:
        near_B_K = features_B_D[rows] @ centres_K_D.T
        near_B_K += constant_K
        nearest_B[rows] = near_B_K.argmax(axis=1)

    run(look, blocks(len(features_B_D), _BLOCK_ROWS))
    return nearest_B


def sums(features_B_D: Single, cluster_B: Indices, clusters: int) -> Single:
    """sum_K_D of the samples of each cluster, added up one after the other."""
    from scipy.sparse import csc_array  # noqa: PLC0415 -- takes a while

    count = len(cluster_B)
    of_B = np.arange(count + 1)
    ones_K_B = csc_array((np.ones(count, dtype=np.float32), cluster_B, of_B), shape=(clusters, count))
    return np.asarray(ones_K_B @ features_B_D, dtype=np.float32)


def _seeds(features_M_D: Single, clusters: int, seed: int) -> Single:
    """Samples drawn by k-means++, the first uniformly. With residuals of 1 distances are those of the features."""
    ones_M_1 = np.ones((len(features_M_D), 1), dtype=np.float32)
    first = int(np.random.default_rng(seed).integers(len(features_M_D)))
    return features_M_D[seeds(ones_M_1, features_M_D, clusters, seed, first)[0]]
