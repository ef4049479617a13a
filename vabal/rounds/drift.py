"""Which images a night is compared by with the nights before it, and as which numbers: what `audit.drift` tests.

Axes: N images, D features, Z principal components.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal import pools
from vabal.settings.models import Params
from vabal.strategies.noise import uniform_noise

FEWEST: Final = 10  # of either side: below, nothing is compared
COMPONENTS: Final = 32


class Compared(NamedTuple):
    """Catalog rows, in the order in which they were drawn."""

    new: pd.DataFrame
    earlier: pd.DataFrame

    @property
    def sample_ids(self) -> list[str]:
        """The new ones first."""
        return [str(name) for part in self for name in part["sample_id"]]


def compared(catalog: pd.DataFrame, holdout: Iterable[str], round_number: int, params: Params, seed: int) -> Compared:
    """Those that came in with the round, and those before; no rows where either are fewer than `FEWEST`.

    Of a group one image stands for all. A probe's features come from a frozen network, so of what came earlier each
    image counts, whatever became of it: what is left over when the doubtful were picked is no sample of what came. A
    network that learns says other things of what it learned from; then the holdout stands for what came earlier. Drawn
    by id and seed alone, at most `pool.drift_images` of each.
    """
    held_N = pools.among(catalog["sample_id"], holdout).to_numpy()
    frozen, most = params.classifier.learner == "probe", params.pool.drift_images
    added_N = catalog["added_round"].to_numpy()
    new_N, earlier_N = ~held_N & (added_N == round_number), (held_N != frozen) & (added_N < round_number)
    if not most or not round_number or new_N.sum() < FEWEST:
        return Compared(catalog[:0], catalog[:0])
    rows = catalog.assign(new=new_N)[new_N | earlier_N]
    rows = rows.iloc[np.argsort(uniform_noise(rows["sample_id"], seed), kind="stable")]
    group_N = pools.groups_of(rows)
    if group_N is not None:
        rows = rows[~pd.Series(group_N).duplicated().to_numpy()]
    new, earlier = (rows[rows["new"] == side].iloc[:most] for side in (True, False))
    if min(len(new), len(earlier)) < FEWEST:
        return Compared(catalog[:0], catalog[:0])
    return Compared(new, earlier)


def components(features_N_D: NDArray[Any]) -> NDArray[np.float32]:
    """coordinates_N_Z: the first principal components of all together, each feature at unit variance.

    They know nothing of which image is new, so a test by permutations stays exact.
    """
    values_N_D = features_N_D.astype(np.float64)
    values_N_D -= values_N_D.mean(axis=0)
    spread_D = values_N_D.std(axis=0)
    values_N_D /= np.where(spread_D > 0, spread_D, 1.0)
    square, vectors = np.linalg.eigh(values_N_D @ values_N_D.T)
    most = slice(None, -1 - COMPONENTS, -1)
    return np.asarray(vectors[:, most] * np.sqrt(np.maximum(square[most], 0.0)), dtype=np.float32)
