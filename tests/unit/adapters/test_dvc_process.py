"""The process that DVC's commands share: what each says is its own, and whatever happens it leaves nothing running.

What is in DVC's place here does what it is told, at once: DVC itself runs so in `tests/integration/test_versioning.py`.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from vabal.adapters import dvc_process, limits
from vabal.adapters.dvc_process import DvcProcess
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError

CLI = """
import os, subprocess, sys, time

def main(words):
    if os.path.exists("also"):
        words = [*words, open("also").read()]
    print(*words, os.getpid())
    if "fails" in words:
        print("ERROR: no such thing", file=sys.stderr)
        return 255
    if "dies" in words:
        os.abort()
    if "killed" in words:
        os.kill(os.getpid(), 9)
    if "raises" in words:
        raise MemoryError("no room")
    if "ends" in words:
        os._exit(0)
    if "reads" in words:
        print("read", repr(sys.stdin.read()))
    if "hangs" in words:
        child = subprocess.Popen(["sleep", "600"])
        open("child", "w").write(str(child.pid))
        time.sleep(600)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a machine whose DVC is the one above."""
    package = tmp_path / "installed" / "dvc" / "cli"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "parser.py").touch()
    (package / "__init__.py").write_text(CLI)
    return os.environ | {"PYTHONPATH": str(tmp_path / "installed")}


@pytest.fixture
def process(tmp_path: Path, environment: dict[str, str]) -> Iterator[DvcProcess]:
    process = DvcProcess(tmp_path, environment)
    yield process
    process.close()
    assert not process.is_running()


def _eventually(is_so: Callable[[], bool], within: float = 60.0) -> bool:
    limit = time.monotonic() + within
    while not is_so() and time.monotonic() < limit:
        time.sleep(0.02)
    return is_so()


def test_commands_share_a_process_and_each_has_words_of_its_own(process: DvcProcess) -> None:
    first, second = process.run(["add", "data"], 60), process.run(["push"], 60)
    assert (first.returncode, first.stdout, first.stderr) == (0, f"add data {process.pid}\n".encode(), b"")
    assert (second.returncode, second.stdout, second.stderr) == (0, f"push {process.pid}\n".encode(), b"")


def test_one_that_fails_has_its_exit_code_and_the_next_gets_a_new_process(process: DvcProcess) -> None:
    before = process.pid
    failed = process.run(["fails"], 60)
    assert (failed.returncode, failed.stderr) == (255, b"ERROR: no such thing\n")
    after = process.run(["push"], 60)
    assert after.stdout == f"push {process.pid}\n".encode()
    assert process.pid != before


@pytest.mark.parametrize(
    ("how", "code", "said"), [("dies", -signal.SIGABRT, b""), ("raises", 1, b"MemoryError: no room"), ("ends", 1, b"")]
)
def test_a_crash_is_an_exit_code_and_the_next_command_goes_on(
    how: str, code: int, said: bytes, process: DvcProcess
) -> None:
    crashed = process.run([how], 60)
    assert crashed.returncode == code
    assert crashed.stderr.strip().endswith(said)
    assert process.run(["push"], 60).returncode == 0


def test_one_that_was_killed_while_it_did_nothing_is_not_noticed(process: DvcProcess) -> None:
    process.run(["add"], 60)
    os.kill(process.pid, signal.SIGKILL)
    assert _eventually(lambda: not process.is_running())
    assert process.run(["push"], 60).returncode == 0


def test_what_dvc_starts_and_asks_for_reads_nothing_of_ours(process: DvcProcess) -> None:
    assert b"read ''" in process.run(["reads"], 60).stdout


def test_past_its_limit_it_is_ended_with_what_it_started_and_the_next_command_goes_on(
    process: DvcProcess, tmp_path: Path
) -> None:
    before = process.pid
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        process.run(["hangs"], 5)
    assert time.monotonic() - started < 60
    assert not psutil.pid_exists(before)
    assert not psutil.pid_exists(int((tmp_path / "child").read_text()))
    assert process.run(["push"], 60).returncode == 0


def test_when_the_one_who_started_it_is_killed_it_is_gone_in_the_middle_of_a_command(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    program = (
        "import os; from pathlib import Path; from vabal.adapters.dvc_process import DvcProcess\n"
        f"process = DvcProcess(Path({str(tmp_path)!r}), os.environ | {{'PYTHONPATH': {environment['PYTHONPATH']!r}}})\n"
        f"Path({str(tmp_path / 'pid')!r}).write_text(str(process.pid)); process.run(['hangs'], 600)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as starter:
        assert _eventually((tmp_path / "child").exists)
        starter.kill()
    assert _eventually(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_file_of_the_workspace_is_not_taken_for_a_module(process: DvcProcess, tmp_path: Path) -> None:
    (tmp_path / "subprocess.py").write_text("raise SystemExit('taken')")
    process.end()
    assert process.run(["push"], 60).returncode == 0


# -- as the commands tell it ----------------------------------------------------------------------------------------


@pytest.fixture
def versions(tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Versioning:
    monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
    monkeypatch.setattr(dvc_process, "DvcProcess", DvcProcess)
    return Versioning(tmp_path)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("killed", "dvc push was ended from outside in {root} (killed; out of memory?): run this again"),
        ("raises", "dvc push failed in {root}: MemoryError: no room"),
        ("fails", "dvc push failed in {root}: no such thing"),
    ],
)
def test_a_command_that_comes_to_no_good_end_is_one_line_and_the_next_one_goes_on(
    what: str, said: str, versions: Versioning, tmp_path: Path
) -> None:
    with versions.in_one_process():
        versions.pull()
        (tmp_path / "also").write_text(what)
        with pytest.raises(UserError) as caught:
            versions.push()
        assert str(caught.value) == said.format(root=tmp_path)
        (tmp_path / "also").unlink()
        versions.push()


def test_one_without_an_end_is_one_line_that_names_the_limits(
    versions: Versioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(limits.TRANSFER, "3")
    (tmp_path / "also").write_text("hangs")
    with pytest.raises(Unavailable, match=r"^`dvc push` was ended after 3 s without an end: is its server there\?"):
        versions.push()
