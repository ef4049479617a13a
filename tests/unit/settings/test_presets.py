"""The presets of others, held against what the paper's text and the authors' code say (docs/method.md)."""

import re

import pytest
import torch
from torch import nn

from tests.rules.repository import ROOT
from vabal.settings.params import parse
from vabal.settings.presets import PRESETS
from vabal.vae import FeatureVAE, build

DIMS, CLASSES = (64, 128, 256, 512), 10


def network(preset: str) -> FeatureVAE:
    return build(DIMS, CLASSES, PRESETS[preset]["vae"], seed=0)


def widths(layers: nn.Module) -> list[int]:
    return [layer.out_features for layer in layers.modules() if isinstance(layer, nn.Linear)]


def test_the_paper_s_encoder_has_four_layers_of_which_the_last_gives_the_embeddings() -> None:
    vae = network("paper")
    assert [*widths(vae.encoder), *widths(vae.mean)] == [128, 128, 128, 10 * CLASSES]
    assert [*widths(vae.decoder), *widths(vae.reconstruction)] == [128, 128, 128, 512]


@torch.no_grad()
def test_the_paper_s_loss_sums_over_the_dimensions_as_equation_9_does() -> None:
    vae = network("paper").double().eval()
    features_N_D = torch.randn(5, sum(DIMS), dtype=torch.float64)
    classes_N, noise_N_Z = torch.arange(5), torch.randn(5, 100, dtype=torch.float64)
    found = vae.loss(features_N_D, classes_N, noise_N_Z)
    inputs_N_I = vae.inputs(features_N_D)
    mean_N_Z, log_var_N_Z = vae.encode(inputs_N_I)
    latent_N_Z = mean_N_Z + (0.5 * log_var_N_Z).exp() * noise_N_Z
    error_N = (vae.decode(latent_N_Z) - inputs_N_I).square().sum(dim=1)
    kl_N = 0.5 * (mean_N_Z**2 + log_var_N_Z.exp() - 1 - log_var_N_Z).sum(dim=1)
    energy_N_C = latent_N_Z.view(5, CLASSES, 10).square().sum(dim=2)
    class_N = -torch.log_softmax(-energy_N_C, dim=1)[torch.arange(5), classes_N]
    assert float(found.total) == pytest.approx(float((error_N + kl_N + 0.005 * class_N).mean()))


def test_the_published_code_does_not_shuffle_and_averages() -> None:
    vae = parse({"method": {"preset": "published_code"}}).vae
    assert (vae.shuffle, vae.loss_reduction, vae.hidden_layers) == (False, "mean", 3)
    assert parse({"method": {"preset": "paper"}}).vae.shuffle


@pytest.mark.parametrize(
    ("preset", "first", "last"),
    [
        ("paper", "## The text, Section 3", "## The text, Section 4"),
        ("published_code", "## The authors' code", "What of the code"),
    ],
)
def test_the_page_about_the_method_names_every_setting_of_a_preset(preset: str, first: str, last: str) -> None:
    page = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    part = page[page.index(first) : page.index(last)]
    named = {name for words in re.findall(r"`([a-z_.]+)`", part) for name in words.split(".")}
    assert {key for values in PRESETS[preset].values() for key in values} <= named
