import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.small_networks import small_network
from vabal.learning import network as network_module
from vabal.learning.classifier import save
from vabal.learning.network import ResNetClassifier, read_weights


@pytest.mark.parametrize(("kind", "convolutions"), [("resnet18", 20), ("resnet34", 36)])
def test_the_networks_have_as_many_weights_as_torchvisions_of_the_same_name(kind: str, convolutions: int) -> None:
    import torchvision

    ours = ResNetClassifier(kind, num_classes=7, image_size=224, channels=3)
    theirs = getattr(torchvision.models, kind)(num_classes=7)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert sum(isinstance(module, nn.Conv2d) for module in ours.modules()) == convolutions
    assert ours.feature_dims == (64, 128, 256, 512)


def test_with_torchvisions_weights_the_imagenet_network_computes_what_torchvisions_does() -> None:
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=5).eval()
    ours = ResNetClassifier(num_classes=5, image_size=96, channels=3, mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randint(256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    normalised = (images.float() - torch.tensor([10.0, 20, 30])[:, None, None]) / torch.tensor([2.0, 4, 5])[
        :, None, None
    ]
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs(normalised))


@pytest.mark.parametrize(("size", "stride"), [(64, 1), (65, 4)])
def test_images_up_to_64_pixels_take_the_small_stem_and_larger_ones_the_imagenet_stem(size: int, stride: int) -> None:
    network = small_network(image_size=size)
    assert network.config["stem"] == ("small" if stride == 1 else "imagenet")
    assert network.stem(torch.zeros(1, 1, 64, 64)).shape[-1] == 64 // stride


def test_the_stem_can_be_chosen_against_the_size() -> None:
    assert small_network(image_size=8, stem="imagenet").config["stem"] == "imagenet"
    assert small_network(image_size=224, stem="small").config["stem"] == "small"


@pytest.mark.parametrize("size", [4, 8, 9])
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_tiny_images_pass_through_all_four_stages_in_training_and_evaluation(size: int, stem: str) -> None:
    network = small_network(image_size=size, stem=stem)
    images = torch.randint(256, (3, 1, size, size), dtype=torch.uint8)
    for mode in (True, False):
        features, logits = network.train(mode).stages(images)
        assert features.shape == (3, 4 + 8 + 16 + 32)
        assert logits.shape == (3, 3)
        assert torch.isfinite(features).all()


def test_features_are_the_global_average_pools_of_the_four_stages_side_by_side() -> None:
    network = small_network().eval()
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    for stage in network.residual_stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output.detach().clone()))
    with torch.no_grad():
        features, logits = network.stages(images)
        assert [tuple(maps.shape[1:]) for maps in seen] == [(4, 8, 8), (8, 4, 4), (16, 2, 2), (32, 1, 1)]
        torch.testing.assert_close(features, torch.cat([maps.flatten(2).mean(-1) for maps in seen], 1))
        torch.testing.assert_close(logits, network.classifier(features[:, -32:]))
        torch.testing.assert_close(network(images), logits)


def test_bytes_and_floats_of_the_same_value_give_the_same_logits() -> None:
    network = small_network().eval()
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(images), network(images.float()))


def test_images_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"N x 1 x H x W, found \(2, 3, 8, 8\)"):
        small_network()(torch.zeros(2, 3, 8, 8))


def test_first_weights_come_from_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    one, again, other = small_network(seed=1), small_network(seed=1), small_network(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert not torch.equal(one.state_dict()["stem.0.weight"], other.state_dict()["stem.0.weight"])


def test_first_weights_are_distributed_as_torchvisions() -> None:
    import torchvision

    ours = ResNetClassifier(num_classes=10, image_size=224, channels=3)
    with torch.random.fork_rng(devices=[]):
        theirs = torchvision.models.resnet18(num_classes=10)
    for mine, published in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert mine.shape == published.shape
        if mine.numel() > 1000:
            assert mine.std() == pytest.approx(float(published.std()), rel=0.1)
        elif mine.numel() != 10:  # all but the last layer's bias: batch norm's constants
            assert torch.equal(mine, published)


def test_without_dropout_there_is_no_dropout_layer_and_with_it_one_before_each_stage() -> None:
    assert not any(isinstance(module, nn.Dropout) for module in small_network().modules())
    network = small_network(dropout=0.25).eval()
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [0.25] * 4
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(network(images), network(images))
        network.dropouts.train()  # Monte-Carlo dropout: batch norm stays in evaluation mode
        assert not torch.equal(network(images), network(images))


def test_a_network_is_rebuilt_from_its_configuration_after_a_trip_through_json() -> None:
    network = small_network(dropout=0.1, mean=(33.3,), std=(0.1,), seed=4)
    again = ResNetClassifier.from_config(json.loads(json.dumps(network.config)), seed=4)
    assert again.config == network.config
    assert torch.equal(again.mean, network.mean)
    assert torch.equal(again.std, network.std)


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "vgg"},
        {"stem": "huge"},
        {"num_classes": 0},
        {"width": 0},
        {"dropout": 1.0},
        {"mean": (1.0, 2.0)},
        {"std": (0.0,)},
        {"std": (float("nan"),)},
    ],
)
def test_a_setting_that_makes_no_network_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_network(**changes)


def test_a_configuration_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match="not a classifier's configuration"):
        ResNetClassifier.from_config({"colour": "red"})


# Reading weights without safetensors.


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save(small_network(seed=3, mean=(100.0,), std=(50.0,)), path)
    return path


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_weights_are_read_back_bit_for_bit_in_evaluation_mode(weights: Path) -> None:
    network, expected = read_weights(weights), small_network(seed=3, mean=(100.0,), std=(50.0,))
    assert not network.training
    assert network.config == expected.config
    for name, tensor in expected.state_dict().items():
        read = network.state_dict()[name]
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def test_the_source_file_alone_reads_weights_where_only_torch_and_torchvision_are(weights: Path) -> None:
    script = f"""
        import importlib.util, sys
        for name in ("vabal", "safetensors", "pandas", "mlflow"):
            sys.modules[name] = None  # an import of it would fail
        spec = importlib.util.spec_from_file_location("network", {str(Path(network_module.__file__))!r})
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        import torch
        print(module.read_weights({str(weights)!r})(torch.zeros(1, 1, 8, 8, dtype=torch.uint8)).shape)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False, cwd="/"
    )
    assert result.stdout.strip() == "torch.Size([1, 3])", result.stderr


def test_a_file_cut_short_anywhere_is_refused_by_name(weights: Path, tmp_path: Path) -> None:
    data, path = weights.read_bytes(), tmp_path / "cut.safetensors"
    for length in (0, 5, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors: not a classifier's weights"):
            read_weights(path)


def test_bytes_that_belong_to_no_tensor_are_refused(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(weights.read_bytes() + b"\0\0\0")
    with pytest.raises(ValueError, match="3 bytes at its end"):
        read_weights(path)


def change(header: dict[str, Any], **entry: Any) -> dict[str, Any]:
    name = "classifier.bias"
    return {**header, name: {**header[name], **entry}}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda h: [h], "no JSON object"),
        (lambda h: {k: v for k, v in h.items() if k != "__metadata__"}, "holds no 'vabal'"),
        (lambda h: {**h, "__metadata__": {"vabal": "{"}}, "no configuration"),
        (lambda h: {**h, "__metadata__": {"vabal": '{"config": {"num_classes": 3}}'}}, "configuration"),
        (lambda h: {**h, "stem.0.weight": 3}, "not described"),
        (lambda h: change(h, dtype="F128"), "unknown type 'F128'"),
        (lambda h: change(h, shape=[4]), r"of shape \[4\] has 12 bytes"),
        (lambda h: change(h, shape=[-3]), "wrong shape"),
        (lambda h: change(h, shape=[3.0]), "wrong shape"),
        (lambda h: change(h, shape=None), "wrong shape"),
        (lambda h: change(h, data_offsets=[0]), "wrong shape or wrong offsets"),
        (lambda h: change(h, data_offsets=[1, 13]), "expected"),
        (lambda h: {k: v for k, v in h.items() if k != "stem.0.weight"}, "expected"),
    ],
)
def test_a_damaged_header_is_refused_and_the_line_says_what_is_wrong(
    weights: Path, tmp_path: Path, damage: Any, said: str
) -> None:
    header, body = split(weights)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(join(damage(header), body))
    with pytest.raises(ValueError, match=f"damaged.safetensors.*{said}"):
        read_weights(path)


def test_a_header_that_claims_more_than_the_file_holds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "claims.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}")
    with pytest.raises(ValueError, match="claims 9223372036854775808 bytes"):
        read_weights(path)


def test_weights_of_another_architecture_than_the_configuration_are_refused(weights: Path, tmp_path: Path) -> None:
    header, body = split(weights)
    metadata = json.loads(header["__metadata__"]["vabal"])
    metadata["config"]["width"] = 8
    path = tmp_path / "other.safetensors"
    path.write_bytes(join({**header, "__metadata__": {"vabal": json.dumps(metadata)}}, body))
    with pytest.raises(ValueError, match=r"other\.safetensors.*size mismatch"):
        read_weights(path)


@settings(max_examples=60)
@given(position=st.integers(0, 3000), value=st.integers(0, 255))
def test_a_byte_changed_in_the_header_never_raises_anything_but_a_valueerror_or_reads_a_network(
    weights: Path, tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    data = bytearray(weights.read_bytes())
    data[position] = value
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(data)
    try:
        assert isinstance(read_weights(path), ResNetClassifier)
    except ValueError as error:
        assert "changed.safetensors" in str(error)
