"""Labels that are probably wrong, by what a classifier says of images that it was not trained on.

Axes: L labelled images, C classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Suspicion(NamedTuple):
    """`order_L`: images by how little the classifier believes their label, the least first; `wrong`: how many of them
    confident learning holds for wrong."""

    order_L: NDArray[np.int64]
    wrong: int


def suspicion(labels_L: NDArray[np.int64], posterior_L_C: NDArray[np.floating]) -> Suspicion:
    """How far labels are to be doubted; `posterior_L_C` are out-of-fold.

    Wrong are those labels of which another class is believed at least as much as images with that class's label
    believe it on average (the confident joint of Northcutt et al., 2021, off its diagonal).
    """
    own_L = posterior_L_C[np.arange(len(labels_L)), labels_L]
    least_C = np.full(posterior_L_C.shape[1], np.inf)
    for label in np.unique(labels_L):
        least_C[label] = own_L[labels_L == label].mean()
    confident_L_C = posterior_L_C >= least_C
    believed_L = np.where(confident_L_C, posterior_L_C, -1.0).argmax(axis=1)
    wrong_L = confident_L_C.any(axis=1) & (believed_L != labels_L)
    return Suspicion(np.argsort(own_L, kind="stable"), int(wrong_L.sum()))
