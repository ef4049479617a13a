"""The learning curve of the real rounds, and whether its intervals hold what they promise."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_books import Books, build, forge
from vabal.audit.curve import MEASURES, curve, intervals
from vabal.learning import metrics
from vabal.rounds import tables


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    return build(tmp_path_factory.mktemp("books"))


def test_each_round_that_trained_has_its_labels_and_what_its_manifest_measured(books: Books) -> None:
    rows = curve(books.data)
    assert [(row["round"], row["labels"], row["holdout"]) for row in rows] == [(1, 9, 6), (2, 13, 6), (3, 14, 6)]
    for row in rows:
        for name in MEASURES:
            assert row[name]["low"] <= row[name]["value"] <= row[name]["high"]
        assert row["seconds"] == 0.0


def test_a_round_that_recorded_no_predictions_keeps_its_figures_without_intervals(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    books = build(tmp_path_factory.mktemp("fewer"))
    before = curve(books.data)[1]
    (books.data / "rounds/0002/holdout_predictions.parquet").unlink()
    forge(books, 2, times=None)
    row = curve(books.data)[1]
    assert (row["holdout"], row["seconds"]) == (None, None)
    assert row["accuracy"] == {"value": before["accuracy"]["value"], "low": None, "high": None}


@pytest.mark.parametrize(("recall_C", "images_C"), [((0.8, 0.7, 0.9, 0.75), (12, 6, 3, 5)), ((0.98,) * 6, (30,) * 6)])
def test_the_intervals_hold_the_truth_as_often_as_they_say(
    recall_C: tuple[float, ...], images_C: tuple[int, ...]
) -> None:
    """Of 95 %, what 400 simulated holdouts can show; at most as much too wide as the bound of macro-F1 allows."""
    random, size = np.random.default_rng(3), len(recall_C)
    chance_C_C = np.where(np.eye(size), recall_C, ((1 - np.array(recall_C)) / (size - 1))[:, None])
    expected_C_C = chance_C_C * np.array(images_C)[:, None]
    truth = {
        "accuracy": np.trace(expected_C_C) / expected_C_C.sum(),
        "balanced_accuracy": np.mean(recall_C),
        "macro_f1": np.mean(2 * np.diag(expected_C_C) / (expected_C_C.sum(axis=0) + expected_C_C.sum(axis=1))),
    }
    held = dict.fromkeys(MEASURES, 0)
    for _ in range(400):
        drawn = np.stack([random.multinomial(count, row_C) for count, row_C in zip(images_C, chance_C_C, strict=True)])
        for name, (low, high) in intervals(drawn).items():
            held[name] += low <= truth[name] <= high
    assert all(count >= 0.92 * 400 for count in held.values()), held


def test_all_right_is_no_certainty_and_a_class_without_images_is_left_out() -> None:
    counts_C_C = np.array([[5, 0, 0], [0, 5, 0], [0, 0, 0]])[:2, :2]
    assert metrics.balanced_accuracy(counts_C_C) == 1.0
    assert intervals(counts_C_C)["balanced_accuracy"][0] < 0.8
    only_predicted = intervals(np.array([[4, 1], [0, 0]]))
    assert only_predicted["balanced_accuracy"][1] < 1.0


def test_confusions_are_those_counted_image_by_image(tmp_path: Path) -> None:
    path, random = tmp_path / "predictions.parquet", np.random.default_rng(0)
    label, predicted = (random.choice(["crack", "Ölfleck", "ok", "rare"], 500, p=[0.5, 0.3, 0.19, 0.01]) for _ in "12")
    table = pa.table({"label": [*label, None], "predicted_class": [*predicted[:-1], "only said", "ok"]})
    pq.write_table(table, path, row_group_size=7)
    names, counts_C_C = tables.read_confusions(path)
    expected: dict[tuple[str, str], int] = {}
    for pair in zip(label.tolist(), [*predicted[:-1].tolist(), "only said"], strict=True):
        expected[pair] = expected.get(pair, 0) + 1
    assert names == sorted({name for pair in expected for name in pair})
    for pair in ((one, other) for one in names for other in names):
        assert counts_C_C[names.index(pair[0]), names.index(pair[1])] == expected.get(pair, 0)


NO_NAMES = pa.array([], "string")


@pytest.mark.parametrize("columns", [{"label": ["a"]}, {"label": NO_NAMES, "predicted_class": NO_NAMES}])
def test_confusions_of_a_table_without_predictions_name_no_class(tmp_path: Path, columns: dict[str, Any]) -> None:
    pq.write_table(pa.table(columns), tmp_path / "predictions.parquet")
    names, counts_C_C = tables.read_confusions(tmp_path / "predictions.parquet")
    assert names == []
    assert counts_C_C.shape == (0, 0)
