"""`vabal classes` on a small workspace, and the night that follows."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.small_rounds import first_round, learned
from vabal import pools, rounds
from vabal.cli import app
from vabal.errors import UserError
from vabal.labels import arrivals
from vabal.rounds import requests, steps
from vabal.rounds.context import RoundContext, output_of, own_store
from vabal.rounds.steps import evaluation_folder, selection_folder

SETTINGS = {
    "classifier.learner": "scratch",
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 1,
    "vae.epochs": 1,
    "vae.min_steps": 0,
    "selection.strategy": "vabal",
    "selection.budget": 6,
    "compute.threads": 1,
    "compute.device": "cpu",
}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    labels = np.arange(60) % 3
    grey = (labels[:, None, None] * 80 + np.random.default_rng(0).integers(0, 30, (60, 8, 8))).astype(np.uint8)
    arrays = {"images": grey, "labels": labels}
    with first_round(tmp_path_factory.mktemp("classes"), 60, SETTINGS, arrays=arrays) as context:
        yield context


@pytest.fixture
def begun(fresh: RoundContext) -> Iterator[RoundContext]:
    """The first round, to which nothing has come yet."""
    yield fresh
    arrivals.remove(fresh.workspace.inbox, requests.pending(fresh.workspace))


def said(context: RoundContext, *words: str) -> Any:
    command = ["--workspace", str(context.workspace.root), *words]
    done = CliRunner().invoke(app.app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in words else done.stdout


def night_after(context: RoundContext) -> RoundContext:
    """The round that takes in what waits."""
    place = context.workspace
    opened = rounds.open_round(place, requests.pending(place), datetime(2026, 1, 2, tzinfo=UTC))
    return RoundContext(place, context.params, opened, own_store(place), steps.intake(place, opened))


def test_the_list_has_counts_and_what_waits(begun: RoundContext) -> None:
    assert said(begun, "classes").splitlines()[0].split() == ["class", "labels", "holdout"]
    said(begun, "classes", "rename", "0", "zero", "--reason", "digits have names")
    told = said(begun, "classes", "--json")
    assert [row["name"] for row in told["classes"]] == ["0", "1", "2"]
    [waiting] = told["waiting"]
    assert (waiting["action"], waiting["name"], waiting["into"]) == ("rename", "0", "zero")
    assert waiting["reason"] == "digits have names"
    assert ", user " in waiting["author"]
    assert "next round: class 0 is called zero (" in said(begun, "classes")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add", "1"), "there is a class '1' already"),
        (("add", ""), "is no class name"),
        (("rename", "9", "nine"), r"no class '9' \(classes: 0, 1, 2\)"),
        (("merge", "1", "1"), "class '1' cannot be merged with itself"),
        (("merge", "1", "2", "0"), "there is a class '0' already"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_waits(begun: RoundContext, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(UserError, match=told):
        said(begun, "classes", *words)
    assert arrivals.pending(begun.workspace.inbox) == []


def test_tonights_round_keeps_its_classes_and_the_next_has_the_new(begun: RoundContext, tmp_path: Path) -> None:
    made = pools.load(begun.workspace.data)
    first, second = made.unlabeled["sample_id"].iloc[:2]
    said(begun, "classes", "add", "three")
    said(begun, "classes", "add", "four")
    said(begun, "classes", "merge", "0", "1", "bit")
    (tmp_path / "labels.csv").write_text(f"sample_id,label,annotator\n{first},three,ada\n{second},1,ada\n")
    said(begun, "labels", "import", str(tmp_path / "labels.csv"))
    assert begun.classes == ("0", "1", "2")
    assert rounds.open_round(begun.workspace, [], datetime(2026, 1, 2, tzinfo=UTC)) == begun.round

    night = night_after(begun)
    assert night.classes == ("bit", "2", "three", "four")
    warned = "\n".join(night.report["said"])
    assert "no labelled sample yet of four: the classifier cannot know them" in warned
    assert "no holdout image of four, three: nothing measures it, and the gate does not judge it" in warned
    after = pools.load(night.view)
    assert after.labeled.set_index("sample_id")["label"][[first, second]].tolist() == ["three", "bit"]
    assert set(after.holdout["label"]) == {"bit", "2"}
    refs = learned(night)
    measured = json.loads((evaluation_folder(night, refs["evaluated"]) / "metrics.json").read_text())
    assert {name for name in measured if name.startswith("recall/")} == {"recall/bit", "recall/2"}
    assert np.isfinite(list(measured.values())).all()
    terms = json.loads((output_of(night, refs["estimated"]["terms"]) / "class_terms.json").read_text())
    assert len(terms["log_prior"]) == 4
    assert np.isfinite(terms["log_prior"]).all()
    picks = rounds.tables.read_selection(selection_folder(night, refs["selected"]) / "selection.parquet")
    assert len(picks) == 6
    assert np.isfinite(picks["score"]).all()
