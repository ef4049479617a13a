"""Groups of images are judged as wholes: by `vabal init`'s choice, by a round's probe, by its out-of-fold predictions.

Pictures of a group show the same, and groups have labels by chance: who learns from one picture of a group knows the
label of the others, and nothing of the next group.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.small_backbones import small_backbone
from tests.support.small_rounds import first_round
from vabal import pools
from vabal.rounds import choice, night_cost, steps
from vabal.rounds.choice import LearnerChoice
from vabal.rounds.context import RoundContext, output_of, read_json
from vabal.rounds.steps import train
from vabal.settings import params as reading
from vabal.sources import InitReport
from vabal.workspace import Workspace

GROUPS, SHOTS = 15, 4
SETTINGS = {
    "classifier.learner": "probe",
    "probabilities.precision_from": "cross_fitted",
    "selection.strategy": "vabal",
    "selection.budget": 4,
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 1,
    "compute.device": "cpu",
    "compute.threads": 1,
}


def shots(*, told: bool) -> dict[str, Any]:
    """Arrays of a source: each group a smooth random picture, four times with a little noise; labels by chance."""
    draw = np.random.default_rng(3)
    images = []
    for _ in range(GROUPS):
        small = Image.fromarray(draw.integers(0, 256, (5, 5), dtype=np.uint8))
        whole = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.int64)
        images += [np.clip(whole + draw.integers(-1, 2, whole.shape), 0, 255) for _ in range(SHOTS)]
    groups_N = np.repeat(np.arange(GROUPS), SHOTS)
    arrays = {"images": np.array(images, dtype=np.uint8), "labels": groups_N % 3}
    return arrays | ({"groups": groups_N} if told else {})


@pytest.fixture(scope="module", params=["told", "near copies"])
def context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    """A round whose source tells the groups, or whose near copies are found."""
    folder = tmp_path_factory.mktemp("groups")
    told = request.param == "told"
    own = {f"backbone.{name}": value for name, value in small_backbone(folder).items()}
    near = {"pool.near_copies": 0 if told else 24}
    with first_round(folder, 60, SETTINGS | own | near, arrays=shots(told=told), initial=40) as begun:
        yield begun


def without_groups(context: RoundContext, monkeypatch: pytest.MonkeyPatch) -> RoundContext:
    """The same round, of a workspace that knows no groups."""
    place = train.with_places
    monkeypatch.setattr(train, "with_places", lambda *asked: place(*asked).drop(columns="group"))
    return replace(context)


def measured(context: RoundContext) -> dict[str, float]:
    trained = steps.train_classifier(context)
    return {name: value for name, value, _ in read_json(output_of(context, trained), "training.json")}


def test_a_probe_is_judged_by_other_groups(context: RoundContext, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = measured(context)
    together = measured(without_groups(context, monkeypatch))
    assert together["train/cross_validated_accuracy"] > 0.9  # it knows the pictures
    assert apart["train/cross_validated_accuracy"] < 0.6  # and nothing else
    assert apart["train/penalty"] > together["train/penalty"]
    assert apart["train/temperature"] > together["train/temperature"]


@pytest.mark.parametrize("learner", ["probe", "scratch"])
def test_out_of_fold_predictions_are_those_of_learners_that_saw_other_groups(
    context: RoundContext, learner: str
) -> None:
    chosen = replace(context, params=reading.changed(context.params, {"classifier.learner": learner}))
    folder = output_of(chosen, steps.train_classifier(chosen))
    ids = train.with_places(chosen, "labeled")["sample_id"]
    with np.load(folder / "cross_fit.npz") as fitted:
        folds = pd.Series(fitted["fold"]).groupby(ids.str[-4:].astype(int).to_numpy() // SHOTS)
    assert folds.size().max() == SHOTS
    assert (folds.nunique() == 1).all()


def test_init_tries_learners_on_other_groups(
    tmp_path: Path, context: RoundContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(night_cost, "measure", lambda *_, **__: night_cost.Night(0.0, 0.0))  # seconds are told only
    made = pools.load(context.workspace.data)
    given = {"backbone.sizes": [32], "backbone.views": "plain", "backbone.pixels": 0}

    def tried(known: pools.Pools) -> LearnerChoice:
        params = reading.changed(context.params, {**given, "classifier.learner": "scratch"})
        report = InitReport("npz", known, pd.DataFrame(), 0)
        return choice.choose(lambda _: None, Workspace(tmp_path), context.workspace.data, report, params, given)

    apart, together = (tried(known) for known in (made, replace(made, catalog=made.catalog.assign(group=None))))
    assert together.tried[0].balanced_accuracy > 0.9  # type: ignore[operator]
    assert apart.tried[0].balanced_accuracy < 0.6  # type: ignore[operator]
