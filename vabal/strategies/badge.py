"""BADGE: a batch whose gradients are large and point in different directions (Ash et al. 2020, arXiv:1906.03671).

A sample's gradient embedding is the gradient of the loss in the last layer's weights if the predicted class were true:
g = q h^T with q = p - onehot(predicted class) and h the features that the layer sees. The batch is drawn as k-means++
draws its seeds: the first is the embedding with the largest norm (as the authors' code has it), each further one is
drawn with probability proportional to its squared distance to the nearest of those before.

The embeddings have C D numbers and are never made: (q h^T) . (q' h'^T) = (q . q') (h . h'). Cost: O(N (C + D)) a pick;
memory beside the features: N (C + 4) numbers. A pool of 1 000 000 samples is one pass over features and q a pick.
"""

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Shard, posteriors
from vabal.strategies.sequential import SequentialStrategy

Numbers = NDArray[np.floating]

_BLOCK_ROWS = 2**14


class BadgeStrategy(SequentialStrategy):
    """k-means++ seeds among gradient embeddings; the rest ranks by the squared distance to the nearest seed."""

    name: ClassVar[str] = "badge"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True)

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[np.integer], NDArray[Any]]:
        assert pool.features_N_D is not None  # noqa: S101 -- gathered: it is among the columns
        features_N_D = context.deep(pool.features_N_D)
        kind = np.result_type(features_N_D.dtype, np.float32)
        residual_N_C = _residuals(pool, kind)
        return seeds(residual_N_C, features_N_D.astype(kind, copy=False), budget, context.seed)


def seeds(
    residual_N_C: Numbers, features_N_D: Numbers, budget: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows drawn, in order, and the squared distance_N of each embedding to the nearest of them.

    Where no embedding is apart from those drawn (all zero, say: a single class, or a classifier that is certain), the
    rest is drawn uniformly. Raises ValueError for a budget below one or beyond the samples.
    """
    if not 1 <= budget <= len(features_N_D):
        raise ValueError(f"expected a budget of 1 to {len(features_N_D)} samples, found {budget}")
    numbers = np.random.default_rng(seed)
    norm_N = (_squares(residual_N_C) * _squares(features_N_D)).astype(np.float64)
    rounding = (residual_N_C.shape[1] + features_N_D.shape[1] + 8) * float(np.finfo(features_N_D.dtype).eps)
    picked, distance_N = [int(norm_N.argmax())], np.full(len(norm_N), np.inf)
    while True:
        _approach(distance_N, residual_N_C, features_N_D, norm_N, picked[-1], rounding)
        mass_N = np.cumsum(distance_N)
        if len(picked) == budget or not mass_N[-1] > 0:
            break
        picked.append(_draw(mass_N, numbers.random()))
    if not norm_N.any():  # then the first was no larger than the others
        picked = []
    rest = np.setdiff1d(np.arange(len(norm_N)), picked)
    picked.extend(numbers.permutation(rest)[: budget - len(picked)].tolist())
    return np.array(picked, dtype=np.int64), distance_N


def _approach(
    distance_N: NDArray[np.float64],
    residual_N_C: Numbers,
    features_N_D: Numbers,
    norm_N: NDArray[np.float64],
    row: int,
    rounding: float,
) -> None:
    """Lowers distance_N, in place, to the squared distance to the embedding of that row.

    A distance that rounding alone can make is 0: a copy of a seed must not be drawn for its rounding error.
    """
    product_N = (residual_N_C @ residual_N_C[row]).astype(np.float64)
    product_N *= features_N_D @ features_N_D[row]
    largest_N = norm_N + norm_N[row]
    to_row_N = largest_N - 2 * product_N
    to_row_N[to_row_N <= rounding * largest_N] = 0
    np.minimum(distance_N, to_row_N, out=distance_N)
    distance_N[row] = 0


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
