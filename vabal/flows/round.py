"""The nightly round: intake, five stages, a registered classifier, and a published request for labels."""

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from vabal import rounds, strategies
from vabal.errors import Unavailable
from vabal.flows import publication, tasks, waiting
from vabal.flows.context import check_backbone, check_servers, claim_stores
from vabal.flows.logs import one_line_for_user_errors, outlive_the_worker
from vabal.rounds.steps.plan import learn
from vabal.settings.models import Params
from vabal.workspace import Workspace

A_PROMOTION_MAY_STILL_RUN_S = 600.0  # that of the night before: a night that the schedule begins waits for it
_PURPOSE = "vabal round"


def _run_name() -> str:
    return f"round of {Path(flow_run.parameters['workspace']).name}"


@flow(name="active-learning-round", flow_run_name=_run_name, persist_result=False)
def active_learning_round(workspace: str, strategy: str | None = None) -> State[Any]:
    """Run one round in the workspace folder `workspace`; `strategy` overrides the setting `selection.strategy`.

    Ends in a completed state whose name says what happened: Published, Skipped, WaitingForLabels, NothingToLabel,
    EnoughLabels (by `labelling.stop_rule`, and nothing new came in), Overtaken (another machine's round of this number
    was first at `storage.git_remote`).
    A second call after a crash goes on behind the last finished stage.
    """
    one_line_for_user_errors()
    outlive_the_worker()
    log = get_run_logger()
    place = Workspace.find(Path(workspace))
    place.environment()
    params = place.params({"selection.strategy": strategy} if strategy else None)
    strategies.get(params.selection.strategy)  # an unknown one is refused before anything is begun
    with place.lock(_PURPOSE, wait=A_PROMOTION_MAY_STILL_RUN_S, unless=_PURPOSE, tell=log.info):
        check_servers(params)
        claim_stores(place, params)
        check_backbone(place, params)
        unfinished = publication.finish_publication(place, params)
        _sync(place, params)
        if unfinished is not None and not waiting.anything_new(place):
            return Completed(name="Published", message=f"{unfinished} (a killed run had left it half published)")
        tasks.check_newest(str(place.root), params.storage.git_remote)
        verdict = waiting.labels_are_in(place, params, lambda: _sync(place, params))
        log.info(verdict.message)
        if not verdict.go_on:
            return Completed(name=verdict.state, message=verdict.message)
        enough = _enough(place, params)
        try:
            message = _work(place, params, enough)
        except rounds.Overtaken as error:
            return Completed(name="Overtaken", message=publication.give_way(place, params, error))
        except Unavailable:
            raise
        except Exception:
            rounds.reopen(place)  # the same again would fail again: what comes meanwhile may help
            raise
        if message is not None:
            _sync(place, params)
    if message is None and enough:
        return Completed(name="EnoughLabels", message=enough)
    if message is None:
        return Completed(name="NothingToLabel", message=tasks.NOTHING_TO_LABEL)
    if enough:
        message = f"{message}; {enough}"
    if verdict.incomplete:
        message = f"{message}; {verdict.message}"
    return Completed(name="Published", message=message)


def _sync(place: Workspace, params: Params) -> None:
    """Label Studio's answers in, the open requests out. Where that fails, one line says so and the night goes on."""
    if params.labelling.studio is None:
        return
    try:
        for line in tasks.sync_labels(str(place.root), params.model_dump(mode="json")):
            get_run_logger().info(line)
    except Exception as error:  # noqa: BLE001 -- whatever is wrong there, what is here is worth a night
        why = " ".join(str(error).split()) or type(error).__name__
        get_run_logger().warning(f"labels were not synced, the night goes on with those that are here: {why}")


def _enough(place: Workspace, params: Params) -> str | None:
    """Why no more labels are asked for, by the rounds so far."""
    if params.labelling.stop_rule == "never":
        return None
    from vabal.audit.enough import reason  # noqa: PLC0415 -- SciPy

    return reason(place.data, params)


def _work(place: Workspace, params: Params, enough: str | None) -> str | None:
    """From intake to publication; what was published, or None where there was nothing to do."""
    ticket = tasks.intake(str(place.root), params.model_dump(mode="json"), enough)
    if ticket["nothing_to_label"]:
        return None
    refs = learn(
        tasks,
        ticket,
        ticket["shards"],
        needs_vae=ticket["needs_vae"],
        needs_class_terms=ticket["needs_class_terms"],
        needs_embeddings=params.classifier.learner == "probe",
        members=ticket["members"],
        run_all=tasks.run_all,
    )
    model = tasks.register_model(ticket, refs["trained"], refs["evaluated"])
    return str(tasks.publish(ticket, refs, model))
