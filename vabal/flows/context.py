"""What the round's tasks work with: the round as a ticket tells of it, MLflow, and where the stages' outputs lie."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.logging import get_run_logger

from vabal import objects
from vabal.adapters import storage
from vabal.errors import UserError
from vabal.files import private_folder
from vabal.rounds import OpenRound, scratch, steps
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.stage_store import LocalStageStore, StageStore, code_version, stage_folder
from vabal.settings.models import Params
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from vabal.adapters.tracking import Tracking

SCRATCH = "VABAL_SCRATCH"

# What every task of a round is told: workspace (None: it is on another machine), settings, the round, intake's key,
# MLflow's run, the code's version, and the backbone's weights where they lie in the stage store.
Ticket = dict[str, Any]


def context_of(ticket: Ticket) -> RoundContext:
    """The round at work: in its workspace, or, where that is on another machine, in this one's scratch folder."""
    away = ticket["workspace"] is None
    workspace = scratch_place() if away else Workspace(Path(ticket["workspace"]))
    params = Params.model_validate(ticket["params"])
    objects.keep_in(workspace.objects, lambda: params.compute.objects_gigabytes)
    workspace.environment()
    stages = stage_store(workspace, params)
    if away:
        _refuse_another_version(ticket["code"])
        params = steps.with_weights(params, ticket["weights"], workspace, stages)
    return RoundContext(workspace, params, OpenRound.from_json(ticket["round"]), stages, ticket["intake"])


def _refuse_another_version(code: str) -> None:
    """Raises UserError on a machine with another package or other libraries: it would compute something else."""
    if code != code_version():
        raise UserError(
            f"this worker ({socket.gethostname()}) runs vabal {code_version()}, the night runs {code}: install the "
            "same versions of vabal and of the libraries in its lock file on every node, then run the night again"
        )


@contextmanager
def at_work(ticket: Ticket) -> Iterator[RoundContext]:
    """The same for as long as a task works; then what is kept for later goes back below its limit."""
    context = context_of(ticket)
    with scratch.at_work(context.workspace):
        yield context
    limit = context.params.compute.scratch_gigabytes
    # A workspace's own store is where the round's outputs are, so all of this round stay.
    before = None if ticket["workspace"] is None else datetime.fromisoformat(context.round.started).timestamp()
    said = scratch.trim(context.workspace, limit, before).line(limit)
    if said:
        get_run_logger().info(said)


def scratch_place() -> Workspace:
    """Where a machine without the workspace keeps what it fetches: `$VABAL_SCRATCH`, or `~/.cache/vabal`."""
    folder = os.environ.get(SCRATCH) or str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "vabal")
    return Workspace(private_folder(Path(folder).expanduser().absolute()))


def tracking_of(params: Params, owner: str = "") -> "Tracking":
    from vabal.adapters.tracking import Tracking  # noqa: PLC0415 -- MLflow takes seconds to import

    return Tracking(params.workspace.name, owner=owner)


def stage_store(workspace: Workspace, params: Params) -> StageStore:
    own = own_store(workspace)
    if params.stages.startswith("s3://"):
        return storage.S3StageStore(params.stages, own)
    folder = stage_folder(workspace.root, params.stages)
    return own if folder == own.folder.resolve() else LocalStageStore(folder, workspace.identity)


def claim_stores(workspace: Workspace, params: Params) -> None:
    """Raises UserError, before anything was begun, where the stage store's place is somebody else's."""
    own_store(workspace).claim()
    stage_store(workspace, params).claim()


def check_backbone(workspace: Workspace, params: Params) -> None:
    """Raises UserError, before anything was begun, for a pretrained backbone that is not there or does not fit."""
    if params.classifier.learner == "scratch":
        return
    from vabal.learning.device import device_of  # noqa: PLC0415 -- torch takes two seconds to import
    from vabal.learning.embeddings import Embedder  # noqa: PLC0415

    Embedder(params.backbone.below(workspace.root), device_of(params), workspace.embeddings).check()


def check_servers(params: Params) -> None:
    """Raises Unavailable, in one line, before anything was begun."""
    storage.preflight(params.storage.bucket, params.storage.prefix)
    tracking_of(params).preflight()
