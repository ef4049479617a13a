"""Settings changed in the text of a `params.yaml`: the other lines, their order and comments stay as they are."""

import re
from collections.abc import Mapping
from typing import Any

from vabal.errors import UserError
from vabal.settings.params import override, parse, read_yaml, scalar


def changed(text: str, changes: Mapping[str, Any]) -> str:
    """The text with new values; `changes` maps paths, as `backbone.name`, to them.

    Raises UserError for a value that is no setting's, or where the text writes a section in a way that has no line for
    a setting: with what to write there by hand.
    """
    before = read_yaml(text) or {}
    wanted = override(before, dict(changes))
    parse(wanted)
    lines = text.splitlines()
    for path, value in changes.items():
        section, _, key = path.partition(".")
        lines = _with(lines, section, key, scalar(value))
    new = "\n".join(lines) + "\n"
    try:
        same = read_yaml(new) == wanted
    except Exception:  # noqa: BLE001 -- yaml's many: the text has no such line
        same = False
    if not same:
        by_hand = ", ".join(f"{path}: {scalar(value)}" for path, value in changes.items())
        raise UserError(f"params.yaml: its sections are not written a setting a line: write by hand {by_hand}")
    return new


def _with(lines: list[str], section: str, key: str, value: str) -> list[str]:
    start = next((at for at, line in enumerate(lines) if re.match(rf"{section}:(\s|$)", line)), None)
    if start is None:
        return [*lines, f"{section}:", f"  {key}: {value}"]
    head = re.sub(r":\s*\{\}", ":", lines[start])
    end = next((at for at in range(start + 1, len(lines)) if re.match(r"[^\s#]", lines[at])), len(lines))
    block = lines[start + 1 : end]
    for at, line in enumerate(block):
        if found := re.match(rf"(\s+){key}:(\s|$)", line):
            comment = re.search(r"\s+#.*$", line)
            block[at] = f"{found[1]}{key}: {value}{comment[0] if comment else ''}"
            return [*lines[:start], head, *block, *lines[end:]]
    indent = next((found[0] for line in block if (found := re.match(r"\s+(?=[^\s#])", line))), "  ")
    return [*lines[:start], head, f"{indent}{key}: {value}", *block, *lines[end:]]
