"""The probe: multinomial logistic regression on a frozen backbone's embeddings.

Which layers it sees and how strongly it is held back are chosen by cross-validation on the labels at hand, and so is
the temperature that makes its posterior honest. Axes: L labelled samples, E numbers of an embedding, D features (the
chosen ones), C classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from vabal.errors import UserError
from vabal.learning import logistic
from vabal.learning.backbones import Layer
from vabal.learning.metrics import Metric
from vabal.learning.network import LinearProbe
from vabal.learning.recipe import CrossFit, class_weights, imbalance, stratified_folds
from vabal.settings.learners import ClassifierSettings

PENALTIES: Final = (1.0, 10.0, 0.1, 100.0)  # tried in this order; the first of equals is taken
CHOICES: Final = ("stages", "last", "all")
CHOICES_WITH_PIXELS: Final = (*CHOICES, "stages+pixels", "pixels")
FOLDS: Final = 4
_LEAST_DEVIATION: Final = 0.1  # of the median deviation: what hardly varies among few labels may do so in the pool
_TEMPERATURES: Final = (0.25, 4.0)

Numbers = NDArray[np.float64]


class Embedded(NamedTuple):
    """What an embedding's numbers are: the backbone, and its layers in their order."""

    backbone: Mapping[str, Any]
    layers: tuple[Layer, ...]

    @property
    def width(self) -> int:
        """E."""
        return sum(self.feature_dims)

    @property
    def feature_dims(self) -> tuple[int, ...]:
        return tuple(layer.width for layer in self.layers)

    @property
    def choices(self) -> tuple[str, ...]:
        """What `classifier.layers` may be, as cross-validation tries it."""
        return CHOICES_WITH_PIXELS if any(layer.kind == "pixels" for layer in self.layers) else CHOICES

    def columns(self, choice: str) -> tuple[NDArray[np.int64], tuple[int, ...]]:
        """The places of the layers that `choice` names, and how wide each of them is.

        Raises UserError if there are none.
        """
        starts = np.cumsum([0, *(layer.width for layer in self.layers)])
        kinds = {layer.kind for layer in self.layers} if choice == "all" else set(choice.split("+"))
        if not kinds <= {layer.kind for layer in self.layers}:
            raise UserError(f"classifier.layers: {choice}: no pixels are kept: set backbone.pixels to their side, as 8")
        wanted = [index for index, layer in enumerate(self.layers) if layer.kind in kinds]
        places = [np.arange(starts[index], starts[index + 1]) for index in wanted]
        return np.concatenate(places), tuple(self.layers[index].width for index in wanted)


@dataclass(frozen=True)
class LabelledEmbeddings:
    """The labelled pool as a probe learns from it; samples of one of `groups_L` are judged together, if there
    are two groups."""

    embeddings_L_E: NDArray[np.float32]
    labels_L: NDArray[np.int64]
    sample_ids: Sequence[str]
    groups_L: NDArray[Any] | None = None

    def folds(self, count: int, seed: int) -> NDArray[np.int32]:
        return stratified_folds(self.sample_ids, self.labels_L, folds=count, seed=seed, groups_N=self.groups_L)


@dataclass(frozen=True)
class Choice:
    """What cross-validation chose, and how it did there."""

    layers: str
    penalty: float
    temperature: float
    loss: float
    accuracy: float
    balanced_accuracy: float


def fit(
    known: LabelledEmbeddings, embedded: Embedded, num_classes: int, settings: ClassifierSettings, *, seed: int
) -> tuple[LinearProbe, Iterator[Metric]]:
    """A probe, and its training as an iterator: it has learned once the metrics were taken.

    Raises UserError if there are no samples, ValueError for arrays that do not fit one another.
    """
    if not len(known.labels_L):
        raise UserError("there is no labelled sample to train on: bring in labels with `vabal labels import FILE`")
    if known.embeddings_L_E.shape != (len(known.labels_L), embedded.width):
        raise ValueError(
            f"expected {len(known.labels_L)} x {embedded.width} numbers, found {known.embeddings_L_E.shape}"
        )
    chosen = choose(known, embedded, num_classes, settings, seed=seed)
    columns_D, widths = embedded.columns(chosen.layers)
    network = LinearProbe(
        num_classes=num_classes,
        embedding=embedded.width,
        feature_dims=widths,
        backbone=embedded.backbone,
        penalty=chosen.penalty,
        temperature=chosen.temperature,
    )
    return network, _training(network, known, columns_D, chosen, settings)


def _training(
    network: LinearProbe,
    known: LabelledEmbeddings,
    columns_D: NDArray[np.int64],
    chosen: Choice,
    settings: ClassifierSettings,
) -> Iterator[Metric]:
    loss, accuracy = fit_head(network, known, columns_D, settings)
    network.eval()
    yield Metric("train/loss", loss, 1)
    yield Metric("train/accuracy", accuracy, 1)
    yield Metric("train/penalty", chosen.penalty, 1)
    yield Metric("train/temperature", chosen.temperature, 1)
    for name in ("loss", "accuracy", "balanced_accuracy"):
        yield Metric(f"train/cross_validated_{name}", float(getattr(chosen, name)), 1)


def fit_head(
    network: LinearProbe,
    known: LabelledEmbeddings,
    columns_D: NDArray[np.int64],
    settings: ClassifierSettings,
    weights_L: Numbers | None = None,
) -> tuple[float, float]:
    """Fits the head of `network` by its own penalty and temperature; its loss and accuracy on what it learned from."""
    classes, penalty, temperature = (network.config[name] for name in ("num_classes", "penalty", "temperature"))
    values_L_D = known.embeddings_L_E[:, columns_D].astype(np.float64)
    mean_D, std_D = standardisation(values_L_D)
    features_L_D = (values_L_D - mean_D) / std_D
    weight_C_D, bias_C = solve(features_L_D, known.labels_L, classes, penalty, settings, weights_L)
    weight_C_D, bias_C = weight_C_D / temperature, bias_C / temperature
    with torch.no_grad():
        network.columns.copy_(torch.from_numpy(columns_D))
        network.mean.copy_(torch.from_numpy(mean_D))
        network.std.copy_(torch.from_numpy(std_D))
        network.classifier.weight.copy_(torch.from_numpy(weight_C_D))
        network.classifier.bias.copy_(torch.from_numpy(bias_C))
    logits_L_C = features_L_D @ weight_C_D.T + bias_C
    log_L_C = log_softmax(logits_L_C, axis=1)
    right = float(np.mean(logits_L_C.argmax(axis=1) == known.labels_L))
    return float(-np.mean(log_L_C[np.arange(len(known.labels_L)), known.labels_L])), right


def standardisation(values_L_D: Numbers) -> tuple[Numbers, Numbers]:
    """Mean and deviation of each column; a column that hardly varies has a tenth of the columns' median deviation."""
    deviation_D = values_L_D.std(axis=0)
    varying = deviation_D[deviation_D > 0]
    least = _LEAST_DEVIATION * float(np.median(varying)) if len(varying) else 1.0
    return values_L_D.mean(axis=0), np.maximum(deviation_D, least)


def solve(
    features_L_D: Numbers,
    labels_L: NDArray[np.int64],
    num_classes: int,
    penalty: float,
    settings: ClassifierSettings,
    weights_L: Numbers | None = None,
) -> tuple[Numbers, Numbers]:
    """weight_C_D and bias_C that minimise the (weighted) sum of cross entropies and penalty / 2 * |weight|^2."""
    rotated = logistic.rotate(features_L_D)
    head = _fit_rotated(rotated, labels_L, num_classes, penalty, settings, weights_L)
    return head.weight_C_R @ rotated.axes_R_D, head.bias_C


def _fit_rotated(
    rotated: logistic.Rotated,
    labels_L: NDArray[np.int64],
    num_classes: int,
    penalty: float,
    settings: ClassifierSettings,
    weights_L: Numbers | None = None,
    start: logistic.Fitted | None = None,
) -> logistic.Fitted:
    """The head on the axes of `rotated`. A class without a label has weights of zero and the bias of one label among
    L + 1."""
    kinds, places_L = np.unique(labels_L, return_inverse=True)
    weight_C_R = np.zeros((num_classes, rotated.features_L_R.shape[1]))
    bias_C = np.full(num_classes, -np.log(len(labels_L) + 1.0))
    bias_C[kinds] = 0.0
    if len(kinds) == 1:
        return logistic.Fitted(weight_C_R, bias_C)
    kind = imbalance(settings)
    weights_L = np.ones(len(labels_L)) if weights_L is None else weights_L
    if kind == "balanced":
        of_classes = np.bincount(places_L, weights_L)
        weights_L = weights_L * (weights_L.sum() / len(kinds) / of_classes)[places_L]
    begin = None if start is None else logistic.Fitted(start.weight_C_R[kinds], start.bias_C[kinds])
    weight_C_R[kinds], bias_C[kinds] = logistic.fit(rotated, places_L, weights_L, len(kinds), penalty, begin)
    if kind == "logit_adjusted":
        bias_C[kinds] -= np.log(np.bincount(places_L) / len(labels_L))
    return logistic.Fitted(weight_C_R, bias_C)


def cross_fit(
    first: LinearProbe, known: LabelledEmbeddings, settings: ClassifierSettings, *, folds: int, seed: int
) -> CrossFit:
    """Out-of-fold predictions by heads like that of `first`, each fitted on the other folds.

    Raises UserError if there are fewer than two samples.
    """
    if len(known.labels_L) < 2:
        raise UserError("cross-fitting needs at least two labelled samples: label more, or set precision_from: vae")
    fold_L = known.folds(folds, seed)
    columns_D, classes = first.columns.cpu().numpy(), first.config["num_classes"]
    logits_L_C = held_out_logits(known, columns_D, fold_L, classes, first.config["penalty"], settings)
    probabilities_L_C = softmax(logits_L_C / first.config["temperature"], axis=1).astype(np.float32)
    return CrossFit(fold_L, probabilities_L_C.argmax(axis=1).astype(np.int32), probabilities_L_C)


def held_out(
    known: LabelledEmbeddings,
    embedded: Embedded,
    num_classes: int,
    settings: ClassifierSettings,
    *,
    folds: int,
    seed: int,
) -> tuple[LinearProbe, NDArray[np.float32]]:
    """A probe, and posterior_L_C of each labelled image by one that has learned from other folds: layers, penalty and
    temperature are those that `fit` chooses."""
    network, training = fit(known, embedded, num_classes, settings, seed=seed)
    for _ in training:
        pass
    return network, cross_fit(network, known, settings, folds=folds, seed=seed).probabilities_N_C


# -- cross-validation -------------------------------------------------------------------------------------------------


def choose(
    known: LabelledEmbeddings, embedded: Embedded, num_classes: int, settings: ClassifierSettings, *, seed: int
) -> Choice:
    """Layers, penalty and temperature, by cross-validation: layers first, at the first penalty, then the penalty.

    What is compared is the cross entropy, each class counting alike. Where there are too few labels to judge by (no
    class has two), the first of each is taken.
    """
    layers = embedded.choices if settings.layers == "auto" else (settings.layers,)
    penalties = PENALTIES if settings.penalty == "auto" else (settings.penalty,)
    columns = {choice: embedded.columns(choice)[0] for choice in layers}  # refuses what is not there
    if len(known.labels_L) < 2 or np.bincount(known.labels_L).max() < 2 or len(np.unique(known.labels_L)) < 2:
        return Choice(layers[0], penalties[0], 1.0, 0.0, 0.0, 0.0)
    fold_L = known.folds(FOLDS, seed)
    folds = {choice: Folds(known, columns[choice], fold_L, num_classes, settings) for choice in layers}
    best = min((_judge(folds[choice], choice, penalties[0]) for choice in layers), key=lambda choice: choice.loss)
    others = [_judge(folds[best.layers], best.layers, penalty) for penalty in penalties[1:]]
    return min([best, *others], key=lambda choice: choice.loss)


class Folds:
    """Heads that are fitted on all folds but one, of the same columns: they share the samples' axes, and each begins
    where that of the penalty before it ended."""

    def __init__(
        self,
        known: LabelledEmbeddings,
        columns_D: NDArray[np.int64],
        fold_L: NDArray[np.int32],
        num_classes: int,
        settings: ClassifierSettings,
    ) -> None:
        values_L_D = known.embeddings_L_E[:, columns_D].astype(np.float64)
        mean_D, std_D = standardisation(values_L_D)
        self.rotated = logistic.rotate((values_L_D - mean_D) / std_D)
        self.labels_L, self.fold_L, self.num_classes, self.settings = known.labels_L, fold_L, num_classes, settings
        self.heads: dict[int, logistic.Fitted] = {}

    def held_out_logits(self, penalty: float) -> Numbers:
        """logits_L_C of each sample by a head that was fitted on the other folds."""
        logits_L_C = np.zeros((len(self.fold_L), self.num_classes))
        for fold in np.unique(self.fold_L).tolist():
            held_L, features_L_R = self.fold_L == fold, self.rotated.features_L_R
            others = logistic.Rotated(features_L_R[~held_L], self.rotated.axes_R_D)
            head = _fit_rotated(
                *(others, self.labels_L[~held_L], self.num_classes, penalty, self.settings),
                start=self.heads.get(fold),
            )
            logits_L_C[held_L] = features_L_R[held_L] @ head.weight_C_R.T + head.bias_C
            self.heads[fold] = head
        return logits_L_C


def _judge(folds: Folds, layers: str, penalty: float) -> Choice:
    logits_L_C, labels_L = folds.held_out_logits(penalty), folds.labels_L
    weights_L = balanced_weights(labels_L)
    temperature = fitted_temperature(logits_L_C, labels_L)
    right_L = logits_L_C.argmax(axis=1) == labels_L
    return Choice(
        layers,
        penalty,
        temperature,
        loss=_cross_entropy(logits_L_C / temperature, labels_L, weights_L),
        accuracy=float(right_L.mean()),
        balanced_accuracy=float(np.average(right_L, weights=weights_L)),
    )


def held_out_logits(
    known: LabelledEmbeddings,
    columns_D: NDArray[np.int64],
    fold_L: NDArray[np.int32],
    num_classes: int,
    penalty: float,
    settings: ClassifierSettings,
) -> Numbers:
    """logits_L_C of each sample by a head that was fitted on the other folds."""
    return Folds(known, columns_D, fold_L, num_classes, settings).held_out_logits(penalty)


def balanced_weights(labels_L: NDArray[np.int64]) -> Numbers:
    """A weight for each sample: every class that is there weighs alike, all of them together L."""
    return class_weights(labels_L, int(labels_L.max()) + 1)[labels_L]


def _cross_entropy(logits_L_C: Numbers, labels_L: NDArray[np.int64], weights_L: Numbers) -> float:
    log_L = log_softmax(logits_L_C, axis=1)[np.arange(len(labels_L)), labels_L]
    return float(-np.average(log_L, weights=weights_L))


def fitted_temperature(logits_L_C: Numbers, labels_L: NDArray[np.int64]) -> float:
    """What held-out logits are divided by so that their cross entropy, classes counting alike, is least (Guo et al.
    2017)."""
    weights_L = balanced_weights(labels_L)
    low, high = np.log(_TEMPERATURES)
    found = minimize_scalar(
        lambda log_t: _cross_entropy(logits_L_C / np.exp(log_t), labels_L, weights_L),
        bounds=(low, high),
        method="bounded",
    )
    return float(np.exp(found.x))
