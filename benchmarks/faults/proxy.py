"""`python -m benchmarks.faults.proxy TARGET CONTROL`: an HTTP proxy on loopback that fails when it is told to.

It prints its port. CONTROL is a JSON file: `fault` (of FAULTS), `after` (requests passed on first), `count` (requests
that fail then), `id` (a new one begins to count anew).
"""

import http.client
import json
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

FAULTS = ("reset", "500", "503", "cut", "hang")
HANG_S = 30.0


class Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, target: str, control: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = urlsplit(target).netloc
        self.control = control
        self.lock = threading.Lock()
        self.seen: dict[str, int] = {}

    def fault(self) -> str:
        """What happens to the next request; empty: nothing."""
        told = json.loads(self.control.read_text())
        with self.lock:
            number = self.seen[told["id"]] = self.seen.get(told["id"], 0) + 1
        return told["fault"] if told["after"] < number <= told["after"] + told["count"] else ""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        body = self._body()
        fault = self.server.fault()
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        elif fault in ("500", "503"):
            self._reply(int(fault), [], b"")
        elif fault == "hang":
            time.sleep(HANG_S)
            self.close_connection = True
        else:
            self._pass_on(body, cut=fault == "cut")

    def _pass_on(self, body: bytes | None, *, cut: bool) -> None:
        server = http.client.HTTPConnection(self.server.target, timeout=60)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "expect"):
                server.putheader(name, value)
        if body is not None:
            server.putheader("Content-Length", str(len(body)))
        server.endheaders(body)
        answer = server.getresponse()
        self._reply(answer.status, answer.getheaders(), answer.read(), cut=cut)
        server.close()

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

    def _reply(self, code: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        self.send_response_only(code)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    proxy = Proxy(sys.argv[1], Path(sys.argv[2]))
    print(proxy.server_port, flush=True)
    proxy.serve_forever()
