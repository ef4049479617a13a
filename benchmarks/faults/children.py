"""A command in a child of this process, which has everything imported, with a fault in it: a second instead of ten.

The child is forked, so it runs `vabal.cli.app.main` as a command of its own does. What it leaves out: Prefect's engine
around the round's tasks (they are called as functions), and DVC's imports (DVC runs in a forked process as well). The
rounds that `servers` drives leave out neither.
"""

import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dvc.cli
import dvc.cli.parser
import dvc.commands.add
import dvc.commands.checkout
import dvc.commands.data
import dvc.commands.data_sync
import pytorch_metric_learning.losses  # noqa: F401
from mlflow.utils import requirements_utils
from PIL import Image
from prefect import Task
from prefect.logging import disable_run_logger

import vabal.flows.round
import vabal.rounds.initial
from benchmarks import warm
from vabal import rounds
from vabal.adapters import dvc_process, dvc_program, orchestration, storage
from vabal.adapters.dvc_process import DvcProcess
from vabal.adapters.tracking import Tracking
from vabal.adapters.versioning import Versioning
from vabal.cli import app
from vabal.flows import tasks
from vabal.labels import classes, inbox
from vabal.learning.pretraining.training import Checkpoint
from vabal.promotion import record
from vabal.rounds import pretraining, publication, steps
from vabal.sources import ingestion

Image.init()
dvc.cli.parser.get_main_parser()  # which DVC makes once a process
requirements_utils._init_modules_to_packages_map()
warm.import_all()

# What changes a file or starts a process, as Python's audit events name it (`open`: where it is for writing).
WRITES = {
    *("os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod"),
    "subprocess.Popen",
}
LIMIT_S = 300.0  # a command that takes longer hangs

Fault = Callable[[], None]


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` is negative for the signal that killed it, None if it hung; what it said."""

    code: int | None
    said: str
    calls: int
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def in_one_line(self) -> bool:
        """Ended well, or killed, or with one line that says why."""
        if self.code == 0 or self.killed:
            return True
        told = [line for line in self.said.splitlines() if line.startswith("vabal: ")]
        return self.code == 1 and len(told) == 1 and "Traceback" not in self.said


def run(
    root: Path,
    *words: str,
    fault: Fault = lambda: None,
    environment: Mapping[str, str] | None = None,
    after_s: float | None = None,
    real_dvc: bool = False,
    limit: float = LIMIT_S,
) -> Ended:
    """`vabal WORDS` in `root`. `fault` is called in the child before; after `after_s` seconds its group is killed."""
    counter = mmap.mmap(-1, 8)
    started = time.monotonic()
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            _be(root, words, fault, environment or {}, log.fileno(), counter, real_dvc)
        code = _wait(child, after_s, limit)
        log.seek(0)
        said = log.read().decode(errors="replace")
    return Ended(code, said, int.from_bytes(counter[:], "little"), time.monotonic() - started)


def do(deed: Callable[[], object]) -> None:
    """Do it in a child, so that this process keeps no thread and no connection of it. Raises RuntimeError."""
    child = os.fork()
    if not child:
        code = 70
        try:
            os.setsid()
            deed()
            code = 0
        except BaseException:  # noqa: BLE001 -- shown; the parent raises
            traceback.print_exc()
        finally:
            os._exit(code)
    if ended := _wait(child, None, LIMIT_S):
        raise RuntimeError(f"a child that prepares something ended with {ended}")


def _wait(child: int, after_s: float | None, limit: float) -> int | None:
    started, hung = time.monotonic(), False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        spent = time.monotonic() - started
        hung = spent > limit
        if hung or (after_s is not None and spent > after_s):
            _kill_group(child)
            _, status = os.waitpid(child, 0)
            break
        time.sleep(0.005)
    _kill_group(child)  # what it started does not outlive it: a power cut spares nobody
    return None if hung else os.waitstatus_to_exitcode(status)


def _kill_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _be(
    root: Path,
    words: Sequence[str],
    fault: Fault,
    environment: Mapping[str, str],
    log: int,
    counter: mmap.mmap,
    real_dvc: bool,
) -> None:
    """Become the command. Never returns."""
    code = 70
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(log, stream)
        os.chdir(root)
        os.environ.update(environment)
        _without_prefect()
        Checkpoint.__init__.__defaults__ = (0.0,)  # a pretraining keeps its state after every step
        if (root / ".dvc" / "config").exists() and "s3://" not in (root / ".dvc" / "config").read_text():
            storage.preflight = lambda *_: None  # the pools' bucket is a folder
        if not real_dvc:
            dvc_process.DvcProcess = _ForkedDvc  # type: ignore[misc]
        count_calls(str(root.parent), counter, None, False)
        fault()
        sys.argv = ["vabal", *words]
        app.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 -- a child must end here, and show what escaped
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _without_prefect() -> None:
    """The round's flow as a plain function; its tasks as well."""
    orchestration.preflight = lambda: None
    flow = vabal.flows.round.active_learning_round
    for name, value in list(vars(tasks).items()):
        if isinstance(value, Task):
            setattr(tasks, name, value.fn)

    def plain(root: str, strategy: str | None = None, **_options: Any) -> Any:
        with disable_run_logger():
            return flow.fn(root, strategy)

    vabal.flows.round.active_learning_round = plain  # type: ignore[assignment]  # no flow: the aim
    vabal.flows.round._run_name = lambda: "round"


class _ForkedDvc(DvcProcess):
    """DVC's process as a child of this one, which has DVC imported."""

    def _start(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._channel, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            try:
                self._channel.close()
                for number, stream in enumerate((theirs.fileno(), self._out.fileno(), self._err.fileno())):
                    os.dup2(stream, number)
                os.chdir(self._folder)
                os.environ.clear()
                os.environ.update(self._environment)
                dvc_program.main()
            finally:
                os._exit(70)
        theirs.close()
        self._child = _Child(child)  # type: ignore[assignment]


class _Child:
    """A child that was forked: what `DvcProcess` needs of a `Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            try:
                ended, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # who ended it has seen its end
                ended, status = self.pid, signal.SIGKILL
            self.code = os.waitstatus_to_exitcode(status) if ended else None
        return self.code

    def wait(self, timeout: float = float("inf")) -> int:
        limit = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                raise subprocess.TimeoutExpired("dvc", timeout)
            time.sleep(0.002)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


# -- faults -------------------------------------------------------------------------------------------------------


def count_calls(below: str, counter: mmap.mmap | None, dies_at: int | None, alone: bool) -> None:
    """Count what writes below the folder `below` and what starts processes; die at that call, before it happens."""
    shared = counter or mmap.mmap(-1, 8)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in WRITES:
            path = arguments[0]
        else:
            return
        if event != "subprocess.Popen" and not os.fsdecode(path if not isinstance(path, int) else "").startswith(below):
            return
        calls = int.from_bytes(shared[:], "little") + 1
        shared[:] = calls.to_bytes(8, "little")
        if calls == dies_at:
            die(alone)

    sys.addaudithook(hook)


def die(alone: bool = False) -> None:
    """SIGKILL: this process, or all that the command started with it."""
    if alone:
        os.kill(os.getpid(), signal.SIGKILL)
    os.killpg(0, signal.SIGKILL)


def at_call(below: Path, number: int, alone: bool) -> Fault:
    return lambda: count_calls(str(below), None, number, alone)


def after_step(where: str, deed: Callable[[], None] = die) -> Fault:
    """Do `deed` (default: die) once the named step is done."""

    def install() -> None:
        kind, _, name = where.partition(":")
        if kind == "reached":
            _on_reached(name, deed)
            return
        owners: dict[str, Any] = {
            **{"stages": steps, "rounds": rounds, "inbox": inbox, "ingestion": ingestion, "classes": classes},
            **{"pretraining": pretraining, "tracking": Tracking, "versioning": Versioning, "promotion_record": record},
        }
        owner = owners[kind]
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            deed()
            return result

        setattr(owner, name, wrapped)

    return install


def _on_reached(wanted: str, deed: Callable[[], None]) -> None:
    def hear(step: str) -> None:
        if step == wanted:
            deed()

    begin, carry_out = vabal.rounds.initial.initialise, rounds.carry_out

    def initialise(*arguments: Any, **options: Any) -> Any:
        return begin(*arguments, **{**options, "reached": hear})

    def carrying(*arguments: Any, **options: Any) -> Any:
        return carry_out(*arguments, **{**options, "reached": hear})

    vabal.rounds.initial.initialise = initialise
    rounds.carry_out = publication.carry_out = carrying
