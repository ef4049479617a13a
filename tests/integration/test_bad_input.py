"""Wrong input: one clear line, an exit code that is not 0, and the workspace as it was."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from running import RunningStack
from workspaces import Said, TwoNights, call, change_settings, digests, done, run, write_labels

from tests.support.repositories import git

WRONG = "wrong"
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers there


@pytest.fixture(scope="module")
def copied(nights: TwoNights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nights.copy(tmp_path_factory.mktemp("bad") / "nights")


@pytest.fixture
def workspace(copied: Path) -> Iterator[Path]:
    """A copy of the two nights' workspace, which every test here must leave as it found it: git's state included."""
    settings = (copied / "params.yaml").read_bytes()
    before = state_of(copied)
    yield copied
    (copied / "params.yaml").write_bytes(settings)
    assert state_of(copied) == before


def state_of(root: Path) -> tuple[dict[str, str], str, list[str]]:
    """Every file, git's commits and tags, and what a round that began or was half published would have left."""
    begun = [name for name in ("round.json", "publish") if (root / ".vabal" / name).exists()]
    return digests(root), git(root, "show-ref", "--head"), begun


def refused(said: Said) -> str:
    """The one line on standard error."""
    assert said.code == 1, said
    assert said.out == ""
    assert said.err.startswith("vabal: ")
    assert said.err.count("\n") == 1, said.err
    return said.err


# -- settings -----------------------------------------------------------------------------------------------------


def test_every_wrong_setting_is_named_by_its_path(workspace: Path) -> None:
    change_settings(workspace, {"selection.budget": 0, "classifier.widht": 8, "promotion.tolerance": 2})
    for command in (["round"], ["deploy"], ["promote"], ["ingest", "."]):
        line = refused(call(workspace, *command))
        assert "params.yaml: " in line
        for path in ("selection.budget", "classifier.widht", "promotion.tolerance"):
            assert path in line


def test_settings_that_are_no_yaml_are_told_with_the_line(workspace: Path) -> None:
    (workspace / "params.yaml").write_text("seed: 1\nimages: {size: 8\n")
    assert "line " in refused(call(workspace, "round"))


# -- labels -------------------------------------------------------------------------------------------------------


def test_a_file_with_wrong_labels_is_refused_whole_and_each_wrong_line_is_told(
    nights: TwoNights, workspace: Path, tmp_path: Path
) -> None:
    file = write_labels(
        tmp_path / "labels.csv",
        (nights.names["open"], "0", "ada"),
        ("nobody", "0", "ada"),
        (nights.names["labelled"], "zebra", "ada"),
    )
    line = refused(call(workspace, "labels", "import", str(file)))
    assert "nothing was taken in, 2 of 3 lines are wrong" in line
    assert "line 3: unknown sample 'nobody'" in line
    assert "line 4: label 'zebra' is no class" in line
    assert "classes: 0, 1, 2, 3" in line


def test_a_file_of_labels_that_is_none_is_refused(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{")
    assert "not valid JSON" in refused(call(workspace, "labels", "import", str(tmp_path / "labels.json")))
    assert "No such file" in refused(call(workspace, "labels", "import", "missing.csv"))


def test_requests_are_not_written_over_what_lies_there(workspace: Path) -> None:
    assert "is not an empty folder" in refused(call(workspace, "labels", "export", "requests"))


# -- places and names ---------------------------------------------------------------------------------------------


def test_outside_a_workspace_every_command_says_what_is_missing(tmp_path: Path) -> None:
    for command in (["round"], ["audit"], ["labels", "export", "x"], ["ingest", "x"], ["promote"], ["deploy"]):
        assert "is no workspace" in refused(call(tmp_path, *command))
    assert list(tmp_path.iterdir()) == []


def test_init_over_a_workspace_or_with_arguments_that_do_not_fit_changes_nothing(
    workspace: Path, tmp_path: Path
) -> None:
    assert "has pools already" in refused(call(workspace, "init", "--source", "digits"))
    for arguments, expected in (
        (["--source", "digits", "--imbalance", "dominant:10"], "dominant:10"),
        (["--source", "digits", "--imbalance", "common:1"], "common:1"),
        (["--source", f"folder:{tmp_path / 'missing'}"], "missing"),
        (["--source", "nonsense"], "nonsense"),
        (["--source", "digits", "--holdout", "1.5"], "--holdout 1.5"),
        (["--source", "digits", "--initial", "0"], "--initial 0"),
        (["--source", "digits", "--set", "selection.budgte=3"], "selection.budgte"),
        (["--source", "digits", "--set", "selection.budget"], "section.key=value"),
    ):
        folder = tmp_path / "new"
        folder.mkdir()
        assert expected in refused(call(folder, "init", *arguments))
        left = {path for path in folder.rglob("*") if path.is_file()}
        assert left == set(), arguments
        assert not (folder / ".git").exists()
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir()
        folder.rmdir()


def test_what_is_not_there_is_said(workspace: Path) -> None:
    assert "no such file or folder" in refused(call(workspace, "ingest", "missing"))
    assert "no round 9: there are rounds 0 to 2" in refused(call(workspace, "audit", "9"))
    assert "no sample 'nobody'" in refused(call(workspace, "audit", "--sample", "nobody"))
    assert "no sample 'nobody'" in refused(call(workspace, "show", "nobody"))


def test_an_unknown_strategy_is_refused_before_anything_begins(workspace: Path) -> None:
    line = refused(run(workspace, "round", "--strategy", "clairvoyant"))
    assert "clairvoyant" in line
    assert "entropy" in line  # what there is


def test_a_backbone_that_is_not_there_is_refused_before_anything_begins(workspace: Path) -> None:
    change_settings(workspace, {"classifier.learner": "probe", "backbone.weights": "file:none.pth"})
    assert f"backbone.weights: there is no file {workspace}/none.pth" in refused(run(workspace, "round"))
    assert not (workspace / ".vabal" / "round.json").exists()


def test_data_edited_by_hand_stops_the_round_with_the_files_name(workspace: Path) -> None:
    path = workspace / "data" / "labeled.parquet"
    before = path.read_bytes()
    pq.write_table(pq.read_table(path), path, compression="none")  # the same rows, other bytes
    line = refused(run(workspace, "round"))
    path.write_bytes(before[:-1])
    unreadable = refused(call(workspace, "labels", "export", "elsewhere"))
    path.write_bytes(before)
    assert "data/ was edited by hand: data/labeled.parquet" in line
    assert "vabal checkout" in line
    assert "labeled.parquet: not a readable parquet file" in unreadable


# -- servers ------------------------------------------------------------------------------------------------------


def test_a_server_that_is_down_or_refuses_stops_the_round_before_it_begins(nights: TwoNights, tmp_path: Path) -> None:
    faults = (
        ({"AWS_ENDPOINT_URL": NOBODY}, f"no S3 server at {NOBODY}"),
        ({"AWS_SECRET_ACCESS_KEY": WRONG}, "refuses the keys"),
        ({"MLFLOW_TRACKING_URI": NOBODY}, NOBODY),
        ({"MLFLOW_TRACKING_PASSWORD": WRONG}, "MLFLOW_TRACKING_PASSWORD"),
    )
    before = state_of(nights.root)
    roots = [nights.copy(tmp_path / str(number)) for number in range(len(faults))]
    with ThreadPoolExecutor() as pool:  # each round takes as long as its imports
        told = list(pool.map(lambda root, fault: run(root, "round", environment=fault[0]), roots, faults))
    for said, (_, expected), root in zip(told, faults, roots, strict=True):
        assert expected in refused(said)
        assert state_of(root) == before


def test_a_prefect_server_that_is_down_or_refuses_is_told_at_once(workspace: Path) -> None:
    for command in (["round"], ["round", "--worker"], ["deploy"]):
        down = call(workspace, *command, environment={"PREFECT_API_URL": f"{NOBODY}/api"})
        assert f"no Prefect server at {NOBODY}/api" in refused(down)
        refusing = call(workspace, *command, environment={"PREFECT_API_AUTH_STRING": "vabal:wrong"})
        assert "refuses the credentials" in refused(refusing)


def test_promotion_and_rollback_say_that_mlflow_is_down(workspace: Path) -> None:
    for command in ("promote", "rollback"):
        assert NOBODY in refused(call(workspace, command, environment={"MLFLOW_TRACKING_URI": NOBODY}))


def test_init_with_s3_down_or_refusing_leaves_an_empty_folder(stack: RunningStack, tmp_path: Path) -> None:
    for environment, expected in (
        ({"AWS_ENDPOINT_URL": NOBODY}, f"no S3 server at {NOBODY}"),
        ({"AWS_SECRET_ACCESS_KEY": WRONG}, "refuses the keys"),
    ):
        said = call(tmp_path, "init", "--source", "digits", environment=os.environ | environment)
        assert expected in refused(said)
        assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_round_of_an_older_checkout_ends_before_anything_is_trained(nights: TwoNights, tmp_path: Path) -> None:
    root = nights.copy(tmp_path / "copy")
    done(call(root, "checkout", "1"))
    stages = sorted((root / ".vabal" / "stages").glob("*/*"))
    said = run(root, "round")
    assert said.code == 1
    way = "the newest is round 2: `vabal checkout newest` goes back to the branch"
    assert said.err.splitlines()[-1] == f"vabal: {root} is a checkout of round 1, {way}"
    assert sorted((root / ".vabal" / "stages").glob("*/*")) == stages
