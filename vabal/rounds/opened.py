"""The open round: what it was begun with, kept until it is published."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vabal.files import canonical_json, write_bytes
from vabal.rounds.manifests import head
from vabal.workspace import Workspace

# -- the open round -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenRound:
    """A round that was begun. Once it has learned (`keep`), what it takes in is settled: a rerun picks the same."""

    round: int
    parent: str  # digest of the manifest that it builds on
    inbox: tuple[str, ...]
    started: str  # ISO 8601, UTC
    learned: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"inbox": list(self.inbox)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "OpenRound":
        learned = bool(document.get("learned", False))
        return cls(document["round"], document["parent"], tuple(document["inbox"]), document["started"], learned)


def begun_round(workspace: Workspace) -> OpenRound | None:
    """The round that was begun and never published; None also where its note is damaged: nothing rests on it."""
    try:
        return OpenRound.from_json(json.loads((workspace.state / "round.json").read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None


def open_round(workspace: Workspace, pending: list[str], now: datetime) -> OpenRound:
    """Begin the next round, or go on with the one that was begun and has learned something.

    One that has not, or failed (`reopen`), takes in what came meanwhile.
    """
    newest = head(workspace.data)
    begun = begun_round(workspace)
    if begun is not None and begun.parent == newest.digest:
        present = all((workspace.inbox / name).exists() for name in begun.inbox)
        if present and (begun.learned or list(begun.inbox) == pending):
            return begun
    fresh = OpenRound(
        newest.round + 1, newest.digest, tuple(pending), now.astimezone(UTC).isoformat(timespec="seconds")
    )
    _note(workspace, fresh)
    return fresh


def keep(workspace: Workspace, begun: OpenRound) -> None:
    """The round has learned from what it took in: a rerun goes on with that."""
    _note(workspace, replace(begun, learned=True))


def reopen(workspace: Workspace) -> None:
    """The round failed: a rerun takes in what came meanwhile."""
    begun = begun_round(workspace)
    if begun is not None:
        _note(workspace, replace(begun, learned=False))


def _note(workspace: Workspace, begun: OpenRound) -> None:
    write_bytes(workspace.state / "round.json", canonical_json(begun.to_json()))


def give_up(workspace: Workspace) -> None:
    """Forget the round that was begun: it would have had nothing to do. The next one looks at the inbox afresh."""
    (workspace.state / "round.json").unlink(missing_ok=True)
