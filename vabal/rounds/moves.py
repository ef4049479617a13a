"""What a publication puts into `data/`, so that a cut leaves nothing torn."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vabal.errors import UserError
from vabal.files import file_sha256, make_folder, sync_folder, write_bytes
from vabal.rounds.manifests import Manifest, round_folder, tag_name
from vabal.rounds.plans import Plan, pending_publication, publish_folder
from vabal.rounds.versions import Versions
from vabal.workspace import Workspace

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
            place_all(workspace, versions, plan)


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


def place_all(workspace: Workspace, versions: Versions, plan: Plan) -> None:
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
        manifest = Manifest.parse(path.read_bytes())
    except FileNotFoundError:
        return None
    wrong = [name for name, sha256 in manifest.tables.items() if not _is_file(data / name, sha256)]
    others = [*manifest.shard_files(), *(f"rounds/{number:04d}/manifest.json" for number in range(plan.round))]
    return next(iter([*wrong, *(name for name in others if not (data / name).is_file())]), None)


def link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)
