"""The figures of a benchmark's report, each one an inline SVG (`vabal.pages.svg`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vabal.benchmark.summary import ClassAccuracy, Gap, MeanOfRound, Setting
from vabal.pages.svg import INK, MUTED, PAPER, canvas, plain
from vabal.pages.tables import interval, signed

OTHERS = 8  # hues of strategies that are neither ours nor the baseline
OWN = 4  # hues of ours
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
PANEL = (5.3, 3.7)  # inches, at 72 units
MOST_NAMED_CLASSES = 20
_LONGEST = 26  # characters of a name


@dataclass(frozen=True)
class SeriesStyle:
    """How one strategy is drawn, everywhere in the report."""

    role: str  # the CSS variable's name
    colour: str  # its stand-in
    marker: str
    dashes: tuple[float, ...]  # on, off, ...; none: solid
    strong: bool

    @property
    def line(self) -> Any:
        return (0, self.dashes) if self.dashes else "solid"

    @property
    def width(self) -> float:
        return 2.2 if self.strong else 1.0


def series_styles(names: Sequence[str], baseline: str, own: Sequence[str]) -> dict[str, SeriesStyle]:
    """A look for each strategy: ours and the baseline strong, all others thin, no two alike up to about thirty."""
    found: dict[str, SeriesStyle] = {}
    others = 0
    for name in names:
        if name == baseline:
            found[name] = SeriesStyle("ink", INK, "o", (5, 2), strong=True)
        elif name in own:
            place = list(own).index(name)
            hue, dashes = place % OWN, ((), (4, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5))[place // OWN % 4]
            found[name] = SeriesStyle(f"own-{hue}", f"#05{hue:02x}05", MARKERS[place % 4], dashes, strong=place < OWN)
        else:
            hue, dashes = others % OTHERS, ((), (3.5, 1.6), (1.2, 1.4), (6, 1.5, 1.5, 1.5))[others // OTHERS % 4]
            found[name] = SeriesStyle(
                f"other-{hue}", f"#06{hue:02x}06", MARKERS[others % len(MARKERS)], dashes, strong=False
            )
            others += 1
    return found


def short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


# -- curves ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    name: str
    labeled: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


def curve(name: str, per_round: Sequence[MeanOfRound]) -> Curve:
    """Of the summary's rounds; values become per cent."""
    return Curve(
        name,
        [item.labeled for item in per_round],
        [100 * item.mean for item in per_round],
        [None if item.low is None else 100 * item.low for item in per_round],
        [None if item.high is None else 100 * item.high for item in per_round],
    )


def curves(
    drawn: Sequence[Curve],
    style: Mapping[str, SeriesStyle],
    *,
    ylabel: str,
    label: str,
    prefix: str,
    levels: Mapping[str, float] | None = None,
    shares: bool = False,
) -> Markup:
    """Lines over labels, named at their ends in the order in which they end; the strong ones with their intervals.

    `levels` are horizontal lines, in per cent, by what is written on them. Of `shares` the wide intervals of few seeds
    are shown as far as there are any: from 0 to 100.
    """
    with canvas(PANEL, label, prefix) as (figure, done):
        longest = max(len(short(item.name)) for item in drawn)
        margin = 0.075 + 0.0127 * longest
        axes = figure.add_axes((0.09, 0.125, 0.9 - margin, 0.845))
        for item in sorted(drawn, key=lambda item: (style[item.name].strong, item.name)):
            _draw(axes, item, style[item.name])
        for name, level in (levels or {}).items():
            axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            axes.text(
                0.3, level, name, transform=axes.get_yaxis_transform(), color=MUTED, fontsize=7, ha="center",
                va="center_baseline", bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            )  # fmt: skip
        axes.margins(x=0.02, y=0.04)
        axes.set_xlabel("labelled images")
        axes.set_ylabel(ylabel)
        ticks = drawn[0].labeled
        axes.set_xticks(ticks if len(ticks) <= 8 else ticks[:: -(-len(ticks) // 8)])
        plain(axes)
        if shares:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, -1.0), min(top, 101.0))
        _name_ends(axes, drawn, style)
        return done()


def _draw(axes: Any, item: Curve, look: SeriesStyle) -> None:
    if look.strong and all(value is not None for value in (*item.low, *item.high)):
        axes.fill_between(item.labeled, item.low, item.high, color=look.colour, alpha=0.14, linewidth=0)
    axes.plot(
        item.labeled, item.mean, color=look.colour, linewidth=look.width, linestyle=look.line, marker=look.marker,
        markersize=4.0 if look.strong else 3.0, markeredgewidth=0, zorder=3 if look.strong else 2,
    )  # fmt: skip


def _name_ends(axes: Any, drawn: Sequence[Curve], style: Mapping[str, SeriesStyle]) -> None:
    bottom, top = axes.get_ylim()
    ordered = sorted(drawn, key=lambda item: (item.mean[-1], item.name))
    ends = [(item.mean[-1] - bottom) / (top - bottom) for item in ordered]
    size = 7.5 if len(ordered) <= 20 else 6.0
    gap = min(1.18 * size / (72 * PANEL[1] * 0.845), 1.0 / max(1, len(ordered) - 1))
    for item, end, place in zip(ordered, ends, _apart(ends, gap), strict=True):
        look = style[item.name]
        right = axes.transAxes.inverted().transform(axes.transData.transform((item.labeled[-1], 0)))[0]
        axes.plot(
            [right + 0.012, 1.03, 1.045],
            [end, place, place],
            transform=axes.transAxes,
            color=look.colour,
            linewidth=0.6,
            clip_on=False,
        )
        axes.plot(
            [1.06], [place], transform=axes.transAxes, color=look.colour, marker=look.marker, clip_on=False,
            markersize=4.0 if look.strong else 3.2, markeredgewidth=0,
        )  # fmt: skip
        axes.text(
            1.08,
            place,
            short(item.name),
            transform=axes.transAxes,
            color=INK if look.strong else MUTED,
            fontsize=size,
            fontweight="bold" if look.strong else "normal",
            va="center_baseline",
        )


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Moves ascending places in [0, 1] apart by `gap`, each as little as a pass upwards and one downwards take."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else max(0.0, place))
    limit = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], limit)
        limit = moved[index] - gap
    return moved


# -- differences ----------------------------------------------------------------------------------------------------


def forest(rows: Sequence[tuple[str, Gap]], baseline: str, own: Sequence[str], *, label: str, prefix: str) -> Markup:  # fmt: skip  # noqa: E501
    """Matched differences with their intervals, in the order given; filled where the interval excludes zero."""
    height = 0.62 + 0.235 * len(rows)
    with canvas((PANEL[0], height), label, prefix) as (figure, done):
        longest = max(len(short(name)) for name, _ in rows)
        left = min(0.36, 0.04 + 0.0112 * longest)
        axes = figure.add_axes((left, 0.42 / height, 0.74 - left, 1 - 0.5 / height))
        axes.axvline(0, color=INK, linewidth=0.9, linestyle=(0, (5, 2)), zorder=1)
        for row, (name, gap) in enumerate(rows):
            strong = name in own
            colour = "#050005" if strong else MUTED
            known = gap.low is not None and gap.high is not None
            low, high = gap.low or 0.0, gap.high or 0.0
            sure = known and (low > 0 or high < 0)
            if known:
                axes.plot(
                    [100 * low, 100 * high],
                    [row, row],
                    color=colour,
                    linewidth=2.2 if strong else 1.2,
                    solid_capstyle="butt",
                )
            axes.plot(
                [100 * gap.mean], [row], marker="s" if strong else "o", markersize=5.2 if strong else 4.4,
                color=colour, markerfacecolor=colour if sure else PAPER, markeredgewidth=1.0,
            )  # fmt: skip
            said = signed(100 * gap.mean)
            if known:
                said += f" {interval(low, high)}"
            axes.text(
                1.02, row, said, transform=axes.get_yaxis_transform(), va="center_baseline", fontsize=7,
                color=INK, fontweight="bold" if strong else "normal",
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [short(name) for name, _ in rows])
        for tick, (name, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if name in own else "normal")
            tick.set_color(INK if name in own else MUTED)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(f"difference to {short(baseline)}, percentage points")
        plain(axes, grid="x")
        return done()


# -- classes, seconds -----------------------------------------------------------------------------------------------


def class_scatter(
    classes: Sequence[str],
    measured: ClassAccuracy,
    look: SeriesStyle,
    limits: tuple[float, float, float, float],
    *,
    label: str,
    prefix: str,
) -> Markup:
    """Final recall of each class (per cent) against the labels it got; with few classes, their names where they fit.

    `limits` are of labels and of recalls. The labels' axis is that of their square roots: dominant and rare classes
    are both seen.
    """
    with canvas((2.5, 2.05), label, prefix) as (figure, done):
        axes = figure.add_axes((0.165, 0.19, 0.805, 0.785))
        known = [
            (name, labeled, 100 * recall)
            for name, labeled, recall in zip(classes, measured.labeled, measured.recall, strict=True)
            if recall is not None
        ]
        axes.plot(
            [item[1] for item in known], [item[2] for item in known], linestyle="none", marker="o", markersize=3.4,
            color=look.colour, markeredgewidth=0, alpha=0.9,
        )  # fmt: skip
        axes.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
        axes.set_xlim(0.8 * limits[0], 1.15 * limits[1] + 0.5)
        axes.set_ylim(max(-2.0, limits[2] - 5), min(limits[3] + 6, 101.5))
        if len(classes) <= MOST_NAMED_CLASSES:
            _name_points(axes, known)
        axes.set_xlabel("labelled images of the class")
        axes.set_ylabel("recall, %")
        plain(axes, grid="both")
        return done()


def _name_points(axes: Any, known: Sequence[tuple[str, float, float]]) -> None:
    """Names beside their points, but for those that would lie on another name."""
    taken: list[tuple[float, float]] = []
    for name, labeled, recall in known:
        x, y = axes.transData.transform((labeled, recall))
        if all(abs(x - other_x) > 5 + 3.5 * len(name[:10]) or abs(y - other_y) > 6 for other_x, other_y in taken):
            taken.append((x, y))
            axes.annotate(
                name[:10], (labeled, recall), xytext=(2.5, 1.5), textcoords="offset points", fontsize=6.5, color=MUTED
            )


def seconds(rows: Sequence[tuple[str, Mapping[str, float]]], own: Sequence[str], *, label: str, prefix: str) -> Markup:
    """Mean seconds of a round by part, on a logarithmic scale; strategies in the order given."""
    parts = sorted({part for _, means in rows for part in means}, key=lambda part: (part != "train", part))
    height = 0.85 + 0.2 * len(rows)
    with canvas((PANEL[0], height), label, prefix) as (figure, done):
        longest = max(len(short(name)) for name, _ in rows)
        left = min(0.36, 0.04 + 0.0112 * longest)
        axes = figure.add_axes((left, 0.42 / height, 0.97 - left, 1 - 0.76 / height))
        for place, part in enumerate(parts):
            known = [(row, means[part]) for row, (_, means) in enumerate(rows) if means.get(part, 0) > 0]
            axes.plot(
                [value for _, value in known], [row for row, _ in known], linestyle="none",
                marker=MARKERS[place % len(MARKERS)], markersize=5, markeredgewidth=1.0,
                color=MUTED if part == "train" else f"#06{place % OTHERS:02x}06" if part != "select" else "#050005",
                markerfacecolor=PAPER if part == "train" else None, label=part,
            )  # fmt: skip
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 50 else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_yticks(range(len(rows)), [short(name) for name, _ in rows])
        for tick, (name, _) in zip(axes.get_yticklabels(), rows, strict=True):
            tick.set_fontweight("bold" if name in own else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("seconds a round (logarithmic)")
        plain(axes, grid="both")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(parts), frameon=False, fontsize=8, labelcolor=INK,
            borderpad=0, handletextpad=0.2, columnspacing=1.4,
        )  # fmt: skip
        return done()


# -- in words -------------------------------------------------------------------------------------------------------


def describe(rows: Sequence[tuple[str, float]], unit: str = "") -> str:
    """The text of a figure for those who do not see it: names with numbers, best first."""
    return "; ".join(f"{name} {value:.2f}{unit}" for name, value in rows)


def final_rows(setting: Setting) -> list[tuple[str, float]]:
    """Strategies with their final means in per cent, best first."""
    found = [(item.strategy, 100 * item.main.final.mean) for item in setting.strategies]
    return sorted(found, key=lambda row: (-row[1], row[0]))


def class_limits(setting: Setting) -> tuple[float, float, float, float]:
    """Fewest and most labels of a class, lowest and highest recall: the scatters of one setting share their axes."""
    recalls = [100 * r for item in setting.strategies for r in item.classes.recall if r is not None]
    labeled = [value for item in setting.strategies for value in item.classes.labeled]
    return min(labeled), max(labeled), min(recalls, default=0.0), max(recalls, default=100.0)
