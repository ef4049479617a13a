"""A benchmark's report: one HTML file with its figures, tables and images inside, that needs no network and no script.

Everything shown derives from the cells and their summary (`vabal.benchmark.comparison`): equal cells, equal bytes.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vabal import statistics
from vabal.files import write_bytes
from vabal.pages import tables
from vabal.statistics import MAIN

_OURS = "vabal"


def write(
    cells: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    about: Mapping[str, Any],
) -> None:
    """Writes the report of `cells`, whose summary is `summary`, to `path`.

    `about` says what was run (command, settings, versions, a date): text, lists and mappings, in the order shown.
    Raises ModuleNotFoundError where matplotlib is not installed.
    """
    write_bytes(path, page(cells, summary, title=title, about=about).encode())


def page(
    cells: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], *, title: str, about: Mapping[str, Any]
) -> str:
    """The report's HTML."""
    report = _Report(cells, summary)
    setup = report.setup(about)
    sections = [
        ("overall", "Over all settings", report.overall),
        ("curves", "Learning curves", report.curves),
        ("differences", "Matched differences", report.differences),
        ("rare", "Rare classes", report.rare_classes),
        ("classes", "Class accuracy against picks", report.class_accuracy),
        ("picks", "First picks", report.first_picks),
        ("seconds", "Seconds per round", report.seconds),
        ("method", "How the numbers were made", report.method),
    ]
    written = [(anchor, heading, body) for anchor, heading, make in sections if (body := make())]
    links = "\n".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in written)
    bodies = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-head">\n<h2 id="{anchor}-head">{heading}</h2>\n{body}\n'
        "</section>"
        for anchor, heading, body in written
    )
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(headline(summary))}</p>
{_unfinished(summary)}
<nav aria-label="Sections">
{links}
</nav>
{setup}
</header>
<main>
{bodies}
</main>
</body>
</html>
"""


# -- in words -------------------------------------------------------------------------------------------------------


def family(names: Sequence[str]) -> list[str]:
    """Our strategies: `vabal` and its variants, `vabal` itself first."""
    return sorted((name for name in names if name.startswith(_OURS)), key=lambda name: (name != _OURS, name))


def focus(summary: Mapping[str, Any]) -> str | None:
    """The strategy that the report is about: `vabal`, else a variant of it, else the best that is not the baseline."""
    own = family(summary["strategies"])
    others = [name for name in summary["strategies"] if name != summary["baseline"]]
    return (own or others or [None])[0]


def headline(summary: Mapping[str, Any]) -> str:
    """The result in two sentences of plain text, favourable or not."""
    name, baseline = focus(summary), summary["baseline"]
    if name is None:
        return f"Only {baseline} was run: there is nothing to compare it with."
    found = next(item for item in summary["pooled"]["strategies"] if item["strategy"] == name)
    if not found["difference"]:
        return f"{name} and {baseline} have no seed in common: there are no matched differences."
    return f"{_against_baseline(name, baseline, found)} {_against_rivals(name, summary)}"


def _against_baseline(name: str, baseline: str, found: Mapping[str, Any]) -> str:
    gap, many = found["difference"][MAIN], found["settings"]
    mean = round(100 * gap["mean"], 2)
    verb = "above" if mean > 0 else "below" if mean < 0 else "away from"
    where = f"Over {many} settings and {_counted(gap['n'], 'matched pair')}, " if many > 1 else ""
    pairs = "" if many > 1 else f" with {_counted(gap['n'], 'matched seed')}"
    first = f"{where}{name}'s average accuracy is {abs(mean):.2f} points {verb} {baseline}'s{pairs}"
    if gap["low"] is None:
        return f"{first}; one pair gives no interval."
    first += f" (95 % interval {tables.interval(gap['low'], gap['high'])})"
    if many == 1:
        return f"{first}."
    above, below = found["settings_above"], found["settings_below"]
    return f"{first}; taken alone, {above} of {many} settings have an interval above zero and {below} one below it."


def _against_rivals(name: str, summary: Mapping[str, Any]) -> str:
    closest = [(setting, _closest_rival(name, setting, summary["baseline"])) for setting in summary["settings"]]
    compared = [(_named(setting), *rival) for setting, rival in closest if rival is not None]
    if not compared:
        return "No rival was run beside it."
    higher = [
        f"{rival} is {100 * gap.mean:.2f} points higher in {setting} {_said_interval(gap)}"
        for setting, rival, gap in compared
        if gap.mean > 0
    ]
    if not higher:
        if len(compared) > 1:
            return f"No rival's mean is higher in any of the {len(compared)} settings."
        _, rival, gap = compared[0]
        return f"No rival's mean is higher; the closest, {rival}, is {-100 * gap.mean:.2f} points lower."
    if len(compared) == 1:
        _, rival, gap = compared[0]
        return f"The best rival, {rival}, is {100 * gap.mean:.2f} points higher {_said_interval(gap)}."
    none = len(compared) - len(higher)
    if not none:
        return f"In each of the {len(compared)} settings some rival's mean is higher: {'; '.join(higher)}."
    return f"No rival's mean is higher in {none} of {len(compared)} settings; in the others, {'; '.join(higher)}."


def _closest_rival(name: str, setting: Mapping[str, Any], baseline: str) -> tuple[str, statistics.Difference] | None:
    """The rival whose matched difference to `name` is the largest, and that difference."""
    by_seed = {
        item["strategy"]: dict(zip(item["seeds"], item["metrics"][MAIN]["average"]["per_seed"], strict=True))
        for item in setting["strategies"]
    }
    mine = by_seed.get(name, {})
    own = family(list(by_seed))
    found = []
    for rival, theirs in by_seed.items():
        shared = sorted(set(mine) & set(theirs))
        if shared and rival not in (*own, name, baseline):
            found.append((rival, statistics.difference([theirs[seed] - mine[seed] for seed in shared])))
    return max(found, key=lambda item: (item[1].mean, item[0])) if found else None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _said_interval(gap: statistics.Difference) -> str:
    return "(one seed)" if gap.low is None else tables.interval(gap.low, gap.high)


def _named(setting: Mapping[str, Any]) -> str:
    return f"{setting['source']}, {setting['imbalance']}"


def _unfinished(summary: Mapping[str, Any]) -> str:
    lacking = [
        f"{item['strategy']} in {_named(setting)} lacks {len(item['missing_seeds'])} of {len(setting['seeds'])} seeds"
        for setting in summary["settings"]
        for item in setting["strategies"]
        if item["missing_seeds"]
    ]
    lacking += [
        f"{name} did not run in {_named(setting)}"
        for setting in summary["settings"]
        for name in summary["strategies"]
        if name not in {item["strategy"] for item in setting["strategies"]}
    ]
    if not lacking:
        return ""
    more = f"; and {len(lacking) - 6} more like these" if len(lacking) > 6 else ""
    return (
        f'<p class="warn"><strong>The grid is unfinished:</strong> {escape("; ".join(lacking[:6]))}{more}. '
        "Comparisons use the pairs that are there.</p>"
    )


# -- sections -------------------------------------------------------------------------------------------------------


class _Report:
    """Makes the sections, each as HTML or empty where there is nothing to show; numbers figures and tables."""

    def __init__(self, cells: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
        from vabal.pages import figures  # noqa: PLC0415 -- matplotlib is no part of the core

        self.figures = figures
        self.cells, self.summary = cells, summary
        self.settings, self.pooled, self.baseline = summary["settings"], summary["pooled"], summary["baseline"]
        self.names: list[str] = summary["strategies"]
        self.own = family(self.names) or [name for name in [focus(summary)] if name]
        self.looks = figures.series_styles(sorted(self.names), self.baseline, self.own)
        self.kinds = {"own": self.own, "baseline": self.baseline}
        self.drawn = self.figure_count = self.table_count = 0

    def _prefix(self) -> str:
        self.drawn += 1
        return f"g{self.drawn}"

    def _figure(self, body: str, caption: str) -> str:
        self.figure_count += 1
        return f"<figure>\n{body}\n<figcaption><b>Figure {self.figure_count}.</b> {caption}</figcaption>\n</figure>"

    def _caption(self, text: str) -> str:
        self.table_count += 1
        return f"<b>Table {self.table_count}.</b> {text}"

    def _panels(self, drawings: Sequence[tuple[str, str]]) -> str:
        """Drawings side by side where there is room, each under its heading (HTML)."""
        parts = [
            f'<div>\n{f"<h4>{heading}</h4>" if heading else ""}<div class="scroll">{drawing}</div></div>'
            for heading, drawing in drawings
        ]
        return '<div class="panels">\n' + "\n".join(parts) + "\n</div>"

    def setup(self, about: Mapping[str, Any]) -> str:
        rows = "\n".join(f"<dt>{escape(str(name))}</dt><dd>{_shown(name, about[name])}</dd>" for name in about)
        told = f'<dl class="run">\n{rows}\n</dl>\n' if rows else ""
        caption = self._caption("What was run. Pool sizes are means over seeds.")
        return told + tables.setup_table(self.settings, caption)

    def overall(self) -> str:
        if len(self.settings) < 2:
            return ""
        rows = [(item["strategy"], item["difference"]) for item in self.pooled["strategies"] if item["difference"]]
        parts = []
        if rows:
            caption = (
                f"Averages over rounds less those of {escape(self.baseline)} with the same seed, over all settings and "
                "seeds, with 95 % intervals. Filled: the interval excludes zero."
            )
            parts.append(self._figure(self._panels(self._forests(rows, "all settings")), caption))
        caption = self._caption(
            "Matched differences of averages over rounds, percentage points, over all settings × seeds; intervals "
            "from these pairs, and from means over settings by seed. "
            f"Mean rank over {self.pooled['blocks']} complete blocks (setting, seed), 1 is best. Best in bold."
        )
        return "\n".join([*parts, tables.pooled_table(self.pooled, caption, **self.kinds)])

    def _forests(self, rows: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> list[tuple[str, str]]:
        """Accuracy and balanced accuracy, each in the order of its means; rows are differences by measure."""
        drawings = []
        for metric in (MAIN, "balanced_accuracy"):
            gaps = sorted(((name, by_metric[metric]) for name, by_metric in rows), key=lambda row: -row[1]["mean"])
            said = self.figures.describe([(name, 100 * gap["mean"]) for name, gap in gaps])
            label = f"Matched differences of {tables.NAMES[metric]} to {self.baseline}, {where}, points: {said}"
            drawing = self.figures.forest(gaps, self.baseline, self.own, label=label, prefix=self._prefix())
            drawings.append((tables.NAMES[metric].capitalize(), drawing))
        return drawings

    def curves(self) -> str:
        return "\n".join(self._curves_of(setting) for setting in self.settings)

    def _curves_of(self, setting: Mapping[str, Any]) -> str:
        curve, measured = self.figures.curve, [(row["strategy"], row["metrics"][MAIN]) for row in setting["strategies"]]
        means = "Final accuracy, per cent: " + self.figures.describe(self.figures.final_rows(setting))
        drawings = [
            (
                "Accuracy",
                self.figures.curves(
                    [curve(name, found["per_round"]) for name, found in measured],
                    self.looks,
                    ylabel="accuracy, %",
                    label=f"Learning curves, {_named(setting)}. {means}",
                    prefix=self._prefix(),
                ),
            )
        ]
        gaps = [(name, found["difference_per_round"]) for name, found in measured if found["difference_per_round"]]
        if gaps:
            last = self.figures.describe([(name, 100 * per_round[-1]["mean"]) for name, per_round in gaps])
            drawings.append(
                (
                    f"Matched difference to {escape(self.baseline)}",
                    self.figures.curves(
                        [curve(name, per_round) for name, per_round in gaps],
                        self.looks,
                        ylabel="percentage points",
                        label=f"Matched differences round by round, {_named(setting)}. In the last round: {last}",
                        prefix=self._prefix(),
                        levels={"": 0.0},
                    ),
                )
            )
        seeds = _counted(len(setting["seeds"]), "seed")
        dotted = f" Dotted: {escape(self.baseline)}." if gaps else ""
        return f"<h3>{escape(_named(setting))}</h3>\n" + self._figure(
            self._panels(drawings),
            f"{escape(_named(setting))}: mean over {seeds} against labels; names stand in the order in which the "
            "curves end. Bands: 95 % interval of the mean, for the highlighted strategies (the tables have all)."
            f"{dotted}",
        )

    def differences(self) -> str:
        return "\n".join(self._differences_of(setting) for setting in self.settings)

    def _differences_of(self, setting: Mapping[str, Any]) -> str:
        rows = [
            (
                row["strategy"],
                {metric: found["difference"]["average"] for metric, found in row["metrics"].items()},
            )
            for row in setting["strategies"]
            if row["metrics"][MAIN]["difference"]
        ]
        named = escape(_named(setting))
        parts = [f"<h3>{named}</h3>"]
        if rows:
            caption = (
                f"{named}: averages over rounds less those of {escape(self.baseline)} with the same seed, mean and "
                "95 % interval. Filled: the interval excludes zero."
            )
            parts.append(self._figure(self._panels(self._forests(rows, _named(setting))), caption))
        target = next((row["labels"]["target"] for row in setting["strategies"] if row["labels"]), None)
        aim = (
            "" if target is None else f" Labels needed for {escape(self.baseline)}'s final {tables.percent(target)} %."
        )
        caption = self._caption(
            f"{named}: accuracy, mean ± standard deviation over n seeds; matched differences in percentage points "
            f"with 95 % intervals; sign-flip p, the same after Holm's correction, and Wilcoxon's.{aim} Best in bold."
        )
        parts.append(tables.main_table(setting, caption, **self.kinds))
        others = [metric for metric in self.summary["metrics"] if metric != MAIN]
        caption = self._caption(
            f"{named}: final accuracy, {' and '.join(tables.NAMES[metric] for metric in others)}; differences in "
            "percentage points with 95 % intervals."
        )
        return "\n".join([*parts, tables.other_table(setting, others, caption, **self.kinds)])

    def rare_classes(self) -> str:
        drawings = [
            (escape(_named(setting)), self._rare_of(setting)) for setting in self.settings if setting["rare_classes"]
        ]
        if not drawings:
            return ""
        return self._figure(
            self._panels(drawings),
            f"Share of the labelled pool that is of rare classes, mean over seeds (the paper's Fig. 9). "
            f"{escape(self.summary['rules']['rare'])} Dotted: their share of the pool, and of the list of classes.",
        )

    def _rare_of(self, setting: Mapping[str, Any]) -> str:
        rows = [(row["strategy"], row["rare_share"]) for row in setting["strategies"] if row["rare_share"]]
        rare = [name in setting["rare_classes"] for name in setting["classes"]]
        pool = np.asarray(setting["pool_per_class"])
        last = sorted(((name, 100 * share[-1]["mean"]) for name, share in rows), key=lambda row: (-row[1], row[0]))
        return self.figures.curves(
            [self.figures.curve(name, share) for name, share in rows],
            self.looks,
            ylabel="rare classes, % of labels",
            label=f"Share of rare classes, {_named(setting)}. At the end, per cent: {self.figures.describe(last)}",
            prefix=self._prefix(),
            levels={
                "pool": 100 * float(pool[rare].sum() / pool.sum()),
                "classes": 100 * sum(rare) / len(rare),
            },
        )

    def class_accuracy(self) -> str:
        return "\n".join(self._class_accuracy_of(setting) for setting in self.settings)

    def _class_accuracy_of(self, setting: Mapping[str, Any]) -> str:
        limits = self.figures.class_limits(setting)
        parts = []
        for row in setting["strategies"]:
            name, found = row["strategy"], row["classes"]
            rho = found["rank_correlation"]
            said = "" if rho is None else f" <span>ρ = {tables.signed(rho)}</span>"
            about = zip(setting["classes"], found["labeled"], found["recall"], strict=True)
            label = f"{name}, {_named(setting)}: " + "; ".join(
                f"{which}: {labeled:.1f} labels, recall {'unknown' if recall is None else f'{100 * recall:.0f} %'}"
                for which, labeled, recall in list(about)[: self.figures.MOST_NAMED_CLASSES]
            )
            drawing = self.figures.class_scatter(
                setting["classes"], found, self.looks[name], limits, label=label, prefix=self._prefix()
            )
            parts.append(f"<div><h4>{escape(name)}{said}</h4>{drawing}</div>")
        return f"<h3>{escape(_named(setting))}</h3>\n" + self._figure(
            '<div class="minis">\n' + "\n".join(parts) + "\n</div>",
            f"{escape(_named(setting))}: final recall of each class against its labels at the end, the initial ones "
            "included, means over seeds (the paper's Fig. 6). ρ is Spearman's rank correlation: negative where the "
            "hard classes got more labels.",
        )

    def first_picks(self) -> str:
        return "\n".join(body for setting in self.settings if (body := self._first_picks_of(setting)))

    def _first_picks_of(self, setting: Mapping[str, Any]) -> str:
        cells = {
            (cell["strategy"], cell["seed"]): cell
            for cell in self.cells
            if (cell["source"], cell["imbalance"]) == (setting["source"], setting["imbalance"])
        }
        strips = []
        for row in setting["strategies"]:
            if row["top_picks"] is None:
                continue
            picks = cells[row["strategy"], row["top_picks"]["seed"]]["top_picks"]
            images = "\n".join(_pick(pick, _frame(pick["label"], setting)) for pick in picks)
            strips.append(f'<h4>{escape(row["strategy"])}</h4>\n<ol class="strip">\n{images}\n</ol>')
        if not strips:
            return ""
        seeds = sorted({row["top_picks"]["seed"] for row in setting["strategies"] if row["top_picks"]})
        return f"<h3>{escape(_named(setting))}</h3>\n" + self._figure(
            '<div class="picks">\n' + "\n".join(strips) + "\n</div>",
            f"{escape(_named(setting))}: the first picks in rank order, seed {', '.join(map(str, seeds))} (the paper's "
            f"Fig. 5). In bold the label, behind the arrow the classifier's prediction. {_frames(setting)}",
        )

    def seconds(self) -> str:
        drawings = []
        for setting in self.settings:
            rows = [(row["strategy"], row["seconds"]["mean"]) for row in setting["strategies"]]
            if not any(value > 0 for _, means in rows for value in means.values()):
                continue
            said = "; ".join(
                f"{name} " + ", ".join(f"{part} {value:.2g}" for part, value in means.items()) for name, means in rows
            )
            drawing = self.figures.seconds(
                rows, self.own, label=f"Seconds per round, {_named(setting)}: {said}", prefix=self._prefix()
            )
            drawings.append((escape(_named(setting)), drawing))
        if not drawings:
            return ""
        caption = "Mean seconds of a round over rounds and seeds, as measured where the cells ran, by part."
        details = "\n".join(
            tables.seconds_table(
                setting, self._caption(f"{escape(_named(setting))}: mean seconds per round."), **self.kinds
            )
            for setting in self.settings
        )
        return self._figure(self._panels(drawings), caption) + f'\n<div class="tables">\n{details}\n</div>'

    def method(self) -> str:
        said = {
            "average": "Average",
            "area": "Area under the curve",
            "interval": "Intervals",
            "difference": "Differences",
            "p": "p",
            "holm_p": "p, Holm",
            "bootstrap": "Bootstrap intervals",
            "labels": "Labels needed and saved",
            "rare": "Rare classes",
            "dominant": "Dominant classes",
            "rank": "Mean rank",
            "pooled": "Over all settings",
        }
        rules = self.summary["rules"]
        lines = "\n".join(
            f"<li><strong>{said[key]}.</strong> {escape(rules[key])}</li>" for key in said if key in rules
        )
        return (
            f"<ul>\n{lines}\n</ul>\n"
            f'<p class="note">{self.summary["cells"]} runs. Bootstrap intervals, every round of every measure and the '
            "values of every seed stand in summary.json.</p>"
        )


# -- pieces ---------------------------------------------------------------------------------------------------------


def _shown(name: str, value: Any) -> str:
    """A value of `about`: a command as code, mappings and lists in one line each."""
    if isinstance(value, Mapping):
        return "; ".join(f"{escape(str(key))} {_shown(str(key), item)}" for key, item in value.items()) or tables.NONE
    if isinstance(value, list | tuple):
        return ", ".join(_shown(name, item) for item in value) or tables.NONE
    return f"<code>{escape(str(value))}</code>" if value not in (None, "") else tables.NONE


def _frame(label: Any, setting: Mapping[str, Any]) -> str:
    """Dominant classes are framed; where there is none, rare ones are."""
    if setting["dominant_classes"]:
        return "dominant" if str(label) in setting["dominant_classes"] else ""
    return "rare" if str(label) in setting["rare_classes"] else ""


def _frames(setting: Mapping[str, Any]) -> str:
    if setting["dominant_classes"]:
        return f"Framed red: of a dominant class ({escape(', '.join(setting['dominant_classes']))})."
    if setting["rare_classes"]:
        return f"Framed green: of a rare class ({escape(', '.join(setting['rare_classes']))})."
    return ""


def _pick(pick: Mapping[str, Any], frame: str) -> str:
    label, predicted = str(pick["label"]), pick.get("predicted_class")
    said = f"labelled {label}" + ("" if predicted is None else f", predicted {predicted}")
    marked = f", {frame} class" if frame else ""
    arrow = ""
    if predicted is not None:
        wrong = "" if str(predicted) == label else ' class="wrong"'
        arrow = f"<br>→ <span{wrong}>{escape(str(predicted))}</span>"
    return (
        f"<li{f' class={frame!r}' if frame else ''}>"
        f'<img src="data:image/png;base64,{escape(str(pick["png"]))}" alt="{escape(said + marked)}">'
        f"<strong>{escape(label)}</strong>{arrow}</li>"
    )
