"""Who is champion: `promote`, `rollback`, `champion`."""

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


def rollback(
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the record.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put the previous champion back.

    Example: `vabal rollback --reason "misses cracks on line 3"`
    """
    place = chosen.with_pools()
    from vabal.flows.promote import rollback as rollback_now

    show(rollback_now(place, reason=reason, wait=PATIENCE_S), as_json)


def champion(
    on: Annotated[str | None, typer.Option("--on", metavar="DATE", help="On that day (UTC), like 2026-03-04.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which version is champion, since when, and why it was promoted; from the record alone.

    Example: `vabal champion --on 2026-03-04`
    """
    from datetime import UTC, datetime

    from vabal.promotion.record import read_record
    from vabal.promotion.served import champions_on

    show(champions_on(read_record(chosen.workspace().root), on, now=datetime.now(UTC)), as_json)
