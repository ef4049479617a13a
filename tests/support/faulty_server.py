"""HTTP servers that misbehave: silent, late, cut off in the middle of an answer, or answering with errors.

`faulty` and `refusing` are for tests. `python -m tests.support.faulty_server TARGET CONTROL` is a process of its own
before a real server, for those who fork: it prints its port, and CONTROL is a JSON file that `tell` writes: `fault` (of
FAULTS), `after` (requests passed on first), `count` (requests that fail then), `id` (a new one begins to count anew).
"""

import http.client
import json
import socket
import struct
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("silent", "cut", "500", "503", "reset")
SILENT_S = 30.0  # of the process before a real server; then the connection is closed
LATE_S = 1.5
CODES = {"403": b"<Error><Code>AccessDenied</Code></Error>", "500": b"", "503": b""}
HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "expect")

Headers = list[tuple[str, str]]


class FaultyServer(ThreadingHTTPServer):
    """Passes requests on to `target` (without one: answers `{"whole": "answer"}`), but for those that have a fault."""

    daemon_threads = True

    def __init__(self, fault_of: Callable[[str, str], str], target: str | None = None) -> None:
        """`fault_of(method, path)`: one of FAULTS, `403`, `late` (then as if it were none), or empty."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fault_of = fault_of
        self.target = urlsplit(target).netloc if target else None
        self.silent = False  # towards whatever protocol
        self.silent_s = SILENT_S
        self.over = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Clients that gave up are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def handle(self) -> None:
        if self.server.silent:
            self.server.over.wait(self.server.silent_s)
        else:
            super().handle()

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        fault = self.server.fault_of(self.command, self.path)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault == "silent":
            self.server.over.wait(self.server.silent_s)
            self.close_connection = True
        elif fault in CODES:
            self._reply(int(fault), [], CODES[fault])
        else:
            if fault == "late":
                self.server.over.wait(LATE_S)
            self._reply(*self._answer(body), cut=fault == "cut")

    def _answer(self, body: bytes | None) -> tuple[int, Headers, bytes]:
        if self.server.target is None:
            return 200, [("Content-Type", "application/json")], b'{"whole": "answer"}'
        server = http.client.HTTPConnection(self.server.target, timeout=60)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in HOP_BY_HOP:
                server.putheader(name, value)
        if body is not None:
            server.putheader("Content-Length", str(len(body)))
        server.endheaders(body)
        answer = server.getresponse()
        found = answer.status, answer.getheaders(), answer.read()
        server.close()
        return found

    def _body(self) -> bytes | None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = self.headers.get("Content-Length")
        return self.rfile.read(int(length)) if length else None

    def _reply(self, code: int, headers: Headers, body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(code)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@contextmanager
def serving(server: FaultyServer) -> Iterator[FaultyServer]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


@contextmanager
def faulty(fault: str, target: str | None = None) -> Iterator[str]:
    """The address of a server with this fault in every answer; a silent one is so whatever the protocol."""
    server = FaultyServer(lambda _method, _path: fault, target)
    server.silent = fault == "silent"
    server.silent_s = 600.0  # longer than anybody may wait
    with serving(server):
        yield server.address


@contextmanager
def refusing(target: str, method: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that passes requests on to `target`, but answers 403 to `method`; and what it refused."""
    refused: list[str] = []

    def fault_of(asked: str, path: str) -> str:
        if asked != method:
            return ""
        refused.append(path)
        return "403"

    with serving(FaultyServer(fault_of, target)) as server:
        yield server.address, refused


@contextmanager
def failing_once(target: str, method: str, fault: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that passes requests on to `target`, but for the first of `method`; and what failed."""
    failed: list[str] = []

    def fault_of(asked: str, path: str) -> str:
        if asked != method or failed:
            return ""
        failed.append(path)
        return fault

    with serving(FaultyServer(fault_of, target)) as server:
        yield server.address, failed


# -- as a process of its own --------------------------------------------------------------------------------------


def tell(control: Path, fault: str = "", after: int = 0, count: int = 0) -> None:
    """What happens to the requests from now on."""
    temporary = control.with_suffix(".new")
    temporary.write_text(json.dumps({"fault": fault, "after": after, "count": count, "id": uuid.uuid4().hex}))
    temporary.replace(control)


def seen(control: Path) -> int:
    """How many requests there were since it was last told what to do."""
    told = json.loads(_counts(control).read_text()) if _counts(control).exists() else {}
    return int(told.get(json.loads(control.read_text())["id"], 0))


def _counts(control: Path) -> Path:
    return control.with_suffix(".seen")


def _as_told(control: Path) -> Callable[[str, str], str]:
    lock, counts = threading.Lock(), dict[str, int]()

    def fault_of(_method: str, _path: str) -> str:
        with lock:
            told = json.loads(control.read_text())
            number = counts[told["id"]] = counts.get(told["id"], 0) + 1
            _counts(control).write_text(json.dumps({told["id"]: number}))
        return str(told["fault"]) if told["after"] < number <= told["after"] + told["count"] else ""

    return fault_of


if __name__ == "__main__":
    process = FaultyServer(_as_told(Path(sys.argv[2])), sys.argv[1])
    sys.stdout.write(f"{process.server_port}\n")
    sys.stdout.flush()
    process.serve_forever()
