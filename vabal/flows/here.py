"""A flow run in the command's own process, whose Prefect server may go away meanwhile."""

import asyncio
import sys
from typing import Any

import httpx
from prefect import Flow, State
from prefect._internal.concurrency import services

from vabal.adapters.orchestration import Absent, Server
from vabal.errors import Unavailable


def run_here(flow: Flow[..., State[Any]], *arguments: Any) -> State[Any]:
    """Run it to its end, well or not. Raises Unavailable if Prefect's server went away and took the run with it."""
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
    """Where the server is gone, drop the events and lines of log that it was to get.

    Prefect would try to send each of them for seconds, one after the other, before it lets the process end.
    """
    try:
        Server.from_environment().check()
    except Absent:
        done = asyncio.Event()
        done.set()
        for service in list(services._active_services):
            service._stop(at_exit=True)
            service._done_event = done
    except Unavailable:
        return  # there, but slow: it gets them
