"""Cron expressions of five fields, as the scheduler understands them: is it one, and does it ever fire?"""

import re
from typing import Final

_MONTHS: Final = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
# name, first and last number, names of numbers
_FIELDS: Final[tuple[tuple[str, int, int, dict[str, int]], ...]] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day", 1, 31, {}),
    ("month", 1, 12, {name: number for number, name in enumerate(_MONTHS, start=1)}),
    ("weekday", 0, 7, {name: number for number, name in enumerate(_DAYS)}),
)
_LONGEST: Final = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ITEM: Final = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?")


def problem(expression: str) -> str | None:
    """What is wrong with a cron expression; None if it fires some day (be it 29 February).

    Understood are `*`, numbers, names of months and weekdays, ranges (also across the end: `fri-mon`), steps and lists;
    `?`; `L` as a day, the last; `5#2` and `L5` as weekdays, the second Friday and the last.
    """
    fields = expression.lower().split()
    if len(fields) != len(_FIELDS):
        return f"must have five fields (minute, hour, day, month, weekday), found {len(fields)}"
    numbers: list[set[int]] = []
    for text, field in zip(fields, _FIELDS, strict=True):
        found = _numbers(text, field)
        if isinstance(found, str):
            return found
        numbers.append(found)
    days, months = numbers[2], numbers[3]
    # Also where a weekday is named: the scheduler looks for the next such day as well as for the weekday.
    if not any(day <= _LONGEST[month - 1] for day in days for month in months):
        return "never fires: none of its months has such a day"
    return None


def _numbers(text: str, field: tuple[str, int, int, dict[str, int]]) -> set[int] | str:
    """The numbers that a field stands for, or what is wrong with it."""
    name, first, last, _ = field
    found: set[int] = set()
    for item in text.split(","):
        if item == "?" == text and name in ("day", "weekday"):
            item = "*"  # noqa: PLW2901 -- another way to write it
        if name == "day" and item == "l":
            found.add(28)  # every month has a last day
            continue
        if name == "weekday":
            item = re.sub(r"^l(?=\w+$)|(?<=\w)#[1-5]$", "", item)  # noqa: PLW2901 -- each comes some day
        matched = _ITEM.fullmatch(item)
        step = int(matched.group(3) or 1) if matched else 0
        ends = _ends(matched, field) if matched else None
        if ends is None or step < 1:
            return f"its {name} {item!r} is none: {first} to {last}"
        low, high = ends
        found.update(range(low, high + 1, step) if low <= high else (*range(low, last + 1), *range(first, high + 1)))
    return found


def _ends(matched: "re.Match[str]", field: tuple[str, int, int, dict[str, int]]) -> tuple[int, int] | None:
    _, first, last, names = field
    low, high, step = matched.groups()
    if low is None:
        return first, last
    ends = [names.get(word, int(word) if word.isdecimal() and word.isascii() else -1) for word in (low, high or low)]
    if any(not first <= end <= last for end in ends):
        return None
    return (ends[0], last) if step and high is None else (ends[0], ends[1])
