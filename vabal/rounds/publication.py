"""Publishing that survives being killed."""

import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from vabal.errors import UserError
from vabal.files import canonical_json, sync_folder, sync_tree, write_bytes
from vabal.labels import arrivals
from vabal.rounds.manifests import tag_name
from vabal.rounds.moves import is_withdrawn, link_or_copy, place_all
from vabal.rounds.plans import Plan, pending_publication, publish_folder
from vabal.rounds.versions import Overtaken, Versions
from vabal.workspace import PINS, Workspace


def stage(workspace: Workspace, plan: Plan, contents: Mapping[str, Path]) -> None:
    """Put everything that the plan publishes into place for `carry_out`, in one rename."""
    final = publish_folder(workspace)
    temporary = workspace.state / f"publish.{uuid.uuid4().hex}"
    for left in workspace.state.glob("publish.*"):  # of a process that was killed: the workspace is ours
        if re.fullmatch(r"publish\.[0-9a-f]{32}", left.name):
            shutil.rmtree(left)
    try:
        for name, source in contents.items():
            target = temporary / "data" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
        write_bytes(temporary / "plan.json", canonical_json(asdict(plan)))
        sync_tree(temporary)
        temporary.rename(final)
        sync_folder(workspace.state)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def carry_out(
    workspace: Workspace,
    versions: Versions,
    finish: Callable[[Plan], None] | None = None,
    reached: Callable[[str], None] | None = None,
    *,
    push: bool = True,
) -> Plan | None:
    """Carry a staged publication out to its end; None if there is none. Call with the workspace locked.

    `finish` closes what lies outside (MLflow's run, aliases) and must be repeatable; `reached` hears the name of each
    step once it is done; without `push` the next publication sends this one along. Raises Unavailable if S3, MLflow or
    the git remote is away: nothing is lost, the next call goes on. Raises Overtaken if the git remote has another
    round of this number: nothing is committed or tagged then that was not before, and the publication waits to be
    withdrawn.
    """
    plan = pending_publication(workspace)
    if plan is None:
        return None
    if is_withdrawn(workspace):
        raise UserError(f"round {plan.round} is half withdrawn: `vabal abandon` ends that")
    reached = reached or (lambda _step: None)
    with versions.in_one_process():
        place_all(workspace, versions, plan)
        reached("moved")
        _send(versions, reached, push=push)
    _tag(versions, plan, reached)
    if finish:
        finish(plan)
    reached("finished")
    arrivals.remove(workspace.inbox, plan.inbox)
    (workspace.state / "round.json").unlink(missing_ok=True)
    reached("emptied")
    clear(workspace)
    return plan


def _send(versions: Versions, reached: Callable[[str], None], *, push: bool) -> None:
    versions.add()
    reached("added")
    if push:
        versions.push()
    else:
        versions.defer_push()
    reached("pushed")


def _tag(versions: Versions, plan: Plan, reached: Callable[[str], None]) -> None:
    """Commit and tag, here and at the git remote; nothing where the remote has them from a call that was cut short."""
    tag = tag_name(plan.round)
    if plan.git_remote and _is_ours(versions, plan.git_remote, tag):
        return
    versions.commit([PINS], plan.subject)
    reached("committed")
    versions.tag(tag, plan.message)
    reached("tagged")
    if plan.git_remote:
        _push_git(versions, plan, tag)


def clear(workspace: Workspace) -> None:
    """Remove what was staged: from then on no publication is pending."""
    gone = workspace.state / f"publish.{uuid.uuid4().hex}"
    with workspace.data_lock(alone=True):
        publish_folder(workspace).rename(gone)
    shutil.rmtree(gone)


def _is_ours(versions: Versions, remote: str, tag: str) -> bool:
    """Whether the remote has the tag. Raises Overtaken if it stands at another commit than here."""
    theirs = versions.remote_tags(remote).get(tag)
    if theirs is not None and theirs != versions.commit_of(tag):
        raise Overtaken(f"another machine has published {tag} at git remote {remote} first")
    return theirs is not None


def refuse_overtaken(versions: Versions, remote: str, round_number: int) -> None:
    """Raises Overtaken if the git remote has this round, which is not published here, already."""
    _is_ours(versions, remote, tag_name(round_number))


def _push_git(versions: Versions, plan: Plan, tag: str) -> None:
    """The push is the lock between machines. Commits of others that are no round are gone below."""
    remote = str(plan.git_remote)
    try:
        versions.push_git(remote, [tag])
    except UserError:  # refused, or away: what the remote has tells which
        if _is_ours(versions, remote, tag):
            return
        versions.follow(remote)
        versions.tag(tag, plan.message)
        versions.push_git(remote, [tag])
