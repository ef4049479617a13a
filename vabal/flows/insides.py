"""What this project touches of Prefect's insides, all of it: how its engine treats a server that is gone.

Prefect has no settings for either. Where it has changed them, both do nothing: a run then ends as well, but minutes
later; `tests/unit/flows/test_insides.py` fails.
"""

import asyncio
import contextlib

from prefect.client import base


def take_refusals_at_once() -> None:
    """From now on a refused connection is an error at once in this process, as on a client's first request.

    Prefect's clients would try again for a minute with each request once the server has answered. One that is silent,
    slow or busy is tried again as ever.
    """
    for client in (base.PrefectHttpxAsyncClient, base.PrefectHttpxSyncClient):
        client._has_connected = property(lambda _client: False, lambda _client, _value: None)  # type: ignore[assignment]


def drop_what_waits() -> None:
    """Drop the events and lines of log that the server was to get.

    Prefect would try to send each of them for seconds, one after the other, before it lets the process end.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from prefect._internal.concurrency import services  # noqa: PLC0415 -- which may not be there

        done = asyncio.Event()
        done.set()
        for service in list(services._active_services):
            service._stop(at_exit=True)
            service._done_event = done
