from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import small_shards
from vabal import strategies
from vabal.strategies import Candidates, Context, Labeled, Shard, vaal
from vabal.strategies.noise import hash_ids
from vabal.strategies.vaal import ImageVAE, Scaling, Schedule, canvas, discriminator, side_for, train


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaal, "FEWEST_STEPS", 4)
    monkeypatch.setattr(vaal, "STEPS", 16)  # 4 for images of 64 x 64


def pictures(count: int, side: int = 8, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels)).astype(np.uint8)


def context(images: NDArray[np.uint8], known: NDArray[np.uint8] | None, seed: int = 0, **more: Any) -> Context:
    ids = small_shards.names("s", len(images))
    shard = Shard(ids, logits_N_C=np.zeros((len(images), 3), dtype=np.float32), images_N_H_W_K=images)
    labeled = None
    if known is not None:
        names = small_shards.names("k", len(known))
        labeled = small_shards.labeled([0] * len(known), sample_ids=names, images_N_H_W_K=known)
    return small_shards.context(shard, seed=seed, labeled=labeled, **more)


def scored(found: Context, budget: int = 5) -> tuple[list[str], dict[str, float]]:
    parts: list[Candidates] = []
    selection = strategies.get("vaal").select(replace(found, write=parts.append), budget)
    return selection.sample_ids, {
        str(name): float(score) for part in parts for name, score in zip(part.sample_ids, part.score_N, strict=True)
    }


# -- what it finds ----------------------------------------------------------------------------------------------


def test_images_of_a_kind_that_nobody_has_labelled_come_first() -> None:
    numbers = np.random.default_rng(0)

    def striped(count: int, along: int) -> NDArray[np.uint8]:
        bars = np.where(np.arange(8) % 4 < 2, 220, 30)
        plain = np.broadcast_to(bars[:, None] if along else bars[None, :], (count, 8, 8))
        return np.clip(plain + numbers.normal(0, 15, (count, 8, 8)), 0, 255).astype(np.uint8)[..., None]

    images = np.concatenate([striped(60, 0), striped(60, 1)])
    _, scores = scored(context(images, striped(30, 0)))
    familiar = np.array([scores[f"s{row}"] for row in range(60)])
    unseen = np.array([scores[f"s{row}"] for row in range(60, 120)])
    above = (unseen[:, None] > familiar[None, :]).mean()
    assert above > 0.9


@pytest.mark.usefixtures("few_steps")
def test_the_score_is_what_the_discriminator_leaves_to_being_unlabelled() -> None:
    images, known = pictures(6), pictures(5, seed=1)
    unlabeled, labeled = canvas(images, 8), canvas(known, 8)
    adversary = train(labeled, unlabeled, context(images, known))
    by_hand = adversary.vae.encode(adversary.scaling(unlabeled))[0]
    labelled_probability = torch.sigmoid(adversary.discriminator(by_hand)[:, 0])
    assert adversary.score(images) == pytest.approx((1 - labelled_probability).detach().numpy(), abs=1e-6)


# -- whatever the size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "side"),
    [((5, 5), 8), ((8, 8), 8), ((9, 8), 16), ((28, 28), 32), ((33, 20), 64), ((64, 64), 64), ((100, 300), 64)],
)
def test_the_networks_input_is_the_next_power_of_two_up_to_64(shape: tuple[int, int], side: int) -> None:
    images = np.zeros((3, *shape, 1), dtype=np.uint8)
    assert side_for(images) == side
    assert canvas(images, side).shape == (3, 1, side, side)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_the_network_gives_back_images_of_every_size(side: int, channels: int) -> None:
    network = ImageVAE(side, channels)
    mean, log_var = network.encode(torch.zeros(2, channels, side, side))
    assert mean.shape == log_var.shape == (2, vaal.LATENT)
    assert network.decoder(mean).shape == (2, channels, side, side)
    assert discriminator()(mean).shape == (2, 1)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("side", "channels"), [(5, 1), (13, 3), (70, 1)])
def test_odd_and_large_images_are_scored(side: int, channels: int) -> None:
    picks, scores = scored(context(pictures(7, side, channels), pictures(3, side, channels)))
    assert len(set(picks)) == 5
    assert all(0 < score < 1 for score in scores.values())


def test_resizing_keeps_a_flat_image_flat() -> None:
    flat = np.full((2, 100, 90, 3), 77, dtype=np.uint8)
    assert (canvas(flat, 64) == 77).all()


# -- the loss, by hand ------------------------------------------------------------------------------------------


def test_the_loss_is_half_the_squared_error_and_the_kl_of_one_image() -> None:
    network = ImageVAE(8, 1)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    last = network.encoder[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.bias[: vaal.LATENT] = 0.5  # the means; log variances stay 0
    images = torch.full((3, 1, 8, 8), 2.0)
    loss, mean = network.loss(images, torch.zeros(3, vaal.LATENT))
    assert (mean == 0.5).all()
    # the image comes back as 0: 64 pixels * 2^2 / 2 = 128; KL: 32 * 0.5^2 / 2 = 4
    assert loss.item() == pytest.approx(132.0)


def test_images_are_standardised_by_both_pools() -> None:
    dark, bright = torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.full((1, 1, 8, 8), 200, dtype=torch.uint8)
    scaling = Scaling.of(dark, bright)
    assert scaling.mean_K == pytest.approx((50.0,))
    assert scaling.std_K == pytest.approx((np.std([0, 0, 0, 200]),))
    assert scaling(bright).mean().item() == pytest.approx(150 / np.std([0, 0, 0, 200]), rel=1e-6)
    assert torch.isfinite(Scaling.of(dark)(dark)).all()


def test_the_number_of_steps_is_bounded() -> None:
    assert [Schedule.of("auto", images, 8, "cpu") for images in (10, 960, 10**7)] == [(100, 32), (300, 32), (600, 32)]
    assert [Schedule.of("auto", 10**7, side, "cpu").steps for side in (16, 32, 64)] == [600, 300, 150]


def test_on_a_gpu_or_where_it_is_asked_for_there_are_as_many_steps_as_the_authors_take() -> None:
    for wanted, device in (("auto", "cuda"), ("auto", "cuda:1"), ("published", "cpu")):
        assert Schedule.of(wanted, 50_000, 32, device) == (39_062, 128)
    assert Schedule.of(7, 50_000, 32, "cuda") == (7, 32)


def test_the_setting_says_how_many_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step more is another network; as many are the same."""
    known, unknown = (torch.randint(0, 255, (5, 1, 8, 8), dtype=torch.uint8) for _ in range(2))
    monkeypatch.setattr(vaal, "FEWEST_STEPS", 3)
    monkeypatch.setattr(vaal, "EPOCHS", 0)

    def weights(wanted: str | int) -> list[torch.Tensor]:
        adversary = train(known, unknown, small_shards.context(selection={"vaal_steps": wanted}))
        return [*adversary.vae.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(weights("auto"), weights(3), strict=True))
    assert not torch.equal(weights(3)[0], weights(4)[0])
    assert not torch.equal(weights(3)[0], weights("published")[0])


# -- what holds for every pool ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator_alone() -> None:
    images, known = pictures(30), pictures(6, seed=1)
    before = torch.get_rng_state()
    first, again, other = (scored(context(images, known, seed=seed))[1] for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("few_steps")
def test_scores_depend_on_neither_the_order_nor_the_shards_of_either_pool() -> None:
    images, known = pictures(300), pictures(6, seed=1)
    straight = context(images, known)
    whole = next(iter(straight.shards()))
    order, known_order = np.random.default_rng(0).permutation(300), np.array([3, 1, 0, 5, 4, 2])
    shards = [
        Shard(whole.sample_ids[rows], np.zeros((len(rows), 3)), images_N_H_W_K=images[rows])
        for rows in (order[:1], order[1:1], order[1:200], order[200:])
    ]
    labeled = Labeled(
        np.zeros((6, 1)),
        np.zeros(6, dtype=int),
        sample_ids=np.array([f"k{row}" for row in known_order], dtype=object),
        images_N_H_W_K=known[known_order],
    )
    turned = replace(straight, shards=lambda: iter(shards), labeled=labeled)
    assert scored(turned) == scored(straight)


@pytest.mark.usefixtures("few_steps")
def test_a_score_does_not_depend_on_the_batchs_neighbours() -> None:
    images, known = pictures(40), pictures(6, seed=1)
    adversary = train(canvas(known, 8), canvas(images, 8), context(images, known))
    alone = [adversary.score(images[row : row + 1])[0] for row in (0, 17, 39)]
    assert alone == [adversary.score(images)[row] for row in (0, 17, 39)]


@pytest.mark.usefixtures("few_steps")
def test_only_a_sample_of_a_large_pool_is_trained_on_and_all_of_it_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vaal, "UNLABELED", 8)
    seen: list[int] = []

    def counting(labeled: torch.Tensor, unlabeled: torch.Tensor, context: Context) -> vaal.Adversary:
        seen.append(len(unlabeled))
        return train(labeled, unlabeled, context)

    monkeypatch.setattr(vaal, "train", counting)
    _, scores = scored(context(pictures(50), pictures(4)))
    assert seen == [8]
    assert len(scores) == 50


# -- pools that lack something ----------------------------------------------------------------------------------


def test_without_a_labelled_image_the_picks_are_random_and_a_note_says_so() -> None:
    found = context(pictures(20), pictures(0))
    selection = strategies.get("vaal").select(found, 4)
    assert len(set(selection.sample_ids)) == 4
    assert selection.notes == ("no labelled image to compare with: picked at random",)


@pytest.mark.usefixtures("few_steps")
def test_one_labelled_image_and_fewer_candidates_than_the_budget_are_no_obstacle() -> None:
    picks, _ = scored(context(pictures(3), pictures(1)))
    assert sorted(picks) == ["s0", "s1", "s2"]
    assert scored(context(pictures(0), pictures(1)))[0] == []


@pytest.mark.usefixtures("few_steps")
def test_missing_images_are_refused() -> None:
    with pytest.raises(ValueError, match="the context must carry the labelled pool with its images"):
        strategies.get("vaal").select(context(pictures(3), None), 1)
    blind = Shard(np.array(["a"], dtype=object))
    with pytest.raises(ValueError, match="came without images"):
        strategies.get("vaal").select(replace(context(pictures(3), pictures(2)), shards=lambda: iter([blind])), 1)


# -- by the letter ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "widths"), [(8, [3, 32]), (16, [3, 32, 64]), (32, [3, 16, 32, 64]), (64, [3, 8, 16, 32, 64])]
)
def test_the_encoder_halves_the_image_down_to_4_by_4_and_the_decoder_is_its_mirror(
    side: int, widths: list[int]
) -> None:
    network = ImageVAE(side, 3)
    down = [layer for layer in network.encoder if isinstance(layer, torch.nn.Conv2d)]
    up = [layer for layer in network.decoder if isinstance(layer, torch.nn.ConvTranspose2d)]
    assert [(layer.in_channels, layer.out_channels) for layer in down] == list(pairwise(widths))
    assert [(layer.in_channels, layer.out_channels) for layer in up] == list(pairwise(widths[::-1]))
    for layer in (*down, *up):
        assert (layer.kernel_size, layer.stride, layer.padding) == ((4, 4), (2, 2), (1, 1))
    kinds = [type(layer).__name__ for layer in network.encoder]
    assert kinds == ["Conv2d", "GroupNorm", "ReLU"] * len(down) + ["Flatten", "Linear"]
    kinds = [type(layer).__name__ for layer in network.decoder]
    smooth = ["ConvTranspose2d", "GroupNorm", "ReLU"] * len(up)
    assert kinds == ["Linear", "ReLU", "Unflatten", *smooth[:-2]]  # nothing behind the last, which gives the image
    normed = [layer for layer in (*network.encoder, *network.decoder) if isinstance(layer, torch.nn.GroupNorm)]
    assert {layer.num_groups for layer in normed} == {4}
    assert [layer.num_channels for layer in normed] == [*widths[1:], *widths[-2:0:-1]]


def test_the_discriminator_has_two_hidden_layers() -> None:
    shapes = [tuple(parameter.shape) for parameter in discriminator().parameters()]
    assert shapes == [(512, 32), (512,), (512, 512), (512,), (1, 512), (1,)]
    assert [type(layer).__name__ for layer in discriminator()] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]


def slowly_trained(known: torch.Tensor, unknown: torch.Tensor, seed: int, steps: int) -> list[torch.Tensor]:
    """The objectives written out image by image; the same draws, and torch's own Adam."""
    torch.manual_seed(seed)
    vae, judge = ImageVAE(8, 1), discriminator()
    generator = torch.Generator().manual_seed(seed)
    adam = [torch.optim.Adam(network.parameters(), lr=5e-4) for network in (vae, judge)]
    everything = torch.cat([known, unknown]).double()
    mean, std = everything.mean(), everything.std(unbiased=False)
    for _ in range(steps):
        rows_known = torch.randint(len(known), (32,), generator=generator)
        rows_unknown = torch.randint(len(unknown), (32,), generator=generator)
        images = ((torch.cat([known[rows_known], unknown[rows_unknown]]).double() - mean) / std).float()
        noise = torch.randn(64, 32, generator=generator)
        means, log_variances = vae.encoder(images)[:, :32], vae.encoder(images)[:, 32:]
        rebuilt = vae.decoder(means + noise * torch.exp(log_variances / 2))
        bounds = [
            ((rebuilt[n] - images[n]) ** 2).sum() / 2
            + (means[n] ** 2 + log_variances[n].exp() - 1 - log_variances[n]).sum() / 2
            for n in range(64)
        ]
        looks_labelled = -torch.nn.functional.logsigmoid(judge(means)[:, 0])
        objective = sum(bounds[:32]) / 32 + sum(bounds[32:]) / 32
        objective = objective + looks_labelled[:32].mean() + looks_labelled[32:].mean()
        adam[0].zero_grad()
        objective.backward()
        adam[0].step()
        logits = judge(vae.encoder(images)[:, :32].detach())[:, 0]
        told_apart = -torch.nn.functional.logsigmoid(torch.cat([logits[:32], -logits[32:]]))
        adam[1].zero_grad()
        (told_apart[:32].mean() + told_apart[32:].mean()).backward()
        adam[1].step()
    return [parameter.detach() for network in (vae, judge) for parameter in network.parameters()]


def test_training_is_that_of_the_objectives_written_out() -> None:
    known, unknown = canvas(pictures(6, seed=1), 8), canvas(pictures(9), 8)
    before = torch.get_rng_state()
    expected = slowly_trained(known, unknown, seed=4, steps=3)
    torch.set_rng_state(before)
    found = train(known, unknown, small_shards.context(seed=4, selection={"vaal_steps": 3}))
    parameters = [*found.vae.parameters(), *found.discriminator.parameters()]
    assert len(parameters) == len(expected)
    for parameter, value in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter, value, atol=2e-5)
    assert (found.side, found.device) == (8, "cpu")


@pytest.mark.usefixtures("few_steps")
def test_as_many_steps_are_trained_as_both_pools_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def counted(wanted: str | int, images: int, side: int, device: str) -> Schedule:
        seen.append((images, side))
        return Schedule(1, 32)

    monkeypatch.setattr(Schedule, "of", counted)
    scored(context(pictures(7, side=16), pictures(4, side=16)))
    assert seen == [(11, 16)]


def test_scores_of_many_images_are_those_of_each_latent_s_mean() -> None:
    vae, judge = ImageVAE(8, 1), discriminator()
    images = pictures(300)  # more than two blocks
    adversary = vaal.Adversary(vae, judge, Scaling((100.0,), (50.0,)), 8, "cpu")
    with torch.no_grad():
        inputs = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 100) / 50
        labelled_N = torch.sigmoid(judge(vae.encode(inputs)[0])[:, 0].double()).numpy()
    assert adversary.score(images) == pytest.approx(1 - labelled_N, abs=1e-5)
    assert adversary.score(images[:0]).shape == (0,)


def test_images_are_resized_one_like_many_and_empty_pools_have_the_network_s_size() -> None:
    images = pictures(1030, side=5, channels=2)
    found = canvas(images, 8)
    assert (found.shape, found.dtype) == ((1030, 2, 8, 8), torch.uint8)
    alone = [torch.from_numpy(images[n]).permute(2, 0, 1)[None].float() for n in (0, 1029)]
    for row, image in zip((0, 1029), alone, strict=True):
        resized = torch.nn.functional.interpolate(image, (8, 8), mode="bilinear", antialias=True)
        assert torch.equal(found[row], resized[0].round().clamp(0, 255).byte())
    fine = torch.from_numpy(pictures(1, side=20)).permute(0, 3, 1, 2).float()
    smaller = torch.nn.functional.interpolate(fine, (8, 8), mode="bilinear", antialias=True)
    assert torch.equal(canvas(pictures(1, side=20), 8), smaller.round().byte())
    for side in (5, 8):
        assert canvas(images[:0], side).shape == (0, 2, side, side)
    same = canvas(images[:3], 5)
    assert same.is_contiguous()
    assert torch.equal(same, torch.from_numpy(images[:3]).permute(0, 3, 1, 2))


def test_labelled_images_stand_by_id_or_as_they_come() -> None:
    images = pictures(3)
    ids = np.array(["b", "c", "a"], dtype=object)
    known = small_shards.labeled([0, 0, 0], images_N_H_W_K=images)
    assert vaal._in_order(known) is images
    assert np.array_equal(vaal._in_order(replace(known, sample_ids=ids)), images[[2, 0, 1]])


def test_unlabelled_images_are_those_with_the_lowest_hashes_from_whatever_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pictures(12)
    whole = Shard(small_shards.names("s", 12), images_N_H_W_K=images)
    hash_N = hash_ids(whole.sample_ids, 5).tolist()
    order = sorted(range(12), key=lambda row: hash_N[row])
    monkeypatch.setattr(vaal, "UNLABELED", 7)
    for parts in (1, 5, 12):
        found = vaal._unlabeled_images(small_shards.context(*small_shards.in_parts(whole, parts), seed=5), 8)
        assert found.dtype == torch.uint8
        assert torch.equal(found, canvas(images[order[:7]], 8))


def test_classes_and_margins_stand_beside_the_scores_where_there_are_logits() -> None:
    shard = Shard(small_shards.names("s", 2), logits_N_C=np.log([[0.9, 0.1], [0.4, 0.6]]))
    found = vaal._Scoring(None).score(shard, small_shards.context())
    assert found.score_N.tolist() == [0.5, 0.5]
    assert found.predicted_class_N is not None
    assert found.predicted_class_N.tolist() == [0, 1]
    assert found.predicted_class_N.dtype == np.int32
    assert found.margin_N is not None
    assert found.margin_N.tolist() == pytest.approx([0.8, 0.2])
    bare = vaal._Scoring(None).score(replace(shard, logits_N_C=None), small_shards.context())
    assert bare.predicted_class_N is None
    assert bare.margin_N is None


def test_both_notes_are_told_where_nothing_is_labelled_and_little_is_left() -> None:
    selection = strategies.get("vaal").select(context(pictures(3), pictures(0)), 4)
    assert (selection.strategy, selection.candidates) == ("vaal", 3)
    assert selection.notes == (
        "4 asked for, 3 left to pick from: all of them are picked",
        "no labelled image to compare with: picked at random",
    )
