"""Servers that misbehave: silent, cut off in the middle of an answer, or answering with errors only."""

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("silent", "cut", "500", "503")


@contextmanager
def faulty(fault: str) -> Iterator[str]:
    """The address of a server with one of `FAULTS`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        over = threading.Event()
        kept: list[socket.socket] = []

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if fault != "silent":
                    threading.Thread(target=_answer, args=(connection, fault), daemon=True).start()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()


def _answer(connection: socket.socket, fault: str) -> None:
    with suppress(OSError), connection:
        while (request := connection.recv(65536)) and b"\r\n\r\n" not in request:
            pass
        if fault == "cut":
            connection.sendall(
                b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"half'
            )
        else:
            connection.sendall(f"HTTP/1.1 {fault} Sorry\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def refusing(target: str, method: str) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that passes requests on to `target`, but answers 403 to `method`; and what it refused."""
    refused: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            body = self._body()
            if self.command == method:
                refused.append(self.path)
                self._reply(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
                return
            passed = urllib.request.Request(target + self.path, data=body, method=self.command)  # noqa: S310 -- moto's
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect"):
                    passed.add_header(name, value)
            if not passed.has_header("Content-type"):
                passed.add_header("Content-type", "binary/octet-stream")  # else urllib says that it is a form
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            try:
                with opener.open(passed) as answer:
                    self._reply(answer.status, dict(answer.headers), answer.read())
            except urllib.error.HTTPError as error:
                self._reply(error.code, dict(error.headers), error.read())

        def _body(self) -> bytes | None:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            length = self.headers.get("Content-Length")
            return self.rfile.read(int(length)) if length else None

        def _reply(self, code: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(code)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", refused
    finally:
        server.shutdown()
        server.server_close()
