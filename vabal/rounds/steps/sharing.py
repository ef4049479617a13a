"""Before the learning: what it reads, where machines that share nothing else find it."""

from typing import Final

from vabal.errors import UserError
from vabal.files import file_sha256, found
from vabal.images import shard_files
from vabal.rounds.context import RoundContext, whole
from vabal.rounds.stage_store import StageStore
from vabal.settings.models import Params
from vabal.workspace import Workspace

_FOLDER: Final = "weights"  # where several machines share them


def share(context: RoundContext) -> str | None:
    """Puts the pool's shards, intake's view and a file of the backbone's weights into a store that lies elsewhere.

    What is there already is not put there again. The name of the weights, for `with_weights`; None where the settings
    name no file, or the machines share a file system.
    """
    if context.shared is None:
        return None
    shard_files.share(context.shared, context.view, context.report["shards"])
    context.local.publish("intake", context.intake_key)
    file = context.params.below(context.home or context.workspace.root).backbone.file
    if file is None or context.params.classifier.learner == "scratch":
        return None
    name = f"{file_sha256(file)}{file.suffix}"
    if name not in context.shared.names(_FOLDER):
        context.shared.publish(f"{_FOLDER}/{name}", file)
    return name


def with_weights(params: Params, name: str | None, workspace: Workspace, stages: StageStore) -> Params:
    """The settings with the weights that `share` named, brought below this machine's `workspace`."""
    if name is None:
        return params
    place = found(stages.shared, f"{_FOLDER}/{name}", workspace.weights / name)
    if place is None:
        raise UserError(f"the backbone's weights ({_FOLDER}/{name}) are gone from the stage store: run the round again")
    backbone = params.backbone.model_copy(update={"weights": f"file:{whole(place)}"})
    return params.model_copy(update={"backbone": backbone})
