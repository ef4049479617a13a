import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from vabal.learning.metrics import calibration_error, classification_metrics, confusion_matrix


def one_hot(predicted: list[int], classes: int, confidence: float = 1.0) -> np.ndarray:
    rest = (1 - confidence) / (classes - 1)
    return np.where(np.arange(classes) == np.array(predicted)[:, None], confidence, rest)


def test_by_hand_ten_samples_of_two_classes_one_rare() -> None:
    labels = np.array([0] * 8 + [1] * 2)
    probabilities = one_hot([0] * 8 + [0, 1], 2, confidence=0.8)
    values = classification_metrics(labels, probabilities, ["plane", "cat"])
    assert values["accuracy"] == pytest.approx(0.9)
    assert values["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    # F1 of plane: 2*8 / (8 + 9); of cat: 2*1 / (2 + 1).
    assert values["macro_f1"] == pytest.approx((16 / 17 + 2 / 3) / 2)
    assert values["recall/plane"] == 1
    assert values["recall/cat"] == 0.5
    assert values["calibration_error"] == pytest.approx(0.1)  # one bin: 90 % right, 80 % sure
    assert values["negative_log_likelihood"] == pytest.approx(-(9 * math.log(0.8) + math.log(0.2)) / 10)


def test_a_class_without_samples_does_not_count_in_balanced_accuracy_and_has_no_recall() -> None:
    values = classification_metrics(np.array([0, 0, 2]), one_hot([0, 1, 2], 3), ["a", "b", "c"])
    assert values["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert values["macro_f1"] == pytest.approx((2 / 3 + 0 + 1) / 3)  # b was predicted, so it counts
    assert "recall/b" not in values


def test_no_samples_give_no_metrics() -> None:
    assert classification_metrics(np.array([], dtype=int), np.zeros((0, 3)), ["a", "b", "c"]) == {}


def test_calibration_by_hand_over_two_bins() -> None:
    # Bin (0.5333, 0.6]: two samples at 0.6, one right: |0.5 - 0.6| * 2. Bin (0.8666, 0.9333]: one at 0.9, wrong: 0.9.
    probabilities = np.array([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]])
    assert calibration_error(np.array([0, 1, 0]), probabilities) == pytest.approx((0.2 + 0.9) / 3)


def test_a_confidence_on_the_edge_of_two_bins_belongs_to_the_lower_one() -> None:
    # With two bins (0, 0.5] and (0.5, 1]: 0.5 right (gap +0.5) and 0.75 wrong (gap -0.75) must not cancel out.
    probabilities = np.array([[0.5, 0.5], [0.75, 0.25]])
    assert calibration_error(np.array([0, 1]), probabilities, bins=2) == pytest.approx((0.5 + 0.75) / 2)


def test_a_certain_mistake_has_a_finite_likelihood() -> None:
    values = classification_metrics(np.array([1]), np.array([[1.0, 0.0]], dtype=np.float32), ["a", "b"])
    assert values["negative_log_likelihood"] == pytest.approx(-math.log(np.finfo(np.float32).tiny))


def test_rows_of_the_confusion_matrix_are_labels_and_columns_predictions() -> None:
    counts = confusion_matrix(np.array([0, 0, 1]), np.array([2, 2, 1]), 3)
    assert counts.tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize(("labels", "predicted"), [([3], [0]), ([-1], [0]), ([0], [3])])
def test_an_index_outside_the_classes_is_refused(labels: list[int], predicted: list[int]) -> None:
    with pytest.raises(ValueError, match="outside the 3 classes"):
        confusion_matrix(np.array(labels), np.array(predicted), 3)


def test_probabilities_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1 samples have a probability that is not finite, the first in row 1"):
        classification_metrics(np.array([0, 1]), np.array([[1.0, 0.0], [np.nan, 0.0]]), ["a", "b"])
    with pytest.raises(ValueError, match=r"expected probabilities of shape \(2, 2\), found \(2, 3\)"):
        classification_metrics(np.array([0, 1]), np.zeros((2, 3)), ["a", "b"])


@given(seed=st.integers(0, 2**32 - 1), samples=st.integers(1, 60), classes=st.integers(2, 7))
def test_metrics_agree_with_scikit_learn(seed: int, samples: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=samples)
    probabilities = generator.dirichlet(np.ones(classes), size=samples)
    predicted = probabilities.argmax(1)
    names = [f"c{index}" for index in range(classes)]
    values = classification_metrics(labels, probabilities, names)
    occurring = np.unique(labels)
    recalls = reference.recall_score(labels, predicted, labels=occurring, average=None, zero_division=0)
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    # Not balanced_accuracy_score: it warns of predicted classes that have no label, its value is this one.
    assert values["balanced_accuracy"] == pytest.approx(recalls.mean())
    assert values["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro", zero_division=0))
    log_loss = reference.log_loss(labels, probabilities, labels=range(classes))
    assert values["negative_log_likelihood"] == pytest.approx(log_loss)
    got = {name: value for name, value in values.items() if name.startswith("recall/")}
    assert got == pytest.approx({f"recall/c{index}": recall for index, recall in zip(occurring, recalls, strict=True)})
    expected = reference.confusion_matrix(labels, predicted, labels=range(classes))
    assert np.array_equal(confusion_matrix(labels, predicted, classes), expected)


@given(seed=st.integers(0, 2**32 - 1), samples=st.integers(1, 80))
def test_calibration_agrees_with_a_loop_over_the_bins(seed: int, samples: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(3), size=samples)
    labels = generator.integers(3, size=samples)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for index in range(15):
        inside = (confidence > index / 15) & (confidence <= (index + 1) / 15)
        if inside.any():
            expected += abs(right[inside].mean() - confidence[inside].mean()) * inside.sum() / samples
    assert calibration_error(labels, probabilities) == pytest.approx(expected)
