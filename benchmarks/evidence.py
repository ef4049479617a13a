"""Tables and figures as in docs/evidence-scratch.md, from a benchmark: `python -m benchmarks.evidence OUT`.

OUT is a folder that `vabal bench` wrote. Prints Markdown; `--figure FILE.svg` draws learning curves, a panel a setting.
Points are of balanced accuracy averaged over the rounds, less the baseline's with the same seed.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vabal import statistics
from vabal.benchmark.grids import NATURAL
from vabal.benchmark.summary import Mean, Setting, StrategyInSetting, StrategyOverall, Summary
from vabal.statistics import MAIN

DRAWN = 5  # rivals in a panel, those with the highest means over all settings
MEASURES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}


def table(summary: Summary, own: str = "vabal") -> Iterator[str]:
    """One row a strategy: points above the baseline by setting and over all, and how far `own` is from it."""
    settings = _in_order(summary)
    names = [item.imbalance for item in settings]
    yield "| strategy | " + " | ".join(names) + f" | all pairs | seeds' means | `{own}` less it | rank | s a round |"
    yield "|---|" + "--:|" * len(names) + "---|---|---|--:|--:|"
    gaps = {found.strategy: found for found in summary.pooled.strategies}
    for name in sorted(gaps, key=lambda name: (-_mean(gaps[name]), name)):
        found, cells = gaps[name], []
        for setting in settings:
            difference = _of(setting, name).main.difference
            cells.append(f"{100 * difference.average.mean:+.1f}" if difference else "0")
        pooled, by_seed = found.difference, found.by_seed
        shown = f"**`{name}`**" if name == own else f"`{name}`"
        over_all = _interval(pooled[MAIN], mean=True) if pooled else "0"
        over_seeds = _interval(by_seed[MAIN]) if by_seed else ""
        seconds = np.mean([sum(_of(setting, name).seconds.mean.values()) for setting in settings])
        rank = "" if found.mean_rank is None else f"{found.mean_rank:.1f}"
        cells += [over_all, over_seeds, _against(settings, own, name), rank, f"{seconds:.1f}"]
        yield f"| {shown} | " + " | ".join(cells) + " |"


def by_setting(summary: Summary) -> Iterator[str]:
    """One row a strategy in the order in which they were named, with the interval of each setting, and of all pairs."""
    settings = _in_order(summary)
    yield "| | " + " | ".join(item.imbalance for item in settings) + " | all pairs |"
    yield "|---|" + "---|" * (len(settings) + 1)
    pooled = {found.strategy: found.difference for found in summary.pooled.strategies}
    for name in summary.strategies:
        if name != summary.baseline:
            found = [gaps.average if (gaps := _of(setting, name).main.difference) else None for setting in settings]
            cells = [_interval(gap, mean=True) for gap in (*found, (pooled[name] or {}).get(MAIN))]
            yield f"| {name} | " + " | ".join(cells) + " |"


def measures(summary: Summary, names: Sequence[str]) -> Iterator[str]:
    """The same over all settings by each measure."""
    yield "| measure | " + " | ".join(f"`{name}`" for name in names) + " |"
    yield "|---|" + "--:|" * len(names)
    gaps = {found.strategy: found.difference or {} for found in summary.pooled.strategies}
    for key, said in MEASURES.items():
        yield f"| {said} | " + " | ".join(_interval(gaps[name].get(key), mean=True) for name in names) + " |"


def _in_order(summary: Summary) -> list[Setting]:
    """The natural setting first, then by name."""
    return sorted(summary.settings, key=lambda item: (item.imbalance != NATURAL, item.imbalance))


def _mean(found: StrategyOverall) -> float:
    """Of the baseline, which differs from nothing, 0."""
    return found.difference[MAIN].mean if found.difference else 0.0


def _interval(found: Mean | None, *, mean: bool = False) -> str:
    if found is None:
        return ""
    low = "" if found.low is None or found.high is None else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    return f"{100 * found.mean:+.1f} ({low})" if mean else low


def _of(setting: Setting, name: str) -> StrategyInSetting:
    return next(item for item in setting.strategies if item.strategy == name)


def _against(settings: Sequence[Setting], own: str, rival: str) -> str:
    """Mean and standard error, over seeds, of the matched differences averaged over the settings."""
    if own == rival or not all(own in [item.strategy for item in setting.strategies] for setting in settings):
        return ""
    by_seed: dict[int, list[float]] = {}
    for setting in settings:
        mine, theirs = (
            dict(zip(found.seeds, found.main.average.per_seed, strict=True))
            for found in (_of(setting, own), _of(setting, rival))
        )
        for seed in mine.keys() & theirs.keys():
            by_seed.setdefault(seed, []).append(mine[seed] - theirs[seed])
    gap = statistics.estimate([np.mean(values) for values in by_seed.values()])
    error = "" if gap.sd is None else f" ± {100 * gap.sd / np.sqrt(gap.n):.1f}"
    return f"{100 * gap.mean:+.1f}{error}"


def draw(summary: Summary, path: Path, own: str = "vabal") -> None:
    """The main measure's mean against labels, a panel a setting: `own`, the baseline and the best rivals."""
    import matplotlib as mpl  # noqa: PLC0415 -- only where a figure is wanted
    from matplotlib.figure import Figure  # noqa: PLC0415

    baseline = summary.baseline
    ranked = [found.strategy for found in summary.pooled.strategies]
    rivals = [name for name in ranked if name not in (own, baseline)][:DRAWN]
    colours = dict(zip(rivals, mpl.color_sequences["tab10"][1:], strict=False))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vabal", "font.size": 9}):
        count = len(summary.settings)
        figure = Figure(figsize=(3.1 * count, 3.2), layout="constrained")
        panels = figure.subplots(1, count, squeeze=False)[0]
        for axes, setting in zip(panels, _in_order(summary), strict=True):
            for name in (*rivals, baseline, own):
                rounds = _of(setting, name).main.per_round
                labeled = [item.labeled for item in rounds]
                mean = np.array([item.mean for item in rounds]) * 100
                bold = {own: ("tab:blue", "-", 2.4), baseline: ("black", "--", 1.8)}
                colour, dashes, width = bold.get(name, (colours.get(name), "-", 1.0))
                axes.plot(labeled, mean, dashes, color=colour, linewidth=width, marker="o", markersize=3, label=name)
                known = [(item.low, item.high) for item in rounds if item.low is not None and item.high is not None]
                if name == own and len(known) == len(rounds):
                    axes.fill_between(labeled, *(np.array(known).T * 100), color=colour, alpha=0.15, linewidth=0)
            axes.set(title=setting.name, xlabel="labels", xticks=labeled)
            axes.grid(axis="y", color="0.9")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel(f"{MEASURES[MAIN]}, %")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None}, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder that vabal bench wrote")
    parser.add_argument("--own", default="vabal", help="the strategy that the others are compared with")
    parser.add_argument("--by-setting", action="store_true", help="each setting's interval, in place of ranks and gaps")
    parser.add_argument("--figure", type=Path, help="where to draw the learning curves, as SVG")
    given = parser.parse_args()
    summary = Summary.read(given.out / "summary.json")
    for setting in summary.settings:
        lacking = set(summary.strategies) - {item.strategy for item in setting.strategies}
        if lacking:
            parser.error(f"{given.out}: {', '.join(sorted(lacking))} did not run in {setting.imbalance}: finish it")
    if given.by_setting:
        print("\n".join(by_setting(summary)))
        return
    print("\n".join(table(summary, given.own)))
    print()
    best = [item.strategy for item in summary.pooled.strategies if item.strategy != summary.baseline]
    print("\n".join(measures(summary, best[:6])))
    if given.figure:
        draw(summary, given.figure, given.own)


if __name__ == "__main__":
    main()
