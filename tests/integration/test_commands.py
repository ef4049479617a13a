"""Two nights and the nights after them, through the command line, on the real stack."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image
from running import RunningStack
from workspaces import (
    TwoNights,
    answer_requests,
    ask,
    call,
    change_settings,
    digests,
    done,
    make_workspace,
    oracle,
    picked_ids,
    picture,
    run,
    until,
    write_labels,
)

from tests.support.repositories import git
from vabal import audit, pools
from vabal.adapters.orchestration import Server
from vabal.cli import promotion
from vabal.labels.names import blind_names
from vabal.workspace import Workspace

# -- the two nights -----------------------------------------------------------------------------------------------


def test_init_says_what_there_is_and_which_class_has_no_label(nights: TwoNights) -> None:
    said = nights.said["init"].out
    assert "124 images from npz, 4 classes: labelled 20, unlabelled 79, holdout 25" in said
    assert "no sample of class 3" in said
    assert "git tag round/0000" in said


def test_ctrl_c_ends_a_round_with_one_line_and_the_next_goes_on(nights: TwoNights) -> None:
    stopped = nights.said["interrupted"]
    assert stopped.code == 130
    assert stopped.out == ""
    *warnings, last = stopped.err.splitlines()
    assert last == "vabal: stopped; nothing is lost: run the same command again to go on"
    assert all("WARNING" in line for line in warnings)
    assert nights.said["round 1"].out.splitlines() == [
        "Published: round 1: 8 picks (vabal), 20 labeled, 79 unlabeled",
        "next: vabal labels export requests/0001",
    ]


def test_a_round_without_a_terminal_is_quiet_but_for_warnings(nights: TwoNights) -> None:
    [warning] = nights.said["round 1"].err.splitlines()
    assert "no labelled sample yet of 3" in warning
    assert len(nights.said["round 2"].out.splitlines()) == 2


def test_requests_go_out_as_images_with_a_csv(nights: TwoNights) -> None:
    folder = nights.root / "requests"
    rows = list(csv.DictReader((folder / "requests.csv").read_text().splitlines()))
    blind = blind_names(pools.read(nights.root / "data").catalog)
    assert {row["sample_id"] for row in rows} == {blind[name] for name in picked_ids(nights.root, 1)}
    for row in rows:
        with Image.open(folder / row["image"]) as image:
            assert image.size == (8, 8)
    assert len(json.loads((folder / "label_studio.json").read_text())) == 8


def test_each_file_of_labels_is_taken_in_once_and_says_what_it_held(nights: TwoNights) -> None:
    assert "2 labels and 1 rejections taken in" in nights.said["first"].out
    assert "1 without a label or an annotator: not answered yet" in nights.said["first"].out
    assert "1 labels and 0 rejections taken in" in nights.said["second"].out
    assert "imported before" in nights.said["first again"].out


def test_how_far_people_agree_is_logged_with_the_round(nights: TwoNights, stack: RunningStack) -> None:
    run_of_night = ask(nights.root, "audit")[2]["mlflow_run"]
    logged = MlflowClient().get_run(run_of_night).data.metrics
    assert {name: logged[name] for name in ("labels/disputed", "annotator_labels/ada")} == {
        "labels/disputed": 1,
        "annotator_labels/ada": 2,
    }


def test_what_is_no_image_is_told_listed_and_carried_past(nights: TwoNights) -> None:
    said = nights.said["ingest"].out
    assert "3 new images" in said
    assert "1 left out" in said
    assert "4 unreadable" in said
    listed = (nights.root / "quarantine" / "quarantine.csv").read_text()
    for name in ("cut.png", "empty.png", "huge.png", "notes.png"):
        assert name in said
        assert name in listed
    catalog = pd.read_parquet(nights.root / "data" / "catalog.parquet")
    assert sorted(catalog.loc[catalog["added_round"] == 2, "sample_id"]) == ["a-again", "b", "c"]


def test_going_on_with_what_came_is_the_default_and_said_in_the_final_state(nights: TwoNights) -> None:
    said = nights.said["round 2"].out
    assert "Published: round 2: 8 picks (entropy), 22 labeled, 80 unlabeled" in said
    assert "3 of 8 labels of round 1's request are in: going on with what came" in said


SHELL = """
eval "$(python -m vabal.cli env)"
mlflow experiments search >mlflow.txt 2>&1 & first=$!
prefect deployment ls >prefect.txt 2>&1 & second=$!
dvc pull >dvc.txt 2>&1 && dvc status >>dvc.txt 2>&1
third=$?
wait $first && wait $second && exit $third
"""


def test_in_a_shell_with_our_environment_the_tools_own_commands_work(
    nights: TwoNights, stack: RunningStack, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(nights.root), str(clone))
    (clone / ".vabal").mkdir(mode=0o700)
    shutil.copyfile(stack.root / ".vabal" / "env", clone / ".vabal" / "env")
    foreign = ("AWS_", "DVC_", "MLFLOW_", "PREFECT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    environment |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}"}
    ended = subprocess.run(["sh", "-c", SHELL], cwd=clone, env=environment, check=False).returncode
    said = {name: (clone / f"{name}.txt").read_text() for name in ("mlflow", "prefect", "dvc")}
    assert ended == 0, said
    assert f"{nights.name}-vabal" in said["mlflow"]
    assert "Deployments" in said["prefect"]
    assert "up to date" in said["dvc"]
    assert digests(clone / "data") == nights.data[2]


def test_the_audit_lists_both_rounds_with_model_run_and_tag(nights: TwoNights) -> None:
    records = ask(nights.root, "audit")
    assert [record["strategy"] for record in records] == ["initial", "vabal", "entropy"]
    assert [record["labeled"] for record in records] == [20, 20, 22]
    assert [record["catalog"] for record in records] == [124, 124, 127]
    assert [record["model_version"] for record in records] == [None, "1", "2"]
    assert [record["tag"] for record in records] == ["round/0000", "round/0001", "round/0002"]
    assert sum(records[1]["picks_by_class"].values()) == 2
    assert (records[1]["picks_open"], records[1]["picks_rejected"]) == (5, 1)
    assert all(len(line) <= 80 for line in done(call(nights.root, "audit")).out.splitlines())


def test_a_rounds_picks_come_with_score_likelihood_prior_and_precision(nights: TwoNights) -> None:
    picks = ask(nights.root, "audit", "1")
    assert [pick["rank"] for pick in picks] == list(range(1, 9))
    for pick in picks:  # in the order in which they cover doubt, which is not that of their scores
        assert all(isinstance(pick[name], float) for name in ("score", "log_likelihood", "prior", "precision"))
    assert ask(nights.root, "audit", "2")[0]["log_likelihood"] is None  # entropy has none
    table = done(call(nights.root, "audit", "1")).out
    assert nights.names["corrected"] in table
    assert all(len(line) <= 80 for line in table.splitlines())


def test_a_corrected_samples_history_keeps_the_label_that_was_wrong(nights: TwoNights) -> None:
    sample, truth = nights.names["corrected"], oracle(nights.root)[nights.names["corrected"]]
    told = ask(nights.root, "audit", "--sample", sample)
    assert (told["state"], told["label"]) == ("labeled", truth)
    events = [(event["round"], event["what"]) for event in told["events"]]
    assert events == [(0, "added"), (1, "candidate"), (1, "requested"), (2, "labelled"), (2, "corrected")]
    labels = [(event["label"], event["annotator"]) for event in told["events"] if "label" in event]
    assert labels == [(nights.names["wrong"], "ada"), (truth, "bob")]
    assert ask(nights.root, "audit", "--sample", nights.names["rejected"])["state"] == "rejected"
    assert ask(nights.root, "audit", "--sample", nights.names["open"])["state"] == "requested"
    assert sample in done(call(nights.root, "audit", "--sample", sample)).out


def test_nights_keep_indices_of_their_candidates_which_say_what_the_tables_do(nights: TwoNights) -> None:
    place, sample = Workspace(nights.root), nights.names["open"]
    assert len(list(place.indices.iterdir())) == 2
    told, read = (audit.history(place.data, sample, place.inbox, folder) for folder in (place.indices, None))
    assert told == read
    assert [event["what"] for event in told["events"]].count("candidate") == 1


def test_the_curve_has_a_point_for_each_night(nights: TwoNights) -> None:
    rows = ask(nights.root, "curve")
    assert [(row["round"], row["labels"], row["holdout"]) for row in rows] == [(1, 20, 25), (2, 22, 25)]
    metrics = ask(nights.root, "audit")[2]["metrics"]
    assert rows[1]["balanced_accuracy"]["value"] == metrics["holdout/balanced_accuracy"]
    assert rows[1]["seconds"] > 0
    told = ask(nights.root, "forecast", "--labels", "7")
    assert [(row["labels"], row["ahead"], row["rounds"]) for row in told] == [(22, 7, 2), (22, 14, 2), (22, 35, 2)]
    assert all(row["low"] <= row["expected"] <= row["high"] for row in told)


def test_show_writes_the_images_own_bytes(nights: TwoNights, tmp_path: Path) -> None:
    target = tmp_path / "seen.png"
    assert done(call(nights.root, "show", "b", "--out", str(target))).out == f"{target}\n"
    assert target.read_bytes() == picture(2)


def test_a_round_has_its_page_which_is_made_again_and_shown(nights: TwoNights, stack: RunningStack) -> None:
    pages = [nights.root / "reports" / f"{number:04d}.html" for number in (1, 2)]
    assert all("train-classifier" in page.read_text() for page in pages)
    assert git(nights.root, "status", "--porcelain", "--", "reports") == ""
    assert done(call(nights.root, "open", "1")).out == f"{pages[0]}\n"
    pages[1].unlink()
    assert ask(nights.root, "status")["page"] is None
    for command in ("report", "open"):
        assert done(call(nights.root, command)).out == f"{pages[1]}\n"
    assert ask(nights.root, "status")["page"] == str(pages[1])
    assert "train-classifier" in pages[1].read_text()  # whose seconds Prefect knows
    assert "no round 9" in call(nights.root, "report", "9").err


def test_status_tells_the_services_of_a_workspace(nights: TwoNights, stack: RunningStack) -> None:
    assert {row["state"] for row in ask(stack.root, "status")["services"]} == {"running"}
    assert {row["state"] for row in ask(nights.root, "status")["services"]} == {"stopped"}


def test_mlflow_has_one_finished_run_a_round_with_all_that_belongs_to_it(
    nights: TwoNights, stack: RunningStack
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name(f"{nights.name}-vabal")
    assert experiment is not None
    runs = {run.data.tags["vabal.round"]: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == ["1", "2"]  # the interrupted one with other settings has given way
    records = ask(nights.root, "audit")
    for number, night in runs.items():
        assert night.info.status == "FINISHED"
        assert night.info.run_id == records[int(number)]["mlflow_run"]
        assert night.data.params["selection.budget"] == "8"
        assert night.data.params["classifier.epochs"] == "60"
        assert {"holdout/accuracy", "holdout/balanced_accuracy", "holdout/macro_f1", "train/loss"} <= set(
            night.data.metrics
        )
        assert night.inputs is not None
        assert {item.dataset.name for item in night.inputs.dataset_inputs} >= {"labeled", "unlabeled", "holdout"}
        kept = [item.path for item in client.list_artifacts(night.info.run_id, "evaluation")]
        assert "evaluation/confusion.png" in kept
        assert [item.path for item in client.list_artifacts(night.info.run_id, "selection")] == [
            "selection/selection.parquet"
        ]
        assert [item.path for item in client.list_artifacts(night.info.run_id, "report")] == [
            *(f"report/{int(number):04d}-card.md", f"report/{int(number):04d}.html")
        ]
    challenger = client.get_model_version_by_alias(f"{nights.name}-vabal-classifier", "challenger")
    assert challenger.version == "2"


def test_prefect_has_an_artifact_a_round_with_its_picks_and_links(nights: TwoNights, stack: RunningStack) -> None:
    server = Server.from_environment()
    run_id = ask(nights.root, "audit")[1]["prefect_flow_run"]
    artifacts = server.call("POST", "/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run_id]}}})
    [artifact] = [item for item in artifacts if item["key"] == "round-0001"]
    assert all(sample_id in artifact["data"] for sample_id in picked_ids(nights.root, 1))
    assert "[MLflow run](" in artifact["data"]
    assert "/artifacts/report/0001.html)" in artifact["data"]
    state = server.call("GET", f"/flow_runs/{run_id}")["state"]
    assert (state["name"], state["type"]) == ("Published", "COMPLETED")


# -- the audit finds what was changed -----------------------------------------------------------------------------


def test_one_changed_byte_in_any_file_of_a_past_round_is_found_and_named(nights: TwoNights, tmp_path: Path) -> None:
    root = nights.copy(tmp_path / "copy")
    assert ask(root, "audit", "--verify")["ok"] is True
    shard = next((root / "data" / "images").glob("pool-*.parquet")).name
    for name in (
        "rounds/0001/selection.parquet",
        "rounds/0001/candidates.parquet",
        "rounds/0001/holdout_predictions.parquet",
        "rounds/0001/manifest.json",
        f"images/{shard}",
        "labeled.parquet",
        "classes.json",
    ):
        path = root / "data" / name
        before = path.read_bytes()
        middle = len(before) // 2
        path.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        said = call(root, "audit", "--verify", "--json")
        found = json.loads(said.out)
        assert said.code == 1, name
        assert found["ok"] is False
        assert name in said.out, f"{name} is not among {found}"
        assert call(root, "audit", "--verify").code == 1
        path.write_bytes(before)
    assert ask(root, "audit", "--verify")["ok"] is True


# -- the nights after ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later(nights: TwoNights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same workspace, for nights 3 and 4 and for promotions; the tests below follow each other."""
    root = nights.copy(tmp_path_factory.mktemp("later") / "later")
    with (root / ".vabal" / "oracle.csv").open("a") as file:  # people know the images that came in between as well
        file.writelines(f"{sample_id},0\n" for sample_id in ("a-again", "b", "c"))
    return root


def test_a_challenger_must_pass_the_gate_and_a_champion_can_be_rolled_back(later: Path, stack: RunningStack) -> None:
    first = done(call(later, "promote", "--version", "1", "--json"))
    assert json.loads(first.out)["action"] == "promoted"
    change_settings(later, {"promotion.min_gain": 0.9})
    kept = call(later, "promote")
    assert kept.code == 1
    assert kept.err.startswith("vabal: version 2")
    assert kept.err.count("\n") == 1
    assert "balanced accuracy gained" in kept.err
    easy = {"promotion.min_gain": -1.0, "promotion.tolerance": 1.0, "promotion.max_recall_drop": 1.0}
    change_settings(later, easy)
    assert "version 2 (round 2) is champion, version 1 (round 1) was before" in done(call(later, "promote")).out
    assert json.loads(done(call(later, "rollback", "--reason", "too easy", "--json")).out)["action"] == "rolled back"
    [served] = ask(later, "champion")["champions"]
    assert (served["version"], served["began"]["why"], served["promoted"]["sequence"]) == ("1", "too easy", 1)
    assert len(ask(later, "champion", "--on", served["since"][:10])["champions"]) == 3  # one night's work
    again = call(later, "rollback")
    assert (again.code, again.err.count("\n")) == (1, 1)
    actions = [entry["action"] for record in ask(later, "audit") for entry in record["promotions"]]
    assert sorted(actions) == ["promote", "promote", "refuse", "rollback"]
    assert "rollback" in done(call(later, "audit")).out
    assert ask(later, "audit", "--verify")["ok"] is True


def test_skip_leaves_everything_as_it_is_and_says_so(later: Path) -> None:
    change_settings(later, {"labelling.when_incomplete": "skip", "labelling.share": 0.5})
    before = digests(later)
    said = done(run(later, "round"))
    skipped, following = said.out.splitlines()
    assert skipped == "Skipped: 0 of 8 labels of round 2's request are in, fewer than the share of 0.5: skipped"
    assert following == "next: vabal labels export requests/0002"
    assert digests(later) == before


def test_a_waiting_round_says_so_keeps_others_out_and_goes_on_with_the_labels_that_come(
    later: Path, stack: RunningStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(promotion, "PATIENCE_S", 0.0)  # of a promotion with a round
    change_settings(
        later,
        {
            "labelling.when_incomplete": "wait",
            "labelling.share": 1.0,
            "labelling.poll_seconds": 0.2,
            "labelling.wait_hours": 0.2,
            "selection.budget": 500,
        },
    )
    command = [sys.executable, "-m", "vabal.cli", "round", "--strategy", "random"]
    with (tmp_path / "errors").open("w") as errors:
        waiting = subprocess.Popen(command, cwd=later, stdout=subprocess.PIPE, stderr=errors, text=True)
    server = Server.from_environment()
    try:
        [state] = until(lambda: _states(server, later, "WaitingForLabels"), 600, "the round to wait")
        assert state["type"] == "RUNNING"
        assert "0 of 8 labels of round 2's request are in" in state["message"]

        second = run(later, "round")
        assert second.code == 1
        assert second.err.splitlines()[-1].startswith(
            f"vabal: {later} is in use by vabal round (process {waiting.pid})"
        )
        assert second.err.count("\n") == 1
        assert "is in use by vabal round" in call(later, "promote").err

        assert answer_requests(later, "answers") == 5 + 8  # what is out of rounds 1 and 2
        out, _ = waiting.communicate(timeout=600)
    finally:
        waiting.kill()
        waiting.communicate()
    assert waiting.returncode == 0
    left = ask(later, "audit")[3]["picks"]
    assert out.startswith(f"Published: round 3: {left} picks (random)")
    assert "going on with what came" not in out
    assert f"500 asked for, {left} left to pick from: all of them are picked" in (tmp_path / "errors").read_text()
    assert ask(later, "audit", "--verify")["ok"] is True


def _states(server: Server, root: Path, name: str) -> list[dict[str, Any]]:
    runs = server.flow_runs({"name": {"any_": [f"round of {root.name}"]}, "state": {"name": {"any_": [name]}}})
    return [item["state"] for item in runs]


def test_the_last_labels_are_learned_from_then_there_is_nothing_left_until_new_images_come(
    later: Path, tmp_path: Path
) -> None:
    truth = oracle(later)
    lines = ((sample_id, truth[sample_id], "ada") for sample_id in picked_ids(later, 3))
    done(call(later, "labels", "import", str(write_labels(tmp_path / "all.csv", *lines))))

    last = done(run(later, "round"))
    assert last.out.startswith("Published: round 4: 0 picks (vabal)")
    assert "nothing left to label" in last.err
    record = ask(later, "audit")[4]
    assert (record["unlabeled"], record["picks"]) == (1, 0)  # the rejected one stays
    assert ask(later, "audit", "--verify")["ok"] is True
    assert ask(later, "audit", "4") == []

    nothing = done(run(later, "round"))
    assert nothing.out.startswith("NothingToLabel: nothing left to label")
    assert len(ask(later, "audit")) == 5
    settings = later / "params.yaml"
    asking = settings.read_text()
    settings.write_text(
        asking.replace("stop_rule: never", "stop_rule: forecast").replace("stop_below: 1.0", "stop_below: 999")
    )
    said = "enough labels: the next "
    assert done(run(later, "round")).out.startswith(f"EnoughLabels: {said}")
    assert len(ask(later, "audit")) == 5
    assert said in " ".join(done(call(later, "status")).out.split())
    (tmp_path / "new.png").write_bytes(picture(9))
    done(call(later, "ingest", str(tmp_path / "new.png")))
    learned = done(run(later, "round", "--strategy", "random"))
    assert learned.out.startswith("Published: round 5: 0 picks (random)")
    assert said in learned.out
    assert ask(later, "audit", "--verify")["ok"] is True
    settings.write_text(asking)
    assert "Published: round 6: 1 picks" in done(run(later, "round", "--strategy", "random")).out


# -- a source without labels --------------------------------------------------------------------------------------


def test_people_label_the_first_request_and_the_holdout_of_a_source_without_labels(
    stack: RunningStack, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(40):  # dark images and light ones
        pixels = generator.integers(0, 100, (8, 8), dtype=np.uint8) + (index % 2) * np.uint8(150)
        Image.fromarray(pixels).save(images / f"{index:02d}-{'light' if index % 2 else 'dark'}.png")
    root = tmp_path / "unlabelled"
    settings = {"classifier.epochs": 20, "images.size": 8, "images.channels": 1, "selection.budget": 5}
    made = make_workspace(
        stack,
        root,
        "unlabelled",
        *("--source", f"folder:{images}", "--classes", "dark,light", "--initial", "12", "--holdout", "0.25"),
        settings=settings,
    )
    assert "22 labels asked for" in made.out
    waiting = done(run(root, "round"))
    assert waiting.out.startswith("WaitingForLabels: no labels yet")

    exported = ask(root, "labels", "export", "requests")
    assert (exported["requests"], exported["holdout"]) == (22, 10)
    path = root / "requests" / "requests.csv"
    asked = [row["sample_id"] for row in csv.DictReader(path.read_text().splitlines())]
    shown = {blind: name for name, blind in blind_names(pools.read(root / "data").catalog).items()}
    lines = [(name, "light" if "light" in shown[name] else "dark", "ada") for name in asked]
    assert ask(root, "labels", "import", str(write_labels(path, *lines)))["labels"] == 22
    published = done(run(root, "round"))
    assert published.out.splitlines()[0] == "Published: round 1: 5 picks (vabal), 12 labeled, 18 unlabeled"
    [_, record] = ask(root, "audit")
    assert record["metrics"]["holdout/balanced_accuracy"] > 0.5
    assert ask(root, "audit", "--verify")["ok"] is True
