"""Nights of two workspaces through a team's servers: at the same time, and while one thing after the other dies."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import psutil

from benchmarks.team.services import Team
from tests.support.receivers import Received
from vabal.adapters import processes
from vabal.adapters.orchestration import POOL, Server
from vabal.flows import schedule
from vabal.flows.deploy import FINAL
from vabal.labels.oracle import answer
from vabal.settings.params import parse, read_yaml
from vabal.workspace import Workspace

PATIENCE_S = 400.0
SETTINGS = {
    "classifier.learner": "scratch",
    "classifier.width": 8,
    "classifier.epochs": 20,
    "vae.epochs": 1,
    "vae.min_steps": 20,
    "probabilities.draws": 5,
    "probabilities.members": 2,
    "selection.budget": 12,
    "compute.threads": 1,
    "compute.device": "cpu",
    "promotion.min_gain": -1,
    "promotion.confidence": 0.5,
    "promotion.max_recall_drop": 1,
    "schedule.cron": "0 2 1 1 *",
    "notify.by": '["webhook"]',
}


class BrokenError(Exception):
    """Something is not as it has to be."""


@dataclass(frozen=True)
class Place:
    """A workspace of the team's, as somebody at a shell with the worker's environment has it."""

    root: Path
    environment: dict[str, str]

    def __call__(self, *arguments: str) -> str:
        """A command that has to end well; what it printed."""
        return finished(self.begin(*arguments))

    def begin(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "vabal.cli", "--workspace", str(self.root), *arguments]
        return subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def label(self) -> None:
        """Answer what is asked for, as people would; nothing is before the first night."""
        if self.published == 0:
            return
        folder = self.root / f"requests-{self.published}"
        self("labels", "export", str(folder))
        answer(folder / "requests.csv", Workspace(self.root))
        self("labels", "import", str(folder / "requests.csv"))

    @property
    def deployments(self) -> tuple[str, str]:
        return schedule.deployment_names(parse(read_yaml((self.root / "params.yaml").read_text())))

    @property
    def published(self) -> int:
        """Nights so far; round 0 is none."""
        return max(int(entry["round"]) for entry in json.loads(self("audit", "--json")))


def finished(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=2 * PATIENCE_S)
    check(process.returncode == 0, f"{process.args!r} ended with {process.returncode}:\n{said}")
    return said


def until(condition: Callable[[], Any], what: str) -> Any:
    begun = time.monotonic()
    while time.monotonic() - begun < PATIENCE_S:
        if found := condition():
            return found
        time.sleep(0.3)
    raise BrokenError(f"{what} did not come within {PATIENCE_S:g} s")


def check(condition: bool, what: str) -> None:
    if not condition:
        raise BrokenError(what)


class Nights:
    """Two workspaces on a team's servers that run; `play` yields a line for each thing that was shown."""

    def __init__(self, team: Team, server: Server, told: Received) -> None:
        self.team, self.server, self._told = team, server, told
        environment = team.environment("worker")
        self.north, self.south = (Place(root, environment) for root in (team.workspace, team.folder / "south"))
        self._s3 = boto3.client(
            "s3",
            endpoint_url=environment["AWS_ENDPOINT_URL"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
            region_name=environment["AWS_DEFAULT_REGION"],
        )

    def make(self) -> str:
        """The workspaces: pools, stages and the record's anchor in S3, the last in a bucket with Object Lock."""
        self._s3.create_bucket(Bucket="anchors", ObjectLockEnabledForBucket=True)
        self._s3.create_bucket(Bucket="stages")
        for place in (self.north, self.south):
            name = place.root.name
            chosen = SETTINGS | {"storage.bucket": f"vabal-{name}", "stages": f"s3://stages/{name}"}
            chosen |= {"audit.anchor": f"s3://anchors/{name}"}
            options = [word for key, value in chosen.items() for word in ("--set", f"{key}={value}")]
            made = ("--source", "digits", "--imbalance", "dominant:0:0.3", "--initial", "40", "--name", name)
            place.root.mkdir()
            place("init", *made, *options)
            place("deploy")
        self.team.start("notifier")
        return "two workspaces made and deployed; pools, stages and anchors in S3"

    def at_once(self) -> str:
        """A night of each, at the same time: a worker each."""
        begun = [place.begin("round", "--worker") for place in (self.north, self.south)]
        runs = [self._running(place) for place in (self.north, self.south)]
        at_work = {self._worker_of(run["id"]) for run in runs}
        said = [finished(process) for process in begun]
        check(at_work == {"worker", "worker-2"}, f"both nights at once on {at_work}")
        check(all("Published" in text for text in said), "\n".join(said))
        for place in (self.north, self.south):
            self._until_promoted(place)
        until(lambda: any(body["event"] == "published" for body in self._told.bodies), "the notifier's message")
        return "two nights at the same time, one a worker; both published, promoted after it, and told by the notifier"

    def machine_dies(self) -> str:
        """kill -9 of a worker and its night; the other worker has a night meanwhile, and then the rest of this one."""
        self.north.label()
        run = self._trained(self.north)
        worker = self._worker_of(run["id"])
        self.team.kill(worker, tree=True)
        self.south.label()
        said = self.south("round", "--worker")
        check("Published" in said, said)
        begun = time.monotonic()
        until(lambda: self._state(run) == "CRASHED", "the dead night's state Crashed")
        waited = time.monotonic() - begun
        said = self.north("round", "--worker")
        check("Published" in said, said)
        trained = [task for task in self._tasks_of_last(self.north) if task["name"].startswith("train-classifier")]
        check(bool(trained) and trained[0]["total_run_time"] < 5, f"it trained again: {trained}")
        self.team.start(worker)
        return (
            "a worker killed with its night: the other workspace's night ran on the other worker; Crashed by the "
            f"heartbeats' automation ({waited:.0f} s after that night); the next one went on behind the training"
        )

    def worker_dies(self) -> str:
        """kill -9 of the worker alone: the night goes on to its end."""
        self.south.label()
        run = self._trained(self.south)
        worker = self._worker_of(run["id"])
        self.team.kill(worker, tree=False)
        until(lambda: self._state(run) not in ("RUNNING", "PENDING"), "the night's end")
        check(self._state(run) == "COMPLETED", f"the night ended {self.server.flow_run(run['id'])['state']}")
        self._until_promoted(self.south)
        self.team.start(worker)
        return "a worker killed alone: its night went on to its end, the other worker had the promotion"

    def server_dies(self, service: str) -> str:
        """kill -9 of a server under a night; it comes back, as `restart: unless-stopped` has it."""
        self.north.label()
        before = self.north.published
        process = self.north.begin("round", "--worker")
        run = self._running(self.north)
        self._until_trained(run)
        begun = time.monotonic()
        self.team.kill(service, tree=True)
        time.sleep(3.0)
        self.team.start(service)
        away = time.monotonic() - begun
        until(lambda: self._state(run) not in ("RUNNING", "PENDING"), "the night's end")
        state = self._state(run)
        process.communicate(timeout=PATIENCE_S)
        again = ""
        if state != "COMPLETED":
            self.north("round", "--worker")
            again = ", and the next one published it"
        check(self.north.published == before + 1, f"{self.north.published} rounds, {before} before")
        return f"{service} killed under a night, back after {away:.0f} s: the night ended {state}{again}"

    def records_hold(self) -> str:
        lines = []
        for place in (self.north, self.south):
            said = place("audit", "--verify", "--remote")
            lines.append(f"{place.root.name}: {said.strip().splitlines()[-1]}")
        objects = self._s3.list_objects_v2(Bucket="anchors", Prefix="north/")["Contents"]
        kept = self._s3.get_object_retention(Bucket="anchors", Key=objects[0]["Key"])["Retention"]["Mode"]
        check(kept == "COMPLIANCE", f"the anchor's objects are kept by {kept}")
        return f"audit --verify --remote, anchors under Object Lock ({len(objects)} of north): {'; '.join(lines)}"

    # -- asking the server ------------------------------------------------------------------------------------------

    def _trained(self, place: Place) -> dict[str, Any]:
        """A night that was begun through the worker, and has trained."""
        self.server.run_deployment(place.deployments[0])
        run = self._running(place)
        self._until_trained(run)
        return run

    def _running(self, place: Place) -> dict[str, Any]:
        name = place.deployments[0]
        before = {run["id"] for run in self._runs(name) if run["state_type"] in FINAL}

        def begun() -> Any:
            return [run for run in self._runs(name) if run["state_type"] != "SCHEDULED" and run["id"] not in before]

        until(
            lambda: [run for run in begun() if run["state_type"] in ("RUNNING", *FINAL)],
            f"a night of {place.root.name}",
        )
        run: dict[str, Any] = begun()[0]
        check(run["state_type"] == "RUNNING", f"a night of {place.root.name} ended at once: {run['state']}")
        return run

    def _until_trained(self, run: dict[str, Any]) -> None:
        def trained() -> bool:
            tasks = self.server.task_runs(run["id"])
            return any(t["name"].startswith("train-classifier") and t["state_type"] == "COMPLETED" for t in tasks)

        until(lambda: trained() or self._state(run) not in ("RUNNING", "PENDING"), "the end of the training")
        state = self.server.flow_run(run["id"])["state"]
        check(state["type"] == "RUNNING", f"the night is {state['type']} already: {state['message']}")

    def _tasks_of_last(self, place: Place) -> list[dict[str, Any]]:
        return self.server.task_runs(self._runs(place.deployments[0])[-1]["id"])

    def _state(self, run: dict[str, Any]) -> str:
        return str(self.server.flow_run(run["id"])["state_type"])

    def _until_promoted(self, place: Place) -> None:
        def over() -> Any:
            runs = self._runs(place.deployments[1])
            return runs and all(run["state_type"] == "COMPLETED" for run in runs) and len(runs) >= place.published

        until(over, f"the promotion of {place.root.name}")

    def _runs(self, deployment: str) -> list[dict[str, Any]]:
        """Those that were asked for, not those that the schedule has in store."""
        wanted = {"deployment_id": {"any_": [self.server.deployment(deployment)["id"]]}}
        return [
            run
            for run in self.server.flow_runs(wanted)
            if not run["auto_scheduled"] or run["state_type"] != "SCHEDULED"
        ]

    def _worker_of(self, flow_run_id: str) -> str:
        """Which worker's child the run's process is."""
        workers = {self.team.pid(name): name for name in ("worker", "worker-2")}

        def parent() -> str | None:
            for process in processes.marked({"PREFECT__FLOW_RUN_ID": flow_run_id}):
                try:
                    names = [workers[one.pid] for one in process.parents() if one.pid in workers]
                except psutil.NoSuchProcess:
                    continue
                if names:
                    return names[0]
            return None

        return str(until(parent, "the night's process"))


def check_pool(server: Server) -> None:
    """Both workers polled the pool."""
    until(lambda: server.has_pool(POOL), "the work pool, which a worker makes")
    until(lambda: len(server.call("POST", f"/work_pools/{POOL}/workers/filter", {})) == 2, "two workers")
