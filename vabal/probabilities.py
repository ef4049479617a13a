"""The three terms of p(mistake) and what they add up to (paper, Eqs. 6, 9, 11 and 12), in log space throughout.

    score = -logsumexp_n(log precision_n + log prior_n + log_likelihood_n)

`precision` is p(y_n | y^_n), which the paper calls label difficulty: high means easy. Axes: the legend of the package.

Randomness. The likelihoods of all samples use the same T noise vectors (common random numbers): each sample's estimate
is unbiased, samples are compared under the same noise, and neither the order of the pool nor its split into shards can
show. For the counts of Eqs. 11 and 12, where noise common to all would not average out over the pool, a sample takes
its T vectors from a longer bank, from a place that its own features decide. How few draws the sampling `anchored` can
do with is in docs/decisions/draws.md.
"""

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.errors import UserError
from vabal.params import ProbabilitySettings
from vabal.vae import FeatureVAE, kl_divergence, to_tensor

BANK_ROWS = 4096  # noise vectors that the samples of a pool share in the counts of Eqs. 11 and 12
LONG_RUN = 1000  # draws of each anchor, with the sampling `anchored`
_TRIALS = 4  # groups of draws that the anchors' reach is tried with
_UNEXPLAINED = 0.01  # of the variance of an anchor's error
CLASS_DRAWS = 100  # draws that tell a sample's class there (Eq. 7): these need no decoder and cost little
SMALLEST_DOUBT = 1e-6  # of 1 - margin: below this a float32 margin says nothing
_TILE_ROWS = {"cpu": 1024, "cuda": 2**19}  # latents decoded at once; on a CPU, as many as its cache holds
_LATENT_ELEMENTS = 2**22  # of the latents held at once ...
_BLOCK_ROWS = 1024  # ... and samples: memory does not grow with a shard

Item = TypeVar("Item")
Result = TypeVar("Result")
Values = TypeVar("Values", Tensor, NDArray[Any])


@dataclass(frozen=True)
class LikelihoodMoments:
    """Moments of the candidates' log likelihoods, for the reductions that need the pool.

    `mean` and `deviation` are each class's; a sample's level is its mean over the classes, `contrast_deviation` the
    root mean square of the differences from it.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    level_mean: float
    level_deviation: float
    contrast_deviation: float

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LikelihoodMoments":
        return cls(**{**document, "mean": tuple(document["mean"]), "deviation": tuple(document["deviation"])})


@dataclass(frozen=True, eq=False)
class ClassTerms:
    """Eqs. 12 and 11 by class (float64, on the CPU), with the pool's moments where the likelihood's scale needs them.

    Together with the candidates' log likelihoods they give the scores again.
    """

    log_prior_C: Tensor
    log_precision_C: Tensor
    moments: LikelihoodMoments | None = None

    @property
    def prior_C(self) -> NDArray[np.float64]:
        """p(y^_n)."""
        return np.exp(_float64(self.log_prior_C))

    @property
    def precision_C(self) -> NDArray[np.float64]:
        """p(y_n | y^_n)."""
        return np.exp(_float64(self.log_precision_C))

    def with_moments(self, moments: LikelihoodMoments) -> "ClassTerms":
        return replace(self, moments=moments)

    def to_json(self) -> dict[str, Any]:
        """For the manifest; `from_json` gives the same bits back."""
        return {
            "log_prior": _float64(self.log_prior_C).tolist(),
            "log_precision": _float64(self.log_precision_C).tolist(),
            "moments": None if self.moments is None else asdict(self.moments),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ClassTerms":
        moments = document.get("moments")
        return cls(
            torch.tensor(document["log_prior"], dtype=torch.float64),
            torch.tensor(document["log_precision"], dtype=torch.float64),
            None if moments is None else LikelihoodMoments.from_json(moments),
        )


# -- Eqs. 11 and 12 ---------------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """In units of samples: how often each class is predicted, and how often rightly."""

    predicted_C: NDArray[np.float64]
    correct_C: NDArray[np.float64]
    samples: int


def estimate_class_terms(
    vae: FeatureVAE,
    labeled_features: Any,
    labels: Any,
    *,
    draws: int | None = None,
    generator: torch.Generator | int,
    settings: Any = None,
    unlabeled_features: Iterable[Any] | None = None,
    cross_fitted: tuple[Any, Any] | None = None,
) -> ClassTerms:
    """Prior (Eq. 12) and precision (Eq. 11) of each class, from the labelled pool's features and label indices.

    y^ is Eq. 7's class of each of `draws` latents (at least 100 with the sampling `anchored`); only the energies are
    needed, no decoder. Smoothing adds
    `settings.smoothing` samples to each class (to each label of each predicted class in Eq. 11), so that a class that
    is never predicted has a small prior and the precision 1/C. `unlabeled_features`, an iterable of arrays N x D, is
    where Eq. 12 counts with `prior_pool: unlabeled`; `cross_fitted`, labels and out-of-fold predictions, is what Eq. 11
    counts with `precision_from: cross_fitted`. `generator` is a generator or a seed; `settings` is a section
    `probabilities`, a mapping of its keys, or None for the defaults.

    Raises ValueError for labels that do not fit or a pool that is missing, UserError for features that are not finite.
    """
    chosen = _settings_of(settings)
    bank = _bank(vae, draws or chosen.draws, generator, chosen.sampling)
    labels_N = _classes(labels, vae.num_classes, "labels")
    labeled = _count(vae, [labeled_features], [labels_N], bank, "the labelled pool")
    if chosen.prior_pool == "unlabeled":
        if unlabeled_features is None:
            raise ValueError("prior_pool is unlabeled: pass unlabeled_features")
        for_prior = _count(vae, unlabeled_features, None, bank, "the unlabelled pool")
    else:
        for_prior = labeled
    for_precision = labeled
    if chosen.precision_from == "cross_fitted":
        if cross_fitted is None:
            raise ValueError("precision_from is cross_fitted: pass labels and out-of-fold predictions as cross_fitted")
        for_precision = _count_predictions(*cross_fitted, vae.num_classes)
    smoothing, classes = float(chosen.smoothing), vae.num_classes
    prior_C = (for_prior.predicted_C + smoothing) / (for_prior.samples + classes * smoothing)  # Eq. 12
    precision_C = (for_precision.correct_C + smoothing) / (for_precision.predicted_C + classes * smoothing)  # Eq. 11
    return ClassTerms(torch.from_numpy(np.log(prior_C)), torch.from_numpy(np.log(precision_C)))


def _count(
    vae: FeatureVAE,
    features_shards: Iterable[Any],
    labels_shards: Sequence[NDArray[np.int64]] | None,
    bank: "_Bank",
    where: str,
) -> _Counts:
    predicted_C = np.zeros(vae.num_classes, dtype=np.int64)  # in draws: whole numbers, so that no order can show
    correct_C = np.zeros(vae.num_classes, dtype=np.int64)
    samples = 0
    encoder = _encoder(vae)
    for number, features in enumerate(features_shards):
        labels_N = None if labels_shards is None else labels_shards[number]
        if labels_N is not None and len(labels_N) != len(features):
            raise ValueError(f"{where}: {len(features)} rows of features, {len(labels_N)} labels")
        for rows, features_N_D in _blocks(features, encoder, bank.draws, f"{where}, shard {number}"):
            drawn_N_T = _drawn_classes(encoder, features_N_D, bank)
            predicted_C += np.bincount(drawn_N_T.ravel(), minlength=vae.num_classes)
            if labels_N is not None:
                right = drawn_N_T[drawn_N_T == labels_N[rows, None]]
                correct_C += np.bincount(right, minlength=vae.num_classes)
        samples += len(features)
    return _Counts(predicted_C / bank.draws, correct_C / bank.draws, samples)


def _count_predictions(labels: Any, predictions: Any, num_classes: int) -> _Counts:
    labels_N = _classes(labels, num_classes, "cross-fitted labels")
    predictions_N = _classes(predictions, num_classes, "cross-fitted predictions")
    if len(labels_N) != len(predictions_N):
        raise ValueError(f"cross-fitted: {len(labels_N)} labels, {len(predictions_N)} predictions")
    return _Counts(
        np.bincount(predictions_N, minlength=num_classes).astype(np.float64),
        np.bincount(labels_N[labels_N == predictions_N], minlength=num_classes).astype(np.float64),
        len(labels_N),
    )


@torch.inference_mode()
def _drawn_classes(vae: FeatureVAE, features_N_D: Tensor, bank: "_Bank") -> NDArray[np.int64]:
    """classes_N_T: Eq. 7's class of each draw."""
    mean_N_Z, log_var_N_Z = vae.encode(vae.inputs(features_N_D))
    latent_N_T_Z = _latents(mean_N_Z, log_var_N_Z, bank.of(features_N_D))
    classes: NDArray[np.int64] = vae.class_energy(latent_N_T_Z).argmin(dim=-1).cpu().numpy()
    return classes


# -- noise ------------------------------------------------------------------------------------------------------


class _Bank(NamedTuple):
    """Noise vectors for the counts: a sample takes `draws` rows in a row, from a place that its features decide."""

    noise_B_Z: Tensor
    draws: int

    def of(self, features_N_D: Tensor) -> Tensor:
        """noise_N_T_Z."""
        places = _hash(features_N_D.float().cpu().numpy()) % np.uint64(len(self.noise_B_Z) // 2)
        first_N = torch.from_numpy(2 * places.astype(np.int64))  # even, so that antithetic pairs stay together
        rows_N_T = (first_N[:, None] + torch.arange(self.draws)) % len(self.noise_B_Z)
        return self.noise_B_Z[rows_N_T.to(self.noise_B_Z.device)]


def _bank(vae: FeatureVAE, draws: int, generator: torch.Generator | int, sampling: str) -> _Bank:
    draws = _class_draws(draws, sampling)
    rows = max(BANK_ROWS, draws + draws % 2)
    return _Bank(_noise(vae, rows, generator, sampling), draws)


def shared_noise(vae: FeatureVAE, draws: int, generator: torch.Generator | int, sampling: str) -> Tensor:
    """noise_T_Z: what `estimate_likelihood` draws, the same for every sample.

    With `anchored` these are the rows of the anchors' long run: the first `draws` of them are every sample's, the
    first 100 or more tell its class.
    """
    rows = max(LONG_RUN, _class_draws(draws, sampling)) if sampling == "anchored" else draws
    return _noise(vae, rows, generator, sampling)


def _class_draws(draws: int, sampling: str) -> int:
    return max(draws, CLASS_DRAWS) if sampling == "anchored" else draws


def counting_noise(
    vae: FeatureVAE, features: Any, draws: int, generator: torch.Generator | int, sampling: str
) -> Tensor:
    """noise_N_T_Z: what `estimate_class_terms` draws for these samples."""
    weight = vae.reconstruction.weight
    return _bank(vae, draws, generator, sampling).of(to_tensor(features, weight.device, weight.dtype))


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
    chosen = _settings_of(settings)
    encoder = _encoder(vae)
    draws = draws or chosen.draws
    noise_L_Z = shared_noise(vae, draws, generator, chosen.sampling)
    decoder = _fold(vae)
    anchors = _anchored(encoder, decoder, noise_L_Z, draws) if chosen.sampling == "anchored" else None
    voting = _class_draws(draws, chosen.sampling)
    estimator = _Estimator(encoder, decoder, noise_L_Z[:draws], noise_L_Z[:voting], anchors)
    for number, features in enumerate(features_shards):
        log_likelihood_N_C = torch.empty(len(features), vae.num_classes, dtype=noise_L_Z.dtype)
        vae_class_N = torch.empty(len(features), dtype=torch.int64)
        blocks = _blocks(features, encoder, voting, f"shard {number}")
        for rows, estimated, drawn in _side_by_side(partial(_estimate_block, estimator, settings=chosen), blocks):
            log_likelihood_N_C[rows], vae_class_N[rows] = estimated, drawn
        _all_finite(log_likelihood_N_C.numpy(), f"the log likelihood of shard {number}", None)
        if isinstance(features, Tensor):
            yield log_likelihood_N_C, vae_class_N
        else:
            yield log_likelihood_N_C.numpy(), vae_class_N.numpy()


class _Estimator(NamedTuple):
    """What the estimate of every block of samples takes. The rows of `votes_V_Z` tell the classes."""

    encoder: FeatureVAE
    decoder: "_Decoder"
    noise_T_Z: Tensor
    votes_V_Z: Tensor
    anchors: "_Anchors | None"


@torch.inference_mode()
def _estimate_block(
    estimator: _Estimator, block: tuple[slice, Tensor], *, settings: Any
) -> tuple[slice, Tensor, Tensor]:
    """The rows of the block, their log_likelihood_N_C and vae_class_N, on the CPU."""
    rows, features_N_D = block
    encoder, decoder, anchors = estimator.encoder, estimator.decoder, estimator.anchors
    inputs_N_I = encoder.inputs(features_N_D)
    mean_N_Z, log_var_N_Z = encoder.encode(inputs_N_I)
    gap_N_I = decoder.bias_I - inputs_N_I
    gap_N_R = gap_N_I @ decoder.basis_I_R
    outside_N = (gap_N_I - gap_N_R @ decoder.basis_I_R.T).square().sum(dim=1)
    error_N_C = _masked_error(decoder, _latents(mean_N_Z, log_var_N_Z, estimator.noise_T_Z), gap_N_R)
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
    return rows, log_likelihood_N_C.cpu(), votes_C_N.argmax(dim=0).cpu()


def _side_by_side(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps in order, on as many threads as torch has, each of which then does all of a product by itself.

    Threads that share one product wait for each other at the end of each: where the cores are busy, for far longer
    than it takes. A few items are in work at once, so that memory stays bounded.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(work, items)
        return
    torch.set_num_threads(1)  # threads that begin now take this over
    try:
        with ThreadPoolExecutor(threads) as executor:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(executor.submit(work, item))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _drawn_energy(vae: FeatureVAE, mean_N_Z: Tensor, log_var_N_Z: Tensor, noise_V_Z: Tensor) -> Tensor:
    """energy_C_N_V: w of Eq. 7 at each draw; its square, multiplied out, is a matrix product for each class."""
    if vae.settings.energy != "square":
        return vae.class_energy(_latents(mean_N_Z, log_var_N_Z, noise_V_Z)).movedim(-1, 0)
    dtype, classes = noise_V_Z.dtype, vae.num_classes
    deviation_N_Z = (0.5 * log_var_N_Z).exp()
    linear_C_N_K = (2 * mean_N_Z * deviation_N_Z).to(dtype).view(len(mean_N_Z), classes, -1).transpose(0, 1)
    square_C_N_K = deviation_N_Z.square().to(dtype).view(len(mean_N_Z), classes, -1).transpose(0, 1)
    noise_C_K_V = noise_V_Z.view(len(noise_V_Z), classes, -1).permute(1, 2, 0)
    constant_C_N = mean_N_Z.square().view(len(mean_N_Z), classes, -1).sum(dim=-1).T.to(dtype)
    energy_C_N_V = torch.baddbmm(constant_C_N[:, :, None], linear_C_N_K, noise_C_K_V)
    return torch.baddbmm(energy_C_N_V, square_C_N_K, noise_C_K_V.square())


def _latents(mean_N_Z: Tensor, log_var_N_Z: Tensor, noise: Tensor) -> Tensor:
    """latent_N_T_Z in the noise's precision; the noise is T x Z for all samples, or N x T x Z."""
    deviation_N_Z = (0.5 * log_var_N_Z).exp().to(noise.dtype)
    return torch.addcmul(mean_N_Z.to(noise.dtype)[:, None], noise, deviation_N_Z[:, None])


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


class _Decoder(NamedTuple):
    """The decoder with batch norm folded into its linear layers, and its last layer turned into its own column space.

    With W = Q R, |W h + b - x|^2 = |R h + Q'(b - x)|^2 + |(1 - Q Q')(b - x)|^2: as many numbers as the last hidden
    layer has instead of one an input, and nothing cancels.
    """

    first: "_Linear"
    blocks_C_K_H: Tensor  # the first layer's weights, class by class
    hidden: "tuple[_Linear, ...]"
    rotated: "_Linear"  # R
    basis_I_R: Tensor  # Q, and the bias: float64, used once a sample
    bias_I: Tensor


class _Linear:
    """A linear layer, and ReLU, without gradient.

    On a CPU with AVX, in float32, oneDNN multiplies with weights that it packed beforehand and applies ReLU as it
    writes: on some processors at more than twice the rate of the plain product, which others use.
    """

    def __init__(self, weight_O_I: Tensor, bias_O: Tensor | None, like: Tensor) -> None:
        self._bias_O = None if bias_O is None else bias_O.to(like)
        self._weight_I_O = weight_O_I.T.to(like).contiguous()
        self._packed = (
            torch.ops.mkldnn._reorder_linear_weight(weight_O_I.to(like).contiguous()) if _can_pack(like) else None
        )

    def __call__(self, values_M_I: Tensor, *, relu: bool = False) -> Tensor:
        if self._packed is not None:
            activation = "relu" if relu else "none"
            fused: Tensor = torch.ops.mkldnn._linear_pointwise(
                values_M_I, self._packed, self._bias_O, activation, [], ""
            )
            return fused
        if self._bias_O is None:
            outputs_M_O = torch.mm(values_M_I, self._weight_I_O)
        else:
            outputs_M_O = torch.addmm(self._bias_O, values_M_I, self._weight_I_O)
        return outputs_M_O.relu_() if relu else outputs_M_O


def _can_pack(like: Tensor) -> bool:
    return bool(
        like.device.type == "cpu"
        and like.dtype == torch.float32
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and torch.backends.mkldnn.enabled
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _fold(vae: FeatureVAE) -> _Decoder:
    like = vae.reconstruction.weight.detach()
    scale: Tensor | None = None  # of the batch norm before the layer in hand
    shift: Tensor | None = None
    folded: list[tuple[Tensor, Tensor]] = []
    for layer in [*vae.decoder_layers(), None]:
        linear = vae.reconstruction if layer is None else layer.linear
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        if scale is not None and shift is not None:
            weight, bias = weight * scale, bias + weight @ shift
        folded.append((weight, bias))
        scale = shift = None
        if layer is not None and layer.norm is not None:
            scale, shift = _affine(layer.norm)
    (first, first_bias), *hidden, (last, last_bias) = folded
    basis, rotated = torch.linalg.qr(last)  # the last layer's outputs x inputs
    blocks = first.view(len(first), vae.num_classes, -1).permute(1, 2, 0)
    return _Decoder(
        _Linear(first, first_bias, like),
        blocks.to(like).contiguous(),
        tuple(_Linear(weight, bias, like) for weight, bias in hidden),
        _Linear(rotated, None, like),
        basis.contiguous(),
        last_bias,
    )


def _affine(norm: torch.nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101 -- always tracked here
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def _masked_error(decoder: _Decoder, latent_N_T_Z: Tensor, gap_N_R: Tensor) -> Tensor:
    """The part of the squared error within the last layer's column space: error_N_C, float64.

    Summed over the inputs, its mean over the draws, with block n zeroed.
    """
    samples, draws, _ = latent_N_T_Z.shape
    error_N_C = gap_N_R.new_empty(samples, len(decoder.blocks_C_K_H))
    size = max(1, _tile_rows(latent_N_T_Z) // draws)
    for start in range(0, samples, size):
        tile = slice(start, start + size)
        gap_N_1_R = gap_N_R[tile, None].to(latent_N_T_Z.dtype)
        for n, outputs_M_R in enumerate(_outputs(decoder, latent_N_T_Z[tile].flatten(0, 1))):
            outputs_M_R.view(len(gap_N_1_R), draws, -1).add_(gap_N_1_R)
            square_M = torch.linalg.vector_norm(outputs_M_R, dim=1).square_()
            error_N_C[tile, n] = square_M.view(-1, draws).mean(dim=1, dtype=torch.float64)
    return error_N_C


def _outputs(decoder: _Decoder, latent_M_Z: Tensor) -> Iterator[Tensor]:
    """outputs_M_R in the decoder's column space, without the last bias, with the block of each class zeroed in turn.

    Of the first layer, only the block's own contribution differs between the classes: it is taken off the whole.
    """
    whole_M_H = decoder.first(latent_M_Z)
    blocks_M_C_K = latent_M_Z.view(len(latent_M_Z), len(decoder.blocks_C_K_H), -1)
    for n, weight_K_H in enumerate(decoder.blocks_C_K_H):
        hidden_M_H = torch.addmm(whole_M_H, blocks_M_C_K[:, n], weight_K_H, alpha=-1).relu_()
        for layer in decoder.hidden:
            hidden_M_H = layer(hidden_M_H, relu=True)
        yield decoder.rotated(hidden_M_H)


def _tile_rows(like: Tensor) -> int:
    return _TILE_ROWS.get(like.device.type, _TILE_ROWS["cpu"])


# -- few draws that err alike ------------------------------------------------------------------------------------


class _Anchors(NamedTuple):
    """Control variates for the sampling `anchored`, float64.

    An anchor is a typical posterior of the pool. The same draws, put through it and compared with a sample's own inputs
    x, err much as the sample's own do; of the anchor a long run tells by how much, for any x at once: with its outputs
    d, the mean of |d + gap|^2 is that of |d|^2, and 2 gap times that of d, and |gap|^2. Between the anchors, that error
    is interpolated by kriging (with mean zero: far from all of them nothing is corrected). As the weights do not depend
    on the draws, the estimate keeps its mean. Complexity: as much as LONG_RUN draws for each anchor, then a product of
    A x C x R numbers a sample.
    """

    place_A_Y: Tensor  # mean and deviation
    square_A_C: Tensor  # mean of |d|^2 over the long run less that over the draws
    output_A_C_R: Tensor  # and of d
    reach: float  # how far an anchor's error tells of another posterior's

    def correction(self, mean_N_Z: Tensor, log_var_N_Z: Tensor, gap_N_R: Tensor) -> Tensor:
        """correction_N_C: what is added to the samples' errors."""
        anchors, classes, rotated = self.output_A_C_R.shape
        covariance_N_A = _covariance(torch.cdist(_place(mean_N_Z, log_var_N_Z), self.place_A_Y), self.reach)
        weight_N_A = torch.linalg.solve(_own_covariance(self.place_A_Y, self.reach), covariance_N_A.T).T
        told_N_AC = gap_N_R @ self.output_A_C_R.view(anchors * classes, rotated).T
        told_N_A_C = torch.add(self.square_A_C, told_N_AC.view(-1, anchors, classes), alpha=2)
        return torch.bmm(weight_N_A[:, None], told_N_A_C)[:, 0]


def _covariance(distance: Tensor, reach: float) -> Tensor:
    return (-0.5 * (distance / reach).square()).exp()


def _apart(place_A_Y: Tensor) -> Tensor:
    """distance_A_A; not by a matrix product, which rounds what is equal apart."""
    return torch.cdist(place_A_Y, place_A_Y, compute_mode="donot_use_mm_for_euclid_dist")


def _own_covariance(place_A_Y: Tensor, reach: float) -> Tensor:
    """covariance_A_A of the anchors, with a little on the diagonal: what no distance explains."""
    covariance_A_A = _covariance(_apart(place_A_Y), reach)
    return covariance_A_A + _UNEXPLAINED * torch.eye(len(place_A_Y)).to(covariance_A_A)


@torch.inference_mode()
def _anchored(encoder: FeatureVAE, decoder: _Decoder, noise_L_Z: Tensor, draws: int) -> _Anchors:
    inputs_A_I = encoder.inputs(torch.unique(encoder.anchors_A_D, dim=0))
    mean_A_Z, log_var_A_Z = encoder.encode(inputs_A_I)
    weight_G_L = _run_less_draws(len(noise_L_Z), draws).to(mean_A_Z.device)
    posteriors = zip(torch.split(mean_A_Z, 1), torch.split(log_var_A_Z, 1), strict=True)
    means = list(_side_by_side(partial(_weighted_moments, decoder, noise_L_Z, weight_G_L), posteriors))
    square_A_G_C = torch.stack([square for square, _ in means])
    output_A_G_C_R = torch.stack([output for _, output in means])
    place_A_Y = _place(mean_A_Z, log_var_A_Z)
    gap_A_R = (decoder.bias_I - inputs_A_I) @ decoder.basis_I_R
    reach = _reach(place_A_Y, gap_A_R, square_A_G_C[:, 1:], output_A_G_C_R[:, 1:])
    return _Anchors(place_A_Y, square_A_G_C[:, 0], output_A_G_C_R[:, 0].contiguous(), reach)


def _run_less_draws(run: int, draws: int) -> Tensor:
    """Weights of the long run's rows that give their mean less that of a group of `draws`, for several groups G.

    The first group are the samples' own draws; the others, of which there may be none, tell how such errors behave.
    """
    groups = 1 + min(_TRIALS, max(0, run // draws - 1))
    weight_G_L = torch.full((groups, run), 1 / run, dtype=torch.float64)
    for group in range(groups):
        weight_G_L[group, group * draws : (group + 1) * draws] -= 1 / draws
    return weight_G_L


@torch.inference_mode()
def _weighted_moments(
    decoder: _Decoder, noise_L_Z: Tensor, weight_G_L: Tensor, posterior: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of the outputs d at one posterior's latents: square_G_C of |d|^2, and output_G_C_R of d."""
    latent_L_Z = _latents(*posterior, noise_L_Z)[0]
    classes, tile = len(decoder.blocks_C_K_H), _tile_rows(latent_L_Z)
    squares, outputs = [torch.zeros(()).to(weight_G_L)] * classes, [torch.zeros(()).to(weight_G_L)] * classes
    for latent_M_Z, weight_G_M in zip(torch.split(latent_L_Z, tile), torch.split(weight_G_L, tile, dim=1), strict=True):
        for n, outputs_M_R in enumerate(_outputs(decoder, latent_M_Z)):
            squares[n] = squares[n] + weight_G_M @ torch.linalg.vector_norm(outputs_M_R, dim=1).double().square()
            outputs[n] = outputs[n] + weight_G_M @ outputs_M_R.double()
    return torch.stack(squares, dim=1), torch.stack(outputs, dim=1)


def _reach(place_A_Y: Tensor, gap_A_R: Tensor, square_A_G_C: Tensor, output_A_G_C_R: Tensor) -> float:
    """The reach with which the other anchors tell best how an anchor errs, each left out in turn.

    Tried with draws that are not the samples' own, so that the estimate keeps its mean. 1 if there is nothing to try.
    """
    apart_A_A = _apart(place_A_Y)
    if not bool(apart_A_A.any()) or not square_A_G_C.shape[1]:
        return 1.0
    told_A_B_G_C = square_A_G_C + 2 * torch.einsum("ar,bgcr->abgc", gap_A_R, output_A_G_C_R)
    own_A_G_C = told_A_B_G_C.diagonal(dim1=0, dim2=1).movedim(-1, 0)
    typical = float(apart_A_A[apart_A_A > 0].median())
    tried = [typical * 2.0 ** (step / 2) for step in range(-8, 9)]
    left = []
    for reach in tried:
        inverse_A_A = torch.linalg.inv(_own_covariance(place_A_Y, reach))
        weight_A_B = -inverse_A_A / inverse_A_A.diagonal()[:, None]  # of the others, in the place of an anchor's own
        weight_A_B.fill_diagonal_(0)
        left.append((own_A_G_C - torch.einsum("ab,abgc->agc", weight_A_B, told_A_B_G_C)).square().sum())
    best: float = tried[int(torch.stack(left).argmin())]
    return best


def _place(mean_N_Z: Tensor, log_var_N_Z: Tensor) -> Tensor:
    """Mean and deviation side by side: two posteriors are as far apart as their latents of the same draw."""
    return torch.cat([mean_N_Z, (0.5 * log_var_N_Z).exp()], dim=1)


# -- Eq. 6 ------------------------------------------------------------------------------------------------------


def pool_moments(log_likelihood_shards: Iterable[Any]) -> LikelihoodMoments:
    """Moments of the candidates' log likelihoods, in one pass over the shards.

    Rounded to nine digits, so that the order of the summation cannot show. A deviation of zero becomes 1: there is
    nothing to scale. Raises ValueError if there are no candidates.
    """
    count, mean, spread, contrast = 0, np.zeros(0), np.zeros(0), 0.0
    for shard in log_likelihood_shards:
        values_N_C = _float64(shard)
        if not len(values_N_C):
            continue
        level_N = values_N_C.mean(axis=1, keepdims=True)
        contrast += float(np.square(values_N_C - level_N).mean(axis=1).sum())
        columns = np.hstack([values_N_C, level_N])
        here = columns.mean(axis=0)
        spread_here = np.square(columns - here).sum(axis=0)
        if not count:
            mean, spread = np.zeros_like(here), np.zeros_like(here)
        total = count + len(columns)  # the parts are merged as Chan, Golub and LeVeque do
        spread = spread + spread_here + np.square(here - mean) * (count * len(columns) / total)
        mean = mean + (here - mean) * (len(columns) / total)
        count = total
    if not count:
        raise ValueError("no candidates: their log likelihoods have no moments")
    deviation = [_rounded(value) or 1.0 for value in np.sqrt(spread / count)]
    means = [_rounded(value) for value in mean]
    return LikelihoodMoments(
        tuple(means[:-1]), tuple(deviation[:-1]), means[-1], deviation[-1], _rounded((contrast / count) ** 0.5) or 1.0
    )


def mistake_score(
    log_likelihood_N_C: Values,
    class_terms: ClassTerms,
    settings: Any = None,
    *,
    vae_class_N: Any = None,
    predicted_class_N: Any = None,
    margin_N: Any = None,
    posterior_N_C: Any = None,
    sample_ids: Sequence[Any] | NDArray[Any] | None = None,
) -> Values:
    """score_N (float64): p(mistake) of Eq. 6 up to a monotone function; the highest are asked about first.

    Takes log likelihoods as `estimate_likelihood` yields them. `classes: predicted` needs vae_class_N, `classifier`
    needs predicted_class_N (the classifier's), `posterior` needs posterior_N_C, `margin_weight` needs margin_N (the
    classifier's best probability less its second). With `posterior` the score is log sum_n p(n|x) / (term of class n),
    Eq. 6's inverse expected under the classifier's posterior: a sample counts that may be of a class which the labelled
    pool lacks. Each sample's score depends on its own row alone, bit for bit.

    Raises ValueError for something missing, UserError naming the samples whose numbers are not finite.
    """
    chosen = _settings_of(settings)
    values_N_C = _float64(log_likelihood_N_C)
    _all_finite(values_N_C, "the log likelihood", sample_ids)
    values_N_C = chosen.likelihood_weight * _scaled(values_N_C, class_terms, chosen.likelihood_reduction)
    log_terms_C = np.zeros(values_N_C.shape[1])
    if chosen.use_prior:
        log_terms_C = log_terms_C + _float64(class_terms.log_prior_C)
    if chosen.use_precision:
        log_terms_C = log_terms_C + _float64(class_terms.log_precision_C)
    log_terms_C = chosen.exponent * log_terms_C
    own_N = _own_class(chosen.classes, vae_class_N, predicted_class_N, len(values_N_C))
    if chosen.score == "published_code":  # the loss in the likelihood's place, as the authors' code has it
        score_N = 1 + _sum_over_classes(values_N_C * np.exp(log_terms_C), own_N)
    elif chosen.classes == "posterior":
        log_posterior_N_C = _log_posterior(posterior_N_C, values_N_C.shape)
        score_N = _log_sum_exp(log_posterior_N_C - values_N_C - log_terms_C, None)
    else:
        score_N = -_log_sum_exp(values_N_C + log_terms_C, own_N)  # Eq. 6
    if chosen.margin_weight:
        if margin_N is None:
            raise ValueError("margin_weight is set: pass margin_N")
        margins_N = _float64(margin_N)
        _all_finite(margins_N[:, None], "the classifier's margin", sample_ids)
        score_N = score_N + chosen.margin_weight * np.log(np.maximum(1 - margins_N, SMALLEST_DOUBT))
    _all_finite(score_N[:, None], "the score", sample_ids)
    if isinstance(log_likelihood_N_C, Tensor):
        return torch.from_numpy(score_N)
    return score_N


def _scaled(values_N_C: NDArray[np.float64], class_terms: ClassTerms, reduction: str) -> NDArray[np.float64]:
    if reduction in ("sum", "mean"):
        return values_N_C
    moments = class_terms.moments
    if moments is None:
        raise ValueError(
            f"likelihood_reduction is {reduction}: class_terms.with_moments(pool_moments(...)) comes first"
        )
    if reduction == "standardised":
        return np.asarray((values_N_C - np.array(moments.mean)) / np.array(moments.deviation))
    level_N_1 = _sum_over_classes(values_N_C, None)[:, None] / values_N_C.shape[1]
    contrast_N_C = (values_N_C - level_N_1) / moments.contrast_deviation
    standard_level_N_1 = (level_N_1 - moments.level_mean) / moments.level_deviation
    return np.asarray(contrast_N_C + standard_level_N_1)


def _own_class(classes: str, vae_class_N: Any, predicted_class_N: Any, samples: int) -> NDArray[np.int64] | None:
    """The one class whose term counts; None where all do."""
    if classes in ("all", "posterior"):
        return None
    name, given = ("vae_class_N", vae_class_N) if classes == "predicted" else ("predicted_class_N", predicted_class_N)
    if given is None or len(given) != samples:
        raise ValueError(f"classes is {classes}: pass {name}, one class a sample")
    return np.asarray(given, dtype=np.int64)


def _log_posterior(posterior_N_C: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if posterior_N_C is None or np.shape(posterior_N_C) != shape:
        raise ValueError("classes is posterior: pass posterior_N_C, a probability for each sample and class")
    return np.log(np.maximum(_float64(posterior_N_C), np.finfo(np.float64).tiny))


def _log_sum_exp(terms_N_C: NDArray[np.float64], own_N: NDArray[np.int64] | None) -> NDArray[np.float64]:
    if own_N is not None:
        return _sum_over_classes(terms_N_C, own_N)
    largest_N = terms_N_C.max(axis=1, initial=-np.inf)
    return np.asarray(largest_N + np.log(_sum_over_classes(np.exp(terms_N_C - largest_N[:, None]), None)))


def _sum_over_classes(terms_N_C: NDArray[np.float64], own_N: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Class by class, in order: a sample's sum does not depend on which others stand beside it."""
    if own_N is not None:
        return np.asarray(np.take_along_axis(terms_N_C, own_N[:, None], axis=1)[:, 0])
    total_N = np.zeros(len(terms_N_C))
    for column_N in terms_N_C.T:
        total_N = total_N + column_N
    return total_N


# -- checks -----------------------------------------------------------------------------------------------------


def _settings_of(settings: Any) -> Any:
    if settings is None:
        return ProbabilitySettings()
    return ProbabilitySettings(**settings) if isinstance(settings, Mapping) else settings


def _encoder(vae: FeatureVAE) -> FeatureVAE:
    """A copy in evaluation and in float64: heads and encoder run once a sample, beside T x C decodings."""
    return copy.deepcopy(vae).double().eval()


def _blocks(features: Any, encoder: FeatureVAE, draws: int, where: str) -> Iterator[tuple[slice, Tensor]]:
    """Rows of a shard, and their features_N_D in the encoder's precision: as many as are worked on at once."""
    if getattr(features, "ndim", None) != 2:
        raise ValueError(f"{where}: expected features N x D, found shape {getattr(features, 'shape', 'none')}")
    weight = encoder.reconstruction.weight
    size = max(1, min(_BLOCK_ROWS, _LATENT_ELEMENTS // (draws * encoder.num_latents)))
    for start in range(0, len(features), size):
        rows = slice(start, start + size)
        features_N_D = to_tensor(features[rows], weight.device, weight.dtype)
        wrong = (~torch.isfinite(features_N_D).all(dim=1)).nonzero()[:, 0] + start
        if len(wrong):
            raise UserError(
                f"{where}: the features of rows {_first(wrong.tolist())} are not finite: "
                "extract them again, look at these images"
            )
        yield rows, features_N_D


def _classes(values: Any, num_classes: int, what: str) -> NDArray[np.int64]:
    classes_N = np.asarray(values)
    if classes_N.ndim != 1 or (len(classes_N) and classes_N.dtype.kind not in "iu"):
        raise ValueError(f"{what}: expected a list of class indices, found {classes_N.dtype} {classes_N.shape}")
    if len(classes_N) and not 0 <= classes_N.min() <= classes_N.max() < num_classes:
        raise ValueError(f"{what}: expected 0 to {num_classes - 1}, found {classes_N.min()} to {classes_N.max()}")
    return classes_N.astype(np.int64)


def _all_finite(values_N_C: NDArray[Any], what: str, sample_ids: Sequence[Any] | NDArray[Any] | None) -> None:
    wrong = np.flatnonzero(~np.isfinite(values_N_C).all(axis=1))
    if len(wrong):
        names = [f"row {row}" for row in wrong] if sample_ids is None else [str(sample_ids[int(row)]) for row in wrong]
        raise UserError(f"{what} is not finite for {_first(names)}: train the VAE again with a lower vae.learning_rate")


def _first(names: Sequence[Any]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(str(name) for name in names[:5]) + more


def _float64(values: Any) -> NDArray[np.float64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(array, dtype=np.float64)


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")
