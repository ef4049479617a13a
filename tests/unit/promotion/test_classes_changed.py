"""The gate where champion and challenger were made under different lists of classes."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from tests.support.small_registry import CLASSES, HOLDOUT, Place, even, make_place
from vabal import pools
from vabal.files import file_sha256, sha256
from vabal.promotion import registered

Change = tuple[str, str, str | None]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    made = make_place(tmp_path / "workspace")
    made.publish(1, even(0.7))
    made.promote()
    return made


def change(place: Place, *changes: Change, labels: dict[str, str] | None = None) -> None:
    """What round 2 makes of the classes, and of the holdout."""
    rows = [("add", name, None, 0) for name in CLASSES] + [(*each, 2) for each in changes]
    events = pd.DataFrame(rows, columns=["action", "name", "into", "round"], dtype=object)
    events = events.assign(author="eve", reason=None, at=datetime(2026, 3, 1, tzinfo=UTC))
    table = pools.typed(events, pools.SCHEMAS["class_events"])
    pools.write_table(table, place.data / "class_events.parquet")
    now = pools.classes_at(table, ())
    (place.data / "classes.json").write_text(json.dumps(now.names))
    held = {sample: now.meaning[label] for sample, label in HOLDOUT.items()} | (labels or {})
    pd.DataFrame({"sample_id": held.keys(), "label": held.values()}).to_parquet(place.data / "holdout.parquet")


def rename_predictions(place: Place, number: int, names: dict[str, str]) -> None:
    """Round `number` predicted under these names."""
    path = place.data / f"rounds/{number:04d}/holdout_predictions.parquet"
    table = pd.read_parquet(path)
    table.replace(names).to_parquet(path)
    manifest = path.with_name("manifest.json")
    document = json.loads(manifest.read_text())
    document["files"] = {path.name: file_sha256(path)}
    manifest.write_text(json.dumps(document))


def test_a_champion_of_before_a_rename_is_compared_under_todays_names(place: Place) -> None:
    change(place, ("rename", "crack", "fracture"))
    place.publish(2, even(0.9))
    rename_predictions(place, 2, {"crack": "fracture"})
    outcome = place.promote()
    assert outcome.entry is not None
    decision = outcome.entry.decision or {}
    assert decision["champion"]["recall/fracture"] == pytest.approx(0.7)
    assert decision["challenger"]["recall/fracture"] == pytest.approx(0.9)
    assert not any("crack" in name for name in decision["champion"])


def test_what_a_champion_said_of_two_merged_classes_counts_as_the_one_they_became(place: Place) -> None:
    change(place, ("merge", "crack", "dust"))
    place.publish(2, even(0.9))
    rename_predictions(place, 2, {"crack": "dust"})
    outcome = place.promote()
    assert outcome.entry is not None
    decision = outcome.entry.decision or {}
    assert decision["champion"]["recall/dust"] == pytest.approx(0.85)  # a crack taken for dust is no mistake any more
    assert decision["challenger"]["recall/dust"] == pytest.approx(0.95)
    assert {name for name in decision["champion"] if name.startswith("recall/")} == {"recall/dust", "recall/good"}


def test_a_class_without_a_holdout_image_is_not_judged_and_said_so(place: Place) -> None:
    change(place, ("add", "dent", None))
    place.publish(2, even(0.9))
    outcome = place.promote()
    assert "not judged, for fewer than 6 holdout images: dent (0 holdout images)" in outcome.message


def test_a_champion_that_is_older_than_a_class_is_wrong_where_it_should_answer_it(place: Place) -> None:
    dents = dict.fromkeys([f"h{index:03d}" for index in range(0, 120, 3)], "dent")  # cracks until then
    change(place, ("add", "dent", None), labels=dents)
    place.publish(2, even(0.7))
    path = place.data / "rounds/0002/holdout_predictions.parquet"
    table = pd.read_parquet(path)
    known = table["sample_id"].isin(dents) & (table["predicted_class"] == "crack")
    table.loc[known, "predicted_class"] = "dent"
    table.to_parquet(path)
    rename_predictions(place, 2, {})
    outcome = place.promote()
    assert outcome.entry is not None
    reasons = (outcome.entry.decision or {})["reasons"]
    [told] = [check["text"] for check in reasons if check["name"] == "recall_drop/dent"]
    assert told.startswith("recall of dent 0.0000 -> ")
    assert told.endswith("(the champion is older than the class)")


def test_a_version_that_recorded_its_weights_alone_has_the_classes_of_its_round(place: Place) -> None:
    place.publish(2, even(0.9))
    manifest = place.data / "rounds/0001/manifest.json"
    document = json.loads(manifest.read_text())
    document["settings"] = {"images": {"size": 8, "channels": 1}}
    del document["model"]["files"]
    manifest.write_text(json.dumps(document))
    version = place.registry.versions["1"]
    about = registered.classes_json(CLASSES, 8, 1, version.weights_sha256)
    change(place, ("rename", "crack", "fracture"))
    allowed = registered._allowed(place.data, version, {})
    assert allowed["artifacts/classes.json"] == {sha256(about)}
