"""What commands print: tables for people, or the same as JSON."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from vabal.cli import overview, tables

if TYPE_CHECKING:
    from vabal.benchmark.summary import Mean, StrategyInSetting, Summary
    from vabal.rounds.choice import LearnerChoice


# -- init ---------------------------------------------------------------------------------------------------------


def show_choice(choice: "LearnerChoice") -> None:
    """What `choice.choose` found: a row a learner that was tried, and the settings that come of it."""
    console = tables.console()
    columns: list[tables.Column] = [
        ("learner", "left"),
        ("bal. accuracy", "right"),
        ("cross entropy", "right"),
        ("embedding", "right"),
        ("a night", "right"),
    ]
    rows = [
        (
            f"{tried.learner}, {tried.sees}",
            "not tried" if tried.balanced_accuracy is None else f"{tried.balanced_accuracy:.3f}",
            "" if tried.cross_entropy is None else f"{tried.cross_entropy:.3f}",
            duration(tried.embedding),
            duration(tried.night),
        )
        for tried in choice.tried
    ]
    if rows:
        tables.show_table(console, columns, rows)
        tables.say_whole(console, _SECONDS)
    settings = ", ".join(f"{name}: {value}" for name, value in choice.settings.items())
    tables.say_whole(console, f"taken: {choice.why}")
    tables.say_whole(console, f"params.yaml: {settings}")


_SECONDS = "cross-validated; times are measured here: embedding all images once, and a night without the servers' share"


def duration(seconds: float | None) -> str:
    """For people; nothing for what was not measured."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.0f} h"


# -- benchmark ----------------------------------------------------------------------------------------------------


def show_comparison(summary: "Summary", report: Path, *, as_json: bool = False) -> None:
    """What `comparison.summarise` tells of the main metric: a table a setting, the best first.

    `saved` are labels, to reach what the baseline with the same learner reaches with all of them; `nets` are the
    networks that a run trains.
    """
    if as_json:
        print_json(summary.to_json())
        return
    console, baseline = tables.console(), summary.baseline
    columns: list[tables.Column] = [
        ("strategy", "name"),
        ("average", "right"),
        ("final", "right"),
        (f"less {baseline}, points", "right"),
        ("saved", "right"),
        ("nets", "right"),
        ("CPU s", "right"),
    ]
    for setting in summary.settings:
        tables.say(console, f"\n{setting.name}: {summary.main.replace('_', ' ')}, {len(setting.seeds)} seeds")
        rows = [_comparison_row(item) for item in setting.strategies]
        tables.show_table(console, columns, rows)
        if setting.caveat:
            tables.say(console, setting.caveat)
    _show_rivals(console, summary)
    tables.say(console, f"{summary.cells} cells; the whole comparison: {report}")


def _show_rivals(console: Console, summary: "Summary") -> None:
    """The reference against each other row, over all settings."""
    if not summary.pooled.rivals:
        return
    tables.say(console, f"\n{summary.reference} less each other row, average over rounds, over all settings")
    columns: list[tables.Column] = [
        ("row", "name"),
        ("points [95 %]", "right"),
        ("p, Holm", "right"),
        ("it is", "left"),
    ]
    rows = []
    for rival in summary.pooled.rivals:
        p = "" if rival.holm_t_p is None else f"{rival.holm_t_p:.3f}"
        rows.append((rival.strategy, _points(rival.difference), p, rival.verdict))
    tables.show_table(console, columns, rows)


def _points(gap: "Mean") -> str:
    """A difference with its 95 % interval, in percentage points."""
    interval = "" if gap.low is None or gap.high is None else f" [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    return f"{100 * gap.mean:+.1f}{interval}"


def _comparison_row(item: "StrategyInSetting") -> tuple[str, ...]:
    measured = item.main
    gap = measured.difference.average if measured.difference else None
    saved = item.labels.saved if item.labels else None
    return (
        item.strategy,
        f"{measured.average.mean:.3f}",
        f"{measured.final.mean:.3f}",
        _points(gap) if gap else "",
        f"{saved:.0f}" if saved is not None else "",
        f"{item.cost.trained:.0f}" if item.cost else "",
        f"{item.cost.cpu_seconds:.1f}" if item.cost else "",
    )


# -- JSON ---------------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The value as JSON's own types: tables as lists of rows, times in ISO 8601, null for no value and no number."""
    if type(value).__module__.partition(".")[0] in ("pandas", "numpy"):
        return _plain_array(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    return _plain_scalar(value)


def _plain_array(value: Any) -> Any:
    """Of pandas' and numpy's values, which are loaded only where there are some."""
    import numpy as np
    import pandas as pd

    if isinstance(value, pd.DataFrame):
        return [plain(dict(zip(value.columns, row, strict=True))) for row in value.astype(object).to_numpy()]
    if isinstance(value, np.ndarray | pd.Series):
        return [plain(item) for item in value]
    if value is pd.NaT or value is pd.NA:
        return None
    return _plain_scalar(value.item() if isinstance(value, np.generic) else value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date):  # a datetime and pandas' Timestamp too
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def print_json(document: Any) -> None:
    """As JSON that any reader takes: codes for what the output's encoding, or Unicode itself, has no character for."""
    text = json.dumps(plain(document), indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(plain(document), indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")


# -- status -------------------------------------------------------------------------------------------------------


def show_status(services: Sequence[Mapping[str, Any]], folder: Path, *, as_json: bool = False) -> None:
    """The local stack's services, and what is to be told of the workspace that `folder` lies in, if any."""
    told = dict(overview.parts(folder))
    if as_json:
        print_json({"services": services, **{name: part.document for name, part in told.items()}})
        return
    console = tables.console()
    rows = [(row["service"], row["state"], row["pid"], row["address"], row["since"]) for row in services]
    columns: list[tables.Column] = [("service", "left"), ("state", "left"), ("pid", "right")]
    tables.show_table(console, [*columns, ("address", "whole"), ("since", "left")], rows)
    for row in services:
        if row["state"] != "running" and row["pid"] is not None:
            tables.say_whole(console, f"{row['service']} is {row['state']}: see {row['log']}")
    for name, part in told.items():
        for number, line in enumerate(part.lines):
            tables.say(console, f"{name}: {line}" if number == 0 else line, indent=0 if number == 0 else 2)
