"""Shallow baselines, which exist in the benchmark alone: what every network has to beat.

A support vector machine with a Gaussian kernel on pixels (`svm-pixels`) or on gradients (`svm-hog`), and multinomial
logistic regression on pixels (`logreg-pixels`), all of scikit-learn. C, gamma and the temperature of the posterior are
chosen by cross-validation on the labels at hand, groups apart, classes counting alike, as the probe chooses its own.
Axes: N images, L labelled ones, P of a piece, E numbers of an image, C classes.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from vabal.benchmark import gradients
from vabal.files import file_sha256, locked, sha256
from vabal.images.rows import RowWriter
from vabal.learning import committee
from vabal.learning.needs import Needs
from vabal.learning.probe import balanced_weights, standardisation
from vabal.rounds.learner import TrainingSet
from vabal.settings.learners import ClassifierSettings

FOLDS: Final = 4
_TEMPERATURES: Final = np.geomspace(0.02, 20, 61)
_ITERATIONS: Final = 1000
_IMAGES_AT_ONCE: Final = 256

Numbers = NDArray[np.floating]


class Shallow(NamedTuple):
    """One baseline: the machine, and what it sees of an image."""

    machine: str
    numbers: str


KINDS: Final = {
    "svm-pixels": Shallow("svm", "pixels"),
    "svm-hog": Shallow("svm", "hog"),
    "logreg-pixels": Shallow("logreg", "pixels"),
}


def suits(needs: Needs) -> bool:
    """Whether a strategy with these needs can pick for one: it has no networks beside it, no VAE and no class terms."""
    return not needs.estimated and not committee.is_needed(needs)


def numbers_of(kind: str, images_N_H_W_K: NDArray[np.uint8]) -> NDArray[np.float32]:
    """numbers_N_E: pixels as shares of white, or histograms of gradients."""
    if KINDS[kind].numbers == "hog":
        return gradients.histograms(images_N_H_W_K)
    return images_N_H_W_K.reshape(len(images_N_H_W_K), -1).astype(np.float32) / np.float32(255)


def kept_numbers(kind: str, images_N_H_W_K: NDArray[np.uint8], folder: Path) -> NDArray[np.float32]:
    """The `numbers_of` all images, mapped from a file in `folder`, which is made once."""
    code = file_sha256(Path(__file__)) + file_sha256(Path(str(gradients.__file__)))
    path = folder / f"{KINDS[kind].numbers}-{sha256(code.encode())[:16]}.npy"
    with locked(folder / f".{path.name}.lock"):  # one process makes it, the others wait
        if not path.exists():
            temporary = path.with_name(f".{path.name}.tmp")
            width = numbers_of(kind, images_N_H_W_K[:1]).shape[1]
            with RowWriter(temporary, len(images_N_H_W_K), width) as writer:
                for start in range(0, len(images_N_H_W_K), _IMAGES_AT_ONCE):
                    writer.append(numbers_of(kind, images_N_H_W_K[start : start + _IMAGES_AT_ONCE]))
            temporary.replace(path)
    kept: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return kept


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose, and its cross entropy there."""

    c: float
    gamma: float = 1.0
    temperature: float = 1.0
    loss: float = float("inf")


class _Problem:
    """What is to be learned, in the machine's own features; a model is fitted to some of its L rows."""

    def __init__(self, values_L_E: Numbers, labels_L: NDArray[np.int64], num_classes: int, weights: str | None) -> None:
        self.values_L_E, self.labels_L = values_L_E.astype(np.float32), labels_L
        self.num_classes, self.weights = num_classes, weights

    def features(self, values_P_E: Numbers, choice: Choice) -> Numbers:
        """What the model takes of other images: of a kernel machine, a column for each of the L."""
        raise NotImplementedError

    def own(self, choice: Choice) -> Numbers:
        """The labelled images' own features."""
        raise NotImplementedError

    def estimator(self, choice: Choice) -> Any:
        raise NotImplementedError

    def fit(self, choice: Choice, rows_F: NDArray[np.int64], own_L_R: Numbers) -> Callable[[Numbers], Numbers]:
        """What was fitted to these rows, as a function from features to decided_P_C; NaN for a class not among them."""
        labels_F = self.labels_L[rows_F]
        kinds = np.unique(labels_F)
        columns = rows_F if self.kernel else slice(None)
        model = self.estimator(choice)
        if len(kinds) > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(own_L_R[rows_F][:, columns], labels_F)

        def decide(features_P_R: Numbers) -> Numbers:
            decided_P_C = np.full((len(features_P_R), self.num_classes), np.nan)
            if len(kinds) == 1:
                decided_P_C[:, kinds] = 0.0
                return decided_P_C
            found = model.decision_function(features_P_R[:, columns])
            decided_P_C[:, kinds] = np.stack([-found, found], axis=1) / 2 if len(kinds) == 2 else found
            return decided_P_C

        return decide

    kernel: ClassVar[bool]
    choices: ClassVar[Sequence[Choice]]  # the first of equals is taken


class _Svm(_Problem):
    kernel = True
    choices = tuple(Choice(c, gamma) for c in (10.0, 1.0, 100.0) for gamma in (1.0, 0.25, 4.0))

    def features(self, values_P_E: Numbers, choice: Choice) -> Numbers:
        return self._kernel(self._squared(values_P_E), choice)

    def own(self, choice: Choice) -> Numbers:
        return self._kernel(self._own_squared, choice)

    @cached_property
    def _own_squared(self) -> Numbers:
        return self._squared(self.values_L_E)

    def _squared(self, values_P_E: Numbers) -> Numbers:
        """Squared distances to the labelled images."""
        values, known = np.asarray(values_P_E, dtype=np.float32), self.values_L_E
        lengths_P, lengths_L = np.square(values).sum(axis=1), np.square(known).sum(axis=1)
        squared_P_L: Numbers = np.maximum(lengths_P[:, None] - 2 * values @ known.T + lengths_L, 0)
        return squared_P_L

    @cached_property
    def _scale(self) -> float:
        """scikit-learn's gamma of the name `scale`."""
        scale: float = 1 / (self.values_L_E.shape[1] * max(float(self.values_L_E.var()), 1e-12))
        return scale

    def _kernel(self, squared_P_L: Numbers, choice: Choice) -> Numbers:
        return np.asarray(np.exp(-choice.gamma * self._scale * squared_P_L))

    def estimator(self, choice: Choice) -> Any:
        return SVC(C=choice.c, kernel="precomputed", class_weight=self.weights)


class _LogisticRegression(_Problem):
    """In the span of the labelled images, where its solution lies."""

    kernel = False
    choices = tuple(Choice(c) for c in (0.01, 0.1, 0.001, 1.0, 0.0001))

    @cached_property
    def _span(self) -> tuple[Numbers, Numbers, Numbers, Numbers]:
        """What standardises pixels, the basis, and the labelled images in it."""
        mean_E, std_E = standardisation(self.values_L_E.astype(np.float64))
        left_L_R, scale_R, basis_R_E = np.linalg.svd((self.values_L_E - mean_E) / std_E, full_matrices=False)
        return mean_E.astype(np.float32), std_E.astype(np.float32), basis_R_E.astype(np.float32), left_L_R * scale_R

    def features(self, values_P_E: Numbers, choice: Choice) -> Numbers:  # noqa: ARG002
        mean_E, std_E, basis_R_E, _ = self._span
        return np.asarray(((values_P_E - mean_E) / std_E) @ basis_R_E.T)

    def own(self, choice: Choice) -> Numbers:  # noqa: ARG002
        return self._span[3]

    def estimator(self, choice: Choice) -> Any:
        return LogisticRegression(C=choice.c, class_weight=self.weights, max_iter=_ITERATIONS)


_MACHINES: Final[Mapping[str, type[_Problem]]] = {"svm": _Svm, "logreg": _LogisticRegression}


@dataclass(frozen=True)
class Fitted:
    """A baseline that has learned."""

    choice: Choice
    _problem: _Problem
    _decide: Callable[[Numbers], Numbers]

    def logits(self, values_P_E: Numbers) -> NDArray[np.float32]:
        """log p of every class; one that no label has gets that of one label among L + 1."""
        decided_P_C = self._decide(self._problem.features(values_P_E, self.choice))
        return _log_posterior(decided_P_C, self.choice.temperature, len(self._problem.labels_L)).astype(np.float32)


def fit(kind: str, known: TrainingSet, num_classes: int, settings: ClassifierSettings, *, seed: int) -> Fitted:
    """The baseline of this name on the labelled pool; `known.inputs_L` are its `numbers_of` the images."""
    weights = None if settings.imbalance == "none" else "balanced"
    problem = _MACHINES[KINDS[kind].machine](known.inputs_L, known.labels_L, num_classes, weights)
    choice = _chosen(problem, known, seed)
    every = np.arange(len(known.labels_L))
    return Fitted(choice, problem, problem.fit(choice, every, problem.own(choice)))


def _chosen(problem: _Problem, known: TrainingSet, seed: int) -> Choice:
    """By the held-out cross entropy; the first where there are too few labels to judge by (no class has two)."""
    counts_C = np.bincount(problem.labels_L)
    if counts_C.max() < 2 or np.count_nonzero(counts_C) < 2:
        return problem.choices[0]
    fold_L = known.as_embeddings().folds(FOLDS, seed)
    return min((_judged(problem, choice, fold_L) for choice in problem.choices), key=lambda choice: choice.loss)


def _judged(problem: _Problem, choice: Choice, fold_L: NDArray[np.int32]) -> Choice:
    own_L_R = problem.own(choice)
    decided_L_C = np.zeros((len(fold_L), problem.num_classes))
    for fold in np.unique(fold_L):
        held = fold_L == fold
        decided_L_C[held] = problem.fit(choice, np.flatnonzero(~held), own_L_R)(own_L_R[held])
    weights_L, rows_L = balanced_weights(problem.labels_L), np.arange(len(fold_L))

    def loss(temperature: float) -> float:
        log_L_C = _log_posterior(decided_L_C, temperature, len(fold_L))
        return float(-np.average(log_L_C[rows_L, problem.labels_L], weights=weights_L))

    temperature = min(_TEMPERATURES, key=loss)
    return replace(choice, temperature=float(temperature), loss=loss(temperature))


def _log_posterior(decided_P_C: Numbers, temperature: float, labels: int) -> Numbers:
    known_P_C = np.where(np.isnan(decided_P_C), -np.inf, decided_P_C / temperature)
    log_P_C: Numbers = np.where(np.isnan(decided_P_C), -np.log(labels + 1.0), log_softmax(known_P_C, axis=1))
    return log_P_C
