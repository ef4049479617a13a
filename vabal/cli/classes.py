"""Classes over time: `classes` and its family."""

from typing import Annotated

import typer

from vabal.cli import chosen
from vabal.cli.console import show
from vabal.cli.options import AsJson

_REASON = typer.Option("--reason", metavar="TEXT", help="Why; it stands in the record.")


def classes(context: typer.Context, as_json: AsJson = False) -> None:
    """The classes with their labels, and what changed them or is going to.

    Example: `vabal classes`
    """
    if context.invoked_subcommand is not None:
        return
    from vabal import pools
    from vabal.cli.audited import show_classes
    from vabal.labels.classes import listed

    place = chosen.with_pools()
    with chosen.reading(place):
        found = listed(place.inbox, pools.read(place.data))
    show_classes(found, as_json=as_json)


def add(
    name: Annotated[str, typer.Argument(help="The new class.")],
    reason: Annotated[str | None, _REASON] = None,
    as_json: AsJson = False,
) -> None:
    """Add a class, from the next round on; labels of it may come at once.

    Example: `vabal classes add dent`
    """
    _change([("add", name, None)], reason, as_json)


def rename(
    old: Annotated[str, typer.Argument(help="A class.")],
    new: Annotated[str, typer.Argument(help="What it is called from the next round on.")],
    reason: Annotated[str | None, _REASON] = None,
    as_json: AsJson = False,
) -> None:
    """Rename a class, from the next round on; labels under the old name still count.

    Example: `vabal classes rename crack fracture`
    """
    _change([("rename", old, new)], reason, as_json)


def merge(
    first: Annotated[str, typer.Argument(help="A class.")],
    second: Annotated[str, typer.Argument(help="The class that it becomes part of.")],
    into: Annotated[str | None, typer.Argument(help="What both are called then; default: as the second.")] = None,
    reason: Annotated[str | None, _REASON] = None,
    as_json: AsJson = False,
) -> None:
    """Make one class of two, from the next round on. They cannot be told apart again.

    Example: `vabal classes merge crack fray damage`
    """
    from vabal.pools.classes import merging

    _change(merging(first, second, into), reason, as_json)


def _change(changes: list[tuple[str, str, str | None]], reason: str | None, as_json: bool) -> None:
    import getpass
    from datetime import UTC, datetime

    from vabal import pools, rounds
    from vabal.adapters.versioning import Versioning
    from vabal.labels.classes import change

    place = chosen.with_pools()
    history = Versioning(place.root)
    rounds.refuse_older_checkout(place, history)
    author = f"{history.identity()}, user {getpass.getuser()}"
    with chosen.reading(place):
        known = pools.load(place.data)
        report = change(place.inbox, known, changes, author=author, when=datetime.now(UTC), reason=reason)
    show(report, as_json)
