"""Labels that are probably wrong, by what a classifier says of images that it was not trained on.

Axes: L labelled images, C classes.
"""

from math import fsum
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

FOLDS: Final = 10  # of the labelled pool, by which posteriors are out of fold


class Suspicion(NamedTuple):
    """`order_L`: images by how little the classifier believes their label, the least first; `wrong`: how many of them
    confident learning holds for wrong."""

    order_L: NDArray[np.int64]
    wrong: int


def can_be_doubted(labels: pd.Series) -> bool:
    """Whether there are enough labels for out-of-fold posteriors: two classes with two images each are the least."""
    return bool(labels.value_counts().gt(1).sum() >= 2)


def suspicion(labels_L: NDArray[np.int64], posterior_L_C: NDArray[np.floating]) -> Suspicion:
    """How far labels are to be doubted; `posterior_L_C` are out-of-fold.

    Wrong are those labels of which another class is believed at least as much as images with that class's label
    believe it on average (the confident joint of Northcutt et al., 2021, off its diagonal).
    """
    own_L = posterior_L_C[np.arange(len(labels_L)), labels_L].astype(np.float64)
    least_C = np.full(posterior_L_C.shape[1], np.inf)
    for label in np.unique(labels_L):
        of_label_L = own_L[labels_L == label]
        least_C[label] = fsum(of_label_L) / len(of_label_L)  # the same on every machine: the audit derives it again
    confident_L_C = posterior_L_C >= least_C
    believed_L = np.where(confident_L_C, posterior_L_C, -1.0).argmax(axis=1)
    wrong_L = confident_L_C.any(axis=1) & (believed_L != labels_L)
    return Suspicion(np.argsort(own_L, kind="stable"), int(wrong_L.sum()))
