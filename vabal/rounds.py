"""A round's record: the manifest, the chain of manifests, and publishing that survives being killed.

A round is published in one direction only. Everything new is staged in one folder beside a plan; the folder appears
under its final name in one rename. From then on whoever holds the workspace carries the plan out to its end, and every
step of it can be repeated.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from vabal import inbox, pools
from vabal.bounds import parse_json
from vabal.errors import BRING_BACK, UserError
from vabal.store import canonical_json, file_sha256, make_folder, sync_folder, sync_tree, write_bytes
from vabal.workspace import Workspace

# Of the rounds that record all that their scores take; round 0 and rounds of earlier versions of the package have 1.
MANIFEST_VERSION = 2
FIRST_VERSION = 1
MANIFEST_KEYS = (
    *("version", "round", "parent", "strategy", "seed", "settings", "code", "class_terms", "selection"),
    *("pools_before", "pools_after", "tables", "files", "shards", "counts", "intake", "model", "mlflow_run"),
    *("prefect_flow_run", "metrics", "times", "environment", "promotions"),
)


def tag_name(round_number: int) -> str:
    return f"round/{round_number:04d}"


def number_of(tag: str) -> int | None:
    """The round that a tag stands for; None where it is no round's."""
    found = re.fullmatch(r"round/(\d{4,})", tag)
    return int(found[1]) if found else None


def derive_seed(seed: int, round_number: int, purpose: str) -> int:
    """A seed for one purpose in a round, from the setting `seed`."""
    digest = hashlib.sha256(f"{seed}/{round_number}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def round_folder(data: Path, round_number: int) -> Path:
    return data / "rounds" / f"{round_number:04d}"


# -- manifests --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The newest published round: its number, its manifest and the digest of the manifest's bytes."""

    round: int
    manifest: dict[str, Any]
    digest: str


def manifest_numbers(data: Path) -> list[int]:
    """Rounds that have a folder in `data/rounds`, ascending."""
    return sorted(int(path.name) for path in (data / "rounds").glob("[0-9][0-9][0-9][0-9]*") if path.is_dir())


def read_manifest(data: Path, round_number: int) -> Head:
    """Raises UserError if the manifest is missing or no longer JSON."""
    path = round_folder(data, round_number) / "manifest.json"
    try:
        content = path.read_bytes()
        manifest = parse_json(content)
    except FileNotFoundError:
        raise UserError(f"round {round_number} has no manifest at {path}: see `vabal audit` for the rounds") from None
    except ValueError:
        raise UserError(f"{path} is damaged: {BRING_BACK}") from None
    return Head(round_number, manifest, digest_of(content))


def head(data: Path) -> Head:
    """The newest round. Raises UserError if there is none."""
    numbers = manifest_numbers(data)
    if not numbers:
        raise UserError(f"{data} holds no round: make round 0 with `vabal init --source ...`")
    return read_manifest(data, numbers[-1])


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe_files(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a round's folder but the manifest itself."""
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"}


def is_published(data: Path, message_of: Callable[[str], str]) -> bool:
    """Whether every file in `data/` is as a round left it whose tag (`message_of` reads it) names its manifest.

    Then nothing is lost by going to another round. Reads every file.
    """
    numbers = manifest_numbers(data)
    if not numbers:
        return False
    expected: dict[str, str] = {}
    for number in numbers:
        try:
            newest = read_manifest(data, number)
            here = f"rounds/{number:04d}"
            expected |= {f"{here}/{name}": sha256 for name, sha256 in newest.manifest["files"].items()}
            expected[f"{here}/manifest.json"] = newest.digest
        except (UserError, KeyError, AttributeError):
            return False
    if newest.digest not in message_of(tag_name(numbers[-1])):
        return False
    expected |= newest.manifest["tables"]
    expected |= {f"images/{name}.parquet": sha256 for name, sha256 in newest.manifest["shards"].items()}
    found = {path.relative_to(data).as_posix(): path for path in data.rglob("*") if not path.is_dir()}
    return found.keys() == expected.keys() and all(file_sha256(found[name]) == expected[name] for name in found)


def tag_message(manifest: Mapping[str, Any], digest: str) -> str:
    """What the annotated tag says: the head of the manifest chain stands here too, outside `data/`."""
    counts = manifest["counts"]
    return (
        f"round {manifest['round']}: {counts['picks']} picked by {manifest['strategy']}, "
        f"{counts['labeled']} labeled, {counts['unlabeled']} unlabeled\n\nmanifest sha256:{digest}"
    )


def counts_of(after: pools.Pools, picks: int) -> dict[str, int]:
    """The pools' arithmetic, as it stands in a manifest."""
    status = after.unlabeled["status"].value_counts()
    return {
        "catalog": len(after.catalog),
        "labeled": len(after.labeled),
        "unlabeled": len(after.unlabeled),
        "available": int(status.get(pools.AVAILABLE, 0)),
        "requested": int(status.get(pools.REQUESTED, 0)),
        "rejected": int(status.get(pools.REJECTED, 0)),
        "holdout": len(after.holdout),
        "picks": picks,
    }


def table_files(folder: Path) -> dict[str, str]:
    """The sha256 of each table's file, as published."""
    names = [*(f"{name}.parquet" for name in pools.SCHEMAS), "classes.json"]
    return {name: file_sha256(folder / name) for name in names}


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


# -- which round is the newest --------------------------------------------------------------------------------------


class Tags(Protocol):
    """What is needed of `adapters.versioning` to know the newest round."""

    def branch(self) -> str | None: ...
    def branches_with(self, name: str) -> list[str]: ...
    def tags(self) -> list[str]: ...
    def remote_tags(self, remote: str) -> dict[str, str]: ...
    def commit_of(self, name: str) -> str | None: ...
    def contains(self, name: str, commit: str) -> bool: ...
    def committed(self, path: str, at: str = ...) -> bytes | None: ...


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
    refuse_older_checkout(workspace, versions)
    here, newest = head(workspace.data).round, newest_tag(versions.tags())
    branch = versions.branch()
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
    here, newest = head(workspace.data).round, newest_tag(versions.tags())
    if versions.branch() is None and newest is not None and newest > here:
        raise UserError(
            f"{workspace.root} is a checkout of round {here}, the newest is round {newest}: "
            "`vabal checkout newest` goes back to the branch"
        )


def half_published(plan: "Plan") -> str:
    """What is so, and its two ways out."""
    return f"round {plan.round} is half published: `vabal round` finishes it, `vabal abandon` drops it"


def _require_on_branch(versions: Tags, branch: str, tag: str) -> None:
    """The branch holds the round `tag`, or (its commits were written anew) the same pools."""
    if versions.contains("HEAD", tag) or versions.committed("data.dvc", tag) == versions.committed("data.dvc"):
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


# -- publishing ---------------------------------------------------------------------------------------------------


class Versions(Protocol):
    """What publishing needs of `adapters.versioning`."""

    def add(self) -> None: ...
    def push(self) -> None: ...
    def defer_push(self) -> None: ...
    def bring_back(self) -> None: ...
    def commit(self, paths: list[str], message: str) -> bool: ...
    def tag(self, name: str, message: str) -> None: ...
    def undo(self, name: str, message: str) -> None: ...
    def commit_of(self, name: str) -> str | None: ...
    def remote_tags(self, remote: str) -> dict[str, str]: ...
    def push_git(self, remote: str, names: list[str]) -> None: ...
    def follow(self, remote: str) -> None: ...


class Overtaken(UserError):  # noqa: N818 -- an answer, as much as an error
    """Another machine has published this round at the git remote: this one's gives way (`vabal.withdrawal`)."""


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
            _link_or_copy(source, target)
        write_bytes(temporary / "plan.json", canonical_json(asdict(plan)))
        sync_tree(temporary)
        temporary.rename(final)
        sync_folder(workspace.state)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    _place_all(workspace, versions, plan)
    reached("moved")
    versions.add()
    reached("added")
    if push:
        versions.push()
    else:
        versions.defer_push()
    reached("pushed")
    tag = tag_name(plan.round)
    there = False  # published at the remote already, by a call that did not come to its end
    if plan.git_remote:
        there = _is_ours(versions, plan.git_remote, tag)
    if not there:
        versions.commit(["data.dvc"], plan.subject)
        reached("committed")
        versions.tag(tag, plan.message)
        reached("tagged")
        if plan.git_remote:
            _push_git(versions, plan, tag)
    if finish:
        finish(plan)
    reached("finished")
    inbox.remove(workspace.inbox, plan.inbox)
    (workspace.state / "round.json").unlink(missing_ok=True)
    reached("emptied")
    clear(workspace)
    return plan


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


# -- what a publication puts into data/ -----------------------------------------------------------------------------


@contextmanager
def reading(workspace: Workspace, versions: Versions) -> Iterator[None]:
    """`data/` stays as one round left it while the block runs.

    A publication or withdrawal that was cut short in the midst of its files is first brought to where data/ is whole;
    that needs no server. One that is under way is waited for.
    """
    while True:
        with workspace.data_lock(alone=False):
            if not _is_torn(workspace):
                yield
                return
        plan = pending_publication(workspace)
        if plan is not None:
            _place_all(workspace, versions, plan)


def _is_torn(workspace: Workspace) -> bool:
    plan = pending_publication(workspace)
    if plan is None:
        return False
    if is_withdrawn(workspace):
        return not (publish_folder(workspace) / BROUGHT_BACK).exists()
    return not all(_is_file(workspace.data / name, sha256) for name, sha256 in plan.files.items())


WITHDRAWN, BROUGHT_BACK = "withdrawn", "brought-back"  # marks beside the plan


def is_withdrawn(workspace: Workspace) -> bool:
    """Whether the pending publication is being taken back instead of being carried out."""
    return (publish_folder(workspace) / WITHDRAWN).exists()


def _place_all(workspace: Workspace, versions: Versions, plan: Plan) -> None:
    """Every file of the plan in `data/`, beside all that its round builds on; or, of one that is withdrawn, none."""
    with workspace.data_lock(alone=True):
        if not publish_folder(workspace).exists():
            return  # another process has ended it meanwhile
        if is_withdrawn(workspace):
            take_back(workspace, versions, plan)
            return
        _put_all(workspace, plan)
        if _missing(workspace.data, plan):
            versions.bring_back()
            _put_all(workspace, plan)
        if lost := _missing(workspace.data, plan):
            raise UserError(
                f"data/{lost} is not as round {plan.round} left it while it was being published: `vabal abandon`, "
                "then `vabal round`"
            )


def take_back(workspace: Workspace, versions: Versions, plan: Plan) -> None:
    """Commit and tag of a withdrawn publication are undone, `data/` is as it was. Hold `data/` alone."""
    mark = publish_folder(workspace) / BROUGHT_BACK
    if not mark.exists():
        versions.undo(tag_name(plan.round), plan.message)
        versions.bring_back()
        write_bytes(mark, b"")


def _put_all(workspace: Workspace, plan: Plan) -> None:
    for name, sha256 in plan.files.items():
        _put(publish_folder(workspace) / "data" / name, workspace.data / name, sha256)


def _put(staged: Path, target: Path, sha256: str) -> None:
    """A copy, so that what is staged outlives whatever becomes of `data/` until the publication's end."""
    if _is_file(target, sha256):
        return
    if not _is_file(staged, sha256):
        raise UserError(f"{staged} is gone or was changed: `vabal abandon` drops this publication, then `vabal round`")
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        shutil.copyfile(staged, temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def _is_file(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _missing(data: Path, plan: Plan) -> str | None:
    """A file that the round's manifest names and `data/` lacks, or has with other content; None if all is there."""
    path = round_folder(data, plan.round) / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    tables = manifest.get("tables") or {}
    wrong = [name for name, sha256 in tables.items() if not _is_file(data / name, sha256)]
    wrong += [f"images/{name}.parquet" for name in manifest.get("shards") or {}]
    wrong += [f"rounds/{number:04d}/manifest.json" for number in range(plan.round)]
    return next((name for name in wrong if name in tables or not (data / name).is_file()), None)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
