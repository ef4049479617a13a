"""The ports that the servers listen on: the same as last time, or others that are free."""

import socket
import time
from collections.abc import Collection
from pathlib import Path

from vabal.errors import UserError
from vabal.files import sha256

HOST = "127.0.0.1"
FIRST_PORTS = {"s3": 19000, "mlflow": 15000, "prefect": 14000}
ADDRESSES = {"s3": "AWS_ENDPOINT_URL", "mlflow": "MLFLOW_TRACKING_URI", "prefect": "PREFECT_API_URL"}
PORTS_TRIED = 1000  # a service; where the search begins follows from the folder, so that two workspaces rarely meet
PORT_PATIENCE_S = 3.0


def choose_ports(folder: Path, ports: dict[str, int], running: Collection[str]) -> list[str]:
    """Fill `ports`: the same as last time; another, and a word about it, where a stranger has taken one.

    Those of services that are `running` stay. Raises UserError if no port is free.
    """
    offset = int(sha256(str(folder).encode())[:8], 16) % PORTS_TRIED
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
