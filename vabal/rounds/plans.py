"""What a publication is going to do, staged beside a plan."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vabal.errors import UserError
from vabal.workspace import Workspace


@dataclass(frozen=True)
class Plan:
    """A publication: files (relative to `data/`) with their sha256, and what the tag says."""

    round: int
    message: str
    files: dict[str, str]
    inbox: list[str] = field(default_factory=list)
    git_remote: str | None = None
    after: dict[str, Any] = field(default_factory=dict)  # for `finish`: MLflow's run, model version

    @property
    def subject(self) -> str:
        return self.message.splitlines()[0]


def publish_folder(workspace: Workspace) -> Path:
    return workspace.state / "publish"


def pending_publication(workspace: Workspace) -> Plan | None:
    """The publication that was staged and not carried out to its end. Raises UserError if its plan is damaged."""
    path = publish_folder(workspace) / "plan.json"
    try:
        return Plan(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged, or of a newer version: `vabal abandon` drops that publication") from None
