"""Trains the classifier on the labelled pool by the paper's recipe (Section 4.2), keeps it, and predicts with it.

Axes: N samples, H rows, W columns, K channels, C classes.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vabal.errors import UserError
from vabal.files import file_sha256
from vabal.learning import backbones
from vabal.learning.device import brought, multiplying
from vabal.learning.metrics import Metric
from vabal.learning.network import METADATA_KEY, Network, ResNetClassifier, SeesImages, read_weights
from vabal.learning.recipe import (
    CrossFit,
    Images,
    Inputs,
    Objective,
    check_images,
    class_weights,
    hash_of,
    imbalance,
    is_finite,
    pieces,
    place,
    pool_of,
    run_epoch,
    stratified_folds,
)
from vabal.settings.learners import ClassifierSettings


def build(
    settings: ClassifierSettings,
    *,
    num_classes: int,
    image_size: int,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
    dropout: float = 0.0,
) -> ResNetClassifier:
    """An untrained network of the settings' kind, its first weights drawn from `seed`."""
    return ResNetClassifier(
        settings.network,
        num_classes=num_classes,
        image_size=image_size,
        channels=channels,
        width=settings.width,
        stem=settings.stem,
        dropout=dropout,
        mean=mean,
        std=std,
        seed=seed,
    )


def cross_entropy(
    network: SeesImages,
    images_N_K_H_W: Tensor,
    targets_N: Tensor,
    _over: float,
) -> tuple[Tensor, Tensor]:
    """The classifier's objective: the mean cross entropy, and logits_N_C."""
    logits_N_C = network(images_N_K_H_W)
    return functional.cross_entropy(logits_N_C.float(), targets_N), logits_N_C


def objective_of(
    settings: ClassifierSettings, labels_N: NDArray[np.integer], num_classes: int, device: torch.device
) -> Objective:
    """The cross entropy as the setting `imbalance` wants it.

    `balanced`: every class that has labels weighs alike, the mean weight is 1. `logit_adjusted`: the log of a class's
    share is added to its logit while learning (Menon et al. 2021, Eq. 10); a class without labels counts as one label.
    """
    kind = imbalance(settings)
    if kind == "none":
        return cross_entropy
    counts_C = np.bincount(labels_N, minlength=num_classes)
    weights_C = torch.from_numpy(class_weights(labels_N, num_classes)).float().to(device)
    shift_C = torch.from_numpy(np.log(np.maximum(counts_C, 1) / len(labels_N))).float().to(device)

    def weighted(network: SeesImages, images: Tensor, targets_N: Tensor, _over: float) -> tuple[Tensor, Tensor]:
        logits_N_C = network(images)
        if kind == "logit_adjusted":
            loss = functional.cross_entropy(logits_N_C.float() + shift_C, targets_N)
            return loss, logits_N_C
        loss_N = functional.cross_entropy(logits_N_C.float(), targets_N, reduction="none")
        return (loss_N * weights_C[targets_N]).mean(), logits_N_C

    return weighted


def fit(
    network: ResNetClassifier,
    images_N_H_W_K: Images,
    labels_N: NDArray[np.integer],
    settings: ClassifierSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    objective: Objective | None = None,
    largest_gradient: float | None = None,
) -> Iterator[Metric]:
    """Trains `network` in place by SGD and yields loss, accuracy and learning rate of each epoch, counted from 1.

    What is minimised is `objective`, or else the cross entropy of `objective_of`; a gradient longer than
    `largest_gradient` (2-norm) is cut to that. Convolutions and products are of `precision`. Batches, crops, flips and
    dropout derive from `seed`: on a CPU the same inputs and thread count give the same bits. The network is left on
    `device`, in evaluation mode, once the iterator is exhausted.

    Raises ValueError for arrays that do not fit the network, UserError if there are no samples or training diverges.
    """
    check_images(images_N_H_W_K)
    labels = _checked_labels(labels_N, len(images_N_H_W_K), network.config["num_classes"])
    device = torch.device(device)
    objective = objective or objective_of(settings, labels.numpy(), network.config["num_classes"], device)
    images, labels = pool_of(images_N_H_W_K, labels, settings, device)
    place(network, device)
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    generator = torch.Generator().manual_seed(seed)
    first_decayed = round(settings.decay_at * settings.epochs) + 1
    for epoch in range(1, settings.epochs + 1):
        rate = settings.learning_rate * (settings.decay_factor if epoch >= first_decayed else 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate
        over = (epoch - 1) / settings.epochs
        seen = run_epoch(
            network,
            optimizer,
            images,
            labels,
            settings,
            objective,
            over,
            largest_gradient=largest_gradient,
            generator=generator,
            device=device,
            precision=precision,
        )
        loss, accuracy = (total / len(labels) for total in seen.tolist())
        if not np.isfinite(loss) or (epoch == settings.epochs and not is_finite(network)):
            raise UserError(
                f"the classifier's training diverged in epoch {epoch} of {settings.epochs}: "
                f"lower classifier.learning_rate (now {settings.learning_rate:g}) in params.yaml"
            )
        yield Metric("train/loss", loss, epoch)
        yield Metric("train/accuracy", accuracy, epoch)
        yield Metric("train/learning_rate", rate, epoch)
    network.eval()


def predict(network: Network, batches: Iterable[Inputs], device: torch.device | str = "cpu") -> NDArray[np.float32]:
    """probabilities_N_C of the inputs in `batches`, images, uint8, or embeddings_N_E; one batch in memory at a time.

    Raises ValueError, which tells the rows, if a probability is not finite.
    """
    device = torch.device(device)
    place(network, device).eval()
    parts = [np.zeros((0, network.config["num_classes"]), dtype=np.float32)]
    with torch.inference_mode():
        seen = (inputs_P for inputs_N in batches for inputs_P in pieces(inputs_N, network, device))
        answers = ((None, (torch.softmax(network(inputs_P).float(), dim=1),)) for inputs_P in seen)
        parts += [probabilities_P_C for _, (probabilities_P_C,) in brought(answers)]
    probabilities_N_C = np.concatenate(parts)
    finite_N = np.isfinite(probabilities_N_C).all(axis=1)
    if not finite_N.all():
        raise ValueError(f"the classifier's output is not finite in rows {np.flatnonzero(~finite_N)[:10].tolist()}")
    return probabilities_N_C


def cross_fit(
    config: dict[str, Any],
    images_N_H_W_K: Images,
    labels_N: NDArray[np.integer],
    sample_ids: Sequence[str],
    settings: ClassifierSettings,
    *,
    folds: int,
    seed: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    report: Callable[[Metric], None] | None = None,
    groups_N: NDArray[Any] | None = None,
) -> CrossFit:
    """Out-of-fold predictions of the labelled pool by `folds` networks of `config`, each fitted on the other folds.

    Folds are stratified by class and derive from (seed, sample_id) and groups alone, so the pool's order does not
    matter. With fewer samples than folds, each sample is a fold of its own. `report` is given each epoch's metrics,
    prefixed by `fold<k>/`. Raises UserError if there are fewer than two samples or a training diverges.
    """
    labels = _checked_labels(labels_N, len(images_N_H_W_K), config["num_classes"]).numpy()
    if len(labels) < 2:
        raise UserError("cross-fitting needs at least two labelled samples: label more, or set precision_from: vae")
    fold_N = stratified_folds(sample_ids, labels, folds=folds, seed=seed, groups_N=groups_N)
    probabilities_N_C = np.zeros((len(labels), config["num_classes"]), dtype=np.float32)
    by_id_N = np.argsort(np.asarray(sample_ids, dtype=object), kind="stable")
    for fold in np.unique(fold_N).tolist():
        fold_seed = int.from_bytes(hash_of(seed, f"fold {fold}")[:4], "big")
        network = ResNetClassifier.from_config(config, seed=fold_seed)
        training_N = by_id_N[fold_N[by_id_N] != fold]
        known = images_N_H_W_K[training_N], labels[training_N]
        for metric in fit(network, *known, settings, seed=fold_seed, device=device, precision=precision):
            if report is not None:
                report(metric._replace(name=f"fold{fold}/{metric.name}"))
        held_out_N = by_id_N[fold_N[by_id_N] == fold]
        starts = range(0, len(held_out_N), settings.batch_size)
        batches = (images_N_H_W_K[held_out_N[start : start + settings.batch_size]] for start in starts)
        with multiplying(torch.device(device), precision):
            probabilities_N_C[held_out_N] = predict(network, batches, device)
    return CrossFit(fold_N, probabilities_N_C.argmax(axis=1).astype(np.int32), probabilities_N_C)


def save(network: Network, path: Path, about: dict[str, Any] | None = None) -> str:
    """Writes weights and configuration as safetensors; returns the file's SHA-256. Same weights, same bytes.

    `about` (JSON values) is kept beside the configuration and read back by `read_about`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"config": network.config, "about": about or {}}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)})
    return file_sha256(path)


def load(path: Path, device: torch.device | str = "cpu") -> Network:
    """The network that `save` wrote, in evaluation mode. Raises UserError if the file is missing or damaged."""
    try:
        network = read_weights(path, backbones.untrained)
    except OSError as error:
        raise UserError(f"{path}: the classifier's weights cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{error}; restore the file, or train the classifier again") from None
    return network.to(device)


def read_about(path: Path) -> dict[str, Any]:
    """What `save` was given as `about`. Raises UserError if the file is missing or not one that `save` wrote."""
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = json.loads(file.metadata()[METADATA_KEY])["about"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: not a classifier's weights; restore the file, or train it again") from None
    return about


def _checked_labels(labels_N: NDArray[np.integer], samples: int, num_classes: int) -> Tensor:
    labels = np.asarray(labels_N, dtype=np.int64)
    if labels.shape != (samples,):
        raise ValueError(f"expected {samples} labels, found an array of {labels.shape}")
    if not samples:
        raise UserError("there is no labelled sample to train on: bring in labels with `vabal labels import FILE`")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"a label lies outside the {num_classes} classes")
    return torch.from_numpy(labels)
