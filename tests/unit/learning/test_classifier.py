import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits

from tests.support.small_networks import random_images
from vabal.errors import UserError
from vabal.files import file_sha256
from vabal.learning.classifier import build, cross_fit, fit, load, predict, read_about, save
from vabal.learning.metrics import Metric
from vabal.learning.network import ResNetClassifier
from vabal.learning.recipe import augment, batch_rows, channel_statistics, stratified_folds
from vabal.settings.learners import ClassifierSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**changes: Any) -> ClassifierSettings:
    return ClassifierSettings(**{"width": 4, "epochs": 3, "batch_size": 16, **changes})


def network_for(settings: ClassifierSettings, classes: int = 3, seed: int = 0, **changes: Any) -> ResNetClassifier:
    return build(
        settings,
        **{
            "num_classes": classes,
            "image_size": 8,
            "channels": 1,
            "mean": (100.0,),
            "std": (60.0,),
            "seed": seed,
            **changes,
        },
    )


def run(
    network: ResNetClassifier, images: np.ndarray, labels: Any, settings: ClassifierSettings, seed: int = 0
) -> list[Metric]:
    return list(fit(network, images, np.asarray(labels), settings, seed=seed))


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))  # as they come, they are sorted by writer
    return (data.images * 255 / 16).astype(np.uint8)[order][..., None], data.target[order]


def test_real_digits_are_learnt(digits: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = digits
    settings = recipe(width=8, epochs=12, batch_size=32, learning_rate=0.05)
    mean, std = channel_statistics(images[:400])
    network = network_for(settings, classes=10, mean=mean, std=std)
    metrics = run(network, images[:400], labels[:400], settings)
    assert metrics[-2].value > 0.95
    probabilities = predict(network, [images[400:700], images[700:900]])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    assert (probabilities.argmax(1) == labels[400:900]).mean() > 0.88
    assert not network.training


def test_each_epoch_yields_loss_accuracy_and_rate_and_the_rate_drops_after_four_fifths() -> None:
    settings = recipe(epochs=10, learning_rate=0.01)
    metrics = run(network_for(settings), random_images(20), [0, 1] * 10, settings)
    assert [metric.name for metric in metrics[:3]] == ["train/loss", "train/accuracy", "train/learning_rate"]
    assert [metric.step for metric in metrics[::3]] == list(range(1, 11))
    assert [metric.value for metric in metrics[2::3]] == pytest.approx([0.01] * 8 + [0.001] * 2)
    assert all(0 <= metric.value <= 1 for metric in metrics[1::3])


def test_decay_at_one_never_drops_the_rate() -> None:
    settings = recipe(epochs=2, decay_at=1.0)
    assert {metric.value for metric in run(network_for(settings), random_images(4), [0, 1, 0, 1], settings)[2::3]} == {
        0.1
    }


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_same_seed_gives_the_same_bits_whatever_the_global_generator_holds(dropout: float) -> None:
    settings = recipe(crop_padding=1, horizontal_flip=True)
    states = []
    for seed, noise in ((5, 1), (5, 2), (6, 1)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        network = network_for(settings, dropout=dropout)
        metrics = run(network, random_images(40), np.arange(40) % 3, settings, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        states.append((metrics, network.state_dict()))
    (one, weights), (again, weights_again), (other, _) = states
    assert one == again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert one != other


def test_the_loss_of_the_first_step_is_the_cross_entropy_by_hand() -> None:
    settings = recipe(epochs=1, batch_size=8)
    images, labels = random_images(8), np.arange(8) % 3
    network = network_for(settings)
    with torch.no_grad():
        logits = network_for(settings).train()(torch.from_numpy(images).permute(0, 3, 1, 2)).double()
    expected = -torch.log_softmax(logits, 1)[torch.arange(8), torch.from_numpy(labels)].mean()
    loss, accuracy, _ = run(network, images, labels, settings)
    assert loss.value == pytest.approx(float(expected), rel=1e-5)
    assert accuracy.value == pytest.approx(float((logits.argmax(1).numpy() == labels).mean()))


@pytest.mark.parametrize("count", [1, 2, 3, 15, 16, 17, 33])
def test_any_number_of_samples_can_be_trained_on(count: int) -> None:
    settings = recipe()
    network = network_for(settings)
    metrics = run(network, random_images(count), np.arange(count) % 3, settings)
    assert all(np.isfinite(metric.value) for metric in metrics)
    assert np.isfinite(predict(network, [random_images(5)])).all()


def test_the_batches_of_an_epoch_are_of_nearly_equal_size_and_no_sample_is_lost() -> None:
    assert [len(rows) for rows in batch_rows(torch.arange(32), 16)] == [16, 16]
    assert [len(rows) for rows in batch_rows(torch.arange(33), 16)] == [11, 11, 11]
    assert [len(rows) for rows in batch_rows(torch.arange(50), 16)] == [13, 13, 12, 12]  # not 16, 16, 16, 2
    assert [len(rows) for rows in batch_rows(torch.arange(3), 2)] == [3]
    assert [len(rows) for rows in batch_rows(torch.arange(1), 16)] == [1]
    assert [len(rows) for rows in batch_rows(torch.arange(3), 1)] == [1, 1, 1]
    assert torch.equal(torch.cat(batch_rows(torch.arange(33), 16)), torch.arange(33))


def test_a_class_without_a_labelled_sample_is_carried_and_seldom_predicted() -> None:
    settings = recipe(epochs=5)
    network = network_for(settings, classes=4)
    images = random_images(30)
    run(network, images, np.arange(30) % 2, settings)
    assert set(predict(network, [images]).argmax(1)) <= {0, 1}


def test_training_that_diverges_names_the_epoch_and_the_setting_to_mend() -> None:
    settings = recipe(epochs=30, learning_rate=1e30)
    with pytest.raises(UserError, match=r"diverged in epoch \d+ of 30: lower classifier.learning_rate \(now 1e\+30\)"):
        run(network_for(settings), random_images(20), np.arange(20) % 3, settings)


def test_weights_that_overflow_in_the_very_last_step_are_found() -> None:
    settings = recipe(epochs=1, batch_size=128, learning_rate=1e38, weight_decay=1e30)
    with pytest.raises(UserError, match="diverged in epoch 1 of 1"):
        run(network_for(settings), random_images(20), np.arange(20) % 3, settings)


def test_an_empty_labelled_pool_is_a_users_error() -> None:
    settings = recipe()
    with pytest.raises(UserError, match="no labelled sample to train on"):
        run(network_for(settings), random_images(0), [], settings)


def test_arrays_that_do_not_fit_are_refused() -> None:
    settings = recipe()
    network = network_for(settings)
    with pytest.raises(ValueError, match="outside the 3 classes"):
        run(network, random_images(2), [0, 3], settings)
    with pytest.raises(ValueError, match="expected 2 labels"):
        run(network, random_images(2), [0], settings)
    with pytest.raises(ValueError, match="expected uint8 images"):
        run(network, random_images(2).astype(np.float32), [0, 1], settings)


def test_the_images_are_not_changed_by_training() -> None:
    images = random_images(20)
    before = images.copy()
    settings = recipe(crop_padding=2, horizontal_flip=True)
    run(network_for(settings), images, np.arange(20) % 3, settings)
    assert np.array_equal(images, before)


def test_crops_are_windows_of_the_image_padded_with_zeros_and_flips_mirror_columns() -> None:
    images = torch.from_numpy(random_images(64, channels=3, size=5)).clamp(min=1)
    generator = torch.Generator().manual_seed(0)
    cut = augment(images, recipe(crop_padding=2), generator)
    assert cut.shape == images.shape
    seen = set()
    for image, crop in zip(images, cut, strict=True):
        padded = torch.zeros(9, 9, 3, dtype=torch.uint8)
        padded[2:7, 2:7] = image
        windows = {(y, x) for y in range(5) for x in range(5) if torch.equal(padded[y : y + 5, x : x + 5], crop)}
        assert len(windows) == 1
        seen |= windows
    assert len(seen) > 15  # of 25
    mirrored = augment(images, recipe(horizontal_flip=True), generator)
    flips = [torch.equal(image.flip(1), other) for image, other in zip(images, mirrored, strict=True)]
    kept = [torch.equal(image, other) for image, other in zip(images, mirrored, strict=True)]
    assert all(flip != keep for flip, keep in zip(flips, kept, strict=True))
    assert 15 < sum(flips) < 49


def test_without_options_images_are_not_augmented() -> None:
    images = torch.from_numpy(random_images(4))
    assert augment(images, recipe(), torch.Generator()) is images


def test_statistics_are_those_of_all_pixels_of_a_channel() -> None:
    images = random_images(50, channels=3)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(images.reshape(-1, 3).astype(float).mean(0).tolist())
    assert std == pytest.approx(images.reshape(-1, 3).astype(float).std(0).tolist())
    assert channel_statistics(images[::-1]) == (mean, std)


def test_a_channel_of_one_value_has_a_deviation_of_one_grey_level() -> None:
    assert channel_statistics(np.full((3, 4, 4, 1), 7, dtype=np.uint8)) == ((7.0,), (1.0,))
    with pytest.raises(ValueError, match="no images"):
        channel_statistics(random_images(0))


def test_predictions_do_not_depend_on_the_batches() -> None:
    settings = recipe()
    network = network_for(settings)
    images = random_images(30)
    run(network, images, np.arange(30) % 3, settings)
    whole = predict(network, [images])
    np.testing.assert_allclose(predict(network, (images[n : n + 7] for n in range(0, 30, 7))), whole, atol=1e-6)
    assert predict(network, []).shape == (0, 3)


def test_a_prediction_that_is_not_finite_tells_the_row() -> None:
    network = network_for(recipe())
    with torch.no_grad():
        network.classifier.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"not finite in rows \[0, 1\]"):
        predict(network, [random_images(2)])


def test_saved_weights_come_back_and_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    settings = recipe(epochs=1)
    network = network_for(settings, seed=1)
    run(network, random_images(20), np.arange(20) % 3, settings)
    digest = save(network, tmp_path / "a.safetensors", {"classes": ["ä", "b", "c"], "round": 3})
    assert digest == file_sha256(tmp_path / "a.safetensors")
    assert digest == save(network, tmp_path / "b.safetensors", {"round": 3, "classes": ["ä", "b", "c"]})
    again = load(tmp_path / "a.safetensors")
    assert read_about(tmp_path / "a.safetensors") == {"classes": ["ä", "b", "c"], "round": 3}
    assert np.array_equal(predict(again, [random_images(9)]), predict(network, [random_images(9)]))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:  # the format's own reader agrees
        assert set(file.keys()) == set(network.state_dict())


def test_missing_or_damaged_weights_are_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for reader in (load, read_about):
        with pytest.raises(UserError, match=r"w\.safetensors"):
            reader(path)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    for reader in (load, read_about):
        with pytest.raises(UserError, match=r"w\.safetensors.*train") as caught:
            reader(path)
        assert "\n" not in str(caught.value)


def test_folds_are_even_within_classes_and_overall_and_do_not_depend_on_the_order() -> None:
    ids = [f"s{n}" for n in range(50)]
    labels = np.array([0] * 30 + [1] * 10 + [2] * 7 + [3] * 2 + [4])
    fold_N = stratified_folds(ids, labels, folds=3, seed=1)
    assert sorted(np.bincount(fold_N)) == [16, 17, 17]
    for label in range(5):
        counts = np.bincount(fold_N[labels == label], minlength=3)
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(50)
    assert np.array_equal(stratified_folds([ids[n] for n in order], labels[order], folds=3, seed=1), fold_N[order])
    assert not np.array_equal(stratified_folds(ids, labels, folds=3, seed=2), fold_N)


def test_folds_need_one_unique_id_for_each_label() -> None:
    with pytest.raises(ValueError, match="unique sample_id"):
        stratified_folds(["a", "a"], np.array([0, 1]), folds=2, seed=0)


def test_cross_fitted_predictions_are_honest_and_do_not_depend_on_the_order() -> None:
    # Labels at random: networks that saw a sample could know its label, those that did not cannot.
    images, labels = random_images(60), np.random.default_rng(1).integers(2, size=60)
    settings = recipe(width=8, epochs=12, learning_rate=0.05)
    ids = [f"s{n:02d}" for n in range(60)]
    network = network_for(settings, classes=2)
    run(network, images, labels, settings)
    memorised = (predict(network, [images]).argmax(1) == labels).mean()
    seen: list[Metric] = []
    result = cross_fit(network.config, images, labels, ids, settings, folds=3, seed=0, report=seen.append)
    assert memorised > 0.9
    assert (result.predicted_N == labels).mean() < 0.75
    assert sorted(set(result.fold_N)) == [0, 1, 2]
    assert np.array_equal(result.probabilities_N_C.argmax(1), result.predicted_N)
    np.testing.assert_allclose(result.probabilities_N_C.sum(1), 1, rtol=1e-5)
    assert len(seen) == 3 * 12 * 3
    assert seen[0].name == "fold0/train/loss"
    order = np.random.default_rng(2).permutation(60)
    again = cross_fit(network.config, images[order], labels[order], [ids[n] for n in order], settings, folds=3, seed=0)
    assert np.array_equal(again.probabilities_N_C, result.probabilities_N_C[order])


def test_cross_fitting_works_with_fewer_samples_than_folds_and_refuses_a_single_one() -> None:
    settings = recipe(epochs=1)
    config = network_for(settings).config
    result = cross_fit(config, random_images(2), np.array([0, 1]), ["a", "b"], settings, folds=5, seed=0)
    assert len(set(result.fold_N)) == 2
    with pytest.raises(UserError, match="at least two labelled samples"):
        cross_fit(config, random_images(1), np.array([0]), ["a"], settings, folds=3, seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_narrow_network_on_large_maps_trains_without_killing_its_process(channels: int) -> None:
    program = f"""
import numpy as np
from vabal.learning import classifier
from vabal.settings.learners import ClassifierSettings
settings = ClassifierSettings(width=8, epochs=1, batch_size=8)
images = np.random.default_rng(0).integers(0, 256, (24, 64, 64, {channels}), dtype=np.uint8)
one = (1.0,) * {channels}
network = classifier.build(settings, num_classes=2, image_size=64, channels={channels}, mean=one, std=one, seed=0)
list(classifier.fit(network, images, np.arange(24) % 2, settings, seed=0))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
