"""Scoring networks beside the classifier: dropout passes, an ensemble, an auxiliary loss.

The classifier that a round evaluates and registers is the same for every strategy; what a strategy's needs ask of
training beyond it is trained here, on the same labelled pool with the same recipe (docs/decisions/scoring-networks.md).
Axes: N samples, P samples of a piece, T passes, S of them at once, C classes, K channels, H x W pixels.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from vabal.errors import UserError
from vabal.learning import classifier, loss_prediction
from vabal.learning.device import brought
from vabal.learning.metrics import Metric
from vabal.learning.needs import Needs, check_finite
from vabal.learning.network import ResNetClassifier, SeesImages
from vabal.learning.recipe import Images, Objective, memory_format, pieces, place
from vabal.settings.learners import ClassifierSettings

SomeNetwork = TypeVar("SomeNetwork", bound=SeesImages)
AnyCommittee = TypeVar("AnyCommittee", bound="ImageCommittee[Any]")
AUXILIARY_LOSSES = ("loss_prediction",)
DROPOUT = "dropout"
_ABOUT = "committee.json"
_PIXELS_AT_ONCE = 2**16  # a channel, of a piece times its passes: what fits a CPU's caches, as in `classifier.pieces`
_PIXELS_AT_ONCE_ELSEWHERE = 2**20
_PIXELS_IN_STAGES = 2**13  # of them, on a CPU, go through the stages together: their maps are what passes hold


def count(needs: Needs) -> int:
    """How many networks beside the classifier the needs ask for."""
    return len(names(needs))


def names(needs: Needs) -> list[str]:
    """Of the networks beside the classifier, in the order in which they are trained."""
    members = [f"member{member}" for member in range(1, needs.members)]
    passes, loss = [DROPOUT] if has_passes(needs) else [], needs.auxiliary_loss
    return [*passes, *members, *([loss] if loss is not None else [])]


def is_needed(needs: Needs) -> bool:
    """Whether the needs ask for any network beside the classifier."""
    return count(needs) > 0


def check(needs: Needs) -> None:
    """Raises UserError for an auxiliary loss that is not known, and for dropout passes and an ensemble in one."""
    if needs.auxiliary_loss is not None and needs.auxiliary_loss not in AUXILIARY_LOSSES:
        known = ", ".join(AUXILIARY_LOSSES)
        raise UserError(f"there is no auxiliary loss {needs.auxiliary_loss!r}; known are: {known}")
    if has_passes(needs) and needs.members > 1:
        raise UserError("dropout passes and an ensemble fill the same columns: a strategy can need only one of them")


def has_passes(needs: Needs) -> bool:
    """Whether the needs ask for passes of a network with dropout."""
    return needs.dropout > 0 and needs.passes > 1


class Training(NamedTuple, Generic[SomeNetwork]):
    """One network of a committee, and how it is trained."""

    network: SomeNetwork
    seed: int
    objective: Objective | None = None  # the classifier's own
    largest_gradient: float | None = None


def build(needs: Needs, config: dict[str, Any], *, first: ResNetClassifier, seed: int) -> "Committee":
    """The untrained networks that the needs ask for, each of the classifier's `config`.

    `first` is the trained classifier: member 0 of an ensemble. `seed` is the classifier's: the network with dropout and
    the one with an auxiliary loss start from the classifier's first weights and see its batches; the seeds of an
    ensemble's other members derive from it. Raises UserError as `check` does.
    """
    check(needs)
    trainings: dict[str, Training[ResNetClassifier]] = {}
    if has_passes(needs):
        with_dropout = ResNetClassifier.from_config({**config, "dropout": needs.dropout}, seed=seed)
        trainings[DROPOUT] = Training(with_dropout, seed)
    for member in range(1, needs.members):
        own = derived_seed(seed, f"member {member}")
        trainings[f"member{member}"] = Training(ResNetClassifier.from_config(config, seed=own), own)
    if needs.auxiliary_loss is not None:
        predictor = loss_prediction.LossPredictor.from_config(config, seed=seed)
        trainings[needs.auxiliary_loss] = Training(
            predictor, seed, loss_prediction.objective, loss_prediction.LARGEST_GRADIENT
        )
    return Committee(needs, first, seed, trainings)


def load(folder: Path, first: ResNetClassifier, device: torch.device | str = "cpu") -> "Committee":
    """The trained committee that `save` wrote, around the classifier. Raises UserError for missing or damaged files."""

    def made(needs: Needs, seed: int) -> Committee:
        return build(needs, first.config, first=first, seed=seed)

    return read(folder, made, device)


def read(folder: Path, made: Callable[[Needs, int], AnyCommittee], device: torch.device | str) -> AnyCommittee:
    """The committee that `made` makes for the needs and the seed that its `save` wrote, with its weights."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        loaded = made(Needs(**about["needs"]), about["seed"])
        for name, network in loaded.networks.items():
            network.load_state_dict(load_file(folder / f"{name}.safetensors"))
            network.to(device).eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: not a committee's weights ({said}); delete it and run the round again") from None
    return loaded


class ImageCommittee(Generic[SomeNetwork]):
    """The scoring networks of one round that see images: `trainings` by name, and the classifier `first`."""

    def __init__(
        self, needs: Needs, first: SomeNetwork, seed: int, trainings: dict[str, Training[SomeNetwork]]
    ) -> None:
        self.needs, self.first, self.seed = needs, first, seed
        self.trainings = trainings

    @property
    def networks(self) -> dict[str, SomeNetwork]:
        return {name: training.network for name, training in self.trainings.items()}

    def alone(self, name: str) -> Self:
        """The committee of one of its networks, to be trained by itself: the same as among the others."""
        return type(self)(self.needs, self.first, self.seed, {name: self.trainings[name]})

    def columns(
        self,
        images_N_H_W_K: Images,
        *,
        device: torch.device | str = "cpu",
        sample_ids: Sequence[Any] | NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The shard's columns that the networks provide for a batch of uint8 images, in their order.

        `predictive_N_C`, `expected_entropy_N` (float64, nats) and `votes_N_C` of the dropout passes or the ensemble;
        `predicted_loss_N` of the auxiliary loss. But for rounding, they depend neither on the pool's order nor on its
        batches. The networks stay as they are, batch-norm statistics included. Time: O(N T) forward passes, or
        O(N members); memory: one piece of the batch, and the masks of the dropout passes.

        Raises UserError if a number is not finite, naming the samples by `sample_ids`, or else by their rows.
        """
        none = no_answers(self.needs, self.first.config["num_classes"])
        return joined(none, self.answers(images_N_H_W_K, torch.device(device)), sample_ids)

    def answers(self, images_N_H_W_K: Images, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """The same columns of one piece of the batch behind the other, still on `device`."""
        for network in (self.first, *self.networks.values()):
            place(network, device).eval()
        for images_P_K_H_W in pieces(images_N_H_W_K, self.first, device):
            with torch.inference_mode():
                answer = self._columns(images_P_K_H_W)
            yield answer

    def _columns(self, images_P_K_H_W: Tensor) -> dict[str, Tensor]:
        columns: dict[str, Tensor] = {}
        if DROPOUT in self.trainings:
            columns |= statistics(self._passes_over(images_P_K_H_W))
        if self.needs.members > 1:
            members = [self.first, *(self.networks[f"member{member}"] for member in range(1, self.needs.members))]
            columns |= statistics(member(images_P_K_H_W).unsqueeze(0) for member in members)
        if self.needs.auxiliary_loss is not None:
            predictor = self.networks[self.needs.auxiliary_loss]
            columns["predicted_loss_N"] = loss_prediction.predict(predictor, images_P_K_H_W)
        return columns

    def _passes_over(self, images_P_K_H_W: Tensor) -> Iterator[Tensor]:
        """logits_S_P_C of some dropout passes at a time."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Writes the networks' weights, and what `load` must know, as files of the folder."""
        for name, network in self.networks.items():
            classifier.save(network, folder / f"{name}.safetensors")
        about = {"needs": asdict(self.needs), "seed": self.seed}
        (folder / _ABOUT).write_text(json.dumps(about, sort_keys=True), encoding="utf-8")


class Committee(ImageCommittee[ResNetClassifier]):
    """Of networks that learn from random weights."""

    _passes: "DropoutPasses | None" = None

    def fit(
        self,
        images_N_H_W_K: Images,
        labels_N: NDArray[np.integer],
        settings: ClassifierSettings,
        *,
        device: torch.device | str = "cpu",
        precision: torch.dtype = torch.float32,
    ) -> Iterator[Metric]:
        """Trains one network after another; yields `committee/<network>-<name>` of each epoch.

        Raises what `classifier.fit` raises.
        """
        self._passes = None
        for name, training in self.trainings.items():
            for metric in classifier.fit(
                training.network,
                images_N_H_W_K,
                labels_N,
                settings,
                seed=training.seed,
                device=device,
                precision=precision,
                objective=training.objective,
                largest_gradient=training.largest_gradient,
            ):
                yield metric._replace(name=f"committee/{name}-{metric.name.removeprefix('train/')}")

    def _passes_over(self, images_P_K_H_W: Tensor) -> Iterator[Tensor]:
        """logits_S_P_C of some passes at a time. Folded weights and masks are kept from batch to batch."""
        device, network = images_P_K_H_W.device, self.networks[DROPOUT]
        if self._passes is None or self._passes.device != device:
            self._passes = DropoutPasses(network, self.needs.passes, seed=self.seed, device=device)
        return self._passes.logits(images_P_K_H_W)


class DropoutPasses:
    """Monte-Carlo dropout (Gal & Ghahramani 2016; paper, Section 4.2) of a trained network, in evaluation mode.

    Only the masks are random. Pass t has one mask for each dropout layer, of the shape of one sample's map and drawn
    from `seed`, which all samples share: one draw from the posterior of the weights, asked about every sample. A
    sample's own statistics are distributed as with masks of its own, and they cannot depend on the samples beside it.

    What stands before the first dropout runs once for all passes, and batch norm is folded into the convolutions, block
    by block. Passes of a small piece go together; on a CPU few maps at a time go through the stages, which changes no
    bit. Memory: the piece behind the stem, those few maps, one block's weights, and a bit for each pass and number of
    one sample's maps.
    """

    def __init__(self, network: ResNetClassifier, passes: int, *, seed: int, device: torch.device) -> None:
        self.network, self.passes, self.seed, self.device = network, passes, seed, device
        self._packed: dict[tuple[int, ...], NDArray[np.uint8]] = {}
        self._sent: dict[tuple[int, ...], Tensor] = {}  # to a GPU, whole

    def logits(self, images_P_K_H_W: Tensor) -> Iterator[Tensor]:
        """Yields logits_S_P_C until all T passes were made, S at once."""
        maps_P_K_H_W = self.network.before_stages(images_P_K_H_W)
        pixels = images_P_K_H_W.numel() // images_P_K_H_W.shape[1]
        most = _PIXELS_AT_ONCE if self.device.type == "cpu" else _PIXELS_AT_ONCE_ELSEWHERE
        at_once = max(1, most // pixels)
        for start in range(0, self.passes, at_once):
            passes = range(start, min(start + at_once, self.passes))
            pooled = [self._pooled(maps_P_K_H_W, passes, rows) for rows in self._parts(len(passes), images_P_K_H_W)]
            yield _by_pass(self.network.classifier(torch.cat(pooled)), len(maps_P_K_H_W))

    def _parts(self, passes: int, images_P_K_H_W: Tensor) -> Iterator[slice]:
        """Rows of pass behind pass, M = S * P, that go through the stages together.

        On a CPU more than one unless there is only one: oneDNN adds up a single image's products in another order.
        """
        samples, _, height, width = images_P_K_H_W.shape
        rows = passes * samples
        most = max(2, _PIXELS_IN_STAGES // (height * width)) if self.device.type == "cpu" else rows
        bounds = np.linspace(0, rows, max(1, rows // most) + 1).astype(int).tolist()
        return map(slice, bounds[:-1], bounds[1:])

    def _pooled(self, maps_P_K_H_W: Tensor, passes: range, rows: slice) -> Tensor:
        """pooled_M_D behind the last stage, of some rows of these passes."""
        samples = len(maps_P_K_H_W)
        there = range(rows.start // samples, (rows.stop - 1) // samples + 1)
        counts = [min(rows.stop, (at + 1) * samples) - max(rows.start, at * samples) for at in there]
        sample_M = torch.arange(rows.start, rows.stop, device=self.device) % samples
        maps_M_K_H_W = maps_P_K_H_W[sample_M]
        for index, stage in enumerate(self.network.residual_stages):
            scale_S_K_H_W = self._scales(index, maps_M_K_H_W, slice(passes[there[0]], passes[there[-1]] + 1))
            for maps, scale_K_H_W in zip(maps_M_K_H_W.split(counts), scale_S_K_H_W, strict=True):
                maps.mul_(scale_K_H_W)
            maps_M_K_H_W = _folded(stage, maps_M_K_H_W)
        pooled_M_D: Tensor = maps_M_K_H_W.mean(dim=(2, 3), dtype=torch.float32)
        return pooled_M_D

    def masks(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """kept_T_K_H_W of the dropout before stage `index`, whose maps have the shape K x H x W."""
        return self._kept(index, shape, slice(0, self.passes))

    def _kept(self, index: int, shape: tuple[int, ...], passes: slice) -> Tensor:
        """kept_S_K_H_W, in the maps' order in memory, which is also that of the bits."""
        channels, height, width = shape
        last = memory_format(self.network, self.device) == torch.channels_last
        key = (index, *shape)
        if key not in self._packed:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, f"dropout before stage {index}"))
            dropout = self.network.config["dropout"]
            drawn = (torch.rand(shape, generator=generator) >= dropout for _ in range(self.passes))
            in_order = (kept_K_H_W.permute(1, 2, 0) if last else kept_K_H_W for kept_K_H_W in drawn)
            self._packed[key] = np.stack([np.packbits(kept.numpy()) for kept in in_order])
        numbers = channels * height * width
        if self.device.type == "cpu":
            kept_S_B = _bools(self._packed[key][passes], numbers)
        else:
            if key not in self._sent:
                self._sent[key] = _bools(self._packed[key], numbers).to(self.device)
            kept_S_B = self._sent[key][passes]
        in_memory = (height, width, channels) if last else shape
        kept_S_K_H_W: Tensor = kept_S_B.unflatten(1, in_memory)
        return kept_S_K_H_W.permute(0, 3, 1, 2) if last else kept_S_K_H_W

    def _scales(self, index: int, maps: Tensor, passes: slice) -> Tensor:
        scale_S_K_H_W: Tensor = self._kept(index, tuple(maps.shape[1:]), passes).to(maps.dtype)
        return scale_S_K_H_W.div_(1 - self.network.config["dropout"])


def _bools(packed_S_B: NDArray[np.uint8], numbers: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(packed_S_B, axis=1, count=numbers)).view(torch.bool)


def _by_pass(values_M: Tensor, samples: int) -> Tensor:
    """What stands pass behind pass, M = S * P rows, as S x P; a view."""
    values_S_P: Tensor = values_M.unflatten(0, (-1, samples))
    return values_S_P


def joined(
    none: dict[str, NDArray[Any]],
    answers: Iterable[dict[str, Tensor]],
    sample_ids: Sequence[Any] | NDArray[Any] | None,
) -> dict[str, NDArray[Any]]:
    """The columns of all pieces, behind those of no samples. Raises UserError if a number is not finite."""
    parts = [none, *(part for _, part in _brought((0, answer) for answer in answers))]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in none}
    for name, values in whole.items():
        check_finite(name, values, [f"row {row}" for row in range(len(values))] if sample_ids is None else sample_ids)
    return whole


class Answers(Protocol):
    """Scoring networks of any kind, as `described` asks them."""

    def answers(self, inputs_N: Any, device: torch.device) -> Iterator[dict[str, Tensor]]: ...


def described(
    networks: Answers, batches: Iterable[tuple[int, Any]], device: torch.device, sample_ids: NDArray[Any]
) -> Iterator[dict[str, NDArray[Any]]]:
    """What the networks say of batches (first row, inputs) of rows, some rows at a time: a GPU is asked on while their
    columns are on their way. Raises UserError if a number is not finite."""
    row = 0
    for start, part in _brought(
        (start, answer) for start, batch in batches for answer in networks.answers(batch, device)
    ):
        row = max(row, start)
        for name, values in part.items():
            check_finite(name, values, sample_ids[row : row + len(values)])
        yield part
        row += len(next(iter(part.values())))


def _brought(answers: Iterable[tuple[int, dict[str, Tensor]]]) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
    told = (((start, tuple(answer)), tuple(answer.values())) for start, answer in answers)
    for (start, names), arrays in brought(told):
        yield start, dict(zip(names, arrays, strict=True))


def statistics(answers: Iterable[Tensor]) -> dict[str, Tensor]:
    """Of logits_S_P_C, some answers at a time: the mean posterior, the mean entropy in nats, and the votes.

    Sums in float64, so that the difference of two entropies means something where both are small.
    """
    predictive_P_C = entropy_P = votes_P_C = torch.zeros(())
    count = 0
    for logits_S_P_C in answers:
        log_S_P_C = logits_S_P_C.double().log_softmax(dim=2)
        probabilities_S_P_C = log_S_P_C.exp()
        predictive_P_C = predictive_P_C + probabilities_S_P_C.sum(dim=0)
        entropy_P = entropy_P - torch.where(probabilities_S_P_C > 0, probabilities_S_P_C * log_S_P_C, 0).sum(dim=(0, 2))
        voted_S_P_C = nn.functional.one_hot(logits_S_P_C.argmax(dim=2), logits_S_P_C.shape[2])
        votes_P_C = votes_P_C + voted_S_P_C.sum(dim=0)
        count += len(logits_S_P_C)
    return {
        "predictive_N_C": predictive_P_C / count,
        "expected_entropy_N": entropy_P / count,
        "votes_N_C": votes_P_C.to(torch.int32),
    }


def column_types(needs: Needs) -> dict[str, str]:
    """The columns that a committee of these needs provides, and their types; names that end in _C have C columns."""
    types: dict[str, str] = {}
    if has_passes(needs) or needs.members > 1:
        types |= {"predictive_N_C": "<f8", "expected_entropy_N": "<f8", "votes_N_C": "<i4"}
    if needs.auxiliary_loss is not None:
        types["predicted_loss_N"] = "<f4"
    return types


def no_answers(needs: Needs, num_classes: int) -> dict[str, NDArray[Any]]:
    """The columns of no samples."""
    shapes = {True: (0, num_classes), False: (0,)}
    return {name: np.zeros(shapes[name.endswith("_C")], kind) for name, kind in column_types(needs).items()}


def _folded(stage: nn.Module, maps: Tensor) -> Tensor:
    """What a residual stage makes of the maps in evaluation, with its batch norms folded into the convolutions."""
    from torchvision.models.resnet import BasicBlock  # noqa: PLC0415 -- half a second

    for block in stage.children():
        if not isinstance(block, BasicBlock):
            raise TypeError(f"expected a BasicBlock, found {type(block).__name__}")
        shortcut = maps if block.downsample is None else _convolved(block.downsample[0], block.downsample[1], maps)
        maps = _convolved(block.conv2, block.bn2, _convolved(block.conv1, block.bn1, maps).relu_())
        maps = maps.add_(shortcut).relu_()
    return maps


def _convolved(convolution: nn.Module, norm: nn.Module, maps: Tensor) -> Tensor:
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 -- a block's are
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None  # noqa: S101
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return nn.functional.conv2d(maps, weight, bias, convolution.stride, convolution.padding)


def derived_seed(seed: int, purpose: str) -> int:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
