"""The sampling `auto`: anchors where their long runs cost less than a hundred independent draws of every sample."""

import numpy as np
import pytest
import torch

from vabal.probabilities import counting_noise, drawing_of, estimate_likelihood, shared_noise
from vabal.probabilities.noise import Drawing, multiplications
from vabal.vae import FeatureVAE, build

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"head_width": 5, "hidden_width": 6, "latent_per_class": 2, "hidden_layers": 2}
DIMS = (3, 4)


def network(samples: int, classes: int = 3, **settings: int) -> FeatureVAE:
    vae = build(DIMS, classes, settings or SMALL, seed=0).eval()
    vae.pool_size.fill_(samples)
    vae.anchors_A_D.copy_(torch.randn(vae.anchors_A_D.shape, generator=torch.Generator().manual_seed(1)))
    return vae


def features(samples: int = 7) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(samples, sum(DIMS))).astype(np.float32)


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_a_small_pool_gets_a_hundred_independent_draws_and_a_large_one_anchors(classes: int) -> None:
    few, many = ({10: 128, 100: 128, 1000: 16}[classes], 20_000)
    paper = {"hidden_width": 128, "latent_per_class": 10, "hidden_layers": 3}
    assert drawing_of(network(few, classes, **paper), 10, "auto") == ("independent", 100)
    assert drawing_of(network(many, classes, **paper), 10, "auto") == ("anchored", 10)


def test_the_work_by_hand() -> None:
    vae = network(5)  # 3 classes x 2 latents; 6 hidden neurons in 2 layers
    decoding = 2 * 6 * 6 + 3 * 2 * 36
    assert multiplications(vae, 5, Drawing("independent", 100)) == 5 * 100 * decoding
    anchors = 64 * 1000 * decoding + 5 * 64 * 3 * 6
    assert multiplications(vae, 5, Drawing("anchored", 10)) == 5 * 10 * decoding + anchors


def test_it_turns_where_both_cost_the_same() -> None:
    # 288 for a decoding, 1152 for a sample's share of the anchors: 28 800 N against 4 032 N + 64 000 x 288
    assert drawing_of(network(744), 10, "auto").sampling == "independent"
    assert drawing_of(network(745), 10, "auto").sampling == "anchored"


@pytest.mark.parametrize("sampling", ["independent", "antithetic", "anchored"])
def test_what_is_asked_for_is_drawn_whatever_it_costs(sampling: str) -> None:
    assert drawing_of(network(1), 10, sampling) == (sampling, 10)
    assert drawing_of(network(10**6), 10, sampling) == (sampling, 10)


def test_more_draws_than_a_hundred_stay_as_many() -> None:
    assert drawing_of(network(1), 150, "auto") == ("independent", 150)


@pytest.mark.parametrize(("samples", "chosen"), [(7, Drawing("independent", 100)), (10_000, Drawing("anchored", 10))])
def test_an_estimate_is_that_of_the_sampling_that_was_chosen(samples: int, chosen: Drawing) -> None:
    vae = network(samples)
    asked = {"likelihood_reduction": "sum", "draws": 10, "sampling": "auto"}
    [(found, classes)] = estimate_likelihood(vae, [features()], generator=3, settings=asked)
    told = asked | {"draws": chosen.draws, "sampling": chosen.sampling}
    [(expected, expected_classes)] = estimate_likelihood(vae, [features()], generator=3, settings=told)
    assert np.array_equal(found, expected)
    assert np.array_equal(classes, expected_classes)
    assert torch.equal(shared_noise(vae, 10, 3, "auto"), shared_noise(vae, chosen.draws, 3, chosen.sampling))


def test_class_terms_draw_alike_whichever_is_chosen() -> None:
    drawn = [counting_noise(network(samples), features(), 10, 3, "auto") for samples in (7, 10_000)]
    assert torch.equal(*drawn)
    assert drawn[0].shape[1] == 100
