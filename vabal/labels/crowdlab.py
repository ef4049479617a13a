"""CROWDLAB: what several people and a classifier together say of an image (Goh, Tkachenko and Mueller, 2022,
arXiv:2210.06812).

An average of the classifier's posterior and of what each person's opinion says, weighed by how much better than the
commonest class the classifier and the person do: the person against the others, the classifier against what most say.
Axes: N images, A annotators, C classes.
"""

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST: Final = 1e-6  # of an error that is divided by, and of a weight


class Crowd(NamedTuple):
    """Each image's posterior, and how much each person and the classifier weigh in it."""

    posterior_N_C: NDArray[np.float64]
    weight_A: NDArray[np.float64]
    weight_model: float


def crowdlab(said_N_A: NDArray[np.int64], posterior_N_C: NDArray[np.floating]) -> Crowd:
    """`said_N_A` are classes, -1 where a person said nothing; each image has an opinion. `posterior_N_C` is that of a
    classifier which has not learned from the image.

    Who never labelled what another did weighs as the others do on average. Raises ValueError where no image has several
    opinions: then nothing is known of anybody.
    """
    N, C = posterior_N_C.shape
    model_N_C = posterior_N_C.astype(np.float64)
    given_N_A = said_N_A >= 0
    counts_N_C = np.stack([(said_N_A == c).sum(axis=1) for c in range(C)], axis=1)
    raters_N = given_N_A.sum(axis=1)
    several_N = raters_N > 1
    if not several_N.any():
        raise ValueError("no image has several opinions")
    most_N = (counts_N_C + model_N_C / 2).argmax(axis=1)  # the classifier decides between those that as many say
    usual = np.bincount(most_N[several_N], minlength=C).argmax()
    error_usual = max(float((most_N != usual)[several_N].mean()), _LEAST)

    own_N_A = np.where(given_N_A, np.take_along_axis(counts_N_C, np.maximum(said_N_A, 0), axis=1) - 1, 0)
    others_A = ((raters_N - 1)[:, None] * given_N_A).sum(axis=0)
    agreement_A = own_N_A.sum(axis=0) / np.maximum(others_A, 1)  # s_j
    agreement_A = np.where(others_A > 0, agreement_A, agreement_A[others_A > 0].mean())
    weight_A = np.maximum(1 - (1 - agreement_A) / error_usual, _LEAST)
    error_model = float((model_N_C.argmax(axis=1) != most_N)[several_N].mean())
    weight_model = max(1 - error_model / error_usual, _LEAST) * float(np.sqrt(raters_N.mean()))

    right = float((counts_N_C[np.arange(N), most_N] / raters_N)[several_N].mean())  # P
    sure_N_A_C = np.where(said_N_A[:, :, None] == np.arange(C), right, (1 - right) / (C - 1)) * given_N_A[:, :, None]
    total_N = weight_model + given_N_A @ weight_A
    mixed_N_C = weight_model * model_N_C + np.einsum("a,nac->nc", weight_A, sure_N_A_C)
    return Crowd(mixed_N_C / total_N[:, None], weight_A, weight_model)
