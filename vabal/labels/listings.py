"""Tables of file names and labels, as image folders bring them: a CSV, or Hugging Face's `metadata.jsonl`.

And what other tools write in their place, which is refused with this way.
"""

import re
from typing import Any, Final

from vabal.errors import UserError
from vabal.settings import bounds

#: How tables name the column of an image's file.
FILE_COLUMNS: Final = ("file_name", "path", "filename", "file", "image")
#: Tables of labels that lie on top of a folder of images, the first that is there counts.
TABLES: Final = ("labels.csv", "metadata.jsonl", "metadata.csv")
#: The way that is open to every tool.
WAY: Final = (
    "hand in a CSV with the columns file_name,label, or Hugging Face's metadata.jsonl (docs/sources.md, "
    "Labels of other tools)"
)

_BOXES: Final = {"xmin", "ymin", "xmax", "ymax", "x_min", "x1", "bbox", "region_shape_attributes"}
_YOLO: Final = re.compile(r"\d+(?: -?\d*\.?\d+(?:[eE]-?\d+)?){4,}\s*(?:\n|$)")


def lines_of_json(text: str, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a file with one in each line, with the lines' numbers. Raises UserError for what is none."""
    found: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = bounds.parse_json(line)
        except ValueError as error:
            raise UserError(f"{name}: line {number}: not valid JSON: {error}; {WAY}") from None
        if not isinstance(row, dict):
            raise UserError(f'{name}: line {number}: not {{"file_name": ..., "label": ...}} as JSON: {WAY}')
        found.append((number, row))
    return found


def text_in(row: dict[str, Any], *columns: str) -> tuple[str, str | None]:
    """The first of these values that a row has, as text, empty where there is none; and what is wrong with it."""
    value = next((row[column] for column in columns if row.get(column) is not None), "")
    if isinstance(value, bool | float | list | dict):
        return "", f"{columns[0]} {str(value)[:40]!r} is no text"
    return str(value).encode("utf-8", "replace").decode().strip(), None


def refuse_other_tools(text: str, name: str) -> None:
    """Raises UserError for the export of a tool that is not read here, naming it and the way that is open."""
    tool = _tool_of(text)
    if tool:
        raise UserError(f"{name}: this looks like {tool}, which is not read: {WAY}")


def _tool_of(text: str) -> str | None:
    start = text.lstrip()
    if start[:1] == "<":
        return next((tool for mark, tool in _XML.items() if mark in start[:4000]), "a file of XML")
    if start[:1] == "[":
        return "an export of Labelbox" if '"Labeled Data"' in start[:4000] else None
    if start[:1] == "{":
        return _tool_of_object(start)
    return "YOLO's boxes" if _YOLO.match(start) else _tool_of_table(start)


def _tool_of_table(start: str) -> str | None:
    first = {cell.strip().strip('"').lower() for cell in re.split(r"[,;\t|]", start.partition("\n")[0])}
    if first & _BOXES:
        return "a table of boxes (Roboflow, VIA)"
    if first & {"filename", "file_name"} and "label" not in first:
        return "a table of files without a column label"
    return None


def _tool_of_object(start: str) -> str | None:
    first, _, rest = start.partition("\n")
    try:
        document = bounds.parse_json(first if rest.lstrip()[:1] == "{" else start)
    except ValueError:
        return None
    keys = set(document) if isinstance(document, dict) else set()
    return next((tool for marks, tool in _JSON if marks <= keys), None)


_XML: Final = {"<annotations": "CVAT's XML", "<annotation>": "Pascal VOC's XML"}
_JSON: Final = (
    ({"annotations", "images"}, "a COCO export (also of Roboflow and CVAT)"),
    ({"data_row"}, "an export of Labelbox"),
    ({"shapes", "imagePath"}, "a file of LabelMe"),
    ({"_via_img_metadata"}, "a project of VIA"),
    ({"samples", "info"}, "a data set in FiftyOne's own form, not its image folder"),
    ({"items", "categories"}, "an export of Datumaro"),
    ({"instances", "metadata"}, "an export of SuperAnnotate"),
)
