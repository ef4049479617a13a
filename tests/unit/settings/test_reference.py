"""`vabal.probabilities` against the slow, literal reference, over the options of each preset."""

from functools import cache
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from tests import reference
from vabal import probabilities
from vabal.probabilities import (
    ClassTerms,
    counting_noise,
    estimate_class_terms,
    estimate_likelihood,
    mistake_score,
    noise,
    pool_moments,
    shared_noise,
)
from vabal.settings.models import ProbabilitySettings, VaeSettings
from vabal.settings.presets import PRESETS
from vabal.vae import FeatureVAE, build

pytestmark = pytest.mark.usefixtures("one_thread")
DIMS, CLASSES, DRAWS, SAMPLES = (5, 6, 7, 8), 3, 5, 4
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
TYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
Sampling = Literal["independent", "antithetic", "anchored"]
Reduction = Literal["sum", "mean"]
Blocks = Literal["all", "unmasked", "none"]
PRESET = pytest.mark.parametrize("preset", [name for name in PRESETS if name != "without_vae"])


@cache
def network(preset: str, *options: tuple[str, Any]) -> FeatureVAE:
    """The preset's network at its full size, on features and weights that are far from their initial values."""
    vae = build(DIMS, CLASSES, {**PRESETS[preset]["vae"], **dict(options)}, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _ in range(20):
            vae.decode(vae.encode(vae.inputs(torch.randn(64, sum(DIMS), generator=generator).relu()))[0])
        for module in vae.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.weight.uniform_(0.7, 1.2, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
        vae.log_var.bias.normal_(-1, 1, generator=generator)
        vae.mean.bias.normal_(0, 1, generator=generator)
    return vae.eval()


def features(samples: int = SAMPLES, seed: int = 3) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).normal(size=(samples, sum(DIMS))), 0).astype(np.float32)


def of_type(vae: FeatureVAE, dtype: torch.dtype) -> FeatureVAE:
    copy = FeatureVAE(vae.feature_dims, vae.num_classes, **vae.settings.model_dump()).to(dtype)
    copy.load_state_dict(vae.state_dict())
    return copy.eval()


@TYPES
@PRESET
@pytest.mark.parametrize("energy", ["square", "absolute", "sigmoid"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("sampling", ["independent", "antithetic"])
def test_log_likelihoods_are_those_of_the_literal_loops(
    preset: str, dtype: torch.dtype, energy: str, half: bool, sampling: Sampling
) -> None:
    vae = of_type(network(preset, ("energy", energy), ("reconstruction_half", half)), dtype)
    for reduction, blocks in product(get_args(Reduction), get_args(Blocks)):
        settings = ProbabilitySettings(
            draws=DRAWS, sampling=sampling, likelihood_reduction=reduction, likelihood_kl=blocks
        )
        noise_T_Z = shared_noise(vae, DRAWS, 7, sampling).double().numpy()
        expected, drawn = reference.likelihood(vae, features().astype(float), noise_T_Z, settings)
        [(log_likelihood_N_C, vae_class_N)] = estimate_likelihood(vae, [features()], generator=7, settings=settings)
        assert np.abs(log_likelihood_N_C - expected).max() < TOLERANCE[dtype]
        assert vae_class_N.tolist() == drawn.tolist()


@TYPES
@PRESET
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_anchored_log_likelihoods_are_those_of_the_literal_loops(
    preset: str, dtype: torch.dtype, half: bool, reduction: Reduction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "LONG_RUN", 25)
    monkeypatch.setattr(noise, "CLASS_DRAWS", 7)
    vae = of_type(network(preset, ("reconstruction_half", half)), dtype)
    vae.anchors_A_D.copy_(torch.from_numpy(features(3, seed=9)).repeat(22, 1)[: len(vae.anchors_A_D)])
    settings = ProbabilitySettings(draws=DRAWS, sampling="anchored", likelihood_reduction=reduction)
    noise_L_Z = shared_noise(vae, DRAWS, 7, "anchored").double().numpy()
    few, _ = reference.likelihood(vae, features().astype(float), noise_L_Z[:DRAWS], settings)
    _, drawn = reference.likelihood(vae, features().astype(float), noise_L_Z[:7], settings)
    correction = literal_correction(vae, features().astype(float), features(3, seed=9).astype(float), noise_L_Z)
    factor = (0.5 if half else 1.0) / (4 * 128 if reduction == "mean" else 1)
    [(log_likelihood_N_C, vae_class_N)] = estimate_likelihood(vae, [features()], generator=7, settings=settings)
    assert len(noise_L_Z) == 25
    assert np.abs(correction).max() > 1e-2  # there is something to tell
    assert np.abs(log_likelihood_N_C - (few - factor * correction)).max() < TOLERANCE[dtype]
    assert vae_class_N.tolist() == drawn.tolist()


def literal_correction(vae: FeatureVAE, features: np.ndarray, anchors: np.ndarray, noise_L_Z: np.ndarray) -> np.ndarray:
    """What kriging makes of the anchors' errors: mean over the long run less mean over the draws of |decoded - x|^2."""
    net = reference.ReferenceVAE(vae)
    encoder = probabilities.encoder_of(vae)
    noise = torch.tensor(noise_L_Z).to(vae.reconstruction.weight)
    reach = probabilities.anchored(encoder, probabilities.fold(vae), noise, DRAWS).reach

    def place(features_D: np.ndarray) -> np.ndarray:
        mean, log_var = net.encode(net.inputs(features_D))
        return np.concatenate([mean, np.exp(0.5 * log_var)])

    def told(anchor: np.ndarray, x: np.ndarray, n: int) -> float:
        mean, log_var = net.encode(net.inputs(anchor))
        errors = []
        for noise_Z in noise_L_Z:
            z = mean + np.exp(0.5 * log_var) * noise_Z
            z[net.block(n)] = 0
            errors.append(np.sum((net.decode(z) - x) ** 2))
        return float(np.mean(errors) - np.mean(errors[:DRAWS]))

    def covariance(one: np.ndarray, other: np.ndarray) -> float:
        return float(np.exp(-0.5 * np.sum((place(one) - place(other)) ** 2) / reach**2))

    between = np.array([[covariance(a, b) for b in anchors] for a in anchors]) + 0.01 * np.eye(len(anchors))
    result = np.zeros((len(features), net.classes))
    for i, features_D in enumerate(features):
        weights = np.linalg.solve(between, [covariance(features_D, a) for a in anchors])
        for n in range(net.classes):
            result[i, n] = weights @ [told(a, net.inputs(features_D), n) for a in anchors]
    return result


@TYPES
@PRESET
@pytest.mark.parametrize("body", ["relu", "relu_bn"])
@pytest.mark.parametrize("heads", ["bn_fc_sigmoid", "fc_relu_bn"])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_every_decoder_is_folded_into_one_that_gives_the_same(
    preset: str, dtype: torch.dtype, body: str, heads: str, layers: int
) -> None:
    vae = of_type(network(preset, ("body", body), ("heads", heads), ("hidden_layers", layers)), dtype)
    settings = ProbabilitySettings(draws=DRAWS, sampling="independent", likelihood_reduction="sum")
    noise_T_Z = shared_noise(vae, DRAWS, 7, "independent").double().numpy()
    expected, _ = reference.likelihood(vae, features().astype(float), noise_T_Z, settings)
    [(log_likelihood_N_C, _)] = estimate_likelihood(vae, [features()], generator=7, settings=settings)
    assert np.abs(log_likelihood_N_C - expected).max() < TOLERANCE[dtype]


def test_a_last_layer_narrower_than_the_hidden_ones_gives_the_same() -> None:
    vae = of_type(network("paper", ("head_width", 3)), torch.float64)  # 12 inputs, 128 hidden
    settings = ProbabilitySettings(draws=DRAWS, sampling="independent", likelihood_reduction="sum")
    noise_T_Z = shared_noise(vae, DRAWS, 7, "independent").numpy()
    expected, _ = reference.likelihood(vae, features().astype(float), noise_T_Z, settings)
    [(log_likelihood_N_C, _)] = estimate_likelihood(vae, [features()], generator=7, settings=settings)
    assert np.abs(log_likelihood_N_C - expected).max() < 1e-6


@TYPES
@PRESET
@pytest.mark.parametrize("prior_pool", ["labeled", "unlabeled"])
@pytest.mark.parametrize("precision_from", ["vae", "cross_fitted"])
@pytest.mark.parametrize("sampling", ["independent", "antithetic", "anchored"])
@pytest.mark.parametrize("smoothing", [1.0, 1e-9])
def test_class_terms_are_those_of_the_literal_loops(
    preset: str,
    dtype: torch.dtype,
    prior_pool: Literal["labeled", "unlabeled"],
    precision_from: Literal["vae", "cross_fitted"],
    sampling: Sampling,
    smoothing: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noise, "CLASS_DRAWS", 7)
    vae = of_type(network(preset), dtype)
    settings = ProbabilitySettings(
        draws=DRAWS, sampling=sampling, prior_pool=prior_pool, precision_from=precision_from, smoothing=smoothing
    )
    labeled, unlabeled, labels = features(6, seed=4), features(9, seed=5), np.array([0, 1, 2, 0, 0, 1])
    cross_fitted = (labels, np.array([0, 1, 0, 0, 2, 2]))
    expected_prior, expected_precision = reference.class_terms(
        vae,
        (labeled.astype(float), labels, counting_noise(vae, labeled, DRAWS, 7, sampling).double().numpy()),
        (unlabeled.astype(float), counting_noise(vae, unlabeled, DRAWS, 7, sampling).double().numpy()),
        cross_fitted,
        settings,
    )
    terms = estimate_class_terms(
        vae,
        labeled,
        labels,
        generator=7,
        settings=settings,
        unlabeled_features=[unlabeled[:2], unlabeled[2:]],
        cross_fitted=cross_fitted,
    )
    assert np.abs(terms.log_prior_C.numpy() - expected_prior).max() < TOLERANCE[dtype]
    assert np.abs(terms.log_precision_C.numpy() - expected_precision).max() < TOLERANCE[dtype]


@PRESET
@pytest.mark.parametrize("reduction", ["sum", "mean", "standardised", "contrast"])
@pytest.mark.parametrize("classes", ["all", "predicted", "classifier", "posterior"])
@pytest.mark.parametrize("score", ["eq6", "published_code"])
def test_scores_are_those_of_the_literal_sums(preset: str, reduction: str, classes: str, score: str) -> None:
    numbers = np.random.default_rng(8)
    prior, precision = numbers.dirichlet(np.ones(CLASSES)), numbers.uniform(0.1, 1, CLASSES)
    log_likelihood = numbers.normal(-30, 10, size=(12, CLASSES))
    own = {"vae_class": numbers.integers(0, 3, 12), "predicted_class": numbers.integers(0, 3, 12)}
    margin = numbers.uniform(size=12)
    posterior = numbers.dirichlet(np.ones(CLASSES), size=12)
    bare = ClassTerms(torch.tensor(np.log(prior)), torch.tensor(np.log(precision)))
    for use_prior, use_precision, weight, margin_weight, exponent, guard in product(
        [True, False], [True, False], [1.0, 0.3], [0.0, 2.0], [1.0, 0.5], [0.0, 0.3]
    ):
        terms = bare.with_moments(pool_moments([log_likelihood], guard))
        settings = ProbabilitySettings(**PRESETS[preset]["probabilities"]).model_copy(
            update={
                "likelihood_reduction": reduction,
                "classes": classes,
                "score": score,
                "use_prior": use_prior,
                "use_precision": use_precision,
                "likelihood_weight": weight,
                "margin_weight": margin_weight,
                "exponent": exponent,
                "guard": guard,
            }
        )
        expected = reference.scores(
            log_likelihood, np.log(prior), np.log(precision), settings, margin=margin, posterior=posterior, **own
        )
        score_N = mistake_score(
            log_likelihood,
            terms,
            settings,
            vae_class_N=own["vae_class"],
            predicted_class_N=own["predicted_class"],
            margin_N=margin,
            posterior_N_C=posterior,
        )
        assert np.abs(score_N - expected).max() < 1e-6


def test_the_reference_notices_a_wrong_mask() -> None:
    """The comparison can fail: with the blocks of two classes exchanged, the likelihoods no longer agree."""
    vae = of_type(network("paper"), torch.float64)
    settings = ProbabilitySettings(draws=DRAWS, sampling="independent", likelihood_reduction="sum")
    noise_T_Z = shared_noise(vae, DRAWS, 7, "independent").numpy()
    expected, _ = reference.likelihood(vae, features().astype(float), noise_T_Z, settings)
    [(log_likelihood_N_C, _)] = estimate_likelihood(vae, [features()], generator=7, settings=settings)
    assert np.abs(log_likelihood_N_C[:, [1, 0, 2]] - expected).max() > 1e-6


@pytest.mark.parametrize("preset", ["paper", "published_code"])
def test_the_presets_of_others_name_every_setting_so_that_our_defaults_never_change_them(preset: str) -> None:
    assert set(PRESETS[preset]["vae"]) == set(VaeSettings.model_fields)
    assert set(PRESETS[preset]["probabilities"]) == set(ProbabilitySettings.model_fields)
