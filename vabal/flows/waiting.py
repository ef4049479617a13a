"""Before a round: whether the labels are in, and what waits in the inbox."""

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic, sleep

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from vabal.adapters.orchestration import Server
from vabal.rounds import requests
from vabal.settings.models import Params
from vabal.workspace import Workspace


def anything_new(workspace: Workspace) -> bool:
    """Whether labels or images wait in the inbox that no round has taken."""
    return bool(requests.pending(workspace))


@dataclass(frozen=True)
class Verdict:
    go_on: bool
    state: str
    message: str
    incomplete: bool = False  # the round goes on without labels that it asked for


def labels_are_in(workspace: Workspace, params: Params, look: Callable[[], object] = lambda: None) -> Verdict:
    """What the setting `labelling.when_incomplete` makes of the labels that are still out.

    While it waits, `look` brings in what people said meanwhile.
    """
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
        look()


def _name_state(name: str, message: str) -> None:
    """Let the run's state tell what it is doing, for those who look at the Prefect server."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    Server.from_environment().force_state(str(context.flow_run.id), "RUNNING", name, message)
