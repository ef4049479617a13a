"""Labels out and in: requests as images with a CSV and Label Studio's tasks; answers as CSV or as its export."""

import base64
import csv
import hashlib
import io
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import quoteattr

import pandas as pd

from vabal import bounds, delimited
from vabal import inbox as inboxes
from vabal.errors import UserError
from vabal.images import encoded_many, extension, for_browser, safe_name
from vabal.inbox import ImportReport
from vabal.pools import Pools, apply_labels, open_requests
from vabal.progress import track
from vabal.store import sync_folder, write_bytes

_CHOICE: Final = "label"  # the name of the choices in Label Studio
_README: Final = """\
requests.csv   one line an image: sample_id,label,annotator,image. Fill in label and annotator.
images/        the images, as they came.

label and annotator filled in   the label is taken in.
label empty, annotator filled   the image is rejected: it cannot be labelled, and is not asked for again.
both empty                      not answered yet: the line is skipped, the request stays open.

Classes: {classes}

Hand the file back with `vabal labels import requests.csv`: as often as you like, also when it is filled in part. A
newer label for an image replaces an older one; what somebody said before and says again is no newer one. Labels that
were given before the file comes back may say when, in a column labeled_at (2026-01-31T09:30:00Z).

With Label Studio: make a project, paste label_config.xml under Settings > Labeling Interface > Code, import
label_studio.json, label, export as JSON, JSON-MIN or CSV, and hand that file back. A task that was skipped there is a
rejection; only JSON tells of these.
"""


# --- out --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExportReport:
    """What was written for people to label."""

    folder: str
    requests: int
    holdout: int

    def lines(self) -> list[str]:
        """For people."""
        if not self.requests:
            return ["no open requests: nothing to label"]
        held = f" ({self.holdout} of them for the holdout)" if self.holdout else ""
        return [f"{self.requests} requests{held} in {self.folder}: fill in requests.csv, or use label_studio.json"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export_requests(pools: Pools, data: Path, folder: Path, inbox: Path | None = None) -> ExportReport:
    """Write the open requests into the new or empty folder `folder`, whole or not at all.

    `images/` with the original files, `requests.csv` (sample_id, label, annotator, image), `label_studio.json` and
    `label_config.xml`, and a README. Requests that `inbox`, if given, has an answer for are left out.
    Raises UserError if the folder has something in it. Nothing is written where no request is open.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder} is not an empty folder: name another one")
    if inbox is not None:
        events, _ = inboxes.read(inbox, inboxes.pending(inbox))
        pools, _ = apply_labels(pools, events, 0)
    requests = open_requests(pools)
    report = ExportReport(str(folder), len(requests), int((requests["purpose"] == "holdout").sum()))
    if requests.empty:
        return report
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}.tmp")
    try:
        (temporary / "images").mkdir(parents=True)
        files = _write_images(pools, data, requests, temporary)
        _write_csv(requests, files, temporary / "requests.csv")
        _write_tasks(requests, files, temporary)
        _write_text(temporary / "label_config.xml", label_config(pools.classes))
        _write_text(temporary / "README.txt", _README.format(classes=", ".join(pools.classes)))
        temporary.replace(folder.absolute())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.absolute().parent)
    return report


def _write_images(pools: Pools, data: Path, requests: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Write the requested images; returns their paths relative to the folder, by sample_id."""
    rows = pools.catalog[pools.catalog["sample_id"].isin(set(requests["sample_id"]))]
    files: dict[str, str] = {}
    taken: set[str] = set()
    for sample_id, content in track(encoded_many(data, rows), "export images", len(rows)):
        name = safe_name(sample_id)
        if name != sample_id or name.lower() in taken:  # names that some systems hold for the same
            name = safe_name(sample_id, hashlib.sha256(sample_id.encode()).hexdigest())
        taken.add(name.lower())
        files[sample_id] = f"images/{name}{extension(content)}"
        (folder / files[sample_id]).write_bytes(content)
    return files


def _write_csv(requests: pd.DataFrame, files: dict[str, str], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample_id", "label", "annotator", "image"])
        writer.writerows([sample_id, "", "", files[sample_id]] for sample_id in requests["sample_id"])


def _write_tasks(requests: pd.DataFrame, files: dict[str, str], folder: Path) -> None:
    """Label Studio's tasks. The images travel inside, so that it needs no access to files."""
    with (folder / "label_studio.json").open("w", encoding="utf-8") as file:
        for index, sample_id in enumerate(requests["sample_id"]):
            media, content = for_browser((folder / files[sample_id]).read_bytes())
            picture = f"data:{media};base64,{base64.b64encode(content).decode()}"
            task = {"data": {"image": picture, "sample_id": sample_id, "file": files[sample_id]}}
            file.write(("[\n" if index == 0 else ",\n") + json.dumps(task, ensure_ascii=False))
        file.write("\n]\n")


def label_config(classes: Sequence[str]) -> str:
    """Label Studio's labelling interface for these classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <Choices name="{_CHOICE}" toName="image" choice="single" showInline="true">\n{choices}\n  </Choices>\n'
        "</View>\n"
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


# --- in ---------------------------------------------------------------------------------------------------------------


def import_labels(inbox: Path, pools: Pools, file: Path, when: datetime, *, reject: bool = False) -> ImportReport:
    """Take a file of answers into the inbox, all of it or nothing; see `inbox.take_labels`.

    Raises UserError if the file is missing, has no known format, or has wrong lines.
    """
    try:
        content = bounds.read_file(file, bounds.LABELS_BYTES)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    answers = read_answers(content, str(file))
    return inboxes.take_labels(inbox, pools, answers, file=file.name, content=content, when=when, reject=reject)


def read_answers(content: bytes, name: str) -> pd.DataFrame:
    """The answers in a file: columns where, sample_id, label, annotator, problem, labeled_at; null where there is none.

    CSV with the columns sample_id, label and (if wanted) annotator and labeled_at or updated_at, in any order, or the
    first three without a header, as `delimited` reads it. Or Label Studio's export as JSON, JSON-MIN or CSV, which give
    the same answers. Of these only the choices named `label` count, never predictions or drafts; an annotation without
    such a choice is no answer; of a sample that was skipped and labelled the labels count.
    Raises UserError if it is none of these.
    """
    text = delimited.text_of(content, name)
    rows = list(_from_json(text, name) if text.lstrip()[:1] in ("[", "{") else _from_csv(text, name))
    table = pd.DataFrame(rows, columns=_Answer._fields, dtype=object).drop(columns="number")
    if table.empty:
        raise UserError(f"{name}: no labels in it; expected lines sample_id,label,annotator or Label Studio's JSON")
    return table


class _Answer(NamedTuple):
    where: str
    sample_id: str
    label: str | None = None
    annotator: str | None = None
    problem: str | None = None
    labeled_at: datetime | None = None
    number: int = 0  # of the annotation: Label Studio counts upwards


_COLUMNS: Final = ("sample_id", "label", "annotator", "labeled_at", "updated_at", "created_at")
_SKIPPED: Final = ("was_cancelled", "skipped")


def _from_csv(text: str, name: str) -> Iterator[_Answer]:
    lines = delimited.lines_of(text, name, _COLUMNS)
    if not lines:
        return
    header = delimited.header_of(lines[0])
    if "sample_id" in header or "label" in header:
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
        yield _Answer(f"line {line.number}", columns.cell(line, "sample_id"), label, annotator, problem, time)


def _wrong(problem: str | None) -> dict[str, Any]:
    return {} if problem is None else {"problem": problem}


def _from_json(text: str, name: str) -> Iterator[_Answer]:
    try:
        tasks = bounds.parse_json(text)
    except ValueError as error:
        raise UserError(f"{name}: not valid JSON: {error}") from None
    if not isinstance(tasks, list):
        raise UserError(f"{name}: expected Label Studio's export, a list of tasks")
    answers: list[_Answer] = []
    for number, task in enumerate(tasks, start=1):
        where = f"task {number}"
        if not isinstance(task, dict):
            answers.append(_Answer(where, "", problem="not a task of Label Studio"))
        elif "annotations" in task or "data" in task:
            answers += _from_task(where, task)
        else:
            answers.append(_from_short_task(where, task))
    if not any(answer.label or answer.annotator or answer.problem for answer in answers):
        others = sorted({other for task in tasks for other in _other_controls(task)})
        if others:
            raise UserError(
                f"{name}: its choices are named {', '.join(others)}, not {_CHOICE}: label with the labelling interface "
                "of label_config.xml, which `vabal labels export` writes"
            )
    yield from _settled(answers)


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
        ours = [region.get("value") for region in regions if region.get("from_name") == _CHOICE]
        yield _opinion(where, sample_id, ours, item, item.get("completed_by"), item.get("id"))
    if not given:
        yield _Answer(where, sample_id)


def _from_short_task(where: str, task: dict[str, Any]) -> _Answer:
    """An annotation of the JSON-MIN or CSV export."""
    sample_id = _sample_id(task.get("sample_id"))
    if sample_id is None:
        return _Answer(where, "", problem="no sample_id: not a task that `vabal labels export` wrote")
    return _opinion(where, sample_id, task.get(_CHOICE), task, task.get("annotator"), task.get("annotation_id"))


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
        if isinstance(region, dict) and region.get("type") == "choices" and region.get("from_name") != _CHOICE
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


# --- an oracle in the place of people ---------------------------------------------------------------------------------


def answer(requests: Path, oracle: Path, annotator: str = "oracle") -> int:
    """Fill in a `requests.csv` from an oracle's labels (CSV: sample_id, label), as people would; returns how many.

    Lines that are filled in already, or that the oracle does not know, stay as they are.
    """
    columns, lines = _table(oracle)
    labels = {columns.cell(line, "sample_id"): columns.cell(line, "label") for line in lines}
    columns, lines = _table(requests)
    rows = [[*line.cells, *[""] * (len(columns.header) - len(line.cells))] for line in lines]
    filled = 0
    for line, row in zip(lines, rows, strict=True):
        label = labels.get(columns.cell(line, "sample_id"))
        if label is not None and not columns.cell(line, "label") and not columns.cell(line, "annotator"):
            row[columns.places["label"]], row[columns.places["annotator"]] = label, annotator
            filled += 1
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows([columns.header, *rows])
    write_bytes(requests, buffer.getvalue().encode())
    return filled


def _table(path: Path) -> tuple[delimited.Columns, list[delimited.Line]]:
    name, wanted = str(path), ("sample_id", "label", "annotator")
    lines = delimited.lines_of(delimited.text_of(path.read_bytes(), name), name, wanted)
    header = delimited.header_of(lines[0]) if lines else []
    return delimited.Columns.of(header, wanted, ("sample_id", "label"), name), lines[1:]
