"""The command that comes next: the last line of those that bring a workspace further."""

import os
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vabal.cli import chosen
from vabal.cli.overview import why_enough
from vabal.errors import UserError

if TYPE_CHECKING:
    from vabal.workspace import Workspace


def say_next(words: str | None = None) -> None:
    """As a line for people, `words` or else what the workspace waits for.

    None where that cannot be told: the command that comes next says why, and this one ended well.
    """
    from vabal.workspace import Workspace

    place = None
    with suppress(UserError):
        place = Workspace.find(chosen.start())
    if words is None:
        with suppress(UserError, OSError):
            words = next_words(place)
    if words is not None:
        typer.echo(f"next: {chosen.program()} {words}")


def next_words(place: "Workspace | None") -> str | None:
    """What a workspace waits for, as a command without the program's name; None where that cannot be told.

    Raises UserError where its record or inbox cannot be read.
    """
    from vabal.workspace import PINS

    pinned = place is not None and (place.root / PINS).is_file()
    if place is None or not (pinned or (place.data / "catalog.parquet").is_file()):
        return "init --source folder:PATH"
    if not (place.data / "catalog.parquet").is_file():
        return None  # what is pinned lies at an S3 that only its people know
    if not os.environ.get("PREFECT_API_URL"):
        return "up"
    return _words_of_labels(place)


def _words_of_labels(place: "Workspace") -> str:
    """By what is asked for, and what came."""
    from vabal import rounds
    from vabal.rounds import requests

    if rounds.pending_publication(place) is not None:
        return "round"
    settings, found = place.params().labelling, requests.answers(place)
    goes_on = found.share >= settings.share or (settings.when_incomplete == "continue" and found.answered > 0)
    if found.labeled and goes_on:
        if _has_something_to_do(place):
            return "round"
        return "promote" if rounds.head(place.data).model else "ingest PATH"
    if settings.studio is not None:
        return "labels sync"
    folder = Path("requests", f"{found.round:04d}")
    file = folder / "requests.csv"
    return import_words(file) if file.is_file() else f"labels export {folder}"


def import_words(file: Path) -> str:
    """What takes in the answers to requests that were written into a file."""
    return f"labels import {shlex.quote(str(file))}  # once it is filled in"


def _has_something_to_do(place: "Workspace") -> bool:
    """Something to learn that came in, or something to ask."""
    from vabal import pools
    from vabal.rounds import requests

    if requests.pending(place):
        return True
    return why_enough(place) is None and bool((pools.read(place.data).unlabeled["status"] == pools.AVAILABLE).any())
