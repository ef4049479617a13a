"""Scoring networks beside the classifier: dropout passes, an ensemble, an auxiliary loss.

The classifier that a round evaluates and registers is the same for every strategy; what a strategy's needs ask of
training beyond it is trained here, on the same labelled pool with the same recipe (docs/decisions/scoring-networks.md).
Axes: N samples, P samples of a piece, T passes, S of them at once, C classes, K channels, H x W pixels.
"""

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

from vabal.errors import UserError
from vabal.learning import classifier, loss_prediction
from vabal.learning.device import brought, derived_seed
from vabal.learning.dropout_passes import DropoutPasses
from vabal.learning.metrics import Metric
from vabal.learning.needs import Needs, check_finite
from vabal.learning.network import ResNetClassifier, SeesImages
from vabal.learning.recipe import Images, Objective, pieces, place
from vabal.settings.learners import ClassifierSettings

SomeNetwork = TypeVar("SomeNetwork", bound=SeesImages)
AnyCommittee = TypeVar("AnyCommittee", bound="ImageCommittee[Any]")
AUXILIARY_LOSSES = ("loss_prediction",)
DROPOUT = "dropout"
_ABOUT = "committee.json"


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
        O(N members); memory: one piece of the batch.

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

    _passes: DropoutPasses | None = None

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
        """logits_S_P_C of some passes at a time. Their masks are the same from batch to batch."""
        device, network = images_P_K_H_W.device, self.networks[DROPOUT]
        if self._passes is None or self._passes.device != device:
            self._passes = DropoutPasses(network, self.needs.passes, seed=self.seed, device=device)
        return self._passes.logits(images_P_K_H_W)


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
