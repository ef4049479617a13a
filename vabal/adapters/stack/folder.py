"""Where a workspace's stack keeps its things: addresses and credentials, logs, the record of what runs."""

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vabal.adapters.stack.ports import ADDRESSES, HOST
from vabal.errors import UserError
from vabal.workspace import OWN, Workspace

REGION = "us-east-1"
SERVICES = ("s3", "mlflow", "prefect", "worker", "notifier")
STACK_MARK, SERVICE_MARK = "VABAL_STACK", "VABAL_SERVICE"


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

    def services(self) -> tuple[str, ...]:
        """Those that belong to it: the notifier only where params.yaml has messages sent."""
        with suppress(UserError):
            if Workspace(self.folder.parent).params().notify.by:
                return SERVICES
        return tuple(service for service in SERVICES if service != "notifier")

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
        **{name: before[name] for name in OWN if name in before},
    }
    write_private(stack.env_file, "".join(f"{key}={value}\n" for key, value in environment.items()))
    return environment
