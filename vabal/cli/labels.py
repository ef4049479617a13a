"""Labels out (requests) and in (answers): `labels export`, `labels import`."""

from pathlib import Path
from typing import Annotated

import typer

from vabal.cli import chosen
from vabal.cli.console import bars, show
from vabal.cli.options import AsJson


def export(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    as_json: AsJson = False,
) -> None:
    """Write the open requests as images, a CSV to fill in, and Label Studio's JSON.

    Example: `vabal labels export requests/`
    """
    from vabal import pools, rounds
    from vabal.adapters.versioning import Versioning
    from vabal.labels.export import export_requests

    place = chosen.with_pools()
    with bars(), chosen.reading(place):
        rounds.refuse_older_checkout(place, Versioning(place.root))
        report = export_requests(pools.load(place.data), place.data, folder, place.inbox)
    show(report, as_json)


def import_(
    file: Annotated[Path, typer.Argument(help="CSV (sample_id,label,annotator) or Label Studio's export.")],
    reject: Annotated[bool, typer.Option("--reject", help="Also a file that rejects most of its images.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take labels in: all lines or none, durable at once; the next round learns from them.

    Example: `vabal labels import requests/requests.csv`
    """
    from datetime import UTC, datetime

    from vabal import pools
    from vabal.labels.answers import import_labels

    place = chosen.with_pools()
    with chosen.reading(place):
        known = pools.load(place.data)
    show(import_labels(place.inbox, known, file, datetime.now(UTC), reject=reject), as_json)
