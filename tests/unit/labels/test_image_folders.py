"""Labels as tables of file names come in and go out; other tools' files are refused with this way."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.label_files import imported, taken
from tests.support.small_pools import catalog_of, file_of, picture, small_pools
from vabal import images
from vabal.errors import UserError
from vabal.labels import answers
from vabal.labels.image_folder import export_images
from vabal.labels.names import blind_names
from vabal.pools import Pools
from vabal.settings.models import PoolSettings
from vabal.sources.files import Folder
from vabal.sources.folders import walk

LABELS = {"a": "cat", "b": "dog", "c": "cat"}


@pytest.fixture
def labelled(tmp_path: Path) -> Pools:
    """Three labelled images, a cat, a dog and a cat; and one, d, without a label."""
    content = {name: file_of(picture(number, 12, 10, 3)) for number, name in enumerate("abcd")}
    images.write_shards(content.items(), tmp_path / "data" / "images", settings=PoolSettings(), name_prefix="pool")
    made = small_pools()
    given = {"annotator": "ada", "round": 0, "labeled_at": pd.Timestamp("2026-01-31T09:30:00Z")}
    labels = pd.DataFrame([{"sample_id": name, "label": label, **given} for name, label in LABELS.items()])
    return small_pools(
        catalog=catalog_of(list(content)).assign(
            sha256=[hashlib.sha256(data).hexdigest() for data in content.values()]
        ),
        labeled=labels,
        unlabeled=made.unlabeled.iloc[:1].assign(sample_id="d"),
        holdout=made.holdout.iloc[:0],
        label_events=labels.assign(source="test"),
    )


# --- out --------------------------------------------------------------------------------------------------------------


def test_hugging_faces_datasets_reads_the_labelled_pool_back(
    labelled: Pools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = export_images(labelled, tmp_path / "data", labelled.labeled["sample_id"], tmp_path / "out")
    assert (report.images, report.labeled) == (3, 3)
    for name, value in {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}.items():
        monkeypatch.setenv(name, value)
    from datasets import load_dataset

    read = load_dataset("imagefolder", data_dir=str(tmp_path / "out"), split="train")
    pixels = {name: picture(number, 12, 10, 3) for number, name in enumerate("abcd")}
    found = {next(name for name in pixels if (pixels[name] == row["image"]).all()): row["label"] for row in read}
    assert found == LABELS
    assert set(read["annotator"]) == {"ada"}


def test_a_folder_that_went_out_is_a_source_and_its_tables_are_labels(labelled: Pools, tmp_path: Path) -> None:
    export_images(labelled, tmp_path / "data", ["a", "b", "c", "d"], tmp_path / "out")
    shown = blind_names(labelled.catalog)
    for kept in ("labels.csv", "metadata.jsonl"):
        source = Folder(walk(tmp_path / "out"))
        assert source.classes == ("cat", "dog")
        found = {Path(item.origin).stem: item.label for item in source.items()}
        assert found == {shown[name]: LABELS.get(name) for name in "abcd"}
        assert source.unreadable == []
        (tmp_path / "out" / kept).rename(tmp_path / kept)
    for kept in ("labels.csv", "metadata.jsonl"):
        report = imported(tmp_path / kept.partition(".")[0], (tmp_path / kept).read_bytes(), kept, labelled)
        assert (report.labels, report.unanswered, report.repeated) == (0, 1, 3)


def test_an_image_without_a_label_has_none_and_an_export_that_fails_leaves_nothing(
    labelled: Pools, tmp_path: Path
) -> None:
    export_images(labelled, tmp_path / "data", ["b", "d"], tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert sorted([row["label"] for row in rows], key=str) == [None, "dog"]
    with pytest.raises(UserError, match="not an empty folder"):
        export_images(labelled, tmp_path / "data", ["b"], tmp_path / "out")
    (tmp_path / "data" / "images" / "pool-0000.parquet").unlink()
    with pytest.raises(UserError, match="is missing"):
        export_images(labelled, tmp_path / "data", ["b"], tmp_path / "other" / "out")
    assert list((tmp_path / "other").iterdir()) == []
    assert export_images(labelled, tmp_path / "data", [], tmp_path / "none").lines() == [
        "no such images: nothing was written"
    ]


# --- in ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\nb.png,dog\ncam/c.jpg,cat\n",
        "label;filename\ndog;b.png\ncat;cam\\c.jpg\n",
        '{"file_name": "b.png", "label": "dog", "boxes": []}\n\n{"file_name": "cam/c.jpg", "label": "cat"}\n',
    ],
    ids=["csv", "csv, other names", "metadata.jsonl"],
)
def test_labels_come_in_by_the_names_of_files(tmp_path: Path, text: str) -> None:
    made = small_pools(
        catalog=catalog_of(["a", "b", "cam-c", "d"]),
        unlabeled=small_pools().unlabeled.assign(sample_id=["b", "cam-c"]),
    )
    with pytest.raises(UserError, match=r"unknown sample 'x/b\.png'"):
        imported(tmp_path / "inbox", text.replace("b.png", "x/b.png"), made=made)
    imported(tmp_path / "inbox", text, made=made)
    assert taken(tmp_path / "inbox") == [("b", "dog", "unknown"), ("cam-c", "cat", "unknown")]


def test_a_folder_of_labels_comes_in_by_the_table_on_top(tmp_path: Path) -> None:
    folder = tmp_path / "back"
    folder.mkdir()
    with pytest.raises(UserError, match=r"no labels\.csv, metadata\.jsonl, metadata\.csv in this folder: hand in"):
        answers.import_labels(tmp_path / "inbox", small_pools(), folder, pd.Timestamp("2026-02-01", tz="UTC"))
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png", "label": "dog", "annotator": "ada"}\n')
    answers.import_labels(tmp_path / "inbox", small_pools(), folder, pd.Timestamp("2026-02-01", tz="UTC"))
    assert taken(tmp_path / "inbox") == [("b", "dog", "ada")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [], "annotations": [], "categories": []}', "COCO"),
        ('{"data_row": {"id": "x"}}\n{"data_row": {"id": "y"}}\n', "Labelbox"),
        ('[{"ID": "x", "Labeled Data": "http://x"}]', "Labelbox"),
        ('<?xml version="1.0"?>\n<annotations><version>1.1</version><meta/></annotations>', "CVAT"),
        ("<annotation><object/></annotation>", "Pascal VOC"),
        ("0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4\n", "YOLO"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax\nb.png,8,8,cat,1,1,2,2\n", "boxes"),
        ("filename, cat, dog\nb.png, 1, 0\n", "without a column label"),
        ('{"shapes": [], "imagePath": "b.png"}', "LabelMe"),
    ],
)
def test_what_other_tools_write_is_refused_in_one_line_with_the_way_that_is_open(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(UserError, match=f"this looks like .*{said}.*, which is not read: hand in a CSV") as error:
        imported(tmp_path / "inbox", text, "export.txt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "inbox").exists()


# --- sources ----------------------------------------------------------------------------------------------------------


def a_folder(root: Path, table: str, text: str) -> Path:
    for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), len(name) + int(name[-5]), np.uint8)).save(root / name)
    (root / table).write_text(text)
    return root


def test_metadata_gives_a_sources_labels_and_groups(tmp_path: Path) -> None:
    text = '{"file_name": "cat/1.png", "label": "b", "group": "x"}\n{"file_name": "dog/2.png", "label": 7}\n'
    items = {item.sample_id: item for item in Folder(walk(a_folder(tmp_path / "one", "metadata.jsonl", text))).items()}
    assert {name: item.label for name, item in items.items()} == {"cat-1": "b", "dog-2": "7", "dog-3": None}
    assert items["cat-1"].group == "x"
    table = "file_name,label\ncat/1.png,b\n"
    assert Folder(walk(a_folder(tmp_path / "two", "metadata.csv", table))).classes == ("b",)


def test_metadata_without_labels_leaves_the_folders_their_say(tmp_path: Path) -> None:
    text = '{"file_name": "cat/1.png", "caption": "a label on a cat"}\n'
    assert Folder(walk(a_folder(tmp_path, "metadata.jsonl", text))).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "cat/1.png", "label": "b"}\n{"file_name":\n', "line 2: not valid JSON: .*; hand in a CSV"),
        ('{"file_name": "cat/1.png", "label": "b"}\n[1]\n', r"line 2: not \{\"file_name\""),
        ('{"file_name": "cat/1.png", "label": ["b", "c"]}\n', r"line 1: label \"\['b', 'c'\]\" is no text"),
        ('{"name": "cat/1.png", "label": "b"}\n', "line 1: '' is no path below this folder"),
    ],
)
def test_wrong_metadata_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Folder(walk(a_folder(tmp_path, "metadata.jsonl", text)))
