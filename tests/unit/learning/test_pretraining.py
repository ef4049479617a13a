"""Self-supervised learning on tiny images: views, the loss by hand, a training that is left and taken up."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.learning import backbones
from vabal.learning.pretraining.training import COLLAPSED, Checkpoint, Pretraining, spread
from vabal.learning.pretraining.views import Views
from vabal.settings.learners import BackboneSettings, PretrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 32


class Blobs:
    """Grey images of a bright square that lies somewhere; all of them the same where `still`."""

    def __init__(self, count: int = 40, *, still: bool = False) -> None:
        self.images = np.full((count, 16, 16, 1), 40, dtype=np.uint8)
        numbers = np.random.default_rng(0)
        for image in self.images:
            top, left, side = (4, 4, 5) if still else (*numbers.integers(0, 10, 2), numbers.integers(2, 7))
            image[top : top + side, left : left + side] = 220

    def __len__(self) -> int:
        return len(self.images)

    def gather(self, rows_N: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.images[rows_N]


def settings(**chosen: object) -> PretrainSettings:
    small = {"network": "timm:test_resnet", "epochs": 2, "batch_size": 16, "colour": 0.2}
    return PretrainSettings.model_validate(small | chosen)


def training(chosen: PretrainSettings, seed: int = 3) -> Pretraining:
    return Pretraining(chosen, size=SIZE, channels=1, seed=seed, device="cpu")


def drawn(chosen: PretrainSettings, images_N_K_H_W: torch.Tensor, seed: int = 0) -> torch.Tensor:
    channels = images_N_K_H_W.shape[1]
    torch.manual_seed(seed)
    return Views(chosen, 16, channels=channels, mean=(0, 0, 0), std=(1 / 255,) * 3)(images_N_K_H_W)


def slow_loss(projected_N_P: NDArray[np.float64], others_N_P: NDArray[np.float64], temperature: float) -> float:
    """SimCLR's loss (Chen et al. 2020, Eq. 1), a view at a time."""
    views = [view / np.linalg.norm(view) for view in (*projected_N_P, *others_N_P)]
    count = len(projected_N_P)
    losses = []
    for at, view in enumerate(views):
        alike = [math.exp(float(view @ other) / temperature) for other in views]
        rest = sum(value for place, value in enumerate(alike) if place != at)
        losses.append(-math.log(alike[(at + count) % (2 * count)] / rest))
    return sum(losses) / len(losses)


def test_the_loss_is_simclr_s_as_computed_by_hand() -> None:
    numbers = np.random.default_rng(1)
    first, second = numbers.normal(size=(5, 7)), numbers.normal(size=(5, 7))
    found = training(settings(temperature=0.3)).loss(torch.from_numpy(first), torch.from_numpy(second))
    assert float(found) == pytest.approx(slow_loss(first, second, 0.3), rel=1e-6)


def test_spread_is_nothing_where_all_are_alike_and_one_where_they_point_every_way() -> None:
    assert spread(torch.tensor([[1.0, 2.0], [2.0, 4.0]])) == pytest.approx(0, abs=1e-6)
    assert spread(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(1)


def test_an_image_that_may_not_be_changed_is_its_own_view() -> None:
    images = torch.from_numpy(Blobs(3).images).permute(0, 3, 1, 2)
    views = drawn(settings(crop=1.0, views="plain", colour=0.0), images)
    assert torch.equal(views, images.expand(-1, 3, -1, -1).float())


@pytest.mark.parametrize(("kind", "sides"), [("plain", 1), ("mirrored", 2), ("turned", 8)])
def test_views_show_the_sides_that_are_the_same_thing_and_no_others(kind: str, sides: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 1, 16, 16), dtype=np.uint8))
    views = drawn(settings(crop=1.0, views=kind, colour=0.0), image.expand(200, -1, -1, -1))
    assert len({view.numpy().tobytes() for view in views}) == sides


def test_images_of_a_batch_are_cut_each_in_its_own_way_and_alike_for_one_seed() -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8))
    images = image.expand(5, -1, -1, -1)
    views = drawn(settings(colour=1.0), images)
    assert views.shape == (5, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in views}) == 5
    assert torch.equal(views, drawn(settings(colour=1.0), images))
    assert not torch.equal(views, drawn(settings(colour=1.0), images, seed=1))


def test_the_loss_falls_and_the_global_generator_stays_as_it_was() -> None:
    before = torch.random.get_rng_state()
    values = [m.value for m in training(settings(epochs=8)).run(Blobs()) if m.name == "pretrain/loss"]
    assert len(values) == 8
    assert values[-1] < values[0] - 0.2
    assert torch.equal(before, torch.random.get_rng_state())


class Killed(Exception):  # noqa: N818 -- no error
    pass


def weights_after(place: Path, steps: list[int], images: Blobs) -> bytes:
    """The file of a training that is killed after so many steps, again and again, and then let run."""
    chosen = settings()
    for number, limit in enumerate([*steps, 10**6]):
        now = training(chosen)
        checkpoint = Checkpoint(place / "unfinished.pt", {"settings": "same"}, seconds=0)
        if (kept := checkpoint.read()) is not None:
            now.restore(kept[1])
        assert (kept is not None) == (number > 0)
        done = 0

        def keep(now: Pretraining = now, checkpoint: Checkpoint = checkpoint, limit: int = limit) -> None:
            nonlocal done
            done += 1
            if done == limit:
                raise Killed  # this step is lost
            checkpoint.keep(now.state)

        try:
            for _ in now.run(images, keep):
                pass
        except Killed:
            continue
        backbones.save_pretrained(now.encoder.trunk, place / "weights.safetensors", {"size": SIZE})
    return (place / "weights.safetensors").read_bytes()


def test_killed_twice_and_taken_up_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = weights_after(tmp_path / "whole", [], Blobs())
    assert weights_after(tmp_path / "killed", [3, 2], Blobs()) == whole


def test_a_checkpoint_that_is_cut_short_is_as_if_there_was_none(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "unfinished.pt", {"settings": "a"}, seconds=0)
    checkpoint.keep(training(settings()).state)
    assert checkpoint.read() is not None
    content = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(content[: len(content) // 2])
    assert checkpoint.read() is None


def test_a_checkpoint_is_kept_when_the_last_is_old_enough(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "unfinished.pt", {})
    checkpoint.keep(training(settings()).state)
    assert not checkpoint.path.exists()


def test_views_that_never_differ_make_features_collapse_which_the_spread_tells() -> None:
    chosen = settings(crop=1.0, views="plain", colour=0.0, epochs=1)
    values = {metric.name: metric.value for metric in training(chosen).run(Blobs(still=True))}
    assert values["pretrain/spread"] < COLLAPSED


def test_the_file_is_a_backbone_at_the_size_that_it_was_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "learnt.safetensors"
    learnt = training(settings())
    digest = backbones.save_pretrained(learnt.encoder.trunk, path, {"size": SIZE, "images": 40})
    chosen = BackboneSettings(name="timm:test_resnet", weights=f"file:{path}")
    backbone = backbones.load(chosen)
    assert backbone.sizes == (SIZE,)
    assert backbones.load(chosen.model_copy(update={"sizes": [48]})).sizes == (48,)
    assert backbones.weights_sha256(chosen) == digest
    assert backbones.read_about(path) == {"size": SIZE, "images": 40}
    state = backbone.trunk.network.state_dict()
    for name, values in learnt.encoder.trunk.network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(values, state[name])


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"network": "timm:resnet999"}, "pretrain.network: timm has no network 'resnet999'"),
        ({"network": "torchvision:nothing"}, "pretrain.network: torchvision has no network 'nothing'"),
    ],
)
def test_a_network_that_there_is_not_is_one_line(chosen: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        training(settings(**chosen))
    assert "\n" not in str(error.value)


def test_too_few_images_are_refused_with_the_way_to_more() -> None:
    with pytest.raises(UserError, match="at least 16 images beside the holdout, found 15: add some with"):
        list(training(settings()).run(Blobs(15)))


def test_a_training_that_diverges_names_the_setting() -> None:
    with pytest.raises(UserError, match=r"diverged in epoch \d of 30: lower pretrain.learning_rate \(now 1e\+30\)"):
        list(training(settings(learning_rate=1e30, epochs=30)).run(Blobs()))
