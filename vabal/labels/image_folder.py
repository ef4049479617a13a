"""Images with their labels out: a folder that Hugging Face's `datasets`, FiftyOne and `vabal init` read."""

import csv
import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vabal.labels.export import refuse_used, whole_folder, write_images
from vabal.labels.names import blind_names
from vabal.pools import Pools, among

_COLUMNS: Final = ("file_name", "label", "annotator")


@dataclass(frozen=True)
class ImageFolderReport:
    """What was written."""

    folder: str
    images: int
    labeled: int

    def lines(self) -> list[str]:
        """For people."""
        if not self.images:
            return ["no such images: nothing was written"]
        return [f"{self.images} images, {self.labeled} with a label, in {self.folder}: metadata.jsonl and labels.csv"]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def export_images(pools: Pools, data: Path, sample_ids: Collection[str], folder: Path) -> ImageFolderReport:
    """Write these images and their labels, as far as they have one, into the new or empty folder, whole or not at all.

    `images/` (blind names, no metadata), and twice the table of file_name, label and annotator, empty where there is
    none: `metadata.jsonl`, an object a line, and `labels.csv`. Either of them, imported as it is, adds nothing.
    Raises UserError if the folder has something in it. Nothing is written where there is no image.
    """
    refuse_used(folder)
    labels = pools.labeled[among(pools.labeled["sample_id"], sample_ids)].set_index("sample_id")
    known = pools.catalog.loc[among(pools.catalog["sample_id"], sample_ids), ["sample_id"]]
    report = ImageFolderReport(str(folder), len(known), len(labels))
    if not len(known):
        return report
    told = labels[["label", "annotator"]].astype(object)
    said = told.where(told.notna(), None).to_dict("index")
    nothing = dict.fromkeys(told)
    ids = {name: sample_id for sample_id, name in blind_names(pools.catalog).items()}
    with whole_folder(folder) as temporary:
        files = write_images(pools, data, known.assign(requested_round=0), temporary)
        rows = [{"file_name": file, **said.get(ids[name], nothing)} for name, file in files.items()]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (temporary / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        with (temporary / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return report
