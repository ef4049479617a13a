"""The last line of commands that bring a workspace further names the one that comes next, and it can be typed."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.rules.repository import ROOT
from tests.support.blocks import problem
from tests.support.small_rounds import first_round
from vabal import pools
from vabal.cli import app, chosen
from vabal.cli.following import next_words
from vabal.rounds import requests
from vabal.workspace import Workspace


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    yield
    chosen.choose(None)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """After the intake of its first round: to be looked at."""
    with first_round(tmp_path_factory.mktemp("place"), 40, {"classifier.learner": "scratch"}) as begun:
        yield begun.workspace


def unlabelled(folder: Path) -> Workspace:
    grey = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(folder / "plain.npz", images=grey)
    root = folder / "plain"
    root.mkdir()
    init = ["--workspace", str(root), "init", "--source", f"npz:{folder / 'plain.npz'}", "--classes", "a,b"]
    done = CliRunner().invoke(app.app, [*init, "--initial", "6", "--learner", "scratch"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert last == f"next: vabal -C {root} labels export requests/0000"
    assert "a night: seconds were not measured; 100 labels asked for (selection.budget)" in done.stdout
    assert "learner: scratch, as params.yaml has it; none was tried" in done.stdout
    return Workspace(root)


def test_without_a_workspace_one_is_made_and_without_servers_they_are_started(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert next_words(None) == "init --source folder:PATH"
    assert next_words(place) == "round"
    monkeypatch.delenv("PREFECT_API_URL")
    assert next_words(place) == "up"


def test_labels_are_exported_filled_in_imported_and_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    place = unlabelled(tmp_path)
    run = CliRunner()
    words = shlex.split(str(next_words(place)))
    said = run.invoke(app.app, ["--workspace", str(place.root), *words], catch_exceptions=False).stdout
    wanted = "labels import requests/0000/requests.csv  # once it is filled in"
    assert said.splitlines()[-1] == f"next: vabal -C {place.root} {wanted}"
    assert next_words(place) == wanted
    path = Path("requests/0000/requests.csv")
    Path("mine.csv").write_bytes(path.read_bytes())
    unfilled = ["--workspace", str(place.root), "labels", "import", "mine.csv"]
    said = run.invoke(app.app, unfilled, catch_exceptions=False).stdout
    assert said.splitlines()[-1] == f"next: vabal -C {place.root} labels import mine.csv  # once it is filled in"
    first, *rows = path.read_text().splitlines()
    answered = [f"{row.split(',')[0]},{'ab'[number % 2]},ada," for number, row in enumerate(rows[:4])]
    path.write_text("\n".join([first, *answered]) + "\n")
    words = shlex.split(wanted, comments=True)
    said = run.invoke(app.app, ["--workspace", str(place.root), *words], catch_exceptions=False).stdout
    assert said.splitlines()[-1] == f"next: vabal -C {place.root} round"
    (place.root / "params.yaml").write_text(
        (place.root / "params.yaml").read_text().replace("when_incomplete: continue", "when_incomplete: skip")
    )
    assert place.params().labelling.when_incomplete == "skip"
    assert next_words(place) == wanted


def test_where_nothing_is_left_to_ask_images_are_what_is_missing(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "pending", lambda _place: [])
    whole = pools.read(place.data)
    whole.unlabeled["status"] = pools.REJECTED
    monkeypatch.setattr(pools, "read", lambda _data: whole)
    assert next_words(place) == "ingest PATH"


@pytest.mark.parametrize(
    "words",
    [
        *("init --source folder:PATH", "up", "round", "promote", "ingest PATH", "labels sync"),
        *("labels export requests/0003", "labels import requests/0003/requests.csv  # once it is filled in"),
    ],
)
def test_every_such_command_can_be_typed(words: str) -> None:
    assert problem(["vabal", *shlex.split(words, comments=True)], ROOT) is None
