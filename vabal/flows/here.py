"""A flow run in the command's own process, whose Prefect server may go away meanwhile."""

from typing import Any

import httpx
from prefect import Flow, State
from prefect._internal.concurrency.services import QueueService

from vabal.adapters.orchestration import Absent, Server
from vabal.errors import Unavailable


def run_here(flow: Flow[..., Any], *arguments: Any) -> State[Any]:
    """Run it to its end, well or not. Raises Unavailable if Prefect's server went away and took the run with it."""
    try:
        state: State[Any] = flow(*arguments, return_state=True)
        error = None if state.is_completed() else state.result(raise_on_failure=False)
        if isinstance(error, httpx.HTTPError):
            raise error
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the Prefect server went away during the run ({error}): start it (`vabal up`), then run this again: what "
            "is finished is kept"
        ) from error
    finally:
        _wait_for_nobody()
    return state


def _wait_for_nobody() -> None:
    """Where the server is gone, drop the events and lines of log that it was to get.

    Prefect would try to send each of them for a minute, one after the other, before it lets the process end.
    """
    try:
        Server.from_environment().check()
    except Absent:
        for service in list(QueueService._instances.values()):
            service.reset_for_fork()
    except Unavailable:
        return  # there, but slow: it gets them
