"""The process that DVC's commands run in, one after another: its streams, its limit, its end."""

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import psutil

from vabal.adapters import dvc_program, processes

# By its path, and no folder of its own for imports: a file in a workspace may be called as a module of DVC's.
PROGRAM = (sys.executable, "-P", str(Path(dvc_program.__file__)))
GRACE_S = 3.0


class DvcProcess:
    """Runs commands of DVC in `folder`, in a process that imports DVC once: begun at once, ended by `close`.

    A command that fails, dies or runs past its limit takes the process with it, and the next one gets a new one.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder, self._environment = folder, dict(environment)
        self._out, self._err = (tempfile.TemporaryFile(buffering=0) for _ in range(2))  # noqa: SIM115 -- see `close`
        self._child: subprocess.Popen[bytes]
        self._channel: socket.socket
        self._start()

    def run(self, words: Sequence[str], limit: float) -> subprocess.CompletedProcess[bytes]:
        """A command to its end. Raises TimeoutError after `limit` seconds: it and what it started have been ended.

        Where the process died, the exit code is that of `subprocess`: a signal's number, negative.
        """
        if not self.is_running():
            self.end()
            self._start()
        try:
            code = self._answer(words, limit)
        except TimeoutError:
            processes.end(psutil.Process(self.pid), grace=GRACE_S)
            raise TimeoutError(f"dvc {words[0]} ran past {limit:g} s") from None
        except BaseException:
            self._child.kill()
            raise
        if code != 0:
            died = self.end()
            code = code if code is not None else died or 1
        return subprocess.CompletedProcess(["dvc", *words], code, _taken(self._out), _taken(self._err))

    @property
    def pid(self) -> int:
        return self._child.pid

    def is_running(self) -> bool:
        return self._child.poll() is None

    def close(self) -> None:
        self.end()
        self._out.close()
        self._err.close()

    def end(self) -> int:
        """End the process, which does nothing now; its exit code."""
        self._channel.close()  # which is what it ends at
        try:
            return self._child.wait(timeout=GRACE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            return self._child.wait()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:  # in this process's group, so that the terminal's Ctrl-C reaches it
            self._child = subprocess.Popen(
                PROGRAM,
                cwd=self._folder,
                env=self._environment,
                stdin=theirs.fileno(),
                stdout=self._out,
                stderr=self._err,
            )

    def _answer(self, words: Sequence[str], limit: float) -> int | None:
        """The command's exit code; None where the process ended without telling one."""
        self._channel.settimeout(limit)
        told = b""
        try:
            self._channel.sendall(json.dumps(list(words)).encode() + b"\n")
            while not told.endswith(b"\n"):
                more = self._channel.recv(64)
                if not more:
                    return None
                told += more
        except ConnectionError:
            return None
        return int(told)


def _taken(stream: BinaryIO) -> bytes:
    """What the process has written so far; the next command's begins anew, for both write at one place."""
    stream.seek(0)
    content = stream.read()
    stream.seek(0)
    stream.truncate()
    return content
