"""Labels of the pool that are probably wrong, in a workspace whose images tell their classes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.small_backbones import small_backbone
from tests.support.small_pools import events_of, small_pools
from tests.support.small_rounds import first_round
from vabal import pools
from vabal.errors import UserError
from vabal.rounds import suspects
from vabal.workspace import Workspace

WRONG = 3


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Workspace, list[str]]]:
    """Sixty labelled images of three greys, of which three have another's label; and which these are."""
    folder = tmp_path_factory.mktemp("suspects")
    labels = np.arange(90) % 3
    noise = np.random.default_rng(0).integers(0, 30, (90, 8, 8))
    grey = (labels[:, None, None] * 80 + noise).astype(np.uint8)
    own = {f"backbone.{name}": value for name, value in small_backbone(folder).items()}
    settings = {"classifier.learner": "scratch", **own}
    with first_round(folder, 90, settings, arrays={"images": grey, "labels": labels}, initial=60) as begun:
        place = begun.workspace
        made = pools.load(place.data)
        chosen = made.labeled.iloc[::20][["sample_id", "label"]].to_numpy()[:WRONG]
        wrong = {name: str((int(label) + 1) % 3) for name, label in chosen}
        after, _ = pools.apply_labels(made, events_of(*wrong.items()), 1)
        for name in pools.save(after, folder / "after", made):
            (folder / "after" / name).replace(place.data / name)
        yield place, list(wrong)


def test_wrong_labels_are_the_least_probable_ones_whatever_the_learner(workspace: tuple[Workspace, list[str]]) -> None:
    place, wrong = workspace
    found = suspects.find(place, place.params(), WRONG)
    assert found.labels == 60
    assert sorted(one.sample_id for one in found.suspects) == sorted(wrong)
    assert all(one.probability < 0.5 and one.predicted != one.label for one in found.suspects)
    assert found.lines()[0] == f"about {found.wrong} of 60 labels are probably wrong; the least probable first:"


def test_as_many_are_told_as_confident_learning_counts(workspace: tuple[Workspace, list[str]]) -> None:
    place, wrong = workspace
    found = suspects.find(place, place.params())
    assert len(found.suspects) == found.wrong >= WRONG
    assert set(wrong) <= {one.sample_id for one in found.suspects}


def test_too_few_labels_are_told(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    pools.save(small_pools(), place.data)
    with pytest.raises(UserError, match="too few labels to doubt any"):
        suspects.find(place, None)  # type: ignore[arg-type]
