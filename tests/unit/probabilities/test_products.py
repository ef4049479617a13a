"""The decoder's products in bfloat16: only where they are wished for and built in, and how far off they are."""

import numpy as np
import pytest
import torch

from vabal.probabilities import ClassTerms, decoder, estimate_likelihood, mistake_score, pool_moments, products_of
from vabal.vae import FeatureVAE, build, fit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PRESET = {"draws": 10, "sampling": "anchored", "likelihood_reduction": "standardised"}
WISHED = {**PRESET, "products": "auto"}


@pytest.mark.parametrize(
    ("wish", "built_in", "device", "found"),
    [
        ("auto", True, "cpu", torch.bfloat16),
        ("auto", False, "cpu", torch.float32),
        ("float32", True, "cpu", torch.float32),
        ("auto", True, "cuda", torch.bfloat16),
        ("auto", False, "cuda", torch.float32),
        ("float32", True, "cuda", torch.float32),
    ],
)
def test_bfloat16_is_taken_where_it_is_wished_for_and_built_in(
    wish: str, built_in: bool, device: str, found: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder, "_multiplies_bfloat16", lambda: built_in)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: built_in)
    assert products_of(wish, torch.device(device)) == found


@pytest.fixture(scope="module")
def trained() -> tuple[FeatureVAE, np.ndarray]:
    """A network of the preset's sizes, a little trained, and its pool."""
    numbers = np.random.default_rng(0)
    classes_N = numbers.integers(4, size=400)
    features_N_D = np.maximum(numbers.normal(size=(400, 60)) + numbers.normal(size=(4, 60))[classes_N], 0)
    vae = build((20, 40), 4, {"min_steps": 60, "max_steps": 60}, seed=0)
    list(fit(vae, features_N_D.astype(np.float32), classes_N, seed=0))
    return vae, features_N_D.astype(np.float32)


def test_its_error_is_a_few_thousandths_of_the_samples_spread_and_changes_hardly_a_pick(
    trained: tuple[FeatureVAE, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, features_N_D = trained
    [(exact_N_C, classes_N)] = estimate_likelihood(vae, [features_N_D], generator=1, settings=PRESET)
    monkeypatch.setattr(decoder, "_multiplies_bfloat16", lambda: True)  # which others compute by software
    [(near_N_C, same_N)] = estimate_likelihood(vae, [features_N_D], generator=1, settings=WISHED)
    assert not np.array_equal(near_N_C, exact_N_C)
    assert np.array_equal(classes_N, same_N)  # of energies, which no decoder sees
    assert float(np.std(near_N_C - exact_N_C)) < 0.02 * float(exact_N_C.std())
    even_C = torch.full((4,), -np.log(4.0), dtype=torch.float64)
    picks = []
    for values_N_C in (exact_N_C, near_N_C):
        terms = ClassTerms(even_C, even_C).with_moments(pool_moments([values_N_C]))
        score_N = mistake_score(values_N_C, terms, {"likelihood_reduction": "standardised"})
        picks.append(set(np.argsort(-score_N)[:50].tolist()))
    assert len(picks[0] & picks[1]) >= 48


def test_a_network_in_float64_keeps_its_precision(
    trained: tuple[FeatureVAE, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, features_N_D = trained
    double = build((20, 40), 4, seed=0).double()
    double.load_state_dict(vae.state_dict())
    [(expected, _)] = estimate_likelihood(double.eval(), [features_N_D[:20]], generator=1, settings=PRESET)
    monkeypatch.setattr(decoder, "_multiplies_bfloat16", lambda: True)
    [(found, _)] = estimate_likelihood(double, [features_N_D[:20]], generator=1, settings=WISHED)
    assert np.array_equal(found, expected)


def test_one_that_has_learned_knows_its_pool_s_size(trained: tuple[FeatureVAE, np.ndarray]) -> None:
    assert int(trained[0].pool_size) == 400
    assert int(build((20, 40), 4, seed=0).pool_size) == 0
