"""Trains the classifier on the labelled pool by the paper's recipe (Section 4.2), keeps it, and predicts with it.

Axes: N samples, H rows, W columns, K channels, C classes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vabal.batches import batches_of
from vabal.errors import UserError
from vabal.metrics import Metric
from vabal.network import METADATA_KEY, ResNetClassifier, read_weights
from vabal.params import ClassifierSettings

Images = NDArray[np.uint8]
# Of (network, images_N_K_H_W, targets_N, share of the epochs that are over): the step's loss, and logits_N_C.
Objective = Callable[[ResNetClassifier, Tensor, Tensor, float], tuple[Tensor, Tensor]]
_CHUNK = 4096  # images whose statistics are counted at once
_PIXELS_A_PIECE = 2**16


def channel_statistics(images_N_H_W_K: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 0..255; exact, whatever the images' order.

    A channel that hardly varies has a deviation of 1, one grey level. Raises ValueError if there are no images.
    """
    _check_images(images_N_H_W_K)
    if not images_N_H_W_K.size:
        raise ValueError("no images to take statistics of")
    channels = images_N_H_W_K.shape[3]
    counts_K_V = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images_N_H_W_K), _CHUNK):
        chunk = images_N_H_W_K[start : start + _CHUNK]
        for channel in range(channels):
            counts_K_V[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    levels_V, total = np.arange(256), int(counts_K_V[0].sum())
    mean_K = counts_K_V @ levels_V / total
    variance_K = counts_K_V @ levels_V**2 / total - mean_K**2
    std_K = np.sqrt(np.maximum(variance_K, 1.0))
    return tuple(mean_K.tolist()), tuple(std_K.tolist())


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
    network: ResNetClassifier,
    images_N_K_H_W: Tensor,
    targets_N: Tensor,
    _over: float,
) -> tuple[Tensor, Tensor]:
    """The classifier's objective: the mean cross entropy, and logits_N_C."""
    logits_N_C = network(images_N_K_H_W)
    return functional.cross_entropy(logits_N_C.float(), targets_N), logits_N_C


def fit(
    network: ResNetClassifier,
    images_N_H_W_K: Images,
    labels_N: NDArray[np.integer],
    settings: ClassifierSettings,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    objective: Objective = cross_entropy,
    largest_gradient: float | None = None,
) -> Iterator[Metric]:
    """Trains `network` in place by SGD and yields loss, accuracy and learning rate of each epoch, counted from 1.

    What is minimised is `objective`; a gradient longer than `largest_gradient` (2-norm) is cut to that. Batches, crops,
    flips and dropout derive from `seed`: on a CPU the same inputs and thread count give the same bits. The network is
    left on `device`, in evaluation mode, once the iterator is exhausted.

    Raises ValueError for arrays that do not fit the network, UserError if there are no samples or training diverges.
    """
    _check_images(images_N_H_W_K)
    labels = _checked_labels(labels_N, len(images_N_H_W_K), network.config["num_classes"])
    device = torch.device(device)
    images = torch.from_numpy(np.require(images_N_H_W_K, requirements=["C", "W"]))
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
        loss, accuracy = _epoch(
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
        )
        if not np.isfinite(loss) or (epoch == settings.epochs and not _is_finite(network)):
            raise UserError(
                f"the classifier's training diverged in epoch {epoch} of {settings.epochs}: "
                f"lower classifier.learning_rate (now {settings.learning_rate:g}) in params.yaml"
            )
        yield Metric("train/loss", loss, epoch)
        yield Metric("train/accuracy", accuracy, epoch)
        yield Metric("train/learning_rate", rate, epoch)
    network.eval()


def predict(
    network: ResNetClassifier, batches: Iterable[Images], device: torch.device | str = "cpu"
) -> NDArray[np.float32]:
    """probabilities_N_C of the images in `batches` (each N x H x W x K, uint8), one batch in memory at a time.

    Raises ValueError, which tells the rows, if a probability is not finite.
    """
    device = torch.device(device)
    place(network, device).eval()
    parts = [np.zeros((0, network.config["num_classes"]), dtype=np.float32)]
    with torch.inference_mode():
        for images_N_H_W_K in batches:
            for images_P_K_H_W in pieces(images_N_H_W_K, network, device):
                parts.append(torch.softmax(network(images_P_K_H_W).float(), dim=1).cpu().numpy())
    probabilities_N_C = np.concatenate(parts)
    finite_N = np.isfinite(probabilities_N_C).all(axis=1)
    if not finite_N.all():
        raise ValueError(f"the classifier's output is not finite in rows {np.flatnonzero(~finite_N)[:10].tolist()}")
    return probabilities_N_C


def pieces(images_N_H_W_K: Images, network: ResNetClassifier, device: torch.device) -> Iterator[Tensor]:
    """The batch as the network takes it, images_P_K_H_W uint8 on `device`, in pieces of P images.

    On a CPU a piece has at most 2**16 pixels a channel: what fits its caches goes through the network up to twice as
    fast as a batch of 512. On other devices the batch stays whole.
    """
    _check_images(images_N_H_W_K)
    count, height, width, _ = images_N_H_W_K.shape
    size = max(1, _PIXELS_A_PIECE // (height * width)) if device.type == "cpu" else max(1, count)
    for start in range(0, count, size):
        # A copy, for the array may be a read-only map of a file.
        images = torch.from_numpy(np.array(images_N_H_W_K[start : start + size], order="C"))
        yield _arranged(images.permute(0, 3, 1, 2), network, device)


class CrossFit(NamedTuple):
    """Predictions for each labelled sample by a classifier that was not trained on it."""

    fold_N: NDArray[np.int32]
    predicted_N: NDArray[np.int32]
    probabilities_N_C: NDArray[np.float32]


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
    report: Callable[[Metric], None] | None = None,
) -> CrossFit:
    """Out-of-fold predictions of the labelled pool by `folds` networks of `config`, each fitted on the other folds.

    Folds are stratified by class and derive from (seed, sample_id) alone, so the pool's order does not matter. With
    fewer samples than folds, each sample is a fold of its own. `report` is given each epoch's metrics, prefixed by
    `fold<k>/`. Raises UserError if there are fewer than two samples or a training diverges.
    """
    labels = _checked_labels(labels_N, len(images_N_H_W_K), config["num_classes"]).numpy()
    if len(labels) < 2:
        raise UserError("cross-fitting needs at least two labelled samples: label more, or set precision_from: vae")
    fold_N = stratified_folds(sample_ids, labels, folds=folds, seed=seed)
    probabilities_N_C = np.zeros((len(labels), config["num_classes"]), dtype=np.float32)
    by_id_N = np.argsort(np.asarray(sample_ids, dtype=object), kind="stable")
    for fold in np.unique(fold_N).tolist():
        fold_seed = int.from_bytes(_hash(seed, f"fold {fold}")[:4], "big")
        network = ResNetClassifier.from_config(config, seed=fold_seed)
        training_N = by_id_N[fold_N[by_id_N] != fold]
        epochs = fit(network, images_N_H_W_K[training_N], labels[training_N], settings, seed=fold_seed, device=device)
        for metric in epochs:
            if report is not None:
                report(metric._replace(name=f"fold{fold}/{metric.name}"))
        held_out_N = by_id_N[fold_N[by_id_N] == fold]
        batches = (
            images_N_H_W_K[held_out_N[start : start + settings.batch_size]]
            for start in range(0, len(held_out_N), settings.batch_size)
        )
        probabilities_N_C[held_out_N] = predict(network, batches, device)
    return CrossFit(fold_N, probabilities_N_C.argmax(axis=1).astype(np.int32), probabilities_N_C)


def stratified_folds(
    sample_ids: Sequence[str], labels_N: NDArray[np.integer], *, folds: int, seed: int
) -> NDArray[np.int32]:
    """fold_N in 0..folds-1: each class is dealt out evenly, in the order of a hash of (seed, sample_id).

    A class is dealt on from the fold where the one before it stopped, so the folds' sizes differ by one at most.
    """
    if len(sample_ids) != len(labels_N) or len(set(sample_ids)) != len(sample_ids):
        raise ValueError("expected one unique sample_id for each label")
    order = sorted(range(len(sample_ids)), key=lambda n: (int(labels_N[n]), _hash(seed, sample_ids[n])))
    fold_N = np.empty(len(sample_ids), dtype=np.int32)
    fold_N[order] = np.arange(len(sample_ids)) % folds
    return fold_N


def save(network: ResNetClassifier, path: Path, about: dict[str, Any] | None = None) -> str:
    """Writes weights and configuration as safetensors; returns the file's SHA-256. Same weights, same bytes.

    `about` (JSON values) is kept beside the configuration and read back by `read_about`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {"config": network.config, "about": about or {}}
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)})
    return sha256(path)


def load(path: Path, device: torch.device | str = "cpu") -> ResNetClassifier:
    """The network that `save` wrote, in evaluation mode. Raises UserError if the file is missing or damaged."""
    try:
        network = read_weights(path)
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


def sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def batch_rows(order: Tensor, batch_size: int) -> list[Tensor]:
    """The samples of each step of an epoch, in batches that differ by one sample at most."""
    return list(torch.tensor_split(order, batches_of(len(order), batch_size)))


def augment(images_N_H_W_K: Tensor, settings: ClassifierSettings, generator: torch.Generator) -> Tensor:
    """Each image cut at random out of itself padded with zeros, and mirrored at random, as the settings ask."""
    images = images_N_H_W_K
    count, height, width, _ = images.shape
    if settings.crop_padding:
        padding = settings.crop_padding
        padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
        top_N, left_N = torch.randint(2 * padding + 1, (2, count, 1), generator=generator)
        rows_N_H, columns_N_W = top_N + torch.arange(height), left_N + torch.arange(width)
        images = padded[torch.arange(count)[:, None, None], rows_N_H[:, :, None], columns_N_W[:, None, :]]
    if settings.horizontal_flip:
        flipped_N = torch.randint(2, (count, 1, 1, 1), generator=generator, dtype=torch.bool)
        images = torch.where(flipped_N, images.flip(2), images)
    return images


def _epoch(
    network: ResNetClassifier,
    optimizer: torch.optim.Optimizer,
    images_N_H_W_K: Tensor,
    labels_N: Tensor,
    settings: ClassifierSettings,
    objective: Objective,
    over: float,
    *,
    largest_gradient: float | None,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[float, float]:
    """One pass over the samples; their mean loss and accuracy as they were seen."""
    network.train()
    order = torch.randperm(len(labels_N), generator=generator)
    dropout_seed = int(torch.randint(2**31, (1,), generator=generator))
    mixed_precision = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    loss_sum, right = torch.zeros((), device=device), torch.zeros((), device=device)
    # Dropout draws from torch's global generator: seeded here, and given back as it was.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(dropout_seed)
        for rows in batch_rows(order, settings.batch_size):
            if len(rows) == 1:
                _freeze_batch_norm(network)
            batch = augment(images_N_H_W_K[rows], settings, generator).permute(0, 3, 1, 2)
            inputs = _arranged(batch, network, device)
            targets = labels_N[rows].to(device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed_precision):
                loss, logits_N_C = objective(network, inputs, targets, over)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if largest_gradient is not None:
                nn.utils.clip_grad_norm_(network.parameters(), largest_gradient)
            optimizer.step()
            loss_sum += loss.detach() * len(rows)
            right += (logits_N_C.argmax(dim=1) == targets).sum()
    return float(loss_sum) / len(labels_N), float(right) / len(labels_N)


def place(network: ResNetClassifier, device: torch.device) -> ResNetClassifier:
    """The network on `device`, in the order of its numbers that suits it."""
    network.to(device)
    network.to(memory_format=memory_format(network, device))
    return network


def memory_format(network: ResNetClassifier, device: torch.device) -> torch.memory_format:
    """Channels last, in which convolutions are a fifth to a third faster, but for narrow networks on a CPU.

    There oneDNN (as torch 2.15 has it) writes past its buffers in the gradients of eight channels on large maps: the
    process dies. Sixteen channels are its blocks' size.
    """
    if device.type == "cpu" and network.config["width"] % 16:
        return torch.contiguous_format
    return torch.channels_last


def _arranged(images_N_K_H_W: Tensor, network: ResNetClassifier, device: torch.device) -> Tensor:
    """A copy on `device` in the network's order; `contiguous` leaves a single channel's strides as they were."""
    order = memory_format(network, device)
    there = torch.empty(images_N_K_H_W.shape, dtype=images_N_K_H_W.dtype, device=device, memory_format=order)
    return there.copy_(images_N_K_H_W)


def _freeze_batch_norm(network: nn.Module) -> None:
    """A labelled pool of one sample: normalise by the running statistics, for one sample has no variance."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _is_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values())


def _check_images(images_N_H_W_K: Images) -> None:
    if images_N_H_W_K.dtype != np.uint8 or images_N_H_W_K.ndim != 4:
        raise ValueError(
            f"expected uint8 images of shape N x H x W x K, found {images_N_H_W_K.dtype} of {images_N_H_W_K.shape}"
        )


def _checked_labels(labels_N: NDArray[np.integer], samples: int, num_classes: int) -> Tensor:
    labels = np.asarray(labels_N, dtype=np.int64)
    if labels.shape != (samples,):
        raise ValueError(f"expected {samples} labels, found an array of {labels.shape}")
    if not samples:
        raise UserError("there is no labelled sample to train on: bring in labels with `vabal labels import FILE`")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"a label lies outside the {num_classes} classes")
    return torch.from_numpy(labels)


def _hash(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()
