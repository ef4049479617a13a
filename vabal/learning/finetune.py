"""Fine-tuning: a pretrained backbone learns with a linear head, head first, then all layers, the first ones slowest.

The head to begin with is the probe's: logistic regression on what the frozen backbone says, its layers and penalty
chosen by cross-validation, which says too which of the sizes is taken (linear probing, then fine-tuning: Kumar et al.
2022). From there AdamW goes on with every weight. Axes: L labelled samples, H x W x K images, C classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from vabal.errors import UserError
from vabal.learning import backbones, classifier, probe
from vabal.learning.backbones import Backbone, Trunk
from vabal.learning.batches import batches_of
from vabal.learning.device import brought, multiplying
from vabal.learning.metrics import Metric
from vabal.learning.network import FineTuned, Trunks
from vabal.learning.probe import Embedded, LabelledEmbeddings
from vabal.learning.recipe import (
    CrossFit,
    Images,
    Objective,
    check_images,
    hash_of,
    is_finite,
    pieces,
    place,
    pool_of,
    run_epoch,
)
from vabal.settings.learners import BackboneSettings, ClassifierSettings, FineTuneSettings

_GROUPS: Final = 5  # of the backbone's layers, each with a learning rate of its own
_AT_ONCE: Final = 32  # images of which the head to begin with is told
_WARM_UP: Final = 0.1  # share of the training in which the rates rise to their peak


@dataclass(frozen=True)
class Recipe:
    """The sections of the settings that say how a backbone is fine-tuned, and where."""

    classifier: ClassifierSettings
    finetune: FineTuneSettings
    backbone: BackboneSettings
    device: torch.device
    precision: torch.dtype = torch.float32

    @property
    def epoch(self) -> ClassifierSettings:
        """What an epoch of any network is told."""
        return self.classifier.model_copy(update={"batch_size": self.finetune.batch_size})


@dataclass(frozen=True)
class LabelledImages:
    """The labelled pool; samples of one of `groups_L` are judged together, if there are two groups."""

    images_L_H_W_K: Images
    labels_L: NDArray[np.int64]
    sample_ids: Sequence[str]
    groups_L: NDArray[Any] | None = None

    def rows(self, wanted_L: NDArray[np.bool_]) -> "LabelledImages":
        groups_L = None if self.groups_L is None else self.groups_L[wanted_L]
        ids = [sample_id for sample_id, wanted in zip(self.sample_ids, wanted_L, strict=True) if wanted]
        return LabelledImages(self.images_L_H_W_K[wanted_L], self.labels_L[wanted_L], ids, groups_L)

    def embedded(self, embeddings_L_E: NDArray[np.float32]) -> LabelledEmbeddings:
        return LabelledEmbeddings(embeddings_L_E, self.labels_L, self.sample_ids, self.groups_L)


def epochs_of(samples: int, settings: FineTuneSettings) -> int:
    """Passes over so many samples."""
    return max(settings.epochs, -(-settings.min_steps // batches_of(samples, settings.batch_size)))


def fit(known: LabelledImages, num_classes: int, recipe: Recipe, *, seed: int) -> tuple[FineTuned, Iterator[Metric]]:
    """A network with the head to begin with, and its training: it has learned once the iterator's metrics were taken.

    On a CPU the same inputs, seed and thread count give the same bits. Raises UserError if there are no samples, for a
    backbone that is not there, and where training diverges.
    """
    check_images(known.images_L_H_W_K)
    if "pixels" in recipe.classifier.layers:
        layers = recipe.classifier.layers
        raise UserError(f"classifier.layers: {layers}: pixels are a layer of a probe alone: take stages, last or all")
    if not len(known.labels_L):
        raise UserError("there is no labelled sample to train on: bring in labels with `vabal labels import FILE`")
    network, began = _begun(known, num_classes, recipe, seed)
    return network, _training(network, began, known, recipe, seed)


def _training(
    network: FineTuned, began: list[Metric], known: LabelledImages, recipe: Recipe, seed: int
) -> Iterator[Metric]:
    yield from began
    yield from train(network, known, recipe, seed=seed)
    folds = recipe.finetune.temperature_folds
    if folds and len(known.labels_L) >= 2:
        _, logits_L_C = _held_out_logits(network, known, recipe, folds, seed)
        temperature = probe.fitted_temperature(logits_L_C, known.labels_L)
        with torch.no_grad():
            for parameter in network.head.classifier.parameters():
                parameter.div_(temperature)
        yield Metric("train/temperature", temperature, epochs_of(len(known.labels_L), recipe.finetune))


def train(
    network: FineTuned,
    known: LabelledImages,
    recipe: Recipe,
    *,
    seed: int,
    objective: Objective | None = None,
    largest_gradient: float | None = None,
) -> Iterator[Metric]:
    """Trains all of `network` in place, and yields loss, accuracy and learning rate of each epoch, counted from 1.

    What is minimised is `objective`, or else the cross entropy as the setting `imbalance` wants it. The network is left
    in evaluation mode. Raises UserError if training diverges.
    """
    settings, device = recipe.finetune, recipe.device
    if objective is None:
        classes = network.config["num_classes"]
        objective = classifier.objective_of(recipe.classifier, known.labels_L, classes, device)
    network.frozen_statistics = settings.batch_norm == "frozen"
    place(network.requires_grad_(True), device)
    images, labels = pool_of(known.images_L_H_W_K, torch.from_numpy(known.labels_L), recipe.classifier, device)
    groups = _parameter_groups(network, settings.first_layers)
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": 0.0} for _, parameters in groups], weight_decay=settings.weight_decay
    )
    generator = torch.Generator().manual_seed(seed)
    epochs = epochs_of(len(labels), settings)
    for epoch in range(1, epochs + 1):
        rate = settings.learning_rate * _share_of_the_peak((epoch - 0.5) / epochs)
        for group, (share, _) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = rate * share
        seen = run_epoch(
            network,
            optimizer,
            images,
            labels,
            recipe.epoch,
            objective,
            (epoch - 1) / epochs,
            largest_gradient=largest_gradient,
            generator=generator,
            device=device,
            precision=recipe.precision,
        )
        loss, accuracy = (total / len(labels) for total in seen.tolist())
        if not np.isfinite(loss) or (epoch == epochs and not is_finite(network)):
            raise UserError(
                f"the backbone's fine-tuning diverged in epoch {epoch} of {epochs}: "
                f"lower finetune.learning_rate (now {settings.learning_rate:g}) in params.yaml"
            )
        yield Metric("train/loss", loss, epoch)
        yield Metric("train/accuracy", accuracy, epoch)
        yield Metric("train/learning_rate", rate, epoch)
    network.requires_grad_(False).eval()


def _share_of_the_peak(over: float) -> float:
    """A straight rise, then half a cosine down to nothing; `over` is the share of the training that is over."""
    if over < _WARM_UP:
        return over / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (over - _WARM_UP) / (1 - _WARM_UP)))


def _parameter_groups(network: FineTuned, first_layers: float) -> list[tuple[float, list[nn.Parameter]]]:
    """The trunk's parameters from the first layers to the last in groups, then all others; and each group's share of
    the learning rate, geometrically from `first_layers` to 1 (Howard & Ruder 2018)."""
    trunk = list(network.trunk.parameters())
    known = {id(parameter) for parameter in trunk}
    groups = []
    for index in range(_GROUPS):
        part = trunk[index * len(trunk) // _GROUPS : (index + 1) * len(trunk) // _GROUPS]
        if part:
            groups.append((first_layers ** (1 - index / (_GROUPS - 1)), part))
    return [*groups, (1.0, [parameter for parameter in network.parameters() if id(parameter) not in known])]


# -- the head to begin with -------------------------------------------------------------------------------------------


def _begun(known: LabelledImages, num_classes: int, recipe: Recipe, seed: int) -> tuple[FineTuned, list[Metric]]:
    """The pretrained backbone at the size at which a probe does best, with that probe as the head."""
    tried = []
    for size in recipe.backbone.sizes or [0]:  # 0: what the backbone was trained on
        backbone = _backbone(recipe.backbone, size)
        embeddings = known.embedded(_embeddings(backbone, known.images_L_H_W_K, recipe.device))
        embedded = Embedded(
            {**backbones.identity(_plain(recipe.backbone, size)), **backbone.preparation}, backbone.layers
        )
        tried.append((embeddings, embedded))

    def loss(one: tuple[LabelledEmbeddings, Embedded]) -> float:
        return probe.choose(*one, num_classes, recipe.classifier, seed=seed).loss

    best = tried[0] if len(tried) == 1 else min(tried, key=loss)
    head, training = probe.fit(*best, num_classes, recipe.classifier, seed=seed)
    metrics = [metric._replace(name=metric.name.replace("train/", "train/head_")) for metric in training]
    network = _pretrained(head.config, recipe)
    network.head.load_state_dict(head.state_dict())
    return network, metrics


def refitted(
    first: FineTuned, known: LabelledImages, recipe: Recipe, weights_L: NDArray[np.float64] | None = None
) -> FineTuned:
    """The pretrained backbone with a head like that which `first` began with, fitted to these samples."""
    network = _pretrained(first.config, recipe)
    refit(network, first, known, recipe, weights_L)
    return network


def refit(
    network: FineTuned,
    first: FineTuned,
    known: LabelledImages,
    recipe: Recipe,
    weights_L: NDArray[np.float64] | None = None,
) -> None:
    """Fits the head of `network`, whose backbone is the pretrained one, on the layers that `first` sees."""
    trunk = cast("Trunk", network.trunk)
    embeddings = known.embedded(
        _embeddings(Backbone(trunk, (network.size,), "plain"), known.images_L_H_W_K, recipe.device)
    )
    probe.fit_head(network.head, embeddings, first.head.columns.cpu().numpy(), recipe.classifier, weights_L)


def _pretrained(config: dict[str, Any], recipe: Recipe) -> FineTuned:
    """A network of `config`, its backbone pretrained and its head empty."""
    head = {name: value for name, value in config.items() if name != "learner"}
    return FineTuned(pretrained_trunks(recipe.backbone)(head["backbone"]), **head)


def pretrained_trunks(settings: BackboneSettings) -> Trunks:
    """What makes the trunk of the settings' backbone, its weights the pretrained ones."""
    return lambda backbone: _backbone(settings, backbone["sizes"][0]).trunk


def _backbone(settings: BackboneSettings, size: int) -> Backbone:
    return backbones.load(_plain(settings, size))


def _plain(settings: BackboneSettings, size: int) -> BackboneSettings:
    return settings.model_copy(update={"sizes": [size] if size else [], "views": "plain", "pixels": 0})


def _embeddings(backbone: Backbone, images_L_H_W_K: Images, device: torch.device) -> NDArray[np.float32]:
    backbone.to(device)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images_L_H_W_K), _AT_ONCE):
            images = torch.from_numpy(np.array(images_L_H_W_K[start : start + _AT_ONCE])).permute(0, 3, 1, 2)
            parts.append(backbone(images.to(device)).float().cpu().numpy())
    return np.concatenate(parts)


# -- held-out predictions ---------------------------------------------------------------------------------------------


def cross_fit(
    first: FineTuned,
    known: LabelledImages,
    recipe: Recipe,
    *,
    folds: int,
    seed: int,
    report: Callable[[Metric], None] | None = None,
) -> CrossFit:
    """Out-of-fold predictions by networks like `first`, each trained on the other folds.

    `report` is given each epoch's metrics, prefixed by `fold<k>/`. Raises UserError if there are fewer than two
    samples or a training diverges.
    """
    if len(known.labels_L) < 2:
        raise UserError("cross-fitting needs at least two labelled samples: label more, or set precision_from: vae")
    fold_L, logits_L_C = _held_out_logits(first, known, recipe, folds, seed, report)
    probabilities_L_C = softmax(logits_L_C, axis=1).astype(np.float32)
    return CrossFit(fold_L, probabilities_L_C.argmax(axis=1).astype(np.int32), probabilities_L_C)


def _held_out_logits(
    first: FineTuned,
    known: LabelledImages,
    recipe: Recipe,
    folds: int,
    seed: int,
    report: Callable[[Metric], None] | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """fold_L, and logits_L_C of each sample by a network that was trained on the other folds."""
    fold_L = known.embedded(np.zeros((0, 0), np.float32)).folds(folds, seed)
    logits_L_C = np.zeros((len(fold_L), first.config["num_classes"]))
    for fold in np.unique(fold_L).tolist():
        held_L = fold_L == fold
        fold_seed = int.from_bytes(hash_of(seed, f"fold {fold}")[:4], "big")
        network = refitted(first, known.rows(~held_L), recipe)
        for metric in train(network, known.rows(~held_L), recipe, seed=fold_seed):
            if report is not None:
                report(metric._replace(name=f"fold{fold}/{metric.name}"))
        with torch.inference_mode(), multiplying(recipe.device, recipe.precision):
            parts = pieces(known.images_L_H_W_K[held_L], network, recipe.device)
            answers = [logits for _, (logits,) in brought((None, (network(part).double(),)) for part in parts)]
        logits_L_C[held_L] = np.concatenate(answers)
    return fold_L, logits_L_C
