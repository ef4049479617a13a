"""The classifier: a ResNet with features after each of its four stages (paper, Section 3.4 and 4.2), or a head on a
backbone, frozen or fine-tuned.

Imports torch and torchvision only. The source of this file travels with every registered model and is loaded, with
`read_weights`, in processes that have neither this package nor safetensors.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

BLOCKS = {"resnet10": (1, 1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3)}
SMALL_IMAGE = 64  # pixels; larger images take the ImageNet stem, which shrinks them by four first
METADATA_KEY = "vabal"  # one key only: safetensors writes several in an order that changes from run to run
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors format
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class Head(nn.Linear):
    """A last layer, in its own precision where autocast makes the layers before it coarser: eight binary digits of a
    logit would put many samples level."""

    def forward(self, values_N_D: Tensor) -> Tensor:
        kind = values_N_D.device.type
        coarser = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if coarser else nullcontext():
            return super().forward(values_N_D.to(self.weight.dtype))


class ResNetClassifier(nn.Module):
    """A ResNet of torchvision's basic blocks for images_N_K_H_W in units of 0..255, uint8 or float.

    `width` is the number of channels of the first stage; the others have 2, 4 and 8 times as many. `stem` is `small`
    (3x3 convolution of stride 1), `imagenet` (7x7 of stride 2, then max-pool) or `auto`: small up to 64 pixels.
    `mean` and `std`, a value a channel in units of 0..255, normalise the images inside the network. With `dropout`
    above 0 a dropout layer stands before each stage (paper, Section 4.2), held in `.dropouts`: set those alone to
    training mode for Monte-Carlo dropout. The first weights derive from `seed`; torch's global generator is not used.

    Raises ValueError for a setting that makes no network.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: str = "resnet18",
        *,
        num_classes: int,
        image_size: int,
        channels: int,
        width: int = 64,
        stem: str = "auto",
        dropout: float = 0.0,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if stem == "auto":
            stem = "small" if image_size <= SMALL_IMAGE else "imagenet"
        mean = (127.5,) * channels if mean is None else tuple(float(value) for value in mean)
        std = (127.5,) * channels if std is None else tuple(float(value) for value in std)
        self.config: dict[str, Any] = {
            "network": network,
            "num_classes": num_classes,
            "image_size": image_size,
            "channels": channels,
            "width": width,
            "stem": stem,
            "dropout": dropout,
            "mean": list(mean),
            "std": list(std),
        }
        _check(**self.config)
        self.feature_dims = (width, 2 * width, 4 * width, 8 * width)
        with torch.device("meta"):  # shapes only, so that torch's own first weights draw nothing
            self.stem = _stem(stem, channels, width)
            self.residual_stages = nn.ModuleList(_stages(BLOCKS[network], self.feature_dims))
            self.classifier = Head(self.feature_dims[3], num_classes)
        self.dropouts = nn.ModuleList(nn.Dropout(dropout) if dropout else nn.Identity() for _ in self.feature_dims)
        self.to_empty(device="cpu")
        # Not in the state: the configuration holds them.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @classmethod
    def from_config(cls, config: dict[str, Any], *, seed: int = 0) -> "ResNetClassifier":
        """The network that `config` describes, with first weights of `seed`. Raises ValueError for a wrong config."""
        try:
            return cls(**config, seed=seed)
        except TypeError as error:
            raise ValueError(f"not a classifier's configuration: {error}") from None

    def forward(self, images_N_K_H_W: Tensor) -> Tensor:
        """logits_N_C."""
        return self.stages(images_N_K_H_W)[1]

    def stages(self, images_N_K_H_W: Tensor) -> tuple[Tensor, Tensor]:
        """features_N_D, the global average pools of the four stages side by side, and logits_N_C."""
        maps = self.before_stages(images_N_K_H_W)
        pooled = []
        for dropout, stage in zip(self.dropouts, self.residual_stages, strict=True):
            maps = stage(dropout(maps))
            pooled.append(maps.mean(dim=(2, 3), dtype=self.mean.dtype))
        return torch.cat(pooled, dim=1), self.classifier(pooled[-1])

    def before_stages(self, images_N_K_H_W: Tensor) -> Tensor:
        """The normalised images behind the stem: what the first dropout, or else the first stage, is given."""
        if images_N_K_H_W.ndim != 4 or images_N_K_H_W.shape[1] != self.config["channels"]:
            raise ValueError(
                f"expected images of shape N x {self.config['channels']} x H x W, found {tuple(images_N_K_H_W.shape)}"
            )
        maps: Tensor = self.stem((images_N_K_H_W.to(self.mean.dtype) - self.mean) / self.std)
        return maps

    def _initialise(self, generator: torch.Generator) -> None:
        """torchvision's first weights (He et al. 2015 for convolutions), drawn from `generator`."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)


class LinearProbe(nn.Module):
    """A linear classifier on the embeddings of a frozen backbone: logits_N_C = W z + b.

    z are the chosen `columns` of an embedding, each less its `mean` and divided by its `std`; they are the features
    that strategies and the VAE see, in as many groups as layers were chosen (`feature_dims`). `dropout` above 0 is
    that of a scoring network. Trained by `vabal.learning.probe`.
    """

    columns: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        embedding: int,
        feature_dims: Sequence[int],
        backbone: Mapping[str, Any],
        penalty: float = 1.0,
        temperature: float = 1.0,
        dropout: float = 0.0,
    ) -> None:
        """`embedding` is the backbone's number of outputs, `backbone` says what it is; `penalty` and `temperature`, how
        the head was fitted. Raises ValueError for what makes no probe."""
        super().__init__()
        if min(num_classes, embedding, *feature_dims) < 1 or sum(feature_dims) > embedding:
            raise ValueError(f"no probe has {num_classes} classes and {feature_dims} of {embedding} numbers")
        self.config: dict[str, Any] = {
            "learner": "probe",
            "num_classes": num_classes,
            "embedding": embedding,
            "feature_dims": list(feature_dims),
            "backbone": dict(backbone),
            "penalty": penalty,
            "temperature": temperature,
            "dropout": dropout,
        }
        self.feature_dims = tuple(feature_dims)
        features = sum(feature_dims)
        self.register_buffer("columns", torch.arange(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        with torch.device("meta"):  # so that torch's own first weights draw nothing
            self.classifier = Head(features, num_classes)
        self.classifier.to_empty(device="cpu")
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def forward(self, embeddings_N_E: Tensor) -> Tensor:
        """logits_N_C."""
        return self.stages(embeddings_N_E)[1]

    def stages(self, embeddings_N_E: Tensor) -> tuple[Tensor, Tensor]:
        """features_N_D and logits_N_C."""
        if embeddings_N_E.ndim != 2 or embeddings_N_E.shape[1] != self.config["embedding"]:
            raise ValueError(
                f"expected embeddings of shape N x {self.config['embedding']}, found {tuple(embeddings_N_E.shape)}"
            )
        features_N_D = (embeddings_N_E.to(self.mean.dtype)[:, self.columns] - self.mean) / self.std
        return features_N_D, self.classifier(features_N_D)


class FineTuned(nn.Module):
    """A pretrained backbone that learned with a linear head, for images_N_K_H_W in units of 0..255: logits_N_C.

    `trunk` says what its layers average to, side by side: a `vabal.learning.backbones.Trunk`, or the exported program
    of one. The head is a `LinearProbe` on that; features are what the head sees. Batch norm keeps the running
    statistics that it came with while it learns, unless `frozen_statistics` is off. Trained by
    `vabal.learning.finetune`.
    """

    def __init__(self, trunk: nn.Module, **head: Any) -> None:
        """`head` is what `LinearProbe` takes; its `backbone` has one size. Raises ValueError for wrong ones."""
        super().__init__()
        self.trunk, self.head = trunk, LinearProbe(**head)
        self.config: dict[str, Any] = {**self.head.config, "learner": "finetune"}
        self.feature_dims = self.head.feature_dims
        self.frozen_statistics = True
        self.order = torch.channels_last
        if set(_PREPARATION) - set(self.config["backbone"]) or len(self.config["backbone"]["sizes"]) != 1:
            raise ValueError("a fine-tuned network needs to know how images are made ready, for one size")

    @property
    def size(self) -> int:
        """Pixels that images are resized to."""
        size: int = self.config["backbone"]["sizes"][0]
        return size

    def train(self, mode: bool = True) -> "FineTuned":
        """Sets the parts' modes one by one: an exported program refuses to be asked."""
        self.training = mode
        self.head.train(mode)
        for module in self.trunk.modules():
            frozen = self.frozen_statistics and isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = mode and not frozen
        return self

    def forward(self, images_N_K_H_W: Tensor) -> Tensor:
        """logits_N_C."""
        return self.stages(images_N_K_H_W)[1]

    def stages(self, images_N_K_H_W: Tensor) -> tuple[Tensor, Tensor]:
        """features_N_D and logits_N_C."""
        prepared = {name: self.config["backbone"][name] for name in _PREPARATION}
        features_N_D, logits_N_C = self.head.stages(embed(images_N_K_H_W, [self.trunk], **prepared, order=self.order))
        if self.training and self.config["dropout"]:
            logits_N_C = self.head.classifier(functional.dropout(features_N_D, self.config["dropout"]))
        return features_N_D, logits_N_C


_PREPARATION = ("sizes", "views", "mean", "std", "interpolation")  # of a backbone's description: what `embed` is told


def embed(
    images_N_K_H_W: Tensor,
    trunks: Sequence[Callable[[Tensor], Tensor]],
    *,
    sizes: Sequence[int],
    views: str | Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    order: torch.memory_format = torch.channels_last,
    pixels: int = 0,
) -> Tensor:
    """embeddings_N_E of raw images in units of 0..255, 1 or 3 channels: what the trunk of each size says, side by side,
    and behind it the `pixels` x `pixels` x 3 pixels themselves, in units of 0..1.

    `mean` and `std` are in units of 0..1; `views` is plain, mirrored (with the mirror image) or turned (all eight), or
    one of these for each size, and averaged over.
    """
    images = images_N_K_H_W.float().expand(-1, 3, -1, -1)
    mean_3, std_3 = (_of_channels(tuple(values), images.device) for values in (mean, std))
    parts = []
    views_of_sizes = [views] * len(sizes) if isinstance(views, str) else views
    for size, trunk, seen_as in zip(sizes, trunks, views_of_sizes, strict=True):
        normalised = (_resized(images, size, interpolation) - mean_3) / std_3
        seen = [trunk(view.contiguous(memory_format=order)) for view in _views(normalised, seen_as)]
        parts.append(torch.stack(seen).mean(dim=0))
    if pixels:
        parts.append(_resized(images, pixels, "bilinear").flatten(1) / 255)
    return torch.cat(parts, dim=1)


@cache
def _of_channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """In units of 0..255. Kept, for a copy to a GPU waits for all that it has to do."""
    with torch.inference_mode(mode=False):
        return 255 * torch.tensor(values, device=device).view(1, 3, 1, 1)


def _resized(images_N_3_H_W: Tensor, size: int, interpolation: str) -> Tensor:
    if images_N_3_H_W.shape[2:] == (size, size):
        return images_N_3_H_W
    resized = functional.interpolate(images_N_3_H_W, size=(size, size), mode=interpolation, antialias=True)
    return resized.clamp(0, 255)  # bicubic goes beyond


def _views(images_N_K_H_W: Tensor, views: str) -> list[Tensor]:
    if views == "plain":
        return [images_N_K_H_W]
    if views == "mirrored":
        return [images_N_K_H_W, images_N_K_H_W.flip(3)]
    turned = [torch.rot90(images_N_K_H_W, quarter, (2, 3)) for quarter in range(4)]
    return [*turned, *(images.flip(3) for images in turned)]


SeesImages = ResNetClassifier | FineTuned
Network = SeesImages | LinearProbe
Trunks = Callable[[Mapping[str, Any]], nn.Module]  # the trunk of a backbone, from the backbone's description


def from_config(config: dict[str, Any], trunks: Trunks | None = None) -> Network:
    """The network that `config` describes, untrained; a fine-tuned one on a trunk of `trunks`.

    Raises ValueError for a wrong config, and for a fine-tuned network where there are no trunks.
    """
    learner = config.get("learner")
    if learner not in ("probe", "finetune"):
        return ResNetClassifier.from_config(config)
    head = {key: value for key, value in config.items() if key != "learner"}
    try:
        if learner == "probe":
            return LinearProbe(**head)
        if trunks is None:
            raise ValueError("a fine-tuned network has a trunk that its weights do not bring along")
        return FineTuned(trunks(head["backbone"]), **head)
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a {learner}'s configuration: {error}") from None


def _check(
    *,
    network: str,
    num_classes: int,
    image_size: int,
    channels: int,
    width: int,
    stem: str,
    dropout: float,
    mean: list[float],
    std: list[float],
) -> None:
    if network not in BLOCKS:
        raise ValueError(f"network must be one of {', '.join(BLOCKS)}, found {network!r}")
    if stem not in ("small", "imagenet"):
        raise ValueError(f"stem must be auto, small or imagenet, found {stem!r}")
    if min(num_classes, image_size, channels, width) < 1:
        raise ValueError("num_classes, image_size, channels and width must be at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), found {dropout}")
    if len(mean) != channels or len(std) != channels or not all(math.isfinite(value) for value in mean + std):
        raise ValueError(f"mean and std must hold one finite value for each of {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"std must be above 0, found {std}")


def _stem(kind: str, channels: int, width: int) -> nn.Sequential:
    if kind == "small":
        convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    convolution = nn.Conv2d(channels, width, kernel_size=7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), pool)


def _stages(blocks: tuple[int, ...], widths: tuple[int, ...]) -> list[nn.Sequential]:
    from torchvision.models.resnet import BasicBlock  # noqa: PLC0415 -- half a second, and a probe needs none

    stages = []
    before = widths[0]
    for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        stride = 1 if index == 0 else 2
        shortcut = None
        if stride != 1 or before != width:
            convolution = nn.Conv2d(before, width, kernel_size=1, stride=stride, bias=False)
            shortcut = nn.Sequential(convolution, nn.BatchNorm2d(width))
        first = BasicBlock(before, width, stride, shortcut)
        stages.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range(count - 1))))
        before = width
    return stages


class WeightsError(ValueError):
    """The file is not one that `vabal.learning.classifier.save` wrote, or it was damaged since."""


def read_weights(path: str | Path, trunks: Trunks | None = None) -> Network:
    """The classifier that `vabal.learning.classifier.save` wrote to `path`, in evaluation mode, on the CPU.

    `trunks` makes the trunk of a fine-tuned one.

    Reads the safetensors format itself (8 bytes of header length, a JSON header, raw little-endian numbers), so that
    neither pickle nor another package is needed. Raises WeightsError, which names the file, for anything else.
    """
    path = Path(path)
    try:
        header, body = _split(path.read_bytes())
        about = header.pop("__metadata__", None)
        tensors = _tensors(header, body)
        network = from_config(_config(about), trunks)
        network.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise WeightsError(f"{path}: not a classifier's weights: {' '.join(str(error).split())}") from None
    return network.eval()


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """The JSON header, and the bytes behind it."""
    if len(data) < 8:
        raise WeightsError(f"only {len(data)} bytes long")
    length = int.from_bytes(data[:8], "little")
    if length > min(_LONGEST_HEADER, len(data) - 8):
        raise WeightsError(f"its header claims {length} bytes, the file has {len(data)}")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        raise WeightsError("its header is no JSON") from None
    if not isinstance(header, dict):
        raise WeightsError("its header is no JSON object")
    return header, memoryview(data)[8 + length :]


def _config(about: object) -> dict[str, Any]:
    if not isinstance(about, dict) or not isinstance(about.get(METADATA_KEY), str):
        raise WeightsError(f"its metadata holds no {METADATA_KEY!r}")
    try:
        config = json.loads(about[METADATA_KEY])["config"]
    except (json.JSONDecodeError, KeyError, TypeError):
        config = None
    if not isinstance(config, dict):
        raise WeightsError("its metadata holds no configuration")
    return config


def _tensors(header: dict[str, Any], body: memoryview) -> dict[str, Tensor]:
    """The named tensors; together they cover `body` without a gap or an overlap, as the format demands."""
    entries = [(name, *_entry(name, item)) for name, item in header.items()]
    tensors: dict[str, Tensor] = {}
    position = 0
    for name, dtype, shape, begin, end in sorted(entries, key=lambda entry: (entry[3], entry[4])):
        if begin != position:
            raise WeightsError(f"tensor {name!r} starts at byte {begin}, expected {position}")
        if end - begin != math.prod(shape) * dtype.itemsize:
            raise WeightsError(f"tensor {name!r} of shape {shape} has {end - begin} bytes")
        if end > len(body):
            raise WeightsError(f"tensor {name!r} ends at byte {end} of {len(body)}: the file is cut short")
        # A copy of its own: aligned, writable, and empty tensors need no special case.
        tensors[name] = torch.empty(shape, dtype=dtype)
        if end > begin:
            values = torch.frombuffer(bytearray(body[begin:end]), dtype=dtype)
            tensors[name].copy_(values.view(shape))
        position = end
    if position != len(body):
        raise WeightsError(f"{len(body) - position} bytes at its end belong to no tensor")
    return tensors


def _entry(name: str, item: object) -> tuple[torch.dtype, list[int], int, int]:
    """dtype, shape and first and last byte of one tensor, as the header states them."""
    if not isinstance(item, dict):
        raise WeightsError(f"tensor {name!r} is not described")
    dtype = _DTYPES.get(str(item.get("dtype")))
    shape: Any = item.get("shape")
    offsets: Any = item.get("data_offsets")
    if dtype is None:
        raise WeightsError(f"tensor {name!r} is of unknown type {item.get('dtype')!r}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise WeightsError(f"tensor {name!r} has a wrong shape or wrong offsets")
    return dtype, shape, offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
