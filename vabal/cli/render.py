"""What commands print: tables that fit 80 columns, or the same as JSON. Nothing is cut: what is long is folded."""

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from vabal.audit import AuditReport
    from vabal.benchmark.summary import Mean, StrategyInSetting, Summary
    from vabal.rounds.choice import LearnerChoice

Column = tuple[str, Literal["left", "right"]]


# -- init ---------------------------------------------------------------------------------------------------------


def show_choice(choice: "LearnerChoice") -> None:
    """What `choice.choose` found: a row a learner that was tried, and the settings that come of it."""
    console = _console()
    columns: list[Column] = [
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
            _duration(tried.embedding),
            _duration(tried.night),
        )
        for tried in choice.tried
    ]
    if rows:
        console.print(_table(console, columns, rows))
        console.print(Text(_SECONDS), soft_wrap=True)
    settings = ", ".join(f"{name}: {value}" for name, value in choice.settings.items())
    console.print(Text(f"taken: {choice.why}"), soft_wrap=True)
    console.print(Text(f"params.yaml: {settings}"), soft_wrap=True)


_SECONDS = "cross-validated; times are measured here: embedding all images once, and a night without the servers' share"


def _duration(seconds: float | None) -> str:
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
    console, baseline = _console(), summary.baseline
    columns: list[Column] = [
        ("strategy", "left"),
        ("average", "right"),
        ("final", "right"),
        (f"less {baseline}, points", "right"),
        ("saved", "right"),
        ("nets", "right"),
        ("CPU s", "right"),
    ]
    for setting in summary.settings:
        console.print(Text(f"\n{setting.name}: {summary.main.replace('_', ' ')}, {len(setting.seeds)} seeds"))
        rows = [_comparison_row(item) for item in setting.strategies]
        console.print(_table(console, columns, rows))
        if setting.caveat:
            console.print(Text(setting.caveat))
    _show_rivals(console, summary)
    console.print(Text(f"{summary.cells} cells; the whole comparison: {report}"))


def _show_rivals(console: Console, summary: "Summary") -> None:
    """The reference against each other row, over all settings."""
    if not summary.pooled.rivals:
        return
    console.print(Text(f"\n{summary.reference} less each other row, average over rounds, over all settings"))
    columns: list[Column] = [("row", "left"), ("points [95 %]", "right"), ("p, Holm", "right"), ("it is", "left")]
    rows = []
    for rival in summary.pooled.rivals:
        p = "" if rival.holm_t_p is None else f"{rival.holm_t_p:.3f}"
        rows.append((rival.strategy, _points(rival.difference), p, rival.verdict))
    console.print(_table(console, columns, rows))


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


# -- audit --------------------------------------------------------------------------------------------------------


def show_rounds(records: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """What `audit.rounds` tells: a row a round, and the promotions below."""
    if as_json:
        print_json(records)
        return
    rows = [
        (
            record["round"],
            record["strategy"],
            record["labeled"],
            record["unlabeled"],
            _picks_by_class(record),
            record["model_version"],
            "\n".join(filter(None, [(record["mlflow_run"] or "")[:12], record["tag"]])),
        )
        for record in records
    ]
    columns: list[Column] = [
        ("round", "right"),
        ("strategy", "left"),
        ("labelled", "right"),
        ("unlabelled", "right"),
        ("picks by class", "left"),
        ("model", "right"),
        ("run, tag", "left"),
    ]
    console = _console()
    console.print(_table(console, columns, rows))
    promotions = [(entry["when"], record, entry) for record in records for entry in record["promotions"]]
    if promotions:
        console.print("\npromotions")
        for when, record, entry in sorted(promotions, key=lambda item: item[0]):
            told = f"{when[:16].replace('T', ' ')} UTC, {entry['action']} of version {record['model_version']}"
            console.print(Padding(f"{told}, by {entry['who']}", (0, 0, 0, 2)))
            console.print(Padding(entry["why"], (0, 0, 0, 6)))


def _picks_by_class(record: Mapping[str, Any]) -> str:
    parts = [f"{name}: {count}" for name, count in record["picks_by_class"].items() if count]
    parts += [f"{record['picks_open']} open"] if record["picks_open"] else []
    parts += [f"{record['picks_rejected']} rejected"] if record["picks_rejected"] else []
    return f"{record['picks']} ({', '.join(parts)})" if parts else str(record["picks"])


def show_picks(picks: "pd.DataFrame", *, as_json: bool = False) -> None:
    """What `audit.picks` tells: a row a pick."""
    if as_json:
        print_json(picks)
        return
    rows = [
        (
            pick["rank"],
            pick["sample_id"],
            _number(pick["score"]),
            _number(pick["log_likelihood"]),
            _number(pick["prior"]),
            _number(pick["precision"]),
            pick["predicted_class"],
            pick["vae_class"],
            "rejected" if pick["rejected"] else pick["label"],
        )
        for pick in plain(picks)
    ]
    columns: list[Column] = [
        ("rank", "right"),
        ("sample", "left"),
        ("score", "right"),
        ("log lik.", "right"),
        ("prior", "right"),
        ("prec.", "right"),
        ("pred.", "left"),
        ("VAE", "left"),
        ("label", "left"),
    ]
    console = _console()
    console.print(_table(console, columns, rows))


def show_history(history: Mapping[str, Any], *, as_json: bool = False) -> None:
    """What `audit.history` tells: where the sample is now, then an event a row."""
    if as_json:
        print_json(history)
        return
    console = _console()
    console.print(Text(f"{history['sample_id']}: {history['state']} {history['label'] or ''}".rstrip()))
    rows = [(event["round"], event["what"], _details(event)) for event in history["events"]]
    console.print(_table(console, [("round", "right"), ("what", "left"), ("details", "left")], rows))


def _details(event: Mapping[str, Any]) -> str:
    if event["what"] == "added":
        return str(event["detail"])
    if event["what"] == "requested":
        return f"rank {event['rank']}"
    if event["what"] == "candidate":
        numbers = {"score": event["score"], "log likelihood": event["log_likelihood"]}
        numbers |= {"prior": event["prior"], "precision": event["precision"]}
        parts = [f"{name} {_number(value)}" for name, value in numbers.items() if value is not None]
        named = {"predicted": event["predicted_class"], "VAE's class": event["vae_class"]}
        parts += [f"{name} {value}" for name, value in named.items() if value is not None]
        return f"{event['strategy']}: {', '.join(parts)}" + ("" if event["rank"] else "; not picked")
    parts = [event["label"], f"by {event['annotator']}", event["when"], f"from {event['source']}"]
    parts += [f"imported {event['imported']}"] if "imported" in event else []
    return ", ".join(part for part in parts if part)


def show_report(report: "AuditReport", *, as_json: bool = False) -> None:
    """What `audit.verify` found; one line if it is nothing."""
    if as_json:
        print_json(report.to_json())
        return
    console = _console()
    checked = f"{report.rounds} rounds, {report.files} files, {report.images} images"
    for note in report.notes:
        console.print(Text(f"note: {note}"))
    if report.ok:
        console.print(Text(f"intact: {checked}; every digest, the chain, the pools' arithmetic and every pick"))
        return
    rows = [(finding.round, finding.file, finding.what) for finding in report.findings]
    console.print(_table(console, [("round", "right"), ("file", "left"), ("what", "left")], rows))
    number = len(report.findings)
    console.print(Text(f"NOT intact: {number} finding{'s' if number > 1 else ''} in {checked}"))


# -- status -------------------------------------------------------------------------------------------------------


def show_status(services: Sequence[Mapping[str, Any]], folder: Path, *, as_json: bool = False) -> None:
    """The local stack's services, and the newest round and the inbox of the workspace that `folder` lies in, if any."""
    books = _books(folder)
    if as_json:
        print_json({"services": services, **books})
        return
    console = _console()
    rows = [(row["service"], row["state"], row["pid"], row["address"], row["since"]) for row in services]
    columns: list[Column] = [("service", "left"), ("state", "left"), ("pid", "right")]
    console.print(_table(console, [*columns, ("address", "left"), ("since", "left")], rows))
    for row in services:
        if row["state"] != "running" and row["pid"] is not None:
            console.print(Text(f"{row['service']} is {row['state']}: see {row['log']}"))
    for name in ("workspace", "round", "page", "inbox"):
        if books[name] is not None:
            console.print(Text(f"{name}: {_in_words(books[name])}"))


def _books(folder: Path) -> dict[str, Any]:
    from vabal import rounds
    from vabal.errors import UserError
    from vabal.labels import arrivals
    from vabal.workspace import Workspace

    books: dict[str, Any] = {"workspace": None, "round": None, "page": None, "inbox": None}
    try:
        place = Workspace.find(folder)
        books["workspace"] = str(place.root)
        books["inbox"] = arrivals.pending(place.inbox)
        newest = rounds.head(place.data)
    except UserError:
        return books  # no workspace here, or no round yet
    books["round"] = {"round": newest.round, "strategy": newest.strategy, **newest.counts}
    page = place.report(newest.round)
    books["page"] = str(page) if page.is_file() else None
    return books


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" if name != "round" else str(item) for name, item in value.items())
    if isinstance(value, list):
        return f"{len(value)} waiting for the next round" if value else "empty"
    return str(value)


# -- rendering ----------------------------------------------------------------------------------------------------


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _table(console: Console, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> Table:
    """Numbers are kept whole, text folds: each text column may have its share of what the numbers leave."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    longest = [
        max(len(line) for text in [name, *(row[index] for row in cells)] for line in text.splitlines() or [""])
        for index, (name, _) in enumerate(columns)
    ]
    numbers = sum(width for width, (_, justify) in zip(longest, columns, strict=True) if justify == "right")
    texts = sum(justify == "left" for _, justify in columns)
    share = max((console.width - numbers - 2 * len(columns)) // max(texts, 1), 1)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    for (name, justify), width in zip(columns, longest, strict=True):
        if justify == "right":
            table.add_column(name, justify=justify, no_wrap=True)
        else:
            table.add_column(name, justify=justify, overflow="fold", min_width=min(width, share, _WHOLE))
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    return table


_WHOLE = 8  # as much of a text stays in one line, if the numbers leave room


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
