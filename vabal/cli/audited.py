"""What `vabal audit` and its like print: tables for people, or the same as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vabal.cli import tables
from vabal.cli.render import plain, print_json

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from vabal.audit import AuditReport
    from vabal.audit.control import Arm
    from vabal.audit.drift import Drift
    from vabal.audit.forecast import Forecast
    from vabal.audit.why import Standing, Why
    from vabal.labels.classes import ClassList


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
    columns: list[tables.Column] = [
        ("round", "right"),
        ("strategy", "name"),
        ("labelled", "right"),
        ("unlabelled", "right"),
        ("picks by class", "left"),
        ("model", "right"),
        ("run, tag", "whole"),
    ]
    console = tables.console()
    tables.show_table(console, columns, rows)
    promotions = [(entry["when"], record, entry) for record in records for entry in record["promotions"]]
    if promotions:
        console.print("\npromotions")
        for when, record, entry in sorted(promotions, key=lambda item: item[0]):
            told = f"{when[:16].replace('T', ' ')} UTC, {entry['action']} of version {record['model_version']}"
            tables.say(console, f"{told}, by {entry['who']}", indent=2)
            tables.say(console, entry["why"], indent=6)


def show_classes(found: "ClassList", *, as_json: bool = False) -> None:
    """The classes with their counts, and below what changed them."""
    if as_json:
        print_json(found.to_json())
        return
    columns: list[tables.Column] = [("class", "name"), ("labels", "right"), ("holdout", "right")]
    rows: list[tuple[Any, ...]] = [(row.name, row.labeled, row.holdout) for row in found.rows]
    if any(row.earlier for row in found.rows):
        columns.append(("earlier names", "name"))
        rows = [(*told, ", ".join(row.earlier)) for told, row in zip(rows, found.rows, strict=True)]
    console = tables.console()
    tables.show_table(console, columns, rows)
    for line in found.lines():
        tables.say(console, line)


def _picks_by_class(record: Mapping[str, Any]) -> str:
    parts = [f"{name}: {count}" for name, count in record["picks_by_class"].items() if count]
    parts += [f"{record['picks_open']} open"] if record["picks_open"] else []
    parts += [f"{record['picks_rejected']} rejected"] if record["picks_rejected"] else []
    return f"{record['picks']} ({', '.join(parts)})" if parts else str(record["picks"])


def show_picks(picks: "pd.DataFrame", *, as_json: bool = False) -> None:
    """What `audit.picks` tells: a row a pick; columns that say nothing of any of them are left out."""
    if as_json:
        print_json(picks)
        return
    told = plain(picks.assign(label=picks["label"].mask(picks["rejected"], "rejected")))
    console = tables.console()
    columns = [column for column in _OF_PICKS if not told or any(pick[column[0]] is not None for pick in told)]
    if not tables.fits(console, *_columns_and_rows(columns, told)):
        columns = [column for column in columns if column[0] not in _LEFT_OUT]
    tables.show_table(console, *_columns_and_rows(columns, told))


def _columns_and_rows(
    columns: "Sequence[tuple[str, str, tables.Kind]]", picks: Sequence[Mapping[str, Any]]
) -> tuple[list[tables.Column], list[list[Any]]]:
    rows = [[_cell(pick[name], name) for name, _, _ in columns] for pick in picks]
    return [(title, kind) for _, title, kind in columns], rows


_LEFT_OUT = ("log_likelihood", "vae_class")  # where there is no room: --why tells them, and --json
_OF_PICKS: list[tuple[str, str, tables.Kind]] = [
    ("rank", "rank", "right"),
    ("sample_id", "sample", "whole"),
    ("probability", "drawn with", "right"),
    ("score", "score", "right"),
    ("margin", "margin", "right"),
    ("posterior", "post.", "right"),
    ("log_likelihood", "log lik.", "right"),
    ("prior", "prior", "right"),
    ("precision", "prec.", "right"),
    ("predicted_class", "pred.", "name"),
    ("vae_class", "VAE", "name"),
    ("label", "label", "name"),
    ("annotator", "by", "name"),
]


def _cell(value: Any, name: str) -> Any:
    if not isinstance(value, float):
        return value
    return (
        f"{value:.3f}"
        if name in ("margin", "posterior", "prior", "precision")
        else tables.number(value, 4 if name == "score" else 3)
    )


def show_why(answer: "Why", *, as_json: bool = False) -> None:
    """What `audit.why` tells: how the samples stood, the parts of their scores side by side, what decided."""
    if as_json:
        print_json(asdict(answer))
        return
    console = tables.console()
    of = f"{answer.picks} of {answer.candidates} candidates picked by {answer.strategy}, batch {answer.rule}"
    tables.say(console, f"round {answer.round}: {of}")
    stands = [answer.sample] if answer.other is None else [answer.sample, answer.other]
    for stand in stands:
        tables.say_title(console, f"{stand.sample_id}:", stand.said)
    scored = [stand for stand in stands if stand.score is not None]
    if scored:
        columns: list[tables.Column] = [("", "left"), *((stand.sample_id, "right") for stand in scored)]
        rows = list(_why_rows(scored))
        if len(scored) == 2:
            columns.append(("difference", "right"))
        tables.show_table(console, columns, rows)
    for line in answer.answer:
        tables.say(console, line)
    for note in answer.notes:
        tables.say(console, f"note: {note}")


def _why_rows(stands: "Sequence[Standing]") -> Iterator[tuple[Any, ...]]:
    """A row a number, the score's parts first, then the score, then what was recorded beside it."""
    parts = [{**stand.terms, "score": stand.score} for stand in stands]
    for name in dict.fromkeys(name for part in parts for name in part):
        yield (name, *_beside([part.get(name) for part in parts]))
    for name in dict.fromkeys(name for stand in stands for name in stand.facts):
        title = "margin of the posterior" if name == "margin" else name.replace("_", " ")
        yield (title, *_beside([stand.facts.get(name) for stand in stands]))
    likely = {
        name for stand in stands for name in sorted(stand.posterior, key=stand.posterior.__getitem__)[-_LIKELIEST:]
    }
    for name in [name for name in stands[0].posterior or stands[-1].posterior if name in likely]:
        yield (f"posterior of {name}", *_beside([stand.posterior.get(name) for stand in stands]))


def _beside(values: "Sequence[Any]") -> Iterator[str]:
    """The values, and the difference where there are two numbers."""
    numbers = [value for value in values if isinstance(value, float)]
    for value in values:
        yield tables.number(value) if isinstance(value, float) else "" if value is None else _in_words(value)
    if len(values) == 2:
        yield f"{numbers[0] - numbers[1]:+.4g}" if len(numbers) == 2 else ""


def _in_words(value: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in value.items()) if isinstance(value, dict) else str(value)


_LIKELIEST = 2  # classes of each sample whose posterior is shown


def show_history(history: Mapping[str, Any], *, as_json: bool = False) -> None:
    """What `audit.history` tells: where the sample is now, then an event a row, what waits in the inbox last."""
    if as_json:
        print_json(history)
        return
    console = tables.console()
    stands = f"{history['state']} {history['label'] or ''}".rstrip()
    tables.say_title(console, f"{history['sample_id']}:", stands)
    tables.say_title(console, "sha256", history["sha256"])
    rows = [(event["round"], event["what"], _details(event)) for event in history["events"]]
    rows += [("", "in the inbox", _label_details(waiting)) for waiting in history["waiting"]]
    tables.show_table(console, [("round", "right"), ("what", "left"), ("details", "left")], rows)


def _details(event: Mapping[str, Any]) -> str:
    if event["what"] == "added":
        return str(event["detail"]).partition(", sha256")[0]
    if event["what"] == "class":
        return ", ".join([event["detail"], f"by {event['author']}", event["when"], *filter(None, [event["reason"]])])
    if event["what"] == "requested":
        drawn = event["probability"]
        return f"rank {event['rank']}" + (f", drawn uniformly, with probability {drawn:.3g}" if drawn else "")
    if event["what"] == "asked again":
        return f"{event['reason']}: {event['label'] or 'its rejection'} stood"
    if event["what"] == "candidate":
        numbers = {"score": event["score"], "log likelihood": event["log_likelihood"]}
        numbers |= {"prior": event["prior"], "precision": event["precision"]}
        parts = [f"{name} {tables.number(value)}" for name, value in numbers.items() if value is not None]
        named = {"predicted": event["predicted_class"], "VAE's class": event["vae_class"]}
        parts += [f"{name} {value}" for name, value in named.items() if value is not None]
        return f"{event['strategy']}: {', '.join(parts)}" + ("" if event["rank"] else "; not picked")
    return _label_details(event)


def _label_details(event: Mapping[str, Any]) -> str:
    label = event["label"] or (None if event.get("what") == "rejected" else "rejected")
    parts = [label, f"by {event['annotator']}", event["when"], f"from {event['source']}"]
    parts += [f"imported {event['imported']}"] if "imported" in event else []
    return ", ".join(part for part in parts if part)


def show_curve(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """What `audit.curve` tells: a row a round, shares in per cent with their 95 % intervals."""
    if as_json:
        print_json(rows)
        return
    console = tables.console()
    if not rows:
        tables.say(console, "no round has trained yet (`vabal round`)")
        return
    measures = ("accuracy", "balanced_accuracy", "macro_f1")
    columns: list[tables.Column] = [
        *((name, "right") for name in ("round", "labels", "holdout")),
        *((name, "right") for name in ("accuracy", "bal. accuracy", "macro-F1")),
        ("seconds", "right"),
    ]
    told = [
        (
            *(row["round"], row["labels"], row["holdout"]),
            *(_per_cent(row[name]) for name in measures),
            "" if row["seconds"] is None else f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    tables.show_table(console, columns, told)
    tables.say(console, "per cent of the holdout's labelled images, with 95 % intervals of what so few leave open")


def show_forecast(found: Sequence["Forecast"], *, as_json: bool = False) -> None:
    """What `audit.forecast` tells: a line for each number of labels."""
    if as_json:
        print_json([each.to_json() for each in found])
        return
    console, first = tables.console(), found[0]
    for each in found:
        tables.say(console, str(each))
    tables.say(
        console,
        f"of balanced accuracy on the holdout, now {100 * first.value:.1f} with {first.labels} labels; the curve of "
        f"{first.rounds} round{'s' * (first.rounds > 1)} continued, with 90 % intervals",
    )


def _per_cent(measure: Mapping[str, Any]) -> str:
    if measure["value"] is None:
        return ""
    span = "" if measure["low"] is None else f" [{100 * measure['low']:.0f}, {100 * measure['high']:.0f}]"
    return f"{100 * measure['value']:.1f}{span}"


def show_control(arms: "Sequence[Arm]", compared: "Sequence[Drift]", *, as_json: bool = False) -> None:
    """What `audit.control` and `audit.drift` tell."""
    if as_json:
        print_json({"arms": [asdict(arm) for arm in arms], "drift": [asdict(night) for night in compared]})
        return
    console = tables.console()
    if arms:
        _show_arms(console, arms)
    else:
        tables.say(console, "no round has drawn a control arm yet (selection.control_share)")
    if compared:
        _show_drift(console, compared)


def _show_drift(console: "Console", compared: "Sequence[Drift]") -> None:
    """A row a night that took in enough images."""
    heads = ("round", "new images", "earlier", "distance", "p")
    rows = [
        (str(night.round), str(night.new), str(night.earlier), f"{night.distance:.3f}", f"{night.p_value:.3f}")
        for night in compared
    ]
    tables.show_table(console, [(head, "right") for head in heads], rows)
    for night in compared:
        if night.found:
            tables.say(console, str(night))
    tables.say(
        console,
        "energy distance of a night's new images to those before, beyond chance (0 to 1), by 999 permutations; of "
        "twenty nights without any change one has a p of 0.05 or less",
    )


def _show_arms(console: "Console", arms: "Sequence[Arm]") -> None:
    """A row a round, all of them together below; the classes' shares, and how the picks compare."""
    from vabal.audit.control import by_class
    from vabal.pages.night.control import in_words  # which takes the pages' pictures

    rows = [(arm.name, f"{arm.answered} of {arm.drawn}", _per_cent(asdict(arm.accuracy))) for arm in arms]
    tables.show_table(console, [(head, "right") for head in ("round", "labels", "model right")], rows)
    told = by_class(arms)
    shares = [(name, *(_per_cent(asdict(arm.classes[name])) for arm in told.values())) for name in arms[-1].classes]
    if told:
        tables.show_table(console, [("class", "left"), *((head, "right") for head in told)], shares)
    tables.say(console, "per cent of what could be picked those nights, with 95 % intervals, from a uniform draw")
    for line in in_words(arms[-1]):
        tables.say(console, line)


def show_report(report: "AuditReport", *, as_json: bool = False) -> None:
    """What `audit.verify` found; one line if it is nothing."""
    if as_json:
        print_json(report.to_json())
        return
    console = tables.console()
    checked = f"{report.rounds} rounds, {report.files} files, {report.images} images"
    for note in report.notes:
        tables.say(console, f"note: {note}")
    if report.ok:
        what = "every digest, the chain, the pools' arithmetic and every pick"
        tables.say(console, f"intact: {checked}; {what}{f' from round {report.since} on' if report.since else ''}")
        return
    rows = [(finding.round, finding.file, finding.what) for finding in report.findings]
    tables.show_table(console, [("round", "right"), ("file", "whole"), ("what", "left")], rows)
    number = len(report.findings)
    tables.say(console, f"NOT intact: {number} finding{'s' if number > 1 else ''} in {checked}")
