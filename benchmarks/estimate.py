"""The estimate of Eq. 9 against the way of the published code: `python -m benchmarks.estimate`.

Both run in one process, in float32, with the same independent draws, and must agree. How many of them it takes is
another question: `benchmarks.draws`. `bfloat16` is the same estimate with the setting `products: auto`, where the
processor multiplies bfloat16 by itself. `auto` compares the sampling of that name with both that it chooses from.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal import vae as vaes
from vabal.probabilities import estimate_likelihood, products_of, shared_noise
from vabal.vae import FeatureVAE, kl_divergence

FEATURE_DIMS = (64, 128, 256, 512)  # a ResNet-18
DRAWS = 100
MATMULS, ROWS = 400, 1024  # plain products of a tile of latents and a square layer, for the rate to compare with
SETTINGS = {"likelihood_reduction": "mean", "draws": DRAWS, "sampling": "independent"}
SAMPLES = {10: 1024, 100: 32}  # by number of classes: the loops take seconds each


LEAST = {10: 4.0, 100: 7.0}  # times the speed of the published code's way, by number of classes
LEAST_BFLOAT16 = 10.0  # the same with products in bfloat16
MOST_ERROR = 0.02  # of those, of the deviation over the samples
CHOICES = ((10, 128), (10, 2048), (100, 128))  # classes and samples at which `auto` chooses
MOST_AUTO = 1.3  # times the quicker of the two
LEAST_SHARE = 0.6  # of the rate of the plain product


def run(samples: dict[int, int] | None = None, repeats: int = 3) -> dict[str, Any]:
    """Seconds and ratios at each number of classes, with one thread and with all; the ways take turns.

    Seconds are the least of the repeats, ratios the median of the repeats' own. `ratio` is against the published code,
    which runs heads and encoder again for every draw; `ratio_encoded_once` against the same loop over draws and classes
    behind an encoder that ran once.
    """
    results: dict[str, Any] = {"draws": DRAWS}
    chosen = samples or SAMPLES
    before = torch.get_num_threads()
    for threads in sorted({1, before}):
        torch.set_num_threads(threads)
        for classes, count in chosen.items():
            results[f"C={classes}, threads={threads}"] = _compare(classes, count, repeats)
    torch.set_num_threads(before)
    for classes in chosen:
        found = [value for name, value in results.items() if name.startswith(f"C={classes},")]
        results[f"C={classes}"] = {
            key: min(one[key] for one in found)
            for key in ("ratio", "share_of_matmul_rate", "ratio_bfloat16")
            if key in found[0]
        }
    results["auto"] = {f"C={classes}, N={count}": _choice(classes, count) for classes, count in CHOICES}
    return results


def _choice(classes: int, count: int) -> dict[str, float]:
    """Seconds of ten anchored draws, of a hundred independent ones, and of what `auto` takes; each once warm."""
    network = _network(classes)
    network.pool_size.fill_(count)
    features_N_D = torch.randn(count, sum(FEATURE_DIMS), generator=torch.Generator().manual_seed(1)).relu()
    network.anchors_A_D.copy_(torch.randn(network.anchors_A_D.shape, generator=torch.Generator().manual_seed(3)).relu())
    ways = {"anchored": 10, "independent": DRAWS, "auto": 10}

    def estimate(sampling: str, draws: int) -> Any:
        settings = {**SETTINGS, "sampling": sampling, "draws": draws}
        return list(estimate_likelihood(network, [features_N_D], generator=0, settings=settings))

    taken, _ = _in_turn({name: partial(estimate, name, draws) for name, draws in ways.items()}, 3)
    seconds = {name: float(values_R.min()) for name, values_R in taken.items()}
    return seconds | {"ratio": seconds["auto"] / min(seconds["anchored"], seconds["independent"])}


def _compare(classes: int, count: int, repeats: int) -> dict[str, float]:
    network = _network(classes)
    features_N_D = torch.randn(count, sum(FEATURE_DIMS), generator=torch.Generator().manual_seed(1)).relu()
    noise_T_Z = shared_noise(network, DRAWS, 0, "independent")
    left, right = torch.randn(ROWS, 128), torch.randn(128, 128)
    product = torch.empty(ROWS, 128)
    taken, results = _in_turn(
        {
            "ours": lambda: next(estimate_likelihood(network, [features_N_D], generator=0, settings=SETTINGS))[0],
            **_in_bfloat16(network, features_N_D),
            "published": lambda: loop(network, features_N_D, noise_T_Z, encode_once=False),
            "encoded_once": lambda: loop(network, features_N_D, noise_T_Z, encode_once=True),
            "matmul": lambda: [torch.mm(left, right, out=product) for _ in range(MATMULS)],
        },
        repeats,
    )
    difference = float((results["ours"].double() - results["published"]).abs().max())
    assert difference < 1e-4, difference
    rounded = {}
    if "bfloat16" in taken:
        error = (results["bfloat16"].double() - results["published"]).std() / results["published"].std()
        rounded = {
            "ratio_bfloat16": float(np.median(taken["published"] / taken["bfloat16"])),
            "error_bfloat16": float(error),
        }
    ours_R = taken["ours"]
    rate_R = 2 * count * DRAWS * _multiplications(network) / ours_R
    plain_R = 2 * ROWS * 128 * 128 * MATMULS / taken["matmul"]
    return {
        "samples": count,
        **{f"seconds_{name}": float(values_R.min()) for name, values_R in taken.items() if name != "matmul"},
        "ratio": float(np.median(taken["published"] / ours_R)),
        "ratio_encoded_once": float(np.median(taken["encoded_once"] / ours_R)),
        "largest_difference": difference,
        **rounded,
        "gigaflops": float(rate_R.max()) / 1e9,
        "share_of_matmul_rate": float(np.median(rate_R / plain_R)),
    }


def _in_bfloat16(network: FeatureVAE, features_N_D: Tensor) -> dict[str, Callable[[], Any]]:
    """The same estimate with `products: auto`, where that is not float32."""
    if products_of("auto", torch.device("cpu")) == torch.float32:
        return {}
    settings = {**SETTINGS, "products": "auto"}
    return {"bfloat16": lambda: next(estimate_likelihood(network, [features_N_D], generator=0, settings=settings))[0]}


@torch.inference_mode()
def loop(network: FeatureVAE, features_N_D: Tensor, noise_T_Z: Tensor, *, encode_once: bool) -> Tensor:
    """The published code's estimate, batched over samples: a full decoding for each draw and class; N x C."""
    total_N_C = torch.zeros(len(features_N_D), network.num_classes, dtype=torch.float64)
    inputs_N_I = network.inputs(features_N_D)
    mean_N_Z, log_var_N_Z = network.encode(inputs_N_I)
    for noise_Z in noise_T_Z:
        if not encode_once:
            inputs_N_I = network.inputs(features_N_D)
            mean_N_Z, log_var_N_Z = network.encode(inputs_N_I)
        latent_N_Z = mean_N_Z + (0.5 * log_var_N_Z).exp() * noise_Z
        for n in range(network.num_classes):
            masked_N_C_K = latent_N_Z.view(len(latent_N_Z), network.num_classes, -1).clone()
            masked_N_C_K[:, n] = 0
            error_N = (network.decode(masked_N_C_K.flatten(1)) - inputs_N_I).square().mean(dim=1)
            total_N_C[:, n] -= error_N + kl_divergence(mean_N_Z, log_var_N_Z).mean(dim=1)
        network.class_energy(latent_N_Z).argmin(dim=1)
    return total_N_C / len(noise_T_Z)


def _network(classes: int) -> FeatureVAE:
    network = vaes.build(FEATURE_DIMS, classes, {"heads": "fc_relu_bn", "body": "relu_bn"}, seed=0)
    features_N_D = torch.randn(512, sum(FEATURE_DIMS), generator=torch.Generator().manual_seed(2)).relu()
    with torch.no_grad():
        for _ in range(20):  # fills batch norm's statistics
            network.decode(network.encode(network.inputs(features_N_D))[0])
    return network.eval()


def _multiplications(network: FeatureVAE) -> int:
    """Of our way, by sample and draw: the whole first layer and its blocks, then C times the square layers."""
    hidden = network.settings.hidden_width
    square = network.settings.hidden_layers  # the hidden layers behind the first, and the rotated last one
    return 2 * network.num_latents * hidden + network.num_classes * square * hidden**2


def _in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Seconds of each way at each repeat, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}, results


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
