import base64
import csv
import hashlib
import io
import json
import multiprocessing
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from tests.support.label_files import FORMATS, Given, annotation, exported, imported, stand, taken, task
from tests.support.small_pools import WHEN, catalog_of, events_of, file_of, picture, small_pools
from vabal import images, pools
from vabal.errors import UserError
from vabal.labels import answers as labels_answers
from vabal.labels import arrivals as labels_arrivals
from vabal.labels import export, inbox, oracle
from vabal.labels.names import blind_names
from vabal.pools import Pools
from vabal.settings.models import ImageSettings, Params, PoolSettings
from vabal.sources import ingestion
from vabal.workspace import Workspace

PARAMS = Params()


# --- labels in --------------------------------------------------------------------------------------------------------


def test_a_filled_in_file_becomes_events_with_annotator_time_and_origin(tmp_path: Path) -> None:
    report = imported(tmp_path / "inbox", "sample_id,label,annotator\nb,cat,ann\nc,,bob\n")
    digest = hashlib.sha256(b"sample_id,label,annotator\nb,cat,ann\nc,,bob\n").hexdigest()
    assert report.name == f"labels/000001-{digest[:8]}.parquet"
    assert (report.labels, report.rejections, report.unanswered) == (1, 1, 0)
    events, arrivals = labels_arrivals.read(tmp_path / "inbox", [report.name])
    assert arrivals == []
    assert taken(tmp_path / "inbox") == [("b", "cat", "ann"), ("c", None, "bob")]
    assert events["labeled_at"].tolist() == [WHEN, WHEN]
    assert set(events["source"]) == {f"labels.csv#{digest[:16]}"}


@pytest.mark.parametrize(
    "content",
    [
        b"sample_id,label,annotator\r\nb,cat,ann\r\nc,dog,ann\r\n",
        b"\xef\xbb\xbfsample_id,label,annotator\nb,cat,ann\nc,dog,ann\n",
        "sample_id\tlabel\tannotator\nb\tcat\tann\nc\tdog\tann\n".encode("utf-16"),
        b"Label;Annotator;Sample_ID\ncat;ann;b\ndog;ann;c\n",
        b"b,cat,ann\nc,dog,ann",
        b'sample_id,label,annotator,image\n" b ","cat",ann,images/b.png\n\nc,dog,ann,images/c.png\n',
    ],
    ids=["excel", "byte-order mark", "utf-16", "semicolons, other order", "no header", "further columns"],
)
def test_csv_is_read_as_spreadsheets_write_it(tmp_path: Path, content: bytes) -> None:
    imported(tmp_path / "inbox", content)
    assert taken(tmp_path / "inbox") == [("b", "cat", "ann"), ("c", "dog", "ann")]


def test_a_line_that_nobody_touched_is_not_a_rejection(tmp_path: Path) -> None:
    report = imported(tmp_path / "inbox", "sample_id,label,annotator\nb,cat,ann\nc,,\n")
    assert (report.labels, report.rejections, report.unanswered) == (1, 0, 1)
    assert taken(tmp_path / "inbox") == [("b", "cat", "ann")]
    assert "1 without a label or an annotator: not answered yet" in report.lines()


def test_a_file_without_a_single_answer_takes_nothing_in(tmp_path: Path) -> None:
    report = imported(tmp_path / "inbox", "sample_id,label,annotator\nb,,\nc,,\n")
    assert report.name is None
    assert labels_arrivals.pending(tmp_path / "inbox") == []


def test_a_label_without_an_annotator_is_taken_from_somebody_unknown(tmp_path: Path) -> None:
    imported(tmp_path / "inbox", "sample_id,label\nb,cat\n")
    assert taken(tmp_path / "inbox") == [("b", "cat", "unknown")]


def test_a_label_outside_the_class_list_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing was taken in, 1 of 2 lines are wrong: line 3: label 'bird' is no"):
        imported(tmp_path / "inbox", "sample_id,label,annotator\nb,cat,ann\nc,bird,ann\n")
    assert labels_arrivals.pending(tmp_path / "inbox") == []


def test_every_wrong_line_is_told_and_beyond_ten_they_are_counted(tmp_path: Path) -> None:
    lines = ["sample_id,label,annotator", "zebra,cat,ann", "b,bird,ann", "b,cat,ann,x,y", ",cat,ann"]
    lines += [f"stranger{number},dog,ann" for number in range(9)]
    with pytest.raises(UserError) as error:
        imported(tmp_path / "inbox", "\n".join(lines))
    text = str(error.value)
    assert "13 of 13 lines are wrong" in text
    for said in ("line 2: unknown sample 'zebra'", "line 3: label 'bird'", "line 4: 5 cells instead of 3", "line 5: "):
        assert said in text
    assert text.count("line ") == 10
    assert "and 3 more" in text
    assert "classes: cat, dog" in text
    assert "\n" not in text
    assert not (tmp_path / "inbox" / "labels").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no labels in it"),
        (b"sample_id,label,annotator\n", "no labels in it"),
        (b"sample_id,annotator\nb,ann\n", "no column label"),
        (b"id,label\nb,cat\n", "no column sample_id"),
        (b"just some text\n", "must name the columns"),
        (b"\xff\xd8\xff\xe0 a photograph", "not a text file in UTF-8"),
        (b'{"tasks": []}', "line 1: no file_name"),
        (b"[{]", "not valid JSON"),
        (b"[]", "no labels in it"),
    ],
)
def test_a_file_that_is_no_labels_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        imported(tmp_path / "inbox", content)
    assert labels_arrivals.pending(tmp_path / "inbox") == []


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        labels_answers.import_labels(tmp_path / "inbox", small_pools(), tmp_path / "none.csv", WHEN)


def test_the_very_same_file_twice_is_harmless_and_said(tmp_path: Path) -> None:
    text = "sample_id,label,annotator\nb,cat,ann\n"
    imported(tmp_path / "inbox", text)
    again = imported(tmp_path / "inbox", text, "other-name.csv")
    assert again.imported_before
    assert "imported before" in again.lines()[0]
    assert len(labels_arrivals.pending(tmp_path / "inbox")) == 1
    events, _ = labels_arrivals.read(tmp_path / "inbox", labels_arrivals.pending(tmp_path / "inbox"))
    after, _ = pools.apply_labels(small_pools(), events, 2)
    labels_arrivals.remove(tmp_path / "inbox", labels_arrivals.pending(tmp_path / "inbox"))
    assert imported(tmp_path / "inbox", text, made=after).imported_before
    assert labels_arrivals.pending(tmp_path / "inbox") == []


def test_files_are_read_in_the_order_they_came_so_that_the_later_corrects(tmp_path: Path) -> None:
    for label in ("cat", "dog", "cat"):
        imported(tmp_path / "inbox", f"sample_id,label,annotator\nb,{label},{label}{len(taken_names(tmp_path))}\n")
    names = labels_arrivals.pending(tmp_path / "inbox")
    assert [name[:13] for name in names] == ["labels/000001", "labels/000002", "labels/000003"]
    events, _ = labels_arrivals.read(tmp_path / "inbox", names[::-1])
    assert events["label"].tolist() == ["cat", "dog", "cat"]


def taken_names(folder: Path) -> list[str]:
    return labels_arrivals.pending(folder / "inbox")


def test_what_is_taken_out_is_gone_and_taking_it_out_again_is_no_error(tmp_path: Path) -> None:
    imported(tmp_path / "inbox", "b,cat,ann\n")
    names = labels_arrivals.pending(tmp_path / "inbox")
    for _ in range(2):
        labels_arrivals.remove(tmp_path / "inbox", names)
        assert labels_arrivals.pending(tmp_path / "inbox") == []
    with pytest.raises(UserError, match="is missing"):
        labels_arrivals.read(tmp_path / "inbox", names)


def test_an_empty_inbox_has_no_events(tmp_path: Path) -> None:
    events, arrivals = labels_arrivals.read(tmp_path / "nowhere", labels_arrivals.pending(tmp_path / "nowhere"))
    assert (len(events), arrivals) == (0, [])
    assert list(events.columns) == pools.EVENTS.names


def import_one(box: Path, number: int) -> None:
    content = f"b,cat,ann{number}\n".encode()
    answers = labels_answers.read_answers(content, "x.csv")
    inbox.take_labels(box, small_pools(), answers, file="x.csv", content=content, when=WHEN)


def test_imports_at_the_same_time_get_numbers_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=import_one, args=(tmp_path / "inbox", number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [name[7:13] for name in taken_names(tmp_path)] == ["000001", "000002", "000003", "000004"]


# --- Label Studio -----------------------------------------------------------------------------------------------------


def test_label_studios_export_is_read(tmp_path: Path) -> None:
    tasks = [
        task("b", annotation("cat", person={"id": 3, "email": "ann@example.org"})),
        task("c", annotation(skipped=True)),
        task("a"),
        task("d", annotation()),
    ]
    report = imported(tmp_path / "inbox", json.dumps(tasks), "export.json")
    assert (report.labels, report.rejections, report.unanswered) == (1, 1, 2)
    assert taken(tmp_path / "inbox") == [("b", "cat", "ann@example.org"), ("c", None, "label-studio-7")]


def test_of_several_annotations_the_latest_counts_and_a_skip_yields_to_a_label(tmp_path: Path) -> None:
    tasks = [
        task("b", annotation("dog", at="2024-01-03T00:00:00Z"), annotation("cat", at="2024-01-02T00:00:00Z")),
        task("c", annotation("cat"), annotation(skipped=True, at="2024-02-01T00:00:00Z")),
    ]
    imported(tmp_path / "inbox", json.dumps(tasks), "export.json")
    assert [pair[:2] for pair in taken(tmp_path / "inbox")] == [("b", "cat"), ("b", "dog"), ("c", "cat")]


def test_label_studios_short_export_is_read(tmp_path: Path) -> None:
    tasks = [
        {"id": 1, "image": "data:", "sample_id": "b", "label": "cat", "annotator": 2},
        {"id": 2, "image": "data:", "sample_id": "c", "annotator": 2},
    ]
    report = imported(tmp_path / "inbox", json.dumps(tasks), "export.json")
    assert taken(tmp_path / "inbox") == [("b", "cat", "label-studio-2")]
    assert report.unanswered == 1


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ([task("b", annotation("cat", "dog"))], "task 1: 2 choices where one is expected"),
        ([task("b"), {"data": {"image": "x"}, "annotations": []}], "task 2: no data.sample_id"),
        (["text"], "task 1: not a task"),
        ([{"image": "x"}], "task 1: no sample_id"),
        ([{"sample_id": "b", "label": {"choices": ["cat", "dog"]}}], "task 1: 2 choices where one is expected"),
        ([task("b", annotation("bird"))], "task 1: label 'bird'"),
    ],
)
def test_a_wrong_task_refuses_the_whole_export(tmp_path: Path, tasks: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        imported(tmp_path / "inbox", json.dumps(tasks), "export.json")
    assert labels_arrivals.pending(tmp_path / "inbox") == []


@pytest.mark.parametrize("form", FORMATS)
def test_all_formats_of_one_project_give_the_same_labels(tmp_path: Path, form: str) -> None:
    ann = {"id": 3, "email": "ann@example.org"}
    given: list[Given] = [
        ("b", "dog", "2024-01-03T10:00:00+02:00", ann, False),
        ("b", "cat", "2024-01-03T09:00:00Z", 7, False),  # an hour later, though its hour is the smaller
        ("c", "dog", "2024-01-01T00:00:00", 7, False),
        ("c", None, "2024-01-02T00:00:00Z", 8, True),
        ("a", None, "2024-01-02T00:00:00Z", 8, False),  # another control was answered, not ours
    ]
    report = imported(tmp_path / "inbox", exported(form, *given), f"export.{form}")
    assert (report.labels, report.rejections, report.images, report.disagreeing) == (3, 0, 2, ("b",))
    assert sorted(taken(tmp_path / "inbox"), key=lambda row: row[0]) == [
        ("b", "dog", "ann@example.org"),
        ("b", "cat", "label-studio-7"),
        ("c", "dog", "label-studio-7"),
    ]
    events, _ = labels_arrivals.read(tmp_path / "inbox", labels_arrivals.pending(tmp_path / "inbox"))
    assert [time.isoformat() for time in events.sort_values("sample_id", kind="stable")["labeled_at"]] == [
        "2024-01-03T08:00:00+00:00",
        "2024-01-03T09:00:00+00:00",
        "2024-01-01T00:00:00+00:00",
    ]
    assert set(events["imported_at"]) == {WHEN}
    assert stand(tmp_path / "inbox") == {"a": "cat", "b": "cat", "c": "dog", "d": "dog"}


def test_two_labels_of_one_person_in_one_file_without_times_are_told(tmp_path: Path) -> None:
    report = imported(tmp_path / "inbox", "sample_id,label\nb,cat\nc,cat\nb,dog\n", "twice.csv")
    assert report.disagreeing == ("b",)
    assert stand(tmp_path / "inbox")["b"] == "dog"


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_that_repeats_an_old_opinion_undoes_no_correction(tmp_path: Path, form: str) -> None:
    old: Given = ("b", "cat", "2024-01-01T00:00:00Z", 7, False)
    imported(tmp_path / "inbox", exported("json", old), "first.json")
    report = imported(tmp_path / "inbox", "sample_id,label,annotator\nb,dog,bob\n", "correction.csv")
    assert report.changed == (("b", "cat", "dog"),)
    assert "1 earlier labels change: b cat -> dog" in report.lines()
    assert "1 images have opinions that disagree: b" in report.lines()
    again = imported(
        tmp_path / "inbox", exported(form, old, ("c", "cat", "2024-02-01T00:00:00Z", 7, False)), f"second.{form}"
    )
    assert (again.labels, again.repeated, again.changed) == (1, 1, ())
    late = imported(tmp_path / "inbox", exported(form, ("b", "cat", "2024-01-02T00:00:00Z", 9, False)), f"third.{form}")
    assert (late.labels, late.changed, late.outdated) == (1, (), ("b",))
    assert "1 images keep a newer opinion than the file's: b" in late.lines()
    assert stand(tmp_path / "inbox")["b"] == "dog"


def test_a_csv_that_comes_back_with_more_lines_undoes_no_correction(tmp_path: Path) -> None:
    imported(tmp_path / "inbox", "sample_id,label,annotator\nb,cat,ann\n")
    imported(tmp_path / "inbox", "sample_id,label,annotator\nb,dog,bob\n")
    report = imported(tmp_path / "inbox", "sample_id,label,annotator\nb,cat,ann\nc,cat,ann\n")
    assert (report.labels, report.repeated, report.changed) == (1, 1, ())
    assert stand(tmp_path / "inbox")["b"] == "dog"
    assert imported(tmp_path / "inbox", "sample_id,label,annotator\nb,dog,ann\n").labels == 1
    assert imported(tmp_path / "inbox", "b,cat,ann\n").changed == (("b", "dog", "cat"),)


def test_the_times_of_a_csv_are_the_times_of_its_opinions(tmp_path: Path) -> None:
    imported(tmp_path / "inbox", "sample_id,label,annotator,labeled_at\nb,cat,ann,2024-03-01 10:00\n")
    imported(tmp_path / "inbox", "sample_id,label,annotator,updated_at\nb,dog,bob,2024-02-01T10:00:00Z\n")
    assert stand(tmp_path / "inbox")["b"] == "cat"
    with pytest.raises(UserError, match="line 2: 'soon' is no time as 2026-01-31T09:30:00Z"):
        imported(tmp_path / "inbox", "sample_id,label,annotator,labeled_at\nb,cat,ann,soon\n")


def test_an_opinion_is_no_younger_than_its_import(tmp_path: Path) -> None:
    imported(tmp_path / "inbox", exported("json", ("b", "cat", "2099-01-01T00:00:00Z", 7, False)), "e.json")
    imported(tmp_path / "inbox", "sample_id,label,annotator\nb,dog,bob\n")
    assert stand(tmp_path / "inbox")["b"] == "dog"


def test_a_task_that_came_twice_is_skipped_only_where_it_has_no_label(tmp_path: Path) -> None:
    tasks = [task("b", annotation(skipped=True, at="2024-02-01T00:00:00Z")), task("b", annotation("cat"))]
    imported(tmp_path / "inbox", json.dumps(tasks), "export.json")
    assert taken(tmp_path / "inbox") == [("b", "cat", "label-studio-7")]


def test_choices_that_are_all_another_controls_are_told(tmp_path: Path) -> None:
    item = annotation("cat")
    item["result"][0]["from_name"] = "animal"
    with pytest.raises(UserError, match=r"its choices are named animal, not label: .*label_config\.xml"):
        imported(tmp_path / "inbox", json.dumps([task("b", item)]), "export.json")


def test_skipped_is_skipped_in_every_format_that_tells(tmp_path: Path) -> None:
    short = {"annotation_id": 1, "annotator": 2, "sample_id": "b", "was_cancelled": True}
    text = "annotation_id,annotator,sample_id,label,was_cancelled\n1,2,b,,True\n2,2,c,cat,False\n"
    for number, content in enumerate((json.dumps([short, {**short, "sample_id": "c", "label": "cat"} | OTHER]), text)):
        box = tmp_path / str(number) / "inbox"
        box.parent.mkdir()
        imported(box, content)
        assert taken(box) == [("b", None, "label-studio-2"), ("c", "cat", "label-studio-2")]


OTHER = {"annotation_id": 2, "was_cancelled": False}


def test_a_file_that_rejects_most_of_its_images_is_taken_in_only_if_that_is_meant(tmp_path: Path) -> None:
    text = "sample_id,label,annotator\na,,ann\nb,,ann\nc,cat,ann\n"
    with pytest.raises(UserError, match=r"rejects 2 of the 3 images that it names .* --reject") as caught:
        imported(tmp_path / "inbox", text)
    assert "\n" not in str(caught.value)
    assert labels_arrivals.pending(tmp_path / "inbox") == []
    file = tmp_path / "labels.csv"
    report = labels_answers.import_labels(tmp_path / "inbox", small_pools(), file, WHEN, reject=True)
    assert (report.labels, report.rejections) == (1, 2)
    assert report.changed == (("a", "cat", None),)


# --- requests out -----------------------------------------------------------------------------------------------------


def requested(tmp_path: Path, *ids: str) -> Pools:
    """Pools of which these samples are asked for, their images in a shard."""
    items = [(name, file_of(picture(number, 20, 30))) for number, name in enumerate(["a", *ids])]
    images.write_shards(items, tmp_path / "data" / "images", settings=PoolSettings(), name_prefix="pool")
    waiting = pd.DataFrame({"sample_id": list(ids), "status": "requested", "requested_round": 1})
    made = small_pools()
    return small_pools(
        catalog=catalog_of(["a", *ids]),
        unlabeled=waiting,
        holdout=made.holdout.iloc[:0],
        label_events=made.label_events.iloc[:1],
    )


def test_requests_go_out_as_images_and_a_file_to_fill_in(tmp_path: Path) -> None:
    made = requested(tmp_path, "b", "c/../x", "C", "c")
    pools.check(made)
    report = export.export_requests(made, tmp_path / "data", tmp_path / "out" / "requests")
    folder = tmp_path / "out" / "requests"
    assert (report.requests, report.holdout) == (4, 0)
    with (folder / "requests.csv").open(newline="") as file:
        rows = {row["sample_id"]: row for row in csv.DictReader(file)}
    blind = blind_names(made.catalog)
    assert list(rows) == sorted(blind[name] for name in ("C", "b", "c", "c/../x"))
    assert all(row["label"] == row["annotator"] == "" for row in rows.values())
    for number, name in enumerate(["b", "c/../x", "C", "c"], start=1):
        path = (folder / rows[blind[name]]["image"]).resolve()
        assert path.parent == (folder / "images").resolve()
        assert path.read_bytes() == file_of(picture(number, 20, 30))
    assert len({row["image"].lower() for row in rows.values()}) == 4
    assert "not answered yet" in (folder / "README.txt").read_text()


def test_label_studios_tasks_carry_their_images_and_the_choices_are_the_classes(tmp_path: Path) -> None:
    made = requested(tmp_path, "b")
    made = Pools(**{**vars(made), "classes": ("cat", 'a <"odd"> & name')})
    export.export_requests(made, tmp_path / "data", tmp_path / "out")
    [content] = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert content["data"]["sample_id"] == blind_names(made.catalog)["b"]
    head, _, body = content["data"]["image"].partition(",")
    assert head == "data:image/png;base64"
    assert images.probe(base64.b64decode(body), ImageSettings()) == (240, 160)
    config = ET.parse(tmp_path / "out" / "label_config.xml")  # noqa: S314
    assert [choice.get("value") for choice in config.iter("Choice")] == ["cat", 'a <"odd"> & name']


def test_an_export_that_is_filled_in_comes_back_as_labels(tmp_path: Path) -> None:
    made = requested(tmp_path, "b", "c")
    export.export_requests(made, tmp_path / "data", tmp_path / "out")
    place = Workspace(tmp_path)
    pools.save(made, place.data)
    (place.state / "oracle.csv").write_text("sample_id,label\nc,dog\nz,cat\n")
    assert oracle.answer(tmp_path / "out" / "requests.csv", place) == 1
    assert oracle.answer(tmp_path / "out" / "requests.csv", place, "again") == 0
    report = labels_answers.import_labels(tmp_path / "inbox", made, tmp_path / "out" / "requests.csv", WHEN)
    assert (report.labels, report.unanswered) == (1, 1)
    assert taken(tmp_path / "inbox") == [("c", "dog", "oracle")]
    export.export_requests(made, tmp_path / "data", tmp_path / "rest", inbox=tmp_path / "inbox")
    with (tmp_path / "rest" / "requests.csv").open(newline="") as file:
        assert [row["sample_id"] for row in csv.DictReader(file)] == [blind_names(made.catalog)["b"]]


def test_nothing_is_written_over_and_nothing_where_nothing_is_asked(tmp_path: Path) -> None:
    made = requested(tmp_path, "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        export.export_requests(made, tmp_path / "data", tmp_path / "full")
    with pytest.raises(UserError, match="not an empty folder"):
        export.export_requests(made, tmp_path / "data", tmp_path / "full" / "mine.txt")
    (tmp_path / "empty").mkdir()
    export.export_requests(made, tmp_path / "data", tmp_path / "empty")
    assert (tmp_path / "empty" / "requests.csv").exists()
    done, _ = pools.apply_labels(made, events_of(("b", "cat")), 2)
    report = export.export_requests(done, tmp_path / "data", tmp_path / "none")
    assert report.lines() == ["no open requests: nothing to label"]
    assert not (tmp_path / "none").exists()


def test_an_export_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = requested(tmp_path, "b")
    (tmp_path / "data" / "images" / "pool-0000.parquet").unlink()
    with pytest.raises(UserError, match="is missing"):
        export.export_requests(made, tmp_path / "data", tmp_path / "out" / "requests")
    assert list((tmp_path / "out").iterdir()) == []


# --- images in --------------------------------------------------------------------------------------------------------


def ingest(tmp_path: Path, path: Path, made: Pools | None = None) -> ingestion.IngestReport:
    return ingestion.ingest(
        tmp_path / "inbox", made or small_pools(), path, PARAMS, quarantine=tmp_path / "quarantine", when=WHEN
    )


def new_folder(root: Path, *names: str, start: int = 0) -> Path:
    for number, name in enumerate(names, start=start):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file_of(picture(number)))
    return root


def test_a_folder_of_images_waits_in_the_inbox_with_catalog_and_shards(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "cam", "x.png", "night/y.png")
    report = ingest(tmp_path, folder)
    assert report.sample_ids == ("night-y", "x")
    assert report.name == labels_arrivals.pending(tmp_path / "inbox")[0]
    _, [arrival] = labels_arrivals.read(tmp_path / "inbox", labels_arrivals.pending(tmp_path / "inbox"))
    row = arrival.catalog.iloc[1]
    assert (row["sample_id"], row["width"], row["row"]) == ("x", 8, 1)
    assert images.encoded(arrival.shards.parent, row["shard"], 1) == (folder / "x.png").read_bytes()
    assert row["sha256"] == hashlib.sha256((folder / "x.png").read_bytes()).hexdigest()
    after, _ = pools.apply_images(small_pools(), arrival.catalog, 2)
    pools.check(after)


def test_shards_are_named_for_their_content(tmp_path: Path) -> None:
    names = set()
    for place in ("one", "two"):
        root = tmp_path / place
        ingest(root, new_folder(root / "cam", "x.png", "y.png"))
        _, [arrival] = labels_arrivals.read(root / "inbox", labels_arrivals.pending(root / "inbox"))
        names |= {path.name for path in arrival.shards.iterdir()}
    assert len(names) == 1
    report = ingest(tmp_path / "one", new_folder(tmp_path / "one" / "more", "x.png", start=50))
    _, [_, arrival] = labels_arrivals.read(
        tmp_path / "one" / "inbox", labels_arrivals.pending(tmp_path / "one" / "inbox")
    )
    assert {path.name for path in arrival.shards.iterdir()}.isdisjoint(names)
    assert report.sample_ids[0].startswith("x-")


def test_content_that_the_pool_or_the_inbox_has_is_left_out_and_told(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "cam", "x.png", "y.png")
    sha256 = hashlib.sha256((folder / "x.png").read_bytes()).hexdigest()
    catalog = catalog_of(["a", "b", "c", "d"])
    catalog.loc[0, "sha256"] = sha256
    report = ingest(tmp_path, folder, small_pools(catalog=catalog))
    assert (report.sample_ids, report.duplicates) == (("y",), (str(folder / "x.png"),))
    again = ingest(tmp_path, folder, small_pools(catalog=catalog))
    assert (again.name, len(again.duplicates)) == (None, 2)
    assert len(labels_arrivals.pending(tmp_path / "inbox")) == 1


def test_files_that_cannot_be_read_are_set_aside_and_the_others_come_in(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "cam", "x.png")
    (folder / "cut.png").write_bytes(file_of(picture(3, 64, 64))[:-500])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"text")
    report = ingest(tmp_path, folder)
    assert report.sample_ids == ("x",)
    assert {Path(path).name for path, _ in report.unreadable} == {"cut.png", "empty.jpg", "notes.txt"}
    assert (tmp_path / "quarantine" / "quarantine.csv").exists()
    assert any("3 unreadable" in line for line in report.lines())


def test_nothing_but_unreadable_files_takes_nothing_in(tmp_path: Path) -> None:
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "a.png").write_bytes(b"no image")
    report = ingest(tmp_path, tmp_path / "cam")
    assert report.name is None
    assert report.lines()[0] == f"0 new images from {tmp_path / 'cam'}"
    assert list((tmp_path / "inbox" / "images").iterdir()) == []


def test_single_files_and_arrays_come_in_as_well(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "cam", "b.png")
    report = ingest(tmp_path, folder / "b.png")
    assert report.sample_ids[0].startswith("b-")  # b is taken
    np.savez(tmp_path / "more.npz", images=np.stack([picture(8), picture(9)]), labels=[0, 1])
    assert ingest(tmp_path, tmp_path / "more.npz").sample_ids == ("more-0000", "more-0001")
    assert [name[:13] for name in labels_arrivals.pending(tmp_path / "inbox")] == ["images/000001", "images/000002"]


@pytest.mark.parametrize(("name", "said"), [("nowhere", "no such file or folder"), ("empty", "no files")])
def test_a_path_with_nothing_in_it_is_refused(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=said):
        ingest(tmp_path, tmp_path / name)


def test_what_a_killed_ingestion_left_is_cleared_away_and_never_read(tmp_path: Path) -> None:
    left = tmp_path / "inbox" / "images" / ("." + "0f" * 16 + ".tmp")
    (left / "images").mkdir(parents=True)
    (left / "images" / "new-0000.parquet").write_bytes(b"half")
    assert labels_arrivals.pending(tmp_path / "inbox") == []
    ingest(tmp_path, new_folder(tmp_path / "cam", "x.png"))
    assert not left.exists()


def test_labels_and_images_wait_in_one_order_and_a_waiting_image_can_be_labelled(tmp_path: Path) -> None:
    ingest(tmp_path, new_folder(tmp_path / "cam", "x.png"))
    imported(tmp_path / "inbox", "sample_id,label,annotator\nx,dog,ann\n")
    names = labels_arrivals.pending(tmp_path / "inbox")
    assert [name[:13] for name in names] == ["images/000001", "labels/000002"]
    events, [arrival] = labels_arrivals.read(tmp_path / "inbox", names)
    after, _ = pools.apply_images(small_pools(), arrival.catalog, 2)
    after, report = pools.apply_labels(after, events, 2)
    pools.check(after)
    assert report.new == 1
    assert "x" in set(after.labeled["sample_id"])


def test_reports_can_be_written_as_json(tmp_path: Path) -> None:
    made = requested(tmp_path, "b")
    reports: list[inbox.ImportReport | ingestion.IngestReport | export.ExportReport] = [
        imported(tmp_path / "inbox", "b,cat,ann\n", made=made),
        ingest(tmp_path, new_folder(tmp_path / "cam", "x.png"), made),
        export.export_requests(made, tmp_path / "data", tmp_path / "out"),
    ]
    for report in reports:
        assert json.loads(json.dumps(report.to_json()))
        assert report.lines()


def test_an_answers_table_reads_the_last_line_without_an_end(tmp_path: Path) -> None:
    table = labels_answers.read_answers(io.BytesIO(b"b,cat").getvalue(), "x.csv")
    assert table[["where", "sample_id", "label"]].to_numpy().tolist() == [["line 1", "b", "cat"]]
