"""The page of a round, written when it is published: a page that fails is told of, and undoes nothing."""

from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from vabal.adapters.orchestration import step_seconds
from vabal.rounds import Plan
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from vabal.adapters.tracking import Tracking


def keep_report(workspace: Workspace, plan: Plan, tracking: "Tracking", flow_run_id: str | None) -> str | None:
    """Write the round's page and put it beside its run in MLflow; the path that people are told, None if it failed."""
    try:
        from vabal.pages import night  # noqa: PLC0415 -- matplotlib takes a second to import

        path = night.write(workspace, plan.round, step_seconds(flow_run_id))
        if plan.after.get("run"):
            tracking.log_artifacts(plan.after["run"], [path], "report")
    except Exception as error:  # noqa: BLE001 -- the round is published, whatever is wrong with its page
        why = " ".join(str(error).split()) or type(error).__name__
        get_run_logger().warning(
            f"round {plan.round} is published, but its page was not made: {why} (`vabal report` tries again)"
        )
        return None
    return str(path)
