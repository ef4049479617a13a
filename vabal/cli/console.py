"""What the commands say while they work, and when they end."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

if TYPE_CHECKING:
    from rich.console import Console


class Report(Protocol):
    """What a command came to: lines for people, or a document."""

    def lines(self) -> Iterable[str]: ...
    def to_json(self) -> Any: ...


def say(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def show(report: Report, as_json: bool) -> None:
    """The report's lines, or its JSON."""
    if as_json:
        from vabal.cli.render import print_json

        print_json(report.to_json())
    else:
        say(report.lines())


def say_end(state: Any) -> None:
    """How a flow run ended; a failed one raises what it failed with."""
    if state.is_completed():
        typer.echo(f"{state.name}: {state.message}")
        return
    state.result(raise_on_failure=True)


@contextmanager
def bars(console: "Console | None" = None) -> Iterator[Any]:
    """Progress bars for what takes long, on a terminal; silence elsewhere. What `console` prints comes above them."""
    from vabal.progress import listening

    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield None
        return
    from vabal.cli.bars import Bars

    with Bars(console) as shown, listening(shown.advance):
        yield shown.advance
