"""How far a model still changes its mind from round to round, and how sure it is: what rules of stopping look at.

Axes: N images that could be picked in both rounds, C classes.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Settled(NamedTuple):
    """Of two models in succession: the share of images whose predicted class is another one (Zhu et al. 2008), Cohen's
    kappa of the two (Bloodgood and Vijay-Shanker 2009), and one less the mean over classes of the F between the two
    (Altschuler and Bloodgood 2019). Of the newer: the mean entropy of its posteriors in shares of the highest one."""

    changed: float
    kappa: float
    delta_f: float
    entropy: float | None


def settled(
    before_N: NDArray[np.integer], now_N: NDArray[np.integer], classes: int, posteriors_N_C: NDArray[Any] | None
) -> Settled:
    """From predicted classes as numbers. Where both say the same one thing, kappa is 1. Raises ValueError for none."""
    if not len(now_N):
        raise ValueError("no image could be picked in both rounds")
    counts_C_C = np.bincount(before_N * classes + now_N, minlength=classes**2).reshape(classes, classes) / len(now_N)
    before_C, now_C, same_C = counts_C_C.sum(axis=1), counts_C_C.sum(axis=0), counts_C_C.diagonal()
    chance, agreed = float(before_C @ now_C), float(same_C.sum())
    there_C = before_C + now_C > 0
    f_C = 2 * same_C[there_C] / (before_C + now_C)[there_C]
    kappa = 1.0 if chance >= 1 - 1e-12 else (agreed - chance) / (1 - chance)
    return Settled(
        1 - agreed, kappa, 1 - float(f_C.mean()), None if posteriors_N_C is None else entropy(posteriors_N_C)
    )


def entropy(posteriors_N_C: NDArray[Any]) -> float:
    """Mean over the rows, in shares of that of a uniform posterior."""
    rows_N_C = posteriors_N_C.astype(np.float64)
    each_N_C = np.where(rows_N_C > 0, -rows_N_C * np.log(np.where(rows_N_C > 0, rows_N_C, 1.0)), 0.0)
    return float(each_N_C.sum(axis=1).mean() / np.log(rows_N_C.shape[1])) if rows_N_C.shape[1] > 1 else 0.0
