"""Commands in children of a process that has imported everything: what they do is real, only their imports are saved.

`vabal round` in a process of its own imports for eight seconds, `dvc` for half a second, and the tests call them a
thousand times. A `Nursery` is a process that imports once and forks for every command that it is told of. The command
gets the arguments, the folder, the whole environment and the streams that it would have had.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from benchmarks import warm
from vabal.adapters import dvc_process, processes

ROOT = Path(__file__).parents[2]
DVC_SOCKET = "VABAL_TESTS_DVC_SOCKET"
IMPORTS = {
    "dvc": ("dvc.cli", "dvc.cli.parser", "dvc_s3", "s3fs", "aiobotocore.session", "aiohttp"),
    "dying-init": ("vabal.adapters.versioning", "vabal.rounds.initial"),
}  # of the kind "vabal": all
# What DVC imports only when it is asked for: these bring it all in, in a repository of one file.
DVC_WARMS_UP = (("add", "data"), ("data", "status", "--granular", "--json", "--no-remote-refresh"), ("push",))


class Nursery:
    """The process of one kind of command (see `IMPORTS`), and how to have one run in a child of it."""

    def __init__(self, kind: str, environment: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nursery-")
        self.address = f"{self._folder.name}/socket"
        command = [sys.executable, "-m", "tests.support.forking", kind, self.address]
        kept = dict(os.environ if environment is None else environment)
        if kind == "dvc":  # nothing of ours runs there: not measured
            kept = {name: value for name, value in kept.items() if not name.startswith(("COVERAGE", "COV_"))}
        elif _dvc_nurseries:
            kept[DVC_SOCKET] = _dvc_nurseries[-1]()
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=kept, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", f"the nursery of {kind} did not start"

    def run(self, command: Sequence[str], *, folder: Path, environment: Mapping[str, str]) -> tuple[int, str, str]:
        """The exit code (negative: the signal that killed it), and what the command said on both streams."""
        code, out, err = run_at(self.address, command, folder=folder, environment=environment)
        return code, out.decode(), err.decode()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._folder.cleanup()


def run_at(
    address: str, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], limit: float | None = None
) -> tuple[int, bytes, bytes]:
    """A command in a child of the nursery that listens at `address`; exit code and both streams.

    Raises TimeoutError after `limit` seconds: it and its children ended.
    """
    request = json.dumps({"command": list(command), "folder": str(folder), "environment": dict(environment)}).encode()
    with (
        socket.socket(socket.AF_UNIX) as connection,
        Path(os.devnull).open("rb") as nothing,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        connection.connect(address)
        streams = [nothing.fileno(), out.fileno(), err.fileno()]
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], streams)
        connection.sendall(request)
        child = int.from_bytes(_read(connection, 8), "big")
        connection.settimeout(limit)
        try:
            code = int.from_bytes(_read(connection, 8), "big", signed=True)
        except TimeoutError:
            processes.end(psutil.Process(child), grace=3.0)
            raise TimeoutError(f"{command[0]} ran past {limit:g} s") from None
        told = []
        for stream in (out, err):
            stream.seek(0)
            told.append(stream.read())
    return code, told[0], told[1]


def _read(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        more = connection.recv(size - len(content))
        if not more:
            raise ConnectionError("the nursery ended")
        content += more
    return content


DVC_PROCESS = dvc_process.DvcProcess  # the real one

# Where the one of DVC listens. Not told by `os.environ`: whoever puts that back after a command would lose it.
_dvc_nurseries: list[Callable[[], str]] = []


@contextlib.contextmanager
def dvc_nursery() -> Iterator[None]:
    """DVC's commands run in children of a nursery, started at the first one, here and in other nurseries' children."""
    started = list[Nursery]()

    def address() -> str:
        if not started:
            started.append(Nursery("dvc"))
        return started[0].address

    _use_for_dvc(address)
    _dvc_nurseries.append(address)
    yield
    _dvc_nurseries.remove(address)
    dvc_process.DvcProcess = DVC_PROCESS  # type: ignore[misc]
    for nursery in started:
        nursery.close()


def _use_for_dvc(address: Callable[[], str]) -> None:
    class Child:
        """In the place of `DvcProcess`."""

        def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
            self._folder, self._environment = folder, environment

        def run(self, words: Sequence[str], limit: float) -> subprocess.CompletedProcess[bytes]:
            command = ["dvc", *words]
            done = run_at(address(), command, folder=self._folder, environment=self._environment, limit=limit)
            return subprocess.CompletedProcess(command, *done)

        def close(self) -> None:
            pass

    dvc_process.DvcProcess = Child  # type: ignore[misc, assignment]


# -- the process itself -------------------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Fork for every request until the standard input ends. Children come back from here to be the command."""
    waiting = selectors.DefaultSelector()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        waiting.register(listener, selectors.EVENT_READ, None)
        waiting.register(sys.stdin, selectors.EVENT_READ, "end")
        print("ready", flush=True)  # noqa: T201 -- the one who started us waits for it
        while True:
            for key, _ in waiting.select():
                if key.data == "end":
                    return
                if key.data is None:
                    connection, _ = listener.accept()
                    child = _fork(connection, waiting)
                    waiting.register(os.pidfd_open(child), selectors.EVENT_READ, (child, connection))
                else:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
                    child, connection = key.data
                    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    with contextlib.suppress(OSError):  # nobody waits for it any more
                        connection.sendall(code.to_bytes(8, "big", signed=True))
                    connection.close()


def _fork(connection: socket.socket, waiting: selectors.BaseSelector) -> int:
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    request = json.loads(_read(connection, int.from_bytes(size, "big")))
    child = os.fork()
    if not child:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for other in [*waiting.get_map().values()]:
            if other.fd > 2:
                os.close(other.fd)
        os.closerange(min(streams), max(streams) + 1)
        waiting.close()
        connection.close()
        _be(request)
    for stream in streams:
        os.close(stream)
    connection.sendall(child.to_bytes(8, "big"))
    return child


def _be(request: Mapping[str, Any]) -> NoReturn:
    """The command, from its start to what an interpreter does at its end."""
    code = 70
    try:
        random.seed()
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        code = _call(request["command"])
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 -- as an interpreter ends
        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            threading._shutdown()  # type: ignore[attr-defined]  # waits for what Prefect still sends
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _call(command: Sequence[str]) -> int:
    """The command itself (`python PROGRAM WORDS` runs a program of a test's); an exit code."""
    kind, *words = command
    if kind == "dvc":
        from dvc import cli

        return int(cli.main(words) or 0)
    sys.argv = list(command)
    if kind == "vabal":
        from vabal.cli import app

        app.main()
        return 0
    if kind == "python":
        program, *sys.argv[1:] = words
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 -- as `python -c` does
        return 0
    from tests.support import dying

    return dying.initialise(*words) if kind == "dying-init" else dying.round_(*words)


def _warm_up() -> None:
    """Import what a child imports for DVC's commands, which leave their threads and caches in that child."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nothing:
                os.dup2(nothing.fileno(), 1)
                os.dup2(nothing.fileno(), 2)
                os.chdir(folder)
                os.environ |= {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": f"{folder}/site"}
                Path("data").mkdir()
                Path("data/some").write_text("some")
                subprocess.run(["git", "init", "--quiet"], check=True)
                for words in (("init",), ("remote", "add", "--default", "here", f"{folder}/remote"), *DVC_WARMS_UP):
                    _call(["dvc", *words])
            os.write(writing, "\n".join(sys.modules).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        names = told.read().splitlines()
    os.waitpid(child, 0)
    for name in names:
        with contextlib.suppress(ImportError):  # made while it ran, as some modules are
            importlib.import_module(name)
    importlib.import_module("dvc.cli.parser").get_main_parser()  # which DVC makes once a process


def main(kind: str, address: str) -> None:
    gc.disable()
    for name in IMPORTS.get(kind, ()):
        importlib.import_module(name)
    if kind not in IMPORTS:
        warm.import_all()
    if kind == "dvc":
        _warm_up()
    elif DVC_SOCKET in os.environ:
        dvc_socket = os.environ[DVC_SOCKET]
        _use_for_dvc(lambda: dvc_socket)
    gc.enable()
    gc.freeze()
    serve(address)


if __name__ == "__main__":
    main(*sys.argv[1:])
