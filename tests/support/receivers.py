"""Real servers on this machine that take messages: one for webhooks, one for e-mail."""

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any


@dataclass
class Received:
    """Where to send to, and what came; `answers` with what status from now on."""

    port: int = 0
    answers: int = 200
    bodies: list[Any] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


@contextmanager
def webhook() -> Iterator[Received]:
    received = Received()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(received.answers)
            self.end_headers()
            if received.answers == 200:
                received.bodies.append(json.loads(body))
                received.keys.append(self.headers["Idempotency-Key"])

        def log_message(self, *_: object) -> None:
            """Silent."""

    with _serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as received.port:
        yield received


@contextmanager
def smtp() -> Iterator[Received]:
    """Speaks as much of RFC 5321 as a client needs; `bodies` are parsed messages, `keys` who they are to."""
    received = Received(answers=250)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            while line := self.rfile.readline().decode().strip():
                verb = line.split()[0].upper()
                if verb == "DATA":
                    self.say("354 go on")
                    self.take()
                elif verb == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    if verb == "RCPT":
                        received.keys.append(line.partition(":")[2].strip("<>"))
                    self.say("250 yes")

        def take(self) -> None:
            lines = []
            while (line := self.rfile.readline()) != b".\r\n":
                lines.append(line.removeprefix(b"."))
            if received.answers == 250:
                letter = message_from_bytes(b"".join(lines), policy=policy.default)
                assert isinstance(letter, EmailMessage)
                received.bodies.append(letter)
            self.say(f"{received.answers} so")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with _serving(Server(("127.0.0.1", 0), Handler)) as received.port:
        yield received


@contextmanager
def _serving(server: socketserver.TCPServer) -> Iterator[int]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()
