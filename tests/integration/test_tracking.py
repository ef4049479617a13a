"""A round's bookkeeping on a real MLflow server: nothing doubled, nothing slow, errors in one line."""

import hashlib
import http.server
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from requests import Session

from vabal.adapters.tracking import Tracking, metric_name
from vabal.errors import Unavailable, UserError
from vabal.flows import meanwhile
from vabal.learning import classifier
from vabal.settings.learners import ClassifierSettings
from vabal.settings.models import Params

CLASSES = ["0", "sol/der", "crazing (fine)"]
KEY = hashlib.sha256(b"parent").hexdigest()
SETTINGS = {"seed": 3, "vae": {"epochs": 20, "body": "relu"}}


@pytest.fixture
def tracking(mlflow_uri: str, request: pytest.FixtureRequest) -> Tracking:
    """A workspace of its own for each test."""
    name = "t-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    return Tracking(name, mlflow_uri)


@pytest.fixture
def client(mlflow_uri: str) -> MlflowClient:
    return MlflowClient(mlflow_uri, mlflow_uri)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def runs_of(client: MlflowClient, tracking: Tracking) -> list[object]:
    experiment = client.get_experiment_by_name(tracking.experiment_name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def weights(folder: Path, seed: int = 0) -> Path:
    settings = ClassifierSettings(width=2)
    network = classifier.build(settings, num_classes=3, image_size=8, channels=1, mean=(100.0,), std=(50.0,), seed=seed)
    path = folder / f"weights-{seed}.safetensors"
    classifier.save(network, path)
    return path


def register(tracking: Tracking, run_id: str, path: Path, round_number: int = 1) -> object:
    return tracking.register(run_id, round_number, KEY, weights=path, classes=CLASSES, image_size=8, channels=1)


# -- names and preflight ------------------------------------------------------------------------------------------


def test_names_carry_the_workspace_unless_it_is_the_default() -> None:
    own, plain = Tracking("solar-cells", "http://127.0.0.1:1"), Tracking("default", "http://127.0.0.1:1")
    assert (own.experiment_name, own.model_name) == ("solar-cells-vabal", "solar-cells-vabal-classifier")
    assert (plain.experiment_name, plain.model_name) == ("vabal", "vabal-classifier")


def test_without_an_address_the_way_to_one_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI is not set"):
        Tracking("default")


def test_a_server_that_is_there_passes_preflight_with_less_than_a_second_of_computing(tracking: Tracking) -> None:
    tracking.preflight()
    start = time.process_time()
    tracking.preflight()
    assert time.process_time() - start < 1


def test_a_server_that_is_down_is_told_in_one_line_and_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(Unavailable, match="MLflow is down") as error:
        Tracking("default", f"http://127.0.0.1:{free_port()}").preflight()
    assert time.monotonic() - start < 45  # and not after a minute of silence
    assert "\n" not in str(error.value)


class _Answering(http.server.BaseHTTPRequestHandler):
    status, body = 401, b"You are not authenticated."

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A web server that answers everything with one status and body."""
    handler = type("Handler", (_Answering,), dict(zip(("status", "body"), request.param, strict=True)))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("answering", [(401, b"no"), (403, b"no")], indirect=True)
def test_refused_credentials_are_told_by_preflight_and_by_every_call(answering: str) -> None:
    with pytest.raises(Unavailable, match="refuses the credentials"):
        Tracking("default", answering).preflight()
    with pytest.raises(Unavailable, match="refuses the credentials"):
        Tracking("default", answering).open_round(1, KEY, {})


@pytest.mark.parametrize("answering", [(200, b"<html>a router</html>"), (404, b"{}")], indirect=True)
def test_an_address_that_is_no_mlflow_server_is_told(answering: str) -> None:
    with pytest.raises(Unavailable, match="as no MLflow server does"):
        Tracking("default", answering).preflight()


def test_a_server_that_goes_away_in_the_middle_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(Unavailable, match="MLflow failed while it was being used") as error:
        Tracking("default", f"http://127.0.0.1:{free_port()}").open_round(1, KEY, {})
    assert "\n" not in str(error.value)


# -- a round's run ------------------------------------------------------------------------------------------------


def test_a_round_that_was_killed_finds_its_run_again(tracking: Tracking, client: MlflowClient) -> None:
    first = tracking.open_round(3, KEY, SETTINGS)
    assert client.get_run(first).info.status == "RUNNING"  # as a killed process leaves it
    assert tracking.open_round(3, KEY, SETTINGS) == first
    tracking.close(first, "FAILED")
    assert tracking.open_round(3, KEY, SETTINGS) == first
    assert client.get_run(first).info.status == "RUNNING"
    tracking.close(first)
    assert tracking.open_round(3, KEY, SETTINGS) == first
    assert client.get_run(first).info.status == "FINISHED"
    assert len(runs_of(client, tracking)) == 1
    tags = client.get_run(first).data.tags
    assert (tags["vabal.round"], tags["vabal.round_key"]) == ("3", KEY)
    assert tags["vabal.workspace"] == tracking.workspace


def test_another_round_or_another_parent_has_a_run_of_its_own(tracking: Tracking, client: MlflowClient) -> None:
    ids = {tracking.open_round(*which, SETTINGS) for which in ((1, KEY), (2, KEY), (1, "f" * 64))}
    assert len(ids) == len(runs_of(client, tracking)) == 3


def test_a_run_that_was_doubled_by_a_lost_answer_is_found_as_one(tracking: Tracking, client: MlflowClient) -> None:
    first = tracking.open_round(1, KEY, SETTINGS)
    run = client.get_run(first)
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("vabal.")}
    client.create_run(run.info.experiment_id, tags=tags)
    assert tracking.open_round(1, KEY, SETTINGS) == first
    assert len(runs_of(client, tracking)) == 1


def test_an_unfinished_run_with_other_settings_gives_way_for_parameters_cannot_change(
    tracking: Tracking, client: MlflowClient
) -> None:
    first = tracking.open_round(1, KEY, SETTINGS)
    second = tracking.open_round(1, KEY, SETTINGS | {"seed": 4})
    assert second != first
    assert len(runs_of(client, tracking)) == 1
    assert client.get_run(second).data.params["seed"] == "4"


def test_settings_are_logged_with_dotted_names_also_more_than_one_call_takes(
    tracking: Tracking, client: MlflowClient
) -> None:
    settings = Params().model_dump() | {"more": {f"key{index}": index for index in range(150)}}
    run = client.get_run(tracking.open_round(1, KEY, settings))
    assert run.data.params["vae.latent_per_class"] == "10"
    assert run.data.params["more.key149"] == "149"
    assert len(run.data.params) > 200


def test_points_logged_again_are_not_doubled_whatever_their_value(tracking: Tracking, client: MlflowClient) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    points = [("train/loss", 1.0 / step, step) for step in range(1, 1201)] + [("accuracy", 0.5, 1)]
    tracking.log_metrics(run_id, points)
    tracking.log_metrics(run_id, points)
    tracking.log_metrics(run_id, [("accuracy", 0.25, 1), ("accuracy", 0.75, 2)])
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(step, 1.0 / step) for step in range(1, 1201)]
    accuracy = client.get_metric_history(run_id, "accuracy")
    assert sorted((point.step, point.value) for point in accuracy) == [(1, 0.5), (2, 0.75)]


def test_points_that_came_while_a_stage_worked_are_not_logged_again(
    tracking: Tracking, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meanwhile, "EVERY_S", 0.05)
    run_id = tracking.open_round(1, KEY, SETTINGS)
    epochs = [("train/loss", 1.0 / step, step) for step in range(1, 51)]
    for _ in range(2):  # the second time as after a kill, when the stage runs again
        with meanwhile.Stream(partial(tracking.points, run_id), logging.getLogger("stage")) as stream:
            for epoch in epochs[:40]:
                stream.add(*epoch)
            deadline = time.monotonic() + 60
            while len(client.get_metric_history(run_id, "train/loss")) < 40 and time.monotonic() < deadline:
                time.sleep(0.05)
        assert len(client.get_metric_history(run_id, "train/loss")) == 40
    tracking.log_metrics(run_id, epochs)
    history = client.get_metric_history(run_id, "train/loss")
    assert sorted((point.step, point.value) for point in history) == [(step, 1.0 / step) for step in range(1, 51)]


def test_class_names_that_mlflow_refuses_are_written_as_codes_and_stay_apart() -> None:
    assert metric_name("recall/crazing (fine)") == "recall/crazing _28_fine_29_"
    assert metric_name("recall/a+b") != metric_name("recall/a*b")
    assert metric_name("recall/träge-2.5: x") == "recall/träge-2.5: x"


def test_a_class_has_its_chart_in_its_groups_section_and_a_readable_name() -> None:
    assert metric_name("holdout/recall/mono-defective") == "holdout/recall/mono-defective"
    assert metric_name("control/share/crack") == "control/share/crack"
    assert metric_name("holdout/recall/a/b") == "holdout/recall/a_2f_b"
    assert metric_name("holdout/recall/..") == "holdout/recall/_2e__2e_"
    assert metric_name("holdout/accuracy") == "holdout/accuracy"


def test_a_class_name_that_looks_like_a_path_is_coded() -> None:
    assert metric_name("recall/a//b") == "recall/a_2f__2f_b"
    assert metric_name("recall/..") == "recall/_2e__2e_"


def test_every_class_name_can_be_a_metric(tracking: Tracking, client: MlflowClient) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    names = ["(", "a+b", "träge", "a//b", "..", "./a", "x" * 300, "x" * 301]
    tracking.log_metrics(run_id, [(f"holdout/recall/{name}", 0.5, 1) for name in names])
    assert len(client.get_run(run_id).data.metrics) == len(names)


def test_an_experiment_tells_what_it_is_and_keeps_the_words_that_people_gave_it(
    tracking: Tracking, client: MlflowClient
) -> None:
    tracking.open_round(1, KEY, SETTINGS)
    [experiment] = client.search_experiments(filter_string=f"name = '{tracking.experiment_name}'")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert f"in the workspace `{tracking.workspace}`" in experiment.tags["mlflow.note.content"]
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    charts = f"/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert tracking.charts_url().endswith(charts)
    assert client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"] == "ours"


def test_the_pools_digests_are_the_runs_inputs_once(tracking: Tracking, client: MlflowClient) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("labeled", "unlabeled")}
    for _ in range(2):
        tracking.log_datasets(run_id, digests, {"git_tag": "round/0000"})
    found = client.get_run(run_id).inputs
    assert found is not None
    inputs = found.dataset_inputs
    assert {item.dataset.name: {tag.key: tag.value for tag in item.tags}["sha256"] for item in inputs} == digests
    assert len(inputs) == 2
    assert json.loads(inputs[0].dataset.source) == {"tags": {"git_tag": "round/0000"}}


def test_files_lie_beside_the_run_and_are_overwritten_by_a_rerun(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    for text in ("first", "second"):
        (tmp_path / "selection.csv").write_text(text)
        tracking.log_artifacts(run_id, [tmp_path / "selection.csv"], "round")
    [file] = client.list_artifacts(run_id, "round")
    assert Path(client.download_artifacts(run_id, file.path, str(tmp_path))).read_text() == "second"


# -- versions -----------------------------------------------------------------------------------------------------


def test_a_rounds_version_is_found_again_and_never_doubled(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    assert tracking.find_version(1, KEY) is None
    first = register(tracking, run_id, weights(tmp_path))
    assert register(tracking, run_id, weights(tmp_path)) == first
    assert tracking.find_version(1, KEY) == tracking.version("1") == first
    assert len(client.search_model_versions(f"name = '{tracking.model_name}'")) == 1
    assert (first.version, first.round, first.run_id) == ("1", 1, run_id)


def test_a_version_that_was_doubled_by_a_lost_answer_goes_when_the_next_is_made(
    tracking: Tracking, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    create = tracking._create_version

    def twice(source: str, run: str, tags: dict[str, str]) -> None:
        create(source, run, tags)
        create(source, run, tags)

    monkeypatch.setattr(tracking, "_create_version", twice)
    assert register(tracking, run_id, weights(tmp_path)).version == "1"  # type: ignore[attr-defined]
    assert len(client.search_model_versions(f"name = '{tracking.model_name}'")) == 1


def test_other_weights_of_the_same_round_are_a_version_of_their_own(tracking: Tracking, tmp_path: Path) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    versions = [register(tracking, run_id, weights(tmp_path, seed)).version for seed in (0, 1)]  # type: ignore[attr-defined]
    assert versions == ["1", "2"]
    found = tracking.find_version(1, KEY)
    assert found is not None
    assert found.version == "2"


def test_an_alias_stands_where_it_was_put_last(tracking: Tracking, tmp_path: Path) -> None:
    assert tracking.version_by_alias("champion") is None
    run_id = tracking.open_round(1, KEY, SETTINGS)
    for seed in (0, 1):
        register(tracking, run_id, weights(tmp_path, seed))
    assert tracking.version_by_alias("champion") is None
    for version in ("1", "2"):
        tracking.set_alias("champion", version)
        found = tracking.version_by_alias("champion")
        assert found is not None
        assert found.version == version


def test_tags_stand_on_the_version(tracking: Tracking, tmp_path: Path) -> None:
    register(tracking, tracking.open_round(1, KEY, SETTINGS), weights(tmp_path))
    tracking.tag_version("1", {"vabal.promotion.0001": json.dumps({"why": "é" * 6000})})
    assert json.loads(tracking.version("1").tags["vabal.promotion.0001"]) == {"why": "é" * 6000}


@pytest.mark.parametrize("number", ["99", "three", "-1"])
def test_a_version_that_is_none_is_told_in_one_line(tracking: Tracking, tmp_path: Path, number: str) -> None:
    register(tracking, tracking.open_round(1, KEY, SETTINGS), weights(tmp_path))
    with pytest.raises(UserError, match=f"has no version {number}") as error:
        tracking.version(number)
    assert "\n" not in str(error.value)


def test_downloaded_weights_are_those_registered_and_load_without_pickle(tracking: Tracking, tmp_path: Path) -> None:
    path = weights(tmp_path)
    register(tracking, tracking.open_round(1, KEY, SETTINGS), path)
    got = tracking.download_weights("1", tmp_path / "down")
    assert got.read_bytes() == path.read_bytes()
    assert classifier.load(got).config["num_classes"] == 3
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_weights_that_were_exchanged_in_the_registry_are_refused_and_not_left_lying(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    run_id = tracking.open_round(1, KEY, SETTINGS)
    register(tracking, run_id, weights(tmp_path))
    planted = tmp_path / "weights.safetensors"
    planted.write_bytes(weights(tmp_path, seed=1).read_bytes())
    client.log_artifact(run_id, str(planted), "model/artifacts")
    with pytest.raises(UserError, match="are not those of its round"):
        tracking.download_weights("1", tmp_path / "down")
    assert not list((tmp_path / "down").rglob("*.safetensors"))


# -- cost ---------------------------------------------------------------------------------------------------------


def test_a_rounds_bookkeeping_takes_few_requests(
    tracking: Tracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = weights(tmp_path)
    (tmp_path / "selection.parquet").write_bytes(os.urandom(20_000))
    requests: list[str] = []
    real = Session.request

    def counted(session: Session, method: str, url: str, **options: Any) -> Any:
        requests.append(f"{method} {url}")
        return real(session, method, url, **options)

    monkeypatch.setattr(Session, "request", counted)
    tracking.preflight()
    run_id = tracking.open_round(1, KEY, Params().model_dump())
    tracking.log_metrics(run_id, [("train/loss", 0.1, step) for step in range(200)])
    tracking.log_datasets(run_id, {"labeled": KEY, "unlabeled": KEY, "holdout": KEY}, {})
    tracking.log_artifacts(run_id, [tmp_path / "selection.parquet"])
    version = register(tracking, run_id, path)
    tracking.set_alias("challenger", version.version)  # type: ignore[attr-defined]
    tracking.close(run_id)
    assert 10 < len(requests) < 60


# -- rounds that were not published ---------------------------------------------------------------------------------


def test_two_clones_share_no_run_or_version_and_the_second_ones_do_not_count(
    tracking: Tracking, client: MlflowClient, tmp_path: Path
) -> None:
    first, second = (Tracking(tracking.workspace, tracking.uri, owner=name) for name in ("first", "second"))
    runs = [clone.open_round(1, KEY, SETTINGS, inputs=["labels/1"]) for clone in (first, second)]
    made = [register(clone, run, weights(tmp_path)) for clone, run in zip((first, second), runs, strict=True)]
    assert len(set(runs)) == 2
    assert [version.version for version in made] == ["1", "2"]  # type: ignore[attr-defined]
    assert first.open_round(1, KEY, SETTINGS, inputs=["labels/1"]) == runs[0]
    for version in ("1", "2"):
        first.set_alias("challenger", version)
    second.withdraw(1, KEY, "lost", "1")
    second.withdraw(1, KEY, "lost", "1")
    assert client.get_run(runs[0]).info.status == "RUNNING"
    lost = client.get_run(runs[1])
    assert (lost.info.status, lost.data.tags["vabal.status"]) == ("KILLED", "lost")
    assert second.version("2").tags["vabal.status"] == "lost"
    assert "vabal.status" not in second.version("1").tags
    assert second.version_by_alias("challenger").version == "1"  # type: ignore[union-attr]
    again = second.open_round(1, KEY, SETTINGS, inputs=["labels/1"])
    assert again not in runs
    assert register(second, again, weights(tmp_path)).version == "3"  # type: ignore[attr-defined]


def test_a_version_of_other_settings_counts_no_more_once_the_round_registers_another(
    tracking: Tracking, tmp_path: Path
) -> None:
    mine, other = (Tracking(tracking.workspace, tracking.uri, owner=name) for name in ("mine", "other"))
    run_id = mine.open_round(1, KEY, SETTINGS)
    for clone, seed in ((other, 0), (mine, 0), (mine, 1), (mine, 1)):
        register(clone, run_id, weights(tmp_path, seed))
    statuses = {number: mine.version(number).tags.get("vabal.status") for number in ("1", "2", "3")}
    assert statuses == {"1": None, "2": "superseded", "3": None}


def test_other_inputs_take_another_run_in_the_place_of_the_unfinished_one(
    tracking: Tracking, client: MlflowClient
) -> None:
    first = tracking.open_round(1, KEY, SETTINGS, inputs=["labels/1"])
    second = tracking.open_round(1, KEY, SETTINGS, inputs=["labels/1", "labels/2"])
    assert second != first
    assert [run.info.run_id for run in runs_of(client, tracking)] == [second]  # type: ignore[attr-defined]
