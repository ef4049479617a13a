"""The workspace that a command acts on: the one that `--workspace` names, or that one stands in."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vabal.errors import UserError

if TYPE_CHECKING:
    from vabal.workspace import Workspace

_named: list[Path] = []


def choose(folder: Path | None) -> None:
    """What `--workspace` says, for the command that follows."""
    _named[:] = [] if folder is None else [folder]


def start() -> Path:
    """Where a workspace is looked for, from there upwards."""
    return _named[0] if _named else Path.cwd()


def program() -> str:
    """How a command for the same workspace begins."""
    return f"vabal -C {shlex.quote(str(_named[0]))}" if _named else "vabal"


def workspace() -> "Workspace":
    """The workspace, its addresses and keys in the environment. Raises UserError if there is none."""
    from vabal.workspace import Workspace

    place = Workspace.find(start())
    _prepare(place)
    return place


def _prepare(place: "Workspace") -> None:
    """Addresses and keys of its servers, and who reads images that stay in S3."""
    from vabal.adapters import reading

    place.environment()
    reading.reach_objects()


def with_pools() -> "Workspace":
    """The workspace. Raises UserError unless its pools are here."""
    place = workspace()
    place.require_round_zero()
    return place


def workspace_if_any() -> "Workspace | None":
    """The workspace whose servers a command may use that needs none."""
    from vabal.adapters import reading

    with suppress(UserError):
        return workspace()
    reading.reach_objects()
    return None


def folder(*, search: bool = True) -> Path:
    """The workspace's root; for commands that may come before there is one, the folder itself."""
    from vabal.workspace import Workspace

    here = start().absolute()
    place = Workspace(here)
    if search:
        with suppress(UserError):
            place = Workspace.find(here)
    _prepare(place)
    return place.root


@contextmanager
def reading(place: "Workspace") -> Iterator[None]:
    """`data/` as one round left it, whatever a killed run left half published."""
    from vabal import rounds
    from vabal.adapters.versioning import Versioning

    with rounds.reading(place, Versioning(place.root)):
        yield
