"""Scoring networks beside a probe: what `committee` has for a network that learns from images, for a linear head.

An ensemble's members weigh the labelled samples at random (the Bayesian bootstrap, Rubin 1981); dropout falls on the
features, in fitting as in asking; an auxiliary module learns what the head loses on samples that it had not seen.
Axes: N samples, L labelled ones, E numbers of an embedding, D features, C classes, T passes.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from torch import Tensor, nn

from vabal.errors import UserError
from vabal.learning import loss_prediction, probe
from vabal.learning.committee import check, joined, no_answers, statistics
from vabal.learning.device import derived_seed
from vabal.learning.metrics import Metric
from vabal.learning.needs import Needs
from vabal.learning.network import Head, LinearProbe
from vabal.learning.probe import FOLDS, LabelledEmbeddings
from vabal.learning.recipe import pieces
from vabal.settings.learners import ClassifierSettings

_ABOUT: Final = "committee.json"
_WEIGHTS: Final = "committee.safetensors"
_REPLICAS: Final = 10  # masks that each labelled sample is seen under
_STEPS: Final = 300
_RATE: Final = 1e-3


class LossHead(nn.Module):
    """The loss-prediction module of Yoo & Kweon (2019) on frozen features: predicted_N, on no scale."""

    def __init__(self, feature_dims: Sequence[int], seed: int) -> None:
        super().__init__()
        self.feature_dims = list(feature_dims)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(Head(width, loss_prediction.HIDDEN) for width in feature_dims)
            self.last = Head(loss_prediction.HIDDEN * len(self.feature_dims), 1)

    def forward(self, features_N_D: Tensor) -> Tensor:
        parts = torch.split(features_N_D, self.feature_dims, dim=1)
        hidden = [nn.functional.relu(head(part)) for head, part in zip(self.heads, parts, strict=True)]
        predicted_N_1: Tensor = self.last(torch.cat(hidden, dim=1))
        return predicted_N_1.squeeze(1)


class HeadCommittee:
    """The scoring networks of one round, around the probe `first`; as `committee.Committee`."""

    def __init__(self, needs: Needs, first: LinearProbe, seed: int) -> None:
        """Untrained. Raises UserError for needs that no networks have."""
        check(needs)
        self.needs, self.first, self.seed = needs, first, seed
        self.heads: dict[str, LinearProbe] = {
            f"member{member}": self._like_first() for member in range(1, needs.members)
        }
        if needs.dropout > 0 and needs.passes > 1:
            self.heads["dropout"] = self._like_first()
        self.loss_head = None
        if needs.auxiliary_loss is not None:
            self.loss_head = LossHead(first.feature_dims, seed)

    def _like_first(self) -> LinearProbe:
        copy = LinearProbe(**{key: value for key, value in self.first.config.items() if key != "learner"})
        copy.load_state_dict(self.first.state_dict())
        return copy.eval()

    def fit(self, known: LabelledEmbeddings, settings: ClassifierSettings) -> Iterator[Metric]:
        """Trains one after another; yields `committee/<network>-<name>`."""
        for name, head in self.heads.items():
            loss, accuracy = self._fit_head(name, head, known, settings)
            yield Metric(f"committee/{name}-loss", loss, 1)
            yield Metric(f"committee/{name}-accuracy", accuracy, 1)
        if self.loss_head is not None:
            yield Metric("committee/loss_prediction-loss", self._fit_loss_head(self.loss_head, known, settings), 1)

    def _fit_head(
        self, name: str, head: LinearProbe, known: LabelledEmbeddings, settings: ClassifierSettings
    ) -> tuple[float, float]:
        if name != "dropout":
            draw = np.random.default_rng(derived_seed(self.seed, name))
            weights_L = draw.dirichlet(np.ones(len(known.labels_L))) * len(known.labels_L)
            return probe.fit_head(head, known, self.first.columns.cpu().numpy(), settings, weights_L)
        return self._fit_dropout(head, known, settings)

    def _fit_dropout(
        self, head: LinearProbe, known: LabelledEmbeddings, settings: ClassifierSettings
    ) -> tuple[float, float]:
        features_L_D, _ = _described(self.first, known.embeddings_L_E)
        draw = np.random.default_rng(derived_seed(self.seed, "dropout"))
        kept = draw.random((_REPLICAS, *features_L_D.shape)) >= self.needs.dropout
        seen = (features_L_D * kept / (1 - self.needs.dropout)).reshape(-1, features_L_D.shape[1])
        labels = np.tile(known.labels_L, _REPLICAS)
        weights = np.full(len(labels), 1 / _REPLICAS)
        classes, penalty, temperature = (head.config[name] for name in ("num_classes", "penalty", "temperature"))
        weight_C_D, bias_C = (
            solved / temperature for solved in probe.solve(seen, labels, classes, penalty, settings, weights)
        )
        with torch.no_grad():
            head.classifier.weight.copy_(torch.from_numpy(weight_C_D))
            head.classifier.bias.copy_(torch.from_numpy(bias_C))
        logits = seen @ weight_C_D.T + bias_C
        log_N = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
        return float(-log_N.mean()), float(np.mean(logits.argmax(axis=1) == labels))

    def _fit_loss_head(self, module: LossHead, known: LabelledEmbeddings, settings: ClassifierSettings) -> float:
        """By the ranks of the losses on held-out samples: on those that it learned from, a head loses nothing."""
        losses_L = torch.from_numpy(_held_out_losses(self.first, known, settings, self.seed)).float()
        features_L_D = torch.from_numpy(_described(self.first, known.embeddings_L_E)[0]).float()
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(module.parameters(), lr=_RATE)
        loss = torch.zeros(())
        for _ in range(_STEPS):
            order = torch.randperm(len(losses_L), generator=generator)
            loss = loss_prediction.ranking_loss(module(features_L_D[order]), losses_L[order])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        module.eval()
        return float(loss.detach())

    def columns(
        self,
        embeddings_N_E: NDArray[np.float32],
        *,
        device: torch.device | str = "cpu",
        sample_ids: Sequence[Any] | NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The columns of `committee.Committee.columns`, for a batch of embeddings, in its order."""
        none = no_answers(self.needs, self.first.config["num_classes"])
        return joined(none, self.answers(embeddings_N_E, torch.device(device)), sample_ids)

    def answers(self, embeddings_N_E: NDArray[np.float32], device: torch.device) -> Iterator[dict[str, Tensor]]:
        """The same columns of one piece of the batch behind the other, still on `device`."""
        for network in (self.first, *self.heads.values()):
            network.to(device).eval()
        for embeddings_P_E in pieces(embeddings_N_E, self.first, device):
            with torch.inference_mode():
                answer = self._columns(embeddings_P_E)
            yield answer

    def _columns(self, embeddings_P_E: Tensor) -> dict[str, Tensor]:
        features_P_D, logits_P_C = self.first.stages(embeddings_P_E)
        columns: dict[str, Tensor] = {}
        if "dropout" in self.heads:
            columns |= statistics(head_passes(self.heads["dropout"].classifier, features_P_D, self.needs, self.seed))
        if self.needs.members > 1:
            others = [self.heads[f"member{member}"](embeddings_P_E) for member in range(1, self.needs.members)]
            columns |= statistics(logits.unsqueeze(0) for logits in (logits_P_C, *others))
        if self.loss_head is not None:
            columns["predicted_loss_N"] = self.loss_head.to(features_P_D.device)(features_P_D).float()
        return columns

    def save(self, folder: Path) -> None:
        """Writes weights, and what `load` must know, as files of the folder."""
        modules: dict[str, nn.Module] = dict(self.heads)
        if self.loss_head is not None:
            modules["loss_prediction"] = self.loss_head
        tensors = {
            f"{name}/{key}": values.detach().cpu().contiguous()
            for name, module in modules.items()
            for key, values in module.state_dict().items()
        }
        save_file(tensors, folder / _WEIGHTS)
        about = {"needs": asdict(self.needs), "seed": self.seed}
        (folder / _ABOUT).write_text(json.dumps(about, sort_keys=True), encoding="utf-8")


def head_passes(head: nn.Module, features_P_D: Tensor, needs: Needs, seed: int) -> Iterator[Tensor]:
    """logits_1_P_C of each pass, dropout falling on the features: all samples see the same mask."""
    generator = torch.Generator().manual_seed(derived_seed(seed, "passes"))
    for _ in range(needs.passes):
        kept_D = torch.rand(features_P_D.shape[1], generator=generator) >= needs.dropout
        yield head(features_P_D * kept_D.to(features_P_D) / (1 - needs.dropout)).unsqueeze(0)


def load(folder: Path, first: LinearProbe) -> HeadCommittee:
    """The trained committee that `save` wrote. Raises UserError for missing or damaged files."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        loaded = HeadCommittee(Needs(**about["needs"]), first, about["seed"])
        tensors = load_file(folder / _WEIGHTS)
        modules: dict[str, nn.Module] = dict(loaded.heads)
        if loaded.loss_head is not None:
            modules["loss_prediction"] = loaded.loss_head
        for name, module in modules.items():
            own = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
            module.load_state_dict(own)
            module.eval()
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"{folder}: not a committee's weights ({said}); delete it and run the round again") from None
    return loaded


def _described(
    first: LinearProbe, embeddings_L_E: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    with torch.inference_mode():
        features_L_D, logits_L_C = first.to("cpu").stages(torch.from_numpy(np.array(embeddings_L_E)))
    return features_L_D.double().numpy(), logits_L_C.double().numpy()


def _held_out_losses(
    first: LinearProbe, known: LabelledEmbeddings, settings: ClassifierSettings, seed: int
) -> NDArray[np.float64]:
    if len(known.labels_L) < 2:
        return np.zeros(len(known.labels_L))
    held_out_L_C = probe.cross_fit(first, known, settings, folds=FOLDS, seed=seed).probabilities_N_C
    told_L = held_out_L_C[np.arange(len(known.labels_L)), known.labels_L].astype(np.float64)
    losses_L: NDArray[np.float64] = -np.log(np.maximum(told_L, np.finfo(np.float32).tiny))
    return losses_L
