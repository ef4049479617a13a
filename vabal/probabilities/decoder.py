"""The decoder's reconstruction error for many draws at once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vabal.learning.device import multiplies_bfloat16
from vabal.vae import FeatureVAE

_TILE_ROWS = 1024  # latents decoded at once on a CPU: as many as its cache holds
_TILE_ELSEWHERE = 2**21  # latents, times classes, decoded at once elsewhere


class Decoder(NamedTuple):
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
    products: torch.dtype  # of the square layers


def products_of(wish: str, device: torch.device) -> torch.dtype:
    """The precision of the decoder's square layers: float32, or bfloat16 where that is wished and the processor or GPU
    multiplies it by itself. Sums are in float32 either way."""
    able = _multiplies_bfloat16() if device.type == "cpu" else multiplies_bfloat16(device)
    return torch.bfloat16 if wish == "auto" and able else torch.float32


def _multiplies_bfloat16() -> bool:
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)


class _Linear:
    """A linear layer, and ReLU, without gradient.

    On a CPU with AVX, in float32 and bfloat16, oneDNN multiplies with weights that it packed beforehand and applies
    ReLU as it writes: on some processors at more than twice the rate of the plain product, which others use.
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
        elif relu and values_M_I.is_cuda:  # ReLU as it is written, where cuBLASLt can
            return torch._addmm_activation(self._bias_O, values_M_I, self._weight_I_O)
        else:
            outputs_M_O = torch.addmm(self._bias_O, values_M_I, self._weight_I_O)
        return outputs_M_O.relu_() if relu else outputs_M_O


def _can_pack(like: Tensor) -> bool:
    return bool(
        like.device.type == "cpu"
        and like.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and torch.backends.mkldnn.enabled
        and torch._C._has_mkldnn
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and (like.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def fold(vae: FeatureVAE, products: torch.dtype | None = None) -> Decoder:
    """The decoder ready to estimate with; `products` are those of its square layers, its own precision's by default."""
    like = vae.reconstruction.weight.detach()
    rounded = like.to(products or like.dtype)
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
    return Decoder(
        _Linear(first, first_bias, like),
        blocks.to(like).contiguous(),
        tuple(_Linear(weight, bias, rounded) for weight, bias in hidden),
        _Linear(rotated, None, rounded),
        basis.contiguous(),
        last_bias,
        rounded.dtype,
    )


def _affine(norm: torch.nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation."""
    assert norm.running_mean is not None and norm.running_var is not None  # noqa: S101 -- always tracked here
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.detach().double() - norm.running_mean.double() * scale


def masked_error(decoder: Decoder, latent_N_T_Z: Tensor, gap_N_R: Tensor) -> Tensor:
    """The part of the squared error within the last layer's column space: error_N_C, float64.

    Summed over the inputs, its mean over the draws, with block n zeroed.
    """
    samples, draws, _ = latent_N_T_Z.shape
    error_N_C = gap_N_R.new_empty(samples, len(decoder.blocks_C_K_H))
    size = max(1, tile_rows(decoder, latent_N_T_Z.device) // draws)
    for start in range(0, samples, size):
        tile, first = slice(start, start + size), 0
        gap_N_1_R = gap_N_R[tile, None].to(latent_N_T_Z.dtype)
        for outputs_G_M_R in decoder_outputs(decoder, latent_N_T_Z[tile].flatten(0, 1)):
            group = slice(first, first + len(outputs_G_M_R))
            outputs_G_M_R.view(-1, len(gap_N_1_R), draws, gap_N_1_R.shape[2]).add_(gap_N_1_R)
            square_G_M = torch.linalg.vector_norm(outputs_G_M_R, dim=2).square_()
            mean_G_N = square_G_M.view(-1, len(gap_N_1_R), draws).mean(dim=2, dtype=torch.float64)
            error_N_C[tile, group] = mean_G_N.T
            first = group.stop
    return error_N_C


def decoder_outputs(decoder: Decoder, latent_M_Z: Tensor, at_once: int | None = None) -> Iterator[Tensor]:
    """outputs_G_M_R in the decoder's column space, without the last bias, with the block of each class zeroed in turn;
    of G classes at once: one on a CPU, whose cache holds it, all on a GPU.

    Of the first layer, only the block's own contribution differs between the classes: it is taken off the whole.
    """
    whole_M_H = decoder.first(latent_M_Z)
    blocks_C_M_K = latent_M_Z.view(len(latent_M_Z), len(decoder.blocks_C_K_H), -1).transpose(0, 1)
    at_once = at_once or (1 if latent_M_Z.device.type == "cpu" else len(blocks_C_M_K))
    for blocks_G_M_K, weight_G_K_H in zip(
        blocks_C_M_K.split(at_once), decoder.blocks_C_K_H.split(at_once), strict=True
    ):
        if at_once == 1:
            hidden_M_H = torch.addmm(whole_M_H, blocks_G_M_K[0], weight_G_K_H[0], alpha=-1).relu_()
        else:
            hidden_M_H = torch.baddbmm(whole_M_H, blocks_G_M_K, weight_G_K_H, alpha=-1).relu_().flatten(0, 1)
        hidden_M_H = hidden_M_H.to(decoder.products)
        for layer in decoder.hidden:
            hidden_M_H = layer(hidden_M_H, relu=True)
        outputs_M_R = decoder.rotated(hidden_M_H).to(latent_M_Z.dtype)
        yield outputs_M_R.view(len(weight_G_K_H), len(latent_M_Z), -1)


def tile_rows(decoder: Decoder, device: torch.device) -> int:
    """Latents that are decoded at once."""
    return _TILE_ROWS if device.type == "cpu" else max(1, _TILE_ELSEWHERE // len(decoder.blocks_C_K_H))
