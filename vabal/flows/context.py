"""What the round's tasks work with: the round as a ticket tells of it, MLflow, and where the stages' outputs lie."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vabal.adapters import storage
from vabal.rounds import OpenRound
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.stage_store import LocalStageStore, StageStore, stage_folder
from vabal.settings.models import Params
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from vabal.adapters.tracking import Tracking

# What every task of a round is told: workspace, settings, the round, intake's key, MLflow's run.
Ticket = dict[str, Any]


def context_of(ticket: Ticket) -> RoundContext:
    workspace = Workspace(Path(ticket["workspace"]))
    workspace.environment()
    params = Params.model_validate(ticket["params"])
    return RoundContext(
        workspace, params, OpenRound.from_json(ticket["round"]), stage_store(workspace, params), ticket["intake"]
    )


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
