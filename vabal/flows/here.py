"""A flow run in the command's own process, whose Prefect server may go away meanwhile."""

import sys
from typing import Any

import httpx
from prefect import Flow, State

from vabal.adapters.orchestration import Absent, Server
from vabal.errors import Unavailable
from vabal.flows import insides


def run_here(flow: Flow[..., State[Any]], *arguments: Any) -> State[Any]:
    """Run it to its end, well or not. Raises Unavailable if Prefect's server went away and took the run with it.

    Where nobody listens any more that is so at once: the same command again goes on behind the last finished stage.
    """
    insides.take_refusals_at_once()
    try:
        state = flow(*arguments, return_state=True)
        if not state.is_completed() and isinstance(lost := state.result(raise_on_failure=False), httpx.HTTPError):
            raise lost
    except httpx.HTTPError as error:
        sys.stderr.write("\n")  # Prefect's own words on standard error lack the end of a line
        raise Unavailable(
            f"the Prefect server went away during the run ({error}): start it (`vabal up`), then run this again: what "
            "is finished is kept"
        ) from error
    finally:
        _wait_for_nobody()
    return state


def _wait_for_nobody() -> None:
    """Nothing is sent to a server that is gone; one that is there, but slow, gets what waits for it."""
    try:
        Server.from_environment().check()
    except Absent:
        insides.drop_what_waits()
    except Unavailable:
        return
