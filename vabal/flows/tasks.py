"""The round's tasks: each loads, calls one function of the library, and saves. Small JSON passes between them."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from vabal import pools, rounds, strategies
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable
from vabal.flows.context import Ticket, at_work, context_of, tracking_of
from vabal.flows.meanwhile import telling
from vabal.flows.publication import carry_out, refuse_taken_anchor
from vabal.labels.agreement import agreement as opinions_on
from vabal.promotion import agreement
from vabal.rounds import record, requests, steps, words
from vabal.rounds.context import RoundContext, StageReference, metrics_of
from vabal.rounds.stage_store import code_version
from vabal.rounds.steps import plan
from vabal.settings.models import Params
from vabal.workspace import Workspace


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


def run_all(step: Callable[..., StageReference], calls: list[tuple[Any, ...]]) -> list[StageReference]:
    """One task a call, where the flow's task runner puts it: in this process, or side by side on Ray's workers.

    A local run stays in this thread, for Ctrl-C.
    """
    context = FlowRunContext.get()
    if context is None or isinstance(context.task_runner, ThreadPoolTaskRunner) or not isinstance(step, Task):
        refs = plan.one_by_one(step, calls)
    else:
        refs = _on_ray(step, calls)
    if step is train_classifier:  # it has learned: a rerun goes on with what this round took in
        ticket = calls[0][0]
        rounds.keep(Workspace(Path(ticket["workspace"])), rounds.OpenRound.from_json(ticket["round"]))
    return refs


def _on_ray(step: Task[..., StageReference], calls: list[tuple[Any, ...]]) -> list[StageReference]:
    """Side by side on Ray's workers, which have nothing of the workspace's folder where stages lie in S3."""
    from vabal.flows import spread  # noqa: PLC0415 -- Ray takes seconds to import

    params = Params.model_validate(calls[0][0]["params"])
    told = {"workspace": None} if params.stages.startswith("s3://") else {}
    sent = [(ticket | told, *arguments) for ticket, *arguments in calls]
    return spread.in_order(spread.submit(step, sent, gpus=params.compute.gpus_per_task))


@task(name="check-newest", task_run_name="check-newest", **NETWORK)
def check_newest(workspace: str, git_remote: str | None) -> None:
    """Refuse, before anything is trained, what could not be published at the end: this is not the newest round."""
    place = Workspace(Path(workspace))
    rounds.require_newest(place, Versioning(place.root), git_remote)


@task(name="sync-labels", task_run_name="sync-labels")
def sync_labels(workspace: str, settings: dict[str, Any]) -> list[str]:
    """What `vabal labels sync` does; what it came to, in lines. It tries again by itself what is worth it."""
    from vabal.adapters import label_studio  # noqa: PLC0415 -- most workspaces have none

    return label_studio.sync(Workspace(Path(workspace)), Params.model_validate(settings), datetime.now(UTC)).lines()


@task(name="intake", task_run_name="intake", **NETWORK)
def intake(workspace: str, settings: dict[str, Any], enough: str | None = None) -> Ticket:
    """Take in labels and images that came; open the round in MLflow. `enough`: why no labels are asked for."""
    place, params, log = Workspace(Path(workspace)), Params.model_validate(settings), get_run_logger()
    requests.refuse_hand_edits(Versioning(place.root))
    agreement.anchored(place.root, Versioning(place.root))  # refuses, before anything is trained, what publish would
    refuse_taken_anchor(place, params)
    steps.refuse_unserved(strategies.get(params.selection.strategy), params)
    begun = rounds.open_round(place, requests.pending(place), datetime.now(UTC))
    key = steps.intake(place, begun, params.labelling.consensus, asks=enough is None)
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
        log.warning(enough or NOTHING_TO_LABEL)
        if not begun.inbox:
            rounds.give_up(place)
            return ticket | {"nothing_to_label": True}
    return ticket | _to_work_with(context, settings)


def _to_work_with(context: RoundContext, settings: dict[str, Any]) -> Ticket:
    """What the tasks behind intake are told beside the workspace, its settings and the round."""
    return {
        "mlflow_run": _opened(context, settings),
        "shards": steps.shard_names(context),
        "code": code_version(),
        "weights": steps.share(context),
        "members": context.learner.members if context.params.compute.task_runner == "ray" else [],
        # What came in last is learned from and published, though there is nothing left to pick.
        "needs_vae": context.needs.vae and context.report["candidates"] > 0,
        "needs_class_terms": context.needs.class_terms and context.report["candidates"] > 0,
        "nothing_to_label": False,
    }


def _opened(context: RoundContext, settings: dict[str, Any]) -> str:
    """The round's run in MLflow, which tells what came in and how far people agree."""
    tracking, begun = tracking_of(context.params, context.workspace.identity), context.round
    strategy = {"vabal.strategy": context.params.selection.strategy}
    run_id = tracking.open_round(begun.round, begun.parent, settings, strategy, inputs=begun.inbox)
    tracking.log_datasets(run_id, context.report["digests"], {"workspace": context.params.workspace.name})
    events = pools.named(pools.read_one(context.view, "label_events"), pools.read_classes(context.view))
    tracking.log_metrics(run_id, [(*metric, begun.round) for metric in opinions_on(events).metrics()])
    return run_id


@task(name="embed-images", task_run_name="embed-images {shard}", **LEARNING)
def embed_images(ticket: Ticket, shard: str) -> StageReference:
    with at_work(ticket) as context, telling(ticket):
        return steps.embed_images(context, shard)


@task(name="train-classifier", task_run_name="train-classifier", **LEARNING)
def train_classifier(ticket: Ticket) -> StageReference:
    with at_work(ticket) as context:
        with telling(ticket):
            ref = steps.train_classifier(context)
        _log_training(ticket, context, ref)
    return ref


@task(name="train-first", task_run_name="train-first", **LEARNING)
def train_first(ticket: Ticket) -> StageReference:
    with at_work(ticket) as context, telling(ticket):
        return steps.train_first(context)


@task(name="train-member", task_run_name="train-member {name}", **LEARNING)
def train_member(ticket: Ticket, first: StageReference, name: str) -> StageReference:
    with at_work(ticket) as context, telling(ticket):
        return steps.train_member(context, first, name)


@task(name="evaluate", task_run_name="evaluate", **LEARNING)
def evaluate(ticket: Ticket, trained: StageReference) -> StageReference:
    with at_work(ticket) as context:
        ref = steps.evaluate(context, trained)
        measured = steps.evaluation(context, ref)
    tracking_of(context.params).log_metrics(ticket["mlflow_run"], measured)
    get_run_logger().log(logging.INFO if measured else logging.WARNING, words.in_words(measured))
    return ref


@task(name="extract-features", task_run_name="extract-features {shard}", **LEARNING)
def extract_features(ticket: Ticket, trained: StageReference, shard: str) -> StageReference:
    with at_work(ticket) as context, telling(ticket):
        return steps.extract_features(context, trained, shard)


@task(name="train-vae", task_run_name="train-vae", **LEARNING)
def train_vae(ticket: Ticket, extracted: list[StageReference]) -> StageReference:
    with at_work(ticket) as context:
        with telling(ticket):
            ref = steps.train_vae(context, extracted)
        _log_training(ticket, context, ref)
    return ref


@task(name="estimate-class-terms", task_run_name="estimate-class-terms", **LEARNING)
def estimate_class_terms(
    ticket: Ticket, trained: StageReference, extracted: list[StageReference], encoded: StageReference | None
) -> StageReference:
    with at_work(ticket) as context:
        return steps.estimate_class_terms(context, trained, extracted, encoded)


@task(name="estimate-probabilities", task_run_name="estimate-probabilities {extracted[shard]}", **LEARNING)
def estimate_likelihood(ticket: Ticket, extracted: StageReference, encoded: StageReference) -> StageReference:
    with at_work(ticket) as context, telling(ticket):
        return steps.estimate_likelihood(context, extracted, encoded)


@task(name="select-batch", task_run_name="select-batch", **LEARNING)
def select_batch(ticket: Ticket, extracted: list[StageReference], estimated: dict[str, Any] | None) -> StageReference:
    with at_work(ticket) as context:
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
        programs=steps.programs(context, trained),
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
        staged, contents = record.assemble(
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
        rounds.stage(context.workspace, staged, contents)
    done = carry_out(context.workspace, context.params)
    begun = datetime.fromisoformat(context.round.started).timestamp()
    for store in (context.local, context.stages):
        store.forget(begun)  # features of a large pool are gigabytes a night
    context.forget_embeddings(begun)
    said = done.message.splitlines()[0]
    return said if steps.evaluation(context, refs["evaluated"]) else f"{said}; {words.UNMEASURED}"


def _log_training(ticket: Ticket, context: RoundContext, ref: StageReference) -> None:
    measured = metrics_of(context, ref)
    tracking_of(context.params).log_metrics(ticket["mlflow_run"], measured)
    last = {metric.name: metric for metric in measured if not metric.name.startswith("committee/")}
    told = ", ".join(f"{name} {metric.value:.4g}" for name, metric in sorted(last.items()))
    beside = len({metric.name.rpartition("-")[0] for metric in measured if metric.name not in last})
    if beside:
        told += f"; {beside} scoring networks beside it"
    epochs = max(metric.step for metric in measured)
    get_run_logger().info("%s: %s%s", ref["stage"], f"{epochs} epochs, " if epochs > 1 else "", told)
