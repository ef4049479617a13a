"""Tables in text files, as spreadsheets and annotation tools write them: one reader for labels from anywhere.

Cells are text and stay text: `01`, `NA` and `TRUE` are what they look like.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from vabal.errors import UserError

_MARKS: Final = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_WORKBOOKS: Final = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # Excel's, of today and of before 2007
_DELIMITERS: Final = ",;\t|"
_SEP: Final = re.compile(r'"?sep=([^\w"\r\n])"?[ \t]*(?:\r\n|\r|\n|$)', re.IGNORECASE)


def text_of(content: bytes, name: str) -> str:
    """The text in a file: UTF-8, or UTF-16 or UTF-32, with a byte-order mark or (not UTF-32) without.

    Raises UserError, with the way out, for a workbook, an older encoding, or what is no text.
    """
    if content.startswith(_WORKBOOKS):
        raise UserError(
            f"{name}: a workbook or an archive, not a table as text: save it as `CSV UTF-8` and hand that in"
        )
    mark, encoding = next(
        ((mark, kind) for mark, kind in _MARKS if content.startswith(mark)), (b"", _unmarked(content))
    )
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UserError(f"{name}: not a text file in {encoding.upper()}: save it as CSV UTF-8") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name}: not a text file in UTF-8 (line {line}, byte {content[error.start]:#04x}): save it as CSV UTF-8, "
            "or convert it with `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None
    if "\0" in text:
        raise UserError(f"{name}: not a text file in UTF-8, it holds NUL bytes: save it as CSV UTF-8")
    return text


def _unmarked(content: bytes) -> str:
    """UTF-16 shows by zeros in every other byte of its ASCII characters: delimiters and line ends are such."""
    start = content[: 1 << 12]
    even, odd = start[::2].count(0), start[1::2].count(0)
    if len(content) % 2 or 16 * max(even, odd) < len(start) or max(even, odd) < 4 * min(even, odd):
        return "utf-8"
    return "utf-16-le" if odd > even else "utf-16-be"


@dataclass(frozen=True)
class Line:
    """A line of the table, which may be several of the file: the number of the first, and the cells, stripped."""

    number: int
    cells: tuple[str, ...]


def lines_of(text: str, name: str, known: Collection[str]) -> list[Line]:
    """The lines that are not empty. The delimiter is the one that `sep=` in the first line names, or the one (comma,
    semicolon, tab, bar) by which the first line names most of the columns `known`, else by which it has most cells.

    A cell may be in quotes, with delimiters and line ends in it and quotes doubled. Lines end as on any system.
    Raises UserError for a quote that is never closed, or that does not end its cell.
    """
    said = _SEP.match(text)
    if said:
        return _split(text[said.end() :], said.group(1), name, first=2)
    return _split(text, _delimiter(text, name, known), name)


def _delimiter(text: str, name: str, known: Collection[str]) -> str:
    def fit(delimiter: str) -> tuple[int, int]:
        try:
            [line] = _split(text, delimiter, name, most=1)
        except (UserError, ValueError):
            return (0, 0)
        return sum(column in known for column in header_of(line)), len(line.cells)

    return max(_DELIMITERS, key=fit)


def header_of(line: Line) -> list[str]:
    """Names of columns: in any case."""
    return [cell.lower() for cell in line.cells]


def _split(text: str, delimiter: str, name: str, *, first: int = 1, most: int | None = None) -> list[Line]:
    """The lines, at most `most`. The csv module would refuse long cells, and pass over quotes that are not closed."""
    mark = re.escape(delimiter)
    blank = rf"(?:(?!{mark})[^\S\r\n])*"
    cell = re.compile(rf'(?:{blank}"([^"]*+(?:""[^"]*+)*+)"{blank}|([^{mark}\r\n]*))({mark}|\r\n|\r|\n|\Z)')
    lines: list[Line] = []
    number, place = first, 0
    while place < len(text) and len(lines) != most:
        start, end = number, _LINE_END.search(text, place)
        plain = text[place : end.start()] if end else text[place:]
        number += 1
        if '"' not in plain:
            cells = [value.strip() for value in plain.split(delimiter)]
            place = end.end() if end else len(text)
        else:
            cells, place = _quoted_cells(text, place, cell, f"{name}: line {start}")
            number += _line_ends(text[end.end() : place]) if end else 0
        if any(cells):
            lines.append(Line(start, tuple(cells)))
    return lines


def _quoted_cells(text: str, place: int, cell: "re.Pattern[str]", where: str) -> tuple[list[str], int]:
    """The cells of the line that begins at `place`, and where the next begins."""
    cells: list[str] = []
    ended = False
    while not ended:
        found = cell.match(text, place)
        bare = found.group(2) if found else None
        if found is None or (bare is not None and bare.lstrip().startswith('"')):
            raise UserError(f'{where}: a quote that is not closed, or text behind it: write "" for a quote in a cell')
        cells.append((found.group(1).replace('""', '"') if bare is None else bare).strip())
        place = found.end()
        ended = found.group(3) in ("\r\n", "\r", "\n", "")
    return cells, place


_LINE_END: Final = re.compile(r"\r\n|\r|\n")


def _line_ends(text: str) -> int:
    return len(_LINE_END.findall(text))


@dataclass(frozen=True)
class Columns:
    """Where the columns of a table stand that a reader asks for; None for one that the table does not have."""

    header: tuple[str, ...]
    places: dict[str, int]
    needed: tuple[str, ...]

    @classmethod
    def of(cls, header: Sequence[str], wanted: Collection[str], needed: Sequence[str], name: str) -> "Columns":
        """Raises UserError if a wanted column stands twice."""
        for column in wanted:
            if header.count(column) > 1:
                raise UserError(f"{name}: the first line names the column {column} twice: rename one of them")
        return cls(
            tuple(header), {column: header.index(column) for column in wanted if column in header}, tuple(needed)
        )

    def __contains__(self, column: str) -> bool:
        return column in self.places

    def cell(self, line: Line, column: str) -> str:
        """The cell of a column; empty where the table or the line has none."""
        place = self.places.get(column, len(line.cells))
        return line.cells[place] if place < len(line.cells) else ""

    def problem(self, line: Line) -> str | None:
        """What is wrong with a line: more cells than columns, or fewer than what is needed of it asks for."""
        count, width = len(line.cells), len(self.header)
        least = max((self.places[column] for column in self.needed if column in self.places), default=-1) + 1
        if count > width:
            return f"{count} cells instead of {width}: put a cell that holds the delimiter in quotes"
        return f"{count} cells instead of {width}" if count < least else None
