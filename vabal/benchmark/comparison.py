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
from vabal.benchmark.curves import METRICS, Runs, baseline_of, curve, labeled, picks_of, quantity_of
from vabal.benchmark.pooled import pooled
from vabal.benchmark.rivals import default_reference, rivals_of
from vabal.benchmark.summary import (
    VERSION,
    ClassAccuracy,
    Cost,
    Gap,
    Gaps,
    Labels,
    MeanOfRound,
    MeanOfSeeds,
    Measured,
    Pick,
    Seconds,
    Setting,
    StrategyInSetting,
    Summary,
    TopPicks,
)
from vabal.errors import UserError
from vabal.statistics import GAIN, MAIN, SHARE

QUANTITIES = ("average", "final", "area")

RULES = {
    "average": "The mean over all rounds of a seed, the first one (the initial labels) included.",
    "area": "The area under the learning curve (trapezoids over the number of labels), divided by the range of labels.",
    "interval": "95 % interval of the mean over seeds, Student's t, clipped to what is possible; none with one seed.",
    "difference": "Matched: the strategy less the baseline with the same learner and the same seed. Seeds that one of "
    "them lacks are left out; n is the number of pairs.",
    "p": "Sign-flip permutation test of the matched differences, two-sided: all 2^n flips for n up to 15, beyond that "
    "2^15 random ones. The smallest p that n pairs can give is 2 / 2^n.",
    "holm_p": "p after Holm's correction over the strategies of one setting. With few seeds and many strategies it "
    "cannot be small whatever the picks: five pairs and sixteen strategies give 1. Read the intervals then.",
    "bootstrap": "95 % percentile interval over resampled seeds (10 000 resamples, fixed seed), from 5 pairs on.",
    "rival": "The reference less the rival with the same seed, of averages over rounds; over several settings of each "
    "seed's mean. Student's paired test, Holm's correction over all rivals; not distinguishable: the corrected p is "
    "0.05 or more, or there are too few seeds for a test.",
    "labels": "The labels at which the strategy's mean curve, linear between rounds, first reaches the final mean of "
    "the baseline; saved against the labels at which the baseline's own mean curve first does. The interval resamples "
    "seeds (from 5 on); an end of it is open where such a curve does not get there. Matched: what the baseline needs "
    "for the strategy's own end.",
    "cost": "Of one run, means over seeds: networks (or baselines) trained, and seconds of CPU over all threads, "
    "without the images' embeddings, which are made once a source.",
    "rare": "A class is rare if its pool holds less than half the images of the largest class.",
    "dominant": "A class is dominant if its pool holds more than twice the images of the median class.",
    "rank": "The mean rank by average accuracy over the blocks (setting, seed) in which every strategy ran; 1 is best, "
    "ties share.",
    "pooled": "All pairs of all settings, each pair counted once; by seed: averaged first over the settings of a seed "
    "(only seeds that are complete), for runs that share a seed may not be independent.",
}


def summarise(cells: Iterable[Mapping[str, Any]], baseline: str = "random", reference: str | None = None) -> Summary:
    """The statistics of all cells: what `summary.json` holds. `reference` is the row that others are tested against.

    Raises UserError for no cells, for two of the same run, for cells of one setting that differ in classes or labels,
    and for a measure that is not finite.
    """
    documents = sorted(cells, key=_identity)
    if not documents:
        raise UserError("there are no cells to compare")
    _check(documents)
    names = sorted({str(cell["strategy"]) for cell in documents})
    grouped: dict[tuple[str, str], dict[str, Runs]] = {}
    for cell in documents:
        by_strategy = grouped.setdefault((cell["source"], cell["imbalance"]), {})
        by_strategy.setdefault(cell["strategy"], {})[int(cell["seed"])] = cell
    reference = reference if reference in names else default_reference(names, baseline)
    settings = [_setting(runs, baseline, reference) for runs in grouped.values()]
    overall = pooled(list(grouped.values()), settings, names, baseline, reference)
    return Summary(
        version=VERSION,
        baseline=baseline,
        reference=reference,
        main=MAIN,
        metrics=list(METRICS),
        confidence=statistics.CONFIDENCE,
        rules=dict(RULES),
        cells=len(documents),
        strategies=[item.strategy for item in overall.strategies],
        settings=settings,
        pooled=overall,
    )


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
            ("labels a round", labeled(cell), labeled(other)),
        ):
            if mine != its:
                raise UserError(
                    f"{named} has other {what} than that of {other['strategy']}, seed {other['seed']} "
                    f"({mine} and {its}): they cannot be compared; keep them in folders of their own"
                )
        for metric in METRICS:
            if not all(isinstance(value, int | float) and np.isfinite(value) for value in curve(cell, metric)):
                raise UserError(f"{named} has a round whose {metric} is no finite number: remove its file")


# -- one setting ----------------------------------------------------------------------------------------------------


def _setting(runs: Mapping[str, Runs], baseline: str, reference: str | None) -> Setting:
    cells = [cell for by_seed in runs.values() for cell in by_seed.values()]
    any_cell, seeds = cells[0], sorted({seed for by_seed in runs.values() for seed in by_seed})
    pool_C = np.mean([cell["pool_per_class"] for cell in cells], axis=0)
    classes = [str(name) for name in any_cell["classes"]]
    rare_C = pool_C < pool_C.max() / 2
    dominant_C = pool_C > 2 * np.median(pool_C)
    holm = _holm_p(runs, baseline)
    described = [_strategy(name, runs, baseline, seeds, rare_C, holm) for name in runs]
    return Setting(
        source=any_cell["source"],
        imbalance=any_cell["imbalance"],
        classes=classes,
        pool_per_class=pool_C.tolist(),
        holdout_per_class=np.mean([cell["holdout_per_class"] for cell in cells], axis=0).tolist(),
        rare_classes=[name for name, rare in zip(classes, rare_C, strict=True) if rare],
        dominant_classes=[name for name, dominant in zip(classes, dominant_C, strict=True) if dominant],
        initial=any_cell["initial"],
        budget=any_cell["budget"],
        labeled=labeled(any_cell),
        seeds=seeds,
        strategies=sorted(described, key=_by_average if any(item.learner for item in described) else _by_difference),
        rivals=rivals_of(reference, [runs]),
        caveat=next((cell["caveat"] for cell in cells if cell.get("caveat")), None),
    )


def _by_difference(item: StrategyInSetting) -> tuple[float, float, str]:
    """Orders strategies: the largest matched difference first; the baseline stands at zero; then by average."""
    gap = item.main.difference
    return -(gap.average.mean if gap else 0.0), -item.main.average.mean, item.strategy


def _by_average(item: StrategyInSetting) -> tuple[float, str]:
    """Of several learners, whose differences are to baselines of their own."""
    return -item.main.average.mean, item.strategy


_Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
_Holm = Mapping[tuple[str, str], Mapping[str, float]]  # by measure and quantity: each strategy's p


def _pairs_of(name: str, runs: Mapping[str, Runs], baseline: str) -> _Pairs:
    rivals = runs.get(baseline_of(name, baseline), {}) if picks_of(name) != baseline else {}
    return [(cell, rivals[seed]) for seed, cell in runs[name].items() if seed in rivals]


def _strategy(
    name: str, runs: Mapping[str, Runs], baseline: str, seeds: Sequence[int], rare_C: Any, holm: _Holm
) -> StrategyInSetting:
    mine, pairs = runs[name], _pairs_of(name, runs, baseline)
    cells = list(mine.values())
    return StrategyInSetting(
        strategy=name,
        learner=str(cells[0].get("learner", "")),
        picks=picks_of(name),
        seeds=list(mine),
        missing_seeds=[seed for seed in seeds if seed not in mine],
        pairs=len(pairs),
        metrics={metric: _measured(metric, name, cells, pairs, holm) for metric in METRICS},
        labels=_labels(cells, runs.get(baseline_of(name, baseline), {}), picks_of(name) == baseline),
        rare_share=_rare_share(cells, rare_C),
        classes=_class_accuracy(cells),
        seconds=_seconds(cells),
        cost=_cost(cells),
        top_picks=_top_picks(mine),
    )


def _measured(metric: str, name: str, cells: Sequence[Mapping[str, Any]], pairs: _Pairs, holm: _Holm) -> Measured:
    def per_seed(quantity: str) -> MeanOfSeeds:
        values = [quantity_of(cell, metric, quantity) for cell in cells]
        return MeanOfSeeds(**asdict(statistics.estimate(values, SHARE)), per_seed=values)

    def gap(quantity: str) -> Gap:
        return Gap(**asdict(_difference(metric, quantity, pairs)), holm_p=holm[metric, quantity][name])

    curves_S_R = [curve(cell, metric) for cell in cells]
    gaps_P_R = [np.subtract(curve(a, metric), curve(b, metric)) for a, b in pairs]
    return Measured(
        per_round=_per_round(cells[0], curves_S_R, SHARE),
        average=per_seed("average"),
        final=per_seed("final"),
        area=per_seed("area"),
        difference=Gaps(average=gap("average"), final=gap("final"), area=gap("area")) if pairs else None,
        difference_per_round=_per_round(cells[0], gaps_P_R, GAIN) if pairs else None,
    )


def _difference(metric: str, quantity: str, pairs: _Pairs) -> statistics.Difference:
    return statistics.difference(
        [quantity_of(a, metric, quantity) - quantity_of(b, metric, quantity) for a, b in pairs], GAIN
    )


def _per_round(cell: Mapping[str, Any], values_S_R: Sequence[Any], possible: statistics.Range) -> list[MeanOfRound]:
    return [
        MeanOfRound(round=item["round"], labeled=item["labeled"], **asdict(statistics.estimate(values, possible)))
        for item, values in zip(cell["rounds"], np.asarray(values_S_R, dtype=np.float64).T, strict=True)
    ]


def _holm_p(runs: Mapping[str, Runs], baseline: str) -> _Holm:
    """Holm's p of every difference of one setting."""
    pairs = {name: found for name in runs if (found := _pairs_of(name, runs, baseline))}
    return {
        (metric, quantity): statistics.holm(
            {name: _difference(metric, quantity, found).p for name, found in pairs.items()}
        )
        for metric in METRICS
        for quantity in QUANTITIES
    }


def _labels(cells: Sequence[Mapping[str, Any]], rivals: Runs, is_baseline: bool) -> Labels | None:
    """Labels needed for the baseline's final mean accuracy, over the seeds that both have; None without any."""
    mine = {int(cell["seed"]): cell for cell in cells}
    shared = sorted(set(mine) & set(rivals))
    if not shared:
        return None
    labeled_R = labeled(cells[0])
    theirs_S_R, mine_S_R = ([curve(runs[seed], MAIN) for seed in shared] for runs in (rivals, mine))
    baseline_R, own_R = np.mean(theirs_S_R, axis=0), np.mean(mine_S_R, axis=0)
    target = float(baseline_R[-1])
    theirs, needed = (statistics.labels_to_reach(labeled_R, curve_R, target) for curve_R in (baseline_R, own_R))
    saved, interval = (None, None) if is_baseline else statistics.labels_apart(labeled_R, mine_S_R, theirs_S_R)
    low, high = interval or (None, None)
    return Labels(
        target=target,
        reached=needed is not None,
        needed=needed,
        baseline_needed=theirs,
        saved=saved,
        saved_share=None if saved is None or not theirs else saved / theirs,
        saved_low=low,
        saved_high=high,
        matched=statistics.labels_to_reach(labeled_R, baseline_R, float(own_R[-1])),
    )


def _picked_S_R_C(cells: Sequence[Mapping[str, Any]]) -> Any:
    return np.cumsum([[item["picked_per_class"] for item in cell["rounds"]] for cell in cells], axis=1)


def _rare_share(cells: Sequence[Mapping[str, Any]], rare_C: Any) -> list[MeanOfRound] | None:
    """Share of the labelled pool that is of rare classes, round by round (paper, Fig. 9)."""
    if not rare_C.any():
        return None
    labeled_S_R_C = _picked_S_R_C(cells)
    totals_S_R = labeled_S_R_C.sum(axis=2)
    share_S_R = labeled_S_R_C[:, :, rare_C].sum(axis=2) / np.maximum(totals_S_R, 1)
    return _per_round(cells[0], share_S_R, SHARE)


def _class_accuracy(cells: Sequence[Mapping[str, Any]]) -> ClassAccuracy:
    """Final recall of each class against how many of it were labelled, means over seeds (paper, Fig. 6)."""
    recalls_C: list[float | None] = []
    for values in zip(*(cell["rounds"][-1]["recall_per_class"] for cell in cells), strict=True):
        known = [value for value in values if value is not None]
        recalls_C.append(float(np.mean(known)) if known else None)
    labeled_C = _picked_S_R_C(cells)[:, -1].mean(axis=0).tolist()
    correlation = statistics.rank_correlation(labeled_C, recalls_C)
    return ClassAccuracy(recall=recalls_C, labeled=labeled_C, rank_correlation=correlation)


def _seconds(cells: Sequence[Mapping[str, Any]]) -> Seconds:
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
    return Seconds(per_round=rounds, mean=means)


def _cost(cells: Sequence[Mapping[str, Any]]) -> Cost | None:
    """None of cells that an earlier version ran, which did not say."""
    if not all("cpu_seconds" in item for cell in cells for item in cell["rounds"]):
        return None

    def mean(name: str) -> float:
        return float(np.mean([sum(item[name] for item in cell["rounds"]) for cell in cells]))

    return Cost(trained=mean("trained"), cpu_seconds=mean("cpu_seconds"))


def _top_picks(mine: Runs) -> TopPicks | None:
    """The first picks of the lowest seed that recorded any (paper, Fig. 5); their images stay in the cells."""
    for seed, cell in mine.items():
        if cell.get("top_picks"):
            picks = [Pick(**{name: pick.get(name) for name in Pick.model_fields}) for pick in cell["top_picks"]]
            return TopPicks(seed=seed, picks=picks)
    return None
