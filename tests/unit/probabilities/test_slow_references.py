"""The estimates against the equations written out: a loop for each sample, draw and class, by the network itself."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vabal.probabilities import (
    anchors,
    blocks,
    counting_noise,
    estimate_class_terms,
    estimate_likelihood,
    noise,
    shared_noise,
)
from vabal.vae import FeatureVAE, build, kl_divergence

ALL: dict[str, Any] = {"sampling": "independent", "likelihood_reduction": "sum", "likelihood_kl": "none"}


def network(dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[FeatureVAE, np.ndarray]:
    """Three classes of two latents, heads of 2 x 5 inputs, wide deviations, batch norms that do something; features."""
    small = {"head_width": 5, "hidden_width": 6, "latent_per_class": 2, "hidden_layers": 2}
    vae = build((3, 4), 3, {**small, **settings}, seed=1)
    numbers = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                for values in (module.weight, module.running_var):
                    assert values is not None
                    values.copy_(0.5 + torch.rand(values.shape, generator=numbers))
                for values in (module.bias, module.running_mean):
                    assert values is not None
                    values.copy_(torch.randn(values.shape, generator=numbers))
        vae.log_var.weight.mul_(4)
    return vae.to(dtype).eval(), np.random.default_rng(3).normal(size=(7, 7)).astype(np.float32)


def encoded(vae: FeatureVAE, features_N_D: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    inputs_N_I = vae.inputs(torch.tensor(features_N_D, dtype=torch.float64))
    return inputs_N_I, *vae.encode(inputs_N_I)


def errors(vae: FeatureVAE, latent_T_Z: Tensor, input_I: Tensor) -> Tensor:
    """error_C: the squared error of an input, with the block of each class masked, on average over the draws."""
    return torch.stack(
        [
            (vae.decode(vae.mask(latent_T_Z, torch.full((len(latent_T_Z),), n))) - input_I).square().sum(dim=1).mean()
            for n in range(vae.num_classes)
        ]
    )


def literal(vae: FeatureVAE, features_N_D: np.ndarray, noise_T_Z: Tensor, **chosen: Any) -> tuple[Tensor, list[int]]:
    """Eq. 9 and the class most often drawn (Eq. 7)."""
    rows, classes = [], []
    for input_I, mean_Z, log_var_Z in zip(*encoded(vae, features_N_D), strict=True):
        latent_T_Z = mean_Z + (log_var_Z / 2).exp() * noise_T_Z
        error_C = errors(vae, latent_T_Z, input_I) * (0.5 if vae.settings.reconstruction_half else 1)
        block_C = kl_divergence(mean_Z, log_var_Z).view(vae.num_classes, -1).sum(dim=1)
        every = block_C.sum().expand(vae.num_classes)
        kl_C = {"all": every, "unmasked": every - block_C, "none": 0 * every}[chosen["likelihood_kl"]]
        if chosen["likelihood_reduction"] == "mean":
            error_C, kl_C = error_C / vae.num_inputs, kl_C / vae.num_latents
        rows.append(-(error_C + kl_C))
        drawn_T = vae.class_energy(latent_T_Z).argmin(dim=1)
        classes.append(int(torch.bincount(drawn_T, minlength=vae.num_classes).argmax()))
    return torch.stack(rows).detach(), classes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("body", ["relu", "relu_bn"])
@pytest.mark.parametrize("energy", ["square", "absolute", "sigmoid"])
@pytest.mark.parametrize(
    "chosen",
    [
        {},
        {"likelihood_kl": "all"},
        {"likelihood_kl": "unmasked", "likelihood_reduction": "mean"},
    ],
)
def test_likelihood_and_class_are_equations_9_and_7(
    dtype: torch.dtype, body: str, energy: str, chosen: dict[str, Any]
) -> None:
    vae, features_N_D = network(dtype, body=body, energy=energy)
    settings = {**ALL, **chosen}
    [(found_N_C, class_N)] = estimate_likelihood(vae, [features_N_D], draws=25, generator=4, settings=settings)
    drawn_T_Z = shared_noise(vae, 25, 4, "independent").double()
    expected_N_C, classes = literal(vae.double(), features_N_D, drawn_T_Z, **settings)
    assert found_N_C == pytest.approx(expected_N_C.numpy(), rel=1e-10 if dtype == torch.float64 else 1e-4)
    assert class_N.tolist() == classes
    assert class_N.dtype == np.int64


def test_the_half_of_the_gaussian_leaves_the_divergence_whole() -> None:
    vae, features_N_D = network(reconstruction_half=True)
    settings = {**ALL, "likelihood_kl": "all"}
    [(found_N_C, _)] = estimate_likelihood(vae, [features_N_D], draws=5, generator=4, settings=settings)
    expected_N_C, _ = literal(vae, features_N_D, shared_noise(vae, 5, 4, "independent"), **settings)
    assert found_N_C == pytest.approx(expected_N_C.numpy(), rel=1e-10)


# -- anchors ------------------------------------------------------------------------------------------------------


def kernel(place_A_Y: Tensor, place_B_Y: Tensor, reach: float) -> Tensor:
    squared_A_B = (place_A_Y[:, None] - place_B_Y[None]).square().sum(dim=2)
    return torch.exp(-squared_A_B / (2 * reach**2))


def test_an_anchored_estimate_adds_what_the_anchors_err_by_kriging(monkeypatch: pytest.MonkeyPatch) -> None:
    reach, run, draws = 0.8, 60, 6
    monkeypatch.setattr(noise, "LONG_RUN", run)
    monkeypatch.setattr(noise, "CLASS_DRAWS", run)
    monkeypatch.setattr(anchors, "_reach", lambda *_: reach)
    vae, features_N_D = network(body="relu_bn")
    known_A_D = np.random.default_rng(5).normal(size=(4, 7)).astype(np.float32)
    vae.anchors_A_D.copy_(torch.tensor(known_A_D).repeat(16, 1))
    settings = {**ALL, "sampling": "anchored"}
    [(found_N_C, _)] = estimate_likelihood(vae, [features_N_D], draws=draws, generator=6, settings=settings)

    noise_L_Z = shared_noise(vae, draws, 6, "anchored")
    assert len(noise_L_Z) == run
    _, *known = encoded(vae, known_A_D)
    inputs_N_I, *samples = encoded(vae, features_N_D)
    place_A_Y, place_N_Y = (torch.cat([mean, (log_var / 2).exp()], dim=1) for mean, log_var in (known, samples))
    own_A_A = kernel(place_A_Y, place_A_Y, reach) + 0.01 * torch.eye(4, dtype=torch.float64)
    weight_N_A = kernel(place_N_Y, place_A_Y, reach) @ torch.linalg.inv(own_A_A)
    for row, input_I in enumerate(inputs_N_I):
        error_C = errors(vae, samples[0][row] + (samples[1][row] / 2).exp() * noise_L_Z[:draws], input_I)
        for weight, mean_Z, log_var_Z in zip(weight_N_A[row], *known, strict=True):
            latent_L_Z = mean_Z + (log_var_Z / 2).exp() * noise_L_Z
            error_C = error_C + weight * (errors(vae, latent_L_Z, input_I) - errors(vae, latent_L_Z[:draws], input_I))
        assert found_N_C[row] == pytest.approx(-error_C.detach().numpy(), rel=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_the_reach_is_the_one_by_which_anchors_left_out_are_told_best(seed: int) -> None:
    numbers = torch.Generator().manual_seed(seed)
    place_A_Y, gap_A_R, square_A_G_C, output_A_G_C_R = (
        torch.randn(shape, generator=numbers, dtype=torch.float64)
        for shape in ((6, 2), (6, 3), (6, 4, 2), (6, 4, 2, 3))
    )
    told_A_B_G_C = torch.stack([square_A_G_C + 2 * (output_A_G_C_R * gap_R).sum(dim=3) for gap_R in gap_A_R])
    typical = float(torch.pdist(place_A_Y).repeat(2).median())
    left = {}
    for step in range(-8, 9):
        reach = typical * 2 ** (step / 2)
        own_A_A = kernel(place_A_Y, place_A_Y, reach) + 0.01 * torch.eye(6, dtype=torch.float64)
        left[reach] = 0.0
        for out in range(6):
            others = [row for row in range(6) if row != out]
            weight_B = torch.linalg.solve(own_A_A[others][:, others], own_A_A[others, out])
            told_G_C = (weight_B[:, None, None] * told_A_B_G_C[out, others]).sum(dim=0)
            left[reach] += float((told_A_B_G_C[out, out] - told_G_C).square().sum())
    expected = min(left, key=lambda reach: left[reach])
    assert anchors._reach(place_A_Y, gap_A_R, square_A_G_C, output_A_G_C_R) == pytest.approx(expected)


def test_anchors_of_one_place_and_a_run_without_other_draws_have_the_reach_1() -> None:
    place_A_Y, nothing = torch.eye(3).double(), torch.zeros(3, 4, 2, 5).double()
    assert anchors._reach(place_A_Y[:1].expand(3, 3), nothing[:, 0, 0], nothing[..., 0], nothing) == 1
    assert anchors._reach(place_A_Y, nothing[:, 0, 0], nothing[:, :0, :, 0], nothing[:, :0]) == 1


def test_weights_of_a_long_run_less_draws_by_hand() -> None:
    run, less = 1 / 7, 1 / 7 - 1 / 2
    weights = anchors._run_less_draws(7, 2)
    assert weights.numpy() == pytest.approx(
        np.array([[less] * 2 + [run] * 5, [run] * 2 + [less] * 2 + [run] * 3, [run] * 4 + [less] * 2 + [run]])
    )
    assert len(anchors._run_less_draws(1000, 10)) == 5
    assert anchors._run_less_draws(6, 6).numpy() == pytest.approx(np.zeros((1, 6)), abs=1e-15)
    assert len(anchors._run_less_draws(7, 4)) == 1


# -- class terms and their noise ----------------------------------------------------------------------------------


def places_of(features_N_D: np.ndarray, rows: int) -> list[int]:
    """Where each sample's draws begin in the bank: from a hash of its features' bits, in Python's whole numbers."""
    places = []
    for words in features_N_D.astype(np.float32).view(np.uint32).tolist():
        mixed = sum(word * (2 * place + 1) * 0x9E3779B97F4A7C15 for place, word in enumerate(words)) % 2**64
        places.append(2 * (((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93 % 2**64 >> 24) % (rows // 2)))
    return places


@pytest.mark.parametrize("sampling", ["independent", "antithetic"])
@pytest.mark.parametrize("draws", [6, 4097])
def test_a_sample_s_draws_are_rows_of_the_bank_from_a_place_that_its_features_decide(sampling: str, draws: int) -> None:
    vae, features_N_D = network()
    bank_B_Z = noise.noise_bank(vae, draws, 8, sampling).noise_B_Z
    assert len(bank_B_Z) == {6: 4096, 4097: 4098}[draws]
    found_N_T_Z = counting_noise(vae, features_N_D, draws, 8, sampling)
    for place, found_T_Z in zip(places_of(features_N_D, len(bank_B_Z)), found_N_T_Z, strict=True):
        rows = [(place + draw) % len(bank_B_Z) for draw in range(draws)]
        assert torch.equal(found_T_Z, bank_B_Z[rows])
    if sampling == "antithetic":
        assert torch.equal(bank_B_Z[::2], -bank_B_Z[1::2])


def test_a_generator_of_the_caller_s_own_is_drawn_from() -> None:
    vae, _ = network()
    own = torch.Generator().manual_seed(3)
    first, second = (shared_noise(vae, 5, own, "independent") for _ in range(2))
    assert torch.equal(first, shared_noise(vae, 5, 3, "independent"))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("sampling", ["independent", "antithetic", "anchored"])
def test_networks_of_both_precisions_draw_the_same_noise(sampling: str) -> None:
    double, _ = network()
    single, _ = network(torch.float32)
    drawn = shared_noise(double, 9, 3, sampling)
    assert torch.equal(shared_noise(single, 9, 3, sampling), drawn.float())
    assert not torch.equal(drawn, drawn.float().double())  # that is, not drawn in float32
    assert len(drawn) == (1000 if sampling == "anchored" else 9)


@pytest.mark.parametrize(("sampling", "drawn"), [("independent", 9), ("antithetic", 9), ("anchored", 100)])
def test_class_terms_are_equations_12_and_11(sampling: str, drawn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", 3)
    vae, features_N_D = network()
    labels = [0, 1, 2, 2, 1, 0, 2]
    noise_N_T_Z = counting_noise(vae, features_N_D, 9, 3, sampling)
    predicted_C, right_C = np.zeros(3), np.zeros(3)
    _, mean_N_Z, log_var_N_Z = encoded(vae, features_N_D)
    for row, label in enumerate(labels):
        for noise_Z in noise_N_T_Z[row]:
            latent_Z = mean_N_Z[row] + (log_var_N_Z[row] / 2).exp() * noise_Z
            k = int(vae.class_energy(latent_Z[None])[0].argmin())
            predicted_C[k] += 1 / drawn
            right_C[k] += (k == label) / drawn
    found = estimate_class_terms(
        vae, features_N_D, labels, draws=9, generator=3, settings={"sampling": sampling, "smoothing": 0.5}
    )
    assert found.prior_C == pytest.approx((predicted_C + 0.5) / (7 + 1.5))
    assert found.precision_C == pytest.approx((right_C + 0.5) / (predicted_C + 1.5))
