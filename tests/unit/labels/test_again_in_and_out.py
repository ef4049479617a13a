"""Images that are asked about again go out like others, and come back as one more opinion."""

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.label_files import imported, taken
from tests.support.small_pools import catalog_of, small_pools
from vabal import images, pools
from vabal.images.shards import png
from vabal.labels import arrivals, export, sync
from vabal.labels.names import blind_names
from vabal.labels.sync import Known
from vabal.pools import Pools
from vabal.settings.models import PoolSettings


@pytest.fixture
def made(tmp_path: Path) -> Pools:
    """Image a, which ann calls cat, is asked about again by round 3."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    images.write_shards([("a", png(pixels))], tmp_path / "data" / "images", settings=PoolSettings(), name_prefix="pool")
    before = small_pools()
    events = before.label_events.iloc[:1].assign(label="cat", annotator="ann")
    before = small_pools(
        catalog=catalog_of(["a"]),
        labeled=before.labeled.iloc[:1].assign(label="cat", annotator="ann"),
        unlabeled=before.unlabeled.iloc[:0],
        holdout=before.holdout.iloc[:0],
        label_events=events,
    )
    return pools.ask_again(before, pd.DataFrame({"sample_id": ["a"], "reason": ["suspected"]}, dtype="str"), 3)


def exported(made: Pools, folder: Path, inbox: Path | None = None) -> list[dict[str, str]]:
    report = export.export_requests(made, folder.parent / "data", folder, inbox)
    if not report.requests:
        return []
    assert report.lines()[0].startswith("1 requests (1 asked about again)")
    with (folder / "requests.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_an_image_that_is_asked_about_again_goes_out_blind_and_says_nothing_of_its_label(
    made: Pools, tmp_path: Path
) -> None:
    [row] = exported(made, tmp_path / "out")
    name = blind_names(made.catalog)["a"]
    assert row == {"sample_id": name, "label": "", "annotator": "", "image": f"images/{name}.png", "round": "3"}
    assert (tmp_path / "out" / row["image"]).is_file()


def test_the_same_person_may_say_the_same_again_where_just_that_is_asked(made: Pools, tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    earlier = imported(box, "sample_id,label,annotator,round\na,cat,ann,1\n", made=made)
    assert (earlier.name, earlier.repeated) == (None, 1)  # the file that was answered first, again
    report = imported(box, "sample_id,label,annotator,round\na,cat,ann,3\n", made=made)
    assert (report.labels, report.repeated, report.changed) == (1, 0, ())
    assert taken(box) == [("a", "cat", "ann")]
    assert exported(made, tmp_path / "rest", box) == []
    grown = imported(box, "sample_id,label,annotator,round\n\na,cat,ann,3\n", made=made)
    assert (grown.name, grown.repeated) == (None, 1)  # once


@pytest.mark.parametrize("told", ["", "x", "-3", "٣", "3.0", "99999999999999999999"])
def test_what_is_no_round_answers_none(made: Pools, tmp_path: Path, told: str) -> None:
    report = imported(tmp_path / "inbox", f"sample_id,label,annotator,round\na,cat,ann,{told}\n", made=made)
    assert (report.name, report.repeated) == (None, 1)


def test_another_persons_opinion_answers_without_a_round(made: Pools, tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    assert imported(box, "a,dog,bob\n", made=made).changed == (("a", "cat", "dog"),)
    events, _ = arrivals.read(box, arrivals.pending(box))
    after, _ = pools.apply_labels(made, events, 4)
    assert pools.open_requests(after).empty
    assert len(after.label_events) == 2  # the first opinion is kept


class Desk:
    """A server that has these tasks."""

    place = "desk"

    def __init__(self, *tasks: tuple[int, int]) -> None:
        self.tasks = tasks

    def known(self, names: list[str], *, whole: bool = False) -> list[Known]:
        return [Known(number, names[0], asked, {}) for number, asked in self.tasks]

    def lost(self, tasks: list[Known]) -> list[str]:
        return []


@pytest.mark.parametrize(("tasks", "missing"), [((), ["a"]), (((1, 1),), ["a"]), (((1, 1), (2, 3)), [])])
def test_asking_again_takes_a_task_of_its_own(
    made: Pools, tmp_path: Path, tasks: tuple[tuple[int, int], ...], missing: list[str]
) -> None:
    (tmp_path / "inbox").mkdir()
    found = sync.compare(tmp_path / "inbox", made, Desk(*tasks))  # type: ignore[arg-type]
    assert found.missing["sample_id"].tolist() == missing
    assert found.twice == []
