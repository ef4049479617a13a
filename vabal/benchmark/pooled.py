"""All settings of a benchmark together: matched differences, ranks, and in how many settings an interval is sure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from vabal import statistics
from vabal.benchmark.curves import METRICS, Runs, baseline_of, quantity_of
from vabal.benchmark.rivals import rivals_of
from vabal.benchmark.summary import Gap, Pooled, Setting, StrategyOverall
from vabal.statistics import GAIN, MAIN


def pooled(
    grouped: Sequence[Mapping[str, Runs]],
    settings: Sequence[Setting],
    names: Sequence[str],
    baseline: str,
    reference: str | None,
) -> Pooled:
    ranks, blocks = _ranks(grouped, names)
    pairs = {name: _all_pairs(name, grouped, baseline) for name in names}
    gaps = {
        metric: {name: statistics.difference(_gaps(found, metric), GAIN) for name, found in pairs.items() if found}
        for metric in METRICS
    }
    holm = {metric: statistics.holm({name: gap.p for name, gap in found.items()}) for metric, found in gaps.items()}

    def described(name: str) -> StrategyOverall:
        found, signs = pairs[name], np.sign(_gaps(pairs[name], MAIN))
        return StrategyOverall(
            strategy=name,
            pairs=len(found),
            difference={m: Gap(**asdict(gaps[m][name]), holm_p=holm[m][name]) for m in METRICS} if found else None,
            by_seed=_by_seed(found),
            wins=int((signs > 0).sum()) if found else None,
            ties=int((signs == 0).sum()) if found else None,
            losses=int((signs < 0).sum()) if found else None,
            **_verdicts(name, settings),
            mean_rank=ranks.get(name),
        )

    def order(item: StrategyOverall) -> tuple[float, float, str]:
        gap = item.difference[MAIN].mean if item.difference else 0.0
        return -gap, item.mean_rank or 0.0, item.strategy

    return Pooled(
        settings=len(settings),
        blocks=blocks,
        strategies=sorted(map(described, names), key=order),
        rivals=rivals_of(reference, grouped),
    )


class _Pair(NamedTuple):
    place: int  # of the setting
    seed: int
    cell: Mapping[str, Any]
    rival: Mapping[str, Any]


def _all_pairs(name: str, grouped: Sequence[Mapping[str, Runs]], baseline: str) -> list[_Pair]:
    """The row's and its baseline's cells over all settings x seeds that both have."""
    rival = baseline_of(name, baseline)
    return [
        _Pair(place, seed, cell, runs[rival][seed])
        for place, runs in enumerate(grouped)
        for seed, cell in runs.get(name, {}).items()
        if name != rival and seed in runs.get(rival, {})
    ]


def _gaps(pairs: Sequence[_Pair], metric: str) -> list[float]:
    """Differences of the average over rounds."""
    return [quantity_of(pair.cell, metric, "average") - quantity_of(pair.rival, metric, "average") for pair in pairs]


def _by_seed(pairs: Sequence[_Pair]) -> dict[str, Gap] | None:
    """The differences averaged over the settings of a seed first; None where no seed has all settings."""
    places = {pair.place for pair in pairs}
    seeds = sorted({pair.seed for pair in pairs})
    whole = [seed for seed in seeds if sum(pair.seed == seed for pair in pairs) == len(places)]
    if not whole:
        return None

    def means(metric: str) -> list[Any]:
        found = _gaps(pairs, metric)
        return [np.mean([gap for gap, pair in zip(found, pairs, strict=True) if pair.seed == seed]) for seed in whole]

    return {metric: Gap(**asdict(statistics.difference(means(metric), GAIN))) for metric in METRICS}


def _verdicts(name: str, settings: Sequence[Setting]) -> dict[str, int]:
    """In how many settings the 95 % interval of the matched difference lies above zero, and in how many below."""
    found = [
        item.main.difference.average
        for setting in settings
        for item in setting.strategies
        if item.strategy == name and item.main.difference
    ]
    return {
        "settings": len(found),
        "settings_above": sum(gap.low is not None and gap.low > 0 for gap in found),
        "settings_below": sum(gap.high is not None and gap.high < 0 for gap in found),
        "settings_mean_above": sum(gap.mean > 0 for gap in found),
    }


def _ranks(grouped: Sequence[Mapping[str, Runs]], names: Sequence[str]) -> tuple[dict[str, float], int]:
    """Mean rank by strategy over the blocks (setting, seed) in which all ran, and how many blocks these are."""
    values_B_S = [
        [quantity_of(runs[name][seed], MAIN, "average") for name in names]
        for runs in grouped
        if all(name in runs for name in names)
        for seed in sorted(set.intersection(*(set(runs[name]) for name in names)))
    ]
    if not values_B_S:
        return {}, 0
    ranks_S = statistics.mean_ranks(values_B_S)
    return dict(zip(names, ranks_S.tolist(), strict=True)), len(values_B_S)
