"""The round's tasks: each loads, calls one function of the library, and saves. Small JSON passes between them."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from prefect import Task, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from vabal import rounds, strategies
from vabal.adapters import storage
from vabal.adapters.orchestration import Server
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.promotion import agreement, registry
from vabal.promotion.registered import OtherBytes, require_recorded_bytes
from vabal.rounds import OpenRound, Plan, record, requests, steps, tag_name, withdrawal, words
from vabal.rounds.context import RoundContext, StageReference, metrics_of, own_store
from vabal.rounds.stage_store import LocalStageStore, StageStore, stage_folder
from vabal.settings.models import Params
from vabal.workspace import Workspace

if TYPE_CHECKING:
    from vabal.adapters.tracking import Tracking

Ticket = dict[
    str, Any
]  # what every task of a round is told: workspace, settings, the round, intake's key, MLflow's run


def _is_unavailable(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Only what the network did is worth a second try."""
    return isinstance(state.result(raise_on_failure=False), Unavailable)


NOTHING_TO_LABEL = "nothing left to label: every image is labelled, rejected or asked for"
NETWORK: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": [2, 5, 15],
    "retry_condition_fn": _is_unavailable,
}
# They log to MLflow and may fetch from S3; what they computed is kept, so a second try repeats no more than that.
LEARNING: dict[str, Any] = {"persist_result": False, **NETWORK}


def run(step: Task[..., StageReference], *arguments: Any) -> StageReference:
    """Run a learning task where the flow's task runner puts it: in this process, or on a Ray worker."""
    return run_all(step, [arguments])[0]


def run_all(step: Task[..., StageReference], calls: list[tuple[Any, ...]]) -> list[StageReference]:
    """One task a call, side by side where the task runner has room. A local run stays in this thread, for Ctrl-C."""
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, ThreadPoolTaskRunner):
        return [step(*arguments) for arguments in calls]
    from prefect_ray.context import remote_options  # noqa: PLC0415 -- Ray takes seconds to import

    with remote_options(num_gpus=Params.model_validate(calls[0][0]["params"]).compute.gpus_per_task):
        futures = [step.submit(*arguments) for arguments in calls]
    return [future.result() for future in futures]


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


# -- before the round -----------------------------------------------------------------------------------------------


def check_servers(params: Params) -> None:
    """Raises Unavailable, in one line, before anything was begun."""
    storage.preflight(params.storage.bucket, params.storage.prefix)
    tracking_of(params).preflight()


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
        _carry_out(workspace, params)
    except rounds.Overtaken as error:
        get_run_logger().warning(give_way(workspace, params, error))
        return None
    return plan.subject


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


def anything_new(workspace: Workspace) -> bool:
    """Whether labels or images wait in the inbox that no round has taken."""
    return bool(requests.pending(workspace))


@dataclass(frozen=True)
class Verdict:
    go_on: bool
    state: str
    message: str
    incomplete: bool = False  # the round goes on without labels that it asked for


def labels_are_in(workspace: Workspace, params: Params) -> Verdict:
    """What the setting `labelling.when_incomplete` makes of the labels that are still out."""
    settings = params.labelling
    deadline = monotonic() + settings.wait_hours * 3600
    while True:
        answers = requests.answers(workspace)
        said = f"{answers.answered} of {answers.requested} labels of round {answers.round}'s request are in"
        if answers.labeled == 0:
            return Verdict(False, "WaitingForLabels", f"no labels yet: answer `vabal labels export DIR` ({said})")
        if answers.share >= settings.share:
            return Verdict(True, "", said if answers.requested else "no labels are out")
        if settings.when_incomplete == "continue":
            return Verdict(True, "", f"{said}: going on with what came", incomplete=True)
        if settings.when_incomplete == "skip":
            return Verdict(False, "Skipped", f"{said}, fewer than the share of {settings.share:g}: skipped")
        if monotonic() >= deadline:
            waited = f"after {settings.wait_hours:g} hours of waiting: going on with what came"
            return Verdict(True, "", f"{said} {waited}", incomplete=True)
        get_run_logger().info("%s, fewer than the share of %g: waiting", said, settings.share)
        _name_state("WaitingForLabels", said)
        sleep(min(settings.poll_seconds, max(0.0, deadline - monotonic())))


def _name_state(name: str, message: str) -> None:
    """Let the run's state tell what it is doing, for those who look at the Prefect server."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    Server.from_environment().force_state(str(context.flow_run.id), "RUNNING", name, message)


# -- the round ------------------------------------------------------------------------------------------------------


@task(name="check-newest", task_run_name="check-newest", **NETWORK)
def check_newest(workspace: str, git_remote: str | None) -> None:
    """Refuse, before anything is trained, what could not be published at the end: this is not the newest round."""
    place = Workspace(Path(workspace))
    rounds.require_newest(place, Versioning(place.root), git_remote)


def keep_inputs(ticket: Ticket) -> None:
    """The classifier has learned: a rerun goes on with what this round took in."""
    rounds.keep(Workspace(Path(ticket["workspace"])), OpenRound.from_json(ticket["round"]))


def _refuse_taken_anchor(workspace: Workspace, params: Params) -> None:
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


@task(name="intake", task_run_name="intake", **NETWORK)
def intake(workspace: str, settings: dict[str, Any]) -> Ticket:
    """Take in labels and images that came; open the round in MLflow."""
    place, params, log = Workspace(Path(workspace)), Params.model_validate(settings), get_run_logger()
    requests.refuse_hand_edits(Versioning(place.root))
    agreement.anchored(place.root, Versioning(place.root))  # refuses, before anything is trained, what publish would
    _refuse_taken_anchor(place, params)
    steps.refuse_unserved(strategies.get(params.selection.strategy), params)
    begun = rounds.open_round(place, requests.pending(place), datetime.now(UTC))
    key = steps.intake(place, begun)
    ticket: Ticket = {
        "workspace": workspace,
        "params": settings,
        "round": begun.to_json(),
        "intake": key,
    }
    context = context_of(ticket)
    for line in context.report["said"]:
        log.warning(line)
    came = context.report["intake"]
    log.info(
        "intake of round %d: %d new labels, %d corrected, %d rejected, %d new images; %d candidates",
        begun.round,
        *(came.get(name, 0) for name in ("new", "corrected", "rejected", "images")),
        context.report["candidates"],
    )
    if not context.report["candidates"]:
        log.warning(NOTHING_TO_LABEL)
        if not begun.inbox:
            rounds.give_up(place)
            return ticket | {"nothing_to_label": True}
    tracking = tracking_of(params, place.identity)
    run_id = tracking.open_round(
        begun.round, begun.parent, settings, {"vabal.strategy": params.selection.strategy}, inputs=begun.inbox
    )
    tracking.log_datasets(run_id, context.report["digests"], {"workspace": params.workspace.name})
    return ticket | {
        "mlflow_run": run_id,
        "shards": steps.shard_names(context),
        # What came in last is learned from and published, though there is nothing left to pick.
        "needs_vae": context.needs.vae and context.report["candidates"] > 0,
        "nothing_to_label": False,
    }


@task(name="train-classifier", task_run_name="train-classifier", **LEARNING)
def train_classifier(ticket: Ticket) -> StageReference:
    context = context_of(ticket)
    ref = steps.train_classifier(context)
    _log_training(ticket, context, ref)
    return ref


@task(name="evaluate", task_run_name="evaluate", **LEARNING)
def evaluate(ticket: Ticket, trained: StageReference) -> StageReference:
    context = context_of(ticket)
    ref = steps.evaluate(context, trained)
    measured = steps.evaluation(context, ref)
    tracking_of(context.params).log_metrics(ticket["mlflow_run"], measured)
    get_run_logger().log(logging.INFO if measured else logging.WARNING, words.in_words(measured))
    return ref


@task(name="extract-features", task_run_name="extract-features {shard}", **LEARNING)
def extract_features(ticket: Ticket, trained: StageReference, shard: str) -> StageReference:
    return steps.extract_features(context_of(ticket), trained, shard)


@task(name="train-vae", task_run_name="train-vae", **LEARNING)
def train_vae(ticket: Ticket, extracted: list[StageReference]) -> StageReference:
    context = context_of(ticket)
    ref = steps.train_vae(context, extracted)
    _log_training(ticket, context, ref)
    return ref


@task(name="estimate-class-terms", task_run_name="estimate-class-terms", **LEARNING)
def estimate_class_terms(
    ticket: Ticket, trained: StageReference, extracted: list[StageReference], encoded: StageReference
) -> StageReference:
    return steps.estimate_class_terms(context_of(ticket), trained, extracted, encoded)


@task(name="estimate-probabilities", task_run_name="estimate-probabilities {extracted[shard]}", **LEARNING)
def estimate_probabilities(ticket: Ticket, extracted: StageReference, encoded: StageReference) -> StageReference:
    return steps.estimate_likelihood(context_of(ticket), extracted, encoded)


@task(name="select-batch", task_run_name="select-batch", **LEARNING)
def select_batch(ticket: Ticket, extracted: list[StageReference], estimated: dict[str, Any] | None) -> StageReference:
    context = context_of(ticket)
    ref = steps.select_batch(context, extracted, estimated)
    get_run_logger().info("select-batch: %s", steps.selection_in_words(context, ref))
    for note in steps.selection_document(context, ref)["notes"]:
        get_run_logger().warning(note)
    return ref


@task(name="register-model", task_run_name="register-model", **NETWORK)
def register_model(ticket: Ticket, trained: StageReference, evaluated: StageReference) -> dict[str, Any]:
    """A version of the registered model, found again on a rerun. Raises Overtaken if another machine was first."""
    context = context_of(ticket)
    if context.params.storage.git_remote:
        versions = Versioning(context.workspace.root)
        rounds.refuse_overtaken(versions, context.params.storage.git_remote, context.round.round)
    tracking = tracking_of(context.params, context.workspace.identity)
    images = context.params.images
    version = tracking.register(
        ticket["mlflow_run"],
        context.round.round,
        context.round.parent,
        weights=steps.weights(context, trained),
        classes=context.classes,
        image_size=images.size,
        channels=images.channels,
    )
    tracking.log_artifacts(ticket["mlflow_run"], steps.evaluation_files(context, evaluated), "evaluation")
    get_run_logger().info("register-model: %s version %s", tracking.model_name, version.version)
    return {
        "name": tracking.model_name,
        "version": version.version,
        "sha256": version.weights_sha256,
        "files": version.registered_files or tracking.files(version.version),
    }


@task(name="publish", task_run_name="publish", **NETWORK)
def publish(ticket: Ticket, refs: dict[str, Any], model: dict[str, Any]) -> str:
    """Stage the round's record, and carry the publication out to its end."""
    context = context_of(ticket)
    if rounds.pending_publication(context.workspace) is None:
        plan, contents = record.assemble(
            context,
            refs,
            model,
            mlflow_run=ticket["mlflow_run"],
            flow_run=flow_run.id,
            promotions=agreement.anchored(context.workspace.root, Versioning(context.workspace.root)),
            now=datetime.now(UTC),
        )
        tracking_of(context.params).log_artifacts(
            ticket["mlflow_run"],
            [contents[name] for name in contents if name.endswith("selection.parquet")],
            "selection",
        )
        rounds.stage(context.workspace, plan, contents)
    done = _carry_out(context.workspace, context.params)
    begun = datetime.fromisoformat(context.round.started).timestamp()
    for store in (context.local, context.stages):
        store.forget(begun)  # features of a large pool are gigabytes a night
    said = done.message.splitlines()[0]
    return said if steps.evaluation(context, refs["evaluated"]) else f"{said}; {words.UNMEASURED}"


def _carry_out(workspace: Workspace, params: Params) -> Plan:
    tracking = tracking_of(params)

    def finish(plan: Plan) -> None:
        if params.audit.anchor:
            head = plan.message.splitlines()[-1]  # "manifest sha256:..."
            storage.Anchor(params.audit.anchor, params.audit.anchor_years).write(tag_name(plan.round), head)
        if plan.after.get("version"):
            _make_challenger(workspace, tracking, plan.after["version"])
        if plan.after.get("run"):
            tracking.close(plan.after["run"])
        _show_picks(workspace, plan, tracking)

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


def _show_picks(workspace: Workspace, plan: Plan, tracking: "Tracking") -> None:
    """A Prefect artifact a round: the picks, and links to MLflow."""
    if flow_run.id is None:
        return
    links = {}
    if plan.after.get("run"):
        links = {
            "MLflow run": tracking.run_url(plan.after["run"]),
            "model version": tracking.version_url(plan.after["version"]),
        }
    create_markdown_artifact(
        key=f"round-{plan.round:04d}",
        markdown=words.picks_in_markdown(workspace.data, plan.round, links),
        description=plan.message.splitlines()[0],
    )


def _log_training(ticket: Ticket, context: RoundContext, ref: StageReference) -> None:
    measured = metrics_of(context, ref)
    tracking_of(context.params).log_metrics(ticket["mlflow_run"], measured)
    last = {metric.name: metric for metric in measured if not metric.name.startswith("committee/")}
    told = ", ".join(f"{name} {metric.value:.4g}" for name, metric in sorted(last.items()))
    beside = len({metric.name.rpartition("-")[0] for metric in measured if metric.name not in last})
    if beside:
        told += f"; {beside} scoring networks beside it"
    get_run_logger().info("%s: %d epochs, %s", ref["stage"], max(metric.step for metric in measured), told)
