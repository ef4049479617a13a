from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support.small_networks import SHAPE
from vabal.learning import classifier
from vabal.learning.loss_prediction import LossPredictor, objective, predict, ranking_loss
from vabal.learning.network import ResNetClassifier
from vabal.settings.learners import ClassifierSettings

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = {"network": "resnet10", **SHAPE}


def images_of(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


# -- the ranking loss ---------------------------------------------------------------------------------------------


def test_the_ranking_loss_of_two_pairs_by_hand() -> None:
    predicted = torch.tensor([1.0, 0.0, 3.0, 5.0])
    loss = torch.tensor([2.0, 1.0, 1.0, 4.0])
    # Pair 0, 2: the first loss is larger, but 2 smaller predicted: 1 + 2. Pair 1, 3: right by 5, beyond the margin: 0.
    assert float(ranking_loss(predicted, loss)) == pytest.approx(1.5)
    assert float(ranking_loss(predicted, loss, margin=6.0)) == pytest.approx((6 + 2 + 6 - 5) / 2)


def test_equal_losses_count_as_the_first_not_being_larger() -> None:
    assert float(ranking_loss(torch.tensor([0.25, 0.0]), torch.tensor([1.0, 1.0]))) == pytest.approx(1.25)


def test_the_last_of_an_odd_batch_is_left_out_and_a_single_sample_gives_zero() -> None:
    predicted = torch.tensor([1.0, 0.0, 100.0], requires_grad=True)
    value = ranking_loss(predicted, torch.tensor([0.0, 1.0, 50.0]))
    value.backward()
    assert value.item() == pytest.approx(2.0)
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [1.0, -1.0, 0.0]
    single = ranking_loss(torch.tensor([3.0], requires_grad=True), torch.tensor([1.0]))
    single.backward()
    assert single.item() == 0.0


@pytest.mark.parametrize("count", [2, 7, 16])
def test_the_ranking_loss_is_that_of_a_loop_over_pairs(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    predicted, loss = torch.randn(2, count, generator=generator)
    half = count // 2
    terms = [
        max(0.0, 1.0 - (1 if loss[i] > loss[i + half] else -1) * float(predicted[i] - predicted[i + half]))
        for i in range(half)
    ]
    assert float(ranking_loss(predicted, loss)) == pytest.approx(sum(terms) / half)


# -- the module ---------------------------------------------------------------------------------------------------


def test_the_classifier_inside_has_the_classifiers_first_weights_and_nothing_is_drawn_from_torchs_generator() -> None:
    before = torch.get_rng_state()
    plain = ResNetClassifier.from_config(CONFIG, seed=4).state_dict()
    one, again, other = (LossPredictor.from_config(CONFIG, seed=seed).state_dict() for seed in (4, 4, 5))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], plain[name]) for name in plain)
    assert set(one) - set(plain) == {
        f"{layer}.{kind}"
        for layer in ("stage_heads.0", "stage_heads.1", "stage_heads.2", "stage_heads.3", "loss_head")
        for kind in ("weight", "bias")
    }
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["loss_head.weight"], other["loss_head.weight"])
    assert 0 < one["loss_head.weight"].abs().max() <= 512**-0.5


def test_the_predicted_loss_is_pooling_linear_relu_a_stage_and_a_linear_of_all_four() -> None:
    network = LossPredictor.from_config(CONFIG, seed=1).eval()
    images = images_of(5)
    weights = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    with torch.inference_mode():
        maps, hidden = network.before_stages(images), []
        for index, stage in enumerate(network.residual_stages):
            maps = stage(maps)
            pooled = maps.double().mean(dim=(2, 3)).numpy()
            hidden.append(
                np.maximum(pooled @ weights[f"stage_heads.{index}.weight"].T + weights[f"stage_heads.{index}.bias"], 0)
            )
        found = predict(network, images)
    expected = np.concatenate(hidden, axis=1) @ weights["loss_head.weight"][0] + weights["loss_head.bias"][0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_network_that_predicts_no_losses_is_refused() -> None:
    plain = ResNetClassifier.from_config(CONFIG)
    with pytest.raises(TypeError, match="expected a LossPredictor, found ResNetClassifier"):
        predict(plain, images_of(2))
    with pytest.raises(TypeError, match="expected a LossPredictor"):
        objective(plain, images_of(2), torch.tensor([0, 1]), 0.0)


# -- training -----------------------------------------------------------------------------------------------------


def gradients(over: float | None) -> dict[str, torch.Tensor]:
    """Of the objective at a share of the epochs; of the cross entropy alone for None."""
    network = LossPredictor.from_config(CONFIG, seed=2).train()
    images, targets = images_of(9), torch.arange(9) % 3
    if over is None:
        loss = functional.cross_entropy(network(images), targets)
    else:
        loss, _ = objective(network, images, targets, over)
    loss.backward()
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def test_the_modules_gradient_stops_at_the_features_after_three_fifths_of_the_epochs() -> None:
    alone, early, late = gradients(None), gradients(119 / 200), gradients(120 / 200)
    backbone = [name for name in alone if not name.startswith(("stage_heads", "loss_head"))]
    assert len(backbone) > 20
    assert all(torch.allclose(late[name], alone[name], rtol=1e-4, atol=1e-7) for name in backbone)
    assert not torch.allclose(early["stem.0.weight"], alone["stem.0.weight"], rtol=1e-2)
    assert "loss_head.weight" in late
    assert late["loss_head.weight"].abs().max() > 0


def test_training_tells_the_objective_what_share_of_the_epochs_is_over() -> None:
    seen = []

    def recording(network: Any, images: Any, targets: Any, over: float) -> Any:
        seen.append(over)
        return objective(network, images, targets, over)

    settings = ClassifierSettings(network="resnet10", width=4, epochs=5, batch_size=8)
    network = LossPredictor.from_config(CONFIG, seed=0)
    pixels = images_of(16).permute(0, 2, 3, 1).numpy()
    list(classifier.fit(network, pixels, np.arange(16) % 3, settings, seed=0, objective=recording))
    assert seen == pytest.approx([over for over in (0, 0.2, 0.4, 0.6, 0.8) for _ in range(2)])


def test_the_module_learns_which_samples_cannot_be_learnt() -> None:
    generator = np.random.default_rng(0)
    dark = np.arange(160) % 2 == 0
    pixels = generator.integers(100, size=(160, 8, 8, 1)).astype(np.uint8)
    pixels[~dark] += 150
    labels = np.where(dark, generator.integers(2, size=160), 2)  # of dark images, two at random
    settings = ClassifierSettings(network="resnet10", width=4, epochs=12, batch_size=16, learning_rate=0.02)
    network = LossPredictor.from_config(CONFIG, seed=0)
    training = classifier.fit(network, pixels[:80], labels[:80], settings, seed=0, objective=objective)
    assert all(np.isfinite(metric.value) for metric in training)
    with torch.inference_mode():
        predicted = predict(network.eval(), torch.from_numpy(pixels[80:]).permute(0, 3, 1, 2)).numpy()
    assert (predicted[dark[80:]].min()) > predicted[~dark[80:]].max()
