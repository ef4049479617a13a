"""What is told of a round once it is published, and when its version is judged: page, card, figures.

What fails here is told of in one line and undoes nothing: what they tell of stands in the record.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from vabal import rounds
from vabal.adapters.orchestration import step_seconds
from vabal.audit import index
from vabal.files import write_bytes
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from pathlib import Path

    from vabal.adapters.tracking import Tracking

LONGEST_DESCRIPTION = 5000  # of MLflow's column


def keep_report(
    workspace: Workspace, number: int, tracking: "Tracking", tell: Callable[[str], object]
) -> "Path | None":
    """Write the page of a published round and put it beside its run in MLflow; None where `tell` heard why not."""
    try:
        from vabal.audit.control import arms  # noqa: PLC0415 -- SciPy
        from vabal.audit.drift import drifts  # noqa: PLC0415 -- the same
        from vabal.pages import night  # noqa: PLC0415 -- matplotlib takes a second to import

        manifest = rounds.read_manifest(workspace.data, number)
        path = night.write(workspace, number, step_seconds(manifest.prefect_flow_run))
        if manifest.mlflow_run:
            tracking.log_artifacts(manifest.mlflow_run, [path], "report")
            arm, nights = arms(workspace.data, number)[-1:], drifts(workspace.data, number, last=True)
            told = [known.metrics() for known in arm] + [compared.metrics() for compared in nights]
            for metrics in told:  # of the arms of all rounds so far, of the images of this one
                tracking.log_metrics(manifest.mlflow_run, [(*metric, number) for metric in metrics])
            for compared in nights:
                if compared.found:
                    tell(f"{compared} (`vabal control`)")
        _keep_card(workspace, number, tracking)
    except Exception as error:  # noqa: BLE001 -- whatever is wrong with the page, the record stands
        why = " ".join(str(error).split()) or type(error).__name__
        tell(f"the page of round {number} was not written: {why} (`vabal report {number}` tries again)")
        return None
    return path


def keep_indices(workspace: Workspace, tell: Callable[[str], object]) -> None:
    """For `vabal audit --sample`, of the rounds that lack one; `tell` hears why not."""
    try:
        index.keep(workspace.data, workspace.indices)
    except OSError as error:
        tell(f"the candidates' index was not kept: {error} (`vabal audit --sample` reads the tables until it is)")


def _keep_card(workspace: Workspace, number: int, tracking: "Tracking") -> None:
    """Beside the page, among the run's artifacts, and as the version's description."""
    from vabal.audit.card import brief, card  # noqa: PLC0415 -- SciPy

    manifest = rounds.read_manifest(workspace.data, number)
    if manifest.model is None or manifest.model.version is None:
        return
    text = card(workspace.data, number)
    path = workspace.report(number).with_name(f"{number:04d}-card.md")
    write_bytes(path, text.encode())
    tracking.describe_version(manifest.model.version, brief(text, LONGEST_DESCRIPTION))
    if manifest.mlflow_run:
        tracking.log_artifacts(manifest.mlflow_run, [path], "report")
        tracking.describe_run(manifest.mlflow_run, brief(text, LONGEST_DESCRIPTION))
