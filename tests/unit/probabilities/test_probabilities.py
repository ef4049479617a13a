import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from vabal import probabilities
from vabal.errors import UserError
from vabal.probabilities import (
    ClassTerms,
    anchors,
    blocks,
    counting_noise,
    decoder,
    estimate_class_terms,
    estimate_likelihood,
    mistake_score,
    noise,
    pool_moments,
    shared_noise,
)
from vabal.settings.models import VaeSettings
from vabal.vae import FeatureVAE, build, fit

pytestmark = pytest.mark.usefixtures("one_thread")
SUM = {"likelihood_reduction": "sum", "sampling": "independent"}
QUICK = VaeSettings(epochs=30, min_steps=0, batch_size=50, learning_rate=0.01)
SMALL: dict[str, Any] = {"head_width": 5, "hidden_width": 6, "latent_per_class": 2, "hidden_layers": 2}


def by_hand() -> FeatureVAE:
    """One feature x >= 0, one input, two classes of one latent each: z = (x, 1 - x) without variance.

    So x = 0 is of class 0 (Eq. 7), x = 1 of class 1. The decoder gives relu(z_1 + z_2).
    """
    vae = FeatureVAE(
        [1], 2, heads="fc_relu_bn", body="relu", head_width=1, hidden_width=1, hidden_layers=1, latent_per_class=1
    ).double()
    norm = vae.get_submodule("heads.0.2")
    assert isinstance(norm, torch.nn.BatchNorm1d)
    with torch.no_grad():
        norm.get_buffer("running_var").fill_(1 - norm.eps)
        for linear in ("heads.0.0", "encoder.0", "decoder.0", "reconstruction"):
            vae.get_parameter(f"{linear}.weight").fill_(1)
            vae.get_parameter(f"{linear}.bias").zero_()
        vae.mean.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        vae.mean.bias.copy_(torch.tensor([0.0, 1.0]))
        vae.log_var.weight.zero_()
        vae.log_var.bias.fill_(-60)
    return vae.eval()


def network(classes: int = 4, seed: int = 0, **settings: Any) -> tuple[FeatureVAE, np.ndarray]:
    """A network with some life in its batch norm, and features."""
    vae = build((3, 4), classes, {**SMALL, **settings}, seed=seed)
    features_N_D = np.random.default_rng(seed).normal(size=(40, 7)).astype(np.float32)
    with torch.no_grad():
        for _ in range(10):
            vae.decode(vae.encode(vae.inputs(torch.tensor(features_N_D)))[0])
    return vae.eval(), features_N_D


def terms(prior: list[float], precision: list[float]) -> ClassTerms:
    return ClassTerms(torch.tensor(prior).double().log(), torch.tensor(precision).double().log())


# -- Eqs. 11 and 12 ---------------------------------------------------------------------------------------------


def test_equations_11_and_12_by_hand() -> None:
    features_N_D = np.array([[0.0], [0.0], [0.0], [1.0]])  # predicted 0, 0, 0, 1
    estimate = estimate_class_terms(by_hand(), features_N_D, [0, 1, 0, 1], draws=7, generator=0)
    assert estimate.log_prior_C.exp().tolist() == pytest.approx([(3 + 1) / (4 + 2), (1 + 1) / (4 + 2)])
    assert estimate.log_precision_C.exp().tolist() == pytest.approx([(2 + 1) / (3 + 2), (1 + 1) / (1 + 2)])


@pytest.mark.parametrize("draws", [1, 10, 100])
def test_smoothing_is_in_units_of_samples_whatever_the_draws(draws: int) -> None:
    estimate = estimate_class_terms(
        by_hand(), np.zeros((9, 1)), [0] * 9, draws=draws, generator=0, settings={"smoothing": 0.5}
    )
    assert estimate.prior_C.tolist() == pytest.approx([9.5 / 10, 0.5 / 10])
    assert estimate.precision_C.tolist() == pytest.approx([9.5 / 10, 0.5])  # a class never predicted: 1/C


def test_a_labelled_pool_without_samples_gives_even_terms() -> None:
    estimate = estimate_class_terms(by_hand(), np.zeros((0, 1)), [], generator=0)
    assert estimate.prior_C.tolist() == estimate.precision_C.tolist() == [0.5, 0.5]


def test_the_prior_can_be_counted_in_the_unlabelled_pool() -> None:
    estimate = estimate_class_terms(
        by_hand(),
        np.zeros((4, 1)),
        [0, 0, 0, 0],
        generator=0,
        settings={"prior_pool": "unlabeled"},
        unlabeled_features=iter([np.ones((5, 1)), np.array([[0.0]])]),
    )
    assert estimate.prior_C.tolist() == pytest.approx([(1 + 1) / (6 + 2), (5 + 1) / (6 + 2)])
    assert estimate.precision_C.tolist() == pytest.approx([(4 + 1) / (4 + 2), 0.5])


def test_the_precision_can_be_counted_from_cross_fitted_predictions() -> None:
    estimate = estimate_class_terms(
        by_hand(),
        np.zeros((4, 1)),
        [0, 0, 0, 0],
        generator=0,
        settings={"precision_from": "cross_fitted"},
        cross_fitted=([0, 0, 1, 1], [0, 1, 1, 1]),
    )
    assert estimate.precision_C.tolist() == pytest.approx([(1 + 1) / (1 + 2), (2 + 1) / (3 + 2)])
    assert estimate.prior_C.tolist() == pytest.approx([5 / 6, 1 / 6])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"prior_pool": "unlabeled"}, "unlabeled_features"), ({"precision_from": "cross_fitted"}, "out-of-fold")],
)
def test_a_pool_that_the_settings_need_and_nobody_passed_is_asked_for(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_class_terms(by_hand(), np.zeros((1, 1)), [0], generator=0, settings=settings)


@pytest.mark.parametrize("labels", [[0, 2], [0, -1], [0], [0.0, 1.0]])
def test_labels_that_do_not_fit_are_refused(labels: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"label"):
        estimate_class_terms(by_hand(), np.zeros((2, 1)), labels, generator=0)


def test_class_terms_do_not_depend_on_the_order_or_the_shards_of_the_pool() -> None:
    vae, features_N_D = network()
    labels = np.arange(40) % 4
    order = np.random.default_rng(1).permutation(40)
    settings = {"prior_pool": "unlabeled"}
    first = estimate_class_terms(
        vae, features_N_D, labels, draws=9, generator=3, settings=settings, unlabeled_features=[features_N_D]
    )
    second = estimate_class_terms(
        vae,
        features_N_D[order],
        labels[order],
        draws=9,
        generator=3,
        settings=settings,
        unlabeled_features=[features_N_D[order[:7]], features_N_D[order[7:]]],
    )
    assert first.to_json() == second.to_json()


def test_samples_do_not_all_share_their_noise_in_the_counts() -> None:
    vae, features_N_D = network()
    noise_N_T_Z = counting_noise(vae, features_N_D, 6, 0, "independent")
    assert len({tuple(noise.ravel().tolist()) for noise in noise_N_T_Z.numpy()}) > 35


def test_class_terms_survive_json_bit_for_bit() -> None:
    vae, features_N_D = network()
    original = estimate_class_terms(vae, features_N_D, np.arange(40) % 4, draws=9, generator=3)
    original = original.with_moments(pool_moments([np.random.default_rng(0).normal(size=(9, 4))]))
    back = ClassTerms.from_json(original.to_json())
    assert torch.equal(back.log_prior_C, original.log_prior_C)
    assert torch.equal(back.log_precision_C, original.log_precision_C)
    assert back.moments == original.moments


# -- Eq. 9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # x = 1: z = (1, 0); with block 0 masked relu(0) = 0 is decoded, with block 1 masked relu(1) = 1.
        # KL of block 0: (1 + e^-60 - 1 + 60) / 2 = 30, of block 1: (0 + e^-60 - 1 + 60) / 2 = 29.5.
        ({"likelihood_kl": "none"}, [-1, 0]),
        ({"likelihood_kl": "all"}, [-1 - 59.5, -59.5]),
        ({"likelihood_kl": "unmasked"}, [-1 - 29.5, -30]),
        ({"likelihood_kl": "all", "likelihood_reduction": "mean"}, [-1 - 29.75, -29.75]),
    ],
)
def test_equation_9_by_hand(settings: dict[str, Any], expected: list[float]) -> None:
    [(log_likelihood_N_C, vae_class_N)] = estimate_likelihood(
        by_hand(), [np.array([[1.0], [0.0]])], draws=5, generator=0, settings={**SUM, **settings}
    )
    assert log_likelihood_N_C[0].tolist() == pytest.approx(expected, abs=1e-9)
    assert vae_class_N.tolist() == [1, 0]


def test_the_gaussian_s_half_is_an_option_of_the_vae() -> None:
    vae = by_hand()
    vae.settings = vae.settings.model_copy(update={"reconstruction_half": True})
    [(log_likelihood_N_C, _)] = estimate_likelihood(
        vae, [np.array([[1.0]])], draws=5, generator=0, settings={**SUM, "likelihood_kl": "none"}
    )
    assert log_likelihood_N_C[0].tolist() == pytest.approx([-0.5, 0], abs=1e-9)


def test_the_mean_over_the_draws_is_of_log_likelihoods() -> None:
    vae = by_hand()
    with torch.no_grad():
        vae.log_var.bias.zero_()  # unit variance; x = 0: z = noise + (0, 1)
    noise_T_Z = shared_noise(vae, 50, 4, "independent")
    kept = noise_T_Z + torch.tensor([0.0, 1.0])
    expected = [-float(kept[:, other].relu().square().mean()) for other in (1, 0)]
    [(log_likelihood_N_C, _)] = estimate_likelihood(
        vae, [np.array([[0.0]])], draws=50, generator=4, settings={**SUM, "likelihood_kl": "none"}
    )
    assert log_likelihood_N_C[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_antithetic_noise_comes_in_pairs_of_opposite_sign() -> None:
    vae, _ = network()
    noise_T_Z = shared_noise(vae, 5, 0, "antithetic")
    assert torch.equal(noise_T_Z[0:4:2], -noise_T_Z[1:4:2])
    assert noise_T_Z.shape == (5, 8)


def test_a_seed_and_a_fresh_generator_draw_the_same() -> None:
    vae, features_N_D = network()
    [(seeded, _)] = estimate_likelihood(vae, [features_N_D], draws=3, generator=11, settings=SUM)
    [(drawn, _)] = estimate_likelihood(
        vae, [features_N_D], draws=3, generator=torch.Generator().manual_seed(11), settings=SUM
    )
    [(other, _)] = estimate_likelihood(vae, [features_N_D], draws=3, generator=12, settings=SUM)
    assert np.array_equal(seeded, drawn)
    assert not np.array_equal(seeded, other)


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 30], list(range(1, 40))])
def test_a_sample_s_likelihood_does_not_depend_on_its_shard(cuts: list[int]) -> None:
    vae, features_N_D = network()
    order = np.random.default_rng(2).permutation(40)
    [(whole, classes)] = estimate_likelihood(vae, [features_N_D], draws=8, generator=5, settings=SUM)
    parts = list(estimate_likelihood(vae, np.split(features_N_D[order], cuts), draws=8, generator=5, settings=SUM))
    assert np.allclose(np.concatenate([part for part, _ in parts]), whole[order], atol=1e-5, rtol=0)
    assert np.array_equal(np.concatenate([part for _, part in parts]), classes[order])


@pytest.mark.parametrize("rows", [1, 50, 10_000])
@pytest.mark.parametrize("body", ["relu", "relu_bn"])
@pytest.mark.parametrize("sampling", ["independent", "anchored"])
def test_the_size_of_a_tile_changes_nothing(
    rows: int, body: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, features_N_D = network(body=body)
    vae = vae.double()
    settings = {**SUM, "sampling": sampling}
    monkeypatch.setattr(noise, "LONG_RUN", 70)
    [(expected, _)] = estimate_likelihood(vae, [features_N_D], draws=8, generator=5, settings=settings)
    monkeypatch.setattr(decoder, "_TILE_ROWS", rows)
    [(tiled, _)] = estimate_likelihood(vae, [features_N_D], draws=8, generator=5, settings=settings)
    assert np.allclose(tiled, expected, atol=1e-12, rtol=0)


@pytest.fixture
def threads_of_torch() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads_of_torch")
@pytest.mark.parametrize("sampling", ["independent", "anchored"])
def test_the_number_of_threads_changes_no_bit(sampling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, features_N_D = network()
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", 3)  # so that there are more blocks than threads
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        [(values, classes)] = estimate_likelihood(
            vae, [features_N_D], draws=8, generator=5, settings={**SUM, "sampling": sampling}
        )
        assert torch.get_num_threads() == threads
        found.append((values.tobytes(), classes.tobytes()))
    assert found[0] == found[1] == found[2]


@pytest.mark.usefixtures("threads_of_torch")
def test_an_error_leaves_the_number_of_threads_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, features_N_D = network()
    features_N_D[39] = np.nan
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", 3)
    torch.set_num_threads(2)
    with pytest.raises(UserError, match="rows 39"):
        list(estimate_likelihood(vae, [features_N_D], generator=0, settings=SUM))
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("body", ["relu", "relu_bn"])
def test_packed_and_plain_products_give_the_same(body: str) -> None:
    vae, features_N_D = network(body=body)
    [(packed, _)] = estimate_likelihood(vae, [features_N_D], draws=8, generator=5, settings=SUM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32, on leaving
        with torch.backends.mkldnn.flags(enabled=False):
            [(plain, _)] = estimate_likelihood(vae, [features_N_D], draws=8, generator=5, settings=SUM)
    assert np.allclose(packed, plain, atol=1e-4, rtol=0)


def test_tensors_give_tensors_and_arrays_give_arrays_and_neither_is_changed() -> None:
    vae, features_N_D = network()
    before = features_N_D.copy()
    vae.train()
    statistics = vae.get_buffer("heads.0.0.running_mean").clone()
    [(array, _)] = estimate_likelihood(vae, [features_N_D], draws=2, generator=0, settings=SUM)
    [(tensor, _)] = estimate_likelihood(vae, [torch.tensor(features_N_D)], draws=2, generator=0, settings=SUM)
    assert isinstance(array, np.ndarray)
    assert torch.equal(tensor, torch.from_numpy(array))
    assert array.dtype == np.float32
    assert np.array_equal(features_N_D, before)
    assert torch.equal(vae.get_buffer("heads.0.0.running_mean"), statistics)
    assert vae.training


def test_an_empty_shard_gives_empty_columns() -> None:
    vae, _ = network()
    [(log_likelihood_N_C, vae_class_N)] = estimate_likelihood(vae, [np.zeros((0, 7))], generator=0, settings=SUM)
    assert log_likelihood_N_C.shape == (0, 4)
    assert vae_class_N.shape == (0,)


def test_features_that_are_not_finite_are_named_by_shard_and_row() -> None:
    vae, features_N_D = network()
    features_N_D[[3, 9], 1] = np.inf
    with pytest.raises(UserError, match=r"shard 1.*rows 3, 9"):
        list(estimate_likelihood(vae, [features_N_D[:0], features_N_D], generator=0, settings=SUM))


def test_one_array_in_the_place_of_shards_is_refused() -> None:
    vae, features_N_D = network()
    with pytest.raises(ValueError, match="N x D"):
        list(estimate_likelihood(vae, features_N_D, generator=0, settings=SUM))


# -- few draws that err alike -------------------------------------------------------------------------------------

FEW: dict[str, Any] = {**SUM, "likelihood_kl": "none", "sampling": "anchored"}


def anchored_at(features_A_D: Any, **settings: Any) -> tuple[FeatureVAE, np.ndarray]:
    """A network in float64 whose anchors have these features, in turn."""
    vae, features_N_D = network(**settings)
    rows_A_D = torch.tensor(np.asarray(features_A_D, dtype=np.float64))
    vae = vae.double()
    vae.anchors_A_D.copy_(rows_A_D.repeat(len(vae.anchors_A_D), 1)[: len(vae.anchors_A_D)])
    return vae, features_N_D


def likelihood_of(vae: FeatureVAE, features_N_D: np.ndarray, draws: int, seed: int, sampling: str) -> np.ndarray:
    [(values_N_C, _)] = estimate_likelihood(
        vae, [features_N_D], draws=draws, generator=seed, settings={**FEW, "sampling": sampling}
    )
    return np.asarray(values_N_C)


def test_a_sample_that_is_an_anchor_has_the_long_run_s_likelihood_but_for_the_unexplained() -> None:
    _, features_N_D = network()
    vae, _ = anchored_at(features_N_D[:1])
    few, run, found = (
        likelihood_of(vae, features_N_D[:1], draws, 3, sampling)
        for draws, sampling in ((6, "independent"), (probabilities.LONG_RUN, "independent"), (6, "anchored"))
    )
    assert found == pytest.approx(few + (run - few) / 1.01, abs=1e-9)


def test_a_sample_far_from_every_anchor_is_not_corrected() -> None:
    _, features_N_D = network()
    vae, _ = anchored_at(features_N_D[:1])
    with torch.no_grad():
        vae.mean.weight.mul_(1e4)
    far = likelihood_of(vae, features_N_D[1:], 6, 3, "independent")
    assert likelihood_of(vae, features_N_D[1:], 6, 3, "anchored") == pytest.approx(far, rel=1e-12)


def test_ten_anchored_draws_err_less_than_a_hundred_independent_ones() -> None:
    vae, features_N_D = network(classes=3)
    list(fit(vae, np.repeat(features_N_D, 5, axis=0), np.arange(200) % 3, QUICK, seed=0))
    truth = likelihood_of(vae, features_N_D, 20_000, 99, "independent")
    squares = {
        (draws, sampling): np.mean(
            [(likelihood_of(vae, features_N_D, draws, seed, sampling) - truth) ** 2 for seed in range(8)]
        )
        for draws, sampling in ((10, "anchored"), (100, "independent"))
    }
    assert squares[10, "anchored"] < squares[100, "independent"]


def test_anchoring_does_not_move_the_mean_over_the_seeds() -> None:
    _, features_N_D = network()
    vae, _ = anchored_at(features_N_D[:5])
    truth = likelihood_of(vae, features_N_D, 100_000, 99, "independent")
    found = np.stack([likelihood_of(vae, features_N_D, 2, seed, "anchored") for seed in range(60)])
    apart = np.abs(found.mean(axis=0) - truth) / (found.std(axis=0) / 60**0.5)
    assert apart.mean() < 1.5  # 0.8 of a standard error is to be expected


def test_more_draws_than_the_long_run_has_are_drawn_and_leave_nothing_to_correct() -> None:
    _, features_N_D = network()
    vae, _ = anchored_at(features_N_D[:5])
    draws = probabilities.LONG_RUN + 7
    independent = likelihood_of(vae, features_N_D, draws, 3, "independent")
    assert likelihood_of(vae, features_N_D, draws, 3, "anchored") == pytest.approx(independent, rel=1e-12)


def test_an_anchored_estimate_tells_the_class_by_a_hundred_draws() -> None:
    _, features_N_D = network()
    vae, _ = anchored_at(features_N_D[:5])
    [(_, anchored)] = estimate_likelihood(vae, [features_N_D], draws=2, generator=3, settings=FEW)
    [(_, independent)] = estimate_likelihood(
        vae, [features_N_D], draws=100, generator=3, settings={**FEW, "sampling": "independent"}
    )
    assert anchored.tolist() == independent.tolist()
    assert counting_noise(vae, features_N_D, 2, 0, "anchored").shape == (40, 100, 8)


@pytest.mark.parametrize(("alike", "expected"), [(True, 16.0), (False, 1 / 16)])
def test_the_reach_is_long_where_anchors_err_alike_and_short_where_they_do_not(alike: bool, expected: float) -> None:
    numbers = torch.Generator().manual_seed(0)
    place_A_Y = torch.eye(8, dtype=torch.float64)  # all at a distance of sqrt(2)
    square_A_G_C = torch.randn(1 if alike else 8, 4, 3, generator=numbers, dtype=torch.float64).expand(8, 4, 3)
    nothing = torch.zeros(8, 4, 3, 2, dtype=torch.float64)
    reach = anchors._reach(place_A_Y, nothing[:, 0, 0], square_A_G_C, nothing)
    assert reach == pytest.approx(2**0.5 * expected)


# -- Eq. 6 ------------------------------------------------------------------------------------------------------

LOGS = np.log([[0.2, 0.5]])
TERMS = terms([0.75, 0.25], [0.8, 0.4])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, -math.log(0.8 * 0.2 * 0.75 + 0.4 * 0.5 * 0.25)),
        ({"use_prior": False}, -math.log(0.8 * 0.2 + 0.4 * 0.5)),
        ({"use_precision": False}, -math.log(0.2 * 0.75 + 0.5 * 0.25)),
        ({"classes": "predicted"}, -math.log(0.4 * 0.5 * 0.25)),
        ({"classes": "classifier"}, -math.log(0.8 * 0.2 * 0.75)),
        ({"classes": "posterior"}, math.log(0.6 / (0.8 * 0.2 * 0.75) + 0.4 / (0.4 * 0.5 * 0.25))),
        (
            {"classes": "posterior", "likelihood_weight": 0.0, "exponent": 0.5},
            math.log(0.6 / 0.6**0.5 + 0.4 / 0.1**0.5),
        ),
        ({"exponent": 0.5}, -math.log(0.2 * 0.6**0.5 + 0.5 * 0.1**0.5)),
        ({"likelihood_weight": 2.0}, -math.log(0.8 * 0.04 * 0.75 + 0.4 * 0.25 * 0.25)),
        ({"likelihood_weight": 0.0}, -math.log(0.8 * 0.75 + 0.4 * 0.25)),
        ({"margin_weight": 3.0}, -math.log(0.8 * 0.2 * 0.75 + 0.4 * 0.5 * 0.25) + 3 * math.log(0.7)),
        (
            {"score": "published_code", "use_precision": False},
            1 + math.log(0.2) * 0.75 + math.log(0.5) * 0.25,
        ),
        ({"score": "published_code", "classes": "predicted"}, 1 + math.log(0.5) * 0.25 * 0.4),
    ],
)
def test_equation_6_by_hand(settings: dict[str, Any], expected: float) -> None:
    score_N = mistake_score(
        LOGS,
        TERMS,
        {**SUM, **settings},
        vae_class_N=[1],
        predicted_class_N=[0],
        margin_N=np.array([0.3]),
        posterior_N_C=np.array([[0.6, 0.4]]),
    )
    assert score_N.tolist() == pytest.approx([expected])


def test_log_likelihoods_far_below_float64_s_range_still_rank() -> None:
    score_N = mistake_score(np.array([[-5000.0, -5001.0], [-6000.0, -6001.0]]), TERMS, SUM)
    assert score_N[1] - score_N[0] == pytest.approx(1000)


def test_standardised_likelihoods_by_hand() -> None:
    log_likelihood_N_C = np.array([[0.0, 0.0], [2.0, 4.0]])  # means 1, 2; deviations 1, 2
    known = TERMS.with_moments(pool_moments([log_likelihood_N_C]))
    score_N = mistake_score(log_likelihood_N_C, known, {"likelihood_reduction": "standardised", "classes": "predicted"},
                            vae_class_N=[0, 1])  # fmt: skip
    assert score_N.tolist() == pytest.approx([-(-1 + math.log(0.6)), -(1 + math.log(0.1))])


def test_contrasts_and_levels_are_standardised_apart_by_hand() -> None:
    log_likelihood_N_C = np.array([[0.0, 2.0], [10.0, 12.0]])  # levels 1, 11: mean 6, deviation 5; contrasts -1, 1
    known = TERMS.with_moments(pool_moments([log_likelihood_N_C]))
    settings = {"likelihood_reduction": "contrast", "classes": "predicted"}
    score_N = mistake_score(log_likelihood_N_C, known, settings, vae_class_N=[0, 1])
    assert score_N.tolist() == pytest.approx([-(-1 - 1 + math.log(0.6)), -(1 + 1 + math.log(0.1))])


def test_moments_do_not_depend_on_order_or_shards() -> None:
    values = np.random.default_rng(0).normal(-400, 30, size=(1000, 5)).astype(np.float32)
    order = np.random.default_rng(1).permutation(1000)
    assert pool_moments([values]) == pool_moments(np.split(values[order], [0, 1, 10, 500]))
    assert pool_moments([values]).mean == pytest.approx(values.astype(float).mean(axis=0), rel=1e-8)
    assert pool_moments([values]).deviation == pytest.approx(values.astype(float).std(axis=0), rel=1e-8)


def test_equal_likelihoods_are_not_divided_by_zero() -> None:
    known = TERMS.with_moments(pool_moments([np.full((3, 2), -7.0)]))
    for reduction in ("standardised", "contrast"):
        score_N = mistake_score(np.full((3, 2), -7.0), known, {"likelihood_reduction": reduction})
        assert score_N.tolist() == pytest.approx([-math.log(0.7)] * 3)


def test_moments_of_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="no candidates"):
        pool_moments([np.zeros((0, 3))])


def test_a_scale_that_needs_the_pool_s_moments_asks_for_them() -> None:
    with pytest.raises(ValueError, match="pool_moments"):
        mistake_score(LOGS, TERMS, {"likelihood_reduction": "standardised"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": "predicted"}, "vae_class_N"),
        ({"classes": "classifier"}, "predicted_class_N"),
        ({"classes": "posterior"}, "posterior_N_C"),
        ({"margin_weight": 1.0}, "margin_N"),
    ],
)
def test_what_the_score_needs_and_nobody_passed_is_asked_for(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mistake_score(LOGS, TERMS, {**SUM, **settings})


@pytest.mark.parametrize("margin", [0.0, 1.0])
def test_a_margin_of_nothing_or_of_all_gives_a_finite_score(margin: float) -> None:
    settings = {**SUM, "margin_weight": 1.0}
    assert np.isfinite(mistake_score(LOGS, TERMS, settings, margin_N=np.array([margin]))).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_the_samples_names(wrong: float) -> None:
    log_likelihood_N_C = np.log([[0.2, 0.5]] * 3)
    log_likelihood_N_C[1, 0] = wrong
    with pytest.raises(UserError, match="not finite for b:"):
        mistake_score(log_likelihood_N_C, TERMS, SUM, sample_ids=["a", "b", "c"])


def test_a_score_that_overflows_is_refused_by_the_sample_s_name() -> None:
    endless = replace(TERMS, log_prior_C=torch.tensor([-math.inf, -math.inf]).double())
    with pytest.raises(UserError, match="score is not finite for row 0"), np.errstate(all="ignore"):
        mistake_score(LOGS, endless, SUM)


def test_scores_of_tensors_are_tensors_and_leave_them_as_they_are() -> None:
    log_likelihood_N_C = torch.tensor(LOGS)
    score_N = mistake_score(log_likelihood_N_C, TERMS, SUM)
    assert isinstance(score_N, torch.Tensor)
    assert score_N.dtype == torch.float64
    assert torch.equal(log_likelihood_N_C, torch.tensor(LOGS))


def test_a_score_depends_on_its_own_row_alone_bit_for_bit() -> None:
    values = np.random.default_rng(0).normal(size=(101, 7)).astype(np.float32)
    seven = terms([1 / 7] * 7, [0.5] * 7)
    whole = mistake_score(values, seven, SUM)
    alone = np.concatenate([mistake_score(values[row : row + 1], seven, SUM) for row in range(101)])
    assert np.array_equal(whole, alone)
