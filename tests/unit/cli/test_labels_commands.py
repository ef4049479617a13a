"""The commands about labels that need no server, on a small workspace."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.support.small_backbones import small_backbone
from tests.support.small_rounds import first_round
from vabal import pools
from vabal.cli import app
from vabal.errors import UserError
from vabal.labels.names import blind_names
from vabal.workspace import Workspace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("labels")
    own = {f"backbone.{name}": value for name, value in small_backbone(folder).items()}
    labels = np.arange(60) % 3
    grey = (labels[:, None, None] * 80 + np.random.default_rng(0).integers(0, 30, (60, 8, 8))).astype(np.uint8)
    arrays = {"images": grey, "labels": labels}
    with first_round(folder, 60, {"classifier.learner": "scratch", **own}, arrays=arrays, initial=30) as begun:
        yield begun.workspace


def said(place: Workspace, *words: str) -> Any:
    done = CliRunner().invoke(app.app, ["--workspace", str(place.root), "labels", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout) if "--json" in words else done.stdout


def names_in(folder: Path) -> set[str]:
    with (folder / "requests.csv").open(newline="") as file:
        return {row["sample_id"] for row in csv.DictReader(file)}


def test_disputed_images_and_suspected_labels_are_asked_again_blindly(place: Workspace, tmp_path: Path) -> None:
    made = pools.load(place.data)
    blind = blind_names(made.catalog)
    sample = made.labeled["sample_id"].iloc[4]
    (tmp_path / "labels.csv").write_text(f"sample_id,label,annotator\n{blind[sample]},0,ada\n{sample},1,bob\n")
    assert said(place, "import", str(tmp_path / "labels.csv"), "--json")["disagreeing"] == [sample]
    told = said(place, "agreement", "--out", str(tmp_path / "disputed"), "--json")
    assert [person["name"] for person in told["people"]] == ["ada", "bob"]
    assert names_in(tmp_path / "disputed") == {blind[sample]}
    found = said(place, "suspects", "--most", "3", "--out", str(tmp_path / "suspected"), "--json")["suspects"]
    assert names_in(tmp_path / "suspected") == {blind[one["sample_id"]] for one in found}
    assert len(found) == 3


def test_the_labelled_pool_goes_out_as_an_image_folder(place: Workspace, tmp_path: Path) -> None:
    assert f"30 images, 30 with a label, in {tmp_path / 'pool'}" in said(
        place, "export", str(tmp_path / "pool"), "--labeled"
    )
    with pytest.raises(UserError, match="--labeled and --round: name one of them"):
        said(place, "export", str(tmp_path / "x"), "--labeled", "--round", "1")
    with pytest.raises(UserError, match="no round 1: there are rounds 0 to 0"):
        said(place, "export", str(tmp_path / "x"), "--round", "1")
