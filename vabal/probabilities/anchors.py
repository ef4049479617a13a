"""Few draws that err alike: the latent space's anchors."""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from vabal.probabilities.blocks import side_by_side
from vabal.probabilities.decoder import Decoder, decoder_outputs, tile_rows
from vabal.probabilities.noise import latents
from vabal.vae import FeatureVAE

_TRIALS = 4  # groups of draws that the anchors' reach is tried with
_UNEXPLAINED = 0.01  # of the variance of an anchor's error


# -- few draws that err alike ------------------------------------------------------------------------------------


class Anchors(NamedTuple):
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
def anchored(encoder: FeatureVAE, decoder: Decoder, noise_L_Z: Tensor, draws: int) -> Anchors:
    inputs_A_I = encoder.inputs(torch.unique(encoder.anchors_A_D, dim=0))
    mean_A_Z, log_var_A_Z = encoder.encode(inputs_A_I)
    weight_G_L = _run_less_draws(len(noise_L_Z), draws).to(mean_A_Z.device)
    posteriors = zip(torch.split(mean_A_Z, 1), torch.split(log_var_A_Z, 1), strict=True)
    work = partial(_weighted_moments, decoder, noise_L_Z, weight_G_L)
    means = list(side_by_side(work, posteriors, noise_L_Z.device))
    square_A_G_C = torch.stack([square for square, _ in means])
    output_A_G_C_R = torch.stack([output for _, output in means])
    place_A_Y = _place(mean_A_Z, log_var_A_Z)
    gap_A_R = (decoder.bias_I - inputs_A_I) @ decoder.basis_I_R
    reach = _reach(place_A_Y, gap_A_R, square_A_G_C[:, 1:], output_A_G_C_R[:, 1:])
    return Anchors(place_A_Y, square_A_G_C[:, 0], output_A_G_C_R[:, 0].contiguous(), reach)


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
    decoder: Decoder, noise_L_Z: Tensor, weight_G_L: Tensor, posterior: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of the outputs d at one posterior's latents: square_G_C of |d|^2, and output_G_C_R of d."""
    latent_L_Z = latents(*posterior, noise_L_Z)[0]
    classes, tile = len(decoder.blocks_C_K_H), tile_rows(decoder, latent_L_Z.device)
    squares, outputs = [torch.zeros(()).to(weight_G_L)] * classes, [torch.zeros(()).to(weight_G_L)] * classes
    for latent_M_Z, weight_G_M in zip(torch.split(latent_L_Z, tile), torch.split(weight_G_L, tile, dim=1), strict=True):
        every = (one for group_G_M_R in decoder_outputs(decoder, latent_M_Z) for one in group_G_M_R)
        for n, outputs_M_R in enumerate(every):
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
