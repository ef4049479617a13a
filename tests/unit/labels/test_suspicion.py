import numpy as np

from vabal.labels.suspicion import suspicion


def test_labels_that_the_classifier_believes_least_come_first() -> None:
    posterior = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = suspicion(np.array([0, 0, 1, 1]), posterior)
    assert found.order_L.tolist() == [1, 2, 0, 3]


def test_confident_learning_counts_what_another_class_is_believed_of_as_much_as_of_its_own() -> None:
    # class 0 is believed 0.55 of its own on average, class 1 0.65: of the second image class 1 is, of the third neither
    posterior = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.1, 0.9], [0.6, 0.4]])
    assert suspicion(np.array([0, 0, 1, 1, 1]), posterior).wrong == 2


def test_where_all_labels_are_believed_none_is_wrong_and_classes_without_a_label_are_not_believed() -> None:
    posterior = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1]])
    assert suspicion(np.array([0, 1, 1]), posterior).wrong == 0
    assert suspicion(np.array([0, 1]), np.array([[0.1, 0.0, 0.9], [0.0, 0.1, 0.9]])).wrong == 0
