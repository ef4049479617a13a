"""BADGE's draws against published code's way and against a plain loop: `python -m benchmarks.badge`.

All run in one process, in turn, on the same float32 features and residuals, on one thread and on two. `published` takes
the steps of LabelBench's selection (EfficientTraining/LabelBench, `strategy_impl/badge.py`), which factors distances as
well: roots of all distances, sums in Python, a discrete distribution made for each draw. `plain` is the least that a
loop over all distances can do in NumPy: two products with the last seed, and one sum to draw from.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.coreset import activations, gaussian
from vabal.strategies.badge import seeds

SAMPLES, DIMS, CLASSES, PICKS = 50_000, 512, 10, 200

TARGET_RATIO, TARGET_PLAIN = 10.0, 3.0

Numbers = NDArray[np.float32]
Way = Callable[[Numbers, Numbers, int], list[int]]


def run(samples: int = SAMPLES, dims: int = DIMS, picks: int = PICKS, repeats: int = 3) -> dict[str, Any]:
    """Seconds of CPU and of the clock, the best of `repeats`; `ratio` and `ratio_plain` are the least of all kinds.

    Those are ratios of CPU seconds, which a busy machine disturbs less. Kinds: features as a network's are, and
    gaussian ones; posteriors of a classifier that is in doubt, and of one that mostly is not.
    """
    numbers = np.random.default_rng(0)
    kinds = {
        "activations, doubt": (activations(numbers, samples, dims), residuals(numbers, samples, 1)),
        "activations, certain": (activations(numbers, samples, dims), residuals(numbers, samples, 5)),
        "gaussian, doubt": (gaussian(numbers, samples, dims), residuals(numbers, samples, 1)),
    }
    results: dict[str, dict[str, Any]] = {
        f"{kind}, {threads} thread{'s' * (threads > 1)}": _compare(*given, picks, repeats, threads)
        for kind, given in kinds.items()
        for threads in (1, 2)
    }
    return {
        "samples": samples,
        "dims": dims,
        "picks": picks,
        **results,
        "ratio": min(result["ratio"] for result in results.values()),
        "ratio_plain": min(result["ratio_plain"] for result in results.values()),
    }


def _compare(features_N_D: Numbers, residual_N_C: Numbers, picks: int, repeats: int, threads: int) -> dict[str, Any]:
    ways: dict[str, Way] = {"ours": ours, "published": published, "plain": plain}
    clock, cpu = dict.fromkeys(ways, float("inf")), dict.fromkeys(ways, float("inf"))
    with threadpool_limits(threads):
        for _ in range(repeats):
            for name, way in ways.items():
                start, used = time.perf_counter(), time.process_time()
                assert len(set(way(residual_N_C, features_N_D, picks))) == picks
                clock[name] = min(clock[name], time.perf_counter() - start)
                cpu[name] = min(cpu[name], time.process_time() - used)
    return {
        "seconds": clock,
        "cpu_seconds": cpu,
        "ratio": cpu["published"] / cpu["ours"],
        "ratio_plain": cpu["plain"] / cpu["ours"],
        "ratio_of_the_clock": clock["published"] / clock["ours"],
    }


def ours(residual_N_C: Numbers, features_N_D: Numbers, picks: int) -> list[int]:
    rows: list[int] = seeds(residual_N_C, features_N_D, picks, seed=0)[0].tolist()
    return rows


def published(residual_N_C: Numbers, features_N_D: Numbers, picks: int) -> list[int]:
    """By the square of squared distances' roots; none is drawn twice."""
    from scipy.stats import rv_discrete  # noqa: PLC0415 -- takes a second

    norm_N = (residual_N_C**2).sum(axis=1) * (features_N_D**2).sum(axis=1)
    picked = [int(norm_N.argmax())]
    nearest_N = np.full(len(norm_N), np.inf)
    while len(picked) < picks:
        squared_N = norm_N + norm_N[picked[-1]] - 2 * _products(residual_N_C, features_N_D, picked[-1])
        assert squared_N.min() / squared_N.max() > -1e-4
        nearest_N = np.minimum(nearest_N, np.sqrt(np.clip(squared_N, 0, None)).astype(float))
        nearest_N[np.array(picked)] = 0
        share_N = nearest_N**2 / sum(nearest_N**2)
        drawn = rv_discrete(name="share", values=(np.arange(len(share_N)), share_N))
        picked.append(int(drawn.rvs(size=1)[0]))
    return picked


def plain(residual_N_C: Numbers, features_N_D: Numbers, picks: int) -> list[int]:
    numbers = np.random.default_rng(0)
    norm_N = np.einsum("nc,nc->n", residual_N_C, residual_N_C) * np.einsum("nd,nd->n", features_N_D, features_N_D)
    picked = [int(norm_N.argmax())]
    nearest_N = np.full(len(norm_N), np.inf)
    while len(picked) < picks:
        squared_N = norm_N + norm_N[picked[-1]] - 2 * _products(residual_N_C, features_N_D, picked[-1])
        np.minimum(nearest_N, np.maximum(squared_N, 0), out=nearest_N)
        nearest_N[picked] = 0
        mass_N = np.cumsum(nearest_N)
        picked.append(int(np.searchsorted(mass_N, numbers.random() * mass_N[-1], side="right")))
    return picked


def _products(residual_N_C: Numbers, features_N_D: Numbers, row: int) -> Numbers:
    return np.asarray((residual_N_C @ residual_N_C[row]) * (features_N_D @ features_N_D[row]))


def residuals(numbers: np.random.Generator, count: int, sharpness: float) -> Numbers:
    """Posteriors, the sharper the more certain, less the predicted class."""
    powers_N_C = np.exp(sharpness * numbers.standard_normal((count, CLASSES), dtype=np.float32))
    residual_N_C = powers_N_C / powers_N_C.sum(axis=1, keepdims=True)
    residual_N_C[np.arange(count), residual_N_C.argmax(axis=1)] -= 1
    return np.asarray(residual_N_C)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
