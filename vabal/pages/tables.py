"""The tables of a benchmark's report, as HTML: strategies in the summary's order, the best of a column in bold."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from vabal.statistics import MAIN

MINUS = "\N{MINUS SIGN}"
NONE = "–"
NAMES = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1"}

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], str], Callable[[Row], float | None] | None]


def table(
    caption: str, columns: Sequence[Column], rows: Iterable[Row], *, own: Sequence[str] = (), baseline: str = ""
) -> str:
    """A table of one row a strategy. A column has a head, a cell's HTML, and what is best at its largest (or None).

    `caption` and heads are HTML; the strategy's name is escaped here.
    """
    rows = list(rows)
    best = [None if key is None else max((_known(key(row)) for row in rows), default=None) for _, _, key in columns]
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("strategy", *(head for head, _, _ in columns)))
    lines = []
    for row in rows:
        name = row["strategy"]
        kind = ' class="own"' if name in own else ' class="baseline"' if name == baseline else ""
        cells = [
            f"<td><b>{write(row)}</b></td>"
            if key is not None and key(row) is not None and _known(key(row)) == highest
            else f"<td>{write(row)}</td>"
            for (_, write, key), highest in zip(columns, best, strict=True)
        ]
        lines.append(f'<tr{kind}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    body = "\n".join(lines)
    return (
        f'<div class="table"><table><caption>{caption}</caption>\n<thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _known(value: float | None) -> float:
    return float("-inf") if value is None else value


# -- cells ----------------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def signed(value: float, digits: int = 2) -> str:
    """With its sign, and none for what rounds to zero."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}".replace("-", MINUS) if rounded else f"{0:.{digits}f}"


def spread(found: Mapping[str, Any]) -> str:
    """A mean with its standard deviation, per cent."""
    sd = "" if found["sd"] is None else f' <span class="range">± {percent(found["sd"])}</span>'
    return percent(found["mean"]) + sd


def interval(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return NONE
    return f"[{signed(100 * low)}, {signed(100 * high)}]"


def gap(found: Mapping[str, Any] | None) -> str:
    """A matched difference with its interval, percentage points."""
    if found is None:
        return NONE
    return f'{signed(100 * found["mean"])} <span class="range">{interval(found["low"], found["high"])}</span>'


def p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return "&lt; 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def count(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


# -- tables ---------------------------------------------------------------------------------------------------------


def main_table(setting: Mapping[str, Any], caption: str, **kinds: Any) -> str:
    """Accuracy of one setting: average, final, area, matched difference with its tests, labels saved."""

    def measured(quantity: str) -> Column:
        heads = {"average": "average", "final": "final", "area": "area u.&nbsp;c."}
        return (
            f"{heads[quantity]}, %",
            lambda row: (
                spread(row["metrics"][MAIN][quantity])
                if quantity != "area"
                else percent(row["metrics"][MAIN]["area"]["mean"])
            ),
            lambda row: row["metrics"][MAIN][quantity]["mean"],
        )

    def found(row: Row) -> Any:
        return (row["metrics"][MAIN]["difference"] or {}).get("average")

    def test(key: str) -> Callable[[Row], str]:
        return lambda row: p_value((found(row) or {}).get(key))

    columns: list[Column] = [
        ("n", lambda row: str(len(row["seeds"])), None),
        measured("average"),
        measured("final"),
        measured("area"),
        (
            "difference of averages<br>[95 %]",
            lambda row: gap(found(row)),
            lambda row: found(row)["mean"] if found(row) else None,
        ),
        ("p", test("p"), None),
        ("p, Holm", test("holm_p"), None),
        ("p, Wilcoxon", test("wilcoxon_p"), None),
        ("labels<br>needed", _needed, None),
        ("labels<br>saved", _saved, lambda row: (row["labels"] or {}).get("saved")),
    ]
    return table(caption, columns, setting["strategies"], **kinds)


def _needed(row: Row) -> str:
    labels = row["labels"]
    if labels is None:
        return NONE
    return count(labels["needed"]) if labels["reached"] else "not reached"


def _saved(row: Row) -> str:
    labels = row["labels"]
    if labels is None or labels["saved"] is None:
        return NONE
    share = "" if labels["saved_share"] is None else f" ({signed(100 * labels['saved_share'], 0)} %)"
    return signed(labels["saved"], 0) + share


def other_table(setting: Mapping[str, Any], metrics: Sequence[str], caption: str, **kinds: Any) -> str:
    """Final accuracy's difference; of the other measures average, final, difference with interval, Holm's p."""

    def final(row: Row) -> Any:
        return (row["metrics"][MAIN]["difference"] or {}).get("final")

    columns: list[Column] = [
        (
            f"{NAMES[MAIN]}:<br>difference of finals",
            lambda row: gap(final(row)),
            lambda row: final(row)["mean"] if final(row) else None,
        )
    ]
    columns += [column for metric in metrics for column in _measure(metric)]
    return table(caption, columns, setting["strategies"], **kinds)


def _measure(metric: str) -> list[Column]:
    def found(row: Row) -> Any:
        return (row["metrics"][metric]["difference"] or {}).get("average")

    def mean(quantity: str) -> Callable[[Row], float | None]:
        return lambda row: row["metrics"][metric][quantity]["mean"]

    return [
        (f"{NAMES[metric]}:<br>average, %", lambda row: spread(row["metrics"][metric]["average"]), mean("average")),
        ("final, %", lambda row: percent(row["metrics"][metric]["final"]["mean"]), mean("final")),
        (
            "difference<br>of averages",
            lambda row: gap(found(row)),
            lambda row: found(row)["mean"] if found(row) else None,
        ),
        ("p,<br>Holm", lambda row: p_value((found(row) or {}).get("holm_p")), None),
    ]


def pooled_table(pooled: Mapping[str, Any], caption: str, **kinds: Any) -> str:
    """All settings together: matched differences, ranks, wins."""

    def found(row: Row, what: str = "difference", metric: str = MAIN) -> Any:
        return (row[what] or {}).get(metric)

    def wins(row: Row) -> str:
        return NONE if row["wins"] is None else f"{row['wins']} / {row['ties']} / {row['losses']}"

    def verdict(row: Row) -> str:
        return f"{row['settings_above']} / {row['settings_below']} of {row['settings']}" if row["settings"] else NONE

    columns: list[Column] = [
        ("pairs", lambda row: str(row["pairs"]) if row["pairs"] else NONE, None),
        (
            "accuracy:<br>difference [95 %]",
            lambda row: gap(found(row)),
            lambda row: found(row)["mean"] if found(row) else None,
        ),
        ("by seed<br>[95 %]", lambda row: _by_seed(found(row, "by_seed")), None),
        ("p, Holm", lambda row: p_value((found(row) or {}).get("holm_p")), None),
        (
            "mean<br>rank",
            lambda row: NONE if row["mean_rank"] is None else f"{row['mean_rank']:.2f}",
            lambda row: None if row["mean_rank"] is None else -row["mean_rank"],
        ),
        ("won / tied / lost<br>(pairs)", wins, None),
        ("interval above /<br>below zero", verdict, None),
        (
            "balanced accuracy:<br>difference [95 %]",
            lambda row: gap(found(row, metric="balanced_accuracy")),
            lambda row: found(row, metric="balanced_accuracy")["mean"] if found(row) else None,
        ),
        (
            "macro F1:<br>difference [95 %]",
            lambda row: gap(found(row, metric="macro_f1")),
            lambda row: found(row, metric="macro_f1")["mean"] if found(row) else None,
        ),
    ]
    return table(caption, columns, pooled["strategies"], **kinds)


def _by_seed(found: Mapping[str, Any] | None) -> str:
    return NONE if found is None else f'<span class="range">{interval(found["low"], found["high"])}</span>'


def setup_table(settings: Sequence[Mapping[str, Any]], caption: str) -> str:
    """What each setting was: classes, images, labels, seeds."""
    heads = (
        "setting",
        "classes",
        "pool",
        "largest : smallest class",
        "holdout",
        "labels by round",
        "strategies",
        "seeds",
    )
    lines = []
    for setting in settings:
        pool = setting["pool_per_class"]
        smallest = min(pool)
        cells = (
            str(len(setting["classes"])),
            f"{sum(pool):.0f}",
            f"{max(pool) / smallest:.1f} : 1" if smallest else f"{max(pool):.0f} : 0",
            f"{sum(setting['holdout_per_class']):.0f}",
            ", ".join(str(labels) for labels in setting["labeled"]),
            str(len(setting["strategies"])),
            ", ".join(str(seed) for seed in setting["seeds"]),
        )
        name = f"{setting['source']}, {setting['imbalance']}"
        lines.append(
            f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    body = "\n".join(lines)
    return (
        f'<div class="table"><table><caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def seconds_table(setting: Mapping[str, Any], caption: str, **kinds: Any) -> str:
    """Mean seconds of each part of a round."""
    parts = sorted(
        {part for row in setting["strategies"] for part in row["seconds"]["mean"]},
        key=lambda part: (part != "train", part),
    )

    def column(part: str) -> Column:
        def write(row: Row) -> str:
            value = row["seconds"]["mean"].get(part)
            return NONE if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"

        return escape(part), write, None

    return table(caption, [column(part) for part in parts], setting["strategies"], **kinds)
