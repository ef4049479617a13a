"""The round, for real: digits, the local stack, and kills in every place."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from running import RunningStack

SETTINGS = {
    "classifier.width": 4,
    "classifier.epochs": 3,
    "vae.epochs": 1,
    "vae.min_steps": 20,
    "probabilities.draws": 5,
    "selection.budget": 12,
    "compute.threads": 1,
}
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

RUN = """
import os, signal, sys
from pathlib import Path

from vabal import rounds, stages
from flows import tasks

def dying(function):
    def run(*arguments, **options):
        result = function(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return result
    return run

where = sys.argv[2]
if where in sys.argv[3].split(","):
    setattr(stages, where, dying(getattr(stages, where)))
elif where == "staged":
    rounds.stage = dying(rounds.stage)
elif where == "registered":
    tasks.Tracking.register = dying(tasks.Tracking.register)
elif where:
    real = rounds.carry_out
    def carry_out(workspace, versions, finish=None, reached=None, **options):
        def reached(step):
            if step == where:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(workspace, versions, finish, reached, **options)
    rounds.carry_out = carry_out

from flows.round import active_learning_round
state = active_learning_round(sys.argv[1], return_state=True)
print("ended as", state.name)
sys.exit(0 if state.is_completed() else 1)
"""


def vabal(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vabal.cli", *arguments], cwd=root, check=check, capture_output=True, text=True
    )


def make_workspace(root: Path, name: str) -> Path:
    root.mkdir()
    options = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
    bucket = ["--set", f"storage.bucket=vabal-{name}"]
    source = ["--source", "digits", "--imbalance", "dominant:0:0.3", "--initial", "40", "--name", name]
    vabal(root, "init", *source, *options, *bucket)
    return root


def run_round(root: Path, dies_after: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, str(root), dies_after, ",".join(STAGES)]
    return subprocess.run(command, cwd=root, check=False, capture_output=True, text=True, env=dict(os.environ))


def picks(root: Path, number: int) -> bytes:
    return (root / "data" / "rounds" / f"{number:04d}" / "selection.parquet").read_bytes()


def tags(root: Path) -> list[str]:
    return subprocess.run(["git", "tag"], cwd=root, check=True, capture_output=True, text=True).stdout.split()


@pytest.mark.timeout(600)
def test_a_round_killed_after_every_stage_and_step_picks_the_same_and_records_it_once(
    stack: RunningStack, tmp_path: Path
) -> None:
    calm = make_workspace(tmp_path / "calm", "calm")
    shaken = make_workspace(tmp_path / "shaken", "shaken")
    undisturbed = run_round(calm)
    assert undisturbed.returncode == 0, undisturbed.stderr

    for where in (*STAGES, "registered", *STEPS):
        killed = run_round(shaken, where)
        assert killed.returncode == -signal.SIGKILL, f"{where}: {killed.stdout}\n{killed.stderr}"
    last = run_round(shaken)
    assert last.returncode == 0, last.stderr
    assert "ended as Published" in last.stdout

    assert picks(shaken, 1) == picks(calm, 1)
    assert tags(shaken) == ["round/0000", "round/0001"]
    assert not (shaken / "data" / "rounds" / "0002").exists()
    assert mlflow_counts("shaken") == mlflow_counts("calm") == {"runs": 1, "versions": 1}
    assert json.loads(vabal(shaken, "audit", "--verify", "--json").stdout)["ok"] is True


def mlflow_counts(name: str) -> dict[str, int]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(f"{name}-vabal")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions(f"name = '{name}-vabal-classifier'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    return {"runs": len(runs), "versions": len(versions)}
