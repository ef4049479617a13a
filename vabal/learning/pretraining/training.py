"""Trains a backbone so that two views of an image come out alike, and views of different images apart.

The loss is that of SimCLR (Chen et al. 2020), as pytorch-metric-learning computes it. Axes: N images, K channels,
H x W pixels, S x S pixels of a view, D features, P numbers of a projection.
"""

import io
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vabal.errors import UserError
from vabal.files import write_bytes
from vabal.learning import backbones
from vabal.learning.batches import batches_of
from vabal.learning.metrics import Metric
from vabal.learning.pretraining.views import Views
from vabal.learning.recipe import batch_rows, hash_of, is_finite
from vabal.progress import advance
from vabal.settings.learners import PretrainSettings

VERSION: Final = 1  # of the training: another one does not take up what this one left
FEWEST_IMAGES: Final = 16
_PROJECTION: Final = 128  # P
_WARM_UP: Final = 0.05  # share of the training in which the learning rate rises
_WEIGHT_DECAY: Final = 1e-4
COLLAPSED: Final = 0.05  # a spread below which all images look alike to the network


class Pictures(Protocol):
    """Images of one size, brought when they are wanted."""

    def __len__(self) -> int: ...
    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        """images_N_H_W_K."""


class Encoder(nn.Module):
    """A backbone's network, and the projection that the loss sees, which is thrown away in the end."""

    def __init__(self, name: str, size: int, seed: int) -> None:
        """First weights derive from `seed`. Raises UserError for a network that there is not, or another size."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.trunk = backbones.network_of(name)
            except UserError as error:
                raise UserError(str(error).replace("backbone.name", "pretrain.network")) from None
            self.trunk.drop_classifier()
            width = self._width(name, size)
            self.projection = nn.Sequential(
                nn.Linear(width, width, bias=False),
                nn.BatchNorm1d(width),
                nn.ReLU(inplace=True),
                nn.Linear(width, _PROJECTION),
            )

    def forward(self, views_N_3_S_S: Tensor) -> tuple[Tensor, Tensor]:
        """features_N_D of the last layer, and projected_N_P."""
        _, features_N_D = self.trunk.layers(views_N_3_S_S)
        return features_N_D, self.projection(features_N_D)

    def _width(self, name: str, size: int) -> int:
        self.trunk.eval()
        with torch.inference_mode():
            try:
                _, features_N_D = self.trunk.layers(torch.zeros(1, 3, size, size))
            except (RuntimeError, AssertionError, ValueError) as error:
                said = " ".join(str(error).split())[:160]
                raise UserError(f"pretrain.size: {name} takes no images of {size} pixels: {said}") from None
        return int(features_N_D.shape[1])


class Pretraining:
    """One training: where it is, a step, and its state, which another process can take up.

    Every draw derives from `seed`, the epoch and the batch: on a CPU, the same images, settings and number of threads
    give the same bits, however often the training was left and taken up.
    """

    def __init__(
        self, settings: PretrainSettings, *, size: int, channels: int, seed: int, device: torch.device | str
    ) -> None:
        """Raises UserError for a network or a size that there is not, ModuleNotFoundError without the extra."""
        from pytorch_metric_learning.losses import SelfSupervisedLoss, SupConLoss  # noqa: PLC0415 -- an extra

        self.settings, self.seed, self.device = settings, seed, torch.device(device)
        self.encoder = Encoder(settings.network, size, seed).to(self.device).to(memory_format=torch.channels_last)
        trunk = self.encoder.trunk
        self.views = Views(settings, size, channels=channels, mean=trunk.mean, std=trunk.std)
        # with one positive a view, the supervised contrastive loss is SimCLR's, without a matrix of all triples
        self.loss: Callable[[Tensor, Tensor], Tensor] = SelfSupervisedLoss(SupConLoss(settings.temperature))
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY
        )
        self.epoch, self.batch = 1, 0  # what comes next
        self.loss_sum, self.spread_sum = 0.0, 0.0  # over the batches of this epoch

    def run(self, pictures: Pictures, keep: Callable[[], None] = lambda: None) -> Iterator[Metric]:
        """Trains on to the end; yields loss, spread and learning rate of each epoch. `keep` is called after each step.

        The spread is the standard deviation of the features, scaled to length 1: near 0, all images look alike to the
        network (it has collapsed). Raises UserError if there are too few images or training diverges.
        """
        if len(pictures) < FEWEST_IMAGES:
            raise UserError(
                f"pretraining needs at least {FEWEST_IMAGES} images beside the holdout, found {len(pictures)}: "
                "add some with `vabal ingest PATH`"
            )
        self.encoder.train()
        while self.epoch <= self.settings.epochs:
            order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(self._seed("order", 0)))
            batches = batch_rows(order, self.settings.batch_size)
            self.batch = min(self.batch, len(batches))  # the pool may have changed meanwhile
            while self.batch < len(batches):
                done, total = self.steps(len(pictures))
                self._step(pictures.gather(batches[self.batch].numpy()), done / total)
                self.batch += 1
                advance("pretrain", done + 1, total)
                keep()
            yield Metric("pretrain/loss", self.loss_sum / len(batches), self.epoch)
            yield Metric("pretrain/spread", self.spread_sum / len(batches), self.epoch)
            self.epoch, self.batch, self.loss_sum, self.spread_sum = self.epoch + 1, 0, 0.0, 0.0
        if not is_finite(self.encoder):
            raise self._diverged()

    def steps(self, images: int) -> tuple[int, int]:
        """How many steps are done, and how many there are, where there are so many images."""
        each = batches_of(images, self.settings.batch_size)
        return each * (self.epoch - 1) + self.batch, each * self.settings.epochs

    def _step(self, images_N_H_W_K: NDArray[np.uint8], over: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * _share_of_rate(over)
        mixed = self.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        images = torch.from_numpy(np.array(images_N_H_W_K)).permute(0, 3, 1, 2).to(self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self._seed("views", self.batch))
            views = torch.cat([self.views(images), self.views(images)])
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
                features_N_D, projected_N_P = self.encoder(views)
        loss = self.loss(*projected_N_P.float().chunk(2))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.loss_sum += loss.item()
        self.spread_sum += spread(features_N_D.detach())
        if not math.isfinite(self.loss_sum):
            raise self._diverged()

    def _seed(self, purpose: str, batch: int) -> int:
        return int.from_bytes(hash_of(self.seed, f"{purpose} {self.epoch} {batch}")[:4], "big")

    def _diverged(self) -> UserError:
        rate = self.settings.learning_rate
        return UserError(
            f"pretraining diverged in epoch {min(self.epoch, self.settings.epochs)} of {self.settings.epochs}: "
            f"lower pretrain.learning_rate (now {rate:g}) in params.yaml"
        )

    # -- leaving it, and taking it up ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that the training goes on with."""
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "position": [self.epoch, self.batch],
            "sums": [self.loss_sum, self.spread_sum],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where the training was that `state` was taken of."""
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.batch = state["position"]
        self.loss_sum, self.spread_sum = state["sums"]


def spread(features_N_D: Tensor) -> float:
    """The standard deviation of the features about their mean, each image's scaled to length 1: from 0 to 1."""
    directions_N_D = functional.normalize(features_N_D.float(), dim=1)
    return math.sqrt(max(0.0, float((directions_N_D - directions_N_D.mean(dim=0)).square().sum(dim=1).mean())))


def _share_of_rate(over: float) -> float:
    """A short rise, then half a cosine."""
    return min((over + 1e-3) / _WARM_UP, 1.0) * 0.5 * (1 + math.cos(math.pi * over))


class Checkpoint:
    """The file that a training's state is kept in, whole or not at all: at most `seconds` are lost by a kill."""

    def __init__(self, path: Path, about: Mapping[str, str], seconds: float = 60.0) -> None:
        """`about` says what is trained, and on what; it is kept with the state."""
        self.path, self.about, self.seconds = path, dict(about), seconds
        self._kept_at = time.monotonic()

    def read(self) -> tuple[dict[str, str], dict[str, Any]] | None:
        """What the kept training is about, and its state; None if there is none, or it cannot be read."""
        try:
            kept = torch.load(self.path, map_location="cpu", weights_only=True)
            return dict(kept["about"]), dict(kept["state"])
        except FileNotFoundError:
            return None
        except Exception:  # noqa: BLE001 -- whatever a damaged file makes torch raise: the training starts anew
            return None

    def keep(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Writes the state, if the last time is long enough ago."""
        if time.monotonic() - self._kept_at < self.seconds:
            return
        buffer = io.BytesIO()
        torch.save({"about": self.about, "state": state()}, buffer)
        write_bytes(self.path, buffer.getbuffer())
        self._kept_at = time.monotonic()
