"""Put the nightly round and the promotion on the Prefect server, and run a deployment now, through its worker."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import yaml

import vabal
from vabal.adapters import limits
from vabal.adapters.orchestration import POOL, Server
from vabal.errors import Unavailable, UserError, missing_extra
from vabal.flows import schedule
from vabal.settings import cron
from vabal.settings.models import Params

# Three heartbeats of the workers' 30 seconds.
SILENCE = timedelta(seconds=90)
ZOMBIES = "vabal: a run that falls silent has crashed"
POLL_S = 0.5
FINAL = ("COMPLETED", "CANCELLED", "FAILED", "CRASHED")
LOG_PAGE = 200
LOG_OVERLAP = timedelta(seconds=5)
LOG_QUIET_S = 1.5
_VARIABLE: Final = re.compile(r"\{\{ \$(\w+) \}\}")

Listener = Callable[[str], None]

# What Prefect says of its own work in a run's log; the states tell it.
PREFECTS_OWN = ("Finished in state", "Beginning flow run", "Worker '", "Flow run '", "Process for flow run")


@dataclass(frozen=True)
class Ended:
    """How a flow run ended: `kind` is Prefect's state type (COMPLETED, FAILED, ...), `name` what the flow called it."""

    flow_run_id: str
    kind: str
    name: str
    message: str

    @property
    def completed(self) -> bool:
        return self.kind == "COMPLETED"


def infra_folder() -> Path:
    """The folder of prefect.yaml: in a checkout beside the package, in an installed package inside it."""
    package = Path(vabal.__file__).parent
    for folder in (package / "_infra", package.parent / "infra"):
        if (folder / "prefect.yaml").is_file():
            return folder
    raise UserError(f"infra/prefect.yaml is missing beside {package}: install the package again")


def deploy(root: Path, params: Params) -> list[str]:
    """Register both deployments of infra/prefect.yaml for the workspace at `root`; again, it replaces what was there.

    A schedule that was paused stays so. Returns lines that say what is scheduled, and when the next nights are.
    Raises Unavailable if there is no Prefect server, UserError for a cron expression that is none.
    """
    server = Server.from_environment()
    server.check()
    if wrong := cron.problem(params.schedule.cron):
        raise UserError(f"params.yaml: schedule: cron `{params.schedule.cron}` {wrong}")
    on_ray = params.compute.task_runner == "ray"
    if on_ray and find_spec("prefect_ray") is None:
        raise UserError(str(missing_extra(ModuleNotFoundError(name="prefect_ray"))))
    values = {
        "VABAL_WORKSPACE": str(root.absolute()),
        "VABAL_PREFIX": schedule.prefix(params),
        "VABAL_ROUND": f"vabal.flows.{'on_ray' if on_ray else 'round'}.active_learning_round",
        "VABAL_CRON": params.schedule.cron,
        "VABAL_TIMEZONE": params.schedule.timezone,
    }
    register(server, infra_folder() / "prefect.yaml", values)
    found = schedule.look(server, params)
    return [
        *found.lines(),
        f"{found.promotion}: after each published round",
        f"see {server.url.removesuffix('/api')}/deployments",
    ]


def register(server: Server, prefect_file: Path, values: Mapping[str, str]) -> None:
    """The deployments of a prefect.yaml whose `{{ $NAME }}` are `values`, and the watch for silent runs.

    It does what `prefect deploy --all` does, by the same requests and without importing Prefect or the flows. Raises
    Unavailable if the server has no work pool, or with its own words if it refuses a deployment.
    """
    if not server.has_pool(POOL):
        raise Unavailable(
            f"the Prefect server at {server.url} has no work pool `{POOL}`: start a worker, with `vabal up` or "
            f"`prefect worker start --pool {POOL} --type process`"
        )
    server.add_automation(_watch_for_silent_runs())
    document = _filled_in(yaml.safe_load(prefect_file.read_text(encoding="utf-8")), values)
    for deployment in document["deployments"]:
        _register(server, deployment)


def _filled_in(part: Any, values: Mapping[str, str]) -> Any:
    """The same with each `{{ $NAME }}` in its texts as `values` has it."""
    if isinstance(part, dict):
        return {key: _filled_in(value, values) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled_in(item, values) for item in part]
    if isinstance(part, str):
        return _VARIABLE.sub(lambda found: values.get(found[1], found[0]), part)
    return part


def _register(server: Server, deployment: Mapping[str, Any]) -> None:
    limit = deployment["concurrency_limit"]
    timetable = [
        {"schedule": {"cron": entry["cron"], "timezone": entry["timezone"]}, "slug": entry["slug"], "active": True}
        for entry in deployment.get("schedules", [])
    ]
    body = {
        **{name: deployment[name] for name in ("name", "description", "entrypoint", "parameters", "tags")},
        "flow_id": server.call("POST", "/flows/", {"name": deployment["flow_name"]})["id"],
        "parameter_openapi_schema": deployment["parameter_openapi_schema"],
        "enforce_parameter_schema": True,
        "work_pool_name": deployment["work_pool"]["name"],
        "job_variables": deployment["work_pool"]["job_variables"],
        "concurrency_limit": limit["limit"],
        "concurrency_options": {name: limit[name] for name in ("collision_strategy", "grace_period_seconds")},
        "schedules": timetable,
        "pull_steps": [],
    }
    # One of the same name is replaced, all but its being paused.
    made = server.call("POST", "/deployments/", body)
    deployment_id = made["id"]
    owner = f"prefect.deployment.{deployment_id}"
    server.call("DELETE", f"/automations/owned-by/{owner}")
    for trigger in deployment.get("triggers", []):
        start = {"type": "run-deployment", "source": "selected", "deployment_id": deployment_id}
        about = {name: trigger[name] for name in ("name", "enabled")}
        event = {"posture": "Reactive", **{name: trigger[name] for name in trigger.keys() - about.keys()}}
        server.call("POST", "/automations/", {**about, "trigger": event, "actions": [start], "owner_resource": owner})
    if timetable and not made["paused"]:  # at once, where the server would come to it in its own time
        server.call("POST", f"/deployments/{deployment_id}/schedule", {})


def _watch_for_silent_runs() -> dict[str, Any]:
    """An automation: a run whose heartbeats stop has lost its machine, and gives its concurrency slot back."""
    trigger = {
        "type": "event",
        "posture": "Proactive",
        "after": ["prefect.flow-run.heartbeat"],
        "expect": ["prefect.flow-run.*"],  # the next heartbeat, or an end, whatever the flow calls its final state
        "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
        "for_each": ["prefect.resource.id"],
        "threshold": 1,
        "within": SILENCE.seconds,
    }
    message = f"no heartbeat for {SILENCE.seconds} s: its machine or process is gone"
    action = {"type": "change-flow-run-state", "state": "CRASHED", "message": message}
    return {"name": ZOMBIES, "trigger": trigger, "actions": [action]}


# --- running a deployment now ----------------------------------------------------------------------------------------


def run_now(deployment: str, listener: Listener, parameters: dict[str, Any] | None = None) -> Ended:
    """Run `deployment` (`flow/deployment`) through its worker, and wait for its end.

    `listener` hears each state and each line of the run's log. Ctrl-C stops waiting, not the run.
    Raises UserError if there is no such deployment, Unavailable if no worker serves the pool or the server goes away.
    """
    server = Server.from_environment()
    server.check()
    try:
        flow_run_id = server.run_deployment(deployment, parameters)
    except LookupError:
        raise UserError(f"no deployment `{deployment}` at {server.url}: make it with `vabal deploy`") from None
    return _follow(server, flow_run_id, listener)


def _follow(server: Server, flow_run_id: str, listener: Listener) -> Ended:
    log = _Log(server, flow_run_id, listener)
    told = ""
    patience = time.monotonic() + limits.worker()
    while True:
        state = server.flow_run(flow_run_id)["state"]
        log.tell()
        words = f"{state['name']}: {state['message']}" if state["message"] else str(state["name"])
        if state["type"] in FINAL:
            log.tell_the_rest()
            listener(words)
            return Ended(flow_run_id, state["type"], state["name"], state["message"] or "")
        if words != told:
            told = words
            listener(words)
        if state["type"] == "SCHEDULED" and time.monotonic() > patience and not server.has_worker(POOL):
            raise Unavailable(f"no worker serves work pool `{POOL}` at {server.url}: look with `vabal status`")
        time.sleep(POLL_S)


class _Log:
    """A flow run's log as it comes in: worker and flow send theirs in batches, so lines arrive out of order."""

    def __init__(self, server: Server, flow_run_id: str, listener: Listener) -> None:
        self.server = server
        self.flow_run_id = flow_run_id
        self.listener = listener
        self.told: set[str] = set()
        self.since = datetime.now(UTC) - LOG_OVERLAP

    def tell(self) -> int:
        """Tell the lines that are new; how many there were."""
        page = self.server.logs(self.flow_run_id, self.since, LOG_PAGE)
        new = [line for line in page if line["id"] not in self.told]
        for line in new:
            if not line["message"].startswith(PREFECTS_OWN):
                self.listener(line["message"])
        self.told.update(line["id"] for line in new)
        if page:
            # A full page of one moment must not be read for ever; else look back for lines that are on their way.
            overlap = timedelta(0) if len(page) == LOG_PAGE else LOG_OVERLAP
            self.since = max(self.since, datetime.fromisoformat(page[-1]["timestamp"]) - overlap)
        return len(new)

    def tell_the_rest(self) -> None:
        """The flow's process sends its last lines after its final state: wait until it has been quiet for a while."""
        quiet_since = time.monotonic()
        while time.monotonic() - quiet_since < LOG_QUIET_S:
            if self.tell():
                quiet_since = time.monotonic()
            time.sleep(POLL_S / 2)
