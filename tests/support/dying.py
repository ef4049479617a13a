"""An `init` and a round that are killed at a place: what a `Nursery` runs as `dying-init` and `dying-round`."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def initialise(root: str, source: str, seed: str, dies_after: str) -> int:
    """Round 0 in `root`; its words, or how it was refused, are printed."""
    from vabal.adapters.versioning import Versioning
    from vabal.errors import UserError
    from vabal.rounds import initial

    def reached(step: str) -> None:
        if step == dies_after:
            die()

    try:
        said = initial.initialise(
            Path(root),
            source=source,
            imbalance=None,
            initial=9,
            holdout=0.2,
            seed=int(seed),
            classes=None,
            name=None,
            settings={"selection.budget": 7},
            versions=Versioning(Path(root)),
            prepare=print,
            reached=reached,
        )
    except UserError as error:
        said = [f"refused: {error}"]
    print("; ".join(said), flush=True)  # noqa: T201
    return 0


def round_(root: str, dies_after: str) -> int:
    """The flow in `root`; how it ended is printed. It may die after a stage, the registration, a step of publishing."""
    from vabal.flows.round import active_learning_round

    if dies_after:
        _die_after(dies_after)
    state = active_learning_round(root, return_state=True)
    print(f"ended as {state.name}: {state.message}", flush=True)  # noqa: T201
    return 0 if state.is_completed() else 1


def _die_after(where: str) -> None:
    from vabal import rounds
    from vabal.adapters.tracking import Tracking
    from vabal.rounds import steps

    if hasattr(steps, where):
        setattr(steps, where, _dying(getattr(steps, where)))
    elif where == "staged":
        rounds.stage = _dying(rounds.stage)
    elif where == "registered":
        Tracking.register = _dying(Tracking.register)  # type: ignore[method-assign]
    else:
        real = rounds.carry_out

        def carry_out(workspace: Any, versions: Any, finish: Any = None, reached: Any = None, **options: Any) -> Any:
            return real(workspace, versions, finish, lambda step: die() if step == where else None, **options)

        rounds.carry_out = carry_out


def _dying(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        die()
        return result

    return run
