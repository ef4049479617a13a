"""What a benchmark's cells say: strategies against a baseline, setting by setting and over all of them.

A cell is the document of one run (source, imbalance, strategy, seed); a *setting* is a source with an imbalance. All
comparisons are matched: a strategy and the baseline with the same seed share the initial pool, the holdout and the
classifier's initialisation, so their difference is the picks' doing. A seed that one of the two lacks is left out.

R rounds, C classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vabal import statistics
from vabal.errors import UserError
from vabal.statistics import MAIN

VERSION = 1
METRICS = ("accuracy", "balanced_accuracy", "macro_f1")
QUANTITIES = ("average", "final", "area")

RULES = {
    "average": "The mean over all rounds of a seed, the first one (the initial labels) included.",
    "area": "The area under the learning curve (trapezoids over the number of labels), divided by the range of labels.",
    "interval": "95 % interval of the mean over seeds, Student's t; none with one seed.",
    "difference": "Matched: the strategy less the baseline with the same seed. Seeds that one of them lacks are left "
    "out; n is the number of pairs.",
    "p": "Sign-flip permutation test of the matched differences, two-sided: all 2^n flips for n up to 15, beyond that "
    "2^15 random ones. The smallest p that n pairs can give is 2 / 2^n.",
    "holm_p": "p after Holm's correction over the strategies of one setting. With few seeds and many strategies it "
    "cannot be small whatever the picks: five pairs and sixteen strategies give 1. Read the intervals then.",
    "bootstrap": "95 % percentile interval over resampled seeds (10 000 resamples, fixed seed), from 5 pairs on.",
    "labels": "The labels at which the strategy's mean curve, linear between rounds, first reaches the final mean "
    "accuracy of the baseline; saved against the labels at which the baseline's own mean curve first does.",
    "rare": "A class is rare if its pool holds less than half the images of the largest class.",
    "dominant": "A class is dominant if its pool holds more than twice the images of the median class.",
    "rank": "The mean rank by average accuracy over the blocks (setting, seed) in which every strategy ran; 1 is best, "
    "ties share.",
    "pooled": "All pairs of all settings, each pair counted once; by seed: averaged first over the settings of a seed "
    "(only seeds that are complete), for runs that share a seed may not be independent.",
}


def summarise(cells: Iterable[Mapping[str, Any]], baseline: str = "random") -> dict[str, Any]:
    """The statistics of all cells, ready for JSON (no NaN): what `summary.json` holds.

    Raises UserError for no cells, for two of the same run, for cells of one setting that differ in classes or labels,
    and for a measure that is not finite.
    """
    documents = sorted(cells, key=_identity)
    if not documents:
        raise UserError("there are no cells to compare")
    _check(documents)
    names = sorted({str(cell["strategy"]) for cell in documents})
    grouped: dict[tuple[str, str], dict[str, _Runs]] = {}
    for cell in documents:
        by_strategy = grouped.setdefault((cell["source"], cell["imbalance"]), {})
        by_strategy.setdefault(cell["strategy"], {})[int(cell["seed"])] = cell
    settings = [_setting(runs, baseline) for runs in grouped.values()]
    pooled = _pooled(list(grouped.values()), settings, names, baseline)
    return {
        "version": VERSION,
        "baseline": baseline,
        "main": MAIN,
        "metrics": list(METRICS),
        "confidence": statistics.CONFIDENCE,
        "rules": dict(RULES),
        "cells": len(documents),
        "strategies": [item["strategy"] for item in pooled["strategies"]],
        "settings": settings,
        "pooled": pooled,
    }


_Runs = dict[int, Mapping[str, Any]]  # one strategy's cells by seed


def _identity(cell: Mapping[str, Any]) -> tuple[str, str, str, int]:
    return cell["source"], cell["imbalance"], cell["strategy"], int(cell["seed"])


def _check(documents: Sequence[Mapping[str, Any]]) -> None:
    """Cells that cannot be compared are refused; `documents` are sorted."""
    first: dict[tuple[str, str], Mapping[str, Any]] = {}
    seen: set[Any] = set()
    for cell in documents:
        source, imbalance, strategy, seed = identity = _identity(cell)
        named = f"the cell of {source}, {imbalance}, {strategy}, seed {seed}"
        if identity in seen:
            raise UserError(f"{named} is there twice: remove one of the files")
        seen.add(identity)
        if not cell["rounds"]:
            raise UserError(f"{named} has no rounds: remove its file, and it runs again")
        other = first.setdefault((source, imbalance), cell)
        for what, mine, its in (
            ("classes", cell["classes"], other["classes"]),
            ("labels a round", _labeled(cell), _labeled(other)),
        ):
            if mine != its:
                raise UserError(
                    f"{named} has other {what} than that of {other['strategy']}, seed {other['seed']} "
                    f"({mine} and {its}): they cannot be compared; keep them in folders of their own"
                )
        for metric in METRICS:
            if not all(isinstance(value, int | float) and np.isfinite(value) for value in _curve(cell, metric)):
                raise UserError(f"{named} has a round whose {metric} is no finite number: remove its file")


def _labeled(cell: Mapping[str, Any]) -> list[int]:
    return [int(item["labeled"]) for item in cell["rounds"]]


def _curve(cell: Mapping[str, Any], metric: str) -> list[Any]:
    return [item[metric] for item in cell["rounds"]]


def _quantity(cell: Mapping[str, Any], metric: str, quantity: str) -> float:
    curve_R = _curve(cell, metric)
    if quantity == "average":
        return float(np.mean(curve_R))
    return float(curve_R[-1]) if quantity == "final" else statistics.area_under_curve(_labeled(cell), curve_R)


# -- one setting ----------------------------------------------------------------------------------------------------


def _setting(runs: Mapping[str, _Runs], baseline: str) -> dict[str, Any]:
    cells = [cell for by_seed in runs.values() for cell in by_seed.values()]
    any_cell, seeds = cells[0], sorted({seed for by_seed in runs.values() for seed in by_seed})
    pool_C = np.mean([cell["pool_per_class"] for cell in cells], axis=0)
    classes = [str(name) for name in any_cell["classes"]]
    rare_C = pool_C < pool_C.max() / 2
    dominant_C = pool_C > 2 * np.median(pool_C)
    described = [_strategy(name, runs, baseline, seeds, rare_C) for name in runs]
    _correct(described, baseline)
    return {
        "source": any_cell["source"],
        "imbalance": any_cell["imbalance"],
        "classes": classes,
        "pool_per_class": pool_C.tolist(),
        "holdout_per_class": np.mean([cell["holdout_per_class"] for cell in cells], axis=0).tolist(),
        "rare_classes": [name for name, rare in zip(classes, rare_C, strict=True) if rare],
        "dominant_classes": [name for name, dominant in zip(classes, dominant_C, strict=True) if dominant],
        "initial": any_cell["initial"],
        "budget": any_cell["budget"],
        "labeled": _labeled(any_cell),
        "seeds": seeds,
        "strategies": sorted(described, key=lambda item: _by_difference(item["metrics"][MAIN], item["strategy"])),
    }


def _by_difference(measured: Mapping[str, Any], name: str) -> tuple[float, float, str]:
    """Orders strategies: the largest matched difference first; the baseline stands at zero; then by average."""
    gap = (measured["difference"] or {}).get("average")
    return -(gap["mean"] if gap else 0.0), -measured["average"]["mean"], name


def _strategy(name: str, runs: Mapping[str, _Runs], baseline: str, seeds: Sequence[int], rare_C: Any) -> dict[str, Any]:
    mine = runs[name]
    rivals = runs.get(baseline, {}) if name != baseline else {}
    pairs = [(mine[seed], rivals[seed]) for seed in mine if seed in rivals]
    cells = list(mine.values())
    return {
        "strategy": name,
        "seeds": list(mine),
        "missing_seeds": [seed for seed in seeds if seed not in mine],
        "pairs": len(pairs),
        "metrics": {metric: _measured(metric, cells, pairs) for metric in METRICS},
        "labels": _labels(cells, runs.get(baseline, {}), name == baseline),
        "rare_share": _rare_share(cells, rare_C),
        "classes": _class_accuracy(cells),
        "seconds": _seconds(cells),
        "top_picks": _top_picks(mine),
    }


_Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def _measured(metric: str, cells: Sequence[Mapping[str, Any]], pairs: _Pairs) -> dict[str, Any]:
    def per_seed(quantity: str) -> dict[str, Any]:
        values = [_quantity(cell, metric, quantity) for cell in cells]
        return {**asdict(statistics.estimate(values)), "per_seed": values}

    gaps = {
        quantity: asdict(
            statistics.difference([_quantity(a, metric, quantity) - _quantity(b, metric, quantity) for a, b in pairs])
        )
        for quantity in (QUANTITIES if pairs else ())
    }
    curves_S_R = [_curve(cell, metric) for cell in cells]
    gaps_P_R = [np.subtract(_curve(a, metric), _curve(b, metric)) for a, b in pairs]
    return {
        "per_round": _per_round(cells[0], curves_S_R),
        **{quantity: per_seed(quantity) for quantity in QUANTITIES},
        "difference": gaps or None,
        "difference_per_round": _per_round(cells[0], gaps_P_R) if pairs else None,
    }


def _per_round(cell: Mapping[str, Any], values_S_R: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {"round": item["round"], "labeled": item["labeled"], **asdict(statistics.estimate(values))}
        for item, values in zip(cell["rounds"], np.asarray(values_S_R, dtype=np.float64).T, strict=True)
    ]


def _correct(described: Sequence[dict[str, Any]], baseline: str) -> None:
    """Adds Holm's p to every difference of one setting."""
    for metric in METRICS:
        for quantity in QUANTITIES:
            gaps = {
                item["strategy"]: item["metrics"][metric]["difference"][quantity]
                for item in described
                if item["strategy"] != baseline and item["metrics"][metric]["difference"]
            }
            for name, p in statistics.holm({name: gap["p"] for name, gap in gaps.items()}).items():
                gaps[name]["holm_p"] = p


def _labels(cells: Sequence[Mapping[str, Any]], rivals: _Runs, is_baseline: bool) -> dict[str, Any] | None:
    """Labels needed for the baseline's final mean accuracy, over the seeds that both have; None without any."""
    mine = {int(cell["seed"]): cell for cell in cells}
    shared = sorted(set(mine) & set(rivals))
    if not shared:
        return None
    labeled_R = _labeled(cells[0])
    baseline_R = np.mean([_curve(rivals[seed], MAIN) for seed in shared], axis=0)
    target = float(baseline_R[-1])
    theirs = statistics.labels_to_reach(labeled_R, baseline_R, target)
    needed = statistics.labels_to_reach(
        labeled_R, np.mean([_curve(mine[seed], MAIN) for seed in shared], axis=0), target
    )
    saved = None if needed is None or theirs is None or is_baseline else theirs - needed
    return {
        "target": target,
        "reached": needed is not None,
        "needed": needed,
        "baseline_needed": theirs,
        "saved": saved,
        "saved_share": None if saved is None or not theirs else saved / theirs,
    }


def _picked_S_R_C(cells: Sequence[Mapping[str, Any]]) -> Any:
    return np.cumsum([[item["picked_per_class"] for item in cell["rounds"]] for cell in cells], axis=1)


def _rare_share(cells: Sequence[Mapping[str, Any]], rare_C: Any) -> list[dict[str, Any]] | None:
    """Share of the labelled pool that is of rare classes, round by round (paper, Fig. 9)."""
    if not rare_C.any():
        return None
    labeled_S_R_C = _picked_S_R_C(cells)
    totals_S_R = labeled_S_R_C.sum(axis=2)
    share_S_R = labeled_S_R_C[:, :, rare_C].sum(axis=2) / np.maximum(totals_S_R, 1)
    return _per_round(cells[0], share_S_R)


def _class_accuracy(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Final recall of each class against how many of it were labelled, means over seeds (paper, Fig. 6)."""
    recalls_C: list[float | None] = []
    for values in zip(*(cell["rounds"][-1]["recall_per_class"] for cell in cells), strict=True):
        known = [value for value in values if value is not None]
        recalls_C.append(float(np.mean(known)) if known else None)
    labeled_C = _picked_S_R_C(cells)[:, -1].mean(axis=0).tolist()
    return {
        "recall": recalls_C,
        "labeled": labeled_C,
        "rank_correlation": statistics.rank_correlation(labeled_C, recalls_C),
    }


def _seconds(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean seconds of each part of a round; a part that a round lacks (no selection follows the last) is left out."""
    parts = sorted({part for cell in cells for item in cell["rounds"] for part in item["seconds"]})
    rounds = [
        {
            "round": items[0]["round"],
            **{
                part: float(np.mean([item["seconds"][part] for item in items if part in item["seconds"]]))
                for part in parts
                if any(part in item["seconds"] for item in items)
            },
        }
        for items in zip(*(cell["rounds"] for cell in cells), strict=True)
    ]
    means = {part: float(np.mean([item[part] for item in rounds if part in item])) for part in parts}
    return {"per_round": rounds, "mean": means}


def _top_picks(mine: _Runs) -> dict[str, Any] | None:
    """The first picks of the lowest seed that recorded any (paper, Fig. 5); their images stay in the cells."""
    for seed, cell in mine.items():
        if cell.get("top_picks"):
            kept = ("sample_id", "label", "predicted_class")
            return {"seed": seed, "picks": [{name: pick.get(name) for name in kept} for pick in cell["top_picks"]]}
    return None


# -- all settings ---------------------------------------------------------------------------------------------------


def _pooled(
    grouped: Sequence[Mapping[str, _Runs]],
    settings: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    baseline: str,
) -> dict[str, Any]:
    ranks, blocks = _ranks(grouped, names)
    described = [
        {
            "strategy": name,
            **_pooled_differences(name, grouped, baseline),
            **_verdicts(name, settings),
            "mean_rank": ranks.get(name),
        }
        for name in names
    ]
    for metric in METRICS:
        gaps = {item["strategy"]: item["difference"][metric] for item in described if item["difference"]}
        for name, p in statistics.holm({name: gap["p"] for name, gap in gaps.items()}).items():
            gaps[name]["holm_p"] = p

    def order(item: Mapping[str, Any]) -> tuple[float, float, str]:
        gap = item["difference"][MAIN]["mean"] if item["difference"] else 0.0
        return -gap, item["mean_rank"] or 0.0, item["strategy"]

    return {"settings": len(settings), "blocks": blocks, "strategies": sorted(described, key=order)}


def _pooled_differences(name: str, grouped: Sequence[Mapping[str, _Runs]], baseline: str) -> dict[str, Any]:
    """Average over rounds, the strategy less the baseline, over all settings x seeds; and seed by seed."""
    pairs = [
        (place, seed, cell, runs[baseline][seed])
        for place, runs in enumerate(grouped)
        for seed, cell in runs.get(name, {}).items()
        if name != baseline and seed in runs.get(baseline, {})
    ]
    if not pairs:
        return {"pairs": 0, "difference": None, "by_seed": None, "wins": None, "ties": None, "losses": None}

    def gaps(metric: str) -> list[float]:
        return [_quantity(a, metric, "average") - _quantity(b, metric, "average") for _, _, a, b in pairs]

    places = {place for place, *_ in pairs}
    seeds = sorted({seed for _, seed, *_ in pairs})
    whole = [seed for seed in seeds if sum(pair[1] == seed for pair in pairs) == len(places)]

    def by_seed(metric: str) -> dict[str, Any]:
        found = gaps(metric)
        means = [np.mean([gap for gap, pair in zip(found, pairs, strict=True) if pair[1] == seed]) for seed in whole]
        return asdict(statistics.difference(means))

    signs = np.sign(gaps(MAIN))
    return {
        "pairs": len(pairs),
        "difference": {metric: asdict(statistics.difference(gaps(metric))) for metric in METRICS},
        "by_seed": {metric: by_seed(metric) for metric in METRICS} if whole else None,
        "wins": int((signs > 0).sum()),
        "ties": int((signs == 0).sum()),
        "losses": int((signs < 0).sum()),
    }


def _verdicts(name: str, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """In how many settings the 95 % interval of the matched difference lies above zero, and in how many below."""
    found = [
        item["metrics"][MAIN]["difference"]["average"]
        for setting in settings
        for item in setting["strategies"]
        if item["strategy"] == name and item["metrics"][MAIN]["difference"]
    ]

    return {
        "settings": len(found),
        "settings_above": sum(gap["low"] is not None and gap["low"] > 0 for gap in found),
        "settings_below": sum(gap["high"] is not None and gap["high"] < 0 for gap in found),
        "settings_mean_above": sum(gap["mean"] > 0 for gap in found),
    }


def _ranks(grouped: Sequence[Mapping[str, _Runs]], names: Sequence[str]) -> tuple[dict[str, float], int]:
    """Mean rank by strategy over the blocks (setting, seed) in which all ran, and how many blocks these are."""
    values_B_S = [
        [_quantity(runs[name][seed], MAIN, "average") for name in names]
        for runs in grouped
        if all(name in runs for name in names)
        for seed in sorted(set.intersection(*(set(runs[name]) for name in names)))
    ]
    if not values_B_S:
        return {}, 0
    ranks_S = statistics.mean_ranks(values_B_S)
    return dict(zip(names, ranks_S.tolist(), strict=True)), len(values_B_S)
