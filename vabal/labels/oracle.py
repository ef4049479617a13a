"""An oracle in the place of people, for the demo."""

import csv
import io
from pathlib import Path

from vabal.files import write_bytes
from vabal.labels import delimited
from vabal.labels.names import blind_names
from vabal.pools import read
from vabal.workspace import Workspace

# --- an oracle in the place of people ---------------------------------------------------------------------------------


def answer(requests: Path, place: Workspace, annotator: str = "oracle") -> int:
    """Fill in a `requests.csv` from the labels of the workspace's oracle, as people would; returns how many.

    The oracle (CSV: sample_id, label) lies in `.vabal/`. Lines that are filled in already, or that it does not know,
    stay as they are.
    """
    columns, lines = _table(place.state / "oracle.csv")
    labels = {columns.cell(line, "sample_id"): columns.cell(line, "label") for line in lines}
    blind = blind_names(read(place.data).catalog)
    labels |= {blind[sample_id]: label for sample_id, label in labels.items() if sample_id in blind}
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
