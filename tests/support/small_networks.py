"""Classifiers of a few weights, and images for them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vabal.learning.network import ResNetClassifier

SHAPE: dict[str, Any] = {"num_classes": 3, "image_size": 8, "channels": 1, "width": 4}


def small_network(**changes: Any) -> ResNetClassifier:
    return ResNetClassifier(**{**SHAPE, **changes})


def random_images(count: int, channels: int = 1, size: int = 8, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(256, size=(count, size, size, channels), dtype=np.uint8)
