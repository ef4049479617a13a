import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import bald
from tests.support.small_networks import random_images, small_network
from vabal.errors import UserError
from vabal.learning import classifier, committee, dropout_passes
from vabal.learning.committee import Committee
from vabal.learning.dropout_passes import DropoutPasses
from vabal.learning.network import ResNetClassifier
from vabal.settings.learners import ClassifierSettings
from vabal.strategies import Needs

pytestmark = pytest.mark.usefixtures("one_thread")
PASSES = Needs(dropout=0.25, passes=7)
ENSEMBLE = Needs(members=3)
AUXILIARY = Needs(auxiliary_loss="loss_prediction")
RECIPE = ClassifierSettings(network="resnet10", width=4, epochs=2, batch_size=16, learning_rate=0.05)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def first() -> ResNetClassifier:
    network = small_network(network="resnet10", seed=3)
    list(classifier.fit(network, random_images(30), np.arange(30) % 3, RECIPE, seed=3))
    return network


def trained(needs: Needs, first: ResNetClassifier, seed: int = 3) -> Committee:
    built = committee.build(needs, first.config, first=first, seed=seed)
    list(built.fit(random_images(30), np.arange(30) % 3, RECIPE))
    return built


@pytest.fixture(scope="module")
def with_passes(first: ResNetClassifier) -> Committee:
    return trained(PASSES, first)


@pytest.fixture(scope="module")
def ensemble(first: ResNetClassifier) -> Committee:
    return trained(ENSEMBLE, first)


def bits(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- what is needed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Needs(features=True, posteriors=True, images=True, vae=True), False),
        (Needs(dropout=0.25, passes=1), False),
        (Needs(passes=100), False),
        (PASSES, True),
        (ENSEMBLE, True),
        (AUXILIARY, True),
    ],
)
def test_networks_are_needed_for_passes_members_and_auxiliary_losses(needs: Needs, expected: bool) -> None:
    assert committee.is_needed(needs) is expected
    assert bool(committee.column_types(needs)) is expected


def test_an_unknown_auxiliary_loss_is_refused_by_name_with_the_known_ones(first: ResNetClassifier) -> None:
    with pytest.raises(UserError, match="no auxiliary loss 'los_prediction'; known are: loss_prediction"):
        committee.build(Needs(auxiliary_loss="los_prediction"), first.config, first=first, seed=0)


def test_passes_and_an_ensemble_in_one_are_refused_for_they_fill_the_same_columns() -> None:
    with pytest.raises(UserError, match="the same columns"):
        committee.check(Needs(dropout=0.25, passes=10, members=5))


# -- statistics ---------------------------------------------------------------------------------------------------


def test_statistics_of_two_answers_by_hand() -> None:
    answers = torch.log(torch.tensor([[[0.4, 0.6]], [[0.9, 0.1]]]))
    for parts in ([answers], [answers[:1], answers[1:]]):
        columns = committee.statistics(parts)
        entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (0.4, 0.9)]
        assert columns["predictive_N_C"].tolist()[0] == pytest.approx([0.65, 0.35])
        assert columns["expected_entropy_N"].tolist() == pytest.approx([sum(entropy) / 2])
        assert columns["votes_N_C"].tolist() == [[1, 1]]


def test_a_posterior_of_exactly_one_has_no_entropy_rather_than_none_that_is_a_number() -> None:
    columns = committee.statistics([torch.tensor([[[0.0, -2000.0]]])])
    assert columns["expected_entropy_N"].tolist() == [0.0]
    assert columns["predictive_N_C"].tolist() == [[1.0, 0.0]]


# -- Monte-Carlo dropout ------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """In a dropout's place: one mask, by hand."""

    def __init__(self, kept_K_H_W: Tensor, dropout: float) -> None:
        super().__init__()
        self.kept_K_H_W, self.dropout = kept_K_H_W, dropout

    def forward(self, maps: Tensor) -> Tensor:
        return torch.where(self.kept_K_H_W, maps / (1 - self.dropout), torch.zeros_like(maps))


def slow_columns(network: ResNetClassifier, masks: list[Tensor], images: np.ndarray) -> dict[str, np.ndarray]:
    """Sample by sample, pass by pass, through the whole network in float64."""
    predictive, entropies, votes = [], [], []
    for image in images:
        posteriors = []
        for number in range(len(masks[0])):
            masked = copy.deepcopy(network).double().eval()
            masked.dropouts = nn.ModuleList(Masked(mask[number], network.config["dropout"]) for mask in masks)
            with torch.no_grad():
                logits_C = masked(torch.from_numpy(image[None]).permute(0, 3, 1, 2))[0]
            posteriors.append(torch.softmax(logits_C, 0).numpy())
        predictive.append(np.mean(posteriors, axis=0))
        entropies.append(np.mean([-sum(p * math.log(p) for p in posterior) for posterior in posteriors]))
        votes.append(np.bincount([posterior.argmax() for posterior in posteriors], minlength=3))
    return {
        "predictive_N_C": np.array(predictive),
        "expected_entropy_N": np.array(entropies),
        "votes_N_C": np.array(votes),
    }


def test_the_columns_are_those_of_the_whole_network_asked_once_for_each_sample_and_mask(with_passes: Committee) -> None:
    network = with_passes.networks["dropout"]
    images = random_images(6, seed=1)
    columns = with_passes.columns(images)
    passes = DropoutPasses(network, 7, seed=3, device=CPU)
    masks = [passes.masks(index, shape) for index, shape in enumerate([(4, 8, 8), (4, 8, 8), (8, 4, 4), (16, 2, 2)])]
    expected = slow_columns(network, masks, images)
    assert columns.keys() == expected.keys() == committee.column_types(PASSES).keys()
    for name, values in columns.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert (columns["votes_N_C"].sum(axis=1) == 7).all()


def test_every_pass_has_masks_of_its_own_which_keep_three_quarters_and_follow_the_seed() -> None:
    network = small_network(network="resnet10", seed=3, dropout=0.25)
    one, again, other = (DropoutPasses(network, 50, seed=seed, device=CPU) for seed in (1, 1, 2))
    kept = one.masks(0, (4, 8, 8))
    assert kept.shape == (50, 4, 8, 8)
    assert kept.float().mean() == pytest.approx(0.75, abs=0.02)
    assert len({mask.numpy().tobytes() for mask in kept}) == 50
    assert torch.equal(kept, again.masks(0, (4, 8, 8)))
    assert not torch.equal(kept, other.masks(0, (4, 8, 8)))
    assert not torch.equal(kept, one.masks(1, (4, 8, 8)))


def test_a_samples_mean_posterior_is_that_of_torchs_own_dropout(with_passes: Committee) -> None:
    network = copy.deepcopy(with_passes.networks["dropout"]).eval()
    with torch.no_grad():
        network.classifier.weight.mul_(20)  # so that dropout moves the posteriors
    images = torch.from_numpy(random_images(8, seed=2)).permute(0, 3, 1, 2)
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        ours = committee.statistics(DropoutPasses(network, 1000, seed=0, device=CPU).logits(images))["predictive_N_C"]
        network.dropouts.train()  # and nothing else
        theirs = committee.statistics(network(images)[None] for _ in range(1000))["predictive_N_C"]
        network.dropouts.eval()
        without = torch.softmax(network(images), dim=1)
    assert (ours - theirs).abs().max() < 0.07
    assert (ours - without).abs().max() > 0.14


@pytest.mark.parametrize("needs", [PASSES, ENSEMBLE, AUXILIARY])
def test_asking_changes_no_bit_of_the_networks_batch_norm_statistics_included(
    needs: Needs, first: ResNetClassifier
) -> None:
    built = trained(needs, first)
    networks = [first, *built.networks.values()]
    before = [bits(network) for network in networks]
    assert any("running_mean" in name for name in before[-1])
    built.columns(random_images(20))
    assert all(same_bits(one, bits(network)) for one, network in zip(before, networks, strict=True))
    assert not any(module.training for network in networks for module in network.modules())


def test_what_comes_before_the_first_dropout_runs_once_for_all_passes(with_passes: Committee) -> None:
    calls = []
    hook = with_passes.networks["dropout"].stem.register_forward_hook(lambda *_: calls.append(1))
    with_passes.columns(random_images(20))
    hook.remove()
    assert len(calls) == 1


def test_the_benchmarks_plain_way_agrees_and_runs_it_once_a_pass() -> None:
    result = bald.run(images=3, width=4, passes=5, repeats=1)  # which checks that both give the same numbers
    assert (result["stem_calls_a_piece"], result["stem_calls_a_piece_plain"]) == (1, 5)
    assert result["ratio"] > 0


@pytest.mark.parametrize("needs", [PASSES, ENSEMBLE, AUXILIARY])
def test_neither_the_pools_order_nor_its_batches_show(needs: Needs, first: ResNetClassifier) -> None:
    built = trained(needs, first)
    images = random_images(23, seed=4)
    whole = built.columns(images)
    order = np.random.default_rng(0).permutation(23)
    shuffled = built.columns(images[order])
    parts = [built.columns(images[start : start + 5]) for start in range(0, 23, 5)]
    for name, values in whole.items():
        assert len(np.unique(values, axis=0)) > 1
        np.testing.assert_allclose(shuffled[name], values[order], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([part[name] for part in parts]), values, rtol=1e-5, atol=1e-6)


def test_a_piece_larger_than_the_cache_goes_pass_by_pass_with_the_same_result(
    with_passes: Committee, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(5)
    whole = with_passes.columns(images)
    monkeypatch.setattr(dropout_passes, "_PIXELS_AT_ONCE", 3 * 5 * 8 * 8)  # three passes at once, one at the end
    split = with_passes.columns(images)
    for name, values in whole.items():
        np.testing.assert_allclose(split[name], values, rtol=1e-5)


@pytest.mark.parametrize(("samples", "side", "passes"), [(64, 32, 1), (1, 32, 64), (33, 32, 1), (1, 8, 1), (2, 256, 1)])
def test_few_maps_at_a_time_go_through_the_stages_but_never_one_of_several(
    samples: int, side: int, passes: int
) -> None:
    drawn = DropoutPasses(small_network(dropout=0.25), 100, seed=0, device=CPU)
    rows = samples * passes
    parts = list(drawn._parts(passes, torch.zeros(samples, 1, side, side)))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    sizes = [part.stop - part.start for part in parts]
    assert min(sizes) >= min(2, rows)
    assert max(sizes) < 2 * max(2, dropout_passes._PIXELS_IN_STAGES // side**2)


def test_maps_that_go_in_parts_give_the_same_bits(with_passes: Committee, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(7)
    parts = with_passes.columns(images)
    monkeypatch.setattr(dropout_passes, "_PIXELS_IN_STAGES", 2**30)
    whole = with_passes.columns(images)
    monkeypatch.setattr(dropout_passes, "_PIXELS_IN_STAGES", 1)
    pairs = with_passes.columns(images)
    assert all(np.array_equal(parts[name], whole[name]) and np.array_equal(pairs[name], whole[name]) for name in whole)


def test_of_the_masks_the_newest_alone_is_kept_and_earlier_ones_come_back() -> None:
    passes = DropoutPasses(small_network(dropout=0.25), 50, seed=0, device=CPU)
    shape = (4, 8, 8)
    whole_T_K_H_W = passes.masks(0, shape)
    drawn = passes._drawn(0, shape)
    for first, stop in ((0, 1), (0, 1), (3, 7), (6, 9), (2, 4), (49, 50), (0, 50)):
        assert torch.equal(drawn.kept(first, stop), whole_T_K_H_W[first:stop])
    assert sum(value.numel() for value in vars(drawn).values() if isinstance(value, torch.Tensor)) == 4 * 8 * 8


# -- training -----------------------------------------------------------------------------------------------------


def test_networks_of_one_seed_start_from_the_classifiers_first_weights() -> None:
    network = small_network(network="resnet10", seed=9)
    for needs in (PASSES, AUXILIARY):
        (scoring,) = committee.build(needs, network.config, first=network, seed=9).networks.values()
        assert same_bits({name: scoring.state_dict()[name] for name in network.state_dict()}, bits(network))


def test_the_classifier_is_the_first_member_and_is_not_trained_again(
    ensemble: Committee, first: ResNetClassifier
) -> None:
    before = bits(first)
    assert ensemble.first is first
    again = trained(ENSEMBLE, first)
    assert same_bits(before, bits(first))
    assert sorted(again.networks) == ["member1", "member2"]
    members = [first, *again.networks.values()]
    weights = [network.classifier.weight for network in members]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))
    images = torch.from_numpy(random_images(9)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        votes = [network.eval()(images).argmax(1) for network in members]
    expected = np.array([np.bincount([int(vote[row]) for vote in votes], minlength=3) for row in range(9)])
    assert np.array_equal(again.columns(random_images(9))["votes_N_C"], expected)


@pytest.mark.parametrize("needs", [PASSES, ENSEMBLE, AUXILIARY])
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(needs: Needs, first: ResNetClassifier) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one = trained(needs, first).columns(random_images(10))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(12)
    again, other = trained(needs, first).columns(random_images(10)), trained(needs, first, 4).columns(random_images(10))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_metrics_tell_which_network_they_are_of(first: ResNetClassifier) -> None:
    built = committee.build(ENSEMBLE, first.config, first=first, seed=3)
    metrics = list(built.fit(random_images(30), np.arange(30) % 3, RECIPE))
    assert [metric.name for metric in metrics[::3]] == [
        *["committee/member1-loss"] * 2,
        *["committee/member2-loss"] * 2,
    ]
    assert [metric.step for metric in metrics[::3]] == [1, 2, 1, 2]


def test_passes_after_another_training_are_those_of_the_new_weights(first: ResNetClassifier) -> None:
    built = trained(PASSES, first)
    before = built.columns(random_images(4))["predictive_N_C"]
    list(built.fit(random_images(30, seed=8), np.arange(30) % 3, RECIPE))
    assert not np.allclose(built.columns(random_images(4))["predictive_N_C"], before)


# -- columns and files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needs", [PASSES, ENSEMBLE, AUXILIARY])
def test_columns_have_their_types_and_lengths_also_for_no_images(needs: Needs, first: ResNetClassifier) -> None:
    built = committee.build(needs, first.config, first=first, seed=0)
    for count in (4, 0):
        columns = built.columns(random_images(count))
        for name, kind in committee.column_types(needs).items():
            assert columns[name].dtype == np.dtype(kind)
            assert columns[name].shape == ((count, 3) if name.endswith("_C") else (count,))


def test_an_output_that_is_not_finite_names_the_samples(first: ResNetClassifier) -> None:
    built = committee.build(PASSES, first.config, first=first, seed=0)
    with torch.no_grad():
        built.networks["dropout"].classifier.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="predictive_N_C is not finite for row 0, row 1: "):
        built.columns(random_images(2))
    with pytest.raises(UserError, match="not finite for a, b: "):
        built.columns(random_images(2), sample_ids=["a", "b"])


@pytest.mark.parametrize("needs", [PASSES, ENSEMBLE, AUXILIARY])
def test_a_saved_committee_says_the_same_when_it_is_back(needs: Needs, first: ResNetClassifier, tmp_path: Path) -> None:
    built = trained(needs, first)
    built.save(tmp_path)
    back = committee.load(tmp_path, first)
    assert back.needs == needs
    expected, found = built.columns(random_images(6)), back.columns(random_images(6))
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_missing_or_damaged_files_are_told_in_one_line(first: ResNetClassifier, tmp_path: Path) -> None:
    trained(PASSES, first).save(tmp_path)
    (tmp_path / "dropout.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    for _ in range(2):
        with pytest.raises(UserError, match="not a committee's weights") as caught:
            committee.load(tmp_path, first)
        assert "\n" not in str(caught.value)
        (tmp_path / "committee.json").unlink(missing_ok=True)
