"""How good predictions are. Under imbalance plain accuracy misleads: every class counts the same in balanced accuracy.

N samples, C classes; labels and predictions are indices into the list of classes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CALIBRATION_BINS = 15
_SMALLEST = float(np.finfo(np.float32).tiny)  # below this a float32 probability has underflown


class Metric(NamedTuple):
    """One number of a stage, at an epoch or a round; whoever calls the core logs it."""

    name: str
    value: float
    step: int


def classification_metrics(
    labels_N: NDArray[np.integer], probabilities_N_C: NDArray[np.floating], classes: Sequence[str]
) -> dict[str, float]:
    """Accuracy, balanced accuracy, macro-F1, recalls, calibration error and negative log likelihood by name.

    `balanced_accuracy` is the mean recall over the classes that occur in the labels, `macro_f1` the mean F1 over those
    that occur in the labels or the predictions (as scikit-learn has both), `recall/<class>` is left out where a class
    does not occur in the labels. Empty where there are no samples: nothing was measured.

    Raises ValueError if shapes do not fit, a label is no index of `classes`, or a probability is not finite.
    """
    labels_N, probabilities_N_C = np.asarray(labels_N), np.asarray(probabilities_N_C)
    if probabilities_N_C.shape != (len(labels_N), len(classes)):
        raise ValueError(
            f"expected probabilities of shape {(len(labels_N), len(classes))}, found {probabilities_N_C.shape}"
        )
    if not np.isfinite(probabilities_N_C).all():
        rows = np.flatnonzero(~np.isfinite(probabilities_N_C).all(axis=1))
        raise ValueError(f"{len(rows)} samples have a probability that is not finite, the first in row {rows[0]}")
    if not len(labels_N):
        return {}
    predicted_N = probabilities_N_C.argmax(axis=1)
    counts_C_C = confusion_matrix(labels_N, predicted_N, len(classes))
    values = {
        "accuracy": float(np.trace(counts_C_C) / counts_C_C.sum()),
        "balanced_accuracy": balanced_accuracy(counts_C_C),
        "macro_f1": macro_f1(counts_C_C),
        "calibration_error": calibration_error(labels_N, probabilities_N_C),
        "negative_log_likelihood": negative_log_likelihood(labels_N, probabilities_N_C),
    }
    return values | recalls_by_name(counts_C_C, classes)


def confusion_matrix(
    labels_N: NDArray[np.integer], predicted_N: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """counts_C_C: row the label, column the prediction. Raises ValueError for an index that is no class."""
    labels_N, predicted_N = np.asarray(labels_N, dtype=np.int64), np.asarray(predicted_N, dtype=np.int64)
    for name, index_N in (("label", labels_N), ("prediction", predicted_N)):
        if len(index_N) and (index_N.min() < 0 or index_N.max() >= num_classes):
            raise ValueError(f"a {name} lies outside the {num_classes} classes")
    counts = np.bincount(labels_N * num_classes + predicted_N, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def recalls(counts_C_C: NDArray[np.integer]) -> NDArray[np.float64]:
    """recall_C: the share of each class's samples that were predicted right; NaN for a class without samples."""
    occurring_C = counts_C_C.sum(axis=1)
    recall_C = np.full(len(counts_C_C), np.nan)
    np.divide(np.diag(counts_C_C), occurring_C, out=recall_C, where=occurring_C > 0)
    return recall_C


def recalls_by_name(counts_C_C: NDArray[np.integer], classes: Sequence[str]) -> dict[str, float]:
    """`recall/<class>` of each class that occurs in the labels."""
    recall_C = recalls(counts_C_C)
    return {
        f"recall/{classes[index]}": float(recall_C[index]) for index in np.flatnonzero(~np.isnan(recall_C)).tolist()
    }


def balanced_accuracy(counts_C_C: NDArray[np.integer]) -> float:
    """The mean recall over the classes that occur in the labels."""
    return float(np.nanmean(recalls(counts_C_C)))


def macro_f1(counts_C_C: NDArray[np.integer]) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur in the labels or the predictions."""
    labelled_and_predicted_C = counts_C_C.sum(axis=1) + counts_C_C.sum(axis=0)
    occurring_C = labelled_and_predicted_C > 0
    return float((2 * np.diag(counts_C_C)[occurring_C] / labelled_and_predicted_C[occurring_C]).mean())


def calibration_error(
    labels_N: NDArray[np.integer], probabilities_N_C: NDArray[np.floating], bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error (Guo et al. 2017, Eq. 3): |accuracy - mean confidence|, weighted over the bins.

    Confidence is the predicted class's probability, in equal-width bins (lower, upper].
    """
    confidence_N = probabilities_N_C.max(axis=1).astype(np.float64)
    right_N = probabilities_N_C.argmax(axis=1) == labels_N
    bin_N = np.digitize(confidence_N, np.linspace(0, 1, bins + 1)[1:-1], right=True)
    # |accuracy - confidence| * count / N is the absolute sum of differences in a bin, over N.
    gaps = np.bincount(bin_N, weights=right_N - confidence_N, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels_N))


def negative_log_likelihood(labels_N: NDArray[np.integer], probabilities_N_C: NDArray[np.floating]) -> float:
    """The mean of -log p(label), natural log; a probability of 0 counts as the smallest normal float32."""
    own_N = probabilities_N_C[np.arange(len(labels_N)), labels_N].astype(np.float64)
    return float(-np.log(np.maximum(own_N, _SMALLEST)).mean())


# The fewest images of a class in which a loss half-way between the default `max_recall_drop` and all of them is shown.
FEWEST_IMAGES = 6
