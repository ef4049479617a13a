"""How many wrong labels `vabal labels suspects` finds, of those that were put into a real set.

    python -m benchmarks.suspects [npz:PATH ...]

Labelled pools are drawn from the set, a twentieth of their labels is exchanged for another class's, and the tenth of
the pool with the least probable labels is looked at again. By confident learning's count alone fewer are looked at.
The first source must reach LEAST at every size. Axes: L labelled images, C classes.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.threads import one_thread
from vabal.benchmark import cells
from vabal.labels.suspicion import FOLDS, suspicion
from vabal.learning.embeddings import Embedder
from vabal.learning.probe import LabelledEmbeddings, held_out
from vabal.settings import params
from vabal.settings.models import Params

SIZES, SEEDS = (100, 300, 1000), 5
WRONG, BUDGET, LEAST = 0.05, 0.1, 0.7
PIXELS = 64  # that the backbone sees


def measure(source: str) -> list[float]:
    """The mean share found at each size; prints a line each."""
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        prepared = cells.prepare(source, {"images.size": PIXELS}, Path(folder))
        pool = cells.simulated_pool(source, prepared, "natural", 0, 10, 0.1)
        settings = params.parse({"classifier": {"learner": "probe"}, "backbone": {"sizes": [PIXELS]}})
        embedder = Embedder(settings.backbone, "cpu", Path(folder))
        drawn = np.random.default_rng(0).permutation(len(pool.labels_N))[: 2 * max(SIZES)]
        embeddings = embedder.embed(pool.images_N_H_W_K[drawn])
        labels, classes = pool.labels_N[drawn], len(pool.classes)
        means = []
        for size in (size for size in SIZES if size <= len(drawn)):
            found = np.array(
                [_one(embeddings, labels, classes, size, seed, embedder, settings) for seed in range(SEEDS)]
            )
            share, counted, sound = found.mean(axis=0)
            print(
                f"{source}: of {size} labels {round(WRONG * size)} wrong: {share:.0%} found among the {BUDGET:.0%} "
                f"least probable (least {found[:, 0].min():.0%}); confident learning counts {counted:.0f}, of which "
                f"{sound:.0%} are wrong",
                flush=True,
            )
            means.append(float(share))
    return means


def _one(
    embeddings: NDArray[np.float32],
    labels: NDArray[np.int64],
    classes: int,
    size: int,
    seed: int,
    embedder: Embedder,
    settings: Params,
) -> tuple[float, int, float]:
    draws = np.random.default_rng(seed)
    rows_L = np.sort(draws.permutation(len(labels))[:size])
    given_L = labels[rows_L].copy()
    wrong = draws.permutation(size)[: round(WRONG * size)]
    given_L[wrong] = (given_L[wrong] + draws.integers(1, classes, len(wrong))) % classes
    known = LabelledEmbeddings(embeddings[rows_L], given_L, [f"{row:06d}" for row in rows_L])
    _, posterior_L_C = held_out(known, embedder.embedded, classes, settings.classifier, folds=FOLDS, seed=settings.seed)
    found = suspicion(given_L, posterior_L_C)
    share = np.isin(wrong, found.order_L[: round(BUDGET * size)]).mean()
    return float(share), found.wrong, float(np.isin(found.order_L[: found.wrong], wrong).mean())


if __name__ == "__main__":
    first, *others = [measure(source) for source in sys.argv[1:] or ["digits"]]
    if min(first) < LEAST:
        sys.exit(f"less than {LEAST:.0%} found")
