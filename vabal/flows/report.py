"""The page of a round, written when it is published and when its version is judged.

A page that fails is told of in one line and undoes nothing: what it tells of stands in the record.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vabal import rounds
from vabal.adapters.orchestration import step_seconds
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from vabal.adapters.tracking import Tracking


def keep_report(
    workspace: Workspace, number: int, tracking: "Tracking", tell: Callable[[str], object]
) -> "Path | None":
    """Write the page of a published round and put it beside its run in MLflow; None where `tell` heard why not."""
    try:
        from vabal.pages import night  # noqa: PLC0415 -- matplotlib takes a second to import

        manifest = rounds.read_manifest(workspace.data, number)
        path = night.write(workspace, number, step_seconds(manifest.prefect_flow_run))
        if manifest.mlflow_run:
            tracking.log_artifacts(manifest.mlflow_run, [path], "report")
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with the page, the record stands
        why = " ".join(str(error).split()) or type(error).__name__
        tell(f"the page of round {number} was not written: {why} (`vabal report {number}` tries again)")
        return None
    return path
