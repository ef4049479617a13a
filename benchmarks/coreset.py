"""Greedy k-centre against a plain loop of full-distance updates: `python -m benchmarks.coreset`.

Both run in one process, in turn, on the same float32 features, and must pick the same samples. The plain loop is the
fastest that torch offers in one line: `torch.cdist` without the detour over a matrix product, which takes many times
longer for a single centre, as does `((x - c) ** 2).sum(1)`, which makes a copy of all features. The memory of ours is
measured apart from the time, for measuring slows it down.
"""

import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vabal.strategies.coreset import k_centre_greedy

SAMPLES, DIMS, LABELED, PICKS = 50_000, 512, 500, 500
CLASSES, LATENT = 10, 64  # of the features that look like a network's

TARGET_RATIO, TARGET_MEMORY = 3.0, 1.3

Features = NDArray[np.float32]


def run(
    samples: int = SAMPLES, dims: int = DIMS, labeled: int = LABELED, picks: int = PICKS, repeats: int = 2
) -> dict[str, Any]:
    """Seconds, memory and agreement on three kinds of features, the best of `repeats`; the worst of the three on top.

    `gaussian` features are all about equally far from each other, the worst case of bounds by the triangle inequality;
    `activations` are of a few classes, never negative and of few dimensions behind many, as a network's are;
    `clusters`, as many as picks, with no labelled sample, are the worst case of ours: each pick outdates a whole
    cluster. `memory_ratio` is the peak, the features included, to the features.
    """
    numbers = np.random.default_rng(0)
    both = samples + labeled
    kinds = {
        "gaussian": (gaussian(numbers, both, dims), labeled),
        "activations": (activations(numbers, both, dims), labeled),
        "clusters": (clusters(numbers, samples, dims, picks), 0),
    }
    results = {
        kind: _compare(together_N_D[known:], together_N_D[:known], picks, repeats)
        for kind, (together_N_D, known) in kinds.items()
    }
    return {
        "threads": torch.get_num_threads(),
        "samples": samples,
        "dims": dims,
        "picks": picks,
        **results,
        "ratio": min(result["ratio"] for result in results.values()),
        "memory_ratio": max(result["memory_ratio"] for result in results.values()),
        "same_picks": all(result["same_picks"] for result in results.values()),
    }


def _compare(features_N_D: Features, labeled_L_D: Features, picks: int, repeats: int) -> dict[str, Any]:
    ways: dict[str, Callable[[Features, Features, int], list[int]]] = {"ours": ours, "plain": plain}
    seconds = dict.fromkeys(ways, float("inf"))
    picked = {}
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            picked[name] = way(features_N_D, labeled_L_D, picks)
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    tracemalloc.start()
    ours(features_N_D, labeled_L_D, picks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    same = picked["ours"] == picked["plain"]
    return {
        "labeled": len(labeled_L_D),
        **{f"seconds_{name}": value for name, value in seconds.items()},
        "ratio": seconds["plain"] / seconds["ours"],
        "memory_ratio": 1 + peak / features_N_D.nbytes,
        # the plain loop rounds as float32 does: where the two part, float64 must bear ours out
        "same_picks": same or is_farthest_first(features_N_D, labeled_L_D, picked["ours"]),
    }


def ours(features_N_D: Features, labeled_L_D: Features, picks: int) -> list[int]:
    rows: list[int] = k_centre_greedy(features_N_D, labeled_L_D, picks)[0].tolist()
    return rows


@torch.inference_mode()
def plain(features_N_D: Features, labeled_L_D: Features, picks: int) -> list[int]:
    """Farthest first, all distances to every new centre; those to the labelled samples in blocks of matrix products."""
    every_N_D = torch.from_numpy(features_N_D)
    distance_N = torch.full((len(every_N_D),), torch.inf)
    picked = [] if len(labeled_L_D) else [int((every_N_D - every_N_D.mean(dim=0)).square().sum(dim=1).argmin())]
    for start in range(0, len(labeled_L_D), 100):
        block_L_D = torch.from_numpy(labeled_L_D[start : start + 100])
        distance_N = torch.minimum(distance_N, torch.cdist(every_N_D, block_L_D).amin(dim=1))
    for row in picked:
        distance_N = torch.minimum(distance_N, _distance(every_N_D, row))
    while len(picked) < picks:
        picked.append(int(distance_N.argmax()))
        distance_N = torch.minimum(distance_N, _distance(every_N_D, picked[-1]))
    return picked


def _distance(every_N_D: torch.Tensor, row: int) -> torch.Tensor:
    return torch.cdist(every_N_D, every_N_D[row : row + 1], compute_mode="donot_use_mm_for_euclid_dist")[:, 0]


def is_farthest_first(features_N_D: Features, labeled_L_D: Features, picked: list[int]) -> bool:
    """Whether, in float64, each pick was as far as any sample was (to 9 digits) when it was picked."""
    exact_N_D, first = torch.from_numpy(features_N_D).double(), 0 if len(labeled_L_D) else 1
    distance_N = torch.full((len(exact_N_D),), torch.inf, dtype=torch.float64)
    centres = [*torch.from_numpy(labeled_L_D).double(), *exact_N_D[picked]]
    for place, centre_D in enumerate(centres):
        number = place - len(labeled_L_D)  # of the pick
        if number >= first and distance_N[picked[number]] < (1 - 1e-9) * distance_N.max():
            return False
        one_1_D = centre_D[None]
        distance_N = torch.minimum(
            distance_N, torch.cdist(exact_N_D, one_1_D, compute_mode="donot_use_mm_for_euclid_dist")[:, 0]
        )
    return True


# -- features -----------------------------------------------------------------------------------------------------


def gaussian(numbers: np.random.Generator, count: int, dims: int) -> Features:
    return numbers.standard_normal((count, dims), dtype=np.float32)


def activations(numbers: np.random.Generator, count: int, dims: int) -> Features:
    centres_C_Z = 2 * numbers.standard_normal((CLASSES, LATENT), dtype=np.float32)
    latent_N_Z = centres_C_Z[numbers.integers(0, CLASSES, count)] + gaussian(numbers, count, LATENT)
    mixed_N_D = latent_N_Z @ gaussian(numbers, LATENT, dims) / np.float32(LATENT**0.5)
    mixed_N_D += np.float32(0.3) * gaussian(numbers, count, dims)
    return np.asarray(np.maximum(mixed_N_D, 0))


def clusters(numbers: np.random.Generator, count: int, dims: int, groups: int) -> Features:
    features_N_D = 3 * gaussian(numbers, groups, dims)[numbers.integers(0, groups, count)]
    features_N_D += np.float32(0.1) * gaussian(numbers, count, dims)
    return features_N_D


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
