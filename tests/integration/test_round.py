"""The round, for real: digits, the local stack, and kills in every place."""

import os
import signal
from pathlib import Path

import pytest
from running import RunningStack
from workspaces import ask, change_settings, make_workspace, nursery_of, picked_ids, picks, tags

from tests.support.small_studio import TOKEN, small_studio

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


def test_a_round_killed_after_every_stage_and_step_picks_the_same_and_records_it_once(
    stack: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And Label Studio, which the calm one does not reach: that is one line a sync, and costs no night."""
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    calm, shaken = tmp_path / "calm", tmp_path / "shaken"
    for root in (calm, shaken):
        make_workspace(stack, root, root.name)
    earlier = calm / ".vabal" / "embeddings" / "images-00000-0123456789abcdef.npy"
    earlier.parent.mkdir(mode=0o700)
    earlier.write_bytes(b"what a backbone said that params.yaml no longer names")
    os.utime(earlier, (1000, 1000))
    nursery = nursery_of(calm, os.environ)
    assert nursery is not None

    def round_of(root: Path, dies_after: str = "") -> tuple[int, str, str]:
        return nursery.run(["dying-round", str(root), dies_after], folder=root, environment=os.environ)

    use_studio(calm, "http://127.0.0.1:9")
    code, said, errors = round_of(calm)
    assert code == 0
    away = "labels were not synced, the night goes on with those that are here: Label Studio does not answer at"
    assert (said + errors).count(away) == 2
    for where in (*STAGES, "registered", *STEPS):
        code, said, errors = round_of(shaken, where)
        assert code == -signal.SIGKILL, f"{where}: {said} {errors}"
    with small_studio() as studio:
        use_studio(shaken, studio.url)
        code, said, errors = round_of(shaken)
        tasks = list(studio.tasks.values())
    assert code == 0, said + errors
    assert "ended as Published" in said

    assert picks(shaken, 1) == picks(calm, 1)
    assert [task["data"]["round"] for task in tasks] == [1] * len(picked_ids(shaken, 1))
    assert {task["predictions"][0]["model_version"] for task in tasks} == {"shaken-vabal-classifier version 1"}
    assert all(0 < task["predictions"][0]["score"] <= 1 for task in tasks)
    assert not earlier.exists()
    assert tags(shaken) == ["round/0000", "round/0001"]
    assert not (shaken / "data" / "rounds" / "0002").exists()
    assert mlflow_counts("shaken") == mlflow_counts("calm") == {"runs": 1, "versions": 1}
    assert ask(shaken, "audit", "--verify")["ok"] is True


def use_studio(root: Path, url: str) -> None:
    change_settings(root, {"labelling.studio": {"url": url, "predictions": True}})


def mlflow_counts(name: str) -> dict[str, int]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(f"{name}-vabal")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    versions = client.search_model_versions(f"name = '{name}-vabal-classifier'")
    assert [run.info.status for run in runs] == ["FINISHED"]
    return {"runs": len(runs), "versions": len(versions)}
