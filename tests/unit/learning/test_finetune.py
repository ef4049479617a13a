"""Fine-tuning: where it begins, what learns and what does not, and that the same inputs give the same bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.small_backbones import small_backbone
from vabal.errors import UserError
from vabal.learning import backbones, classifier, finetune, probe
from vabal.learning.embeddings import Embedder
from vabal.learning.finetune import LabelledImages, Recipe
from vabal.learning.network import FineTuned, read_weights
from vabal.settings.learners import BackboneSettings, ClassifierSettings, FineTuneSettings

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return small_backbone(tmp_path_factory.mktemp("backbone"))


def labelled(samples: int = 24, seed: int = 0) -> LabelledImages:
    """Grey images of which a half, another for each class, is dark."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (samples, 16, 16, 1), dtype=np.uint8)
    labels = np.arange(samples) % 3
    images[labels == 1, :8] //= 3
    images[labels == 2, :, :8] //= 3
    return LabelledImages(images, labels, [f"s{number:03d}" for number in range(samples)])


def recipe(backbone: dict[str, object], sizes: list[int] | None = None, **chosen: Any) -> Recipe:
    """Four steps, unless `chosen`, settings of the section `finetune` or of `classifier`, say otherwise."""
    own = {name: value for name, value in chosen.items() if name in FineTuneSettings.model_fields}
    others = {name: value for name, value in chosen.items() if name not in own}
    return Recipe(
        ClassifierSettings.model_validate({"learner": "finetune", "penalty": 1.0, "layers": "stages", **others}),
        FineTuneSettings.model_validate({"epochs": 1, "min_steps": 4, "batch_size": 12, **own}),
        BackboneSettings.model_validate(backbone | ({"sizes": sizes} if sizes else {})),
        CPU,
    )


def trained(known: LabelledImages, chosen: Recipe, seed: int = 0) -> FineTuned:
    network, training = finetune.fit(known, 3, chosen, seed=seed)
    list(training)
    return network


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}


def test_the_head_begins_as_the_probes_on_the_frozen_backbone(backbone: dict[str, object], tmp_path: Path) -> None:
    known, chosen = labelled(), recipe(backbone)
    network, _ = finetune.fit(known, 3, chosen, seed=0)
    embedder = Embedder(chosen.backbone, CPU, tmp_path)
    embeddings = known.embedded(embedder.embed(known.images_L_H_W_K))
    head, training = probe.fit(embeddings, embedder.embedded, 3, chosen.classifier, seed=0)
    list(training)
    images_N_K_H_W = torch.from_numpy(known.images_L_H_W_K).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features_N_D, logits_N_C = network.eval().stages(images_N_K_H_W)
        expected = head.stages(torch.from_numpy(embeddings.embeddings_L_E))
    assert network.feature_dims == head.feature_dims
    assert torch.allclose(features_N_D, expected[0], atol=1e-3)
    assert torch.allclose(logits_N_C, expected[1], atol=1e-3)


def test_all_weights_learn_and_the_first_layers_the_least(backbone: dict[str, object]) -> None:
    def moved(first_layers: float) -> dict[str, float]:
        chosen = recipe(backbone, layers="all", first_layers=first_layers, weight_decay=0.0)
        network, training = finetune.fit(labelled(), 3, chosen, seed=0)
        before = bits(network)
        list(training)
        return {name: float((values - before[name]).abs().max()) for name, values in network.named_parameters()}

    slowly, evenly = moved(0.01), moved(1.0)
    assert min(slowly.values()) > 0
    stem, end, head = "trunk.body.conv_stem.weight", "trunk.body.conv_head.weight", "head.classifier.weight"
    assert 0.003 < slowly[stem] / evenly[stem] < 0.03
    assert 0.25 < slowly[end] / evenly[end] < 4
    assert 0.25 < slowly[head] / evenly[head] < 4


@pytest.mark.parametrize("batch_norm", ["frozen", "adapted"])
def test_batch_norm_keeps_the_pretrained_statistics_unless_it_is_to_adapt(
    batch_norm: str, backbone: dict[str, object]
) -> None:
    network, training = finetune.fit(labelled(), 3, recipe(backbone, batch_norm=batch_norm), seed=0)
    before = bits(network)
    list(training)
    kept = [
        torch.equal(values, before[name]) for name, values in network.state_dict().items() if "running_mean" in name
    ]
    assert all(kept) if batch_norm == "frozen" else not any(kept)
    assert not any(module.training for module in network.modules())


def test_the_same_inputs_give_the_same_bits_and_leave_the_global_generator_alone(backbone: dict[str, object]) -> None:
    known = labelled()
    chosen = recipe(backbone, augmentation=["crop", "mirror", "turn", "jitter", "erase"])
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = bits(trained(known, chosen))
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(12)
    again, other = bits(trained(known, chosen)), bits(trained(known, chosen, seed=1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["head.classifier.weight"], other["head.classifier.weight"])


def test_the_size_is_the_one_at_which_a_probe_does_best(
    backbone: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose, losses = probe.choose, {32: 2.0, 48: 1.0}

    def judged(known: Any, embedded: Any, *others: Any, **named: Any) -> probe.Choice:
        from dataclasses import replace

        return replace(choose(known, embedded, *others, **named), loss=losses[embedded.layers[0].size])

    monkeypatch.setattr(probe, "choose", judged)
    network, _ = finetune.fit(labelled(), 3, recipe(backbone, sizes=[32, 48]), seed=0)
    assert network.size == 48
    assert network.config["backbone"]["sizes"] == [48]


def test_a_small_pool_is_seen_more_often() -> None:
    settings = FineTuneSettings(epochs=5, min_steps=100, batch_size=32)
    assert [finetune.epochs_of(samples, settings) for samples in (20, 64, 320, 10_000)] == [100, 50, 10, 5]


def test_rates_rise_and_fall(backbone: dict[str, object]) -> None:
    _, training = finetune.fit(labelled(), 3, recipe(backbone, min_steps=40, batch_size=24), seed=0)
    rates = [metric.value for metric in training if metric.name == "train/learning_rate"]
    assert len(rates) == 40
    peak = int(np.argmax(rates))
    assert 2 <= peak <= 5
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[peak] == pytest.approx(3e-4, rel=0.05)


def test_held_out_predictions_are_of_networks_that_had_not_seen_the_sample(backbone: dict[str, object]) -> None:
    known, chosen = labelled(), recipe(backbone)
    first = trained(known, chosen)
    fitted = finetune.cross_fit(first, known, chosen, folds=3, seed=0)
    labels = known.labels_L.copy()
    held = fitted.fold_N == 0
    images = known.images_L_H_W_K.copy()
    images[held] = 255 - images[held]
    changed = LabelledImages(images, labels, known.sample_ids)
    other = finetune.cross_fit(first, changed, chosen, folds=3, seed=0)
    assert np.bincount(fitted.fold_N).tolist() == [8, 8, 8]
    assert np.allclose(fitted.probabilities_N_C.sum(axis=1), 1, atol=1e-5)
    assert not np.allclose(fitted.probabilities_N_C[held], other.probabilities_N_C[held])  # other pictures are asked
    again = finetune.cross_fit(first, known, chosen, folds=3, seed=0)
    assert np.array_equal(fitted.probabilities_N_C, again.probabilities_N_C)
    assert (fitted.predicted_N == known.labels_L).mean() > 0.7


def test_the_temperature_is_fitted_to_held_out_samples(backbone: dict[str, object]) -> None:
    draw = np.random.default_rng(0)
    told_nothing = LabelledImages(
        draw.integers(0, 256, (24, 16, 16, 1), dtype=np.uint8), np.arange(24) % 3, [f"s{n:02d}" for n in range(24)]
    )
    plain = trained(told_nothing, recipe(backbone))
    cooled, training = finetune.fit(told_nothing, 3, recipe(backbone, temperature_folds=2), seed=0)
    (temperature,) = [metric.value for metric in training if metric.name == "train/temperature"]
    assert temperature > 1.5  # labels at random: nobody should be sure
    before, after = plain.head.classifier.weight, cooled.head.classifier.weight
    assert torch.allclose(before / temperature, after, rtol=1e-4, atol=1e-7)


def test_a_saved_network_is_the_same_when_it_is_back_with_its_trunk_or_an_exported_one(
    backbone: dict[str, object], tmp_path: Path
) -> None:
    known, chosen = labelled(), recipe(backbone)
    network = trained(known, chosen)
    classifier.save(network, tmp_path / "weights.safetensors")
    back = classifier.load(tmp_path / "weights.safetensors")
    expected = classifier.predict(network, [known.images_L_H_W_K])
    assert np.array_equal(classifier.predict(back, [known.images_L_H_W_K]), expected)
    (program,) = Embedder(chosen.backbone, CPU, tmp_path / "embeddings").programs()
    module = torch.export.load(program).module()
    served = read_weights(tmp_path / "weights.safetensors", lambda _: module)
    assert np.allclose(classifier.predict(served, [known.images_L_H_W_K]), expected, atol=1e-5)
    with pytest.raises(ValueError, match="a trunk that its weights do not bring along"):
        read_weights(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_users_own_resnet_learns(library: str, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    torch.save(resnet18(num_classes=7).state_dict(), tmp_path / "own.pth")
    own: dict[str, object] = {"name": f"{library}:resnet18", "weights": f"file:{tmp_path}/own.pth", "sizes": [32]}
    known = labelled(6)
    network = trained(known, recipe(own, min_steps=1))
    classifier.save(network, tmp_path / "weights.safetensors")
    assert not [name for name in network.state_dict() if ".fc." in name]
    assert classifier.predict(classifier.load(tmp_path / "weights.safetensors"), [known.images_L_H_W_K]).shape == (6, 3)


def test_classes_weigh_alike_while_learning_unless_told_otherwise(backbone: dict[str, object]) -> None:
    known = labelled(20)
    few = known.rows(np.isin(np.arange(20), [0, 3, 6, 9, 12, 15, 18, 1, 2]))
    heads = [bits(trained(few, recipe(backbone, imbalance=kind)))["head.classifier.bias"] for kind in ("none", "auto")]
    balanced = bits(trained(few, recipe(backbone, imbalance="balanced")))["head.classifier.bias"]
    assert torch.equal(heads[1], balanced)
    assert not torch.equal(heads[0], balanced)


def test_no_samples_and_a_training_that_runs_away_are_refused_in_one_line(backbone: dict[str, object]) -> None:
    known = labelled()
    with pytest.raises(UserError, match="no labelled sample"):
        finetune.fit(known.rows(np.zeros(24, dtype=bool)), 3, recipe(backbone), seed=0)
    with pytest.raises(UserError, match="pixels are a layer of a probe alone"):
        finetune.fit(known, 3, recipe(backbone, layers="pixels"), seed=0)
    with pytest.raises(UserError, match=r"lower finetune.learning_rate \(now 1e\+30\)"):
        trained(known, recipe(backbone, learning_rate=1e30))
    with pytest.raises(UserError, match="at least two labelled samples"):
        first, _ = finetune.fit(known, 3, recipe(backbone), seed=0)
        finetune.cross_fit(first, known.rows(np.arange(24) < 1), recipe(backbone), folds=3, seed=0)


def test_one_sample_is_enough_to_go_on(backbone: dict[str, object]) -> None:
    network = trained(labelled().rows(np.arange(24) == 4), recipe(backbone, batch_norm="adapted"))
    assert classifier.predict(network, [labelled().images_L_H_W_K]).argmax(axis=1).tolist() == [1] * 24


def test_an_untrained_trunk_is_of_a_library_that_is_known() -> None:
    with pytest.raises(ValueError, match="timm:NAME or torchvision:NAME"):
        backbones.untrained({"name": "elsewhere:resnet18"})
