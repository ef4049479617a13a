"""Promotion and rollback: wires workspace, registry and git to `vabal.promotion`, for people and for Prefect."""

import getpass
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from vabal.adapters import storage
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError
from vabal.flows.context import tracking_of
from vabal.flows.logs import one_line_for_user_errors, outlive_the_worker
from vabal.flows.report import keep_report
from vabal.promotion import champion
from vabal.promotion.record import Entry, read_record
from vabal.promotion.registry import NotPromoted, Outcome, PromotionContext
from vabal.settings.models import Params
from vabal.workspace import Workspace

A_ROUND_MAY_STILL_RUN_S = 6 * 3600.0


def promote(workspace: Workspace, version: str | None = None, *, wait: float = 0.0) -> Outcome:
    """Make `version` (default: the challenger) champion if the gate holds. Raises NotPromoted with the failed numbers.

    The page of the round that made it tells of the decision.

    Raises Unavailable if MLflow is away, UserError if the workspace is still in use after `wait` seconds.
    """
    params = workspace.params()
    with _office(workspace, params, "vabal promote", wait) as office:
        before = _decided(workspace)
        try:
            return champion.promote(office, workspace.data, params.promotion, now=datetime.now(UTC), version=version)
        finally:
            for entry in _decided(workspace)[len(before) :]:
                keep_report(workspace, entry.round, tracking_of(params), logging.getLogger(__name__).warning)


def _decided(workspace: Workspace) -> tuple[Entry, ...]:
    """Every decision; none where the record cannot be read, which `champion.promote` tells of."""
    with suppress(UserError):
        return read_record(workspace.root)
    return ()


def rollback(workspace: Workspace, *, reason: str | None = None, wait: float = 0.0) -> Outcome:
    """Put the previous champion back, for a `reason` that is recorded. Raises UserError if there is none."""
    with _office(workspace, workspace.params(), "vabal rollback", wait) as office:
        return champion.rollback(office, now=datetime.now(UTC), reason=reason)


def _run_name() -> str:
    return f"promotion in {Path(flow_run.parameters['workspace']).name}"


@flow(name="promote-challenger", flow_run_name=_run_name, persist_result=False)
def promote_challenger(workspace: str, version: str | None = None) -> State[Any]:
    """Promotion in the workspace folder `workspace`, as a flow. Waits for a round that is still running.

    Ends in a completed state named Promoted, Refused where the gate did not hold, or Kept where nothing was new: each
    is an answer, not a crash. The message names the numbers.
    """
    one_line_for_user_errors()
    outlive_the_worker()
    place = Workspace.find(Path(workspace))
    place.environment()
    try:
        outcome = promote(place, version, wait=A_ROUND_MAY_STILL_RUN_S)
    except NotPromoted as refusal:
        get_run_logger().info(str(refusal))
        return Completed(name="Refused", message=str(refusal))
    for line in outcome.lines():
        get_run_logger().info(line)
    return Completed(name="Promoted" if outcome.action == "promoted" else "Kept", message=outcome.message)


@contextmanager
def _office(workspace: Workspace, params: Params, purpose: str, wait: float) -> Iterator[PromotionContext]:
    from vabal.adapters.tracking import Tracking  # noqa: PLC0415 -- MLflow takes seconds to import

    workspace.environment()
    registry = Tracking(params.workspace.name)
    with workspace.lock(purpose, wait=wait):
        registry.preflight()
        history = Versioning(workspace.root, sign=params.audit.sign)
        who = f"{history.identity()}, user {getpass.getuser()}"
        anchor = storage.Anchor(params.audit.anchor, params.audit.anchor_years) if params.audit.anchor else None
        yield PromotionContext(workspace.root, registry, history, who, params.storage.git_remote, anchor)
