"""The local stack: S3 (rclone), MLflow, Prefect and one worker, as processes of this user on the loopback interface.

Everything lies in the workspace's `.vabal/`: state, data, credentials, logs. `up` starts what is not running, `down`
ends it, `status` looks. The servers are found again by their pid and a mark in their environment.
"""

import fcntl
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from vabal.adapters import limits, processes
from vabal.adapters.orchestration import POOL, settle
from vabal.adapters.stack.folder import SERVICE_MARK, SERVICES, Stack, open_stack, write_environment
from vabal.adapters.stack.ports import FIRST_PORTS, HOST, choose_ports
from vabal.adapters.stack.readiness import is_ready, prefect_server, started_at
from vabal.adapters.stack.services import COMMANDS, QUIET
from vabal.errors import Unavailable

FLOW_RUN_MARK = "PREFECT__FLOW_RUN_ID"  # Prefect's own, of a flow that a worker started
DYING_S = 2.0
GRACE_S = {"s3": 5.0, "mlflow": 8.0, "prefect": 10.0, "worker": 15.0, "notifier": 5.0}

Progress = Callable[[str, int, int | None], None]


def up(root: Path, progress: Progress | None = None) -> list[str]:
    """Start what is not running of the workspace's stack and wait until all of it answers.

    Stale flow runs of a killed worker are settled before a worker starts, so that the next round runs with nobody's
    help.
    `progress(stage, done, total)` hears how many servers answer. Ctrl-C ends what this call started.
    Returns what is worth telling: a port that had to change, runs that were settled.
    Raises Unavailable with the end of the log if a server dies, or does not answer in time (`limits.start`).
    """
    stack = open_stack(root)
    with stack.lock():
        state = stack.state()
        running = _running(stack, state)
        _clear(stack, running)
        notes = choose_ports(stack.folder, state["ports"], running)
        write_environment(stack, state["ports"])
        start = _Start(stack, state, running, time.monotonic() + limits.start(), progress)
        try:
            for service in ("s3", "mlflow", "prefect"):
                start.unless_running(service)
            start.wait("prefect")
            start.unless_running("worker")
            start.wait(*stack.services())
            start.record()
        except BaseException:
            start.undo()
            raise
    return notes + start.notes


def down(root: Path) -> list[str]:
    """End the worker first, with the flow it runs, then the servers, side by side. Returns a line for each."""
    stack = open_stack(root)
    with stack.lock():
        state = stack.state()
        running = _running(stack, state)
        for service in ("worker", "notifier"):
            _end(service, running.get(service))
        with ThreadPoolExecutor() as side_by_side:
            list(side_by_side.map(_end, FIRST_PORTS, [running.get(service) for service in FIRST_PORTS]))
        lines = [f"{name} ended (process {running[name].pid})" for name in reversed(SERVICES) if name in running]
        for orphan in processes.marked(stack.marks()):  # a flow whose worker was killed, helpers of a killed server
            processes.end(orphan, grace=5.0)
            lines.append(f"left behind by a killed process, ended: process {orphan.pid}")
        stack.record({**state, "processes": {}})
    return lines


def _end(service: str, process: psutil.Process | None) -> None:
    if process is not None:
        processes.end(process, grace=GRACE_S[service])


def status(root: Path) -> list[dict[str, Any]]:
    """One row a service: service, state (`running`, `not answering`, `stopped`), pid, address, since (UTC), log."""
    stack = open_stack(root)
    state = stack.state()
    running = _running(stack, state)
    rows = []
    for service in SERVICES:
        process = running.get(service)
        if process is None and service not in stack.services():
            continue
        answers = process is not None and is_ready(stack, state["ports"], service, process)
        condition = "stopped" if process is None else "running" if answers else "not answering"
        rows.append(
            {
                "service": service,
                "state": condition,
                "pid": process.pid if process else None,
                "address": _address_of(state["ports"], service),
                "since": started_at(process).isoformat(timespec="seconds") if process else None,
                "log": str(stack.log(service)),
            }
        )
    return rows


def _address_of(ports: dict[str, int], service: str) -> str | None:
    if service == "worker":
        return f"work pool {POOL}"
    if service == "notifier":
        return "messages"
    return f"http://{HOST}:{ports[service]}" if service in ports else None


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
    words["notifier"] = "notify --follow"
    return words[service] in command


def _clear(stack: Stack, running: dict[str, psutil.Process]) -> None:
    """End what a killed server left behind: it would hold the port. A killed worker's flow goes on to its end."""
    for service in FIRST_PORTS:
        if service not in running:
            for helper in processes.marked(stack.marks(service)):
                processes.end(helper, grace=2.0)


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
        self.notes: list[str] = []

    def runs(self, service: str) -> bool:
        """Whether the service ran before this `up` and still does; one killed a moment ago may only seem to."""
        if service in self.running and not processes.is_running(self.running[service]):
            del self.running[service]
        return service in self.running

    def unless_running(self, service: str) -> None:
        if service in self.started or self.runs(service):
            return
        if service == "worker":
            self.notes += _settle(self.stack)
        command, environment = COMMANDS[service](self.stack, self.state["ports"])
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
            self.state["processes"][service] = {"pid": process.pid, "since": started_at(process).isoformat()}
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
            for service in SERVICES:
                if service in services or service in self.running or service in self.started:
                    self._look_at(service)
            late = [service for service in services if service not in self.ready]
            if late and time.monotonic() > self.deadline:
                raise Unavailable(
                    f"{', '.join(late)}: no answer in {limits.start():g} s ({limits.START} sets the limit)"
                    f"{self._end_of_log(late[0])}"
                )
            if late:
                time.sleep(0.2)

    def _look_at(self, service: str) -> None:
        if service in self.ready:
            return
        if service == "worker" and "prefect" not in self.ready:
            return  # what a dead one left is settled with Prefect's server before another starts
        self.unless_running(service)
        process = self.started.get(service) or self.running[service]
        if is_ready(self.stack, self.state["ports"], service, process):
            self.ready.add(service)
            self._tell()
        elif not processes.is_running(process):
            raise Unavailable(f"{service} ended at start{self._end_of_log(service)}")

    def _tell(self) -> None:
        if self.progress:
            self.progress("local stack", len(self.ready), len(self.stack.services()))

    def _end_of_log(self, service: str) -> str:
        log = self.stack.log(service)
        return f"; the end of {log}:\n{processes.last_lines(log)}"


# --- after a power cut -----------------------------------------------------------------------------------------------


def _settle(stack: Stack) -> list[str]:
    flows = {
        process: environment[FLOW_RUN_MARK]
        for process in processes.marked(stack.marks("worker"))
        if FLOW_RUN_MARK in (environment := processes.environment_of(process))
    }
    # One that was killed a moment ago may still seem to live, and its run would claim to go on for ever.
    psutil.wait_procs(list(flows), timeout=DYING_S)
    alive = {run for process, run in flows.items() if processes.is_running(process)}
    server = prefect_server(stack.environment())
    settled = settle(server, alive=alive, nobody_else=_nobody_holds(stack.folder / "lock"))
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
