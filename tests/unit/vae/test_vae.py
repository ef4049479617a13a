import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.reference import ReferenceVAE
from tests.support.crossings import ELSEWHERE, Crossings
from vabal.errors import UserError
from vabal.vae import FeatureVAE, Loss, PoolFeatures, build, fit, kl_divergence, load, save
from vabal.vae.features import resident
from vabal.vae.training import _centres, _Steps

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL: dict[str, Any] = {"head_width": 5, "hidden_width": 6, "latent_per_class": 2, "hidden_layers": 2}
SHORT: dict[str, Any] = {**SMALL, "epochs": 3, "min_steps": 0, "batch_size": 16}
DIMS, CLASSES = (3, 4), 3


def pool(samples: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell the classes apart, and the classes."""
    numbers = np.random.default_rng(seed)
    classes_N = numbers.integers(0, CLASSES, samples)
    features_N_D = numbers.normal(size=(samples, sum(DIMS))).astype(np.float32)
    features_N_D[:, :CLASSES] += 3 * np.eye(CLASSES)[classes_N]
    return features_N_D, classes_N


def trained(settings: dict[str, Any], seed: int = 0, samples: int = 60) -> tuple[FeatureVAE, list[Any]]:
    vae = build(DIMS, CLASSES, settings, seed=1)
    features_N_D, classes_N = pool(samples)
    return vae, list(fit(vae, features_N_D, classes_N, seed=seed))


def weights(vae: FeatureVAE) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in vae.parameters()]


# -- the network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", ["bn_fc_sigmoid", "fc_relu_bn"])
@pytest.mark.parametrize("body", ["relu", "relu_bn"])
def test_every_stage_has_the_shape_that_its_axes_name(heads: str, body: str) -> None:
    vae = FeatureVAE(DIMS, CLASSES, heads=heads, body=body, **SMALL).eval()
    inputs_N_I = vae.inputs(torch.randn(7, 7))
    mean_N_Z, log_var_N_Z = vae.encode(inputs_N_I)
    assert inputs_N_I.shape == (7, 2 * 5)
    assert mean_N_Z.shape == log_var_N_Z.shape == (7, 3 * 2)
    assert vae.decode(mean_N_Z).shape == (7, 2 * 5)
    assert vae.class_energy(mean_N_Z).shape == (7, 3)


def test_the_paper_s_sizes_are_the_defaults() -> None:
    vae = FeatureVAE((64, 128, 256, 512), 10)
    assert (vae.num_inputs, vae.num_latents) == (512, 100)


def test_sigmoid_heads_see_each_stage_in_its_own_batch_norm() -> None:
    vae = FeatureVAE(DIMS, CLASSES, heads="bn_fc_sigmoid", **SMALL)
    features_N_D = torch.randn(50, 7)
    features_N_D[:, 3:] *= 1000
    inputs_N_I = vae.inputs(features_N_D).detach()
    assert inputs_N_I.min() > 0
    assert inputs_N_I.max() < 1
    assert float(inputs_N_I[:, 5:].std()) < 0.4  # the large stage does not saturate


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        ("square", [1 + 4, 9 + 0, 1 + 1]),
        ("absolute", [1 + 2, 3 + 0, 1 + 1]),
        ("sigmoid", [1 / (1 + math.e) + 1 / (1 + math.e**-2), 1 / (1 + math.e**-3) + 0.5, 2 / (1 + math.e**-1)]),
    ],
)
def test_energies_of_equation_7_by_hand(energy: str, expected: list[float]) -> None:
    vae = FeatureVAE(DIMS, CLASSES, energy=energy, **SMALL)
    latent = torch.tensor([[-1.0, 2.0, 3.0, 0.0, 1.0, 1.0]])
    assert vae.class_energy(latent)[0].tolist() == pytest.approx(expected)


def test_masking_zeroes_the_class_s_block_and_leaves_the_latent_as_it_was() -> None:
    vae = FeatureVAE(DIMS, CLASSES, **SMALL)
    latent_N_Z = torch.arange(1.0, 13.0).view(2, 6)
    masked = vae.mask(latent_N_Z, torch.tensor([0, 2]))
    assert masked.tolist() == [[0, 0, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]]
    assert latent_N_Z.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]


def test_the_kl_divergence_of_equation_9_by_hand() -> None:
    mean, log_var = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[0.0, 0.0, math.log(4.0)]])
    assert kl_divergence(mean, log_var)[0].tolist() == pytest.approx([0, 2, 0.5 * (4 - 1 - math.log(4))])


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="hidden_widht"):
        FeatureVAE(DIMS, CLASSES, hidden_widht=3)


def test_a_setting_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="energy"):
        FeatureVAE(DIMS, CLASSES, energy="cube")


def test_features_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="N x 7"):
        FeatureVAE(DIMS, CLASSES, **SMALL).inputs(torch.zeros(2, 8))


def test_building_depends_on_the_seed_alone_and_leaves_the_global_numbers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (build(DIMS, CLASSES, SMALL, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.mean.weight, second.mean.weight)
    assert not torch.equal(first.mean.weight, third.mean.weight)


# -- the loss ---------------------------------------------------------------------------------------------------


def literal_loss(
    vae: FeatureVAE, features: np.ndarray, classes: np.ndarray, noise: np.ndarray
) -> tuple[float, float, float]:
    """Eqs. 8 and 9, sample by sample."""
    net, settings = ReferenceVAE(vae), vae.settings
    parts = np.zeros(3)
    for features_D, label, noise_Z in zip(features, classes, noise, strict=True):
        x = net.inputs(features_D)
        mean, log_var = net.encode(x)
        z = mean + np.exp(0.5 * log_var) * noise_Z
        energies = np.array([net.energy(z, n) for n in range(net.classes)])
        divergence = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var)
        if settings.training_mask:
            z[net.block(label)] = 0
            if settings.kl_blocks == "unmasked":
                divergence[net.block(label)] = 0
        reduce = np.sum if settings.loss_reduction == "sum" else np.mean
        factor = 0.5 if settings.reconstruction_half else 1
        parts += [
            factor * reduce((net.decode(z) - x) ** 2),
            reduce(divergence),
            energies[label] + np.log(np.exp(-energies).sum()),
        ]
    return tuple(parts / len(features))


@pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
@pytest.mark.parametrize("reconstruction_half", [False, True])
@pytest.mark.parametrize("training_mask", [False, True])
@pytest.mark.parametrize("kl_blocks", ["all", "unmasked"])
@pytest.mark.parametrize("energy", ["square", "absolute", "sigmoid"])
def test_the_loss_of_equation_10_is_the_literal_one(
    loss_reduction: str, reconstruction_half: bool, training_mask: bool, kl_blocks: str, energy: str
) -> None:
    options = {
        "loss_reduction": loss_reduction,
        "reconstruction_half": reconstruction_half,
        "training_mask": training_mask,
        "kl_blocks": kl_blocks,
        "energy": energy,
    }
    vae = build(DIMS, CLASSES, {**SMALL, **options, "class_weight": 0.3}, seed=3).double().eval()
    features_N_D, classes_N = pool(5)
    noise_N_Z = np.random.default_rng(1).normal(size=(5, 6))
    loss = vae.loss(torch.tensor(features_N_D).double(), torch.tensor(classes_N), torch.tensor(noise_N_Z))
    reconstruction, kl, classification = literal_loss(vae, features_N_D.astype(float), classes_N, noise_N_Z)
    assert loss.reconstruction.item() == pytest.approx(reconstruction, abs=1e-9)
    assert loss.kl.item() == pytest.approx(kl, abs=1e-9)
    assert loss.classification.item() == pytest.approx(classification, abs=1e-9)
    assert loss.total.item() == pytest.approx(reconstruction + kl + 0.3 * classification, abs=1e-9)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_reconstruction_s_target_moves_the_heads_only_where_its_gradient_is_let_through(
    stop_gradient: bool,
) -> None:
    vae = build(DIMS, CLASSES, {**SMALL, "stop_gradient": stop_gradient}, seed=1)
    with torch.no_grad():  # cuts every other way to the heads
        vae.mean.weight.zero_()
        vae.log_var.weight.zero_()
    features_N_D, classes_N = pool(20)
    vae.loss(torch.tensor(features_N_D), torch.tensor(classes_N), torch.zeros(20, 6)).total.backward()
    moved = any(
        float(parameter.grad.abs().max()) > 0 for parameter in vae.heads.parameters() if parameter.grad is not None
    )
    assert moved is not stop_gradient


# -- training ---------------------------------------------------------------------------------------------------


def test_training_lowers_the_loss_and_teaches_the_vae_the_classifier_s_classes() -> None:
    settings = {**SHORT, "body": "relu", "epochs": 60, "batch_size": 50, "learning_rate": 0.03, "class_weight": 5.0}
    vae, metrics = trained(settings, samples=200)
    by_name = {name: [m.value for m in metrics if m.name == name] for name in {m.name for m in metrics}}
    assert set(by_name) == {"vae/loss", "vae/reconstruction", "vae/kl", "vae/classification", "vae/agreement"}
    assert by_name["vae/loss"][-1] < 0.5 * by_name["vae/loss"][0]
    assert by_name["vae/agreement"][-1] > 0.9
    assert not vae.training


def test_the_same_seed_gives_the_same_bits_and_another_one_others() -> None:
    first, metrics = trained(SHORT)
    second, metrics_again = trained(SHORT)
    third, _ = trained(SHORT, seed=1)
    assert metrics == metrics_again
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))
    assert not torch.equal(first.mean.weight, third.mean.weight)


def test_a_small_pool_gets_more_epochs_until_there_are_enough_steps() -> None:
    _, metrics = trained({**SHORT, "min_steps": 22})  # 60 samples in batches of 16 are 4 steps an epoch
    assert {metric.step for metric in metrics} == set(range(1, 7))


def test_a_large_pool_s_training_ends_with_the_last_step_that_is_wanted() -> None:
    vae, metrics = trained({**SHORT, "max_steps": 6})  # of twelve
    assert {metric.step for metric in metrics} == {1, 2}
    assert int(vae.get_buffer("heads.0.0.num_batches_tracked")) == 6
    assert not vae.training
    assert vae.anchors_A_D.any()


@pytest.mark.parametrize("asked", [{"max_steps": 12}, {"max_steps": 3, "min_steps": 12}])
def test_a_small_pool_s_training_is_not_cut_short_nor_one_below_the_least_steps(asked: dict[str, int]) -> None:
    short, all_of_it = trained({**SHORT, **asked})[0], trained({**SHORT, "max_steps": 0})[0]
    assert all(torch.equal(a, b) for a, b in zip(weights(short), weights(all_of_it), strict=True))


def test_the_learning_rate_of_a_training_that_is_cut_short_drops_at_its_share_of_the_steps() -> None:
    still = {**SHORT, "max_steps": 6, "decay_at": 0.5, "decay_factor": 1e-12}
    until_then, _ = trained({**SHORT, "max_steps": 3, "decay_at": 1.0})
    to_the_end, _ = trained(still)
    for before, after in zip(weights(until_then), weights(to_the_end), strict=True):
        assert torch.allclose(before, after, atol=1e-7)


def test_a_single_sample_left_over_joins_the_last_batch() -> None:
    _, metrics = trained({**SHORT, "epochs": 1}, samples=33)
    assert all(math.isfinite(metric.value) for metric in metrics)


@pytest.mark.parametrize("reset_optimizer", [True, False])
def test_the_learning_rate_drops_at_the_decay(reset_optimizer: bool) -> None:
    still = {**SHORT, "epochs": 4, "decay_at": 0.5, "decay_factor": 1e-12, "reset_optimizer": reset_optimizer}
    halfway, _ = trained({**SHORT, "epochs": 2, "decay_at": 1.0})
    to_the_end, _ = trained(still)
    never, _ = trained({**SHORT, "epochs": 4, "decay_at": 1.0})
    for before, after in zip(weights(halfway), weights(to_the_end), strict=True):
        assert torch.allclose(before, after, atol=1e-7)
    assert not torch.allclose(halfway.mean.weight, never.mean.weight, atol=1e-4)


def test_forgetting_adam_s_moments_at_the_drop_makes_a_difference() -> None:
    kept, _ = trained({**SHORT, "epochs": 4, "decay_at": 0.5})
    forgotten, _ = trained({**SHORT, "epochs": 4, "decay_at": 0.5, "reset_optimizer": True})
    assert not torch.equal(kept.mean.weight, forgotten.mean.weight)


def test_warm_up_epochs_fill_batch_norm_and_learn_nothing() -> None:
    vae = build(DIMS, CLASSES, {**SHORT, "warmup_epochs": 2, "epochs": 1, "learning_rate": 1e-30}, seed=1)
    before = weights(vae)
    list(fit(vae, *pool(), seed=0))
    seen = vae.get_buffer("heads.0.0.num_batches_tracked")
    assert int(seen) == 3 * 4  # two epochs of warm-up and one of training, four steps each
    assert all(torch.allclose(a, b, atol=1e-20) for a, b in zip(before, weights(vae), strict=True))


class Watched:
    """Features that remember in which order they were asked for."""

    def __init__(self, features_N_D: np.ndarray) -> None:
        self.features_N_D, self.asked = features_N_D, list[list[int]]()

    def __len__(self) -> int:
        return len(self.features_N_D)

    def __getitem__(self, positions_B: Any) -> np.ndarray:
        self.asked.append(list(map(int, positions_B)))
        return np.asarray(self.features_N_D[positions_B])


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_come_in_a_random_order_or_in_the_pool_s(shuffle: bool) -> None:
    features_N_D, classes_N = pool(40)
    watched = Watched(features_N_D)
    vae = build(DIMS, CLASSES, {**SHORT, "epochs": 2, "shuffle": shuffle}, seed=1)
    list(fit(vae, watched, classes_N, seed=0))
    epochs = [np.concatenate(watched.asked[start : start + 3]).tolist() for start in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(40))] * 2
    assert (epochs == [list(range(40))] * 2) is not shuffle
    assert (epochs[0] == epochs[1]) is not shuffle


def test_a_pool_that_lies_class_by_class_teaches_the_vae_less_where_it_is_not_shuffled() -> None:
    features_N_D, classes_N = pool(240)
    in_order = np.argsort(classes_N, kind="stable")
    settings = {**SHORT, "body": "relu_bn", "epochs": 20, "training_mask": True, "learning_rate": 0.01}
    agreement = {}
    for shuffle in (True, False):
        vae = build(DIMS, CLASSES, {**settings, "class_weight": 0.3, "shuffle": shuffle}, seed=1)
        list(fit(vae, features_N_D[in_order], classes_N[in_order], seed=0))
        with torch.no_grad():
            mean_N_Z, _ = vae.encode(vae.inputs(torch.from_numpy(features_N_D)))
        agreement[shuffle] = float((vae.class_energy(mean_N_Z).argmin(dim=1).numpy() == classes_N).mean())
    assert agreement[True] > agreement[False] + 0.1, agreement


def test_a_pool_in_files_trains_the_same_network_as_the_array() -> None:
    features_N_D, classes_N = pool()
    asked: list[int] = []

    def reader(shard: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        def read(rows: np.ndarray) -> np.ndarray:
            asked.append(len(rows))
            assert (np.diff(rows) > 0).all()
            return shard.take(rows, axis=0)

        return read

    scattered = np.zeros((100, 7), np.float32)
    scattered[10:100:3] = features_N_D[:30]
    shards = [(reader(scattered), np.arange(10, 100, 3)), (reader(features_N_D[30:]), np.arange(30))]
    first, second = (build(DIMS, CLASSES, SHORT, seed=1) for _ in range(2))
    from_array = list(fit(first, features_N_D, classes_N, seed=0))
    from_files = list(fit(second, PoolFeatures(shards), classes_N, seed=0))
    assert from_array == from_files
    assert max(asked) <= 16  # never more than a batch at once


def test_positions_outside_the_pool_are_refused() -> None:
    features = PoolFeatures([(lambda rows: np.zeros((len(rows), 7)), np.arange(3))])
    with pytest.raises(IndexError, match="0 to 2"):
        features[np.array([3])]


@pytest.mark.filterwarnings("ignore:.*overflow.*")
def test_a_loss_that_is_not_finite_stops_training_and_names_the_step() -> None:
    features_N_D, classes_N = pool()
    features_N_D[7, 2] = np.nan
    vae = build(DIMS, CLASSES, SHORT, seed=1)
    with pytest.raises(UserError, match=r"no longer finite at step \d+ .*learning_rate"):
        list(fit(vae, features_N_D, classes_N, seed=0))


def test_a_pool_of_one_sample_is_refused_in_one_line() -> None:
    features_N_D, classes_N = pool(1)
    with pytest.raises(UserError, match="1 unlabelled samples"):
        fit(build(DIMS, CLASSES, SHORT, seed=1), features_N_D, classes_N, seed=0)


@pytest.mark.parametrize("classes", [[0, 1], [0, 1, 3], [0, 1, -1]])
def test_classes_that_do_not_fit_are_refused_before_training(classes: list[int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        fit(build(DIMS, CLASSES, SHORT, seed=1), pool(3)[0], np.array(classes), seed=0)


def test_read_only_features_are_taken_without_a_warning() -> None:
    features_N_D, classes_N = pool(20)
    features_N_D.flags.writeable = False
    vae = build(DIMS, CLASSES, {**SHORT, "epochs": 1}, seed=1)
    assert len(list(fit(vae, features_N_D, classes_N, seed=0))) == len(Loss._fields)


@pytest.mark.parametrize("device", ["cpu"])
def test_a_trained_network_remembers_typical_samples_of_its_pool(device: str) -> None:
    features_N_D, classes_N = pool(200)
    vae = build(DIMS, CLASSES, {**SHORT, "epochs": 20, "learning_rate": 0.03, "class_weight": 5.0}, seed=1)
    assert not vae.anchors_A_D.any()
    list(fit(vae, features_N_D, classes_N, seed=0, device=device))
    rows = {tuple(row) for row in features_N_D.tolist()}
    anchors = {tuple(row) for row in vae.anchors_A_D.tolist()}
    assert anchors <= rows
    assert len(anchors) > 30
    with torch.no_grad():
        mean_N_Z, mean_A_Z = (vae.encode(vae.inputs(x))[0] for x in (torch.tensor(features_N_D), vae.anchors_A_D))
    apart_N = torch.cdist(mean_N_Z, mean_A_Z).min(dim=1).values
    assert float(apart_N.mean()) < 0.5 * float((mean_N_Z - mean_N_Z.mean(dim=0)).norm(dim=1).mean())


def test_centres_are_where_the_places_are() -> None:
    centre_Z = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    noise = torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places_M_Y = (centre_Z[:, None] + 0.1 * noise).flatten(0, 1)
    found = _centres(places_M_Y, 3, torch.Generator().manual_seed(1))
    expected = places_M_Y.view(3, 50, 2).mean(dim=1)
    assert torch.cdist(expected, found).min(dim=1).values.max() < 1e-12


def test_equal_places_have_equal_centres() -> None:
    assert _centres(torch.ones(4, 2), 3, torch.Generator().manual_seed(0)).tolist() == [[1, 1]] * 3


# -- files ------------------------------------------------------------------------------------------------------


def test_a_saved_network_comes_back_with_the_same_bits(tmp_path: Path) -> None:
    vae, _ = trained({**SHORT, "heads": "fc_relu_bn", "body": "relu_bn", "energy": "absolute"})
    first, second = (save(vae, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    back = load(tmp_path / "a.safetensors")
    features = torch.tensor(pool(5)[0])
    assert first == second
    assert back.settings == vae.settings
    assert not back.training
    assert torch.equal(back.encode(back.inputs(features))[0], vae.encode(vae.inputs(features))[0])


def test_a_file_without_anchors_is_read_and_has_none(tmp_path: Path) -> None:
    vae, _ = trained(SHORT)
    path = tmp_path / "vae.safetensors"
    save(vae, path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys() if name != "anchors_A_D"}  # noqa: SIM118
    save_file(weights, path, metadata=about)
    back = load(path)
    assert vae.anchors_A_D.any()
    assert not back.anchors_A_D.any()
    assert torch.equal(back.mean.weight, vae.mean.weight)


def test_a_network_in_float64_comes_back_in_float64(tmp_path: Path) -> None:
    save(FeatureVAE(DIMS, CLASSES, **SMALL).double(), tmp_path / "vae.safetensors")
    assert load(tmp_path / "vae.safetensors").mean.weight.dtype == torch.float64


def test_a_file_that_is_no_vae_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    for name in ("missing", "text", "other"):
        with pytest.raises(UserError, match=f"{name}: .*run the round again"):
            load(tmp_path / name)


# -- elsewhere than on the CPU ------------------------------------------------------------------------------------


def test_no_step_reads_a_number_or_features_once_they_are_on_the_device() -> None:
    vae = build(DIMS, CLASSES, SHORT, seed=1).to(ELSEWHERE)
    features_N_D, classes_N = pool(40)
    watched = Watched(features_N_D)
    steps = _Steps(vae, watched, classes_N, vae.settings, seed=0, device=ELSEWHERE)
    assert watched.asked == [[0], list(range(40))]  # how wide they are, and all of them
    batches = list(steps.epoch())
    with Crossings() as counted:
        for positions_B in batches:
            steps.loss(positions_B).total.backward()
    assert counted.reads == 0
    assert counted.copies == 3 * len(batches)  # which samples, of features and of classes, and the noise
    assert len(watched.asked) == 2


def test_features_that_do_not_fit_are_read_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    features_N_D, _ = pool(40)
    monkeypatch.setattr("vabal.vae.features.fits", lambda *_: False)
    assert resident(features_N_D, ELSEWHERE, torch.float32) is features_N_D
    assert resident(features_N_D, torch.device("cpu"), torch.float32) is features_N_D


def test_resident_features_are_those_of_the_pool_in_the_network_s_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    features_N_D, _ = pool(40)
    monkeypatch.setattr("vabal.vae.features._ROWS_A_PIECE", 7)
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype, device: torch.zeros(shape, dtype=dtype))
    monkeypatch.setattr("vabal.vae.features.to_tensor", lambda values, _, dtype: torch.from_numpy(values).to(dtype))
    held = resident(features_N_D, ELSEWHERE, torch.float64)
    assert isinstance(held, torch.Tensor)
    assert held.dtype == torch.float64
    assert np.array_equal(held.numpy(), features_N_D.astype(np.float64))
