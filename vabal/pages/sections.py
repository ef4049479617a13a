"""The sections of a benchmark's report, each as blocks (headings, figures, tables) that the template writes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from vabal.benchmark.curves import baseline_of
from vabal.benchmark.summary import Gap, Setting, StrategyInSetting, Summary
from vabal.pages import figures, tables
from vabal.pages.blocks import Block, Figure, Heading, Method, Panel, Picks, Section, Strip, Tables
from vabal.pages.headline import counted, family
from vabal.pages.tables import Roles
from vabal.statistics import MAIN

NAME = tables.NAMES[MAIN]
# How the rules of the summary are called.
RULES = {
    "average": "Average",
    "area": "Area under the curve",
    "interval": "Intervals",
    "difference": "Differences",
    "p": "p",
    "holm_p": "p, Holm",
    "rival": "Against each rival",
    "cost": "Cost",
    "bootstrap": "Bootstrap intervals",
    "labels": "Labels needed and saved",
    "rare": "Rare classes",
    "dominant": "Dominant classes",
    "rank": "Mean rank",
    "pooled": "Over all settings",
}


class Sections:
    """Makes the sections of one summary; one without blocks is left out."""

    def __init__(self, cells: Sequence[Mapping[str, Any]], summary: Summary) -> None:
        self.cells, self.summary = cells, summary
        self.settings, self.pooled, self.baseline = summary.settings, summary.pooled, summary.baseline
        self.own = family(summary.strategies) or [name for name in [summary.reference] if name]
        beside = baseline_of(summary.reference or self.baseline, self.baseline)
        self.looks = figures.series_styles(sorted(summary.strategies), beside, self.own)
        self.roles = Roles(self.own, self.baseline)
        self.drawn = 0

    def all(self) -> list[Section]:
        sections: list[tuple[str, str, Callable[[], list[Block]]]] = [
            ("learners", "Learners and strategies", self.learners),
            ("overall", "Over all settings", self.overall),
            ("rivals", "The reference against each rival", self.rivals),
            ("curves", "Learning curves", lambda: self._by_setting(self._curves)),
            ("differences", "Matched differences", lambda: self._by_setting(self._differences)),
            ("rare", "Rare classes", self.rare_classes),
            ("classes", "Class accuracy against picks", lambda: self._by_setting(self._class_accuracy)),
            ("picks", "First picks", lambda: self._by_setting(self._first_picks)),
            ("seconds", "Seconds per round", self.seconds),
            ("method", "How the numbers were made", self.method),
        ]
        made = [Section(anchor, heading, make()) for anchor, heading, make in sections]
        return [section for section in made if section.blocks]

    def setup(self) -> tables.Table:
        return tables.setup_table(self.settings, "What was run. Pool sizes are means over seeds.")

    def _by_setting(self, make: Callable[[Setting], list[Block]]) -> list[Block]:
        made = [(setting.name, make(setting)) for setting in self.settings]
        return [block for name, blocks in made if blocks for block in (Heading(name), *blocks)]

    def _prefix(self) -> str:
        self.drawn += 1
        return f"g{self.drawn}"

    def learners(self) -> list[Block]:
        if not any(item.learner for setting in self.settings for item in setting.strategies):
            return []
        caption = (
            f"{{}}: final {NAME}, per cent, means over seeds. Best in bold; – where one cannot pick for the other."
        )
        blocks: list[Block] = []
        if len(self.settings) > 1:
            blocks.append(tables.matrix(self.settings, caption.format("Mean over all settings")))
        each = [tables.matrix([setting], caption.format(setting.name)) for setting in self.settings]
        return [*blocks, *each]

    def rivals(self) -> list[Block]:
        name = self.summary.reference
        caption = (
            f"{{}}: {name} less each other row, average {NAME} over rounds, percentage points, matched by seed; "
            "Student's paired test, Holm's correction over all rows."
        )
        blocks: list[Block] = []
        if len(self.settings) > 1 and self.pooled.rivals:
            blocks.append(
                tables.rivals_table(self.pooled.rivals, caption.format("Means over all settings"), self.roles)
            )
        found = [setting for setting in self.settings if setting.rivals]
        return [*blocks, *(tables.rivals_table(item.rivals, caption.format(item.name), self.roles) for item in found)]

    def overall(self) -> list[Block]:
        if len(self.settings) < 2:
            return []
        rows = [(item.strategy, item.difference) for item in self.pooled.strategies if item.difference]
        blocks: list[Block] = []
        if rows:
            caption = (
                f"Averages over rounds less those of {self.baseline} with the same seed, over all settings and "
                "seeds, with 95 % intervals. Filled: the interval excludes zero."
            )
            blocks.append(Figure(self._forests(rows, "all settings"), caption))
        caption = (
            "Matched differences of averages over rounds, percentage points, over all settings × seeds; intervals "
            "from these pairs, and from means over settings by seed. "
            f"Mean rank over {self.pooled.blocks} complete blocks (setting, seed), 1 is best. Best in bold."
        )
        return [*blocks, tables.pooled_table(self.pooled, caption, self.roles)]

    def _forests(self, rows: Sequence[tuple[str, Mapping[str, Gap]]], where: str) -> list[Panel]:
        """Balanced accuracy and accuracy, each in the order of its means; rows are differences by measure."""
        panels = []
        for metric in self.summary.metrics[:2]:
            gaps = sorted(((name, by_metric[metric]) for name, by_metric in rows), key=lambda row: -row[1].mean)
            said = figures.describe([(name, 100 * gap.mean) for name, gap in gaps])
            label = f"Matched differences of {tables.NAMES[metric]} to {self.baseline}, {where}, points: {said}"
            drawing = figures.forest(gaps, self.baseline, self.own, label=label, prefix=self._prefix())
            panels.append(Panel(tables.NAMES[metric].capitalize(), drawing))
        return panels

    def _curves(self, setting: Setting) -> list[Block]:
        panels = [Panel(NAME.capitalize(), self._learning_curves(setting))]
        gaps = [item for item in setting.strategies if item.main.difference_per_round]
        if gaps:
            panels.append(Panel(f"Matched difference to {self.baseline}", self._difference_curves(setting, gaps)))
        dotted = f" Dotted: {self.baseline}." if gaps else ""
        caption = (
            f"{setting.name}: mean over {counted(len(setting.seeds), 'seed')} against labels; names stand in the order "
            "in which the curves end. Bands: 95 % interval of the mean, for the highlighted strategies (the tables "
            f"have all).{dotted}"
        )
        return [Figure(panels, caption)]

    def _learning_curves(self, setting: Setting) -> Markup:
        means = f"Final {NAME}, per cent: " + figures.describe(figures.final_rows(setting))
        return figures.curves(
            [figures.curve(item.strategy, item.main.per_round) for item in setting.strategies],
            self.looks,
            ylabel=f"{NAME}, %",
            label=f"Learning curves, {setting.name}. {means}",
            prefix=self._prefix(),
            shares=True,
        )

    def _difference_curves(self, setting: Setting, items: Sequence[StrategyInSetting]) -> Markup:
        gaps = [(item.strategy, item.main.difference_per_round or []) for item in items]
        last = figures.describe([(name, 100 * per_round[-1].mean) for name, per_round in gaps])
        return figures.curves(
            [figures.curve(name, per_round) for name, per_round in gaps],
            self.looks,
            ylabel=f"difference to {figures.short(self.baseline)}, percentage points",
            label=f"Matched differences round by round, {setting.name}. In the last round: {last}",
            prefix=self._prefix(),
            levels={"": 0.0},
        )

    def _differences(self, setting: Setting) -> list[Block]:
        rows = [
            (
                item.strategy,
                {metric: found.difference.average for metric, found in item.metrics.items() if found.difference},
            )
            for item in setting.strategies
            if item.main.difference
        ]
        blocks: list[Block] = []
        if rows:
            caption = (
                f"{setting.name}: averages over rounds less those of {self.baseline} with the same seed, mean and "
                "95 % interval. Filled: the interval excludes zero."
            )
            blocks.append(Figure(self._forests(rows, setting.name), caption))
        target = next((item.labels.target for item in setting.strategies if item.labels), None)
        aim = "" if target is None else f" Labels needed for {self.baseline}'s final {tables.percent(target)} %."
        caption = (
            f"{setting.name}: {NAME}, mean ± standard deviation over n seeds; matched differences in percentage "
            f"points with 95 % intervals; sign-flip p, the same after Holm's correction, and Wilcoxon's.{aim} Then "
            f"the labels that {self.baseline} needs for the row's own end. Best in bold."
        )
        blocks.append(tables.main_table(setting, caption, self.roles))
        others = [metric for metric in self.summary.metrics if metric != MAIN]
        caption = (
            f"{setting.name}: final {NAME}, {' and '.join(tables.NAMES[metric] for metric in others)}; differences "
            "in percentage points with 95 % intervals."
        )
        return [*blocks, tables.other_table(setting, others, caption, self.roles)]

    def rare_classes(self) -> list[Block]:
        panels = [Panel(setting.name, self._rare(setting)) for setting in self.settings if setting.rare_classes]
        caption = (
            "Share of the labelled pool that is of rare classes, mean over seeds (the paper's Fig. 9). "
            f"{self.summary.rules['rare']} Dotted: their share of the pool, and of the list of classes."
        )
        return [Figure(panels, caption)] if panels else []

    def _rare(self, setting: Setting) -> Markup:
        rows = [(item.strategy, item.rare_share) for item in setting.strategies if item.rare_share]
        rare = [name in setting.rare_classes for name in setting.classes]
        pool = np.asarray(setting.pool_per_class)
        last = sorted(((name, 100 * share[-1].mean) for name, share in rows), key=lambda row: (-row[1], row[0]))
        return figures.curves(
            [figures.curve(name, share) for name, share in rows],
            self.looks,
            ylabel="rare classes, % of labels",
            label=f"Share of rare classes, {setting.name}. At the end, per cent: {figures.describe(last)}",
            prefix=self._prefix(),
            levels={"pool": 100 * float(pool[rare].sum() / pool.sum()), "classes": 100 * sum(rare) / len(rare)},
            shares=True,
        )

    def _class_accuracy(self, setting: Setting) -> list[Block]:
        limits = figures.class_limits(setting)
        caption = (
            f"{setting.name}: final recall of each class against its labels at the end, the initial ones included, "
            "means over seeds (the paper's Fig. 6). ρ is Spearman's rank correlation: negative where the hard classes "
            "got more labels."
        )
        panels = [self._scatter(setting, item, limits) for item in setting.strategies]
        return [Figure(panels, caption, layout="minis")]

    def _scatter(self, setting: Setting, item: StrategyInSetting, limits: tuple[float, float, float, float]) -> Panel:
        found = item.classes
        about = zip(setting.classes, found.labeled, found.recall, strict=True)
        label = f"{item.strategy}, {setting.name}: " + "; ".join(
            f"{which}: {labeled:.1f} labels, recall {'unknown' if recall is None else f'{100 * recall:.0f} %'}"
            for which, labeled, recall in list(about)[: figures.MOST_NAMED_CLASSES]
        )
        look = self.looks[item.strategy]
        drawing = figures.class_scatter(setting.classes, found, look, limits, label=label, prefix=self._prefix())
        rho = found.rank_correlation
        return Panel(item.strategy, drawing, "" if rho is None else f"ρ = {tables.signed(rho)}")

    def _first_picks(self, setting: Setting) -> list[Block]:
        cells = {
            (cell["strategy"], cell["seed"]): cell
            for cell in self.cells
            if (cell["source"], cell["imbalance"]) == (setting.source, setting.imbalance)
        }
        shown = [(item.strategy, item.top_picks.seed) for item in setting.strategies if item.top_picks]
        strips = [
            Strip(name, [{**pick, "frame": _frame(pick["label"], setting)} for pick in cells[name, seed]["top_picks"]])
            for name, seed in shown
        ]
        seeds = ", ".join(map(str, sorted({seed for _, seed in shown})))
        caption = (
            f"{setting.name}: the first picks in rank order, seed {seeds} (the paper's Fig. 5). In bold the label, "
            f"behind the arrow the classifier's prediction. {_frames(setting)}"
        )
        return [Picks(strips, caption)] if strips else []

    def seconds(self) -> list[Block]:
        panels = []
        for setting in self.settings:
            rows = [(item.strategy, item.seconds.mean) for item in setting.strategies]
            if not any(value > 0 for _, means in rows for value in means.values()):
                continue
            said = "; ".join(
                f"{name} " + ", ".join(f"{part} {value:.2g}" for part, value in means.items()) for name, means in rows
            )
            label = f"Seconds per round, {setting.name}: {said}"
            panels.append(Panel(setting.name, figures.seconds(rows, self.own, label=label, prefix=self._prefix())))
        if not panels:
            return []
        caption = "Mean seconds of a round over rounds and seeds, as measured where the cells ran, by part."
        details = [
            tables.seconds_table(setting, f"{setting.name}: mean seconds per round.", self.roles)
            for setting in self.settings
        ]
        return [Figure(panels, caption), Tables(details)]

    def method(self) -> list[Block]:
        rules = self.summary.rules
        return [Method([(name, rules[key]) for key, name in RULES.items() if key in rules], self.summary.cells)]


def _frame(label: Any, setting: Setting) -> str:
    """Dominant classes are framed; where there is none, rare ones are."""
    if setting.dominant_classes:
        return "dominant" if str(label) in setting.dominant_classes else ""
    return "rare" if str(label) in setting.rare_classes else ""


def _frames(setting: Setting) -> str:
    if setting.dominant_classes:
        return f"Framed red: of a dominant class ({', '.join(setting.dominant_classes)})."
    if setting.rare_classes:
        return f"Framed green: of a rare class ({', '.join(setting.rare_classes)})."
    return ""
