"""Labels out (requests) and in (answers), and what is to be said of them: `labels export`, `import`, `sync`,
`agreement`, `suspects`."""

from pathlib import Path
from typing import Annotated

import typer

from vabal.cli import chosen
from vabal.cli.console import bars, show
from vabal.cli.following import import_words, say_next
from vabal.cli.options import AsJson
from vabal.errors import UserError


def export(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    labeled: Annotated[
        bool, typer.Option("--labeled", help="The labelled pool instead: images with metadata.jsonl and labels.csv.")
    ] = False,
    of_round: Annotated[
        int | None, typer.Option("--round", help="A round's picks instead, with the labels that came.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the open requests as images, a CSV to fill in, and Label Studio's JSON.

    Or images with labels, as Hugging Face's `datasets` and other tools read them.

    Example: `vabal labels export requests/`, `vabal labels export dataset/ --labeled`
    """
    from vabal import pools, rounds
    from vabal.adapters.versioning import Versioning

    if labeled and of_round is not None:
        raise UserError("--labeled and --round: name one of them")
    place = chosen.with_pools()
    with bars(), chosen.reading(place):
        if labeled or of_round is not None:
            from vabal.labels.image_folder import export_images

            known = pools.load(place.data)
            ids = known.labeled["sample_id"] if of_round is None else _picks(place.data, of_round)
            show(export_images(known, place.data, ids, folder), as_json)
        else:
            from vabal.labels.export import export_requests

            rounds.refuse_older_checkout(place, Versioning(place.root))
            written = export_requests(pools.load(place.data), place.data, folder, place.inbox)
            show(written, as_json)
            if written.requests and not as_json:
                say_next(import_words(folder / "requests.csv"))


def _picks(data: Path, number: int) -> list[str]:
    from vabal.audit import queries

    return [str(sample_id) for sample_id in queries.picks(data, number)["sample_id"]]


def import_(
    file: Annotated[Path, typer.Argument(help="CSV, metadata.jsonl or a folder with one, or Label Studio's export.")],
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
    taken = import_labels(place.inbox, known, file, datetime.now(UTC), reject=reject)
    show(taken, as_json)
    if not as_json:
        say_next(import_words(file) if taken.unanswered and taken.name is None else None)


def sync(
    everything: Annotated[
        bool, typer.Option("--all", help="Look at every task, not only at those changed since the last sync.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take in what people said in Label Studio, and make a task there of each open request; a night does so too.

    Example: `vabal labels sync`
    """
    from datetime import UTC, datetime

    from vabal.adapters import label_studio

    place = chosen.with_pools()
    with bars():
        report = label_studio.sync(place, place.params(), datetime.now(UTC), everything=everything)
    show(report, as_json)
    if not as_json:
        say_next()


_AGAIN = typer.Option("--out", help="Write them into this folder too, to be labelled again blindly.")


def agreement(
    out: Annotated[Path | None, _AGAIN] = None,
    as_json: AsJson = False,
) -> None:
    """How far people agree: kappa, labels and accuracy by person, and the disputed images; the inbox included.

    Example: `vabal labels agreement --out again/`
    """
    from vabal import pools
    from vabal.labels import arrivals
    from vabal.labels.agreement import agreement as measure
    from vabal.labels.classes import upcoming
    from vabal.labels.export import export_again

    place = chosen.with_pools()
    with bars(), chosen.reading(place):
        known = upcoming(place.inbox, pools.read(place.data))
        waiting, _ = arrivals.read(place.inbox, arrivals.pending(place.inbox))
        said = pools.stack([known.label_events, waiting], pools.EVENTS)
        found = measure(pools.named(said, pools.Classes.of(known)))
        if out is not None:
            export_again(known, place.data, found.disputed, out)
    show(found, as_json)


def suspects(
    out: Annotated[Path | None, _AGAIN] = None,
    most: Annotated[int | None, typer.Option("--most", min=1, help="So many; default: those that seem wrong.")] = None,
    as_json: AsJson = False,
) -> None:
    """Labels that are probably wrong, by what a classifier says that has not learned from them.

    Example: `vabal labels suspects --most 50 --out again/`
    """
    from vabal import pools
    from vabal.labels.classes import upcoming
    from vabal.labels.export import export_again
    from vabal.rounds.suspects import find

    place = chosen.with_pools()
    with bars(), chosen.reading(place):
        found = find(place, place.params(), most)
        if out is not None:
            known = upcoming(place.inbox, pools.read(place.data))
            export_again(known, place.data, [one.sample_id for one in found.suspects], out)
    show(found, as_json)
