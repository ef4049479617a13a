"""`data/` as a commit pins it: that of a past round, of the newest one, or of the commit that is checked out."""

from collections.abc import Sequence
from typing import Protocol

from vabal.errors import UserError
from vabal.rounds import latest, manifests, plans
from vabal.workspace import Workspace

NEWEST = "newest"


class Repository(Protocol):
    """What is needed of `adapters.versioning`."""

    def tags(self) -> list[str]: ...
    def branch(self) -> str | None: ...
    def branches_with(self, name: str) -> list[str]: ...
    def go_to(self, name: str, branch: str | None = None) -> None: ...
    def tag_message(self, name: str) -> str: ...
    def changed(self, kinds: Sequence[str] = ...) -> list[str]: ...
    def bring_back(self) -> None: ...


def checkout(workspace: Workspace, versions: Repository, wanted: str | None, *, force: bool) -> str:
    """Bring back the pools of the round `wanted` (a number, or `newest`; None: of this commit). Says what is here now.

    Call with the workspace locked. Raises UserError, having changed nothing, if there is no such round, a publication
    is pending, or files of `data/` that were edited by hand would be lost and `force` does not say so.
    """
    plan = plans.pending_publication(workspace)
    if plan is not None:
        raise UserError(latest.half_published(plan))
    if not force and not manifests.is_published(workspace.data, versions.tag_message):
        _refuse_to_overwrite(versions)
    if wanted == NEWEST:
        tag = _newest(versions, workspace)
        versions.go_to(tag, _branch_of(versions, tag))
    elif wanted is not None:
        versions.go_to(_tag_of(versions, workspace, wanted))
    with workspace.data_lock(alone=True):
        versions.bring_back()
    here = manifests.head(workspace.data).round
    if versions.branch() is None:
        return f"data/ is as round {here} left it; `vabal checkout {NEWEST}` goes back to the newest round"
    return f"data/ is as this commit pins it: round {here}"


def _refuse_to_overwrite(versions: Repository) -> None:
    changed = versions.changed(["added", "modified"])
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(f"data/ was edited by hand: {', '.join(changed[:3])}{more}; --force overwrites that")


def _tag_of(versions: Repository, workspace: Workspace, wanted: str) -> str:
    try:
        tag = manifests.tag_name(int(wanted))
    except ValueError:
        raise UserError(f"{wanted!r} is no round: give its number, or `{NEWEST}`") from None
    if tag not in versions.tags():
        newest = manifests.number_of(_newest(versions, workspace))
        raise UserError(f"git has no tag {tag}: the newest round here is {newest} (`git fetch --tags` brings others)")
    return tag


def _newest(versions: Repository, workspace: Workspace) -> str:
    newest = latest.newest_tag(versions.tags())
    if newest is None:
        raise UserError(f"git has no tag of a round in {workspace.root}: `git fetch --tags` brings those of a remote")
    return manifests.tag_name(newest)


def _branch_of(versions: Repository, tag: str) -> str:
    """The branch to go on with: the present one if it holds the newest round, else the only one that does."""
    names = versions.branches_with(tag)
    present = versions.branch()
    if present in names:
        return str(present)
    if "main" in names or len(names) == 1:
        return "main" if "main" in names else names[0]
    if not names:
        raise UserError(f"no branch holds {tag}: `git switch --create NAME {tag}` makes one, then `vabal checkout`")
    raise UserError(
        f"which branch of {', '.join(names)} to go on with? All hold {tag}: `git switch BRANCH`, then `vabal checkout`"
    )
