"""Pieces of the training recipe: batches on a device, augmentation, an epoch, folds."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vabal.learning import augmentation
from vabal.learning.batches import batches_of
from vabal.learning.device import fits, multiplying, sent, threads_of_step
from vabal.learning.network import FineTuned, LinearProbe, Network, SeesImages
from vabal.settings.learners import ClassifierSettings

Images = NDArray[np.uint8]
# Of (network, images_N_K_H_W, targets_N, share of the epochs that are over): the step's loss, and logits_N_C.
Objective = Callable[[SeesImages, Tensor, Tensor, float], tuple[Tensor, Tensor]]
AnyNetwork = TypeVar("AnyNetwork", bound=Network)
_CHUNK = 4096  # images whose statistics are counted at once
_PIXELS_A_PIECE = 2**16
_EMBEDDINGS_A_PIECE = 4096
Inputs = NDArray[np.uint8] | NDArray[np.float32]  # images, or the embeddings that a probe sees


def channel_statistics(images_N_H_W_K: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in units of 0..255; exact, whatever the images' order.

    A channel that hardly varies has a deviation of 1, one grey level. Raises ValueError if there are no images.
    """
    check_images(images_N_H_W_K)
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


def pieces(inputs_N: Inputs, network: Network, device: torch.device) -> Iterator[Tensor]:
    """The batch as the network takes it, in pieces of P: images_P_K_H_W uint8 on `device`, or embeddings_P_E.

    On a CPU a piece has at most 2**16 pixels a channel: what fits its caches goes through the network up to twice as
    fast as a batch of 512. On other devices the batch stays whole.
    """
    if isinstance(network, LinearProbe):
        for start in range(0, len(inputs_N), _EMBEDDINGS_A_PIECE):
            yield sent(torch.from_numpy(np.array(inputs_N[start : start + _EMBEDDINGS_A_PIECE])), device)
        return
    images_N_H_W_K = check_images(inputs_N)
    count, height, width, _ = images_N_H_W_K.shape
    pixels = network.size**2 if isinstance(network, FineTuned) else height * width
    size = max(1, _PIXELS_A_PIECE // pixels) if device.type == "cpu" else max(1, count)
    for start in range(0, count, size):
        # A copy of what may be a read-only map of a file.
        images = torch.from_numpy(np.require(images_N_H_W_K[start : start + size], requirements=["C", "W"]))
        yield _arranged(images.permute(0, 3, 1, 2), network, device)


def stratified_folds(
    sample_ids: Sequence[str],
    labels_N: NDArray[np.integer],
    *,
    folds: int,
    seed: int,
    groups_N: NDArray[Any] | None = None,
) -> NDArray[np.int32]:
    """fold_N in 0..folds-1: each class is dealt out evenly, in the order of a hash of (seed, sample_id).

    A class is dealt on from the fold where the one before it stopped, so the folds' sizes differ by one at most.
    A group goes where its first sample goes; where there is but one, groups do not count.
    """
    if len(sample_ids) != len(labels_N) or len(set(sample_ids)) != len(sample_ids):
        raise ValueError("expected one unique sample_id for each label")
    order = sorted(range(len(sample_ids)), key=lambda n: (int(labels_N[n]), hash_of(seed, sample_ids[n])))
    if groups_N is None or len(set(groups_N)) < 2:
        fold_N = np.empty(len(sample_ids), dtype=np.int32)
        fold_N[order] = np.arange(len(sample_ids)) % folds
        return fold_N
    dealt: dict[Any, int] = {}
    for n in order:
        dealt.setdefault(groups_N[n], len(dealt) % folds)
    return np.array([dealt[group] for group in groups_N], dtype=np.int32)


class CrossFit(NamedTuple):
    """Predictions for each labelled sample by a classifier that was not trained on it."""

    fold_N: NDArray[np.int32]
    predicted_N: NDArray[np.int32]
    probabilities_N_C: NDArray[np.float32]


def imbalance(settings: ClassifierSettings) -> str:
    """What the setting `imbalance` comes to."""
    if settings.imbalance != "auto":
        return settings.imbalance
    return "none" if settings.learner == "scratch" else "balanced"


def class_weights(labels_N: NDArray[np.integer], num_classes: int) -> NDArray[np.float64]:
    """weights_C: every class that has labels weighs alike, and the mean weight of a sample is 1."""
    counts_C = np.bincount(labels_N, minlength=num_classes)
    weights_C: NDArray[np.float64] = len(labels_N) / (np.count_nonzero(counts_C) * np.maximum(counts_C, 1))
    return weights_C


def pool_of(
    images_N_H_W_K: Images, labels_N: Tensor, settings: ClassifierSettings, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The labelled pool where its batches are made: on a GPU where it fits; but on the CPU for what `augmentation`
    does, image by image."""
    images = torch.from_numpy(np.require(images_N_H_W_K, requirements=["C", "W"]))
    images = images if settings.augmentation or not fits(images.nbytes, device) else sent(images, device)
    return images, sent(labels_N, images.device)


def batch_rows(order: Tensor, batch_size: int) -> list[Tensor]:
    """The samples of each step of an epoch, in batches that differ by one sample at most."""
    return list(torch.tensor_split(order, batches_of(len(order), batch_size)))


def augment(images_N_H_W_K: Tensor, settings: ClassifierSettings, generator: torch.Generator) -> Tensor:
    """Each image cut at random out of itself padded with zeros, and mirrored at random, as the settings ask.

    All is drawn on the CPU, so that a GPU sees the same. `augmentation` draws from torch's global generator, which the
    caller has seeded.
    """
    images, device = images_N_H_W_K, images_N_H_W_K.device
    count, height, width, _ = images.shape
    if settings.crop_padding:
        padding = settings.crop_padding
        padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
        top_N, left_N = sent(torch.randint(2 * padding + 1, (2, count, 1), generator=generator), device)
        rows_N_H, columns_N_W = (
            first_N + torch.arange(side, device=device) for first_N, side in ((top_N, height), (left_N, width))
        )
        images = padded[
            torch.arange(count, device=device)[:, None, None], rows_N_H[:, :, None], columns_N_W[:, None, :]
        ]
    if settings.horizontal_flip:
        flipped_N = torch.randint(2, (count, 1, 1, 1), generator=generator, dtype=torch.bool)
        images = torch.where(sent(flipped_N, device), images.flip(2), images)
    return augmentation.changed(images, settings.augmentation) if settings.augmentation else images


def run_epoch(
    network: SeesImages,
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
    precision: torch.dtype,
) -> Tensor:
    """One pass over the samples: the sum of their losses as they were seen, and how many were right, on `device`.

    Batches are taken where images and labels are, on `device` or on the CPU. No step waits for a GPU, to read what
    comes of it does.
    """
    network.train()
    order = sent(torch.randperm(len(labels_N), generator=generator), images_N_H_W_K.device)
    dropout_seed = int(torch.randint(2**31, (1,), generator=generator))
    loss_sum, right = torch.zeros((), device=device), torch.zeros((), device=device)
    # Dropout draws from torch's global generator: seeded here, and given back as it was.
    numbers = settings.batch_size * images_N_H_W_K[0, ..., 0].numel() * network.config.get("width", 64)
    with threads_of_step(device, numbers), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(dropout_seed)
        for rows in batch_rows(order, settings.batch_size):
            if len(rows) == 1:
                _freeze_batch_norm(network)
            batch = augment(images_N_H_W_K[rows], settings, generator).permute(0, 3, 1, 2)
            inputs = _arranged(batch, network, device)
            targets = sent(labels_N[rows], device)
            with multiplying(device, precision):
                loss, logits_N_C = objective(network, inputs, targets, over)
            _step(optimizer, loss, network, largest_gradient)
            loss_sum += loss.detach() * len(rows)
            right += (logits_N_C.argmax(dim=1) == targets).sum()
    return torch.stack([loss_sum, right])


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, network: nn.Module, largest_gradient: float | None) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if largest_gradient is not None:
        nn.utils.clip_grad_norm_(network.parameters(), largest_gradient)
    optimizer.step()


def place(network: AnyNetwork, device: torch.device) -> AnyNetwork:
    """The network on `device`, in the order of its numbers that suits it."""
    network.to(device)
    if not isinstance(network, LinearProbe):
        network.to(memory_format=memory_format(network, device))
    if isinstance(network, FineTuned):
        network.order = memory_format(network, device)
    return network


def memory_format(network: SeesImages, device: torch.device) -> torch.memory_format:
    """Channels last, in which convolutions are a fifth to a third faster, but for narrow networks on a CPU.

    There oneDNN (as torch 2.15 has it) writes past its buffers in the gradients of eight channels on large maps: the
    process dies. Sixteen channels are its blocks' size.
    """
    if isinstance(network, FineTuned):
        narrow = any(isinstance(part, nn.Conv2d) and part.out_channels < 16 for part in network.modules())
    else:
        narrow = network.config["width"] % 16 != 0
    return torch.contiguous_format if narrow and device.type == "cpu" else torch.channels_last


def _arranged(images_N_K_H_W: Tensor, network: SeesImages, device: torch.device) -> Tensor:
    """A copy on `device` in the network's order; `contiguous` leaves a single channel's strides as they were."""
    order = memory_format(network, device)
    there = torch.empty(images_N_K_H_W.shape, dtype=images_N_K_H_W.dtype, device=device, memory_format=order)
    return there.copy_(sent(images_N_K_H_W, device))


def _freeze_batch_norm(network: nn.Module) -> None:
    """A labelled pool of one sample: normalise by the running statistics, for one sample has no variance."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def is_finite(network: nn.Module) -> bool:
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in network.state_dict().values()]).all())


def check_images(images_N_H_W_K: Inputs) -> Images:
    if images_N_H_W_K.dtype != np.uint8 or images_N_H_W_K.ndim != 4:
        raise ValueError(
            f"expected uint8 images of shape N x H x W x K, found {images_N_H_W_K.dtype} of {images_N_H_W_K.shape}"
        )
    return cast("Images", images_N_H_W_K)


def hash_of(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{text}".encode()).digest()
