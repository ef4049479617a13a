"""Pages of rounds: `report`, `open`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vabal.cli import chosen

if TYPE_CHECKING:
    from vabal.workspace import Workspace

Round = Annotated[int | None, typer.Argument(metavar="[ROUND]", help="A round's number; default: the newest.")]


def report(number: Round = None) -> None:
    """Write the page of a round: its picks as pictures with reasons, what changed, how good the classifier is.

    Example: `vabal report 2`
    """
    place = chosen.with_pools()
    with chosen.reading(place):
        path = _write(place, number)
    typer.echo(str(path))


def open_(
    number: Round = None,
    charts: Annotated[bool, typer.Option("--charts", help="MLflow's charts of all rounds instead.")] = False,
) -> None:
    """Print where the page of a round is, and show it where there is a browser; it is made if it is not there.

    Example: `vabal open`, `vabal open --charts`
    """
    import webbrowser

    place = chosen.with_pools()
    if charts:
        said = shown = _charts(place)
    else:
        path = _page(place, number)
        said, shown = str(path), path.as_uri()
    typer.echo(said)
    if _sees_windows():
        webbrowser.open(shown)


def _page(place: "Workspace", number: int | None) -> Path:
    from vabal import rounds

    with chosen.reading(place):
        wanted = rounds.head(place.data).round if number is None else number
        path = place.report(wanted)
        return path if path.is_file() else _write(place, wanted)


def _charts(place: "Workspace") -> str:
    from vabal.adapters.tracking import Tracking

    tracking = Tracking(place.params().workspace.name)
    tracking.preflight()
    return tracking.charts_url()


def _write(place: "Workspace", number: int | None) -> Path:
    from vabal import rounds
    from vabal.adapters.orchestration import step_seconds
    from vabal.pages import night

    if number is None:
        number = rounds.head(place.data).round
    known = number in rounds.manifest_numbers(place.data)
    flow_run = rounds.read_manifest(place.data, number).prefect_flow_run if known else None
    return night.write(place, number, step_seconds(flow_run))


def _sees_windows() -> bool:
    """Whether a browser would show a window: not one that takes the terminal over, nor none at all."""
    named = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in named)
