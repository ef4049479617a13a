"""The learning steps of a round have an order, and nights and replays both go by it."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from prefect import Task

from vabal.flows import tasks
from vabal.rounds import steps
from vabal.rounds.steps.plan import learn

ALWAYS = ["train_classifier", "evaluate", "extract_features", "extract_features"]
WITH_A_VAE = ["train_vae", "estimate_class_terms", "estimate_likelihood", "estimate_likelihood"]


class Recorded(ModuleType):
    """Steps of any name; `called` has the names and arguments of those that ran."""

    def __init__(self) -> None:
        super().__init__("recorded")
        self.called: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Callable[..., dict[str, str]]:
        def step(*arguments: Any) -> dict[str, str]:
            self.called.append((name, arguments))
            return {"stage": name, "key": str(len(self.called))}

        return step


@pytest.mark.parametrize(
    ("needs_vae", "needs_class_terms", "between"),
    [(True, False, WITH_A_VAE), (True, True, WITH_A_VAE), (False, True, ["estimate_class_terms"]), (False, False, [])],
)
def test_the_steps_run_in_their_order_and_without_a_need_no_vae_is_trained(
    needs_vae: bool, needs_class_terms: bool, between: list[str]
) -> None:
    recorded = Recorded()
    refs = learn(recorded, "round", ["a", "b"], needs_vae=needs_vae, needs_class_terms=needs_class_terms)
    assert [name for name, _ in recorded.called] == [*ALWAYS, *between, "select_batch"]
    assert {arguments[0] for _, arguments in recorded.called} == {"round"}
    assert [arguments[2] for name, arguments in recorded.called if name == "extract_features"] == ["a", "b"]
    assert (refs["estimated"] is not None) == bool(between)
    assert recorded.called[-1][1][2] == refs["estimated"]
    assert refs["selected"]["stage"] == "select_batch"


def test_scoring_networks_that_are_worth_it_have_a_task_each_behind_the_classifier() -> None:
    recorded = Recorded()
    learn(recorded, "round", ["a", "b"], needs_vae=False, members=["member1", "member2"])
    begun = ["train_first", "train_member", "train_member"]
    assert [name for name, _ in recorded.called] == [*begun, *ALWAYS, "select_batch"]
    assert [arguments[2] for name, arguments in recorded.called if name == "train_member"] == ["member1", "member2"]


@pytest.mark.parametrize("name", dict.fromkeys([*ALWAYS, *WITH_A_VAE, "train_first", "train_member", "select_batch"]))
def test_every_step_is_a_task_of_the_flow_and_a_function_of_the_library(name: str) -> None:
    task = getattr(tasks, name)
    assert isinstance(task, Task)
    assert (task.retries, task.persist_result) == (3, False)
    assert callable(getattr(steps, name))


def test_the_calls_of_a_step_can_run_side_by_side() -> None:
    together: list[int] = []

    def run_all(step: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[Any]:
        together.append(len(calls))
        return [step(*call) for call in calls]

    learn(Recorded(), "round", ["a", "b", "c"], needs_vae=True, run_all=run_all)
    assert together == [1, 1, 3, 1, 1, 3]
