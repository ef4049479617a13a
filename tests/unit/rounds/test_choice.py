"""What `vabal init` chooses for a new workspace: tried on the labels there are, told, and never against the user."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vabal import sources, strategies
from vabal.learning.backbones import Layer
from vabal.learning.probe import Embedded
from vabal.rounds import choice, night_cost
from vabal.rounds.choice import LearnerChoice
from vabal.rounds.learner import TrainingSet
from vabal.settings import params as settings_of
from vabal.settings.models import Params
from vabal.sources import InitReport
from vabal.workspace import Workspace

QUICK = {"compute.device": "cpu", "compute.threads": 1, "probabilities.members": 2, "classifier.network": "resnet10"}
SMALL = QUICK | {"classifier.width": 4}


def pool(folder: Path, *, labels: bool = True, initial: int = 30) -> InitReport:
    """Round 0 of ninety digits of three classes."""
    found = load_digits(n_class=3)
    rows = np.arange(90)
    images = np.clip(found.images[rows] * 16, 0, 255).astype(np.uint8)
    named = {"labels": found.target[rows]} if labels else {}
    np.savez(folder / "digits.npz", images=images, **named)
    source = sources.open_source(f"npz:{folder / 'digits.npz'}", classes=None if labels else ["0", "1", "2"])
    asked: dict[str, Any] = {"imbalance": None, "initial": initial, "holdout": 0.2, "seed": 0}
    return sources.build_pools(source, **asked, settings=Params(), folder=folder / "data")


def chosen(folder: Path, made: InitReport, **given: Any) -> LearnerChoice:
    settings = {**SMALL, "images.size": 8, "images.channels": 1} | given  # a source's hint, and what the user says
    known = settings_of.parse(settings_of.override({}, settings))
    return choice.choose(lambda _: None, Workspace(folder), folder / "data", made, known, given)


def test_what_is_tried_is_told_with_what_it_costs(tmp_path: Path) -> None:
    said: list[str] = []
    made = pool(tmp_path, initial=20)
    params = settings_of.parse(settings_of.override({}, SMALL | {"images.channels": 1}))
    found = choice.choose(said.append, Workspace(tmp_path), tmp_path / "data", made, params, {"backbone.sizes": []})
    assert said == ["trying learners on 20 labels (up to a minute on two cores; --learner NAME tries none)"]
    tried = [tried.learner for tried in found.tried]
    assert tried[-1] == "scratch"
    assert set(tried[:-1]) == {"probe"}
    assert len(tried) >= 4 + 3 + 1 + 2 + 1  # sizes, a second, the pixels, views, and the network from random weights
    assert found.labels == 20
    assert found.settings["classifier.learner"] == "probe"
    assert found.settings["images.size"] == 8
    best = [tried for tried in found.tried if tried.night is not None]
    assert [tried.learner for tried in best] == ["probe", "scratch"]
    assert found.why.startswith(f"probe, {best[0].sees}: ")
    assert best[0].sees.startswith(" and ".join(str(size) for size in found.settings["backbone.sizes"]))
    assert all(tried.embedding > 0 for tried in found.tried[:-1])  # type: ignore[operator]
    assert best[0].balanced_accuracy > 0.8  # type: ignore[operator]
    assert settings_of.changed(params, dict(found.settings)).backbone.sizes == found.settings["backbone.sizes"]


def test_the_clock_has_no_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pool(tmp_path)
    given = {"backbone.sizes": [32]}
    first = chosen(tmp_path, made, **given)
    moments = iter(1.5**number for number in range(2000))
    monkeypatch.setattr("time.perf_counter", lambda: next(moments))
    second = chosen(tmp_path, made, **given)
    assert first.settings == second.settings
    assert [tried.cross_entropy for tried in first.tried] == [tried.cross_entropy for tried in second.tried]
    assert [tried.embedding for tried in first.tried] != [tried.embedding for tried in second.tried]


def test_what_the_user_has_settled_stays(tmp_path: Path) -> None:
    made = pool(tmp_path)
    found = chosen(tmp_path, made, **{"backbone.sizes": [32, 48], "backbone.views": "mirrored", "images.size": 6})
    sees = "32 and 48 px, mirrored"
    assert [tried.sees for tried in found.tried[:-1]] == [sees, f"{sees}, own pixels"]
    settings = dict(found.settings)
    assert settings.pop("backbone.pixels", 6) == 6
    assert settings == {
        "classifier.learner": "probe",
        "backbone.sizes": [32, 48],
        "backbone.views": "mirrored",
    }
    found = chosen(tmp_path, made, backbone={"sizes": [32], "views": "plain", "pixels": 0})
    assert [tried.sees for tried in found.tried[:-1]] == ["32 px, plain"]


@pytest.mark.parametrize(("labels", "initial"), [(False, 30), (True, 3)])
def test_without_labels_to_judge_by_a_probe_is_taken_and_nothing_is_tried(
    tmp_path: Path, labels: bool, initial: int
) -> None:
    made = pool(tmp_path, labels=labels, initial=initial)
    found = chosen(tmp_path, made, **{"backbone.weights": "package:there-is-none"})
    assert (found.labels, found.tried) == (0, ())
    assert found.why == "probe, 32 px, plain: there are too few labels yet to try learners on"
    assert found.settings == {
        "classifier.learner": "probe",
        "images.size": 8,
        "backbone.sizes": [32],
        "backbone.views": "plain",
    }


def test_at_most_so_many_images_are_tried_on_rare_classes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_MOST_IMAGES", 12)
    made = pool(tmp_path, initial=60)
    labels = made.pools.labeled["label"].value_counts()
    assert labels.min() > 4
    found = chosen(tmp_path, made, **{"backbone.sizes": [32], "backbone.views": "plain"})
    assert found.labels == 12


def test_of_more_classes_than_two_labels_each_fit_some_are_tried_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class with one label is in no fold that it could be learned from, and its loss tells nothing."""
    monkeypatch.setattr(choice, "_MOST_IMAGES", 5)
    made = pool(tmp_path, initial=60)
    sampled = choice._Pool(Workspace(tmp_path), tmp_path / "data", made, Params(), {}).sample
    assert sorted(sampled["label"].value_counts()) == [1, 2, 2]
    monkeypatch.setattr(choice, "_MOST_IMAGES", 4)
    sampled = choice._Pool(Workspace(tmp_path), tmp_path / "data", made, Params(), {}).sample
    assert sorted(sampled["label"].value_counts()) == [2, 2]


@pytest.mark.parametrize("strategy", strategies.names())
@pytest.mark.parametrize("learner", ["probe", "scratch"])
def test_a_night_is_measured_whatever_picks(strategy: str, learner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night_cost, "_ROWS", 64)
    changes = SMALL | {"selection.strategy": strategy, "classifier.learner": learner, "classifier.epochs": 2}
    params = settings_of.parse(settings_of.override({}, changes))
    draw = np.random.default_rng(0)
    ids = [f"s{row}" for row in range(12)]
    labels_L = np.arange(12) % 3
    images = draw.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
    known = TrainingSet(images, labels_L, ids)
    if learner == "probe":
        layers = (Layer(32, 1, 4), Layer(32, 0, 4))
        known = TrainingSet(draw.normal(size=(12, 8)).astype(np.float32), labels_L, ids, Embedded({}, layers))
    night = night_cost.measure(params, known, 3, labels=12, images=500)
    assert night.training > 0
    assert night.picking > 0
    assert night.seconds == night.training + night.picking


def test_a_night_of_more_epochs_and_a_larger_pool_costs_more() -> None:
    draw = np.random.default_rng(0)
    known = TrainingSet(
        draw.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8), np.arange(12) % 3, [f"s{row}" for row in range(12)]
    )

    def measured(epochs: int, images: int) -> night_cost.Night:
        params = settings_of.parse(settings_of.override({}, SMALL | {"classifier.epochs": epochs}))
        return night_cost.measure(params, known, 3, labels=12, images=images)

    few, many = measured(2, 1000), measured(2000, 1_000_000)
    assert many.training > 50 * few.training
    assert many.picking > 50 * few.picking
