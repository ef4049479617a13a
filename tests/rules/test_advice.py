"""What messages, documents and help tell people to type exists: `vabal COMMAND --option`, `make TARGET`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.rules.repository import ROOT, files
from vabal.cli.app import app

VABAL = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
QUOTED = re.compile(r"`((?:vabal|make) [^`]+)`")
FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def advised(text: str) -> Iterator[str]:
    """The commands in backticks; those of a document's blocks are held against the parser in `test_blocks.py`."""
    yield from (" ".join(quoted.split()) for quoted in QUOTED.findall(FENCE.sub("", text)))


def wrong(advice: str) -> str | None:
    """What of it there is not; None if it can be typed. Words in capitals and braces stand for what people fill in."""
    program, *words = re.sub(r"\s+#.*", "", advice).split()
    if program == "make":
        return None if words[0] in TARGETS else f"no target {words[0]}"
    command: Any = VABAL
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if name.startswith("-"):
            options = [item for item in command.params if name in (*item.opts, *item.secondary_opts)]
            if not options and name != "--help":
                return f"{command.name or 'vabal'} has no option {name}"
            takes_word = bool(options) and not options[0].is_flag
            if takes_word and "=" not in word and words:
                words.pop(0)
        elif hasattr(command, "commands"):
            found = command.commands.get(word.rstrip(","))
            if found is None:
                return None if word in ("...", "COMMAND") else f"no command {word}"
            command = found
    return None


def _texts(path: Path) -> Iterator[str]:
    """The whole of a document; of a module its strings, with {} for what is put in."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


SOURCES = [path for path in files(".py", ".md") if path.parts[0] in ("vabal", "flows", "docs") or len(path.parts) == 1]


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_what_people_are_told_to_type_exists(path: Path) -> None:
    told = {advice: wrong(advice) for text in _texts(path) for advice in advised(text)}

    assert {advice: why for advice, why in told.items() if why is not None} == {}


@pytest.mark.parametrize(
    ("advice", "why"),
    [
        ("vabal ingest --holdout", "ingest has no option --holdout"),
        ("vabal up --workspace DIR", "up has no option --workspace"),
        ("vabal -C here labels exports x", "no command exports"),
        ("vabal frobnicate", "no command frobnicate"),
        ("vabal -C here labels import x.csv --reject", None),
        ("vabal init --set a.b=1 --source {}", None),
        ("make dmo", "no target dmo"),
    ],
)
def test_a_command_that_does_not_exist_is_named(advice: str, why: str | None) -> None:
    assert wrong(advice) == why
