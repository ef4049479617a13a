"""The estimate of Eq. 9 against the way of the published code: `python -m benchmarks.estimate`.

Both run in one process, in float32, with the same independent draws, and must agree. The published code takes batches
of 128 and, for every draw, pools the classifier's maps, encodes, and decodes in full for each class; `pooled` is the
same with features that were pooled beforehand, as a probe's embeddings are. Ours pools and encodes once. How many draws
it takes is another question: `benchmarks.draws`. `bfloat16` is the same estimate with the setting `products: auto`,
where the processor multiplies bfloat16 by itself. `auto` compares the sampling of that name with both that it chooses
from.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.threads import one_thread
from vabal import vae as vaes
from vabal.probabilities import estimate_likelihood, products_of, shared_noise
from vabal.vae import FeatureVAE, kl_divergence


class Shape(NamedTuple):
    """A classifier's stages, and the sides of their maps; without sides there are only pooled features."""

    dims: tuple[int, ...]
    sides: tuple[int, ...] = ()


SHAPES = {
    "paper": Shape((64, 128, 256, 512), (32, 16, 8, 4)),  # a ResNet-18, CIFAR-10's images
    "probe": Shape((16, 24, 40, 112, 320, 1280)),  # all layers of the default backbone
}
DRAWS, BATCH = 100, 128  # the published code's
MATMULS, ROWS = 400, 1024  # plain products of a tile of latents and a square layer, for the rate to compare with
SETTINGS = {"likelihood_reduction": "mean", "draws": DRAWS, "sampling": "independent"}
CASES = (("paper", 10, 256), ("probe", 10, 256), ("paper", 100, 64))  # shape, classes, samples; of seconds each

LEAST = {10: 10.0, 100: 10.0}  # times the speed of the published code's way, by number of classes
LEAST_POOLED = {10: 3.0, 100: 7.0}  # the same with features pooled beforehand, the less of the shapes'
LEAST_BFLOAT16 = 10.0  # as the first, with products in bfloat16
MOST_ERROR = 0.02  # of those, of the deviation over the samples
CHOICES = ((10, 128), (10, 2048), (100, 128))  # classes and samples at which `auto` chooses
MOST_AUTO = 1.3  # times the quicker of the two
LEAST_SHARE = 0.6  # of the rate of the plain product
LOOPS = {"published": "ratio", "pooled": "ratio_pooled"}
LEASTS = (*LOOPS.values(), "share_of_matmul_rate", "ratio_bfloat16")


def run(
    cases: Sequence[tuple[str, int, int]] = CASES,
    repeats: int = 1,
    choices: Sequence[tuple[int, int]] = CHOICES,
) -> dict[str, Any]:
    """Seconds and ratios of each case; the ways take turns.

    Seconds are the least of the repeats, ratios the median of the repeats' own: of one thread's CPU time, which other
    processes disturb less than the clock. `C=10` holds the least of all cases with ten classes.
    """
    results: dict[str, Any] = {"draws": DRAWS}
    with one_thread():
        for name, classes, count in cases:
            results[f"{name}, C={classes}"] = _compare(SHAPES[name], classes, count, repeats)
        results["auto"] = {f"C={classes}, N={count}": _choice(classes, count) for classes, count in choices}
    for classes in sorted({classes for _, classes, _ in cases}):
        found = [results[f"{name}, C={classes}"] for name, known, _ in cases if known == classes]
        results[f"C={classes}"] = {
            key: min(one[key] for one in found if key in one) for key in LEASTS if key in found[0]
        }
    return results


def _choice(classes: int, count: int) -> dict[str, float]:
    """Seconds of ten anchored draws, of a hundred independent ones, and of what `auto` takes."""
    dims = SHAPES["paper"].dims
    network = _network(dims, classes)
    network.pool_size.fill_(count)
    features_N_D = torch.randn(count, sum(dims), generator=torch.Generator().manual_seed(1)).relu()
    network.anchors_A_D.copy_(torch.randn(network.anchors_A_D.shape, generator=torch.Generator().manual_seed(3)).relu())
    ways = {"anchored": 10, "independent": DRAWS, "auto": 10}

    def estimate(sampling: str, draws: int) -> Any:
        settings = {**SETTINGS, "sampling": sampling, "draws": draws}
        return list(estimate_likelihood(network, [features_N_D], generator=0, settings=settings))

    taken, _ = _in_turn({name: partial(estimate, name, draws) for name, draws in ways.items()}, repeats=1)
    seconds = {name: float(values_R.min()) for name, values_R in taken.items()}
    return seconds | {"ratio": seconds["auto"] / min(seconds["anchored"], seconds["independent"])}


def _compare(shape: Shape, classes: int, count: int, repeats: int) -> dict[str, float]:
    network = _network(shape.dims, classes)
    stages = _stages(shape, count)
    features_N_D = _pooled(stages)
    noise_T_Z = shared_noise(network, DRAWS, 0, "independent")
    left, right = torch.randn(ROWS, 128), torch.randn(128, 128)
    product = torch.empty(ROWS, 128)
    taken, results = _in_turn(
        {
            "ours": lambda: next(estimate_likelihood(network, [_pooled(stages)], generator=0, settings=SETTINGS))[0],
            **_in_bfloat16(network, stages),
            **({"published": lambda: published(network, stages, noise_T_Z)} if shape.sides else {}),
            "pooled": lambda: published(network, [features_N_D], noise_T_Z),
            "matmul": lambda: [torch.mm(left, right, out=product) for _ in range(MATMULS)],
        },
        repeats,
    )
    difference = max(float((results["ours"].double() - results[way]).abs().max()) for way in LOOPS if way in results)
    assert difference < 1e-4, difference
    rate_R = 2 * count * DRAWS * _multiplications(network) / taken["ours"]
    plain_R = 2 * ROWS * 128 * 128 * MATMULS / taken["matmul"]
    return {
        "samples": count,
        **{f"seconds_{name}": float(values_R.min()) for name, values_R in taken.items() if name != "matmul"},
        **{name: float(np.median(taken[way] / taken["ours"])) for way, name in LOOPS.items() if way in taken},
        "largest_difference": difference,
        **_rounded(taken, results),
        "multiplications_of_the_loop": _multiplications_of_the_loop(network) / _multiplications(network),
        "gigaflops": float(rate_R.max()) / 1e9,
        "share_of_matmul_rate": float(np.median(rate_R / plain_R)),
    }


def _rounded(taken: dict[str, NDArray[np.float64]], results: dict[str, Any]) -> dict[str, float]:
    """What products in bfloat16 gain and lose, where they were taken."""
    if "bfloat16" not in taken:
        return {}
    loop = "published" if "published" in taken else "pooled"
    error = (results["bfloat16"].double() - results[loop]).std() / results[loop].std()
    ratio = float(np.median(taken[loop] / taken["bfloat16"]))
    name = "ratio_bfloat16" if loop == "published" else "ratio_pooled_bfloat16"
    return {name: ratio, "error_bfloat16": float(error)}


def _stages(shape: Shape, count: int) -> list[Tensor]:
    """Each stage's maps, N x D x side x side, or its features where there are no maps."""
    numbers = torch.Generator().manual_seed(1)
    sides: list[tuple[int, ...]] = [(side, side) for side in shape.sides] or [()] * len(shape.dims)
    return [
        torch.randn(count, width, *side, generator=numbers).relu()
        for width, side in zip(shape.dims, sides, strict=True)
    ]


def _pooled(stages: Sequence[Tensor]) -> Tensor:
    """features_N_D: the mean over each map, side by side."""
    return torch.cat(
        [functional.avg_pool2d(one, one.shape[2:]).flatten(1) if one.ndim == 4 else one for one in stages], 1
    )


def _in_bfloat16(network: FeatureVAE, stages: Sequence[Tensor]) -> dict[str, Callable[[], Any]]:
    """The same estimate with `products: auto`, where that is not float32."""
    if products_of("auto", torch.device("cpu")) == torch.float32:
        return {}
    settings = {**SETTINGS, "products": "auto"}
    return {
        "bfloat16": lambda: next(estimate_likelihood(network, [_pooled(stages)], generator=0, settings=settings))[0]
    }


@torch.inference_mode()
def published(network: FeatureVAE, stages: Sequence[Tensor], noise_T_Z: Tensor) -> Tensor:
    """The published code's estimate: pooling, heads, encoder and a full decoding a class, for each draw; N x C."""
    return torch.cat(
        [
            _published_batch(network, batch, noise_T_Z)
            for batch in zip(*(one.split(BATCH) for one in stages), strict=True)
        ]
    )


def _published_batch(network: FeatureVAE, stages: Sequence[Tensor], noise_T_Z: Tensor) -> Tensor:
    total_N_C = torch.zeros(len(stages[0]), network.num_classes, dtype=torch.float64)
    for noise_Z in noise_T_Z:
        inputs_N_I = network.inputs(_pooled(stages))
        mean_N_Z, log_var_N_Z = network.encode(inputs_N_I)
        latent_N_Z = mean_N_Z + (0.5 * log_var_N_Z).exp() * noise_Z
        for n in range(network.num_classes):
            masked_N_C_K = latent_N_Z.view(len(latent_N_Z), network.num_classes, -1).clone()
            masked_N_C_K[:, n] = 0
            error_N = (network.decode(masked_N_C_K.flatten(1)) - inputs_N_I).square().mean(dim=1)
            total_N_C[:, n] -= error_N + kl_divergence(mean_N_Z, log_var_N_Z).mean(dim=1)
        network.class_energy(latent_N_Z).argmin(dim=1)
    return total_N_C / len(noise_T_Z)


def _network(dims: Sequence[int], classes: int) -> FeatureVAE:
    network = vaes.build(dims, classes, {"heads": "fc_relu_bn", "body": "relu_bn"}, seed=0)
    features_N_D = torch.randn(512, sum(dims), generator=torch.Generator().manual_seed(2)).relu()
    with torch.no_grad():
        for _ in range(20):  # fills batch norm's statistics
            network.decode(network.encode(network.inputs(features_N_D))[0])
    return network.eval()


def _multiplications(network: FeatureVAE) -> int:
    """Of our way, by sample and draw: the whole first layer and its blocks, then C times the square layers."""
    hidden = network.settings.hidden_width
    square = network.settings.hidden_layers  # the hidden layers behind the first, and the rotated last one
    return 2 * network.num_latents * hidden + network.num_classes * square * hidden**2


def _multiplications_of_the_loop(network: FeatureVAE) -> int:
    """Of the published code's way, by sample and draw, the pooling left out."""
    hidden, inputs, latents = network.settings.hidden_width, network.num_inputs, network.num_latents
    square = (network.settings.hidden_layers - 1) * hidden**2
    encoding = network.settings.head_width * sum(network.feature_dims) + hidden * (inputs + 2 * latents) + square
    return encoding + network.num_classes * (hidden * (latents + inputs) + square)


def _in_turn(ways: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, NDArray[np.float64]], dict[str, Any]]:
    """Seconds of each way at each repeat, and its last result."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.process_time()
            results[name] = way()
            seconds[name].append(time.process_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}, results


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
