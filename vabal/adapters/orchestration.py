"""The Prefect server over its REST API: is it there, is a worker polling, and what a dead worker left behind."""

import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from vabal.adapters import limits
from vabal.errors import Unavailable

POOL = "gpu"
TIMEOUT_S = 10.0
BUSY_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
PAGE = 200
HELD = ("RUNNING", "PENDING", "CANCELLING")


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

    def call(self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float = TIMEOUT_S) -> Any:
        """The JSON that the server answers. Raises Unavailable if it is down or refuses the credentials.

        503 is Prefect's word for "again, please" (its SQLite file was locked for a moment), and is obeyed; so is an
        answer that broke off. It is given up after the silence that `limits` allows.
        """
        until, what = time.monotonic() + limits.silence(), "too busy"
        timeout = min(timeout, limits.silence())
        for pause in BUSY_PAUSES_S:
            if time.monotonic() > until:
                break
            try:
                return self._once(method, path, body, timeout)
            except urllib.error.HTTPError as error:
                with error:
                    if error.code != 503:
                        raise self._refused(error, method, path) from None
                    what = "too busy"
            except http.client.HTTPException:
                what = "breaking off"
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
        raise Unavailable(f"the Prefect server at {self.url} does not answer {method} {path} ({what}): try again")

    def _once(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
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
            raise Unavailable(f"no Prefect server at {self.url} ({reason}): start the stack with `vabal up`") from None

    def _refused(self, error: urllib.error.HTTPError, method: str, path: str) -> Exception:
        if error.code in (401, 403):
            return Unavailable(f"the Prefect server at {self.url} refuses the credentials (PREFECT_API_AUTH_STRING)")
        if error.code == 404:
            return LookupError(f"{self.url}{path}")
        detail = error.read(500).decode("utf-8", errors="replace")
        return Unavailable(f"the Prefect server at {self.url} answered {error.code} to {method} {path}: {detail}")

    def check(self, *, timeout: float = TIMEOUT_S) -> None:
        """Raises Unavailable unless the server answers and takes the credentials."""
        self.call("GET", "/admin/version", timeout=timeout)

    def is_ready(self) -> bool:
        try:
            self.check(timeout=2.0)
        except (Unavailable, LookupError):
            return False
        return True

    def last_heartbeat(self, pool: str, worker: str) -> datetime | None:
        """When the worker last polled the pool; None if it never did, or there is no such pool."""
        try:
            workers = self.call("POST", f"/work_pools/{urllib.parse.quote(pool)}/workers/filter", {}, timeout=2.0)
        except LookupError:
            return None
        times = [item["last_heartbeat_time"] for item in workers if item["name"] == worker]
        return datetime.fromisoformat(times[0]) if times and times[0] else None

    def has_worker(self, pool: str, *, within: timedelta = timedelta(seconds=60)) -> bool:
        """Whether a worker polled the pool lately."""
        workers = self.call("POST", f"/work_pools/{urllib.parse.quote(pool)}/workers/filter", {})
        times = [datetime.fromisoformat(item["last_heartbeat_time"]) for item in workers if item["last_heartbeat_time"]]
        return any(datetime.now(UTC) - moment < within for moment in times)

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

    def force_state(self, flow_run_id: str, kind: str, name: str, message: str) -> None:
        """Set a flow run's state whatever it was before; the deployment's concurrency slot is given back."""
        state = {"type": kind, "name": name, "message": message}
        self.call("POST", f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": True})


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
