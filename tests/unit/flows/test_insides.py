"""Prefect's insides are what `vabal.flows.insides` takes them for; where these fail, Prefect has changed them."""

import asyncio
import http.server
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prefect._internal.concurrency import services
from prefect._internal.concurrency.api import create_call, from_sync
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

from vabal.flows import insides


class Server(http.server.ThreadingHTTPServer):
    """Says these codes, one after the other, then 200."""

    codes: list[int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.send_response(self.server.codes.pop(0) if self.server.codes else 200)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Answer)
    server.codes = []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    for client in (PrefectHttpxAsyncClient, PrefectHttpxSyncClient):
        if "_has_connected" in vars(client):
            delattr(client, "_has_connected")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long Prefect's client would have waited before it tried again; it waits for nothing."""
    pauses: list[float] = []

    async def no_sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("prefect.client.base.anyio.sleep", no_sleep)
    monkeypatch.setattr("prefect.client.base.time.sleep", pauses.append)
    return pauses


def gone_after_an_answer(server: Server) -> None:
    """Two requests, the second to nobody."""
    with PrefectHttpxSyncClient(base_url=server.url, enable_csrf_support=False) as client:
        client.get("/")
        server.shutdown()
        server.server_close()
        client.get("/")


async def gone_after_an_answer_too(server: Server) -> None:
    async with PrefectHttpxAsyncClient(base_url=server.url, enable_csrf_support=False) as client:
        await client.get("/")
        server.shutdown()
        server.server_close()
        await client.get("/")


def test_a_client_by_itself_tries_again_where_nobody_listens_any_more(server: Server, slept: list[float]) -> None:
    with pytest.raises(httpx.HTTPError):
        gone_after_an_answer(server)
    assert len(slept) >= 5


def test_a_refused_connection_is_an_error_at_once(server: Server, slept: list[float]) -> None:
    insides.take_refusals_at_once()
    with pytest.raises(httpx.HTTPError):
        gone_after_an_answer(server)
    assert len(slept) <= 1  # the connection that was open may break off first


def test_of_a_client_in_a_loop_too(server: Server, slept: list[float]) -> None:
    insides.take_refusals_at_once()
    with pytest.raises(httpx.HTTPError):
        asyncio.run(gone_after_an_answer_too(server))
    assert len(slept) <= 1


def test_a_server_that_is_busy_is_tried_again_as_ever(server: Server, slept: list[float]) -> None:
    insides.take_refusals_at_once()
    server.codes = [503, 503]
    with PrefectHttpxSyncClient(base_url=server.url, enable_csrf_support=False) as client:
        assert client.get("/").status_code == 200
    assert len(slept) == 2


class Stuck(services.QueueService[str]):
    """Never done with what it was handed."""

    begun = threading.Event()

    async def _handle(self, item: str) -> None:
        self.begun.set()
        await asyncio.sleep(3600)


def test_what_waits_for_a_server_is_dropped() -> None:
    service: Any = from_sync.call_soon_in_loop_thread(create_call(Stuck.instance)).result()
    for item in ("an event", "another"):
        service.send(item)
    assert Stuck.begun.wait(120)
    waiting = service._drain()  # as at the end of the process
    assert not waiting.done()

    insides.drop_what_waits()

    assert service._drain().result(120) is False
    waiting.cancel()
