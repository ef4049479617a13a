"""Who is champion: `promote`, `rollback`."""

from typing import Annotated

import typer

from vabal.cli import chosen
from vabal.cli.console import show
from vabal.cli.options import AsJson

PATIENCE_S = 60.0  # with a promotion that the schedule has just started


def promote(
    version: Annotated[str | None, typer.Option("--version", help="Instead of the challenger.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make the challenger champion, if it is shown to be better on the holdout, and no class to be much worse.

    Example: `vabal promote --version 3`
    """
    place = chosen.with_pools()
    from vabal.flows.promote import promote as promote_now

    show(promote_now(place, version, wait=PATIENCE_S), as_json)


def rollback(as_json: AsJson = False) -> None:
    """Put the previous champion back.

    Example: `vabal rollback`
    """
    place = chosen.with_pools()
    from vabal.flows.promote import rollback as rollback_now

    show(rollback_now(place, wait=PATIENCE_S), as_json)
