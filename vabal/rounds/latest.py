"""Which round is the newest, here and at the git remote."""

from collections.abc import Iterable

from vabal.errors import UserError
from vabal.rounds.manifests import head, number_of, tag_name
from vabal.rounds.plans import Plan, pending_publication
from vabal.rounds.versions import Tags
from vabal.workspace import PINS, Workspace


def newest_tag(tags: Iterable[str]) -> int | None:
    """The newest round among names of git tags; None if there is none."""
    return max((number for number in map(number_of, tags) if number is not None), default=None)


def require_newest(workspace: Workspace, versions: Tags, git_remote: str | None = None) -> None:
    """Raises UserError, with the way out, unless `data/` holds the newest round, on the branch where rounds go on.

    What adds to the history (a round, a promotion, a rollback) would start a second one from anywhere else: a detached
    HEAD, a half published round, a branch or `data/` behind a tag, be it local or of `git_remote`. Raises Unavailable
    if the remote does not answer. Call with the workspace locked.
    """
    plan = pending_publication(workspace)
    if plan is not None:
        raise UserError(half_published(plan))
    here, newest, branch = _refuse_older_checkout(workspace, versions)
    if branch is None:
        raise UserError(f"{workspace.root} has a detached HEAD: `vabal checkout newest` goes back to the branch")
    if newest is not None and newest >= here:
        _require_on_branch(versions, branch, tag_name(newest))
    if newest is not None and newest > here:
        raise UserError(
            f"{workspace.root} has the commit of round {newest}, but data/ is as round {here} left it: "
            "`vabal checkout` brings it"
        )
    if git_remote:
        _require_none_ahead(versions, git_remote, branch, here)


def refuse_older_checkout(workspace: Workspace, versions: Tags) -> None:
    """Raises UserError, with the way out, in a checkout of an older round: what it asks people for may be answered."""
    _refuse_older_checkout(workspace, versions)


def _refuse_older_checkout(workspace: Workspace, versions: Tags) -> tuple[int, int | None, str | None]:
    """The round that `data/` is of, the newest one that has a tag, and the branch."""
    here, newest, branch = head(workspace.data).round, newest_tag(versions.tags()), versions.branch()
    if branch is None and newest is not None and newest > here:
        raise UserError(
            f"{workspace.root} is a checkout of round {here}, the newest is round {newest}: "
            "`vabal checkout newest` goes back to the branch"
        )
    return here, newest, branch


def half_published(plan: "Plan") -> str:
    """What is so, and its two ways out."""
    return f"round {plan.round} is half published: `vabal round` finishes it, `vabal abandon` drops it"


def _require_on_branch(versions: Tags, branch: str, tag: str) -> None:
    """The branch holds the round `tag`, or (its commits were written anew) the same pools."""
    if versions.contains("HEAD", tag) or versions.committed(PINS, tag) == versions.committed(PINS):
        return
    if versions.branches_with(tag):
        way = "`vabal checkout newest` goes to the branch that does"
    elif versions.contains(tag, "HEAD"):
        way = f"`git merge --ff-only {tag}`, then `vabal checkout`"
    else:
        way = f"`git merge {tag}`, then `vabal checkout`"
    raise UserError(f"branch {branch} does not hold the newest round, {tag}: {way}")


def _require_none_ahead(versions: Tags, remote: str, branch: str, here: int) -> None:
    theirs = versions.remote_tags(remote)
    newest = newest_tag(theirs)
    if newest is not None and newest > here:
        raise UserError(
            f"git remote {remote} has round {newest}, here is round {here}: {pull_from(remote, branch)}, "
            "then `vabal checkout`"
        )
    tag = tag_name(here)
    ours = versions.commit_of(tag)
    if tag in theirs and ours is not None and theirs[tag] != ours:
        raise UserError(
            f"{tag} at git remote {remote} is another round than the one here: clone it afresh to go on with its "
            "rounds, and import the labels there that were imported here"
        )


def pull_from(remote: str, branch: str) -> str:
    """The git command that brings what others pushed, also below commits of one's own."""
    return f"`git pull --rebase --autostash --tags {remote} {branch}`"
