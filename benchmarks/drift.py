"""How often the test for drift sees a change in what comes in, and how often it sees one where there is none.

    python -m benchmarks.drift OUT OUT ... [--nights 100]

Each OUT is a folder that `vabal bench` wrote with a probe: a set, whose images' features it keeps. A night draws new
images and up to 500 earlier ones from it: alike, or with a change. One line a kind of night: the share of nights on
which the test has a p of 0.05 or less.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.audit.drift import LEVEL, two_samples
from vabal.rounds import drift

NEW = (20, 60, 200)
EARLIER = 500
Rows = NDArray[np.int64]


class Seen(NamedTuple):
    """A set: the features of its images, and the class of each; one image a group."""

    features_N_D: NDArray[Any]
    class_N: NDArray[np.int64]


def read(out: Path) -> Seen:
    path = next(iter(sorted((out / "cache").glob("*/pool-*.npy"))))
    items = pd.read_parquet(path.with_name("items.parquet"))
    class_N = pd.factorize(items["label"], sort=True)[0]
    kept = np.flatnonzero((class_N >= 0) & ~_repeated(items))
    return Seen(np.load(path, mmap_mode="r")[kept], class_N[kept])


def _repeated(items: pd.DataFrame) -> NDArray[np.bool_]:
    if "group" not in items or items["group"].isna().all():
        return np.zeros(len(items), dtype=bool)
    return np.asarray(items["group"].duplicated() & items["group"].notna())


def alike(seen: Seen, new: int, random: np.random.Generator) -> tuple[Rows, Rows]:
    rows = random.permutation(len(seen.class_N))
    return rows[:new], rows[new : new + EARLIER]


def unknown_class(seen: Seen, new: int, random: np.random.Generator) -> tuple[Rows, Rows]:
    """A fifth of the new images are of a class that had not been there."""
    fresh = random.integers(seen.class_N.max() + 1)
    others = random.permutation(np.flatnonzero(seen.class_N != fresh))
    own = random.permutation(np.flatnonzero(seen.class_N == fresh))[: new // 5]
    rest = new - len(own)
    return np.concatenate([own, others[:rest]]), others[rest : rest + EARLIER]


def other_shares(seen: Seen, new: int, random: np.random.Generator) -> tuple[Rows, Rows]:
    """Half of the classes are three times as common among the new ones."""
    rows = random.permutation(len(seen.class_N))
    earlier = rows[: min(EARLIER, len(rows) // 2)]
    left = rows[len(earlier) :]
    classes = random.permutation(seen.class_N.max() + 1)
    weight_N = np.where(np.isin(seen.class_N[left], classes[: len(classes) // 2]), 3.0, 1.0)
    return random.choice(left, new, replace=False, p=weight_N / weight_N.sum()), earlier


def found(seen: Seen, new: int, night: Callable[..., tuple[Rows, Rows]], seed: int) -> bool:
    fresh, earlier = night(seen, new, np.random.default_rng(seed))
    values = drift.components(seen.features_N_D[np.concatenate([fresh, earlier])])
    return two_samples(values, np.arange(len(values)) < len(fresh), seed)[1] <= LEVEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("grids", nargs="+", type=Path, metavar="OUT", help="a folder that `vabal bench` wrote")
    parser.add_argument("--nights", type=int, default=100)
    asked = parser.parse_args()
    for out in asked.grids:
        seen = read(out)
        for night in (alike, unknown_class, other_shares):
            told = [
                f"{new} new {np.mean([found(seen, new, night, s) for s in range(asked.nights)]):.0%}" for new in NEW
            ]
            print(f"{out.name}, {night.__name__.replace('_', ' ')}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
