"""The stack's folder, its ports and addresses, its credentials."""

import fcntl
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from vabal.adapters.orchestration import POOL
from vabal.errors import UserError

HOST = "127.0.0.1"
REGION = "us-east-1"
FIRST_PORTS = {"s3": 19000, "mlflow": 15000, "prefect": 14000}
ADDRESSES = {"s3": "AWS_ENDPOINT_URL", "mlflow": "MLFLOW_TRACKING_URI", "prefect": "PREFECT_API_URL"}
PORTS_TRIED = 1000  # a service; where the search begins follows from the folder, so that two workspaces rarely meet
PORT_PATIENCE_S = 3.0
SERVICES = ("s3", "mlflow", "prefect", "worker")
STACK_MARK, SERVICE_MARK = "VABAL_STACK", "VABAL_SERVICE"
FLOW_RUN_MARK = "PREFECT__FLOW_RUN_ID"
GRACE_S = {"s3": 5.0, "mlflow": 8.0, "prefect": 10.0, "worker": 15.0}

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Stack:
    """Where the stack of one workspace keeps its things, and how its processes are marked."""

    folder: Path

    @property
    def state_file(self) -> Path:
        return self.folder / "stack.json"

    @property
    def env_file(self) -> Path:
        return self.folder / "env"

    def log(self, service: str) -> Path:
        return self.folder / "logs" / f"{service}.log"

    def marks(self, service: str | None = None) -> dict[str, str]:
        marks = {STACK_MARK: str(self.folder)}
        return marks if service is None else {**marks, SERVICE_MARK: service}

    def state(self) -> dict[str, Any]:
        """Ports and processes as last recorded; an unreadable record counts as none, the marks find what runs.

        A server is started after its address was written to `env` and before it is recorded: an `up` that was killed
        in between left it running on the port that stands there.
        """
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
            return {"ports": self._ports() | dict(state["ports"]), "processes": dict(state["processes"])}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {"ports": self._ports(), "processes": {}}

    def _ports(self) -> dict[str, int]:
        """By the addresses in `env`, as far as they are this machine's."""
        environment, found = self.environment(), {}
        for service, name in ADDRESSES.items():
            with suppress(ValueError):
                address = urlsplit(environment.get(name, ""))
                if address.hostname == HOST and address.port:
                    found[service] = address.port
        return found

    def record(self, state: dict[str, Any]) -> None:
        write_private(self.state_file, json.dumps(state, indent=1, sort_keys=True) + "\n")

    def environment(self) -> dict[str, str]:
        """What `.vabal/env` holds; empty before the first start."""
        if not self.env_file.is_file():
            return {}
        lines = self.env_file.read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One `up` or `down` at a time; a second waits for the first."""
        descriptor = os.open(self.folder / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def open_stack(root: Path) -> Stack:
    folder = root.absolute() / ".vabal"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return Stack(folder)


def write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def started_at(process: psutil.Process) -> datetime:
    return datetime.fromtimestamp(process.create_time(), UTC)


def address_of(ports: dict[str, int], service: str) -> str | None:
    if service == "worker":
        return f"work pool {POOL}"
    return f"http://{HOST}:{ports[service]}" if service in ports else None


def choose_ports(stack: Stack, state: dict[str, Any], running: dict[str, psutil.Process]) -> list[str]:
    """The same ports as last time; another, and a word about it, where a stranger has taken one."""
    ports: dict[str, int] = state["ports"]
    offset = int.from_bytes(hashlib.sha256(str(stack.folder).encode()).digest()[:4]) % PORTS_TRIED
    notes = []
    for service, first in FIRST_PORTS.items():
        if service in running or (service in ports and _becomes_free(ports[service])):
            continue
        taken = set(ports.values())
        around = (first + (offset + place) % PORTS_TRIED for place in range(PORTS_TRIED))
        candidates = (port for port in around if port not in taken and _is_free(port))
        port = next(candidates, None)
        if port is None:
            raise UserError(f"{service}: no free port from {first} to {first + PORTS_TRIED - 1} on {HOST}")
        if service in ports:
            notes.append(f"{service}: port {ports[service]} is taken by another program, so it listens on {port} now")
        ports[service] = port
    return notes


def _becomes_free(port: int) -> bool:
    """A server killed a moment ago may still be on its way out."""
    deadline = time.monotonic() + PORT_PATIENCE_S
    while not _is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def write_environment(stack: Stack, ports: dict[str, int]) -> dict[str, str]:
    """`.vabal/env`: addresses, and credentials made at random at the first start and kept."""
    before = stack.environment()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{ports['s3']}",
        "AWS_ACCESS_KEY_ID": before.get("AWS_ACCESS_KEY_ID") or secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": before.get("AWS_SECRET_ACCESS_KEY") or secrets.token_urlsafe(30),
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_TRACKING_URI": f"http://{HOST}:{ports['mlflow']}",
        "MLFLOW_TRACKING_USERNAME": "vabal",
        "MLFLOW_TRACKING_PASSWORD": before.get("MLFLOW_TRACKING_PASSWORD") or secrets.token_urlsafe(30),
        "PREFECT_API_URL": f"http://{HOST}:{ports['prefect']}/api",
        "PREFECT_API_AUTH_STRING": before.get("PREFECT_API_AUTH_STRING") or f"vabal:{secrets.token_urlsafe(30)}",
        "PREFECT_HOME": str(stack.folder / "prefect"),
    }
    write_private(stack.env_file, "".join(f"{key}={value}\n" for key, value in environment.items()))
    return environment
