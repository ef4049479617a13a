"""The reference against every other row: paired by seed, corrected for their number, and told apart or not."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from vabal import statistics
from vabal.benchmark.curves import Runs, picks_of, quantity_of
from vabal.benchmark.summary import Gap, Rival, Verdict
from vabal.statistics import GAIN, MAIN

LEVEL = 1 - statistics.CONFIDENCE


def default_reference(names: Sequence[str], baseline: str) -> str | None:
    """`vabal`, on whichever learner comes first, else the first row that is not the baseline's."""
    ours = [name for name in names if picks_of(name) == "vabal"]
    others = [name for name in names if picks_of(name) != baseline]
    return next(iter([*ours, *others]), None)


def rivals_of(reference: str | None, grouped: Sequence[Mapping[str, Runs]]) -> list[Rival]:
    """Every row that shares seeds with the reference in these settings, the one that is least behind it first.

    With several settings a seed's differences are averaged over those in which both rows ran; a seed that lacks one of
    them is left out.
    """
    if reference is None:
        return []
    names = sorted({name for runs in grouped for name in runs} - {reference})
    gaps = {name: found for name in names if (found := _by_seed(reference, name, grouped))}
    differences = {name: statistics.difference(found, GAIN) for name, found in gaps.items()}
    holm = statistics.holm({name: gap.t_p for name, gap in differences.items() if gap.t_p is not None})
    rivals = [
        Rival(
            strategy=name,
            difference=Gap(**asdict(gap)),
            holm_t_p=holm.get(name),
            verdict=_verdict(gap.mean, holm.get(name)),
        )
        for name, gap in differences.items()
    ]
    return sorted(rivals, key=lambda rival: (rival.difference.mean, rival.strategy))


def _by_seed(reference: str, name: str, grouped: Sequence[Mapping[str, Runs]]) -> list[float]:
    shared = [(runs[reference], runs[name]) for runs in grouped if reference in runs and name in runs]
    if not shared:
        return []
    seeds = set.intersection(*(set(mine) & set(theirs) for mine, theirs in shared))
    return [
        float(np.mean([_average(mine[seed]) - _average(theirs[seed]) for mine, theirs in shared]))
        for seed in sorted(seeds)
    ]


def _average(cell: Mapping[str, object]) -> float:
    return quantity_of(cell, MAIN, "average")


def _verdict(mean: float, p: float | None) -> Verdict:
    if p is None or p >= LEVEL:
        return "not distinguishable"
    return "ahead" if mean > 0 else "behind"
