"""A training step of the VAE against its bare matrix products: `python -m benchmarks.vae_step`.

The step is `vabal.vae.fit`'s, reading its batch from features in memory. The bare products are those of every linear
layer: forward, and backward towards weights and inputs, on tensors made beforehand.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.threads import one_thread
from vabal import vae as vaes
from vabal.settings.models import VaeSettings
from vabal.vae import Loss

WIDTHS = {"ResNet-18": (64, 128, 256, 512), "ResNet-10, width 8": (8, 16, 32, 64)}
CLASSES, SAMPLES, EPOCHS = 10, 4096, 20
MOST = 3.0


def run(samples: int = SAMPLES, epochs: int = EPOCHS) -> dict[str, Any]:
    """Milliseconds a step, and the median of the epochs' ratios; `ratio` is the larger of the two networks'.

    Training and products take turns, epoch by epoch, with one thread each, as a round trains the VAE.
    """
    results: dict[str, Any] = {"batch": VaeSettings().batch_size}
    with one_thread():
        for name, widths in WIDTHS.items():
            results[name] = _compare(widths, samples, epochs)
    results["ratio"] = max(results[name]["ratio"] for name in WIDTHS)
    return results


def _compare(widths: tuple[int, ...], samples: int, epochs: int) -> dict[str, float]:
    numbers = np.random.default_rng(0)
    features_N_D = np.maximum(numbers.normal(size=(samples, sum(widths))), 0).astype(np.float32)
    classes_N = numbers.integers(0, CLASSES, samples)
    settings = {"epochs": epochs, "min_steps": 0, "max_steps": 0, "warmup_epochs": 0}
    training = vaes.fit(vaes.build(widths, CLASSES, settings, seed=0), features_N_D, classes_N, seed=0)
    products = bare_products(widths)
    steps = samples // VaeSettings().batch_size
    taken: dict[str, list[float]] = {"step": [], "products": []}
    for _ in range(epochs):
        taken["step"].append(_milliseconds(lambda: next(training)) / steps)  # an epoch; its other losses are there
        taken["products"].append(_milliseconds(lambda: [products() for _ in range(steps)]) / steps)
        for _ in Loss._fields[1:]:
            next(training)
    return {
        "step_ms": statistics.median(taken["step"]),
        "products_ms": statistics.median(taken["products"]),
        "ratio": statistics.median(step / bare for step, bare in zip(taken["step"], taken["products"], strict=True)),
    }


def bare_products(widths: tuple[int, ...]) -> Callable[[], None]:
    """A call multiplies as a step must: three products for each linear layer, each into memory of its own."""
    network = vaes.build(widths, CLASSES, seed=0)
    batch = VaeSettings().batch_size
    operands = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear):
            inputs, outputs = torch.randn(batch, layer.in_features), torch.randn(batch, layer.out_features)
            operands.append((inputs, outputs, layer.weight.detach()))

    def products() -> None:
        for inputs_B_I, outputs_B_O, weight_O_I in operands:
            torch.mm(inputs_B_I, weight_O_I.T)
            torch.mm(outputs_B_O.T, inputs_B_I)
            torch.mm(outputs_B_O, weight_O_I)

    return products


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
