"""Rounds: `round`, `abandon`, `deploy`, `schedule`, `checkout`."""

from typing import TYPE_CHECKING, Annotated

import typer

from vabal.cli import chosen, complete
from vabal.cli.console import bars, say, say_end, show
from vabal.cli.following import say_next
from vabal.cli.options import AsJson
from vabal.errors import UserError

if TYPE_CHECKING:
    from vabal.settings.models import Params
    from vabal.workspace import Workspace


def round_(
    strategy: Annotated[
        str | None,
        typer.Option(help="Instead of params.yaml's selection.strategy.", autocompletion=complete.strategies),
    ] = None,
    worker: Annotated[bool, typer.Option("--worker", help="Through a worker, as the schedule does.")] = False,
) -> None:
    """Run one round now: take in, train, estimate, select, publish.

    Example: `vabal round --strategy entropy`
    """
    place = chosen.with_pools()
    params = place.params({"selection.strategy": strategy} if strategy else None)
    from vabal.adapters import orchestration

    orchestration.preflight()
    ended = _through_a_worker(params, strategy) if worker else _here(place, params, strategy)
    if ended != "Overtaken":  # which tells by itself what comes then
        say_next()


def _through_a_worker(params: "Params", strategy: str | None) -> str:
    """The name of its final state."""
    from vabal.flows.deploy import run_now
    from vabal.flows.schedule import deployment_names

    ended = run_now(deployment_names(params)[0], typer.echo, {"strategy": strategy} if strategy else None)
    if not ended.completed:
        raise UserError(f"the round ended as {ended.name}: {ended.message}")
    return ended.name


def _here(place: "Workspace", params: "Params", strategy: str | None) -> str:
    """The name of its final state."""
    from rich.console import Console

    console = Console(stderr=True, markup=False, highlight=False)
    with bars(console):
        from vabal.flows.here import run_here
        from vabal.flows.logs import leave_the_end_to_the_command

        if params.compute.task_runner == "ray":
            from vabal.flows.on_ray import active_learning_round
        else:
            from vabal.flows.round import active_learning_round
        leave_the_end_to_the_command(console)
        state = run_here(active_learning_round, str(place.root), strategy)
    say_end(state)
    return str(state.name)


def abandon() -> None:
    """Drop the round that was begun, or that is half published; what came in stays in the inbox.

    Example: `vabal abandon`, then `vabal round`
    """
    place = chosen.with_pools()
    from vabal.flows.publication import abandon as abandon_now

    with place.lock("vabal abandon"):
        lines = abandon_now(place)
    say(lines)


def deploy() -> None:
    """Put the nightly round, and the promotion after it, on the Prefect server's schedule.

    Example: `vabal deploy`
    """
    place = chosen.workspace()
    from vabal.adapters import orchestration

    orchestration.preflight()
    from vabal.flows.deploy import deploy as deploy_flows

    say(deploy_flows(place.root, place.params()))


def schedule(
    hold: Annotated[bool, typer.Option("--pause", help="No night runs until --resume; one that runs goes on.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="The nights come again.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the nightly schedule: the next nights, the last one and how it ended; pause and resume it.

    Example: `vabal schedule --pause`
    """
    if hold and resume:
        raise UserError("--pause and --resume contradict each other: name one of them")
    place = chosen.workspace()
    from vabal.adapters import orchestration
    from vabal.flows import schedule as nights

    orchestration.preflight()
    server, params = orchestration.Server.from_environment(), place.params()
    if hold or resume:
        nights.pause(server, params, paused=hold)
    show(nights.look(server, params), as_json)


def checkout(
    wanted: Annotated[
        str | None, typer.Argument(metavar="[ROUND]", help="A round's number, or `newest`; default: this commit's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what was edited by hand below data/.")] = False,
) -> None:
    """Bring back the pools of a round, from the cache or S3; without ROUND those that this commit pins.

    Example: `vabal checkout 2`, then `vabal checkout newest`
    """
    from vabal.adapters.versioning import Versioning
    from vabal.rounds.checkout import checkout as check_out

    place = chosen.workspace()
    with place.lock("vabal checkout"):
        typer.echo(check_out(place, Versioning(place.root), wanted, force=force))
