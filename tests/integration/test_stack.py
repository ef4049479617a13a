"""The local stack as real processes: started, found again, ended by what they are, and recovered after a power cut."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from running import RunningStack

from vabal.adapters import limits, processes
from vabal.adapters import stack as local_stack
from vabal.adapters.orchestration import Server, preflight, settle
from vabal.adapters.stack import services
from vabal.adapters.stack.ports import choose_ports
from vabal.errors import Unavailable

# What the command line of each has in it.
SERVERS = {
    "s3": "serve s3",
    "mlflow": "mlflow server",
    "prefect": "prefect server",
    "worker": "worker start",
    "notifier": "notify --follow",
}
MARK = {"VABAL_STACK": "a test's own"}


def _pids(root: Path) -> dict[str, int]:
    return {row["service"]: row["pid"] for row in local_stack.status(root)}


def test_all_four_services_run_and_say_since_when(stack: RunningStack) -> None:
    rows = local_stack.status(stack.root)
    assert [row["service"] for row in rows] == ["s3", "mlflow", "prefect", "worker"]
    assert {row["state"] for row in rows} == {"running"}
    assert all(row["since"].endswith("+00:00") for row in rows)
    assert all(Path(row["log"]).is_file() for row in rows)


def test_a_second_up_starts_nothing_and_keeps_the_credentials(stack: RunningStack) -> None:
    before, credentials = _pids(stack.root), stack.environment
    seen: list[tuple[str, int, int | None]] = []
    assert local_stack.up(stack.root, lambda *event: seen.append(event)) == []
    assert _pids(stack.root) == before
    assert stack.environment == credentials
    assert seen[0] == ("local stack", 0, 4)
    assert seen[-1] == ("local stack", 4, 4)


def test_only_the_dead_service_is_started_again(stack: RunningStack) -> None:
    before = _pids(stack.root)
    processes.end(psutil.Process(before["s3"]), grace=0.0)
    assert {row["service"]: row["state"] for row in local_stack.status(stack.root)}["s3"] == "stopped"
    local_stack.up(stack.root)
    after = _pids(stack.root)
    assert after["s3"] != before["s3"]
    assert {name: pid for name, pid in after.items() if name != "s3"} == {
        name: pid for name, pid in before.items() if name != "s3"
    }


def test_two_ups_at_the_same_time_start_the_dead_service_once(stack: RunningStack) -> None:
    before = _pids(stack.root)
    processes.end(psutil.Process(before["s3"]), grace=0.0)
    with ThreadPoolExecutor() as pool:
        said = list(pool.map(local_stack.up, [stack.root] * 2))
    assert said == [[], []]
    assert {name: pid for name, pid in _pids(stack.root).items() if name != "s3"} == {
        name: pid for name, pid in before.items() if name != "s3"
    }
    assert len(processes.marked({"VABAL_STACK": str(stack.root / ".vabal"), "VABAL_SERVICE": "s3"})) == 1


def test_a_lost_record_does_not_start_a_second_server_on_the_same_database(stack: RunningStack) -> None:
    before = _pids(stack.root)
    record = stack.root / ".vabal" / "stack.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps({**kept, "processes": {}}))
    assert _pids(stack.root) == before
    record.unlink()  # as after an `up` that was killed before it could record what it had started
    assert _pids(stack.root) == before
    local_stack.up(stack.root)
    assert _pids(stack.root) == before
    assert json.loads(record.read_text())["ports"] == kept["ports"]


def test_credentials_are_for_their_owner_and_on_no_command_line(stack: RunningStack) -> None:
    folder = stack.root / ".vabal"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("env", "stack.json", "logs/s3.log"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    secrets = [stack.environment["AWS_SECRET_ACCESS_KEY"], stack.environment["PREFECT_API_AUTH_STRING"]]
    for process in processes.marked({"VABAL_STACK": str(folder)}):
        command = " ".join(process.cmdline())
        assert not any(secret in command for secret in secrets), command


def test_the_servers_listen_on_loopback_only(stack: RunningStack) -> None:
    for process in processes.marked({"VABAL_STACK": str(stack.root / ".vabal")}):
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip == "127.0.0.1", process.cmdline()


def test_s3_and_prefect_turn_away_whoever_has_no_credentials(stack: RunningStack) -> None:
    prefect = f"{stack.environment['PREFECT_API_URL']}/admin/version"
    for address in (stack.environment["AWS_ENDPOINT_URL"], prefect):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(address, timeout=120)  # noqa: S310
        assert refused.value.code in (400, 401, 403)
        refused.value.close()


def test_a_prefect_server_that_is_down_or_refuses_is_told_in_one_line(
    stack: RunningStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight()
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "vabal:wrong")
    with pytest.raises(Unavailable, match=r"^the Prefect server at .* refuses the credentials[^\n]*$"):
        preflight()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(Unavailable, match=r"^no Prefect server at http://127\.0\.0\.1:9/api .*vabal up[^\n]*$"):
        preflight()
    monkeypatch.delenv("PREFECT_API_URL")
    with pytest.raises(Unavailable, match="vabal up"):
        preflight()


def test_settling_a_server_with_nothing_stale_changes_nothing(stack: RunningStack) -> None:
    server = Server.from_environment()
    running = [run["id"] for run in server.flow_runs({"state": {"type": {"any_": ["RUNNING", "PENDING"]}}})]
    settled = settle(server, alive=running, nobody_else=True)
    assert settled.crashed == ()


# --- processes, without the servers ----------------------------------------------------------------------------------


def _sleeper(folder: Path, script: str = "import time; time.sleep(600)") -> psutil.Process:
    return processes.start(
        [sys.executable, "-c", script],
        environment={**os.environ, **MARK},
        folder=folder,
        log=folder / "log",
        private=True,
    )


def test_a_pid_given_to_another_program_is_not_taken_for_ours(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        assert processes.find(stranger.pid, MARK) is None
        ours = _sleeper(tmp_path)
        found = processes.find(ours.pid, MARK)
        assert found is not None
        processes.end(found, grace=2.0)
        assert processes.find(ours.pid, MARK) is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_is_known_by_its_mark_as_soon_as_it_was_started(tmp_path: Path) -> None:
    for _ in range(100):
        ours = _sleeper(tmp_path)
        found = processes.find(ours.pid, MARK)
        ours.kill()
        assert found is not None


def test_ending_a_process_that_will_not_go_takes_its_children_too(tmp_path: Path) -> None:
    script = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = _sleeper(tmp_path, script)
    while "ready" not in (tmp_path / "log").read_text():
        time.sleep(0.05)
    children = process.children(recursive=True)
    assert len(children) == 1
    processes.end(process, grace=0.3)
    assert not processes.is_running(process)
    assert not processes.is_running(children[0])


def test_ctrl_c_in_the_terminal_does_not_reach_what_was_started(tmp_path: Path) -> None:
    process = _sleeper(tmp_path)
    assert os.getsid(process.pid) == process.pid
    processes.end(process, grace=2.0)


def test_a_server_that_dies_at_start_is_told_with_the_end_of_its_log_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "rclone"
    broken.write_text("#!/bin/sh\necho 'no space left on device' >&2\nexit 3\n")
    broken.chmod(0o700)
    monkeypatch.setattr(services, "_rclone", lambda: str(broken))
    with pytest.raises(Unavailable, match=r"s3 ended at start; the end of .*s3\.log:\nno space left on device"):
        local_stack.up(tmp_path)
    assert processes.marked({"VABAL_STACK": str(tmp_path / ".vabal")}) == []
    assert {row["state"] for row in local_stack.status(tmp_path)} == {"stopped"}


def test_servers_that_do_not_answer_in_time_are_told_with_the_limit_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deaf(service: str) -> Callable[..., tuple[list[str], dict[str, str]]]:
        command = [sys.executable, "-c", f"import time; {SERVERS[service]!r}; time.sleep(600)"]
        return lambda _stack, _ports: (command, dict(os.environ))

    for service in services.COMMANDS:
        monkeypatch.setitem(services.COMMANDS, service, deaf(service))
    monkeypatch.setenv(limits.START, "1.5")
    with pytest.raises(
        Unavailable, match=r"^prefect: no answer in 1\.5 s \(VABAL_START_S sets the limit\); the end of"
    ):
        local_stack.up(tmp_path)
    assert processes.marked({"VABAL_STACK": str(tmp_path / ".vabal")}) == []


def test_ctrl_c_during_up_ends_what_it_had_started(tmp_path: Path) -> None:
    script = f"from pathlib import Path; from vabal.adapters import stack; stack.up(Path({str(tmp_path)!r}))"
    starting = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    while len(processes.marked({"VABAL_STACK": str(tmp_path / ".vabal")})) < 3:
        assert starting.poll() is None
        time.sleep(0.1)
    starting.send_signal(signal.SIGINT)
    _, said = starting.communicate(timeout=600)
    assert b"KeyboardInterrupt" in said
    assert processes.marked({"VABAL_STACK": str(tmp_path / ".vabal")}) == []


def test_a_port_taken_by_another_program_is_given_up_and_said(tmp_path: Path) -> None:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        taken = stranger.getsockname()[1]
        ports = {"s3": taken, "mlflow": 1, "prefect": 2}
        notes = choose_ports(tmp_path, ports, {"mlflow", "prefect"})
    assert notes == [f"s3: port {taken} is taken by another program, so it listens on {ports['s3']} now"]
    assert ports["s3"] != taken
    assert ports["mlflow"] == 1
