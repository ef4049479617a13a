"""What `labelling.ask_again` costs, and what it gains, where people err: balanced accuracy at equal numbers of answers.

    python -m benchmarks.asking [SOURCE ...]

Simulated nights on a frozen network's embeddings: each answer is another person's and wrong with one probability,
whatever the image; the picks are those of the smallest margin, a share of each request asks again as a night does
(`labels.again.choose`), and what most people say stands. The classifier is judged on a holdout whose labels are right.
Axes: N images, L labelled images, C classes.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from benchmarks.threads import one_thread
from vabal import pools
from vabal.benchmark import cells
from vabal.labels import again
from vabal.labels.consensus import settle
from vabal.labels.suspicion import FOLDS
from vabal.learning import metrics, probe
from vabal.learning.embeddings import Embedder
from vabal.learning.network import LinearProbe
from vabal.learning.probe import LabelledEmbeddings
from vabal.pools import Pools
from vabal.settings import params
from vabal.settings.learners import ClassifierSettings

SEEDS, ROUNDS, INITIAL, BUDGET, HOLDOUT = 5, 6, 50, 50, 0.25
WRONG, SHARES = (0.05, 0.2), (0.0, 0.1)
PIXELS = 32  # that the backbone sees
PENALTY = 1.0  # of the probe: chosen once, for all runs, to save nine tenths of the time
WHEN = datetime(2026, 1, 1, tzinfo=UTC)


class Night(NamedTuple):
    """How many answers had come, how many of the labels then were wrong, and balanced accuracy."""

    answers: int
    wrong: float
    balanced: float


class Known(NamedTuple):
    """What there is to know of the images of a draw: rows of the pool and of the holdout, and all truth."""

    embeddings_N: NDArray[np.float32]
    labels_N: NDArray[np.int64]
    pool_P: NDArray[np.int64]
    holdout_M: NDArray[np.int64]
    initial_L: NDArray[np.int64]
    classes: tuple[str, ...]
    embedder: Embedder


def nights(known: Known, wrong: float, share: float, seed: int) -> Iterator[Night]:
    """The nights of one run."""
    settings = params.parse(
        {"classifier": {"learner": "probe", "layers": "last", "penalty": PENALTY}, "selection": {"budget": BUDGET}}
    )
    draws, state, answers = np.random.default_rng(seed), _begin(known), 0
    asked = [_name(row) for row in known.initial_L]
    for number in range(1, ROUNDS + 1):
        state = _answered(state, asked, number, known, wrong, draws)
        answers += len(asked)
        rows_L = state.labeled["sample_id"].to_numpy().astype(np.int64)
        given_L = state.labeled["label"].to_numpy().astype(np.int64)
        learned = LabelledEmbeddings(known.embeddings_N[rows_L], given_L, list(state.labeled["sample_id"]))
        about = learned, known.embedder.embedded, len(known.classes), settings.classifier
        network, training = probe.fit(*about, seed=seed)
        list(training)
        said_M = _posterior(network, known.embeddings_N[known.holdout_M]).argmax(axis=1)
        truth_M = known.labels_N[known.holdout_M]
        counts_C_C = metrics.confusion_matrix(truth_M, said_M, len(known.classes))
        recall_C = np.diag(counts_C_C)[counts_C_C.sum(axis=1) > 0] / counts_C_C.sum(axis=1)[counts_C_C.sum(axis=1) > 0]
        yield Night(answers, float((given_L != known.labels_N[rows_L]).mean()), float(recall_C.mean()))
        if number == ROUNDS:
            return
        held_out = _held_out(network, learned, settings.classifier, seed) if share else None
        repeated = again.choose(state, held_out, again.size(share, BUDGET, 0))
        left_P = state.unlabeled.loc[state.unlabeled["status"] == pools.AVAILABLE, "sample_id"].astype(int).to_numpy()
        top_P_2 = np.sort(_posterior(network, known.embeddings_N[left_P]), axis=1)[:, -2:]
        picked = left_P[np.argsort(top_P_2[:, 1] - top_P_2[:, 0], kind="stable")[: BUDGET - len(repeated)]]
        picks = [_name(row) for row in picked]
        state = pools.ask_again(pools.mark_requested(state, picks, number), repeated, number)
        asked = [*picks, *repeated["sample_id"]]


def _held_out(
    network: LinearProbe, learned: LabelledEmbeddings, settings: ClassifierSettings, seed: int
) -> again.HeldOut:
    found = probe.cross_fit(network, learned, settings, folds=FOLDS, seed=seed)
    return again.HeldOut(learned.sample_ids, found.probabilities_N_C)


def _answered(
    state: Pools, asked: list[str], number: int, known: Known, wrong: float, draws: np.random.Generator
) -> Pools:
    """The pools after somebody new answered each request."""
    label_K = known.labels_N[np.array(asked, dtype=np.int64)]
    others_K = (label_K + draws.integers(1, len(known.classes), len(asked))) % len(known.classes)
    said_K = np.where(draws.random(len(asked)) < wrong, others_K, label_K)
    people = pd.DataFrame({"sample_id": asked, "label": said_K.astype(str), "annotator": f"night {number}"})
    came = pools.typed(people.assign(labeled_at=WHEN, source=f"{number}"), pools.EVENTS)
    settled = settle(state.label_events, came, "majority")
    return pools.apply_labels(state, pools.stack([came, settled], pools.EVENTS), number)[0]


def _begin(known: Known) -> Pools:
    ids = [_name(row) for row in known.pool_P]
    table = pd.DataFrame({"sample_id": ids, "shard": "none", "row": range(len(ids)), "sha256": ids})
    empty = {name: pools.no_rows(name) for name in pools.SCHEMAS}
    catalog = pools.typed(table.assign(width=1, height=1, added_round=0), pools.SCHEMAS["catalog"])
    free = pools.typed(
        table[["sample_id"]].assign(status=pools.AVAILABLE, requested_round=None), pools.SCHEMAS["unlabeled"]
    )
    return replace(Pools(**empty, classes=known.classes), catalog=catalog, unlabeled=free)


def _name(row: int) -> str:
    return f"{row:06d}"


def _posterior(network: torch.nn.Module, embeddings_N: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.inference_mode():
        posterior_N_C: NDArray[np.float32] = network(torch.from_numpy(embeddings_N)).softmax(dim=1).numpy()
    return posterior_N_C


def measure(source: str) -> None:
    """Prints a line for each share of wrong answers and each share of the budget: means over the seeds."""
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        prepared = cells.prepare(source, {"images.size": PIXELS}, Path(folder))
        settings = params.parse({"backbone": {"sizes": [PIXELS]}})
        embedder = Embedder(settings.backbone, "cpu", Path(folder))
        embeddings_N = None
        runs: dict[tuple[float, float], list[list[Night]]] = {}
        for seed in range(SEEDS):
            drawn = cells.simulated_pool(source, prepared, "natural", seed, INITIAL, HOLDOUT)
            if embeddings_N is None:  # seeds draw other rows of the same images
                embeddings_N = embedder.embed(drawn.images_N_H_W_K)
            classes = tuple(str(number) for number in range(len(drawn.classes)))
            rows = drawn.pool_P, drawn.holdout_M, drawn.initial_L
            known = Known(embeddings_N, drawn.labels_N, *rows, classes, embedder)
            for wrong in WRONG:
                for share in SHARES:
                    runs.setdefault((wrong, share), []).append(list(nights(known, wrong, share, seed)))
            print(source, "seed", seed, flush=True, file=sys.stderr)
    for (wrong, share), found in runs.items():
        plain = np.array([[night.balanced for night in run] for run in runs[wrong, 0.0]])
        mine = np.array([[night.balanced for night in run] for run in found])
        print(f"{source}, {wrong:.0%} wrong, share {share:g}")
        for place, night in enumerate(found[0]):
            gap = 100 * (mine - plain)[:, place]
            error = gap.std(ddof=1) / np.sqrt(len(gap))
            labels = 100 * np.mean([run[place].wrong for run in found])
            print(
                f"  {night.answers} answers: {100 * mine[:, place].mean():.2f} %, {gap.mean():+.2f} ± {error:.2f}; "
                f"{labels:.1f} % of the labels wrong",
                flush=True,
            )


if __name__ == "__main__":
    for name in sys.argv[1:] or ["digits"]:
        measure(name)
