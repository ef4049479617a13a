"""Multinomial logistic regression with a penalty on the squared norm of its weights, for many fits of the same samples.

The samples are rotated once onto the axes along which they vary; each fit, of some of them and at some penalty, is
L-BFGS there with each axis scaled by what the penalty leaves of it: tens of steps where the plain problem takes
hundreds. Axes: L samples, D features, R axes of the samples' span, C classes.
"""

from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import ThreadpoolController

Numbers = NDArray[np.float64]

_CURVATURE: Final = 0.005  # of a cross entropy along a logit, p (1 - p), of a head that is sure of most of its samples
_LEAST_SHARE: Final = 1e-10  # of the largest axis' variance: below it an axis is rounding
_TOLERANCE: Final = 1e-2  # of the gradient along scaled axes: posteriors are right to a few thousandths
_STEPS: Final = 1000


@cache
def _libraries() -> ThreadpoolController:
    """What multiplies matrices in this process. To look for it takes as long as a small fit."""
    return ThreadpoolController()


class Rotated(NamedTuple):
    """Features on the axes of their span: `axes_R_D` are orthonormal, features_L_D = features_L_R @ axes_R_D."""

    features_L_R: Numbers
    axes_R_D: Numbers

    @property
    def squares_R(self) -> Numbers:
        """The sum of squares along each axis."""
        squares_R: Numbers = np.einsum("lr,lr->r", self.features_L_R, self.features_L_R)
        return squares_R


def rotate(features_L_D: Numbers) -> Rotated:
    """The features on the axes along which they vary, of which there are at most as many as samples."""
    samples, features = features_L_D.shape
    with _libraries().limit(limits=1):
        if samples >= features:
            squares_R, axes_D_R = np.linalg.eigh(features_L_D.T @ features_L_D)
            axes_D_R = axes_D_R[:, squares_R > _LEAST_SHARE * squares_R[-1]]
            return Rotated(features_L_D @ axes_D_R, axes_D_R.T)
        squares_R, left_L_R = np.linalg.eigh(features_L_D @ features_L_D.T)
        kept = squares_R > _LEAST_SHARE * squares_R[-1]
        left_L_R, scale_R = left_L_R[:, kept], np.sqrt(squares_R[kept])
        return Rotated(left_L_R * scale_R, (left_L_R / scale_R).T @ features_L_D)


class Fitted(NamedTuple):
    """logits_N_C = features_N_R @ weight_C_R.T + bias_C, of features on the same axes."""

    weight_C_R: Numbers
    bias_C: Numbers


def fit(
    rotated: Rotated,
    labels_L: NDArray[np.int64],
    weights_L: Numbers,
    num_classes: int,
    penalty: float,
    start: Fitted | None = None,
) -> Fitted:
    """What minimises the weighted sum of cross entropies and penalty / 2 * |weight|^2, from `start` on.

    Every class must have a label.
    """
    scale_R = 1 / np.sqrt(_CURVATURE * rotated.squares_R + penalty)
    scaled_L_R, penalty_R = rotated.features_L_R * scale_R, penalty * scale_R**2
    one_hot_L_C, samples = np.eye(num_classes)[labels_L], np.arange(len(labels_L))
    shape = (num_classes, len(scale_R) + 1)  # the bias is the last column

    def value_and_gradient(flat: Numbers) -> tuple[float, Numbers]:
        weight_C_R, bias_C = np.split(flat.reshape(shape), [len(scale_R)], axis=1)
        log_L_C = log_softmax(scaled_L_R @ weight_C_R.T + bias_C.T, axis=1)
        value = -weights_L @ log_L_C[samples, labels_L] + (weight_C_R**2).sum(axis=0) @ penalty_R / 2
        wrong_L_C = weights_L[:, None] * (np.exp(log_L_C) - one_hot_L_C)
        gradient = np.column_stack([wrong_L_C.T @ scaled_L_R + penalty_R * weight_C_R, wrong_L_C.sum(axis=0)])
        return float(value), gradient.ravel()

    first = np.zeros(shape)
    if start is not None:
        first = np.column_stack([start.weight_C_R / scale_R, start.bias_C])
    options: dict[str, Any] = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "gtol": _TOLERANCE, "ftol": 0.0, "maxcor": 20}
    with _libraries().limit(limits=1):
        found = minimize(value_and_gradient, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    weight_C_R, bias_C = np.split(found.x.reshape(shape), [len(scale_R)], axis=1)
    return Fitted(weight_C_R * scale_R, bias_C[:, 0])
