"""The schedule, for real: a cron seconds away, the worker runs the round, the promotion follows it."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningStack
from workspaces import TwoNights, ask, change_settings, runs_of, until

from vabal.adapters.orchestration import Server
from vabal.flows import deploy, schedule
from vabal.workspace import Workspace


def ended(server: Server, deployment: str) -> list[dict[str, Any]]:
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    return [run for run in runs_of(server, deployment) if run["state_type"] in final]


def _held_back(server: Server, deployment: str) -> bool:
    return any(run["state_name"] == "AwaitingConcurrencySlot" for run in runs_of(server, deployment))


@pytest.fixture
def second_worker(stack: RunningStack, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "gpu", "--type", "process"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # where `python` is ours
    environment = {
        **os.environ,
        "PATH": path,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--name", "second"], env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path
        )
        yield process
        process.send_signal(signal.SIGTERM)
        process.wait(300)


@pytest.mark.timeout(1500)
def test_the_worker_runs_scheduled_rounds_one_at_a_time_and_the_promotion_after_them(
    nights: TwoNights, stack: RunningStack, tmp_path: Path, second_worker: subprocess.Popen[bytes]
) -> None:
    root = nights.copy(tmp_path / "nights")
    # Names of its own in Prefect and MLflow; the cheapest of rounds.
    cheap = {"workspace.name": "by-night", "classifier.epochs": 1, "selection.strategy": "random"}
    change_settings(root, cheap | {"selection.budget": 1})
    params, server = Workspace(root).params(), Server.from_environment()
    night, promotion = schedule.deployment_names(params)
    values = {
        "VABAL_WORKSPACE": str(root),
        "VABAL_PREFIX": "by-night-",
        "VABAL_ROUND": "vabal.flows.round.active_learning_round",
        "VABAL_CRON": "* * * * * */10",  # every ten seconds: rounds come faster than they can be run
        "VABAL_TIMEZONE": "UTC",
    }
    deploy.register(server, deploy.infra_folder() / "prefect.yaml", values)
    try:
        until(lambda: server.last_heartbeat("gpu", "second"), 300, "the second worker", every=0.5)
        until(lambda: _held_back(server, night), 300, "a round to wait for the one before", every=0.2)
    finally:
        found = server.call("GET", f"/deployments/name/{night}")
        for entry in found["schedules"]:
            server.call("DELETE", f"/deployments/{found['id']}/schedules/{entry['id']}")
    # What was due is still run, however long that takes where others keep the cores busy.
    until(lambda: len(runs_of(server, night)) == len(ended(server, night)), 600, "the last round to end", every=0.5)
    rounds = ended(server, night)
    assert len(rounds) > 1
    assert all(run["auto_scheduled"] and run["state_name"] == "Published" for run in rounds)

    # Started by hand: of a run scheduled less than five minutes before, Prefect holds the events back for a while.
    told: list[str] = []
    assert deploy.run_now(night, told.append).name == "Published"
    [following] = until(lambda: ended(server, promotion), 300, "the promotion", every=0.5)
    assert following["state_name"] in ("Promoted", "Refused", "Kept")

    times = sorted((run["start_time"], run["end_time"]) for run in ended(server, night))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
    records = ask(root, "audit")
    assert [record["round"] for record in records] == list(range(3 + len(rounds) + 1))
    assert {record["prefect_flow_run"] for record in records[3:]} == {run["id"] for run in ended(server, night)}
    assert ask(root, "audit", "--verify")["ok"] is True
