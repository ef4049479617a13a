"""How a GPU estimates, shown on a CPU: all classes in one product, many rows at once, and no number is waited for."""

from functools import partial

import numpy as np
import pytest
import torch

from tests.support.crossings import ELSEWHERE, Crossings
from vabal.errors import UserError
from vabal.probabilities import anchors, blocks, decoder, estimate_likelihood, likelihood, noise
from vabal.probabilities.checks import encoder_of, settings_of
from vabal.vae import FeatureVAE, build

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = {"head_width": 3, "hidden_width": 4, "latent_per_class": 2, "hidden_layers": 2}
CLASSES = 3


def network() -> tuple[FeatureVAE, np.ndarray]:
    vae = build((2, 3), CLASSES, SMALL, seed=0).double().eval()
    features_N_D = np.random.default_rng(0).normal(size=(20, 5))
    vae.anchors_A_D.copy_(torch.from_numpy(np.resize(features_N_D[:4], (len(vae.anchors_A_D), 5))))
    return vae, features_N_D


@pytest.mark.parametrize("sampling", ["independent", "anchored"])
def test_all_classes_in_one_product_give_what_each_by_itself_does(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, features_N_D = network()
    monkeypatch.setattr(noise, "LONG_RUN", 70)
    estimated = partial(estimate_likelihood, vae, [features_N_D], draws=6, generator=5, settings={"sampling": sampling})
    [(one_N_C, class_N)] = estimated()
    for at_once in (2, CLASSES):
        for module in (decoder, anchors):
            monkeypatch.setattr(module, "decoder_outputs", partial(decoder.decoder_outputs, at_once=at_once))
        [(all_N_C, same_N)] = estimated()
        np.testing.assert_allclose(all_N_C, one_N_C, atol=1e-12, rtol=0)
        assert np.array_equal(same_N, class_N)
        monkeypatch.undo()
        monkeypatch.setattr(noise, "LONG_RUN", 70)


def test_a_block_of_rows_is_estimated_without_reading_a_number() -> None:
    vae, features_N_D = network()
    vae = vae.to(ELSEWHERE)
    noise_T_Z = torch.zeros(6, vae.num_latents, dtype=torch.float64, device=ELSEWHERE)
    estimator = likelihood._Estimator(encoder_of(vae), decoder.fold(vae), noise_T_Z, noise_T_Z, None)
    block = slice(0, 20), torch.from_numpy(features_N_D).to(ELSEWHERE)
    with Crossings() as counted:
        _, values_N_C, class_N = likelihood._estimate_block(estimator, block, settings=settings_of(None))
    assert (values_N_C.shape, class_N.shape) == ((20, CLASSES), (20,))
    assert (counted.reads, counted.copies) == (0, 0)


def test_whether_features_are_finite_is_asked_once_a_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_ELSEWHERE", 1)
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", 6)
    vae, features_N_D = network()
    with Crossings() as counted:
        coming = blocks.blocks_of(features_N_D, vae.to(ELSEWHERE), 1, "here")
        assert [next(coming)[0].start for _ in range(3)] == [0, 6, 12]
        with pytest.raises(NotImplementedError):  # there are no numbers to ask
            next(coming)
    assert counted.reads == 0


def test_on_a_cpu_the_first_block_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", 6)
    vae, features_N_D = network()
    features_N_D[[1, 13], 0] = np.nan
    with pytest.raises(UserError, match=r"^here: the features of rows 1 are not finite"):
        list(blocks.blocks_of(features_N_D, vae, 1, "here"))


@pytest.mark.parametrize(("latents", "cpu", "elsewhere"), [(1000, 1024, 2**16), (2**22, 1, 64), (2**29, 1, 1)])
def test_a_gpu_is_given_up_to_65536_rows(latents: int, cpu: int, elsewhere: int) -> None:
    assert blocks.block_rows(latents, torch.device("cpu")) == cpu
    assert blocks.block_rows(latents, torch.device("cuda")) == elsewhere
