"""The likelihood of a sample's features under each class (paper, Eq. 9)."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vabal.probabilities.anchors import Anchors, anchored
from vabal.probabilities.blocks import blocks_of, side_by_side
from vabal.probabilities.checks import all_finite, encoder_of, settings_of
from vabal.probabilities.decoder import Decoder, fold, masked_error, products_of
from vabal.probabilities.noise import class_draws, drawing_of, latents, shared_noise
from vabal.vae import FeatureVAE, kl_divergence

# -- Eq. 9 ------------------------------------------------------------------------------------------------------


def estimate_likelihood(
    vae: FeatureVAE,
    features_shards: Iterable[Any],
    *,
    draws: int | None = None,
    generator: torch.Generator | int,
    settings: Any = None,
) -> Iterator[tuple[Any, Any]]:
    """Yields per shard (log_likelihood_N_C, vae_class_N), as arrays or tensors, whichever the shard is.

    log_likelihood_N_C is the lower bound of log p(x | y^_n) in nats (Eq. 9, with block n masked; the mean over the
    draws of log likelihoods, constants of the Gaussian left out), in the network's precision. It is summed over the
    dimensions, or averaged with `likelihood_reduction: mean`; the other reductions rescale the sums with the pool's
    moments, which `mistake_score` does. vae_class_N is the class most often drawn (Eq. 7). Memory does not grow with a
    shard. `generator`, a generator or a seed, is drawn from once: the same seed gives the same noise in every call.

    Raises ValueError for features of a wrong shape, UserError where a number is not finite.
    """
    chosen = settings_of(settings)
    encoder = encoder_of(vae)
    sampling, draws = drawing_of(vae, draws or chosen.draws, chosen.sampling)
    noise_L_Z = shared_noise(vae, draws, generator, sampling)
    decoder = fold(vae, _products(vae, chosen.products))
    anchors = anchored(encoder, decoder, noise_L_Z, draws) if sampling == "anchored" else None
    voting = class_draws(draws, sampling)
    estimator = _Estimator(encoder, decoder, noise_L_Z[:draws], noise_L_Z[:voting], anchors)
    for number, features in enumerate(features_shards):
        log_likelihood_N_C = noise_L_Z.new_empty(len(features), vae.num_classes)
        vae_class_N = torch.empty(len(features), dtype=torch.int64, device=noise_L_Z.device)
        blocks = blocks_of(features, encoder, voting, f"shard {number}")
        work = partial(_estimate_block, estimator, settings=chosen)
        for rows, estimated, drawn in side_by_side(work, blocks, noise_L_Z.device):
            log_likelihood_N_C[rows], vae_class_N[rows] = estimated, drawn
        log_likelihood_N_C, vae_class_N = log_likelihood_N_C.cpu(), vae_class_N.cpu()
        all_finite(log_likelihood_N_C.numpy(), f"the log likelihood of shard {number}", None)
        if isinstance(features, Tensor):
            yield log_likelihood_N_C, vae_class_N
        else:
            yield log_likelihood_N_C.numpy(), vae_class_N.numpy()


def _products(vae: FeatureVAE, wish: str) -> torch.dtype:
    own = vae.reconstruction.weight
    return products_of(wish, own.device) if own.dtype == torch.float32 else own.dtype


class _Estimator(NamedTuple):
    """What the estimate of every block of samples takes. The rows of `votes_V_Z` tell the classes."""

    encoder: FeatureVAE
    decoder: "Decoder"
    noise_T_Z: Tensor
    votes_V_Z: Tensor
    anchors: "Anchors | None"


@torch.inference_mode()
def _estimate_block(
    estimator: _Estimator, block: tuple[slice, Tensor], *, settings: Any
) -> tuple[slice, Tensor, Tensor]:
    """The rows of the block, their log_likelihood_N_C and vae_class_N."""
    rows, features_N_D = block
    encoder, decoder, anchors = estimator.encoder, estimator.decoder, estimator.anchors
    inputs_N_I = encoder.inputs(features_N_D)
    mean_N_Z, log_var_N_Z = encoder.encode(inputs_N_I)
    gap_N_I = decoder.bias_I - inputs_N_I
    gap_N_R = gap_N_I @ decoder.basis_I_R
    outside_N = (gap_N_I - gap_N_R @ decoder.basis_I_R.T).square().sum(dim=1)
    error_N_C = masked_error(decoder, latents(mean_N_Z, log_var_N_Z, estimator.noise_T_Z), gap_N_R)
    if anchors is not None:
        error_N_C += anchors.correction(mean_N_Z, log_var_N_Z, gap_N_R)
    error_N_C += outside_N[:, None]
    divergence_N_C = _masked_divergence(encoder, mean_N_Z, log_var_N_Z, settings.likelihood_kl)
    if encoder.settings.reconstruction_half:
        error_N_C = 0.5 * error_N_C
    if settings.likelihood_reduction == "mean":
        error_N_C, divergence_N_C = error_N_C / encoder.num_inputs, divergence_N_C / encoder.num_latents
    energy_C_N_V = _drawn_energy(encoder, mean_N_Z, log_var_N_Z, estimator.votes_V_Z)
    votes_C_N = (energy_C_N_V == energy_C_N_V.amin(dim=0)).sum(dim=-1)
    log_likelihood_N_C = -(error_N_C + divergence_N_C).to(estimator.noise_T_Z.dtype)
    return rows, log_likelihood_N_C, votes_C_N.argmax(dim=0)


def _drawn_energy(vae: FeatureVAE, mean_N_Z: Tensor, log_var_N_Z: Tensor, noise_V_Z: Tensor) -> Tensor:
    """energy_C_N_V: w of Eq. 7 at each draw; its square, multiplied out, is a matrix product for each class."""
    if vae.settings.energy != "square":
        return vae.class_energy(latents(mean_N_Z, log_var_N_Z, noise_V_Z)).movedim(-1, 0)
    dtype, classes = noise_V_Z.dtype, vae.num_classes
    deviation_N_Z = (0.5 * log_var_N_Z).exp()
    linear_C_N_K = (2 * mean_N_Z * deviation_N_Z).to(dtype).view(len(mean_N_Z), classes, -1).transpose(0, 1)
    square_C_N_K = deviation_N_Z.square().to(dtype).view(len(mean_N_Z), classes, -1).transpose(0, 1)
    noise_C_K_V = noise_V_Z.view(len(noise_V_Z), classes, -1).permute(1, 2, 0)
    constant_C_N = mean_N_Z.square().view(len(mean_N_Z), classes, -1).sum(dim=-1).T.to(dtype)
    energy_C_N_V = torch.baddbmm(constant_C_N[:, :, None], linear_C_N_K, noise_C_K_V)
    return torch.baddbmm(energy_C_N_V, square_C_N_K, noise_C_K_V.square())


def _masked_divergence(vae: FeatureVAE, mean_N_Z: Tensor, log_var_N_Z: Tensor, blocks: str) -> Tensor:
    """KL summed over the latent dimensions that count where block n is masked; N x C, float64."""
    divergence_N_Z = kl_divergence(mean_N_Z, log_var_N_Z)
    block_N_C = divergence_N_Z.view(len(mean_N_Z), vae.num_classes, -1).sum(dim=-1)
    match blocks:
        case "all":
            return block_N_C.sum(dim=1, keepdim=True).expand_as(block_N_C)
        case "unmasked":
            return block_N_C.sum(dim=1, keepdim=True) - block_N_C
        case _:
            return torch.zeros_like(block_N_C)
