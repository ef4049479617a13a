"""Running git and DVC in a workspace's folder: in English, on no other repository, and never waiting for ever."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from vabal.adapters import limits, processes
from vabal.errors import Unavailable

# What would make git act on another repository than the workspace's (`git rev-parse --local-env-vars`): a hook sets it.
ELSEWHERE = {
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_DIR"),
    *("GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_GRAFT_FILE", "GIT_INDEX_FILE"),
    *("GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_COMMON_DIR"),
    *("GIT_INTERNAL_SUPER_PREFIX", "GIT_NAMESPACE", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
}
# The history is what was committed: not what `git replace` or a file of grafts says in its place.
AS_COMMITTED = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_GRAFT_FILE": os.devnull}
IN_ENGLISH = {"LC_ALL": "C.UTF-8", "LANGUAGE": ""}


def environment() -> dict[str, str]:
    """What git and DVC are run with: this process's environment, bound to the folder that they are run in."""
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return kept | IN_ENGLISH | AS_COMMITTED


def run(
    command: Sequence[str], *, folder: Path, environment: Mapping[str, str], limit: float, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end. Raises Unavailable if that does not come within `limit` seconds."""
    try:
        return processes.run(command, folder=folder, environment=environment, limit=limit, given=given)
    except TimeoutError:
        raise without_end(" ".join(command[:2]), limit) from None


def without_end(command: str, limit: float) -> Unavailable:
    return Unavailable(
        f"`{command}` was ended after {limit:g} s without an end: is its server there? "
        f"({limits.SILENCE} and {limits.TRANSFER} set the limits)"
    )


def as_text(done: subprocess.CompletedProcess[bytes]) -> subprocess.CompletedProcess[str]:
    out, err = (stream.decode("utf-8", errors="replace") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
