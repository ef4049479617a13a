"""The loss-prediction module of Yoo & Kweon, "Learning Loss for Active Learning" (CVPR 2019, arXiv:1905.03677).

A small module beside a classifier learns to rank samples by their loss. The settings are those of the paper and of its
authors' code: margin and weight 1, hidden layers of 128, and after 120 of 200 epochs the module no longer shapes the
classifier's features. Axes: N samples, D features, C classes, P pairs.
"""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vabal.learning.network import Head, ResNetClassifier, SeesImages

HIDDEN = 128
MARGIN = 1.0
WEIGHT = 1.0
LARGEST_GRADIENT = 5.0  # not in the paper: on small batches the module's output runs away, and training diverges
APART_AFTER = 0.6  # share of the epochs after which the module's gradient stops at the features


class LossPredictor(ResNetClassifier):
    """A classifier with the loss-prediction module beside it; `from_config` takes a classifier's configuration.

    Each stage's map goes through global average pooling, a linear layer and a ReLU; a linear layer makes one number of
    the four results. The classifier's first weights are those that `seed` gives a `ResNetClassifier`.
    """

    def __init__(self, *arguments: Any, seed: int = 0, **settings: Any) -> None:
        super().__init__(*arguments, seed=seed, **settings)
        with torch.device("meta"):  # shapes only, so that torch's own first weights draw nothing
            self.stage_heads = nn.ModuleList(Head(width, HIDDEN) for width in self.feature_dims)
            self.loss_head = Head(HIDDEN * len(self.feature_dims), 1)
        generator = torch.Generator().manual_seed(seed)
        for layer in [*self.stage_heads, self.loss_head]:
            layer.to_empty(device="cpu")
            bound = 1 / math.sqrt(layer.in_features)  # torch's own range
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def predicted_loss(self, features_N_D: Tensor) -> Tensor:
        """predicted_N, on no scale: only its order means something."""
        pooled = torch.split(features_N_D, list(self.feature_dims), dim=1)
        hidden = [functional.relu(head(part)) for head, part in zip(self.stage_heads, pooled, strict=True)]
        predicted_N_1: Tensor = self.loss_head(torch.cat(hidden, dim=1))
        return predicted_N_1.squeeze(1)


@runtime_checkable
class PredictsLosses(Protocol):
    """A network with a module that predicts losses."""

    def stages(self, images_N_K_H_W: Tensor) -> tuple[Tensor, Tensor]: ...

    def predicted_loss(self, features_N_D: Tensor) -> Tensor: ...


def predict(network: SeesImages, images_N_K_H_W: Tensor) -> Tensor:
    """predicted_loss_N of the images. Raises TypeError for a network that predicts no losses."""
    predictor = _predictor(network)
    return predictor.predicted_loss(predictor.stages(images_N_K_H_W)[0]).float()


def objective(network: SeesImages, images_N_K_H_W: Tensor, targets_N: Tensor, over: float) -> tuple[Tensor, Tensor]:
    """For `classifier.fit`: mean cross entropy + `WEIGHT` * ranking loss of the predicted losses, and logits_N_C.

    `over` is the share of the epochs that are over: from `APART_AFTER` on the features are detached. Raises TypeError
    for a network that predicts no losses.
    """
    features_N_D, logits_N_C = network.stages(images_N_K_H_W)
    loss_N = functional.cross_entropy(logits_N_C.float(), targets_N, reduction="none")
    if over >= APART_AFTER:
        features_N_D = features_N_D.detach()
    predicted_N = _predictor(network).predicted_loss(features_N_D).float()
    return loss_N.mean() + WEIGHT * ranking_loss(predicted_N, loss_N.detach()), logits_N_C


def ranking_loss(predicted_N: Tensor, loss_N: Tensor, margin: float = MARGIN) -> Tensor:
    """Mean over pairs of max(0, margin - s * (predicted_i - predicted_j)); s is 1 where loss_i > loss_j, else -1.

    The first half of the batch is paired with the second; the last sample of an odd batch is left out. Zero where there
    is no pair. O(N).
    """
    pairs = len(predicted_N) // 2
    if not pairs:
        return predicted_N.sum() * 0
    ahead_P = predicted_N[:pairs] - predicted_N[pairs : 2 * pairs]
    sign_P = torch.where(loss_N[:pairs] > loss_N[pairs : 2 * pairs], 1.0, -1.0)
    return functional.relu(margin - sign_P * ahead_P).mean()


def _predictor(network: SeesImages) -> PredictsLosses:
    if not isinstance(network, PredictsLosses):
        raise TypeError(f"expected a LossPredictor, found {type(network).__name__}")
    return network
