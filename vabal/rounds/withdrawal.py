"""A round that gives way to another machine's, or that people drop: what is undone, and what stays.

A withdrawal rolls forward like a publication: a mark is set beside the plan first, then commit, tag and `data/` are
taken back, then MLflow is told; the next command goes on with what was cut short. What came in stays in the inbox.
"""

import shutil
from collections.abc import Callable

from vabal.errors import Unavailable, UserError
from vabal.files import write_bytes
from vabal.labels import arrivals
from vabal.rounds import manifests, moves, opened, plans, publication
from vabal.rounds.manifests import tag_name
from vabal.rounds.plans import Plan
from vabal.rounds.versions import Versions
from vabal.workspace import Workspace

LOST, ABANDONED = "lost", "abandoned"  # what becomes of the model's version


Tell = Callable[[Plan | None, str], str | None]  # tells MLflow of a publication, or of the open round, what became


def withdraw(workspace: Workspace, versions: Versions, status: str, tell: Tell) -> Plan | None:
    """Take a pending publication back; None if there is none. `status`: LOST or ABANDONED. Hold the workspace.

    Raises Unavailable if `tell` does: the next call goes on.
    """
    plan = plans.pending_publication(workspace)
    if plan is None:
        return None
    mark = plans.publish_folder(workspace) / moves.WITHDRAWN
    if mark.exists():
        status = mark.read_text(encoding="ascii")
    else:
        write_bytes(mark, status.encode("ascii"))
    with workspace.data_lock(alone=True):
        moves.take_back(workspace, versions, plan)
    tell(plan, status)
    opened.give_up(workspace)
    publication.clear(workspace)
    return plan


def give_way(workspace: Workspace, versions: Versions, remote: str, tell: Tell) -> str:
    """This machine's round is withdrawn, the pools of the one that was first are brought. Says what is so now."""
    if withdraw(workspace, versions, LOST, tell) is None and opened.begun_round(workspace) is not None:
        tell(None, LOST)
    opened.give_up(workspace)
    versions.follow(remote)
    with workspace.data_lock(alone=True):
        versions.bring_back()
    here = manifests.head(workspace.data).round
    return (
        f"another machine published first: data/ is as its round {here} left it, this one's was withdrawn, and what it "
        "had taken in waits in the inbox for the next round"
    )


def abandon(
    workspace: Workspace, versions: Versions, tell: Tell, anchored: Callable[[str], str | None] = lambda _name: None
) -> list[str]:
    """Drop the pending publication or the round that was begun; lines that say what went and what stays.

    `tell` tells MLflow, and answers with a line where that did not work; `anchored` says which head is anchored under
    a tag's name. Call with the workspace locked. Raises UserError, having changed nothing, if there is neither, or if
    the round is public already, at the git remote or by its anchor.
    """
    stays = f"{len(arrivals.pending(workspace.inbox))} files of labels and images stay in the inbox for the next round"
    damaged = False
    try:
        plan = plans.pending_publication(workspace)
    except UserError:
        plan, damaged = None, True
    if damaged:
        return [*_drop_damaged(workspace, versions), stays]
    begun = opened.begun_round(workspace)
    if plan is None and begun is None and not (workspace.state / "round.json").exists():
        raise UserError("there is nothing to abandon: no round is open, and none is half published")
    if plan is None:
        said = tell(None, ABANDONED)
        opened.give_up(workspace)
        number = f"round {begun.round}" if begun is not None else "the round that was begun"
        return [f"{number} is dropped: what it had computed is found again by the next one", *_lines(said), stays]
    _refuse_published(versions, plan, anchored)
    told: list[str] = []

    def noting(dropped: Plan | None, status: str) -> None:
        told.extend(_lines(tell(dropped, status)))

    withdraw(workspace, versions, ABANDONED, noting)
    here = manifests.head(workspace.data).round
    return [
        f"the publication of round {plan.round} is dropped: its tag, its commit and its picks; "
        f"data/ is as round {here} left it",
        *told,
        stays,
    ]


def _refuse_published(versions: Versions, plan: Plan, anchored: Callable[[str], str | None]) -> None:
    if plan.round == 0:
        raise UserError("round 0 is half made: `vabal init` with the same arguments finishes it")
    ours = versions.commit_of(tag_name(plan.round))
    if ours is None:  # push and anchor come after the tag
        return
    if anchored(tag_name(plan.round)) is not None:
        raise UserError(f"round {plan.round} is anchored already: `vabal round` finishes it here")
    if plan.git_remote is None:
        return
    try:
        theirs = versions.remote_tags(plan.git_remote)
    except Unavailable as error:
        raise Unavailable(f"whether round {plan.round} is public already cannot be told: {error}") from None
    if theirs.get(tag_name(plan.round)) == ours:
        raise UserError(
            f"round {plan.round} is at git remote {plan.git_remote} already: `vabal round` finishes it here"
        )


def _drop_damaged(workspace: Workspace, versions: Versions) -> list[str]:
    """Of a publication whose plan cannot be read: the pools as the branch pins them."""
    with workspace.data_lock(alone=True):
        versions.undo("", " ")
        versions.bring_back()
    opened.give_up(workspace)
    shutil.rmtree(plans.publish_folder(workspace))
    here = manifests.head(workspace.data).round
    return [f"a publication whose plan was damaged is dropped; data/ is as round {here} left it"]


def _lines(said: str | None) -> list[str]:
    return [said] if said else []
