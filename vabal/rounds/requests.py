"""What was asked for, what came: the state of the last request, and whether `data/` is as it was published."""

from dataclasses import dataclass
from typing import Protocol

from vabal import pools
from vabal.errors import BRING_BACK, UserError
from vabal.labels import arrivals
from vabal.labels.classes import upcoming
from vabal.rounds import manifests
from vabal.rounds.tables import read_selection
from vabal.workspace import Workspace


@dataclass(frozen=True)
class Answers:
    """How much of the last request was answered (labelled or rejected), the inbox's answers included."""

    round: int
    requested: int
    answered: int
    labeled: int  # size of the labelled pool, the inbox's labels included

    @property
    def share(self) -> float:
        return self.answered / self.requested if self.requested else 1.0


def pending(workspace: Workspace) -> list[str]:
    """Names of what waits in the inbox, in order."""
    return arrivals.pending(workspace.inbox)


def answers(workspace: Workspace) -> Answers:
    """Counts for the newest request that was made."""
    before = pools.read(workspace.data)  # the round's intake checks what it takes up
    events, _ = arrivals.read(workspace.inbox, pending(workspace))
    after, _ = pools.apply_labels(upcoming(workspace.inbox, before), events, manifests.head(workspace.data).round + 1)
    asked = picked_ids(workspace)
    out = pools.open_requests(after)
    still_out = int(out["sample_id"].isin(asked.ids).sum())
    return Answers(asked.round, len(asked.ids), len(asked.ids) - still_out, len(after.labeled))


@dataclass(frozen=True)
class Request:
    round: int
    ids: list[str]


def picked_ids(workspace: Workspace) -> Request:
    """What the newest round that made a request asked labels for, what it asked again too; empty where none did."""
    for number in reversed(manifests.manifest_numbers(workspace.data)):
        path = manifests.round_folder(workspace.data, number) / "selection.parquet"
        if path.exists():
            again = pools.read_one(workspace.data, "asked_again")
            return Request(
                number, [*read_selection(path)["sample_id"], *again.loc[again["round"] == number, "sample_id"]]
            )
    return Request(0, [])


class Changes(Protocol):
    def changed(self) -> list[str]: ...


def refuse_hand_edits(versions: Changes) -> None:
    """Raises UserError naming the files below `data/` that differ from what was published."""
    changed = versions.changed()
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"data/ was edited by hand: {', '.join(changed[:3])}{more}; {BRING_BACK}; "
            "labels are changed with `vabal labels import`"
        )
