"""VAAL: the images that look least like labelled ones to an adversary (Sinha, Ebrahimi and Darrell, ICCV 2019)."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, Labeled, ScoringStrategy, Selection, Shard, posteriors
from vabal.strategies.candidates import Candidates, margin
from vabal.strategies.noise import hash_ids

BATCH = 32  # images of each pool a step
STEPS, STEP_SIDE = 600, 16  # steps for images up to this side; fewer for larger ones, in inverse proportion
FEWEST_STEPS, EPOCHS = 100, 20  # of small pools: so many passes over them, but no fewer steps
PUBLISHED_BATCH, PUBLISHED_EPOCHS = 128, 100  # the authors': 39 062 steps for CIFAR-10's 50 000 images
UNLABELED = 50_000  # images of the unlabelled pool that are trained on, at most
SMALLEST, LARGEST = 8, 64  # sides of the network's input
LATENT, HIDDEN = 32, 512
LEARNING_RATE, BETA, ADVERSARY = 5e-4, 1.0, 1.0  # the authors'
_BLOCK = 128  # images scored at once, always: a sum's last bits can depend on the shape


class VaalStrategy(ScoringStrategy):
    """The score is 1 - D(z), the probability that an image is unlabelled, to a discriminator of latents
    (arXiv:1904.00370; github.com/sinhasam/vaal, which likewise takes the smallest D, at the mean latent).

    A convolutional beta-VAE encodes labelled and unlabelled images; the discriminator learns to tell their latents
    apart (labelled: 1) and the VAE to make both look labelled. As the authors have it: latent of 32, discriminator of
    two layers of 512, Adam at 5e-4 for both, beta and adversary weight 1. Not as they have it:
    - the evidence lower bound is that of a sample: half the squared error, summed over (standardised) pixels, and the
      KL, both averaged over the batch. Their code averages the former over pixels and sums the latter over the batch,
      under which the latent collapses;
    - the network is narrower and has as many stride-2 blocks as lead to 4 x 4; images are resized to the next of 8,
      16, 32 or 64 pixels squared, larger ones down to 64; group instead of batch normalisation, so that an image's
      score does not depend on its neighbours;
    - one step of the VAE for one of the discriminator, where they take two;
    - on a CPU 600 steps of 32 images of each pool, or fewer: they bound the work, so that it does not grow with the
      pool. On a GPU, or with `selection.vaal_steps: published`, as many as the authors take, of 128 images of each pool
      (`Schedule`). One core took 0.36 s for such a step at 32 x 32: four hours for 39 000 of them.

    Without a labelled image there is nothing to tell apart: all scores are equal and the picks random.

    Cost: training O(steps), then one pass of the encoder, streamed shard by shard. Memory: the labelled images and at
    most 50 000 unlabelled ones, those with the lowest hash, as uint8 of the network's size. 1 000 000 candidates are
    thus all scored, by an adversary trained on those. On one core 1 300 images of 8 x 8 took 3 s, 2 000 colour images
    of 32 x 32 took 7 s, of 64 x 64 10 s.
    """

    name: ClassVar[str] = "vaal"
    needs: ClassVar[Needs] = Needs(posteriors=True, images=True)
    inputs: tuple[str, ...] = ("logits_N_C",)

    def select(self, context: Context, budget: int) -> Selection:
        """Raises ValueError if the context or the shards carry no images, UserError naming scores not finite."""
        labeled = context.labeled
        if labeled is None or labeled.images_N_H_W_K is None:
            raise ValueError("strategy vaal: the context must carry the labelled pool with its images")
        if not len(labeled.labels_N):
            selection = _Scoring(None).select(context, budget)
            return replace(selection, notes=(*selection.notes, "no labelled image to compare with: picked at random"))
        labeled_images = canvas(_in_order(labeled), side_for(labeled.images_N_H_W_K))
        unlabeled_images = _unlabeled_images(context, labeled_images.shape[2])
        adversary = train(labeled_images, unlabeled_images, context) if len(unlabeled_images) else None
        return _Scoring(adversary).select(context, budget)


class _Scoring(ScoringStrategy):
    """The second half of the strategy, once there is an adversary."""

    name: ClassVar[str] = VaalStrategy.name
    needs: ClassVar[Needs] = VaalStrategy.needs
    inputs: tuple[str, ...] = VaalStrategy.inputs

    def __init__(self, adversary: "Adversary | None") -> None:
        self.adversary = adversary

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        score_N = np.full(len(shard), 0.5) if self.adversary is None else self.adversary.score(_images(shard))
        if shard.logits_N_C is None or not len(shard):
            return Candidates(shard.sample_ids, score_N)
        probabilities_N_C = posteriors(shard)
        predicted_N = probabilities_N_C.argmax(axis=1).astype(np.int32)
        return Candidates(shard.sample_ids, score_N, predicted_N, margin_N=margin(probabilities_N_C))


# -- the networks -------------------------------------------------------------------------------------------------


class ImageVAE(nn.Module):
    """Images_N_K_S_S to means and log variances_N_Z, and latents back to images."""

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        blocks = (side // 4).bit_length() - 1
        widest = 64 if blocks > 1 else 32
        widths = [channels, *(widest >> (blocks - 1 - block) for block in range(blocks))]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for near, far in pairwise(widths):
            down += [nn.Conv2d(near, far, 4, 2, 1), nn.GroupNorm(4, far), nn.ReLU()]
            smooth = [nn.GroupNorm(4, near), nn.ReLU()] if up else []  # not behind the last, which gives the image
            up = [nn.ConvTranspose2d(far, near, 4, 2, 1), *smooth, *up]
        self.encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(widths[-1] * 16, 2 * LATENT))
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, widths[-1] * 16), nn.ReLU(), nn.Unflatten(1, (widths[-1], 4, 4)), *up
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean_N_Z, log_var_N_Z = self.encoder(images).chunk(2, dim=1)
        return mean_N_Z, log_var_N_Z

    def loss(self, images: Tensor, noise_N_Z: Tensor) -> tuple[Tensor, Tensor]:
        """The negative lower bound of an image on average, and mean_N_Z."""
        mean_N_Z, log_var_N_Z = self.encode(images)
        rebuilt = self.decoder(mean_N_Z + noise_N_Z * (0.5 * log_var_N_Z).exp())
        error = 0.5 * (rebuilt - images).square().sum()
        kl = 0.5 * (mean_N_Z.square() + log_var_N_Z.exp() - 1 - log_var_N_Z).sum()
        return (error + BETA * kl) / len(images), mean_N_Z


def discriminator() -> nn.Sequential:
    """Latents_N_Z to the logit of being labelled."""
    return nn.Sequential(
        nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
    )


@dataclass(frozen=True)
class Adversary:
    """A trained encoder and discriminator, with what images are standardised by."""

    vae: ImageVAE
    discriminator: nn.Sequential
    scaling: "Scaling"
    side: int
    device: str

    @torch.no_grad()
    def score(self, images_N_H_W_K: NDArray[np.uint8]) -> NDArray[np.float64]:
        """score_N, the probability that an image is unlabelled."""
        scores = np.empty(len(images_N_H_W_K))
        for start in range(0, len(scores), _BLOCK):
            block = canvas(images_N_H_W_K[start : start + _BLOCK], self.side)
            full = functional.pad(block, (0, 0, 0, 0, 0, 0, 0, _BLOCK - len(block)))
            mean_N_Z, _ = self.vae.encode(self.scaling(full.to(self.device)))
            # Of the whole block: the last rows of another length would be rounded otherwise than those before them.
            unlabelled = torch.sigmoid(-self.discriminator(mean_N_Z)[:, 0].double())
            scores[start : start + len(block)] = unlabelled[: len(block)].cpu().numpy()
        return scores


@dataclass(frozen=True)
class Scaling:
    """Standardises uint8 images_N_K_S_S channel by channel."""

    mean_K: tuple[float, ...]
    std_K: tuple[float, ...]

    @classmethod
    def of(cls, *pools: Tensor) -> "Scaling":
        """Counted in whole numbers: no order of the images can show."""
        channels = pools[0].shape[1]
        count_K = np.zeros((channels, 256), dtype=np.int64)
        for pool in pools:
            for channel in range(channels):
                count_K[channel] += np.bincount(pool[:, channel].numpy().ravel(), minlength=256)
        share = count_K / count_K.sum(axis=1, keepdims=True)
        mean_K = share @ np.arange(256)
        std_K = np.sqrt((share * (np.arange(256) - mean_K[:, None]) ** 2).sum(axis=1))
        return cls(tuple(mean_K.tolist()), tuple(np.maximum(std_K, 1.0).tolist()))

    def __call__(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (self.mean_K, self.std_K))
        return (images.float() - mean) / std


# -- training -----------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    """How often both networks are updated, and on how many images of each pool."""

    steps: int
    batch: int

    @classmethod
    def of(cls, wanted: str | int, images: int, side: int, device: str) -> "Schedule":
        """For so many images in all; `wanted` is the setting `selection.vaal_steps`."""
        if isinstance(wanted, int):
            return cls(wanted, BATCH)
        if wanted == "published" or device.startswith("cuda"):
            return cls(max(FEWEST_STEPS, PUBLISHED_EPOCHS * images // PUBLISHED_BATCH), PUBLISHED_BATCH)
        most = STEPS * STEP_SIDE // max(side, STEP_SIDE)
        return cls(max(FEWEST_STEPS, min(most, EPOCHS * images // (2 * BATCH))), BATCH)


def train(labeled: Tensor, unlabeled: Tensor, context: Context) -> Adversary:
    """Trains both networks in turn on uint8 images_N_K_S_S; on a CPU the same seed gives the same bits."""
    side, device = labeled.shape[2], context.device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(context.seed)
        vae, judge = ImageVAE(side, labeled.shape[1]).to(device), discriminator().to(device)
    generator = torch.Generator().manual_seed(context.seed)
    scaling = Scaling.of(labeled, unlabeled)
    vae_optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    judge_optimizer = torch.optim.Adam(judge.parameters(), lr=LEARNING_RATE)
    wanted = context.settings.selection.vaal_steps
    steps, batch = Schedule.of(wanted, len(labeled) + len(unlabeled), side, device)
    is_labeled = (torch.arange(2 * batch, device=device) < batch).float()
    for _ in range(steps):
        drawn = [pool[torch.randint(len(pool), (batch,), generator=generator)] for pool in (labeled, unlabeled)]
        images = scaling(torch.cat(drawn).to(device))
        noise_N_Z = torch.randn(2 * batch, LATENT, generator=generator).to(device)
        loss, mean_N_Z = vae.loss(images, noise_N_Z)
        fooled = _cross_entropy(judge(mean_N_Z)[:, 0], torch.ones_like(is_labeled))
        vae_optimizer.zero_grad()
        (2 * loss + ADVERSARY * fooled).backward()
        vae_optimizer.step()
        with torch.no_grad():
            mean_N_Z, _ = vae.encode(images)
        judge_optimizer.zero_grad()
        _cross_entropy(judge(mean_N_Z)[:, 0], is_labeled).backward()
        judge_optimizer.step()
    return Adversary(vae, judge, scaling, side, device)


def _cross_entropy(logit_N: Tensor, target_N: Tensor) -> Tensor:
    """The mean of each pool, and the sum of both."""
    return 2 * functional.binary_cross_entropy_with_logits(logit_N, target_N)


# -- images -------------------------------------------------------------------------------------------------------


def side_for(images_N_H_W_K: NDArray[np.uint8]) -> int:
    """The network's input: the next of 8, 16, 32, 64 pixels that holds the images' longer side; 64 for larger ones."""
    longer = max(images_N_H_W_K.shape[1:3])
    side = SMALLEST
    while side < min(longer, LARGEST):
        side *= 2
    return side


def canvas(images_N_H_W_K: NDArray[np.uint8], side: int) -> Tensor:
    """The images as uint8_N_K_S_S, resized (bilinear, antialiased) where they have another size."""
    images = torch.from_numpy(np.array(images_N_H_W_K)).permute(0, 3, 1, 2)
    if images.shape[2:] == (side, side) or not len(images):
        return images.contiguous() if len(images) else images.new_zeros((0, images.shape[1], side, side))
    resized = [
        functional.interpolate(block.float(), (side, side), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .byte()
        for block in torch.split(images, 1024)
    ]
    return torch.cat(resized)


def _images(shard: Shard) -> NDArray[np.uint8]:
    if shard.images_N_H_W_K is None:
        raise ValueError("the shard came without images: declare Needs(images=True)")
    return shard.images_N_H_W_K


def _in_order(labeled: Labeled) -> Any:
    """The labelled images by id, so that the order of the pool does not show; as they come where there are no ids."""
    if labeled.sample_ids is None:
        return labeled.images_N_H_W_K
    order = np.argsort(np.array([str(sample_id) for sample_id in labeled.sample_ids], dtype=str), kind="stable")
    return np.asarray(labeled.images_N_H_W_K)[order]


def _unlabeled_images(context: Context, side: int) -> Tensor:
    """Those with the lowest hash, in the order of their hashes, in two passes over the shards."""
    ids_N = np.array([str(sample_id) for shard in context.shards() for sample_id in shard.sample_ids], dtype=str)
    chosen = np.lexsort((ids_N, hash_ids(ids_N, context.seed)))[:UNLABELED]
    place_N = np.full(len(ids_N), -1)
    place_N[chosen] = np.arange(len(chosen))
    images = torch.zeros(0)
    start = 0
    for shard in context.shards():
        place = place_N[start : start + len(shard)]
        start += len(shard)
        rows = np.flatnonzero(place >= 0)
        if not len(rows):
            continue
        block = canvas(_images(shard)[rows], side)
        if not len(images):
            images = torch.empty((len(chosen), *block.shape[1:]), dtype=torch.uint8)
        images[torch.from_numpy(place[rows])] = block
    return images
