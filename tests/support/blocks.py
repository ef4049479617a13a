"""The fenced blocks of a page, what stands above each for the tests, and the commands in it."""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vabal.cli.app import app

VABAL = typer.main.get_command(app)
FENCE = re.compile(r"( *)```(\S*)$")
COMMENT = re.compile(r" *<!-- (.*) -->$")
IN_DEMO = "run in the demo's workspace"
MARKS = ("not run", "run with", IN_DEMO)
PROMPT = "$ "


class UnknownMarkError(ValueError):
    """A comment above a block that says nothing that the tests know."""


@dataclass(frozen=True)
class Block:
    """`mark` is the comment directly above, None without one: `not run: WHY`, `run with: SETTING=VALUE ...` or
    `run in the demo's workspace`."""

    page: str
    line: int
    language: str
    mark: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not (self.mark or "").startswith("not run: ")

    @property
    def settings(self) -> list[str]:
        """What is added to the block's `vabal init`, so that a test can bear it."""
        said, _, settings = (self.mark or "").partition(": ")
        return settings.split() if said == "run with" else []

    def commands(self) -> list[list[str]]:
        """The words of each command; of a transcript, of those behind a prompt."""
        text = self.text
        if self.language == "text":
            text = "\n".join(line.removeprefix(PROMPT) for line in text.splitlines() if line.startswith(PROMPT))
        return [shlex.split(command, comments=True) for command in _commands(text)]

    def transcript(self) -> list[tuple[str, list[str]]]:
        """Each command behind a prompt, and the lines that it is shown to say."""
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith(PROMPT):
                found.append((line.removeprefix(PROMPT), []))
            elif line.strip():
                found[-1][1].append(line)
        return found


def _commands(text: str) -> Iterator[str]:
    """A command may go on over lines: behind a backslash, or within quotes."""
    begun = ""
    for line in text.splitlines():
        begun += line
        if begun.endswith("\\"):
            begun = begun.removesuffix("\\")
            continue
        try:
            words = shlex.split(begun, comments=True)
        except ValueError:  # a quotation is open
            begun += "\n"
            continue
        if words:
            yield begun
        begun = ""
    if begun:
        raise ValueError(f"a command without an end: {begun!r}")


def blocks(page: str, text: str) -> list[Block]:
    """All of them, in their order. Raises UnknownMarkError."""
    lines, found = text.splitlines(), list[Block]()
    begun: tuple[int, str, str] | None = None
    for number, line in enumerate(lines):
        if not (fence := FENCE.match(line)):
            continue
        if begun is None:
            begun = (number, fence[1], fence[2])
            continue
        start, indent, language = begun
        body = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : number])
        found.append(Block(page, start + 1, language, _mark(page, lines, start), body + "\n"))
        begun = None
    assert begun is None, f"{page}: a block without an end"
    return found


def _mark(page: str, lines: Sequence[str], fence: int) -> str | None:
    comment = COMMENT.match(lines[fence - 1]) if fence else None
    if comment is None:
        return None
    said, _, more = comment[1].partition(": ")
    if said not in MARKS or bool(more.strip()) == (said == IN_DEMO):
        raise UnknownMarkError(f"{page}:{fence}: `{comment[0]}` is none of {', '.join(MARKS)}")
    return comment[1]


def problem(words: Sequence[str], root: Path) -> str | None:
    """What a command in a page names that is not there, told without running it; None if it can be typed."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        return None if rest and rest[0] in targets else f"no target {rest}"
    if program == "python" and rest[:1] == ["-m"]:
        module = root.joinpath(*rest[1].split("."))
        return None if module.with_suffix(".py").is_file() or module.is_dir() else f"no module {rest[1]}"
    return _not_parsed(rest) if program == "vabal" else None


def _not_parsed(words: list[str]) -> str | None:
    """Why the command line's parser refuses it, or a benchmark's grid."""
    command: Any = VABAL
    context = None
    try:
        while True:
            context = command.make_context(command.name or "vabal", words, parent=context)
            if not hasattr(command, "commands"):
                break
            _, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
        if command.name == "bench":
            _resolve_grid(context.params)
    except Exception as error:  # noqa: BLE001 -- typer's errors have no public name
        return str(error)
    return None


def _resolve_grid(options: dict[str, Any]) -> None:
    """Its protocol, strategies and settings exist. Raises UserError."""
    from vabal.cli.benchmark import BenchOptions

    for cell in BenchOptions(**options).grid().cells():
        cell.params(8, 1)
