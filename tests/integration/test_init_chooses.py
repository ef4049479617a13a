"""`vabal init` without a learner's name, as people type it: what it says, what it writes, and a night with that."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from small_nights import night, without_servers
from workspaces import call, done

from vabal import rounds
from vabal.adapters.versioning import Versioning
from vabal.settings.params import load
from vabal.workspace import Workspace

SETTINGS = {
    "backbone.sizes": "[32]",
    "probabilities.members": 2,
    "vae.epochs": 1,
    "vae.min_steps": 5,
    "selection.budget": 4,
    "compute.threads": 1,
    "compute.device": "cpu",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace, whose bucket is a folder; class folders with digits lie beside it."""
    without_servers(monkeypatch)
    found = load_digits(n_class=3)
    for row in range(90):
        path = tmp_path / "parts" / f"part-{found.target[row]}" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(found.images[row] * 16, 0, 255).astype(np.uint8)).save(path)
    made = tmp_path / "work"
    (made / ".dvc").mkdir(parents=True)
    (made / ".dvc" / "config").write_text(
        f"[core]\n    remote = vabal\n['remote \"vabal\"']\n    url = {tmp_path / 'pools'}\n"
    )
    return made


def test_init_tries_learners_and_writes_settings_with_which_a_night_runs(root: Path) -> None:
    options = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    said = done(call(root, "init", "--source", "folder:../parts", "--initial", "30", *options)).out
    lines = [line.strip() for line in said.splitlines()]
    assert "trying learners on 30 labels (up to a minute on two cores; --learner NAME tries none)" in lines
    assert [line for line in lines if line.startswith("probe, 32 px, turned")]
    assert [line for line in lines if line.startswith("scratch, resnet18") and "not tried" in line]
    assert [line for line in lines if line.startswith("taken: probe, 32 px, ")]
    night_costs = re.compile(r"a night: [\d.]+ s of learning here, and the servers' share; \d+ labels asked for")
    assert any(map(night_costs.match, lines))
    assert lines[-1] == "next: vabal up"
    settings = load(root / "params.yaml")
    assert (settings.classifier.learner, settings.backbone.sizes, settings.images.size) == ("probe", [32], 8)
    assert "params.yaml: classifier.learner: probe, images.size: 8, backbone" in said

    place = Workspace(root)
    Versioning(root).push()
    night(place)
    assert rounds.head(place.data).round == 1


def test_a_learner_that_is_named_is_taken_and_nothing_tried(root: Path) -> None:
    said = done(call(root, "init", "--source", "folder:../parts", "--initial", "30", "--learner", "scratch")).out
    assert "trying" not in said
    assert load(root / "params.yaml").classifier.learner == "scratch"
