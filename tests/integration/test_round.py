"""The round, for real: digits, the local stack, and kills in every place."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import RunningStack
from workspaces import ask, make_workspace, picks, tags

# Stages and steps of publishing, in the order in which a round reaches them.
STAGES = (
    "intake",
    "train_classifier",
    "evaluate",
    "extract_features",
    "train_vae",
    "estimate_class_terms",
    "estimate_likelihood",
    "select_batch",
)
STEPS = ("staged", "moved", "added", "pushed", "committed", "tagged", "finished", "emptied")

# A process that has everything imported, and forks for every run that it is told of: "root <tab> place to die".
NURSERY = """
import os, signal, sys

from vabal import rounds
from vabal.rounds import steps
from vabal.flows import tasks
from vabal.flows.round import active_learning_round

def dying(function):
    def run(*arguments, **options):
        result = function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    return run

def die_after(where):
    if hasattr(steps, where):
        setattr(steps, where, dying(getattr(steps, where)))
    elif where == "staged":
        rounds.stage = dying(rounds.stage)
    elif where == "registered":
        tasks.Tracking.register = dying(tasks.Tracking.register)
    else:
        real = rounds.carry_out
        def carry_out(workspace, versions, finish=None, reached=None, **options):
            def reached(step):
                if step == where:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(workspace, versions, finish, reached, **options)
        rounds.carry_out = carry_out

for line in sys.stdin:
    root, where = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        if where:
            die_after(where)
        state = active_learning_round(root, return_state=True)
        print(f"ended as {state.name}: {state.message}", flush=True)
        os._exit(0 if state.is_completed() else 1)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    """Runs rounds in processes of their own, which may die where a test wants them to."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", NURSERY]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, root: Path, dies_after: str = "") -> tuple[int, str]:
        """The exit code (negative: the signal that killed it), and how the flow said it ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{root}\t{dies_after}\n")
        self._process.stdin.flush()
        said = ""
        for line in self._process.stdout:
            if line.startswith("exit "):
                return int(line.split()[1]), said
            said += line
        raise AssertionError(f"the nursery ended: {said}")

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


@pytest.mark.timeout(600)
def test_a_round_killed_after_every_stage_and_step_picks_the_same_and_records_it_once(
    stack: RunningStack, tmp_path: Path
) -> None:
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    for root in (calm, shaken):
        make_workspace(stack, root, root.name)
    nursery = Nursery()
    try:
        assert nursery.run(calm)[0] == 0
        for where in (*STAGES, "registered", *STEPS):
            code, said = nursery.run(shaken, where)
            assert code == -signal.SIGKILL, f"{where}: {said}"
        code, said = nursery.run(shaken)
    finally:
        nursery.close()
    assert code == 0, said
    assert "ended as Published" in said

    assert picks(shaken, 1) == picks(calm, 1)
    assert tags(shaken) == ["round/0000", "round/0001"]
    assert not (shaken / "data" / "rounds" / "0002").exists()
    assert mlflow_counts("shaken") == mlflow_counts("calm") == {"runs": 1, "versions": 1}
    assert ask(shaken, "audit", "--verify")["ok"] is True


def mlflow_counts(name: str) -> dict[str, int]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(f"{name}-vabal")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions(f"name = '{name}-vabal-classifier'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    return {"runs": len(runs), "versions": len(versions)}
