"""Tables for people, in whatever width there is: an id, a number or a word is never broken over two lines, nor cut."""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.control import strip_control_codes
from rich.text import Text

#: What stands in a column: numbers (`right`), ids, paths and the like (`whole`), text (`left`), which folds between
#: words, or names of classes and people (`name`), which fold behind a hyphen, a dot or the like as well.
Kind = Literal["left", "right", "whole", "name"]
Column = tuple[str, Kind]

_JOINTS = re.compile(r"(?<=[-_/.@ ])")
_GAPS = (2, 1)  # between columns: the second where the first has no room


def console() -> Console:
    """Standard output; as wide as the terminal, or 80 columns where there is none."""
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def say(out: Console, text: str, *, indent: int = 0) -> None:
    """A text, folded between words."""
    for line in text.splitlines():
        _say_folded(out, _pieces(line, "left"), indent)


def _say_folded(out: Console, pieces: Sequence[str], indent: int) -> None:
    for line in _folded(pieces, out.width - indent):
        say_whole(out, " " * indent + line)


def _pieces(line: str, kind: Kind) -> list[str]:
    """What a line may be folded between."""
    if kind == "name":
        return _JOINTS.split(line)
    return re.split(r"(?<= )", line) if kind == "left" else [line]


def _folded(pieces: Iterable[str], width: int) -> list[str]:
    """The pieces one behind the other, in lines of at most so many columns where no piece is longer."""
    lines: list[str] = []
    for piece in pieces:
        if lines and cell_len((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines]


def say_whole(out: Console, text: str) -> None:
    """A line that is not folded, however long it is."""
    out.print(Text(text), soft_wrap=True)


def say_title(out: Console, *parts: str) -> None:
    """An id or the like, and what is said of it: in one line where that fits, else in one each."""
    line = " ".join(parts)
    for part in [line] if cell_len(line) <= out.width else parts:
        say_whole(out, part)


def show_table(out: Console, columns: Sequence[Column], rows: Iterable[Sequence[Any]]) -> None:
    """A table with a line for the columns' names; where it does not fit the width, a block of lines for each row."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    extents = [_extent(column, [row[place] for row in cells]) for place, column in enumerate(columns)]
    least, most = (list(widths) for widths in zip(*extents, strict=True))
    for gap in _GAPS:
        room = out.width - gap * (len(columns) - 1)
        if sum(least) <= room:
            _show_lines(out, columns, cells, _shared(least, most, room), " " * gap)
            return
    for row in cells:
        _show_block(out, columns, row)


def fits(out: Console, columns: Sequence[Column], rows: Sequence[Sequence[Any]]) -> bool:
    """Whether it is shown as a table, and not as blocks."""
    least = [
        _extent(column, ["" if row[place] is None else str(row[place]) for row in rows])[0]
        for place, column in enumerate(columns)
    ]
    return sum(least) + _GAPS[-1] * (len(columns) - 1) <= out.width


def number(value: float | None, digits: int = 4) -> str:
    return "" if value is None else f"{value:.{digits}g}"


def _extent(column: Column, cells: Sequence[str]) -> tuple[int, int]:
    """The least width in which no word is broken, and the one in which no line is."""
    name, kind = column
    longest = max(cell_len(line) for text in (name, *cells) for line in text.splitlines() or [""])
    lines = (line for text in (name, *cells) for line in text.splitlines())
    pieces = max((cell_len(piece.rstrip()) for line in lines for piece in _pieces(line, kind)), default=0)
    return pieces, longest


def _shared(widths: list[int], most: Sequence[int], room: int) -> list[int]:
    """The widths, with what they leave of the room given to the narrowest that want more."""
    for _ in range(room - sum(widths)):
        wanting = [place for place, width in enumerate(widths) if width < most[place]]
        if not wanting:
            break
        widths[min(wanting, key=widths.__getitem__)] += 1
    return widths


def _show_lines(
    out: Console, columns: Sequence[Column], cells: Iterable[Sequence[str]], widths: Sequence[int], gap: str
) -> None:
    """Laid out here: rich would look for places to break every cell, which is folded already, at 4 ms a row."""
    kinds = [kind for _, kind in columns]
    for line in _side_by_side([[name] for name, _ in columns], kinds, widths, gap):
        out.print(Text(line, style="table.header"), soft_wrap=True)
    lines = [("-" if out.options.ascii_only else "─") * (sum(widths) + len(gap) * (len(columns) - 1))]
    for row in cells:
        lines += _side_by_side([_lines_of(*each) for each in zip(row, kinds, widths, strict=True)], kinds, widths, gap)
    out.out(strip_control_codes("\n".join(lines)), highlight=False)


def _lines_of(text: str, kind: Kind, width: int) -> list[str]:
    return [line for part in text.splitlines() for line in _folded(_pieces(part, kind), width)]


def _side_by_side(cells: Sequence[list[str]], kinds: Sequence[Kind], widths: Sequence[int], gap: str) -> Iterator[str]:
    for parts in zip_longest(*cells, fillvalue=""):
        padded = (_padded(*each) for each in zip(parts, kinds, widths, strict=True))
        yield gap.join(padded)


def _padded(text: str, kind: Kind, width: int) -> str:
    room = " " * (width - cell_len(text))
    return room + text if kind == "right" else text + room


def _show_block(out: Console, columns: Sequence[Column], row: Sequence[str]) -> None:
    """What the row is of (its number, its id) as a title, all else below it by name."""
    named = [(name, kind, ", ".join(cell.splitlines())) for (name, kind), cell in zip(columns, row, strict=True)]
    title = list(_title(named))
    say_title(out, *title)
    rest = [part for part in named[len(title) :] if part[2]]
    pieces: list[str] = []
    for place, (name, kind, cell) in enumerate(rest):
        told = f"{name} {cell}" + (", " if place + 1 < len(rest) else "")
        pieces += _pieces(told, "left") if kind in ("left", "name") else [told]
    _say_folded(out, pieces, indent=3)


def _title(named: Sequence[tuple[str, Kind, str]]) -> Iterator[str]:
    for place, (name, kind, cell) in enumerate(named):
        if place and kind in ("left", "name"):
            return
        yield f"{name} {cell}" if kind == "right" else cell
        if kind != "right":
            return
