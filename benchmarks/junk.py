"""How much junk a batch holds, with and without the VAE's likelihood as a guard (`probabilities.guard`).

`python -m benchmarks.junk [--source digits|elpv] [--seeds N]`. A pool with all its labels, one in twenty of its images
junk made by code: a quarter each noise, flat grey, smooth grey fields, and crops of pictures of another kind. A probe
on the default backbone learns from 50 labels, then three times asks about 50 images as a night does. An image that
turns out junk is rejected: it has cost its place in the batch, gives no label and leaves the pool. The holdout has no
junk. Beside the default and strategies without a VAE stands the simplest guard there is: the same share of the
candidates, those whose standardised features lie farthest from their 50 principal components, is not asked about.
Axes: N images, P candidates, L labelled ones, B asked about, H x W x K pixels, D features, J junk images.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.threads import one_thread
from vabal import strategies
from vabal.benchmark import cells, simulation
from vabal.benchmark.grids import NATURAL
from vabal.rounds.learner import Learner
from vabal.settings import params
from vabal.settings.models import Params

SEEDS, ROUNDS, BUDGET, INITIAL, HOLDOUT = 3, 3, 50, 50, 0.25
SHARE = 0.05  # of the pool that is junk, and of the candidates that principal components shut out
COMPONENTS = 50
SIZES = {"digits": (8, 48), "elpv": (64, 64)}  # of the images, and of what the backbone sees
MOST_JUNK, LEAST_GAIN = 0.5, -0.01  # of what comes without the guard; of balanced accuracy

WITHOUT, DEFAULT, BY_COMPONENTS = "default without its guard", "default", "principal components as the guard"
ROWS: dict[str, dict[str, Any]] = {
    "random": {"selection.strategy": "random"},
    "margin": {"selection.strategy": "margin"},
    "badge": {"selection.strategy": "badge"},
    WITHOUT: {"method.preset": "without_vae"},
    BY_COMPONENTS: {"method.preset": "without_vae"},
    DEFAULT: {},
    "default, VAE of 400 drawn images": {"vae.rows": 400},
    "default, VAE of 130 drawn images": {"vae.rows": 130},
    "default with guard 0.05": {"probabilities.guard": 0.05},
}

Picture = NDArray[np.uint8]  # H x W


class Outcome(NamedTuple):
    """Junk among what one run asked about, and its mean balanced accuracy after the rounds."""

    junk: int
    balanced_accuracy: float


def run(source: str = "digits", seeds: int = SEEDS) -> dict[str, Any]:
    """The means of each row over the seeds, and each seed's count of junk; prints them as a table."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in ROWS}
    with one_thread(), tempfile.TemporaryDirectory(prefix="vabal-") as folder:
        for seed, pool, inputs in _pools(source, seeds, Path(folder)):
            for name, changes in ROWS.items():
                chosen = _settings(source, seed, changes)
                outcomes[name].append(play(pool, inputs, chosen, by_components=name == BY_COMPONENTS))
                last = outcomes[name][-1]
                print(f"  seed {seed}, {name}: {last.junk} junk, {last.balanced_accuracy:.3f}", flush=True)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "junk": float(np.mean([outcome.junk for outcome in row])),
            "balanced_accuracy": float(np.mean([outcome.balanced_accuracy for outcome in row])),
            "junk_by_seed": [outcome.junk for outcome in row],
        }
        for name, row in outcomes.items()
    }
    result = {
        "source": source,
        "seeds": seeds,
        "asked": ROUNDS * BUDGET,
        "rows": rows,
        "junk_ratio": rows[DEFAULT]["junk"] / max(rows[WITHOUT]["junk"], 1.0),
        "gain": rows[DEFAULT]["balanced_accuracy"] - rows[WITHOUT]["balanced_accuracy"],
    }
    print(table(result), flush=True)
    return result


def table(result: dict[str, Any]) -> str:
    """A line for each row."""
    lines = [f"  {result['source']}, seeds: {result['seeds']:<17} junk of {result['asked']}  balanced accuracy"]
    for name, row in result["rows"].items():
        lines.append(f"  {name:<34} {row['junk']:>11.1f}  {row['balanced_accuracy']:>17.3f}")
    return "\n".join(lines)


def play(
    pool: simulation.SimulatedPool,
    inputs: simulation.Inputs,
    chosen: Params,
    *,
    rounds: int = ROUNDS,
    by_components: bool = False,
) -> Outcome:
    """One run. Junk has a label beyond the classes, which no training sees."""
    strategy = strategies.get(chosen.selection.strategy)
    row_of = {str(sample_id): row for row, sample_id in enumerate(pool.sample_ids)}
    labeled_L = np.sort(pool.initial_L)
    left_P = np.setdiff1d(pool.pool_P, labeled_L)
    junk, reached = 0, []
    for number in range(1, rounds + 2):
        learner = Learner(chosen, number, strategy)
        trained = simulation._train(pool, inputs, learner, labeled_L)
        reached.append(trained.measured["balanced_accuracy"])
        if number > rounds:
            break
        asked_P = left_P[~far_from_components(trained.features_N_D[left_P])] if by_components else left_P
        selection, _ = simulation._Selecting(pool, inputs, learner, trained, labeled_L, asked_P).select()
        picked_B = np.array([row_of[str(sample_id)] for sample_id in selection.sample_ids], dtype=np.int64)
        rejected_B = pool.labels_N[picked_B] == len(pool.classes)
        junk += int(rejected_B.sum())
        left_P = np.setdiff1d(left_P, picked_B)
        labeled_L = np.sort(np.concatenate([labeled_L, picked_B[~rejected_B]]))
    return Outcome(junk, float(np.mean(reached[1:])))


def far_from_components(
    features_P_D: NDArray[np.floating], share: float = SHARE, components: int = COMPONENTS
) -> NDArray[np.bool_]:
    """far_P: the share of the rows with the largest residual beyond the principal components."""
    from sklearn.decomposition import PCA  # noqa: PLC0415 -- takes a second

    values_P_D = features_P_D.astype(np.float64) - features_P_D.mean(axis=0, dtype=np.float64)
    values_P_D /= np.maximum(values_P_D.std(axis=0), 1e-6)
    fitted = PCA(min(components, *values_P_D.shape), svd_solver="randomized", random_state=0)
    kept_P = np.square(fitted.fit_transform(values_P_D)).sum(axis=1)
    far_P = np.zeros(len(values_P_D), dtype=bool)
    order_P = np.argsort(np.square(values_P_D).sum(axis=1) - kept_P, kind="stable")
    far_P[order_P[len(order_P) - int(share * len(order_P)) :]] = True
    return far_P


# -- junk -----------------------------------------------------------------------------------------------------------


def junk_images(count: int, size: int, pictures: Sequence[Picture], numbers: np.random.Generator) -> NDArray[np.uint8]:
    """images_J_H_W_K, grey, of the four kinds in turn; the crops are squares of `pictures`."""
    kinds: list[Callable[[], Picture]] = [
        lambda: numbers.integers(256, size=(size, size), dtype=np.uint8),
        lambda: np.clip(numbers.integers(256) + numbers.normal(0, 4, (size, size)), 0, 255).astype(np.uint8),
        lambda: _resized(numbers.integers(256, size=(4, 4), dtype=np.uint8), size),
        lambda: _resized(_crop(pictures[int(numbers.integers(len(pictures)))], numbers), size),
    ]
    return np.stack([kinds[number % len(kinds)]() for number in range(count)])[..., None]


def _crop(picture: Picture, numbers: np.random.Generator) -> Picture:
    """A square of a quarter of the shorter side to all of it."""
    shorter = min(picture.shape)
    side = int(numbers.integers(max(1, shorter // 4), shorter + 1))
    top, left = (int(numbers.integers(length - side + 1)) for length in picture.shape)
    return picture[top : top + side, left : left + side]


def _resized(picture: Picture, size: int) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))


def _other_pictures(source: str) -> list[Picture]:
    """Pictures of another kind than the source's, grey: photographs, or digits."""
    from sklearn.datasets import load_digits, load_sample_images  # noqa: PLC0415 -- takes a second

    if source == "digits":
        return [np.asarray(Image.fromarray(image).convert("L")) for image in load_sample_images().images]
    return list(np.rint(load_digits().images * (255 / 16)).astype(np.uint8))


# -- pools ----------------------------------------------------------------------------------------------------------


def _settings(source: str, seed: int, changes: dict[str, Any]) -> Params:
    size, seen = SIZES[source]
    common = {
        "seed": seed,
        "images": {"size": size, "channels": 1},
        "classifier": {"learner": "probe"},
        "backbone": {"sizes": [seen]},
        "selection": {"budget": BUDGET},
    }
    return params.parse(params.override(common, changes))


def _pools(source: str, seeds: int, folder: Path) -> Iterator[tuple[int, simulation.SimulatedPool, simulation.Inputs]]:
    """Each seed's pool, with junk of its own, and what the probe sees of it: the images are embedded once for all."""
    size, _ = SIZES[source]
    prepared = cells.prepare(source, {"images.size": size, "images.channels": 1}, folder)
    clean = [cells.simulated_pool(source, prepared, NATURAL, seed, INITIAL, HOLDOUT) for seed in range(seeds)]
    count = round(SHARE / (1 - SHARE) * len(clean[0].pool_P))  # of the pool with it
    made = junk_images(seeds * count, size, _other_pictures(source), np.random.default_rng(0))
    with_junk = [_with_junk(pool, made, count, seed) for seed, pool in enumerate(clean)]
    chosen = _settings(source, 0, {})
    inputs = with_junk[0].inputs(Learner(chosen, 1, strategies.get(chosen.selection.strategy)))
    for seed, pool in enumerate(with_junk):
        yield seed, pool, inputs


def _with_junk(
    pool: simulation.SimulatedPool, made_J_H_W_K: NDArray[np.uint8], count: int, seed: int
) -> simulation.SimulatedPool:
    """All the junk as rows behind the images; the pool takes the seed's own `count` of them."""
    clean, junk_ids = len(pool.labels_N), [f"junk-{number:05d}" for number in range(len(made_J_H_W_K))]
    own_J = clean + seed * count + np.arange(count)
    return replace(
        pool,
        sample_ids=np.append(pool.sample_ids, np.array(junk_ids, dtype=object)),
        images_N_H_W_K=np.concatenate([pool.images_N_H_W_K, made_J_H_W_K]),
        labels_N=np.append(pool.labels_N, np.full(len(junk_ids), len(pool.classes))),
        pool_P=np.append(pool.pool_P, own_J),
        groups_N=None if pool.groups_N is None else np.append(pool.groups_N, np.array(junk_ids, dtype=object)),
        folder=None,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="junk in the batches, with and without a guard")
    parser.add_argument("--source", choices=SIZES, default="digits")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="0 and up, so many")
    asked = parser.parse_args()
    run(asked.source, asked.seeds)
