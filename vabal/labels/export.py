"""Requests out: images with a CSV, and Label Studio's tasks."""

import base64
import csv
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import quoteattr

import pandas as pd

from vabal.errors import UserError
from vabal.files import sync_folder
from vabal.images import encoded_many
from vabal.images.bare import without_metadata
from vabal.images.shards import extension, for_browser
from vabal.labels import arrivals
from vabal.labels.answers import CHOICE
from vabal.labels.classes import upcoming
from vabal.labels.names import blind_names
from vabal.pools import Pools, apply_labels, open_requests
from vabal.progress import track

_README: Final = """\
requests.csv   one line an image: sample_id,label,annotator,image,round. Fill in label and annotator; leave round, the
               request that the line answers, as it is.
images/        the images. Their names are blind: they tell no class, and neither do the files.

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
    again: int = 0  # of them are asked about once more

    def lines(self) -> list[str]:
        """For people."""
        if not self.requests:
            return ["no open requests: nothing to label"]
        parts = [f"{self.holdout} of them for the holdout"] if self.holdout else []
        parts += [f"{self.again} asked about again"] if self.again else []
        held = f" ({', '.join(parts)})" if parts else ""
        return [f"{self.requests} requests{held} in {self.folder}: fill in requests.csv, or use label_studio.json"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export_requests(pools: Pools, data: Path, folder: Path, inbox: Path | None = None) -> ExportReport:
    """Write the open requests into the new or empty folder `folder`, whole or not at all.

    `images/`, `requests.csv` (sample_id, label, annotator, image, round), `label_studio.json` and `label_config.xml`,
    and a README. Images go by their blind names, in the order of these, and their files say nothing else (`bare`).
    Requests that `inbox`, if given, has an answer for are left out.
    Raises UserError if the folder has something in it. Nothing is written where no request is open.
    """
    refuse_used(folder)
    if inbox is not None:
        events, _ = arrivals.read(inbox, arrivals.pending(inbox))
        pools, _ = apply_labels(upcoming(inbox, pools), events, 0)
    requests = open_requests(pools)
    purposes = requests["purpose"].value_counts()
    report = ExportReport(str(folder), len(requests), int(purposes.get("holdout", 0)), int(purposes.get("again", 0)))
    if requests.empty:
        return report
    _write_requests(pools, data, requests, folder)
    return report


def export_again(pools: Pools, data: Path, sample_ids: Sequence[str], folder: Path) -> None:
    """Write images that have a label already, as requests are: nothing tells which label that is.

    Raises UserError if the folder has something in it. Nothing is written where there is no image.
    """
    refuse_used(folder)
    if sample_ids:
        again = pd.DataFrame({"sample_id": list(sample_ids), "requested_round": 0})
        _write_requests(pools, data, again, folder)


def _write_requests(pools: Pools, data: Path, requests: pd.DataFrame, folder: Path) -> None:
    with whole_folder(folder) as temporary:
        files = write_images(pools, data, requests, temporary)
        blind = requests["sample_id"].map(blind_names(pools.catalog))
        rounds = dict(zip(blind, requests["requested_round"], strict=True))
        _write_csv(files, rounds, temporary / "requests.csv")
        _write_tasks(files, temporary)
        _write_text(temporary / "label_config.xml", label_config(pools.classes))
        _write_text(temporary / "README.txt", _README.format(classes=", ".join(pools.classes)))


def refuse_used(folder: Path) -> None:
    """Raises UserError unless the folder is new or empty."""
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder} is not an empty folder: name another one")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` at the end; nothing is left where that is not reached."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        temporary.replace(folder.absolute())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.absolute().parent)


def write_images(pools: Pools, data: Path, requests: pd.DataFrame, folder: Path) -> dict[str, str]:
    """Write the requested images below `images/`; returns their paths, by blind name, oldest requests first.

    Neither the order in which files come nor their times tell how they lie in the pool, which is often class by class.
    """
    rows = pools.catalog[pools.catalog["sample_id"].isin(set(requests["sample_id"]))]
    blind = blind_names(pools.catalog)
    unsorted = folder / ".unsorted"
    unsorted.mkdir()
    (folder / "images").mkdir()
    files: dict[str, str] = {}
    for sample_id, content in track(encoded_many(data, rows), "export images", len(rows)):
        picture = without_metadata(content)
        files[blind[sample_id]] = f"images/{blind[sample_id]}{extension(picture)}"
        (unsorted / blind[sample_id]).write_bytes(picture)
    asked = zip(requests["requested_round"], requests["sample_id"].map(blind), strict=True)
    ordered = {name: files[name] for _, name in sorted(asked)}
    now = time.time()
    for name, file in ordered.items():
        os.utime((unsorted / name).rename(folder / file), (now, now))
    unsorted.rmdir()
    return ordered


def _write_csv(files: Mapping[str, str], rounds: Mapping[str, int], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sample_id", "label", "annotator", "image", "round"])
        writer.writerows([name, "", "", image, rounds[name]] for name, image in files.items())


def _write_tasks(files: Mapping[str, str], folder: Path) -> None:
    """Label Studio's tasks. The images travel inside, so that it needs no access to files."""
    with (folder / "label_studio.json").open("w", encoding="utf-8") as file:
        for index, (name, image) in enumerate(files.items()):
            media, content = for_browser((folder / image).read_bytes())
            picture = f"data:{media};base64,{base64.b64encode(content).decode()}"
            task = {"data": {"image": picture, "sample_id": name, "file": image}}
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
