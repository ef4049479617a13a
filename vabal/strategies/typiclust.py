"""TypiClust: the most typical sample of each cluster that has no label yet (Hacohen et al. 2022, arXiv:2202.02794).

TPC_RP on the last features, L2-normalised: the classifier's, which with a probe are its frozen backbone's, or with
`selection.features: backbone` those of that network whatever the learner (the paper's are self-supervised). Labelled
and unlabelled samples together are clustered into as many clusters as there will be labels after the round, 500 at
most. Again and again the cluster with the fewest labels, among these the largest, gives its most typical sample: the
one with the smallest mean distance to its 20 nearest neighbours in the cluster (typicality is the inverse). Clusters of
less than 5 samples wait until nothing else is left.

As the authors do, up to 50 clusters are found by k-means, more by mini-batch k-means (`k_means`). Otherwise than theirs
a picked or labelled sample stays a neighbour of the others, so that a cluster is measured once.

For large pools: clusters are fitted on at most 65 536 samples, and all samples are then assigned in blocks; a cluster
of more than 4 096 samples is measured on so many of them, which are a random part, as the pool's order is one. Cost:
O(N D K) for K clusters, and at most O(4096 N D) for neighbours. Memory beside the features: the normalised samples that
are fitted, a few numbers a sample, and blocks. Picks are the same on any number of threads.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Shard
from vabal.strategies.k_means import lloyd, mini_batches
from vabal.strategies.sequential import SequentialStrategy
from vabal.strategies.side_by_side import blocks, side_by_side

Numbers = NDArray[np.floating]
Indices = NDArray[np.int64]

MOST_CLUSTERS = 500
SMALLEST_CLUSTER = 5
NEIGHBOURS = 20

_EXACT_CLUSTERS = 50  # up to so many, k-means; beyond, mini-batch k-means
_FITTED_ROWS = 2**16
_MEASURED_ROWS = 2**12
_BLOCK_ROWS = 2**12
_BLOCK_NEIGHBOURS = 2**9
_WHOLE_ROWS = 2**11  # so many are multiplied with each other at once
_NORMALISED_ROWS = 2**9
_SHORTEST = 1e-30  # of a feature vector that has a direction in float32


class TypiclustStrategy(SequentialStrategy):
    """Picks typical samples of clusters without labels. Those that are not picked all score 0."""

    name: ClassVar[str] = "typiclust"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True)
    ranks_all: bool = False

    def needs_under(self, settings: Any) -> Needs:
        """The frozen network's features, where the settings ask for them."""
        return replace(self.needs, embeddings=settings.selection.features == "backbone")

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[np.integer], None]:
        assert pool.features_N_D is not None  # noqa: S101 -- gathered: it is among the columns
        features_N_D = context.deep(pool.features_N_D)
        labeled_L_D = features_N_D[:0] if context.labeled is None else context.deep(context.labeled.features_N_D)
        clusters = min(len(labeled_L_D) + budget, MOST_CLUSTERS)
        centres_K_D = cluster_centres(features_N_D, labeled_L_D, clusters, context.seed)
        cluster_N, cluster_L = nearest(features_N_D, centres_K_D), nearest(labeled_L_D, centres_K_D)
        return typical(features_N_D, cluster_N, labeled_L_D, cluster_L, budget), None


def cluster_centres(features_N_D: Numbers, labeled_L_D: Numbers, clusters: int, seed: int) -> NDArray[np.float32]:
    """centres_K_D of k-means on the normalised samples, labelled and unlabelled."""
    fitted_M_D = _sample(features_N_D, labeled_L_D, seed)
    fit = lloyd if clusters <= _EXACT_CLUSTERS else mini_batches
    return fit(fitted_M_D, min(clusters, len(fitted_M_D)), seed % 2**32)


def nearest(features_N_D: Numbers, centres_K_D: NDArray[np.float32]) -> Indices:
    """cluster_N: the centre nearest to each normalised sample, the first of equally near ones."""
    cluster_N = np.empty(len(features_N_D), dtype=np.int64)
    constant_K = (centres_K_D**2).sum(axis=1) / 2

    def look(rows: slice) -> None:
        near_B_K = _normalised(features_N_D[rows]) @ centres_K_D.T
        near_B_K -= constant_K
        cluster_N[rows] = near_B_K.argmax(axis=1)

    with side_by_side() as run:
        run(look, blocks(len(features_N_D), _BLOCK_ROWS))
    return cluster_N


def typical(
    features_N_D: Numbers, cluster_N: Indices, labeled_L_D: Numbers, cluster_L: Indices, budget: int
) -> Indices:
    """Rows of the samples picked, in order, from clusters that are given: the rule of the module's docstring.

    Of as many labels and as large, the cluster with the lower number comes first; of samples as typical, the first.
    """
    members, labeled = _members(cluster_N), _members(cluster_L)
    sizes = {cluster: len(rows) + len(labeled.get(cluster, ())) for cluster, rows in members.items()}
    queue = [
        (size < SMALLEST_CLUSTER, len(labeled.get(cluster, ())), -size, cluster) for cluster, size in sizes.items()
    ]
    heapify(queue)
    left: dict[int, Iterator[int]] = {}
    picked: list[int] = []
    while len(picked) < budget:
        small, labels, size, cluster = heappop(queue)
        if cluster not in left:
            others_M_D = labeled_L_D[labeled.get(cluster, np.zeros(0, dtype=np.int64))]
            left[cluster] = iter(_most_typical_first(features_N_D, members[cluster], others_M_D))
        row = next(left[cluster], None)
        if row is not None:
            picked.append(row)
            heappush(queue, (small, labels + 1, size, cluster))
    return np.array(picked, dtype=np.int64)


def mean_distance(features_M_D: Numbers, neighbours: int = NEIGHBOURS) -> NDArray[np.float64]:
    """distance_M: each sample's mean distance to its nearest neighbours among the others, 0 where there are none.

    Products are of the features' type: with float32, squared distances are right to 1e-6 of the squared lengths.
    """
    count = min(neighbours, len(features_M_D) - 1)
    distance_M = np.zeros(len(features_M_D))
    if not count:
        return distance_M
    square_M = np.einsum("md,md->m", features_M_D, features_M_D)

    def look(rows: slice, product_M_M: Numbers | None) -> None:
        squared_B_M = features_M_D[rows] @ features_M_D.T if product_M_M is None else product_M_M[rows]
        squared_B_M *= -2
        squared_B_M += square_M
        squared_B_M += square_M[rows, None]
        squared_B_M[np.arange(len(squared_B_M)), np.arange(rows.start, rows.stop)] = np.inf  # no neighbour of itself
        squared_B_M.partition(count - 1, axis=1)
        nearest_B_K = np.maximum(squared_B_M[:, :count], 0, dtype=np.float64)
        distance_M[rows] = np.sqrt(nearest_B_K).mean(axis=1)

    with side_by_side() as run:
        # Of a matrix by its own transpose NumPy computes one half; the other half is that.
        product_M_M = features_M_D @ features_M_D.T if len(features_M_D) <= _WHOLE_ROWS else None
        run(partial(look, product_M_M=product_M_M), blocks(len(features_M_D), _BLOCK_NEIGHBOURS))
    return distance_M


def _most_typical_first(features_N_D: Numbers, rows: Indices, labeled_M_D: Numbers) -> list[int]:
    """The cluster's unlabelled rows, those that were not measured last."""
    measured = rows[:_MEASURED_ROWS]
    others_M_D = labeled_M_D[: _MEASURED_ROWS - len(measured)]
    together_M_D = np.concatenate([_normalised(features_N_D[measured]), _normalised(others_M_D)])
    distance_M = mean_distance(together_M_D)[: len(measured)]
    return [*measured[np.argsort(distance_M, kind="stable")].tolist(), *rows[_MEASURED_ROWS:].tolist()]


def _members(cluster_N: Indices) -> dict[int, Indices]:
    """The rows of each cluster that has any, in order."""
    order_N = np.argsort(cluster_N, kind="stable")
    found, starts = np.unique(cluster_N[order_N], return_index=True)
    return dict(zip(found.tolist(), np.split(order_N, starts[1:]), strict=True)) if len(found) else {}


def _sample(features_N_D: Numbers, labeled_L_D: Numbers, seed: int) -> NDArray[np.float32]:
    """Normalised samples to fit clusters on: all, or as many as bear it, labelled ones in proportion."""
    count, unlabeled = len(features_N_D) + len(labeled_L_D), len(features_N_D)
    rows = np.arange(count)
    if count > _FITTED_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(count, _FITTED_ROWS, replace=False))
    drawn = ((features_N_D, rows[rows < unlabeled]), (labeled_L_D, rows[rows >= unlabeled] - unlabeled))
    fitted_M_D = np.empty((len(rows), features_N_D.shape[1]), dtype=np.float32)
    begin = 0
    for features, drawn_rows in drawn:
        for block in blocks(len(drawn_rows), _NORMALISED_ROWS):  # whole copies on the way would cost as much as a fit
            of_block = drawn_rows[block]
            fitted_M_D[begin : begin + len(of_block)] = _normalised(features[of_block])
            begin += len(of_block)
    return fitted_M_D


def _normalised(features_N_D: Numbers) -> NDArray[np.float32]:
    """Of length 1, as float32; a sample whose features are all 0 stays as it is."""
    length_N = np.sqrt(np.einsum("nd,nd->n", features_N_D, features_N_D, dtype=np.float64))
    scale_N = np.divide(1, length_N, out=np.ones_like(length_N), where=length_N > _SHORTEST)
    return np.asarray(features_N_D * scale_N.astype(np.float32)[:, None], dtype=np.float32)
