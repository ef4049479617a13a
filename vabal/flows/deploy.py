"""Put the nightly round and the promotion on the Prefect server, and run a deployment now, through its worker."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import vabal
from vabal.adapters import limits, processes
from vabal.adapters.orchestration import POOL, Server
from vabal.errors import Unavailable, UserError
from vabal.settings import cron
from vabal.settings.models import Params

ROUND_FLOW, PROMOTION_FLOW = "active-learning-round", "promote-challenger"
# Three heartbeats of the workers' 30 seconds.
SILENCE = timedelta(seconds=90)
ZOMBIES = "vabal: a run that falls silent has crashed"
POLL_S = 0.5
DEPLOY_SILENCES = 5
FINAL = ("COMPLETED", "CANCELLED", "FAILED", "CRASHED")
LOG_PAGE = 200
LOG_OVERLAP = timedelta(seconds=5)
LOG_QUIET_S = 1.5

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


def deployment_names(params: Params) -> tuple[str, str]:
    """The round's and the promotion's deployment, each as `flow/deployment`."""
    prefix = _prefix(params)
    return f"{ROUND_FLOW}/{prefix}nightly-round", f"{PROMOTION_FLOW}/{prefix}promote"


def _prefix(params: Params) -> str:
    return "" if params.workspace.name == "default" else f"{params.workspace.name}-"


def deploy(root: Path, params: Params) -> list[str]:
    """Register both deployments of infra/prefect.yaml for the workspace at `root`; again, it replaces what was there.

    Returns lines that say what is scheduled. Raises Unavailable if there is no Prefect server, UserError for a cron
    expression that is none.
    """
    server = Server.from_environment()
    server.check()
    schedule = params.schedule
    if wrong := cron.problem(schedule.cron):
        raise UserError(f"params.yaml: schedule: cron `{schedule.cron}` {wrong}")
    module = "on_ray" if params.compute.task_runner == "ray" else "round"
    values = {
        "VABAL_WORKSPACE": str(root.absolute()),
        "VABAL_PREFIX": _prefix(params),
        "VABAL_ROUND": f"vabal.flows.{module}.active_learning_round",
        "VABAL_CRON": schedule.cron,
        "VABAL_TIMEZONE": schedule.timezone,
    }
    register(server, infra_folder() / "prefect.yaml", values)
    round_name, promotion_name = deployment_names(params)
    return [
        f"{round_name}: `{schedule.cron}` ({schedule.timezone}) on work pool {POOL}, one at a time",
        f"{promotion_name}: after each published round",
        f"see {server.url.removesuffix('/api')}/deployments",
    ]


def register(server: Server, prefect_file: Path, values: dict[str, str]) -> None:
    """`prefect deploy --all` of a prefect.yaml whose `{{ $NAME }}` are `values`, and the watch for silent runs.

    Raises Unavailable if the server has no work pool, UserError with Prefect's own words if it refuses the file.
    """
    if not server.has_pool(POOL):
        raise Unavailable(
            f"the Prefect server at {server.url} has no work pool `{POOL}`: start a worker, with `vabal up` or "
            f"`prefect worker start --pool {POOL} --type process`"
        )
    server.add_automation(_watch_for_silent_runs())
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--prefect-file", str(prefect_file), "--all"]
    environment = {**os.environ, **values, "PREFECT_API_URL": server.url, "NO_COLOR": "1", "COLUMNS": "200"}
    limit = DEPLOY_SILENCES * limits.silence()
    try:
        done = processes.run(command, folder=Path.cwd(), environment=environment, limit=limit)
    except TimeoutError:
        raise Unavailable(f"the Prefect server at {server.url} did not take the deployments in {limit:g} s") from None
    if done.returncode:
        text = (done.stdout + done.stderr).decode("utf-8", errors="replace")
        said = [line.strip() for line in text.splitlines() if line.strip()]
        raise UserError(f"{prefect_file}: Prefect refused it: {' '.join(said[-3:])}")


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
