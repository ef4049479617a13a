"""What people who label see tells nothing of the class, and comes back all the same."""

import csv
import hashlib
import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.support.label_files import annotation as said
from tests.support.label_files import imported, taken, task
from tests.support.small_pools import catalog_of, picture, saved, small_pools
from vabal import images, pools
from vabal.audit import queries, sample
from vabal.labels import export
from vabal.labels.names import blind_names, ids_of
from vabal.pools import Pools
from vabal.settings.models import PoolSettings

CLASSES = ("crack", "fray")
NAMES = [f"{CLASSES[number // 4]}-{number:03d}" for number in range(8)]


def files() -> dict[str, bytes]:
    """Class by class, as sources are read; each file names its class in its texts."""
    made = {}
    for number, name in enumerate(NAMES):
        exif = Image.Exif()
        exif[0x010E] = f"a {name}"  # ImageDescription
        form = ("PNG", "JPEG", "TIFF")[number % 3]
        made[name] = saved(Image.fromarray(picture(number, 16, 16, 3)), form, exif=exif)
    return made


@pytest.fixture
def asked(tmp_path: Path) -> Pools:
    """Eight images of two classes, all asked for; named for their classes, as class folders do it."""
    content = files()
    placed = images.write_shards(
        content.items(), tmp_path / "data" / "images", settings=PoolSettings(), name_prefix="pool"
    )
    assert [name for _, _, name in placed] == NAMES
    catalog = catalog_of(NAMES).assign(sha256=[hashlib.sha256(content[name]).hexdigest() for name in NAMES])
    waiting = pd.DataFrame({"sample_id": NAMES, "status": "requested", "requested_round": 1})
    empty = small_pools()
    return small_pools(
        classes=CLASSES,
        catalog=catalog,
        labeled=empty.labeled.iloc[:0],
        unlabeled=waiting,
        holdout=empty.holdout.iloc[:0],
        label_events=empty.label_events.iloc[:0],
    )


def test_nothing_that_people_get_names_a_class_but_the_list_of_them(asked: Pools, tmp_path: Path) -> None:
    export.export_requests(asked, tmp_path / "data", tmp_path / "out")
    found = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert len(found) == 8 + 4
    for path in found:
        for name in CLASSES:
            assert name not in path.name
            assert path.name in ("README.txt", "label_config.xml") or path.read_bytes().count(name.encode()) == 0, path
    for one in json.loads((tmp_path / "out" / "label_studio.json").read_text()):
        assert set(one["data"]) == {"image", "sample_id", "file"}


def test_neither_order_nor_times_tell_how_the_images_lie_in_the_pool(asked: Pools, tmp_path: Path) -> None:
    export.export_requests(asked, tmp_path / "data", tmp_path / "out")
    shown = sorted(blind_names(asked.catalog).values())
    with (tmp_path / "out" / "requests.csv").open(newline="") as file:
        assert [row["sample_id"] for row in csv.DictReader(file)] == shown
    tasks = json.loads((tmp_path / "out" / "label_studio.json").read_text())
    assert [one["data"]["sample_id"] for one in tasks] == shown
    paths = list((tmp_path / "out" / "images").iterdir())
    assert len({path.stat().st_mtime_ns for path in paths}) == 1
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        for path in paths:
            archive.write(path, path.name)
    assert len({entry.date_time for entry in archive.infolist()}) == 1


@pytest.mark.parametrize("blind", [True, False], ids=["blind names", "ids, as earlier exports have them"])
def test_labels_come_back_by_blind_names_and_by_ids(asked: Pools, tmp_path: Path, blind: bool) -> None:
    shown = blind_names(asked.catalog) if blind else {name: name for name in NAMES}
    first, second = NAMES[1], NAMES[6]
    imported(tmp_path / "inbox", f"sample_id,label,annotator\n{shown[first]},crack,ada\n", made=asked)
    studio = json.dumps([task(shown[second], said("fray", person="bob"))])
    imported(tmp_path / "inbox", studio, "export.json", made=asked)
    assert taken(tmp_path / "inbox") == [(first, "crack", "ada"), (second, "fray", "bob")]


def test_an_id_and_a_blind_name_of_one_image_are_one_image(asked: Pools, tmp_path: Path) -> None:
    blind = blind_names(asked.catalog)[NAMES[0]]
    text = f"sample_id,label,annotator\n{NAMES[0]},crack,ada\n{blind},fray,bob\n"
    report = imported(tmp_path / "inbox", text, made=asked)
    assert (report.images, report.disagreeing) == (1, (NAMES[0],))


def test_no_two_images_share_a_name_and_each_leads_back() -> None:
    catalog = catalog_of(["a", "b", "c", "d"])
    same = catalog["sha256"][0]
    catalog["sha256"] = [same, same, same[:30] + "0" * 34, catalog["sha256"][3]]
    named = f"img-{catalog['sha256'][3][:20]}"
    catalog.loc[2, "sample_id"] = named  # another image's blind name is this one's id
    shown = blind_names(catalog)
    assert len({*shown.values(), *catalog["sample_id"]}) == 8
    back = ids_of(pd.Series([*shown.values(), named, "img-stranger", "a"]), catalog)
    assert list(back) == [*shown, named, "img-stranger", "a"]


def test_no_spreadsheet_takes_a_name_for_a_number() -> None:
    catalog = catalog_of([str(number) for number in range(50)])
    assert all(name.startswith("img-") and len(name) == 24 for name in blind_names(catalog).values())


def test_the_audit_knows_an_image_by_its_blind_name(asked: Pools, tmp_path: Path) -> None:
    pools.save(asked, tmp_path / "data")
    blind = blind_names(asked.catalog)[NAMES[2]]
    assert sample.history(tmp_path / "data", blind)["sample_id"] == NAMES[2]
    assert queries.show(tmp_path / "data", blind, tmp_path).name == f"{NAMES[2]}.tif"
