"""What a night's learning costs on a frozen backbone's features.

`python -m benchmarks.night`. As many images as the NEU surface defects have, in nine classes of unequal share, with the
default backbone's layers: random numbers that tell the classes apart. Two trainings of the probe and one selection by
the default strategy (scoring heads, VAE, class terms, likelihood, batch), as nights and simulated runs compute them;
CPU seconds, one thread. `vae_share` is what of them the VAE takes: training, class terms and likelihood. A night has
its bookkeeping on top, and the embeddings of new images. `--images` makes it a larger pool.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.threads import one_thread
from vabal.benchmark import simulation
from vabal.learning.backbones import Layer
from vabal.learning.probe import Embedded
from vabal.settings import params

IMAGES, LABELED = 7_226, 200
SHARES = (0.25, 0.2, 0.15, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02)
WIDTHS, LAST = (16, 24, 40, 112, 320), 1280  # tf_efficientnet_lite0
MOST_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class EmbeddedPool(simulation.SimulatedPool):
    """A pool whose embeddings are there already."""

    embeddings_N_E: NDArray[np.float32] | None = None

    def inputs(self, _learner: Any, baseline: str | None = None) -> simulation.Inputs:
        assert self.embeddings_N_E is not None and baseline is None
        layers = (*(Layer(64, stage, width) for stage, width in enumerate(WIDTHS, 1)), Layer(64, 0, LAST))
        return simulation.Inputs(self.embeddings_N_E, Embedded({"name": "random"}, layers))


def run(images: int = IMAGES) -> dict[str, Any]:
    """CPU seconds of the rounds, and what they came to."""
    with one_thread():
        return {"images": images, **_night(images)}


def _night(images: int) -> dict[str, float]:
    settings = params.parse({"classifier": {"learner": "probe"}, "images": {"size": 64, "channels": 1}})
    pool = _pool(images)
    with _vae_watched() as vae_seconds:
        started = time.process_time()
        rounds = list(simulation.run(pool, settings, rounds=2))
        cpu_seconds = time.process_time() - started
    return {
        "cpu_seconds": cpu_seconds,
        "vae_cpu_seconds": sum(vae_seconds),
        "vae_share": sum(vae_seconds) / cpu_seconds,
        "train_seconds": rounds[0].seconds["train"],
        "select_seconds": rounds[0].seconds["select"],
        "balanced_accuracy": rounds[0].measured["balanced_accuracy"],
    }


@contextmanager
def _vae_watched() -> Iterator[list[float]]:
    """CPU seconds of each round's VAE: its training, the class terms and the likelihood."""
    seconds: list[float] = []
    estimate = simulation._Selecting._estimate

    def timed(selecting: Any) -> Any:
        started = time.process_time()
        estimated = estimate(selecting)
        seconds.append(time.process_time() - started)
        return estimated

    with patch.object(simulation._Selecting, "_estimate", timed):
        yield seconds


def _pool(images: int) -> EmbeddedPool:
    numbers = np.random.default_rng(0)
    labels_N = numbers.choice(len(SHARES), images, p=SHARES)
    centres_C_E = numbers.normal(size=(len(SHARES), sum(WIDTHS) + LAST))
    embeddings_N_E = 8 * numbers.normal(size=(images, centres_C_E.shape[1])) + centres_C_E[labels_N]
    rows = numbers.permutation(images)
    return EmbeddedPool(
        classes=tuple(f"class {number}" for number in range(len(SHARES))),
        sample_ids=np.array([f"{row:06d}" for row in range(images)], dtype=object),
        images_N_H_W_K=np.zeros((images, 1, 1, 1), dtype=np.uint8),
        labels_N=labels_N.astype(np.int64),
        pool_P=np.sort(rows[: 3 * images // 4]),
        holdout_M=np.sort(rows[3 * images // 4 :]),
        initial_L=np.sort(rows[: min(LABELED, images // 4)]),
        embeddings_N_E=embeddings_N_E.astype(np.float32),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="what a night's learning costs on a frozen backbone's features")
    parser.add_argument("--images", type=int, default=IMAGES)
    print(json.dumps(run(parser.parse_args().images), indent=2))
