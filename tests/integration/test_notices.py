"""Nights that ended, failed or did not begin are told once, by real receivers, of what a real Prefect server says."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from running import RunningStack
from workspaces import until

from tests.support import receivers
from vabal.adapters import messages, processes
from vabal.adapters import stack as local_stack
from vabal.adapters.orchestration import Server
from vabal.flows import deploy, notices, schedule
from vabal.workspace import Workspace


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[receivers.Received]:
    with receivers.webhook() as received:
        monkeypatch.setenv(messages.WEBHOOK, f"http://127.0.0.1:{received.port}/")
        yield received


@pytest.fixture
def place(stack: RunningStack, tmp_path: Path) -> Workspace:
    """A workspace whose nights are deployed, far away in time, and whose promotions follow no published night: the
    only runs are a test's own."""
    settings = {
        "workspace": {"name": f"told-{os.getpid()}"},
        "schedule": {"cron": "0 2 29 2 *"},
        "notify": {"by": ["webhook", "command"]},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    found = Workspace(tmp_path)
    deploy.deploy(tmp_path, found.params())
    server = Server.from_environment()
    promotion = server.deployment(schedule.deployment_names(found.params())[1])
    server.call("DELETE", f"/automations/owned-by/prefect.deployment.{promotion['id']}")
    return found


def make_run(
    place: Workspace, kind: str, name: str = "", message: str = "", *, number: int = 0, due: Any = None
) -> str:
    """A flow run of the night's deployment (0) or the promotion's (1), as it is after somebody ran it."""
    server = Server.from_environment()
    found = server.deployment(schedule.deployment_names(place.params())[number])
    details = {"scheduled_time": due.isoformat()} if due else {}
    state = {"type": kind, "name": name or kind.title(), "message": message, "state_details": details}
    body = {"flow_id": found["flow_id"], "deployment_id": found["id"], "state": state}
    return str(server.call("POST", "/flow_runs/", body)["id"])


def events(hook: receivers.Received) -> list[str]:
    return [body["event"] for body in hook.bodies]


def test_each_event_is_told_once_by_each_channel_whoever_looks_and_however_often(
    place: Workspace, hook: receivers.Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(messages.COMMAND, "sh -c 'cat >> told.txt'")
    said: list[str] = []
    make_run(place, "COMPLETED", "Published", "round 1: long ago")
    notices.Notifier(place, said.append).look()
    assert said == []  # what was before the first look is no news

    make_run(place, "COMPLETED", "Published", "round 3: 100 picks (vabal), 300 labeled, 1799 unlabeled")
    make_run(place, "FAILED", message="the pools are damaged")
    make_run(place, "CRASHED", message="no heartbeat for 90 s: its machine or process is gone")
    make_run(place, "RUNNING", "WaitingForLabels", "40 of 100 labels of round 3's request are in")
    make_run(place, "COMPLETED", "NothingToLabel", "nothing left to label")
    make_run(place, "COMPLETED", "EnoughLabels", "the next 100 would add at most 0.4 points")
    make_run(place, "COMPLETED", "Refused", "the lower bound is -0.01", number=1)
    make_run(place, "COMPLETED", "Kept", "nothing new", number=1)
    make_run(place, "COMPLETED", "Promoted", "version 3 is champion", number=1)
    make_run(place, "RUNNING")
    for _ in range(2):
        notices.Notifier(place, said.append).look()
    expected = ["published", "failed", "failed", "labels_due", *["refused"] * 3, "promoted"]
    assert events(hook) == expected
    assert len(set(hook.keys)) == len(expected)
    assert "round 3: 100 picks (vabal)" in hook.bodies[0]["text"]
    assert [body["subject"].partition(": ")[2] for body in hook.bodies[4:6]] == [
        "nothing new came of it",
        "there are enough labels",
    ]
    assert hook.bodies[0]["link"].startswith("http://127.0.0.1:")
    assert (place.root / "told.txt").read_text().count("/runs/flow-run/") == len(expected)
    assert len(said) == 2 * len(expected)


def test_what_a_channel_does_not_take_costs_nothing_is_told_in_one_line_and_is_sent_later(
    place: Workspace, hook: receivers.Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(messages.COMMAND, "sh -c 'cat >> told.txt'")
    said: list[str] = []
    notifier = notices.Notifier(place, said.append)
    notifier.look()
    hook.answers = 500
    make_run(place, "FAILED", message="first")
    make_run(place, "FAILED", message="second")
    for _ in range(3):
        notifier.look()
    assert [line for line in said if line.startswith("not told")] == [
        f"not told: vabal {place.params().workspace.name}: a night failed: webhook: http://127.0.0.1 answers 500"
    ]
    assert (place.root / "told.txt").read_text().count("a night failed") == 2  # the other channel goes on
    assert notices.trouble(place)[0].startswith("webhook: http://127.0.0.1 answers 500 (since ")

    hook.answers = 200
    monkeypatch.setattr(notices, "AGAIN", timedelta(0))
    notices.Notifier(place, said.append).look()
    assert events(hook) == ["failed", "failed"]
    assert notices.trouble(place) == []


def test_a_night_that_did_not_begin_is_told_also_where_the_server_is_gone(
    place: Workspace, hook: receivers.Received, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(messages.COMMAND, "true")
    notifier = notices.Notifier(place, print)
    notifier.look()
    settings = yaml.safe_load((place.root / "params.yaml").read_text())
    settings["notify"]["missed_after_minutes"] = 0.01
    (place.root / "params.yaml").write_text(yaml.safe_dump(settings))
    due = datetime.now(UTC) + timedelta(seconds=1)
    make_run(place, "SCHEDULED", "Scheduled", due=due)
    notifier.look()
    assert hook.bodies == []
    time.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()) + 0.8)
    address = os.environ["PREFECT_API_URL"]
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    notifier.look()
    assert events(hook) == ["missed"]
    assert "no Prefect server at http://127.0.0.1:9/api" in hook.bodies[0]["text"]
    monkeypatch.setenv("PREFECT_API_URL", address)
    notifier.look()
    assert events(hook) == ["missed"]  # the same night, whoever noticed


def test_the_stack_keeps_a_notifier_where_params_yaml_asks_for_messages(
    stack: RunningStack, hook: receivers.Received
) -> None:
    params = stack.root / "params.yaml"
    environment = stack.root / ".vabal" / "env"
    params.write_text("notify: {by: [webhook]}\n")
    (stack.root / ".dvc").mkdir()
    with environment.open("a") as file:
        file.write(f"{messages.WEBHOOK}=http://127.0.0.1:{hook.port}/\n")
    try:
        local_stack.up(stack.root)
        pid = _notifier(stack)["pid"]
        place = Workspace(stack.root)
        deploy.deploy(stack.root, place.params())
        until((stack.root / ".vabal" / "notices.json").exists, 60, "the notifier's first look")
        psutil.Process(pid).kill()
        make_run(place, "CRASHED", message="killed with the worker")
        local_stack.up(stack.root)
        assert _notifier(stack)["pid"] != pid
        assert messages.WEBHOOK in environment.read_text()
        until(lambda: events(hook), 60, "the message")
        assert events(hook) == ["failed"]
    finally:
        params.unlink()
        (stack.root / ".dvc").rmdir()
        for process in processes.marked({"VABAL_STACK": str(stack.root / ".vabal"), "VABAL_SERVICE": "notifier"}):
            processes.end(process, grace=2.0)
        assert len(local_stack.status(stack.root)) == 4


def _notifier(stack: RunningStack) -> dict[str, Any]:
    return next(row for row in local_stack.status(stack.root) if row["service"] == "notifier")
