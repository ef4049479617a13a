"""Training steps of a small classifier beside two processes that want the cores: `python -m benchmarks.waiting`.

Two threads whose waiting spins, as OpenMP has it; two that sleep, as the package has it; and one, which is what so
small a step gets. Each is a process of its own, for OpenMP asks how to wait as torch loads. What counts is the wall
clock, undisturbed and beside the two, in turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from vabal.learning import classifier, device
from vabal.settings.learners import ClassifierSettings

EPOCHS, SAMPLES, SIDE = 3, 64, 32
SETTINGS = ClassifierSettings(network="resnet10", width=16, batch_size=16, learning_rate=0.05)
COMPETING = 2
MOST = {"sleeping": 3.0, "one thread": 2.0}  # beside two others on two cores, a half and two thirds of them are left
LEAST_GAIN = 2.0  # of sleeping, beside the others


class Way(NamedTuple):
    """Threads, and what OpenMP is told of waiting; without a word the package tells it."""

    threads: int
    environment: dict[str, str]


WAYS = {
    "spinning": Way(2, {"GOMP_SPINCOUNT": "300000"}),  # libgomp's own count, where nobody says anything
    "sleeping": Way(2, {}),
    "one thread": Way(1, {}),
}


def run(repeats: int = 2) -> dict[str, Any]:
    """Seconds, medians of the repeats, and how many times as long each way takes beside the others."""
    taken: dict[str, list[float]] = {f"{way}, {state}": [] for way in WAYS for state in ("alone", "beside")}
    for _ in range(repeats):
        for way in WAYS:
            taken[f"{way}, alone"].append(_seconds(way))
            with _competitors():
                taken[f"{way}, beside"].append(_seconds(way))
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "epochs": EPOCHS,
        "samples": SAMPLES,
        "seconds": seconds,
        "ratios": {way: seconds[f"{way}, beside"] / seconds[f"{way}, alone"] for way in WAYS},
        "gain": seconds["spinning, beside"] / seconds["sleeping, beside"],
    }


def _seconds(way: str) -> float:
    policy = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"}
    clean = {name: value for name, value in os.environ.items() if name not in policy}
    command = [sys.executable, "-m", "benchmarks.waiting", "--threads", str(WAYS[way].threads)]
    done = subprocess.run(command, env=clean | WAYS[way].environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextmanager
def _competitors() -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(COMPETING)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def measure(threads: int) -> float:
    """Seconds of the epochs in this process, its first one left out; nor does the recipe choose the threads."""
    torch.set_num_threads(threads)
    device.SMALL_STEP = 0
    images_N_H_W_K = torch.randint(256, (SAMPLES, SIDE, SIDE, 1), dtype=torch.uint8).numpy()
    labels_N = torch.randint(10, (SAMPLES,)).numpy()
    shape = {"num_classes": 10, "image_size": SIDE, "channels": 1}
    network = classifier.build(SETTINGS, **shape, mean=(128.0,), std=(70.0,), seed=0)
    training = classifier.fit(
        network, images_N_H_W_K, labels_N, SETTINGS.model_copy(update={"epochs": EPOCHS + 1}), seed=0
    )
    first = next(training).step
    started = time.perf_counter()
    for metric in training:
        if metric.step == first:
            started = time.perf_counter()
    return time.perf_counter() - started


def main() -> None:
    """Without arguments: the benchmark. With them, what a measuring process does."""
    parser = argparse.ArgumentParser(description="training steps beside processes that want the cores")
    parser.add_argument("--threads", type=int)
    chosen = parser.parse_args()
    print(json.dumps(run(), indent=2) if chosen.threads is None else measure(chosen.threads))


if __name__ == "__main__":
    main()
