"""Scoring networks of a fine-tuned classifier: each learns from the pretrained weights, and comes back from disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.small_backbones import small_backbone
from vabal.errors import UserError
from vabal.learning import committee, finetune, finetune_committee
from vabal.learning.finetune import LabelledImages, Recipe
from vabal.learning.finetune_committee import FineTunedCommittee
from vabal.learning.needs import Needs
from vabal.learning.network import FineTuned
from vabal.settings.learners import BackboneSettings, ClassifierSettings, FineTuneSettings

pytestmark = pytest.mark.usefixtures("one_thread")
ENSEMBLE, PASSES, AUXILIARY = Needs(members=3), Needs(dropout=0.25, passes=7), Needs(auxiliary_loss="loss_prediction")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    backbone = BackboneSettings.model_validate(small_backbone(tmp_path_factory.mktemp("backbone")))
    settings = ClassifierSettings(learner="finetune", penalty=1.0, layers="stages")
    return Recipe(settings, FineTuneSettings(epochs=1, min_steps=2, batch_size=12), backbone, torch.device("cpu"))


def known() -> LabelledImages:
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), dtype=np.uint8)
    labels = np.arange(24) % 3
    images[labels == 1, :8] //= 3
    images[labels == 2, :, :8] //= 3
    return LabelledImages(images, labels, [f"s{number:03d}" for number in range(24)])


@pytest.fixture(scope="module")
def first(recipe: Recipe) -> FineTuned:
    network, training = finetune.fit(known(), 3, recipe, seed=3)
    list(training)
    return network


def trained(needs: Needs, first: FineTuned, recipe: Recipe) -> FineTunedCommittee:
    trunks = finetune.pretrained_trunks(recipe.backbone)
    built = finetune_committee.build(needs, first, trunks, seed=3)
    names = {metric.name.partition("-")[0].removeprefix("committee/") for metric in built.fit(known(), recipe)}
    assert names == set(built.networks)
    return built


def images_of(count: int) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, (count, 16, 16, 1), dtype=np.uint8)


def test_the_classifier_is_the_first_member_and_the_others_differ_from_it(first: FineTuned, recipe: Recipe) -> None:
    before = {name: values.clone() for name, values in first.state_dict().items()}
    built = trained(ENSEMBLE, first, recipe)
    assert all(torch.equal(values, before[name]) for name, values in first.state_dict().items())
    members = [first, *built.networks.values()]
    weights = [member.head.classifier.weight for member in members]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))
    images = torch.from_numpy(images_of(9)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        posterior = torch.stack([member.eval()(images).softmax(dim=1) for member in members]).mean(dim=0)
    assert np.allclose(built.columns(images_of(9))["predictive_N_C"], posterior, atol=1e-5)


def test_dropout_falls_on_the_features_in_training_and_in_asking(first: FineTuned, recipe: Recipe) -> None:
    built = trained(PASSES, first, recipe)
    (network,) = built.networks.values()
    assert network.config["dropout"] == 0.25
    images = torch.from_numpy(images_of(4)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        network.eval()
        assert torch.equal(network(images), network(images))
        network.train()
        assert not torch.equal(network(images), network(images))
    columns = built.columns(images_of(4))
    assert (columns["votes_N_C"].sum(axis=1) == 7).all()
    entropy = -np.sum(columns["predictive_N_C"] * np.log(columns["predictive_N_C"]), axis=1)
    assert (entropy >= columns["expected_entropy_N"] - 1e-9).all()
    assert (entropy > columns["expected_entropy_N"] + 1e-6).any()  # passes differ


def test_the_module_that_predicts_losses_learns_beside_the_head(first: FineTuned, recipe: Recipe) -> None:
    built = finetune_committee.build(AUXILIARY, first, finetune.pretrained_trunks(recipe.backbone), seed=3)
    (network,) = built.networks.values()
    before: dict[str, Tensor] = {name: values.clone() for name, values in network.named_parameters()}
    list(built.fit(known(), recipe))
    module = [name for name in before if name.startswith("loss_head.")]
    assert module
    assert not all(torch.equal(dict(network.named_parameters())[name], before[name]) for name in module)
    assert built.columns(images_of(5))["predicted_loss_N"].shape == (5,)


@pytest.mark.parametrize("needs", [ENSEMBLE, PASSES, AUXILIARY], ids=["ensemble", "passes", "auxiliary"])
def test_a_saved_committee_says_the_same_when_it_is_back(
    needs: Needs, first: FineTuned, recipe: Recipe, tmp_path: Path
) -> None:
    built = trained(needs, first, recipe)
    built.save(tmp_path)
    back = finetune_committee.load(tmp_path, first)
    expected, found = built.columns(images_of(6)), back.columns(images_of(6))
    assert set(found) == set(committee.column_types(needs))
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
    (tmp_path / "committee.json").unlink()
    with pytest.raises(UserError, match="not a committee's weights"):
        finetune_committee.load(tmp_path, first)
