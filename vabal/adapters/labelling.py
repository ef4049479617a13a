"""Labels out and in: requests as images with a CSV and Label Studio's tasks; answers as CSV or as its export."""

import base64
import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import quoteattr

import pandas as pd

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
later label for an image replaces an earlier one.

With Label Studio: make a project, paste label_config.xml under Settings > Labeling Interface > Code, import
label_studio.json, label, export as JSON, and hand that file back. A task that was skipped there is a rejection.
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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder: name another one")
    if inbox is not None:
        events, _ = inboxes.read(inbox, inboxes.pending(inbox))
        pools, _ = apply_labels(pools, events, 0)
    requests = open_requests(pools)
    report = ExportReport(str(folder), len(requests), int((requests["purpose"] == "holdout").sum()))
    if requests.empty:
        return report
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
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


def import_labels(inbox: Path, pools: Pools, file: Path, when: datetime) -> ImportReport:
    """Take a file of answers into the inbox, all of it or nothing; see `inbox.take_labels`.

    Raises UserError if the file is missing, has no known format, or has wrong lines.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    answers = read_answers(content, str(file))
    return inboxes.take_labels(inbox, pools, answers, file=file.name, content=content, when=when)


def read_answers(content: bytes, name: str) -> pd.DataFrame:
    """The answers in a file: columns where, sample_id, label, annotator, problem; null where there is none.

    CSV with the columns sample_id, label and (if wanted) annotator in any order, or in this one without a header;
    separated by commas, semicolons or tabs; UTF-8, with or without a byte-order mark, or UTF-16 with one. Or Label
    Studio's export as JSON or JSON-MIN. Raises UserError if it is neither.
    """
    text = _text(content, name)
    rows = _from_json(text, name) if text.lstrip()[:1] in ("[", "{") else _from_csv(text, name)
    table = pd.DataFrame(rows, columns=["where", "sample_id", "label", "annotator", "problem"], dtype=object)
    if table.empty:
        raise UserError(f"{name}: no labels in it; expected lines sample_id,label,annotator or Label Studio's JSON")
    return table


_Answer = tuple[str, str, str | None, str | None, str | None]


def _text(content: bytes, name: str) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file in UTF-8: save it as CSV UTF-8") from None


def _from_csv(text: str, name: str) -> Iterator[_Answer]:
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    columns: list[str] | None = None
    try:
        for cells in reader:
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if columns is None:
                columns, is_header = _columns(values, name)
                if is_header:
                    continue
            by_name = dict(zip(columns, values, strict=False))
            problem = f"{len(values)} cells instead of {len(columns)}" if len(values) > len(columns) else None
            label, annotator = by_name.get("label") or None, by_name.get("annotator") or None
            yield f"line {reader.line_num}", by_name.get("sample_id", ""), label, annotator, problem
    except csv.Error as error:
        raise UserError(f"{name}: line {reader.line_num}: {error}") from None


def _columns(values: list[str], name: str) -> tuple[list[str], bool]:
    """Names of the columns, and whether the first line is a header."""
    header = [value.lower() for value in values]
    if "sample_id" in header or "label" in header:
        missing = [column for column in ("sample_id", "label") if column not in header]
        if missing:
            raise UserError(f"{name}: no column {missing[0]}; the columns are sample_id,label,annotator")
        return header, True
    if len(header) not in (2, 3):
        raise UserError(f"{name}: the first line must name the columns sample_id,label,annotator")
    return ["sample_id", "label", "annotator"], False


def _from_json(text: str, name: str) -> Iterator[_Answer]:
    try:
        tasks = json.loads(text)
    except ValueError as error:
        raise UserError(f"{name}: not valid JSON: {error}") from None
    if not isinstance(tasks, list):
        raise UserError(f"{name}: expected Label Studio's export, a list of tasks")
    for number, task in enumerate(tasks, start=1):
        where = f"task {number}"
        if not isinstance(task, dict):
            yield where, "", None, None, "not a task of Label Studio"
        elif "annotations" in task or "data" in task:
            yield from _from_task(where, task)
        else:
            yield _from_short_task(where, task)


def _from_task(where: str, task: dict[str, Any]) -> Iterator[_Answer]:
    """A task of the JSON export: its annotations by time; those skipped count only where there is no other."""
    data = task.get("data")
    sample_id = data.get("sample_id") if isinstance(data, dict) else None
    annotations = task.get("annotations") or []
    if not isinstance(sample_id, str) or not isinstance(annotations, list):
        yield where, "", None, None, "no data.sample_id: not a task that `vabal labels export` wrote"
        return
    given = [item for item in annotations if isinstance(item, dict)]
    kept = [item for item in given if not item.get("was_cancelled")] or given
    for item in sorted(kept, key=lambda item: str(item.get("updated_at") or item.get("created_at") or "")):
        annotator = _person(item.get("completed_by"))
        if item.get("was_cancelled"):
            yield where, sample_id, None, annotator, None
            continue
        label, problem = _choice(item.get("result"))
        yield where, sample_id, label, annotator if label else None, problem
    if not kept:
        yield where, sample_id, None, None, None


def _choice(result: Any) -> tuple[str | None, str | None]:
    """The one choice of an annotation, or what is wrong with it; neither where nothing was chosen."""
    regions = result if isinstance(result, list) else []
    values = [item.get("value") for item in regions if isinstance(item, dict) and item.get("type") == "choices"]
    chosen = [name for value in values if isinstance(value, dict) for name in value.get("choices") or []]
    if len(chosen) > 1:
        return None, f"{len(chosen)} choices where one is expected"
    return (str(chosen[0]), None) if chosen else (None, None)


def _from_short_task(where: str, task: dict[str, Any]) -> _Answer:
    """A task of the JSON-MIN export."""
    sample_id, label = task.get("sample_id"), task.get(_CHOICE)
    if not isinstance(sample_id, str):
        return where, "", None, None, "no sample_id: not a task that `vabal labels export` wrote"
    if label is not None and not isinstance(label, str):
        return where, sample_id, None, None, "several choices where one is expected"
    return where, sample_id, label or None, _person(task.get("annotator")) if label else None, None


def _person(value: Any) -> str:
    """Who annotated: an e-mail address where the export has one, else the user's number."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return "label-studio" if value is None else value if isinstance(value, str) else f"label-studio-{value}"


# --- an oracle in the place of people ---------------------------------------------------------------------------------


def answer(requests: Path, oracle: Path, annotator: str = "oracle") -> int:
    """Fill in a `requests.csv` from an oracle's labels (CSV: sample_id, label), as people would; returns how many.

    Lines that are filled in already, or that the oracle does not know, stay as they are.
    """
    with oracle.open(encoding="utf-8", newline="") as file:
        labels = {row["sample_id"]: row["label"] for row in csv.DictReader(file)}
    with requests.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
        names = list(reader.fieldnames or [])
    filled = 0
    for row in rows:
        if not row["label"] and not row["annotator"] and row["sample_id"] in labels:
            row.update(label=labels[row["sample_id"]], annotator=annotator)
            filled += 1
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(requests, buffer.getvalue().encode())
    return filled
