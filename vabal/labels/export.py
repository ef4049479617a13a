"""Requests out: images with a CSV, and Label Studio's tasks."""

import base64
import csv
import json
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import quoteattr

import pandas as pd

from vabal.errors import UserError
from vabal.files import sha256, sync_folder
from vabal.images import encoded_many, safe_name
from vabal.images.shards import extension, for_browser
from vabal.labels import arrivals
from vabal.labels.answers import CHOICE
from vabal.pools import Pools, apply_labels, open_requests
from vabal.progress import track

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
        events, _ = arrivals.read(inbox, arrivals.pending(inbox))
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
            name = safe_name(sample_id, sha256(sample_id.encode()))
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
        f'  <Choices name="{CHOICE}" toName="image" choice="single" showInline="true">\n{choices}\n  </Choices>\n'
        "</View>\n"
    )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
