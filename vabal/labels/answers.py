"""Answers in: a CSV, or Label Studio's export."""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pandas as pd

from vabal.errors import UserError
from vabal.labels import delimited, listings
from vabal.labels import inbox as inboxes
from vabal.labels.inbox import ImportReport
from vabal.pools import Pools
from vabal.settings import bounds

CHOICE: Final = "label"  # the name of the choices in Label Studio


# --- in ---------------------------------------------------------------------------------------------------------------


def import_labels(inbox: Path, pools: Pools, file: Path, when: datetime, *, reject: bool = False) -> ImportReport:
    """Take a file of answers into the inbox, all of it or nothing; see `inbox.take_labels`.

    Of a folder, the table of labels on top of it. Raises UserError if the file is missing, has no known format, or has
    wrong lines.
    """
    if file.is_dir():
        file = _table_in(file)
    try:
        content = bounds.read_file(file, bounds.LABELS_BYTES)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    answers = read_answers(content, str(file))
    return inboxes.take_labels(inbox, pools, answers, file=file.name, content=content, when=when, reject=reject)


def _table_in(folder: Path) -> Path:
    found = [folder / name for name in ("requests.csv", *listings.TABLES) if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: no {', '.join(listings.TABLES)} in this folder: {listings.WAY}")
    return found[0]


def read_answers(content: bytes, name: str) -> pd.DataFrame:
    """The answers in a file: columns where, sample_id, label, annotator, problem, labeled_at, round; null where there
    is none.

    CSV with the columns sample_id (or file_name), label and (if wanted) annotator, labeled_at or updated_at and round
    (the request that it answers), in any order, or the first three without a header, as `delimited` reads it; or lines
    of JSON with these keys but the last, as `metadata.jsonl`. Or Label Studio's export as JSON, JSON-MIN or CSV, which
    give the same answers. Of these only the choices named `label` count, never predictions or drafts; an annotation
    without such a choice is no answer; of a sample that was skipped and labelled the labels count.
    Raises UserError if it is none of these.
    """
    text = delimited.text_of(content, name)
    listings.refuse_other_tools(text, name)
    read = {"[": _from_json, "{": _from_lines}.get(text.lstrip()[:1], _from_csv)
    table = _table(read(text, name))
    if table.empty:
        raise UserError(f"{name}: no labels in it; expected lines sample_id,label,annotator or Label Studio's JSON")
    return table


def answers_of(tasks: Iterable[Any]) -> pd.DataFrame:
    """The answers in tasks as Label Studio's JSON export has them, with the columns of `read_answers`."""
    return _table(_settled(_each_of((f"task {_number(task)}", task) for task in tasks)))


def opinions_in(tasks: Iterable[Any]) -> pd.DataFrame:
    """Who says something of which sample: sample_id and annotator, null in a row for a task that nobody answered."""
    table = _table(_each_of((f"task {_number(task)}", task) for task in tasks))
    return table[["sample_id", "annotator"]].astype(object).where(table[["sample_id", "annotator"]].notna(), None)


def _number(task: Any) -> Any:
    return task.get("id") if isinstance(task, dict) else None


def _table(rows: "Iterable[_Answer]") -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=_Answer._fields, dtype=object).drop(columns="number")


class _Answer(NamedTuple):
    where: str
    sample_id: str
    label: str | None = None
    annotator: str | None = None
    problem: str | None = None
    labeled_at: datetime | None = None
    number: int = 0  # of the annotation: Label Studio counts upwards
    round: int | None = None  # the request that it answers


_COLUMNS: Final = ("sample_id", "label", "annotator", "labeled_at", "updated_at", "created_at", "round")
_SKIPPED: Final = ("was_cancelled", "skipped")


def _from_csv(text: str, name: str) -> Iterator[_Answer]:
    lines = delimited.lines_of(text, name, (*_COLUMNS, *listings.FILE_COLUMNS))
    if not lines:
        return
    header = delimited.header_of(lines[0])
    if "sample_id" in header or "label" in header:
        header = _with_ids(header)
        missing = [column for column in ("sample_id", "label") if column not in header]
        if missing:
            raise UserError(f"{name}: no column {missing[0]}; the columns are sample_id,label,annotator")
        lines = lines[1:]
    elif len(header) in (2, 3):
        header = ["sample_id", "label", "annotator"]
    else:
        raise UserError(f"{name}: the first line must name the columns sample_id,label,annotator")
    wanted = (*_COLUMNS, *_SKIPPED, "annotation_id")
    columns = delimited.Columns.of(header, wanted, ("sample_id", "label"), name)
    if "annotation_id" in columns:
        tasks = ({column: columns.cell(line, column) for column in wanted} for line in lines)
        answers = [
            _from_short_task(f"line {line.number}", task)._replace(**_wrong(columns.problem(line)))
            for line, task in zip(lines, tasks, strict=True)
        ]
        yield from _settled(answers)
        return
    for line in lines:
        label, annotator = columns.cell(line, "label") or None, columns.cell(line, "annotator") or None
        time, problem = _time(columns.cell(line, "labeled_at") or columns.cell(line, "updated_at"))
        problem = columns.problem(line) or problem
        asked = columns.cell(line, "round")
        number = int(asked) if asked.isascii() and asked.isdecimal() and len(asked) < 10 else None
        sample_id = columns.cell(line, "sample_id")
        yield _Answer(f"line {line.number}", sample_id, label, annotator, problem, time, round=number)


def _with_ids(header: list[str]) -> list[str]:
    """The names of the columns; where there is no sample_id, the file's name is one."""
    file = next((column for column in listings.FILE_COLUMNS if column in header), None)
    if "sample_id" in header or "annotation_id" in header:
        return header
    return ["sample_id" if column == file else column for column in header]


def _from_lines(text: str, name: str) -> Iterator[_Answer]:
    """An object a line, as in `metadata.jsonl`."""
    for number, row in listings.lines_of_json(text, name):
        sample_id, missing = listings.text_in(row, "sample_id", *listings.FILE_COLUMNS)
        label, wrong = listings.text_in(row, "label")
        annotator, odd = listings.text_in(row, "annotator")
        time, late = _time(row.get("labeled_at") or row.get("updated_at"))
        missing = missing or (None if sample_id else "no file_name")
        problem = missing or wrong or odd or late
        yield _Answer(f"line {number}", sample_id, label or None, annotator or None, problem, time)


def _wrong(problem: str | None) -> dict[str, Any]:
    return {} if problem is None else {"problem": problem}


def _from_json(text: str, name: str) -> Iterator[_Answer]:
    try:
        tasks = bounds.parse_json(text)
    except ValueError as error:
        raise UserError(f"{name}: not valid JSON: {error}") from None
    if not isinstance(tasks, list):
        raise UserError(f"{name}: expected Label Studio's export, a list of tasks")
    answers = _each_of((f"task {number}", task) for number, task in enumerate(tasks, start=1))
    if not any(answer.label or answer.annotator or answer.problem for answer in answers):
        others = sorted({other for task in tasks for other in _other_controls(task)})
        if others:
            raise UserError(
                f"{name}: its choices are named {', '.join(others)}, not {CHOICE}: label with the labelling interface "
                "of label_config.xml, which `vabal labels export` writes"
            )
    yield from _settled(answers)


def _each_of(tasks: Iterable[tuple[str, Any]]) -> list[_Answer]:
    answers: list[_Answer] = []
    for where, task in tasks:
        if not isinstance(task, dict):
            answers.append(_Answer(where, "", problem="not a task of Label Studio"))
        elif "annotations" in task or "data" in task:
            answers += _from_task(where, task)
        else:
            answers.append(_from_short_task(where, task))
    return answers


def _settled(answers: list[_Answer]) -> list[_Answer]:
    """Sample by sample, the oldest opinion first; skipped only where there is no label."""
    labelled = {answer.sample_id for answer in answers if answer.label is not None}
    order = {answer.sample_id: place for place, answer in reversed(list(enumerate(answers)))}
    latest = datetime.max.replace(tzinfo=UTC)
    kept = [
        answer
        for answer in answers
        if answer.label or answer.problem or not answer.annotator or answer.sample_id not in labelled
    ]
    return sorted(kept, key=lambda answer: (order[answer.sample_id], answer.labeled_at or latest, answer.number))


def _from_task(where: str, task: dict[str, Any]) -> Iterator[_Answer]:
    """A task of the JSON export."""
    data = task.get("data")
    sample_id = _sample_id(data.get("sample_id")) if isinstance(data, dict) else None
    annotations = task.get("annotations") or []
    if sample_id is None or not isinstance(annotations, list):
        yield _Answer(where, "", problem="no data.sample_id: not a task that `vabal labels export` wrote")
        return
    given = [item for item in annotations if isinstance(item, dict)]
    for item in given:
        result = item.get("result")
        regions = [region for region in result if isinstance(region, dict)] if isinstance(result, list) else []
        ours = [region.get("value") for region in regions if region.get("from_name") == CHOICE]
        yield _opinion(where, sample_id, ours, item, item.get("completed_by"), item.get("id"))
    if not given:
        yield _Answer(where, sample_id)


def _from_short_task(where: str, task: dict[str, Any]) -> _Answer:
    """An annotation of the JSON-MIN or CSV export."""
    sample_id = _sample_id(task.get("sample_id"))
    if sample_id is None:
        return _Answer(where, "", problem="no sample_id: not a task that `vabal labels export` wrote")
    return _opinion(where, sample_id, task.get(CHOICE), task, task.get("annotator"), task.get("annotation_id"))


def _opinion(where: str, sample_id: str, value: Any, about: dict[str, Any], person: Any, number: Any) -> _Answer:
    """What one annotation says: a label, that the image was skipped, or nothing."""
    time, problem = _time(about.get("updated_at") or about.get("created_at"))
    count = int(number) if str(number or "").isdecimal() else 0
    answer = _Answer(where, sample_id, problem=problem, labeled_at=time, number=count)
    if any(str(about.get(name) or "").lower() in ("true", "1") for name in _SKIPPED):
        return answer._replace(annotator=_person(person))
    chosen = list(dict.fromkeys(_choices(value)))
    if len(chosen) > 1:
        return answer._replace(problem=f"{len(chosen)} choices where one is expected: {', '.join(chosen[:3])}")
    return answer._replace(label=chosen[0], annotator=_person(person)) if chosen else answer


def _choices(value: Any) -> list[str]:
    """The names chosen, as the formats write them: a name, a list, or {"choices": ...} of these, in CSV as JSON."""
    if isinstance(value, dict):
        return _choices(value.get("choices"))
    if isinstance(value, list):
        return [name for item in value for name in _choices(item)]
    text = "" if value is None else _text(value).strip()
    if text[:1] in ("[", "{"):
        try:
            inner = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        if isinstance(inner, dict | list) and "choices" in text:
            return _choices(inner)
    return [text] if text else []


def _other_controls(task: Any) -> set[str]:
    """Names of choices in a task of the JSON export that are not ours."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    results = [item.get("result") for item in annotations or [] if isinstance(item, dict)]
    regions = [region for result in results if isinstance(result, list) for region in result]
    return {
        str(region.get("from_name"))
        for region in regions
        if isinstance(region, dict) and region.get("type") == "choices" and region.get("from_name") != CHOICE
    }


def _sample_id(value: Any) -> str | None:
    """As text; None where there is none. Label Studio makes numbers of ids that look like one."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return _text(value) if is_number or (isinstance(value, str) and value) else None


def _text(value: Any) -> str:
    """As text that can be stored: JSON may hold halves of characters."""
    return str(value).encode("utf-8", "replace").decode()


def _person(value: Any) -> str:
    """Who annotated: an e-mail address where the export has one, else the user's number."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    text = "" if value is None else _text(value).strip()
    return f"label-studio-{text}" if text.isdecimal() else text or "label-studio"


def _time(value: Any) -> tuple[datetime | None, str | None]:
    """A time in ISO 8601, of UTC where it names no zone; None where there is none. Or what is wrong with it."""
    text = str(value or "").strip()
    if not text:
        return None, None
    try:
        time = datetime.fromisoformat(text)
        return (time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)), None
    except (ValueError, OverflowError):
        return None, f"{text!r} is no time as 2026-01-31T09:30:00Z"
