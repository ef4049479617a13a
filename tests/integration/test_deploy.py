"""Deployments through the real Prefect server and its worker, with a small flow in the place of the round."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import RunningStack
from workspaces import runs_of, until

from vabal.adapters import processes
from vabal.adapters import stack as local_stack
from vabal.adapters.orchestration import Server
from vabal.errors import Unavailable, UserError
from vabal.flows import deploy, schedule
from vabal.settings.models import Params
from vabal.settings.params import parse

FLOW = '''
import time
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.states import Completed


@flow(name="probe", persist_result=False)
def probe(workspace: str, hold: bool = False):
    """Hold until the file `go` appears, if asked to."""
    get_run_logger().info("probing %s", workspace)
    (Path(workspace) / "started").touch()
    while hold and not (Path(workspace) / "go").exists():
        time.sleep(0.1)
    return Completed(name="Published", message="done")


@flow(name="after", persist_result=False)
def after(workspace: str):
    return Completed(message="came after")
'''


@pytest.fixture
def probe(stack: RunningStack, tmp_path: Path) -> Callable[..., Server]:
    """Registers infra/prefect.yaml with the small flows in the place of round and promotion."""
    (tmp_path / "probe_flows.py").write_text(FLOW)
    document = yaml.safe_load((deploy.infra_folder() / "prefect.yaml").read_text())
    for deployment, name in zip(document["deployments"], ("probe", "after"), strict=True):
        deployment.update(flow_name=name, entrypoint=f"probe_flows.{name}", parameter_openapi_schema={})
        # The worker's working folder is the workspace, where the flows lie; `python -m` looks there.

    def register(prefix: str, cron: str = "0 2 1 1 *", timezone: str = "UTC", **parameters: Any) -> Server:
        document["deployments"][0]["parameters"].update(parameters)
        file = tmp_path / "prefect.yaml"
        file.write_text(yaml.safe_dump(document))
        server = Server.from_environment()
        values = {
            "VABAL_WORKSPACE": str(tmp_path),
            "VABAL_PREFIX": prefix,
            "VABAL_CRON": cron,
            "VABAL_TIMEZONE": timezone,
        }
        deploy.register(server, file, values)
        return server

    return register


def test_a_run_goes_through_the_worker_and_the_promotion_follows_it(
    probe: Callable[..., Server], tmp_path: Path
) -> None:
    server = probe("follow-")
    heard: list[str] = []
    ended = deploy.run_now("probe/follow-nightly-round", heard.append)
    assert (ended.completed, ended.name, ended.message) == (True, "Published", "done")
    assert f"probing {tmp_path}" in heard
    assert heard[-1] == "Published: done"
    following = until(lambda: runs_of(server, "after/follow-promote"), 600, "the promotion", every=0.3)
    run = f"/flow_runs/{following[0]['id']}"
    until(lambda: server.call("GET", run)["state_type"] == "COMPLETED", 600, "its end", every=0.3)


def test_deploying_again_replaces_the_schedule(probe: Callable[..., Server]) -> None:
    probe("again-", "0 3 * * *")
    server = probe("again-", "30 4 * * 1")
    found = server.call("GET", "/deployments/name/probe/again-nightly-round")
    assert [entry["schedule"]["cron"] for entry in found["schedules"]] == ["30 4 * * 1"]
    assert found["global_concurrency_limit"]["limit"] == 1
    automations = server.call("POST", "/automations/filter", {})
    names = [item["name"] for item in automations]
    assert names.count("again-promote after a published round") == 1
    assert names.count(deploy.ZOMBIES) == 1


def test_a_paused_schedule_has_no_next_nights_and_stays_paused_when_deployed_again(
    stack: RunningStack, tmp_path: Path
) -> None:
    params = parse({"workspace": {"name": "paused"}, "schedule": {"timezone": "Europe/Zurich"}})
    server = Server.from_environment()
    with pytest.raises(UserError, match=r"^no schedule `active-learning-round/paused-nightly-round` .*`vabal deploy`$"):
        schedule.look(server, params)
    said = deploy.deploy(tmp_path, params)
    assert any(line.startswith("next nights: ") and line.endswith(" 02:00 (Europe/Zurich)") for line in said)
    assert [when.hour for when in schedule.look(server, params).next] == [2, 2, 2]

    schedule.pause(server, params, paused=True)
    said = deploy.deploy(tmp_path, params)
    assert "paused: no night runs until `vabal schedule --resume`" in said
    assert schedule.look(server, params).next == ()
    schedule.pause(server, params, paused=False)
    assert len(schedule.look(server, params).next) == 3

    other = params.model_copy(update={"schedule": params.schedule.model_copy(update={"cron": "5 3 * * *"})})
    assert "params.yaml says `5 3 * * *` (Europe/Zurich)" in "".join(schedule.look(server, other).warnings())


def test_after_a_power_cut_the_next_scheduled_run_needs_nobody(
    probe: Callable[..., Server], stack: RunningStack, tmp_path: Path
) -> None:
    server = probe("cut-", "* * * * * */20", hold=True)  # every 20 seconds
    until((tmp_path / "started").exists, 600, "a scheduled run to start")
    running = until(
        lambda: [r for r in runs_of(server, "probe/cut-nightly-round") if r["state_type"] == "RUNNING"],
        600,
        "it",
        every=0.3,
    )
    for process in processes.marked({"VABAL_STACK": str(stack.root / ".vabal")}):
        process.kill()  # and nobody waits until they are gone
    (tmp_path / "started").unlink()
    (tmp_path / "go").touch()

    notes = local_stack.up(stack.root)

    assert any(running[0]["name"] in note for note in notes)
    assert server.call("GET", f"/flow_runs/{running[0]['id']}")["state_type"] == "CRASHED"

    def completed() -> list[dict[str, Any]]:
        return [run for run in runs_of(server, "probe/cut-nightly-round") if run["state_type"] == "COMPLETED"]

    ended = until(completed, 600, "the next scheduled run", every=0.3)
    assert ended[0]["auto_scheduled"]
    found = server.call("GET", "/deployments/name/probe/cut-nightly-round")
    server.call("DELETE", f"/deployments/{found['id']}")  # its schedule would keep the other tests' worker busy


LOSING = """
import sys
from prefect import flow
from vabal.flows.here import run_here
from vabal.adapters import processes
from vabal.errors import Unavailable

@flow(name="losing", persist_result=False)
def losing():
    for process in processes.marked({"VABAL_STACK": sys.argv[1], "VABAL_SERVICE": "prefect"}):
        process.kill()
        while processes.is_running(process):
            pass

try:
    run_here(losing)
except Unavailable as error:
    print("told:", error)
"""


def test_a_run_whose_server_goes_away_ends_soon_and_in_one_line(stack: RunningStack, tmp_path: Path) -> None:
    # Prefect's engine would try again for hours, and for a minute as it is by itself.
    environment = {**os.environ, "PREFECT_CLIENT_MAX_RETRIES": "12"}
    command = [sys.executable, "-c", LOSING, str(stack.root / ".vabal")]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    finally:
        local_stack.up(stack.root)
    assert done.returncode == 0, done.stderr
    assert "told: the Prefect server went away during the run" in done.stdout
    assert "Still processing items" not in done.stderr


def test_without_a_server_one_line_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(Unavailable, match=r"^no Prefect server at http://127\.0\.0\.1:9/api .*vabal up[^\n]*$"):
        deploy.deploy(tmp_path, Params())


def test_an_unknown_deployment_is_told_with_the_command_that_makes_it(stack: RunningStack) -> None:
    with pytest.raises(UserError, match=r"no deployment `probe/none` .*`vabal deploy`"):
        deploy.run_now("probe/none", print)


def test_a_schedule_that_is_none_is_refused_before_anything_is_registered(stack: RunningStack, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: schedule\.cron: its minute '99' is none[^\n]*$"):
        parse({"schedule": {"cron": "99 2 * * *"}})
    params = Params()
    unread = params.model_copy(update={"schedule": params.schedule.model_copy(update={"cron": "99 2 * * *"})})
    with pytest.raises(UserError, match=r"^params\.yaml: schedule: cron `99 2 \* \* \*`[^\n]*$"):
        deploy.deploy(tmp_path, unread)


def test_the_deployments_are_named_after_the_workspace() -> None:
    assert schedule.deployment_names(Params())[0] == "active-learning-round/nightly-round"
    named = parse({"workspace": {"name": "wafers"}})
    assert schedule.deployment_names(named)[0] == "active-learning-round/wafers-nightly-round"


def test_what_prefect_refuses_is_told_in_its_own_words(probe: Callable[..., Server]) -> None:
    with pytest.raises(Unavailable, match=r"answered 4\d\d to POST /deployments/: .*timezone"):
        probe("refused-", timezone="Moon/Crater")


def test_the_round_and_the_promotion_are_registered_as_infra_says(stack: RunningStack, tmp_path: Path) -> None:
    params = parse({"workspace": {"name": "wafers"}, "schedule": {"cron": "15 1 * * *", "timezone": "Europe/Zurich"}})
    lines = deploy.deploy(tmp_path, params)
    assert any("15 1 * * *" in line and "Europe/Zurich" in line for line in lines)
    server = Server.from_environment()
    night, promotion = schedule.deployment_names(params)
    found = server.call("GET", f"/deployments/name/{night}")
    assert found["entrypoint"] == "vabal.flows.round.active_learning_round"
    assert found["parameters"] == {"workspace": str(tmp_path)}
    assert found["schedules"][0]["schedule"]["timezone"] == "Europe/Zurich"
    assert found["work_pool_name"] == "gpu"
    assert (
        server.call("GET", f"/deployments/name/{promotion}")["entrypoint"] == "vabal.flows.promote.promote_challenger"
    )
