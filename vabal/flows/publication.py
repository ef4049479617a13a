"""The end of a round: published and told to MLflow and Prefect, or withdrawn."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from vabal import rounds
from vabal.adapters import storage
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError
from vabal.flows.context import tracking_of
from vabal.flows.report import keep_indices, keep_report
from vabal.promotion import registry
from vabal.promotion.registered import OtherBytes, require_recorded_bytes
from vabal.rounds import Plan, tag_name, withdrawal, words
from vabal.settings.models import Params
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from vabal.adapters.tracking import Tracking


def finish_publication(workspace: Workspace, params: Params) -> str | None:
    """Carry out what a killed run left staged. Says which round that was, or None."""
    plan = rounds.pending_publication(workspace)
    if plan is None:
        return None
    versions = Versioning(workspace.root)
    if rounds.is_withdrawn(workspace):
        withdrawal.withdraw(workspace, versions, withdrawal.ABANDONED, _teller(workspace, params))
        return None
    try:
        carry_out(workspace, params)
    except rounds.Overtaken as error:
        get_run_logger().warning(give_way(workspace, params, error))
        return None
    return plan.subject


def carry_out(workspace: Workspace, params: Params) -> Plan:
    tracking = tracking_of(params)

    def finish(plan: Plan) -> None:
        if params.audit.anchor:
            head = plan.message.splitlines()[-1]  # "manifest sha256:..."
            storage.Anchor(params.audit.anchor, params.audit.anchor_years).write(tag_name(plan.round), head)
        if plan.after.get("version"):
            _make_challenger(workspace, tracking, plan.after["version"])
        tell = get_run_logger().warning
        with ThreadPoolExecutor(1) as beside:  # it reads and packs, which another core can do while a page is drawn
            kept = beside.submit(keep_indices, workspace, tell)
            page = keep_report(workspace, plan.round, tracking, tell)
        kept.result()
        if plan.after.get("run"):
            tracking.close(plan.after["run"])
        _show_picks(workspace, plan, tracking, page)

    plan = rounds.carry_out(workspace, Versioning(workspace.root, sign=params.audit.sign), finish)
    if plan is None:
        raise UserError(f"there is nothing to publish in {workspace.root}: run `vabal round`")
    return plan


def _make_challenger(workspace: Workspace, tracking: "Tracking", version: str) -> None:
    """The alias of the round's version; left where it is, and said, if that is no longer what the round registered."""
    try:
        require_recorded_bytes(workspace.data, tracking, tracking.version(version))
    except OtherBytes as exchanged:
        get_run_logger().error(f"version {version} is not made {registry.CHALLENGER}: {exchanged}")
        return
    tracking.set_alias(registry.CHALLENGER, version)


def _show_picks(workspace: Workspace, plan: Plan, tracking: "Tracking", page: Path | None) -> None:
    """A Prefect artifact a round: the picks, and links to MLflow and the round's page."""
    if flow_run.id is None:
        return
    links = {}
    if plan.after.get("run"):
        run = tracking.run_url(plan.after["run"])
        links = {
            **({"the round's page": f"{run}/artifacts/report/{page.name}"} if page else {}),
            "MLflow run": run,
            "charts of all rounds": tracking.charts_url(),
            "model version": tracking.version_url(plan.after["version"]),
        }
    create_markdown_artifact(
        key=f"round-{plan.round:04d}",
        markdown=words.picks_in_markdown(workspace.data, plan.round, links),
        description=plan.message.splitlines()[0],
    )


def give_way(workspace: Workspace, params: Params, error: Exception) -> str:
    """Another machine's round stands, this one's is withdrawn. What is so now, for people."""
    remote = str(params.storage.git_remote)
    said = withdrawal.give_way(workspace, Versioning(workspace.root), remote, _teller(workspace, params))
    return f"{error}; {said}"


def _teller(workspace: Workspace, params: Params) -> withdrawal.Tell:
    """Tells MLflow what became of a round that was not published."""

    def tell(plan: Plan | None, status: str) -> None:
        tracking = tracking_of(params, workspace.identity)
        newest = rounds.head(workspace.data)
        number, parent = newest.round + 1, newest.digest
        if plan is not None:
            number = plan.round
        tracking.withdraw(number, parent, status, newest.model.version if newest.model else None)

    return tell


def abandon(workspace: Workspace) -> list[str]:
    """Drop the open round or the pending publication; lines that say what went and what stays."""

    def tell(plan: Plan | None, status: str) -> str | None:
        try:
            params = workspace.params()
            tracking_of(params).preflight()
            _teller(workspace, params)(plan, status)
        except UserError as error:
            return f"MLflow was not told that the round's run and model version do not count: {error}"
        return None

    def anchored(name: str) -> str | None:
        return _anchored(workspace.params(), name)

    return withdrawal.abandon(workspace, Versioning(workspace.root), tell, anchored)


def refuse_taken_anchor(workspace: Workspace, params: Params) -> None:
    """Raises UserError if the round that would come next was anchored already: it could not be published."""
    name = tag_name(rounds.head(workspace.data).round + 1)
    if _anchored(params, name) is not None:
        raise UserError(
            f"{name} was anchored at {params.audit.anchor} already: another workspace anchors there (each needs a "
            "prefix of its own), or that round was undone here (`vabal audit --verify`)"
        )


def _anchored(params: Params, name: str) -> str | None:
    """The head that was anchored under the name of a tag."""
    return storage.Anchor(params.audit.anchor, params.audit.anchor_years).known(name) if params.audit.anchor else None
