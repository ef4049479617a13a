"""The noise of the draws: shared by all samples, or a sample's own, by its id and the seed."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.vae import FeatureVAE, anchors_of, to_tensor

BANK_ROWS = 4096  # noise vectors that the samples of a pool share in the counts of Eqs. 11 and 12
LONG_RUN = 1000  # draws of each anchor, with the sampling `anchored`
AS_GOOD = 100  # independent draws err no less than ten `anchored` ones (docs/decisions/draws.md)
CLASS_DRAWS = 100  # draws that tell a sample's class there (Eq. 7): these need no decoder and cost little


# -- how latents are drawn --------------------------------------------------------------------------------------


class Drawing(NamedTuple):
    """How many latents are drawn of every sample for Eq. 9, and how."""

    sampling: str
    draws: int


def drawing_of(vae: FeatureVAE, draws: int, sampling: str) -> Drawing:
    """What `sampling` comes to; `auto` is whichever of two that err alike costs less for the pool that the network was
    trained on: so many `anchored` draws, or 100 `independent` ones."""
    if sampling != "auto":
        return Drawing(sampling, draws)
    anchored, independent = Drawing("anchored", draws), Drawing("independent", max(draws, AS_GOOD))
    samples = int(vae.pool_size)
    return min(independent, anchored, key=lambda one: multiplications(vae, samples, one))


def multiplications(vae: FeatureVAE, samples: int, drawing: Drawing) -> int:
    """What the estimate of so many samples takes, one shard: decodings of each draw, and the anchors' share."""
    settings, hidden = vae.settings, vae.settings.hidden_width
    # The first layer, as a whole and class by class; then the other hidden ones and the last, turned.
    decoding = 2 * vae.num_latents * hidden + vae.num_classes * settings.hidden_layers * hidden**2
    taken = samples * drawing.draws * decoding
    if drawing.sampling == "anchored":
        anchors = anchors_of(vae.num_classes)
        taken += anchors * LONG_RUN * decoding + samples * anchors * vae.num_classes * hidden
    return taken


# -- noise ------------------------------------------------------------------------------------------------------


class NoiseBank(NamedTuple):
    """Noise vectors for the counts: a sample takes `draws` rows in a row, from a place that its features decide."""

    noise_B_Z: Tensor
    draws: int

    def of(self, features_N_D: Tensor) -> Tensor:
        """noise_N_T_Z."""
        places = _hash(features_N_D.float().cpu().numpy()) % np.uint64(len(self.noise_B_Z) // 2)
        first_N = torch.from_numpy(2 * places.astype(np.int64))  # even, so that antithetic pairs stay together
        rows_N_T = (first_N[:, None] + torch.arange(self.draws)) % len(self.noise_B_Z)
        return self.noise_B_Z[rows_N_T.to(self.noise_B_Z.device)]


def noise_bank(vae: FeatureVAE, draws: int, generator: torch.Generator | int, sampling: str) -> NoiseBank:
    draws = class_draws(draws, sampling)
    rows = max(BANK_ROWS, draws + draws % 2)
    return NoiseBank(_noise(vae, rows, generator, sampling), draws)


def shared_noise(vae: FeatureVAE, draws: int, generator: torch.Generator | int, sampling: str) -> Tensor:
    """noise_T_Z: what `estimate_likelihood` draws, the same for every sample.

    With `anchored` these are the rows of the anchors' long run: the first `draws` of them are every sample's, the
    first 100 or more tell its class. With `auto`, what `drawing_of` says.
    """
    sampling, draws = drawing_of(vae, draws, sampling)
    rows = max(LONG_RUN, class_draws(draws, sampling)) if sampling == "anchored" else draws
    return _noise(vae, rows, generator, sampling)


def class_draws(draws: int, sampling: str) -> int:
    return max(draws, CLASS_DRAWS) if sampling in ("anchored", "auto") else draws


def counting_noise(
    vae: FeatureVAE, features: Any, draws: int, generator: torch.Generator | int, sampling: str
) -> Tensor:
    """noise_N_T_Z: what `estimate_class_terms` draws for these samples."""
    weight = vae.reconstruction.weight
    return noise_bank(vae, draws, generator, sampling).of(to_tensor(features, weight.device, weight.dtype))


def _noise(vae: FeatureVAE, rows: int, generator: torch.Generator | int, sampling: str) -> Tensor:
    """Standard normal vectors; `antithetic` ones come in pairs of opposite sign. Drawn on the CPU, in float64."""
    generator = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    if sampling == "antithetic":
        half = torch.randn(-(-rows // 2), vae.num_latents, generator=generator, dtype=torch.float64)
        noise = torch.stack([half, -half], dim=1).flatten(0, 1)[:rows]
    else:
        noise = torch.randn(rows, vae.num_latents, generator=generator, dtype=torch.float64)
    return noise.to(vae.reconstruction.weight)


def _hash(features_N_D: NDArray[np.float32]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row's bits."""
    words_N_D = np.ascontiguousarray(features_N_D).view(np.uint32).astype(np.uint64)
    odd_D = 2 * np.arange(words_N_D.shape[1], dtype=np.uint64) + np.uint64(1)
    mixed = (words_N_D * (odd_D * np.uint64(0x9E3779B97F4A7C15))).sum(axis=1, dtype=np.uint64)
    hashed: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93) >> np.uint64(24)
    return hashed


def latents(mean_N_Z: Tensor, log_var_N_Z: Tensor, noise: Tensor) -> Tensor:
    """latent_N_T_Z in the noise's precision; the noise is T x Z for all samples, or N x T x Z."""
    deviation_N_Z = (0.5 * log_var_N_Z).exp().to(noise.dtype)
    return torch.addcmul(mean_N_Z.to(noise.dtype)[:, None], noise, deviation_N_Z[:, None])
