from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from vabal import strategies
from vabal.benchmark import shallow
from vabal.rounds.learner import TrainingSet
from vabal.settings.learners import ClassifierSettings
from vabal.settings.params import parse

KINDS = pytest.mark.parametrize("kind", shallow.KINDS)
SETTINGS = ClassifierSettings()


def known(values_L_E: Any, labels_L: Any, groups_L: Any = None) -> TrainingSet:
    ids = [f"s{place:03d}" for place in range(len(labels_L))]
    return TrainingSet(np.asarray(values_L_E, np.float32), np.asarray(labels_L, np.int64), ids, groups_L=groups_L)


def blobs(count: int, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Images of noise, each brighter in its class's third."""
    generator = np.random.default_rng(seed)
    labels_N = np.arange(count) % classes
    images = generator.integers(0, 60, (count, 12, 12, 1), dtype=np.uint8)
    for row, label in enumerate(labels_N):
        images[row, 4 * label : 4 * label + 4] += 120
    return images, labels_N


@KINDS
def test_a_baseline_learns_what_is_easy_and_its_posterior_is_one(kind: str) -> None:
    images, labels_N = blobs(90)
    values_N_E = shallow.numbers_of(kind, images)
    fitted = shallow.fit(kind, known(values_N_E[:45], labels_N[:45]), 4, SETTINGS, seed=0)
    posterior_N_C = softmax(fitted.logits(values_N_E[45:]), axis=1)
    assert (posterior_N_C.argmax(axis=1) == labels_N[45:]).mean() > 0.9
    assert posterior_N_C[:, 3] == pytest.approx(1 / 47)  # 1 / 46, of all the 1 + 1 / 46: a class without a label


@pytest.mark.parametrize("classes", [2, 3])
def test_the_machine_is_scikit_learns_own_with_a_gaussian_kernel(classes: int) -> None:
    images, labels_N = blobs(80, classes)
    values_N_E = shallow.numbers_of("svm-pixels", images)
    train, rest = values_N_E[:40], values_N_E[40:]
    fitted = shallow.fit("svm-pixels", known(train, labels_N[:40]), classes, SETTINGS, seed=0)
    gamma = fitted.choice.gamma / (train.shape[1] * train.var())
    theirs = SVC(C=fitted.choice.c, gamma=gamma, class_weight="balanced", break_ties=True).fit(train, labels_N[:40])
    assert (fitted.logits(rest).argmax(axis=1) == theirs.predict(rest)).all()
    decided = theirs.decision_function(rest) / fitted.choice.temperature
    ours = fitted.logits(rest)
    np.testing.assert_allclose(ours[:, 1] - ours[:, 0], decided if classes == 2 else decided[:, 1] - decided[:, 0], rtol=1e-3, atol=1e-3)  # fmt: skip  # noqa: E501


def test_logistic_regression_in_the_span_of_the_labels_is_that_on_all_pixels() -> None:
    images, labels_N = blobs(80)
    values_N_E = shallow.numbers_of("logreg-pixels", images)
    train, rest = values_N_E[:40], values_N_E[40:]
    fitted = shallow.fit("logreg-pixels", known(train, labels_N[:40]), 3, SETTINGS, seed=0)
    mean, std = train.mean(axis=0), train.std(axis=0)
    theirs = LogisticRegression(C=fitted.choice.c, class_weight="balanced", tol=1e-6, max_iter=5000)
    theirs.fit((train - mean) / std, labels_N[:40])
    log_p = theirs.predict_log_proba((rest - mean) / std)
    ours = softmax(fitted.logits(rest) * fitted.choice.temperature, axis=1)
    np.testing.assert_allclose(ours, np.exp(log_p), atol=0.01)


@KINDS
def test_images_of_one_group_are_not_held_against_each_other(kind: str) -> None:
    """Pairs of the same image with a label by chance: who may look at the twin knows it."""
    generator = np.random.default_rng(1)
    images = np.repeat(generator.integers(0, 256, (30, 12, 12, 1), dtype=np.uint8), 2, axis=0)
    labels_N, groups_N = np.repeat(generator.integers(0, 2, 30), 2), np.repeat(np.arange(30), 2)
    values_N_E = shallow.numbers_of(kind, images)
    apart = shallow.fit(kind, known(values_N_E, labels_N, groups_N), 2, SETTINGS, seed=0).choice
    assert apart.loss > 0.6  # log 2 is 0.69
    assert shallow.fit(kind, known(values_N_E, labels_N), 2, SETTINGS, seed=0).choice.loss < 0.4


@KINDS
@pytest.mark.parametrize("labels", [[0], [1, 1], [0, 1], [0, 0, 1], [2, 0, 0, 0]])
def test_a_handful_of_labels_is_enough_to_say_something(kind: str, labels: list[int]) -> None:
    images, _ = blobs(12)
    values_N_E = shallow.numbers_of(kind, images)
    fitted = shallow.fit(kind, known(values_N_E[: len(labels)], labels), 3, SETTINGS, seed=0)
    logits_N_C = fitted.logits(values_N_E)
    assert logits_N_C.shape == (12, 3)
    assert np.isfinite(logits_N_C).all()
    assert set(logits_N_C.argmax(axis=1)) <= set(labels)


def test_numbers_are_made_once_and_kept(tmp_path: Path) -> None:
    images, _ = blobs(20)
    for kind in shallow.KINDS:
        assert np.array_equal(shallow.kept_numbers(kind, images, tmp_path), shallow.numbers_of(kind, images))
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert len(made) == 2  # pixels are the same for both
    shallow.kept_numbers("svm-hog", images, tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")} == made


@pytest.mark.parametrize(
    ("name", "fits"),
    [("random", True), ("margin", True), ("badge", True), ("vabal", False), ("bald", False), ("ensemble", False)],
)
def test_strategies_that_ask_for_networks_or_a_vae_do_not_suit(name: str, fits: bool) -> None:
    assert shallow.suits(strategies.needs_of(strategies.get(name), parse({}))) is fits
