"""Processes that outlive the command that started them, found again and ended by what they are, never by name.

Every process carries a mark in its environment, which its children inherit. A process counts as ours only if its mark
is ours, so a pid that the system has given to someone else meanwhile is left alone.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import psutil

LOG_BYTES = 20_000_000
MARK_PATIENCE_S = 5.0

# Started by this process: kept so that the ends of those that die before us are collected.
_children: list[subprocess.Popen[bytes]] = []


def start(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path, private: bool
) -> psutil.Process:
    """Start `command` in a session of its own, out of reach of the terminal's Ctrl-C; output is appended to `log`.

    `private`: the files it makes are for its owner only.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _open_log(log)
    with log.open("ab") as stream:
        child = subprocess.Popen(
            list(command),
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077 if private else -1,
        )
    _children.append(child)
    return _once_marked(psutil.Process(child.pid))


def _once_marked(process: psutil.Process) -> psutil.Process:
    """The process, once its environment can be seen: a moment after it was begun the system does not show it yet."""
    limit = time.monotonic() + MARK_PATIENCE_S
    while not environment_of(process) and is_running(process) and time.monotonic() < limit:
        time.sleep(0.001)
    return process


def run(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], limit: float, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `command` to its end on the input `given`, its output kept.

    Raises TimeoutError after `limit` seconds: it and its children ended.

    It stays in this process's group, so that the terminal's Ctrl-C reaches it.
    """
    with subprocess.Popen(
        list(command),
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE if given else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            out, err = child.communicate(given or None, timeout=limit)
        except subprocess.TimeoutExpired:
            end(psutil.Process(child.pid), grace=3.0)
            child.communicate()
            raise TimeoutError(f"{command[0]} ran past {limit:g} s") from None
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(list(command), child.returncode, out, err)


def _open_log(log: Path) -> None:
    """Make the log for its owner only; one that has grown large is kept once, as `.1`."""
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(log.name + ".1"))
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))


def is_running(process: psutil.Process) -> bool:
    for child in _children:
        child.poll()  # a dead child of ours stays visible until its end is collected
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The environment that a process was started with; empty if it is gone or someone else's."""
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


def find(pid: int, marks: Mapping[str, str]) -> psutil.Process | None:
    """The running process `pid`, if it carries all of `marks` in its environment."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    environment = environment_of(process)
    ours = all(environment.get(name) == value for name, value in marks.items())
    return process if ours and is_running(process) else None


def marked(marks: Mapping[str, str]) -> list[psutil.Process]:
    """Every running process that carries `marks`, oldest first; this process and its ancestors are left out."""
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = [
        process
        for process in psutil.process_iter()
        if process.pid not in mine and marks.items() <= environment_of(process).items() and is_running(process)
    ]
    return sorted(found, key=lambda process: process.create_time())


def end(process: psutil.Process, *, grace: float) -> None:
    """End a process and all that it started: asked first, and after `grace` seconds forced."""
    tree = _tree(process)
    _signal([process], force=False)
    _, alive = psutil.wait_procs(tree, timeout=grace)
    left = {item.pid: item for item in [*alive, *(child for item in alive for child in _tree(item))]}
    _signal(left.values(), force=True)
    psutil.wait_procs(list(left.values()), timeout=5.0)
    for child in _children:
        child.poll()


def _tree(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return [process]


def _signal(processes: Iterable[psutil.Process], *, force: bool) -> None:
    for process in processes:
        try:
            if force:
                process.kill()
            else:
                process.terminate()
        except psutil.NoSuchProcess:
            continue  # gone already, which is what was wanted


def last_lines(log: Path, count: int = 8) -> str:
    """The last lines of a log that say something, for an error message."""
    with log.open("rb") as stream:
        stream.seek(0, os.SEEK_END)
        stream.seek(max(0, stream.tell() - 16_384))
        lines = stream.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join([line.rstrip() for line in lines if line.strip()][-count:])
