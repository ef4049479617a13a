"""The local stack: `up`, `down`, `status`, `notify`; and `env`, for other programs that talk to its servers."""

import os
import shlex
from typing import Annotated

import typer

from vabal.cli import chosen
from vabal.cli.console import bars, say
from vabal.cli.following import say_next
from vabal.cli.options import AsJson


def up() -> None:
    """Start the local stack: S3, MLflow, Prefect server and worker, on loopback.

    Example: `vabal up`
    """
    from vabal.adapters import stack
    from vabal.cli.render import show_status

    root = chosen.folder()
    with bars() as progress:
        notes = stack.up(root, progress)
    say(notes)
    show_status(stack.status(root), chosen.start())
    say_next()


def down() -> None:
    """Stop the local stack; its data, ports and credentials stay for the next `vabal up`.

    Example: `vabal down`
    """
    from vabal.adapters import stack

    say(stack.down(chosen.folder()))


def status(as_json: AsJson = False) -> None:
    """Show the local stack, the newest round, last and next night, champion, open labels, inbox, disk.

    Example: `vabal status --json`
    """
    from vabal.adapters import stack
    from vabal.cli.render import show_status

    show_status(stack.status(chosen.folder()), chosen.start(), as_json=as_json)


def notify(
    follow: Annotated[
        bool, typer.Option("--follow", help="Look again and again, as the stack's notifier does.")
    ] = False,
    test: Annotated[bool, typer.Option("--test", help="Send a message of no event, to see that it arrives.")] = False,
) -> None:
    """Tell of nights that ended, failed or did not begin since the last look, as `notify` in params.yaml says.

    Example: `vabal notify --test`
    """
    from datetime import UTC, datetime

    from vabal.flows import notices

    place = chosen.workspace()
    if test:
        say(notices.test(place))
        return
    notifier = notices.Notifier(place, lambda line: typer.echo(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {line}"))
    if follow:
        notifier.follow()
    notifier.look()
    say(notices.trouble(place))


def env() -> None:
    """Print what a shell needs so that MLflow's, Prefect's and DVC's own commands work: addresses, keys, folders.

    Example: `eval "$(vabal env)"`
    """
    from vabal.adapters.versioning import Versioning

    before = dict(os.environ)
    place = chosen.workspace()
    Versioning(place.root).keep_cache_private()
    wanted = {name: value for name, value in os.environ.items() if before.get(name) != value}
    wanted |= {name: value for name, value in before.items() if name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))}
    for name, value in sorted(wanted.items()):
        typer.echo(f"export {name}={shlex.quote(value)}")
