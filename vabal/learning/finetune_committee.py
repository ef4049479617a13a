"""Scoring networks beside a fine-tuned classifier: what `committee` has for a network from random weights.

Each is the pretrained backbone, trained anew: an ensemble's members begin with heads that weigh the labelled samples at
random (the Bayesian bootstrap, Rubin 1981) and see batches of their own, dropout falls on the features, and the module
that predicts losses learns with its network. Axes: N samples, P samples of a piece, C classes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vabal.learning import backbones, finetune, loss_prediction
from vabal.learning.committee import DROPOUT, ImageCommittee, Training, check, has_passes, read
from vabal.learning.device import derived_seed
from vabal.learning.finetune import LabelledImages, Recipe
from vabal.learning.head_committee import LossHead, head_passes
from vabal.learning.metrics import Metric
from vabal.learning.needs import Needs
from vabal.learning.network import FineTuned, Trunks


class LossPredictingFineTuned(FineTuned):
    """A fine-tuned network with the loss-prediction module of Yoo & Kweon (2019) on its features."""

    def __init__(self, trunk: nn.Module, *, seed: int, **head: Any) -> None:
        super().__init__(trunk, **head)
        self.loss_head = LossHead(self.feature_dims, seed)

    def predicted_loss(self, features_N_D: Tensor) -> Tensor:
        """predicted_N, on no scale."""
        predicted_N: Tensor = self.loss_head(features_N_D)
        return predicted_N


class FineTunedCommittee(ImageCommittee[FineTuned]):
    """Of networks that learn from the pretrained backbone."""

    def fit(self, known: LabelledImages, recipe: Recipe) -> Iterator[Metric]:
        """Trains one network after another from the pretrained weights; yields `committee/<network>-<name>`.

        Raises what `finetune.train` raises.
        """
        for name, training in self.trainings.items():
            network = training.network
            draw = np.random.default_rng(training.seed)
            samples = len(known.labels_L)
            weights_L = draw.dirichlet(np.ones(samples)) * samples if name.startswith("member") else None
            finetune.refit(network, self.first, known, recipe, weights_L)
            for metric in finetune.train(
                network,
                known,
                recipe,
                seed=training.seed,
                objective=training.objective,
                largest_gradient=training.largest_gradient,
            ):
                yield metric._replace(name=f"committee/{name}-{metric.name.removeprefix('train/')}")

    def _passes_over(self, images_P_K_H_W: Tensor) -> Iterator[Tensor]:
        network = self.networks[DROPOUT]
        features_P_D, _ = network.stages(images_P_K_H_W)
        return head_passes(network.head.classifier, features_P_D, self.needs, self.seed)


def build(needs: Needs, first: FineTuned, trunks: Trunks, *, seed: int) -> FineTunedCommittee:
    """The networks that the needs ask for, like `first`, on trunks that `trunks` makes; `seed` is the classifier's.

    Raises UserError for needs that no networks have.
    """
    check(needs)
    head = {name: value for name, value in first.config.items() if name != "learner"}

    def trunk() -> nn.Module:
        return trunks(head["backbone"])

    trainings: dict[str, Training[FineTuned]] = {}
    if has_passes(needs):
        trainings[DROPOUT] = Training(FineTuned(trunk(), **{**head, "dropout": needs.dropout}), seed)
    for member in range(1, needs.members):
        trainings[f"member{member}"] = Training(FineTuned(trunk(), **head), derived_seed(seed, f"member {member}"))
    if needs.auxiliary_loss is not None:
        predictor = LossPredictingFineTuned(trunk(), seed=seed, **head)
        trainings[needs.auxiliary_loss] = Training(
            predictor, seed, loss_prediction.objective, loss_prediction.LARGEST_GRADIENT
        )
    return FineTunedCommittee(needs, first, seed, trainings)


def load(folder: Path, first: FineTuned, device: torch.device | str = "cpu") -> FineTunedCommittee:
    """The trained committee that `save` wrote, around the classifier. Raises UserError for missing or damaged files."""

    def made(needs: Needs, seed: int) -> FineTunedCommittee:
        return build(needs, first, backbones.untrained, seed=seed)

    return read(folder, made, device)
