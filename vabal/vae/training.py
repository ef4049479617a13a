"""Training on the unlabelled pool (Eq. 10), and the typical samples that are kept behind it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.errors import UserError
from vabal.learning.batches import batches_of
from vabal.learning.device import sent
from vabal.learning.metrics import Metric
from vabal.vae.features import Features, resident, to_tensor
from vabal.vae.network import ANCHORS, FeatureVAE, Loss, anchors_of

_CANDIDATES = 2048  # samples that the anchors are chosen from ...
_PLACE_ELEMENTS = 2**22  # ... or fewer, if their posteriors have more numbers


def fit(
    vae: FeatureVAE,
    features: Features,
    classes_N: Any,
    settings: Any = None,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Iterator[Metric]:
    """Trains the network in place on the unlabelled pool (Eq. 10, Adam); yields the losses' means of each epoch.

    features[positions_B] gives features_B_D, so that a pool need not fit into memory; classes_N are the classifier's
    predictions, as indices. On a small pool epochs are added until `min_steps` steps are reached, on a large one the
    last epoch ends with step `max_steps`. Training happens while the values are taken. The same seed, pool and number
    of threads give the same bits on a CPU.

    Raises UserError for a pool of fewer than two samples, or when the loss is no longer finite; ValueError if classes
    do not fit the features.
    """
    chosen = vae.settings if settings is None else settings
    classes = np.asarray(classes_N)
    if classes.shape != (len(features),):
        raise ValueError(f"expected one class for each of {len(features)} samples, found shape {classes.shape}")
    if len(classes) < 2 or chosen.batch_size < 2:
        raise UserError(
            f"the VAE cannot be trained on {len(classes)} unlabelled samples in batches of {chosen.batch_size}: "
            "its batch norm needs two; ingest images, or raise vae.batch_size"
        )
    if classes.min() < 0 or classes.max() >= vae.num_classes:
        raise ValueError(f"expected classes from 0 to {vae.num_classes - 1}, found {classes.min()} to {classes.max()}")
    return _train(_Steps(vae, features, classes, chosen, seed=seed, device=torch.device(device)))


def epochs_of(samples: int, settings: Any) -> int:
    """How many epochs, the last one perhaps cut short, a pool of so many samples is trained on."""
    schedule = _schedule(samples, settings)
    return -(-schedule.steps // schedule.per_epoch)


class _Schedule(NamedTuple):
    per_epoch: int
    steps: int  # in all
    decay: int  # the step at which the learning rate drops


def _schedule(samples: int, settings: Any) -> _Schedule:
    """`epochs` epochs, more if those are not `min_steps` steps; fewer if they are more than `max_steps`, where set."""
    per_epoch = batches_of(samples, settings.batch_size)
    epochs = max(settings.epochs, -(-settings.min_steps // per_epoch))
    most = max(settings.max_steps, settings.min_steps)
    if settings.max_steps and epochs * per_epoch > most:
        return _Schedule(per_epoch, most, round(settings.decay_at * most))
    return _Schedule(per_epoch, epochs * per_epoch, round(settings.decay_at * epochs) * per_epoch)


def _train(steps: "_Steps") -> Iterator[Metric]:
    vae, settings = steps.vae, steps.settings
    vae.to(steps.device).train()
    for _ in range(settings.warmup_epochs):
        with torch.no_grad():
            for positions_B in steps.epoch():
                steps.loss(positions_B)
    optimizer = _adam(vae, settings.learning_rate)
    schedule = _schedule(steps.samples, settings)
    for epoch, first in enumerate(range(0, schedule.steps, schedule.per_epoch)):
        losses, sizes = [], []
        for step, positions_B in zip(range(first, schedule.steps), steps.epoch(), strict=False):
            if step == schedule.decay:
                optimizer = _decayed(optimizer, vae, settings)
            loss = steps.loss(positions_B)
            optimizer.zero_grad()
            loss.total.backward()
            optimizer.step()
            losses.append(torch.stack(loss).detach())
            sizes.append(len(positions_B))
        # Looked at once an epoch: a look at every step would have a GPU wait each time.
        values = torch.stack(losses).double().cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(wrong):
            raise UserError(
                f"the VAE's loss is no longer finite at step {first + wrong[0]} (epoch {epoch + 1}): "
                f"lower vae.learning_rate (now {settings.learning_rate}), or look for extreme values in the features"
            )
        total = np.array(sizes) @ values
        for name, value in zip(Loss._fields, total / sum(sizes), strict=True):
            yield Metric(f"vae/{'loss' if name == 'total' else name}", float(value), epoch + 1)
    vae.eval()
    vae.anchors_A_D.copy_(_typical(steps))
    vae.pool_size.fill_(steps.samples)


class _Steps:
    """Draws the batches of each epoch and evaluates the loss of one."""

    def __init__(
        self,
        vae: FeatureVAE,
        features: Features,
        classes_N: NDArray[Any],
        settings: Any,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.vae, self.settings, self.device = vae, settings, device
        self.generator = torch.Generator().manual_seed(seed)
        self._dtype = vae.reconstruction.weight.dtype
        self._features = resident(features, device, self._dtype)
        self._classes_N = to_tensor(classes_N, device, torch.int64)
        self.samples = len(classes_N)
        self.per_epoch = batches_of(self.samples, settings.batch_size)

    def epoch(self) -> Iterator[NDArray[np.int64]]:
        """Every position once, in random order or the pool's, in batches of nearly equal size, at least two."""
        in_turn = np.arange(self.samples)
        order = torch.randperm(self.samples, generator=self.generator).numpy() if self.settings.shuffle else in_turn
        yield from np.array_split(order, self.per_epoch)

    def sample(self, most: int) -> Tensor:
        """features_M_D of at most so many samples, drawn at random, read in batches."""
        positions_M = torch.randperm(self.samples, generator=self.generator).numpy()[: max(1, most)]
        parts = np.split(
            np.sort(positions_M), range(self.settings.batch_size, len(positions_M), self.settings.batch_size)
        )
        return torch.cat([self._taken(part) for part in parts])

    def loss(self, positions_B: NDArray[np.int64]) -> Loss:
        classes_B = self._classes_N[sent(torch.from_numpy(positions_B), self.device)]
        # Drawn on the CPU, so that a GPU sees the same numbers.
        noise_B_Z = torch.randn(len(positions_B), self.vae.num_latents, generator=self.generator, dtype=torch.float32)
        there_B_Z = sent(noise_B_Z, self.device).to(self._dtype)
        return self.vae.loss(self._taken(positions_B), classes_B, there_B_Z, self.settings)

    def _taken(self, positions_B: NDArray[np.int64]) -> Tensor:
        """features_B_D."""
        if isinstance(self._features, Tensor):
            return self._features[sent(torch.from_numpy(positions_B), self._features.device)].to(self.device)
        return to_tensor(self._features[positions_B], self.device, self._dtype)


def _adam(vae: FeatureVAE, rate: float) -> torch.optim.Adam:
    """Fused: its many small steps, one by one, would take a quarter of the time."""
    return torch.optim.Adam(vae.parameters(), lr=rate, fused=True)


def _decayed(optimizer: torch.optim.Adam, vae: FeatureVAE, settings: Any) -> torch.optim.Adam:
    rate = settings.learning_rate * settings.decay_factor
    if settings.reset_optimizer:
        return _adam(vae, rate)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return optimizer


# -- anchors ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def _typical(steps: "_Steps") -> Tensor:
    """features_A_D of samples with typical posteriors: nearest to the centres that k-means finds; some may be equal."""
    vae = steps.vae
    features_M_D = steps.sample(min(_CANDIDATES, _PLACE_ELEMENTS // (2 * vae.num_latents)))
    mean_M_Z, log_var_M_Z = vae.encode(vae.inputs(features_M_D))
    place_M_Y = torch.cat([mean_M_Z, (0.5 * log_var_M_Z).exp()], dim=1).double().cpu()
    wanted = anchors_of(vae.num_classes)
    centre_A_Y = _centres(place_M_Y, wanted, steps.generator)
    nearest_A = torch.cdist(centre_A_Y, place_M_Y).argmin(dim=1)
    return features_M_D[nearest_A.repeat(-(-ANCHORS // wanted))[:ANCHORS].to(features_M_D.device)]


def _centres(place_M_Y: Tensor, wanted: int, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """centre_A_Y by k-means, begun as k-means++ does; where there are fewer places than centres, some are equal."""
    chosen = [int(torch.randint(len(place_M_Y), (1,), generator=generator))]
    distance_M = torch.full((len(place_M_Y),), torch.inf, dtype=place_M_Y.dtype)
    while len(chosen) < wanted:
        distance_M = torch.minimum(distance_M, (place_M_Y - place_M_Y[chosen[-1]]).square().sum(dim=1))
        if not bool(distance_M.any()):
            chosen.append(chosen[-1])
            continue
        chosen.append(int(torch.multinomial(distance_M, 1, generator=generator)))
    centre_A_Y = place_M_Y[chosen]
    for _ in range(rounds):
        nearest_M = torch.cdist(place_M_Y, centre_A_Y).argmin(dim=1)
        for anchor in torch.unique(nearest_M):
            centre_A_Y[anchor] = place_M_Y[nearest_M == anchor].mean(dim=0)
    return centre_A_Y
