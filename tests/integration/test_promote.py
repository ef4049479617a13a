"""Promotion and rollback on the real stack: MLflow's aliases and tags, git, and the Prefect flow's states."""

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from running import RunningStack
from workspaces import done, run_program

from tests.support.small_manifests import manifest as small_manifest
from vabal.adapters.tracking import Tracking
from vabal.errors import Unavailable, UserError
from vabal.files import canonical_json, file_sha256
from vabal.flows.promote import promote, rollback
from vabal.learning import classifier
from vabal.promotion import champion, comparison, registry
from vabal.promotion.champion import read_record
from vabal.promotion.registry import NotPromoted
from vabal.settings.learners import ClassifierSettings
from vabal.workspace import Workspace

CLASSES = ["crack", "good"]
LABELS = {f"h{index:03d}": CLASSES[index % 2] for index in range(200)}


@pytest.fixture
def workspace(stack: RunningStack, tmp_path: Path, request: pytest.FixtureRequest) -> Workspace:
    """A workspace with a holdout and no rounds, whose names in MLflow are its own."""
    name = request.node.name.removeprefix("test_").replace("_", "-")[:40].rstrip("-")
    (tmp_path / "params.yaml").write_text(f"workspace: {{name: {name}}}\n")
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".gitignore").write_text("/data\n/.vabal\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "start"]):
        subprocess.run(
            ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *command], cwd=tmp_path, check=True
        )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "classes.json").write_text(json.dumps(CLASSES))
    pd.DataFrame({"sample_id": LABELS.keys(), "label": LABELS.values()}).to_parquet(tmp_path / "data/holdout.parquet")
    return Workspace(tmp_path)


def tracking_of(workspace: Workspace) -> Tracking:
    return Tracking(workspace.params().workspace.name)


def publish(workspace: Workspace, number: int, right: int) -> None:
    """Round `number`, whose registered classifier is right for the first `right` of 200 samples."""
    folder = workspace.data / "rounds" / f"{number:04d}"
    folder.mkdir(parents=True)
    network = classifier.build(
        ClassifierSettings(width=2), num_classes=2, image_size=8, channels=1, mean=(9.0,), std=(9.0,), seed=number
    )
    classifier.save(network, workspace.root / "weights.safetensors")
    tracking, key = tracking_of(workspace), f"{number:064d}"
    version = tracking.register(
        tracking.open_round(number, key, {}),
        number,
        key,
        weights=workspace.root / "weights.safetensors",
        classes=CLASSES,
        image_size=8,
        channels=1,
    )
    tracking.set_alias("challenger", version.version)
    table = pd.DataFrame({"sample_id": LABELS.keys(), "label": LABELS.values()})
    other = table["label"].map({"crack": "good", "good": "crack"})
    table["predicted_class"] = table["label"].where(table.index < right, other)
    table.to_parquet(folder / comparison.PREDICTIONS)
    said = {"name": tracking.model_name, "version": version.version, "sha256": version.weights_sha256}
    model = {**said, "files": version.registered_files}
    files = {comparison.PREDICTIONS: file_sha256(folder / comparison.PREDICTIONS)}
    (folder / "manifest.json").write_bytes(canonical_json(small_manifest(int(folder.name), model=model, files=files)))


def champion_in_mlflow(workspace: Workspace) -> str | None:
    found = tracking_of(workspace).version_by_alias("champion")
    return found.version if found else None


def test_promotion_refusal_and_rollback_move_the_alias_and_tag_both_versions(workspace: Workspace) -> None:
    publish(workspace, 1, right=140)
    assert promote(workspace).action == "promoted"
    publish(workspace, 2, right=180)
    assert promote(workspace).action == "promoted"
    assert champion_in_mlflow(workspace) == "2"
    publish(workspace, 3, right=150)
    with pytest.raises(NotPromoted, match=r"balanced accuracy gained -0\.1500"):
        promote(workspace)
    assert champion_in_mlflow(workspace) == "2"
    assert rollback(workspace).action == "rolled back"
    assert champion_in_mlflow(workspace) == "1"
    tracking = tracking_of(workspace)
    statuses = [tracking.version(version).tags[registry.STATUS_TAG] for version in "123"]
    assert statuses == ["champion", "rolled back", "refused"]
    told = json.loads(tracking.version("1").tags["vabal.promotion.0002"])
    assert (told["champion"]["accuracy"], told["challenger"]["accuracy"]) == (0.7, 0.9)
    log = subprocess.run(
        ["git", "log", "--format=%s", "--", champion.RECORD],
        cwd=workspace.root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(log) == len(read_record(workspace.root)) == 4


# In a process of its own, as under a worker: Prefect reads its server's address once, when it is imported.
FLOW = """
import json, sys
from vabal.flows.promote import promote_challenger
states = [promote_challenger(sys.argv[1], version, return_state=True) for version in ("1", None)]
print(json.dumps([[state.type.value, state.name, state.message] for state in states]))
"""


def test_the_flow_ends_completed_as_promoted_or_as_kept_with_the_number_that_failed(workspace: Workspace) -> None:
    publish(workspace, 1, right=150)
    publish(workspace, 2, right=120)
    first, second = json.loads(done(run_program(workspace.root, FLOW, str(workspace.root))).out.splitlines()[-1])
    assert first[:2] == ["COMPLETED", "Promoted"]
    assert second[:2] == ["COMPLETED", "Refused"]
    assert "balanced accuracy gained -0.1500, its lower bound -0." in second[2]
    assert "(the holdout was used for 2 decisions), must be above +0.0000" in second[2]
    assert champion_in_mlflow(workspace) == "1"


def test_with_mlflow_down_nothing_is_recorded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(workspace, 1, right=150)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="MLflow is down"):
        promote(workspace)
    assert read_record(workspace.root) == ()


def test_a_workspace_in_use_is_not_promoted_in(workspace: Workspace) -> None:
    publish(workspace, 1, right=150)
    with workspace.lock("vabal round"), pytest.raises(UserError, match="in use by vabal round"):
        promote(workspace)
    assert champion_in_mlflow(workspace) is None


# -- what was exchanged, cut, or is not the newest ------------------------------------------------------------------


def test_what_loading_a_version_reads_is_what_was_registered_and_other_bytes_move_no_alias(
    workspace: Workspace, tmp_path: Path
) -> None:
    publish(workspace, 1, right=140)
    promote(workspace)
    publish(workspace, 2, right=190)
    tracking = tracking_of(workspace)
    for version in ("1", "2"):
        assert tracking.files(version) == tracking.version(version).registered_files
        assert len(tracking.files(version)) == 8
    planted = tmp_path / "serving.py"
    planted.write_text("raise SystemExit\n")
    tracking._client.log_artifact(tracking.version("2").run_id, str(planted), "model")
    with pytest.raises(UserError, match=r"version 2 in MLflow is not what round 2 registered: serving\.py was changed"):
        promote(workspace)
    assert champion_in_mlflow(workspace) == "1"
    assert len(read_record(workspace.root)) == 1
    assert sorted(tracking.all_tags()) == ["1", "2"]


def test_a_cut_record_fails_the_flow_in_one_line_and_a_detached_head_moves_no_alias(
    workspace: Workspace,
) -> None:
    for number, right in ((1, 140), (2, 190)):
        publish(workspace, number, right=right)
        promote(workspace)
    record = workspace.root / champion.RECORD
    record.write_bytes(record.read_bytes().splitlines(keepends=True)[0])
    said = run_program(workspace.root, FLOW, str(workspace.root))
    kind, _name, message = json.loads(said.out.splitlines()[-1])[-1]
    assert kind == "FAILED"
    assert "ends with entry 1" in message or "promotion/0002" in message
    assert "\n" not in message.strip()
    assert champion_in_mlflow(workspace) == "2"
    subprocess.run(["git", "checkout", "-q", "promotion/0001", "--force"], cwd=workspace.root, check=True)
    for act in (promote, rollback):
        with pytest.raises(UserError, match="detached HEAD"):
            act(workspace)
    assert champion_in_mlflow(workspace) == "2"
