"""The tables of a benchmark's report: strategies in the summary's order, the best of a column in bold."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from vabal.benchmark.curves import picks_of
from vabal.benchmark.summary import (
    Gap,
    Labels,
    Mean,
    Measured,
    Pooled,
    Rival,
    Setting,
    StrategyInSetting,
    StrategyOverall,
)
from vabal.statistics import FEWEST_FOR_BOOTSTRAP, MAIN

MINUS = "\N{MINUS SIGN}"
NONE = "–"
NAMES = {"balanced_accuracy": "balanced accuracy", "accuracy": "accuracy", "macro_f1": "macro F1"}

Item = TypeVar("Item", StrategyInSetting, StrategyOverall, Rival)


@dataclass(frozen=True)
class Cell:
    """Its text, what stands beside that in small letters, and a share that is drawn as a bar."""

    text: str
    beside: str = ""
    best: bool = False
    share: float | None = None


@dataclass(frozen=True)
class Row:
    name: str
    cells: Sequence[Cell]
    kind: str = ""  # own, baseline


@dataclass(frozen=True)
class Table:
    """A head's lines stand below each other."""

    kind = "table"
    caption: str
    heads: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Roles:
    """Which strategies are marked."""

    own: Sequence[str] = ()
    baseline: str = ""

    def of(self, name: str) -> str:
        return "own" if name in self.own else "baseline" if picks_of(name) == self.baseline else ""


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A head, a strategy's cell, and what is best at its largest (or None)."""

    head: str
    cell: Callable[[Item], Cell | str]
    key: Callable[[Item], float | None] = field(default=lambda _item: None)


def table(caption: str, columns: Sequence[Column[Item]], items: Iterable[Item], roles: Roles) -> Table:
    """A table of one row a strategy."""
    items = list(items)
    best = [max((_known(column.key(item)) for item in items), default=None) for column in columns]

    def row(item: Item) -> Row:
        cells = []
        for column, highest in zip(columns, best, strict=True):
            made, value = column.cell(item), column.key(item)
            made = made if isinstance(made, Cell) else Cell(made)
            cells.append(Cell(made.text, made.beside, best=value is not None and value == highest))
        return Row(item.strategy, cells, roles.of(item.strategy))

    return Table(caption, ["strategy", *(column.head for column in columns)], [row(item) for item in items])


def _known(value: float | None) -> float:
    return float("-inf") if value is None else value


# -- cells ----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def signed(value: float, digits: int = 2) -> str:
    """With its sign, and none for what rounds to zero."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", MINUS) if rounded else f"{0:.{digits}f}"


def spread(found: Mean) -> Cell:
    """A mean with its standard deviation, per cent."""
    return Cell(percent(found.mean), "" if found.sd is None else f"± {percent(found.sd)}")


def interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return NONE
    return f"[{signed(100 * low)}, {signed(100 * high)}]"


def gap(found: Gap | None) -> Cell:
    """A matched difference with its interval, percentage points."""
    return Cell(NONE) if found is None else Cell(signed(100 * found.mean), interval(found.low, found.high))


def p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def _average(measured: Measured) -> Gap | None:
    return measured.difference.average if measured.difference else None


def _mean(found: Gap | None) -> float | None:
    return found.mean if found else None


# -- tables ---------------------------------------------------------------------------------------------------------


def main_table(setting: Setting, caption: str, roles: Roles) -> Table:
    """The main measure in one setting: average, final, area, matched difference with its tests, labels saved, cost."""
    columns: list[Column[StrategyInSetting]] = [
        Column("n", lambda item: str(len(item.seeds))),
        Column("average, %", lambda item: spread(item.main.average), lambda item: item.main.average.mean),
        Column("final, %", lambda item: spread(item.main.final), lambda item: item.main.final.mean),
        Column(
            "area u.\N{NO-BREAK SPACE}c., %",
            lambda item: percent(item.main.area.mean),
            lambda item: item.main.area.mean,
        ),
        Column(
            "difference of averages\n[95 %]",
            lambda item: gap(_average(item.main)),
            lambda item: _mean(_average(item.main)),
        ),
        Column("p", lambda item: p_value(_test(item, "p"))),
        Column("p, Holm", lambda item: p_value(_test(item, "holm_p"))),
        Column("p, Wilcoxon", lambda item: p_value(_test(item, "wilcoxon_p"))),
        Column("labels\nneeded", _needed),
        Column("labels\nsaved", _saved, lambda item: item.labels.saved if item.labels else None),
        Column("labels that the\nbaseline needs", _matched),
        Column("networks\ntrained", lambda item: count(item.cost.trained if item.cost else None)),
        Column("CPU s\na run", lambda item: f"{item.cost.cpu_seconds:.1f}" if item.cost else NONE),
    ]
    return table(caption, columns, setting.strategies, roles)


def _test(item: StrategyInSetting, name: str) -> float | None:
    found = _average(item.main)
    p: float | None = getattr(found, name) if found else None
    return p


def _needed(item: StrategyInSetting) -> str:
    if item.labels is None:
        return NONE
    return count(item.labels.needed) if item.labels.reached else "not reached"


def _saved(item: StrategyInSetting) -> Cell:
    labels = item.labels
    if labels is None or labels.saved is None:
        return Cell(NONE)
    share = "" if labels.saved_share is None else f" ({signed(100 * labels.saved_share, 0)} %)"
    return Cell(signed(labels.saved, 0) + share, "" if len(item.seeds) < FEWEST_FOR_BOOTSTRAP else _between(labels))


def _between(labels: Labels) -> str:
    """The interval of the labels saved; an end that the run's labels cannot tell is open."""
    low, high = (None if end is None else signed(end, 0) for end in (labels.saved_low, labels.saved_high))
    return f"[{low or '…'}, {high or '…'}]"


def _matched(item: StrategyInSetting) -> str:
    """For what this row has at its end."""
    labels = item.labels
    if labels is None or not item.main.difference:
        return NONE
    last = item.main.per_round[-1].labeled
    return f"> {last}" if labels.matched is None else count(labels.matched)


def other_table(setting: Setting, metrics: Sequence[str], caption: str, roles: Roles) -> Table:
    """Final accuracy's difference; of the other measures average, final, difference with interval, Holm's p."""

    def final(item: StrategyInSetting) -> Gap | None:
        return item.main.difference.final if item.main.difference else None

    head = f"{NAMES[MAIN]}:\ndifference of finals"
    columns = [Column[StrategyInSetting](head, lambda item: gap(final(item)), lambda item: _mean(final(item)))]
    columns += [column for metric in metrics for column in _measure(metric)]
    return table(caption, columns, setting.strategies, roles)


def _measure(metric: str) -> list[Column[StrategyInSetting]]:
    def found(item: StrategyInSetting) -> Measured:
        return item.metrics[metric]

    def holm(item: StrategyInSetting) -> str:
        average = _average(found(item))
        return p_value(average.holm_p if average else None)

    return [
        Column(
            f"{NAMES[metric]}:\naverage, %",
            lambda item: spread(found(item).average),
            lambda item: found(item).average.mean,
        ),
        Column("final, %", lambda item: percent(found(item).final.mean), lambda item: found(item).final.mean),
        Column(
            "difference\nof averages",
            lambda item: gap(_average(found(item))),
            lambda item: _mean(_average(found(item))),
        ),
        Column("p,\nHolm", holm),
    ]


def pooled_table(pooled: Pooled, caption: str, roles: Roles) -> Table:
    """All settings together: matched differences, ranks, wins."""

    def measured(metric: str) -> Column[StrategyOverall]:
        def found(item: StrategyOverall) -> Gap | None:
            return (item.difference or {}).get(metric)

        head = f"{NAMES[metric]}:\ndifference [95 %]"
        return Column(head, lambda item: gap(found(item)), lambda item: _mean(found(item)))

    columns: list[Column[StrategyOverall]] = [
        Column("pairs", lambda item: str(item.pairs) if item.pairs else NONE),
        measured(MAIN),
        Column("by seed\n[95 %]", _by_seed),
        Column("p, Holm", lambda item: p_value(item.difference[MAIN].holm_p if item.difference else None)),
        Column(
            "mean\nrank",
            lambda item: NONE if item.mean_rank is None else f"{item.mean_rank:.2f}",
            lambda item: None if item.mean_rank is None else -item.mean_rank,
        ),
        Column(
            "won / tied / lost\n(pairs)",
            lambda item: NONE if item.wins is None else f"{item.wins} / {item.ties} / {item.losses}",
        ),
        Column(
            "interval above /\nbelow zero",
            lambda item: f"{item.settings_above} / {item.settings_below} of {item.settings}" if item.settings else NONE,
        ),
        *(measured(metric) for metric in NAMES if metric != MAIN),
    ]
    return table(caption, columns, pooled.strategies, roles)


def _by_seed(item: StrategyOverall) -> Cell:
    found = (item.by_seed or {}).get(MAIN)
    return Cell(NONE) if found is None else Cell("", interval(found.low, found.high))


def rivals_table(rivals: Sequence[Rival], caption: str, roles: Roles) -> Table:
    """The reference against every other row."""
    columns: list[Column[Rival]] = [
        Column("seeds", lambda item: str(item.difference.n)),
        Column("difference [95 %]", lambda item: gap(item.difference)),
        Column("p, Student", lambda item: p_value(item.difference.t_p)),
        Column("p, Holm", lambda item: p_value(item.holm_t_p)),
        Column("the reference is", lambda item: item.verdict),
    ]
    return table(caption, columns, rivals, roles)


def matrix(settings: Sequence[Setting], caption: str) -> Table:
    """Learners by strategies: final means of the main measure, over these settings, per cent."""
    items = [item for setting in settings for item in setting.strategies]
    picks = list(dict.fromkeys(sorted((item.picks for item in items), key=lambda name: (name != "random", name))))
    values = {
        (learner, name): [item.main.final.mean for item in items if (item.learner, item.picks) == (learner, name)]
        for learner in {item.learner for item in items}
        for name in picks
    }
    means = {key: sum(found) / len(found) for key, found in values.items() if len(found) == len(settings)}
    highest = max(means.values(), default=None)
    learners = sorted({learner for learner, _ in means}, key=lambda name: -max(means.get((name, p), 0) for p in picks))

    def cell(learner: str, name: str) -> Cell:
        value = means.get((learner, name))
        return Cell(NONE) if value is None else Cell(percent(value), best=value == highest)

    rows = [Row(learner, [cell(learner, name) for name in picks]) for learner in learners]
    return Table(caption, ["learner", *picks], rows)


def setup_table(settings: Sequence[Setting], caption: str) -> Table:
    """What each setting was: classes, images, labels, seeds."""
    heads = ["setting", "classes", "pool", "largest : smallest class", "holdout", "labels by round"]
    rows = []
    for setting in settings:
        pool = setting.pool_per_class
        smallest = min(pool)
        cells = (
            str(len(setting.classes)),
            f"{sum(pool):.0f}",
            f"{max(pool) / smallest:.1f} : 1" if smallest else f"{max(pool):.0f} : 0",
            f"{sum(setting.holdout_per_class):.0f}",
            ", ".join(str(labels) for labels in setting.labeled),
            str(len(setting.strategies)),
            ", ".join(str(seed) for seed in setting.seeds),
        )
        rows.append(Row(setting.name, [Cell(cell) for cell in cells]))
    return Table(caption, [*heads, "strategies", "seeds"], rows)


def seconds_table(setting: Setting, caption: str, roles: Roles) -> Table:
    """Mean seconds of each part of a round."""

    def column(part: str) -> Column[StrategyInSetting]:
        def write(item: StrategyInSetting) -> str:
            value = item.seconds.mean.get(part)
            return NONE if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"

        return Column(part, write)

    parts = {part for item in setting.strategies for part in item.seconds.mean}
    in_order = sorted(parts, key=lambda part: (part != "train", part))
    return table(caption, [column(part) for part in in_order], setting.strategies, roles)
