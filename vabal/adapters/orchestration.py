"""The Prefect server over its REST API: is it there, what runs, and what a dead worker left behind.

The one client of it outside Prefect's own engine, and the one translation of its errors.
"""

import base64
import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from vabal.adapters import limits
from vabal.errors import Unavailable

POOL = "gpu"
BUSY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)  # the last one again and again
PAGE = 200
HELD = ("RUNNING", "PENDING", "CANCELLING")


class Absent(Unavailable):
    """Nobody listens at the server's address."""


def step_seconds(flow_run_id: str | None) -> dict[str, float] | None:
    """What each step of a round took in that flow run, by the name of its task; None where no server knows, soon."""
    if flow_run_id is None:
        return None
    try:
        runs = Server.from_environment().task_runs(flow_run_id, within=limits.glance())
    except (Unavailable, LookupError):
        return None
    seconds: dict[str, float] = {}
    for run in runs:
        if run.get("end_time"):
            step = str(run["name"]).partition(" ")[0]
            seconds[step] = seconds.get(step, 0.0) + float(run["total_run_time"])
    return seconds or None


@dataclass(frozen=True)
class Settled:
    """What `settle` did: flow runs marked as crashed, and missed nights that a newer one stands in for."""

    crashed: tuple[str, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Server:
    """A Prefect server: `url` ends in `/api`; `credentials` is `user:password`, or empty."""

    url: str
    credentials: str = ""

    @classmethod
    def from_environment(cls) -> "Server":
        """The server that PREFECT_API_URL and PREFECT_API_AUTH_STRING name. Raises Unavailable if none is named."""
        url = os.environ.get("PREFECT_API_URL", "").rstrip("/")
        if not url:
            raise Unavailable("no Prefect server is named (PREFECT_API_URL): start the stack with `vabal up`")
        return cls(url, os.environ.get("PREFECT_API_AUTH_STRING", ""))

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, within: float | None = None) -> Any:
        """The JSON that the server answers, waited for `within` seconds (None: the silence that `limits` allows).

        503 is Prefect's word for "again, please" (its SQLite file was locked for a moment), and is obeyed; so is an
        answer that broke off. Raises LookupError for 404, Absent (at once) if nobody listens there, Unavailable
        if there is no answer in time, or for credentials that are refused.
        """
        allowed = limits.silence() if within is None else within
        until, why = time.monotonic() + allowed, "it is slow"
        for pause in itertools.chain(BUSY_PAUSES_S, itertools.repeat(BUSY_PAUSES_S[-1])):
            try:
                return self._once(method, path, body, max(until - time.monotonic(), 0.1))
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503:
                        raise self._refused(error, method, path) from None
                why = "it says that it is too busy"
            except (http.client.HTTPException, ConnectionResetError, BrokenPipeError):
                why = "its answers break off"
            except TimeoutError:
                why = "it is slow"
            if time.monotonic() + pause > until:
                break
            time.sleep(pause)
        raise Unavailable(
            f"the Prefect server at {self.url} is there, but did not answer {method} {path} in {allowed:g} s ({why}): "
            f"try again when it is less busy, or give it longer ({limits.SILENCE})"
        )

    def _once(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        """One request. Raises what `call` tries again; Unavailable where there is no server."""
        request = urllib.request.Request(  # noqa: S310 - the address is the user's own setting
            f"{self.url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        if self.credentials:
            token = base64.b64encode(self.credentials.encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with _opener(self.url).open(request, timeout=timeout) as answer:
                return json.loads(answer.read() or b"null")
        except (urllib.error.HTTPError, http.client.HTTPException):
            raise
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError | ConnectionResetError | BrokenPipeError):
                raise reason from None
            raise Absent(f"no Prefect server at {self.url} ({reason}): start the stack with `vabal up`") from None

    def _refused(self, error: urllib.error.HTTPError, method: str, path: str) -> Exception:
        if error.code in (401, 403):
            return Unavailable(f"the Prefect server at {self.url} refuses the credentials (PREFECT_API_AUTH_STRING)")
        if error.code == 404:
            return LookupError(f"{self.url}{path}")
        detail = " ".join(error.read(500).decode("utf-8", errors="replace").split())
        return Unavailable(f"the Prefect server at {self.url} answered {error.code} to {method} {path}: {detail}")

    def check(self, *, within: float | None = None) -> None:
        """Raises Unavailable unless the server answers and takes the credentials."""
        self.call("GET", "/admin/version", within=within)

    def is_ready(self) -> bool:
        """Whether it answers, and soon: for those who ask again."""
        try:
            self.check(within=limits.glance())
        except (Unavailable, LookupError):
            return False
        return True

    # -- workers ------------------------------------------------------------------------------------------------

    def has_pool(self, pool: str) -> bool:
        try:
            self.call("GET", f"/work_pools/{urllib.parse.quote(pool)}")
        except LookupError:
            return False
        return True

    def last_heartbeat(self, pool: str, worker: str) -> datetime | None:
        """When the worker last polled the pool; None if it never did, or there is no such pool."""
        return self._heartbeats(pool, within=limits.glance()).get(worker)

    def has_worker(self, pool: str) -> bool:
        """Whether a worker polled the pool lately (`limits.worker`)."""
        oldest = datetime.now(UTC) - timedelta(seconds=limits.worker())
        return any(moment > oldest for moment in self._heartbeats(pool).values())

    def _heartbeats(self, pool: str, *, within: float | None = None) -> dict[str, datetime]:
        try:
            found = self.call("POST", f"/work_pools/{urllib.parse.quote(pool)}/workers/filter", {}, within=within)
        except LookupError:
            return {}
        times = {item["name"]: item["last_heartbeat_time"] for item in found}
        return {name: datetime.fromisoformat(moment) for name, moment in times.items() if moment}

    # -- deployments --------------------------------------------------------------------------------------------

    def deployment(self, name: str, *, within: float | None = None) -> dict[str, Any]:
        """Of `flow/deployment`. Raises LookupError if there is none."""
        found: dict[str, Any] = self.call("GET", f"/deployments/name/{urllib.parse.quote(name)}", within=within)
        return found

    def pause(self, deployment_id: str, *, paused: bool) -> None:
        """Take the scheduled runs back and make no more, or make them again; what runs goes on."""
        if paused:
            self.call("POST", f"/deployments/{deployment_id}/pause_deployment", {})
        else:
            self.call("POST", f"/deployments/{deployment_id}/resume_deployment", {})
            self.call("POST", f"/deployments/{deployment_id}/schedule", {})  # at once

    # -- flow runs ----------------------------------------------------------------------------------------------

    def run_deployment(self, deployment: str, parameters: dict[str, Any] | None = None) -> str:
        """Schedule a run of `flow/deployment` for now; its id. Raises LookupError if there is no such deployment."""
        found = self.deployment(deployment)
        # The key lets a request whose answer was lost be sent again: it makes no second run.
        body = {"parameters": parameters or {}, "idempotency_key": str(uuid.uuid4())}
        return str(self.call("POST", f"/deployments/{found['id']}/create_flow_run", body)["id"])

    def flow_run(self, flow_run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self.call("GET", f"/flow_runs/{flow_run_id}")
        return run

    def flow_runs(self, flow_runs: dict[str, Any]) -> list[dict[str, Any]]:
        """All flow runs that match Prefect's flow run filter, oldest expected start first."""
        found: list[dict[str, Any]] = []
        while True:
            body = {
                "flow_runs": flow_runs,
                "sort": "EXPECTED_START_TIME_ASC",
                "limit": PAGE,
                "offset": len(found),
            }
            page = self.call("POST", "/flow_runs/filter", body)
            found += page
            if len(page) < PAGE:
                return found

    def some_flow_runs(
        self, flow_runs: dict[str, Any], sort: str, limit: int, *, within: float | None = None
    ) -> list[dict[str, Any]]:
        """The first `limit` flow runs that match, in Prefect's order `sort`."""
        body = {"flow_runs": flow_runs, "sort": sort, "limit": limit}
        found: list[dict[str, Any]] = self.call("POST", "/flow_runs/filter", body, within=within)
        return found

    def task_runs(self, flow_run_id: str, *, within: float | None = None) -> list[dict[str, Any]]:
        """The runs of a flow run's tasks, in the order in which they were expected to start; 200 at most."""
        body = {
            "flow_runs": {"id": {"any_": [flow_run_id]}},
            "sort": "EXPECTED_START_TIME_ASC",
            "limit": PAGE,
        }
        found: list[dict[str, Any]] = self.call("POST", "/task_runs/filter", body, within=within)
        return found

    def force_state(self, flow_run_id: str, kind: str, name: str, message: str) -> None:
        """Set a flow run's state whatever it was before; the deployment's concurrency slot is given back."""
        state = {"type": kind, "name": name, "message": message}
        self.call("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": True})

    def logs(self, flow_run_id: str, after: datetime, limit: int) -> list[dict[str, Any]]:
        """Lines of a run's log from after a moment, oldest first."""
        wanted = {"flow_run_id": {"any_": [flow_run_id]}, "timestamp": {"after_": after.isoformat()}}
        found: list[dict[str, Any]] = self.call(
            "POST", "/logs/filter", {"logs": wanted, "limit": limit, "sort": "TIMESTAMP_ASC"}
        )
        return found

    # -- automations --------------------------------------------------------------------------------------------

    def add_automation(self, automation: dict[str, Any]) -> None:
        """Make it, unless there is one of its name."""
        named = {"automations": {"name": {"any_": [automation["name"]]}}}
        if not self.call("POST", "/automations/filter", named):
            self.call("POST", "/automations/", automation)


def preflight() -> None:
    """One small request. Raises Unavailable unless the environment names a Prefect server that lets us in."""
    Server.from_environment().check()


def _opener(url: str) -> urllib.request.OpenerDirector:
    """A proxy of the environment is not asked for an address on this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if host == "localhost" or host.startswith("127."):
        return urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener()


def settle(server: Server, *, alive: Collection[str], nobody_else: bool) -> Settled:
    """Put right what servers, workers and flows left behind when they were killed.

    Prefect keeps a deployment's concurrency slot taken until its flow run ends, and a killed one never does: every
    later run would wait for ever. So runs that claim to go on, but have no process, are set to Crashed, which gives the
    slot back. Of the nights that were missed meanwhile, only the latest of a deployment is made good.

    alive        flow run ids that still have a process; they are left alone
    nobody_else  no round runs outside the worker, so runs without a deployment are dead as well
    """
    crashed = []
    for run in server.flow_runs({"state": {"type": {"any_": list(HELD)}}}):
        if run["id"] not in alive and (run["deployment_id"] or nobody_else):
            server.force_state(run["id"], "CRASHED", "Crashed", "its worker died; the next round goes on from here")
            crashed.append(str(run["name"]))
    return Settled(tuple(crashed), tuple(_skip_missed(server)))


def _skip_missed(server: Server) -> list[str]:
    moment = (datetime.now(UTC) - timedelta(seconds=15)).isoformat()
    overdue = server.flow_runs(
        {"state": {"type": {"any_": ["SCHEDULED"]}}, "expected_start_time": {"before_": moment}},
    )
    latest = {run["deployment_id"]: run["id"] for run in overdue if run["auto_scheduled"]}
    skipped = []
    for run in overdue:
        if run["auto_scheduled"] and latest[run["deployment_id"]] != run["id"]:
            message = "missed while the stack was down; the latest missed night stands in for it"
            server.force_state(run["id"], "CANCELLED", "Skipped", message)
            skipped.append(str(run["name"]))
    return skipped
