"""The `vabal` command: its commands, what all of them share, and how they end.

A family of commands is a module beside this one. Each command loads what it needs when it runs, so that `vabal --help`
stays quick.
"""

import gc
import io
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vabal.cli import (
    audit,
    benchmark,
    chosen,
    classes,
    labels,
    learning,
    pages,
    promotion,
    rounds,
    settings,
    stack,
    workspace,
)
from vabal.errors import UserError, missing_extra, os_error_line

# Objects between two looks for cycles. What imports make stays, and looking every 700 objects, as Python does, costs a
# tenth of a short command.
_NEW_OBJECTS = 50_000


class _Commands(TyperGroup):
    """Ctrl-C is told in one line; typer says nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("vabal: stopped; nothing is lost: run the same command again to go on", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Nightly active learning for image classes that are neither equally common nor equally hard.",
)
for command in (
    *(workspace.init, workspace.ingest, stack.up, stack.down, stack.status, stack.notify),
    *(rounds.round_, rounds.abandon, rounds.deploy, rounds.schedule),
    *(pages.report, pages.open_),
    *(audit.audit, audit.card, audit.curve, audit.forecast, audit.control),
    *(rounds.checkout, audit.replay, stack.env, audit.show),
    *(promotion.promote, promotion.rollback, promotion.champion, benchmark.bench, learning.pretrain),
):
    app.command(command.__name__.rstrip("_"))(command)

labels_app = typer.Typer(no_args_is_help=True, help="Labels out (requests) and in (answers).")
labels_app.command("export")(labels.export)
labels_app.command("import")(labels.import_)
labels_app.command("sync")(labels.sync)
labels_app.command("agreement")(labels.agreement)
labels_app.command("suspects")(labels.suspects)
app.add_typer(labels_app, name="labels")

classes_app = typer.Typer(invoke_without_command=True, callback=classes.classes)
for change in (classes.add, classes.rename, classes.merge):
    classes_app.command(change.__name__)(change)
app.add_typer(classes_app, name="classes")

settings_app = typer.Typer(no_args_is_help=True, help="What params.yaml may say.")
settings_app.command("schema")(settings.schema)
app.add_typer(settings_app, name="settings")


def _print_version(wanted: bool) -> None:
    if wanted:
        import vabal

        typer.echo(vabal.__version__)
        raise typer.Exit


@app.callback()
def _options(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-C", help="The workspace's folder; default: the one you stand in.")
    ] = None,
    version: Annotated[  # noqa: ARG001 -- its callback does it
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    chosen.choose(workspace)


def main() -> None:
    """Run the command; a user's mistake, or what the system refuses, is one line on standard error and exit code 1."""
    gc.set_threshold(_NEW_OBJECTS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal shows other characters as their codes
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except BrokenPipeError:  # `vabal audit | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, ModuleNotFoundError, OSError) as error:
        line = _line(error)
        if line is None:
            raise
        typer.echo(f"vabal: {line}", err=True)
        sys.exit(1)


def _line(error: Exception) -> str | None:
    """What went wrong, for people; None if it is a bug."""
    if isinstance(error, OSError):
        return os_error_line(error)
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error)
    return " ".join(str(error).split())
