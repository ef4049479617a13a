import csv
import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_digits

from tests.support.folders import contents
from tests.support.small_pools import file_of, picture
from tests.support.small_sources import build
from vabal import images, pools, sources
from vabal.errors import UserError
from vabal.labels.names import sample_id_of
from vabal.settings.models import ImageSettings, Params
from vabal.sources import Imbalance, cifar, open_source
from vabal.sources.base import Item, Source, natural


def class_folders(root: Path, **counts: int) -> Path:
    """A folder per class with that many distinct images."""
    number = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index:03d}.png").write_bytes(file_of(picture(number)))
            number += 1
    return root


# --- kinds of source --------------------------------------------------------------------------------------------------


def test_the_digits_are_scikit_learns_with_their_values_spread_to_255() -> None:
    items = list(open_source("digits").items())
    bunch = load_digits()
    assert len(items) == 1797
    assert items[7].sample_id == "digits-0007"
    assert [item.label for item in items] == [str(target) for target in bunch.target]
    back = images.decode(items[7].data, 8, 1)[..., 0]
    assert (back == np.rint(bunch.images[7] * 255 / 16)).all()
    assert back.max() == 255


def test_class_folders_give_labels_and_ids_from_paths(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", dog=2, cat=1)
    (root / ".DS_Store").write_bytes(b"x")
    source = open_source(f"folder:{root}")
    assert source.classes == ("cat", "dog")
    assert [(item.sample_id, item.label) for item in source.items()] == [
        ("cat-000", "cat"),
        ("dog-000", "dog"),
        ("dog-001", "dog"),
    ]
    assert source.size_hint == (8, 1)


def test_class_folders_with_numbers_are_in_their_order(tmp_path: Path) -> None:
    root = class_folders(tmp_path, c10=1, c9=1, c1=1)
    assert open_source(f"folder:{root}").classes == ("c1", "c9", "c10")
    assert natural({"b", "10", "a2", "9", "a10"}) == ["9", "10", "a2", "a10", "b"]


def test_a_labels_csv_gives_labels_and_groups_whatever_the_layout(tmp_path: Path) -> None:
    root = class_folders(tmp_path, monday=2, tuesday=2)
    text = "\ufefflabel,filename,group\r\nok,monday/000.png,g1\r\nbad,monday\\001.png,g1\r\nok,tuesday/009.png,\r\n"
    (root / "labels.csv").write_bytes(text.encode())
    source = open_source(f"folder:{root}")
    assert source.classes == ("bad", "ok")
    assert [(item.sample_id, item.label, item.group) for item in source.items()] == [
        ("monday-000", "ok", "g1"),
        ("monday-001", "bad", "g1"),
        ("tuesday-000", None, None),
        ("tuesday-001", None, None),
    ]
    assert source.unreadable == [(str(root / "tuesday/009.png"), "listed in labels.csv, but not there")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\na.png,ok\n", "must name the columns path and label"),
        ("path,label\n../a.png,ok\n", "no path below this folder"),
        ("path,label\n/etc/a.png,ok\n", "no path below this folder"),
        ("path,label\na.png,ok\na.png,bad\n", "stands there twice"),
        ("", "must name the columns"),
    ],
)
def test_a_labels_csv_that_cannot_be_used_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "a.png").write_bytes(file_of(picture(0)))
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        open_source(f"folder:{tmp_path}")


def test_a_folder_without_labels_takes_its_classes_from_the_user(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "days", monday=1, tuesday=1)
    source = open_source(f"folder:{root}", ["ok", "bad"])
    assert source.classes == ("ok", "bad")
    assert [item.label for item in source.items()] == [None, None]
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "top.png").write_bytes(file_of(picture(9)))
    assert open_source(f"folder:{flat}").classes is None


def test_given_classes_fix_the_order_of_class_folders_and_refuse_others(tmp_path: Path) -> None:
    root = class_folders(tmp_path, cat=1, dog=1)
    assert open_source(f"folder:{root}", ["dog", "cat"]).classes == ("dog", "cat")
    with pytest.raises(UserError, match="'dog' is not among the classes given"):
        open_source(f"folder:{root}", ["cat", "bird"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("imagenet:/data", "unknown kind 'imagenet'"),
        ("folder", "expected folder:PATH"),
        ("digits:8", "expected digits"),
        ("folder:/nowhere/at/all", "no such folder"),
        ("npz:/nowhere.npz", "is missing"),
        ("cifar10:/nowhere", r"batches\.meta, data_batch_1"),
        ("neu:/nowhere", "no such folder"),
    ],
)
def test_a_source_that_cannot_be_opened_is_one_clear_line(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        open_source(spec)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_named_without_its_kind_is_told_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"--source folder:{tmp_path}")):
        open_source(str(tmp_path))


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    root = class_folders(tmp_path, train=1, test=1)
    with pytest.raises(UserError, match="test, train are splits, not classes"):
        open_source(f"folder:{root}")


def test_classes_are_only_for_sources_without_their_own() -> None:
    with pytest.raises(UserError, match="digits has its own class names"):
        open_source("digits", ["a", "b"])


def npz(path: Path, **arrays: Any) -> Source:
    np.savez(path, **arrays)
    return open_source(f"npz:{path}")


def test_arrays_give_images_labels_groups_and_class_names(tmp_path: Path) -> None:
    pictures = np.stack([picture(number, 4, 6, 3) for number in range(3)])
    source = npz(tmp_path / "my set.npz", images=pictures, labels=[1, 0, 1], groups=[7, 7, 8], classes=["no", "yes"])
    items = list(source.items())
    assert source.classes == ("no", "yes")
    assert source.size_hint == (6, 3)
    assert [(item.sample_id, item.label, item.group) for item in items] == [
        ("my-set-0000", "yes", "7"),
        ("my-set-0001", "no", "7"),
        ("my-set-0002", "yes", "8"),
    ]
    plain = npz(tmp_path / "plain.npz", images=pictures[..., 0], labels=np.array([[2], [0], [1]]))
    assert plain.classes == ("0", "1", "2")
    assert npz(tmp_path / "bare.npz", images=pictures).classes is None


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"labels": [1]}, "no array `images`"),
        ({"images": np.zeros((2, 4, 4))}, "must be uint8 N x H x W"),
        ({"images": np.zeros((2, 4, 4, 2), np.uint8)}, "found uint8 2 x 4 x 4 x 2"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0]}, "there are 2 images"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, -1]}, "whole numbers from 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0.5, 1]}, "whole numbers from 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, 2], "classes": ["a", "b"]}, "label 2 in `labels`"),
        ({"images": np.array([{}, {}], dtype=object)}, "not a readable .npz file"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        npz(tmp_path / "a.npz", **arrays)


def test_a_single_array_is_no_npz_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        open_source(f"npz:{tmp_path / 'a.npy'}")


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def write_cifar10(root: Path, protocol: int = 2) -> dict[str, np.ndarray]:
    """Batches in the published layout: keys and pixels as in the Python 2 pickles, two images a file."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written = {}
    for number, name in enumerate([*(f"data_batch_{index}" for index in range(1, 6)), "test_batch"]):
        data = np.random.default_rng(number).integers(0, 256, (2, 3072), dtype=np.uint8)
        written[name] = data
        batch = {"batch_label": name, "labels": [number % 10, 9], "data": data, "filenames": ["a.png", "b.png"]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=protocol))
    meta = {"num_cases_per_batch": 2, "label_names": [f"class{index}" for index in range(10)], "num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=protocol))
    return written


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar_batches_become_items_and_the_test_split_the_holdout(tmp_path: Path, protocol: int) -> None:
    written = write_cifar10(tmp_path, protocol)
    for root in (tmp_path, tmp_path / "cifar-10-batches-py"):
        source = open_source(f"cifar10:{root}")
        items = {item.sample_id: item for item in source.items()}
        assert len(items) == 12
        second = items["cifar10-train-00003"]  # the second image of data_batch_2
        assert (second.label, second.split) == ("class9", "pool")
        expected = written["data_batch_2"][1].reshape(3, 32, 32).transpose(1, 2, 0)
        assert (images.decode(second.data, 32, 3) == expected).all()
        assert (items["cifar10-test-00000"].label, items["cifar10-test-00000"].split) == ("class5", "holdout")


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        data = np.random.default_rng(len(name)).integers(0, 256, (2, 3072), dtype=np.uint8)
        batch = {"data": data, "fine_labels": [99, 3], "coarse_labels": [0, 1]}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": [f"fine{index}" for index in range(100)], "coarse_label_names": ["c"]}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    source = open_source(f"cifar100:{tmp_path}")
    assert source.classes is not None
    assert len(source.classes) == 100
    assert [item.label for item in source.items()] == ["fine99", "fine3", "fine99", "fine3"]


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.mark,)


def test_a_batch_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    meta = tmp_path / "cifar-10-batches-py" / "batches.meta"
    mark = tmp_path / "it ran"
    for protocol in (0, 2, 4):
        meta.write_bytes(pickle.dumps({"label_names": Harmful(mark)}, protocol=protocol))
        with pytest.raises(UserError, match=r"batches\.meta: (refers to|holds the opcode)"):
            open_source(f"cifar10:{tmp_path}")
    pickle.loads(meta.read_bytes())  # noqa: S301  (shows that the file is as harmful as it claims)
    assert mark.exists()


def test_a_batch_of_objects_or_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": np.array([object], dtype=object)}, protocol=2))
    with pytest.raises(UserError, match=r"batch: (an array of|refers to)"):
        cifar.read_plain_pickle(path)
    whole = pickle.dumps({"data": np.arange(9)}, protocol=2)
    for end in (0, 5, len(whole) - 9):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="damaged"):
            cifar.read_plain_pickle(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match="no entry 'label_names'"):
        cifar.class_names(cifar.Layout("", (), (), "batch", "label_names", "labels"), tmp_path)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2, 300, 70_000, 2**40], "b": (1.5, "täxt", None, True), "c": b"\x00\xff", "d": {}, "e": []},
        {"x": np.arange(6, dtype=">i4").reshape(2, 3), "y": np.ones((2, 2), dtype=bool)},
        {"z": np.asfortranarray(np.arange(6.0).reshape(2, 3))},
    ],
)
def test_plain_values_are_read_as_pickle_would(tmp_path: Path, value: dict[str, Any], protocol: int) -> None:
    (tmp_path / "p").write_bytes(pickle.dumps(value, protocol=protocol))
    back = cifar.read_plain_pickle(tmp_path / "p")
    assert back.keys() == value.keys()
    for key, item in value.items():
        assert np.array_equal(back[key], item) if isinstance(item, np.ndarray) else back[key] == item


# --- NEU and ELPV -----------------------------------------------------------------------------------------------------


def neu(root: Path, *names: str) -> Source:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file_of(picture(number), "BMP" if name.endswith("bmp") else "JPEG"))
    return open_source(f"neu:{root}")


def test_neu_classes_come_from_file_names_or_folders(tmp_path: Path) -> None:
    flat = neu(tmp_path / "flat", "Cr_1.bmp", "PS_12.bmp", "RS_3.bmp")
    assert flat.classes == ("crazing", "pitted_surface", "rolled-in_scale")
    assert [item.label for item in flat.items()] == list(flat.classes)
    named = neu(tmp_path / "det", "train/images/crazing/crazing_1.jpg", "IMAGES/rolled-in_scale_2.jpg")
    (tmp_path / "det" / "crazing_1.xml").write_text("<annotation/>")
    assert [item.label for item in named.items()] == ["rolled-in_scale", "crazing"]
    small = neu(tmp_path / "64", "cr/1.jpg", "gg/2.jpg", "rp/3.jpg", "sp/4.jpg", "pitted surface/5.jpg")
    assert small.classes == ("crazing", "grooves_and_gouges", "pitted_surface", "rolled-in_particle", "spots")


def test_neu_refuses_images_whose_class_it_cannot_tell(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no NEU class in the name of holiday_3\.jpg"):
        neu(tmp_path, "holiday_3.jpg")


def test_elpv_is_the_package_with_eight_classes() -> None:
    source = open_source("elpv")
    assert source.classes == tuple(
        f"{kind}-{share}" for kind in ("mono", "poly") for share in ("0.00", "0.33", "0.67", "1.00")
    )
    items = source.items()
    first = next(items)
    assert (first.sample_id, first.label) == ("cell0001", "mono-1.00")
    assert images.probe(first.data, ImageSettings()) == (300, 300)
    assert 1 + sum(1 for _ in items) == 2624


def test_elpv_labels_may_say_functional_or_defective_by_a_half() -> None:
    levels, verdicts = open_source("elpv"), open_source("elpv:two-levels")
    assert verdicts.name == "elpv:two-levels"
    assert verdicts.classes == ("mono-defective", "mono-functional", "poly-defective", "poly-functional")
    told = {(one.label, other.label) for one, other in zip(levels.items(), verdicts.items(), strict=True)}
    verdict = {"0.00": "functional", "0.33": "functional", "0.67": "defective", "1.00": "defective"}
    assert told == {(f"{kind}-{level}", f"{kind}-{verdict[level]}") for kind in ("mono", "poly") for level in verdict}
    assert [item.label for item in open_source("elpv:levels").items()] == [item.label for item in levels.items()]


@pytest.mark.parametrize("labels", ["halves", "/some/where"])
def test_elpv_refuses_labels_that_it_has_not(labels: str) -> None:
    with pytest.raises(UserError, match=rf"--source elpv:{labels}: labels of elpv are levels or two-levels"):
        open_source(f"elpv:{labels}")


# --- thinning and holding out -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "kept"),
    [
        ("dominant:0", [1, 0.1, 0.1, 0.1]),
        ("dominant:0:0.3", [1, 0.3, 0.3, 0.3]),
        ("rare:2:0.5", [1, 1, 0.5, 1]),
        ("rare:0,2-3:.2", [0.2, 1, 0.2, 0.2]),
        ("dominant:1-2:1", [1, 1, 1, 1]),
    ],
)
def test_an_imbalance_says_what_share_of_each_class_stays(spec: str, kept: list[float]) -> None:
    assert list(Imbalance.parse(spec, 4).kept) == kept


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("dominant", "expected dominant:K"),
        ("rare:x", "expected dominant:K"),
        ("heavy:1", "expected dominant:K"),
        ("rare:1:0", "above 0 and at most 1"),
        ("rare:1:1.5", "above 0 and at most 1"),
        ("rare:-1", "expected dominant:K"),
        ("rare:4", "no class 4; the classes are 0 to 3"),
        ("rare:3-1", "runs backwards"),
        ("rare:1:0.1 rare:2", "expected dominant:K"),
        ("rare:1:0.1:0.2", "expected dominant:K"),
    ],
)
def test_an_imbalance_that_makes_no_sense_is_one_clear_line(spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Imbalance.parse(spec, 4)


def labelled(**counts: int) -> pd.DataFrame:
    rows = [(f"{name}{index}", name, None) for name, count in counts.items() for index in range(count)]
    return pd.DataFrame(rows, columns=["sample_id", "label", "group"])


def test_thinning_keeps_the_rounded_share_and_at_least_one() -> None:
    left = sources.thin(labelled(a=10, b=15, c=3), "dominant:0:0.1", ["a", "b", "c"], 0)
    assert left["label"].value_counts().to_dict() == {"a": 10, "b": 2, "c": 1}


def test_a_holdout_is_stratified_and_never_takes_a_whole_class() -> None:
    table = labelled(a=40, b=9, c=2, d=1)
    held = table[table["sample_id"].isin(sources.draw_holdout(table, 0.2, 0))]
    assert held["label"].value_counts().to_dict() == {"a": 8, "b": 2, "c": 1}


def test_groups_are_held_out_whole() -> None:
    table = labelled(a=40, b=40)
    table["group"] = [f"g{index // 4}" for index in range(80)]
    held = set(sources.draw_holdout(table, 0.2, 3))
    for _, members in table.groupby("group"):
        assert len(held & set(members["sample_id"])) in (0, 4)
    assert len(held) == 16


# --- round 0 ----------------------------------------------------------------------------------------------------------


def test_round_0_of_the_digits_comes_out_the_same_to_the_byte(tmp_path: Path) -> None:
    for name in ("one", "two"):
        report = build(open_source("digits"), tmp_path / name, imbalance="dominant:0:0.3", initial=100)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    made = pools.load(tmp_path / "one")
    assert (len(made.labeled), len(made.unlabeled)) == (100, len(report.oracle))
    assert set(made.unlabeled["status"]) == {"available"}
    assert made.label_events["labeled_at"].isna().all()
    assert set(made.labeled["annotator"]) == {"source"}
    true = {item.sample_id: item.label for item in open_source("digits").items()}
    known = pd.concat([made.labeled, made.holdout, report.oracle])
    assert all(true[sample_id] == label for sample_id, label in zip(known["sample_id"], known["label"], strict=True))
    row = made.catalog.iloc[50]
    data = images.encoded(tmp_path / "one", row["shard"], row["row"])
    assert hashlib.sha256(data).hexdigest() == row["sha256"]


def test_another_seed_makes_other_pools_and_the_imbalance_leaves_the_holdout_alone(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=40, b=40)
    source = open_source(f"folder:{root}")
    plain = build(source, tmp_path / "plain").pools
    thinned = build(source, tmp_path / "thinned", imbalance="rare:1:0.2").pools
    other = build(source, tmp_path / "other", seed=1).pools
    assert thinned.holdout["sample_id"].tolist() == plain.holdout["sample_id"].tolist()
    assert other.holdout["sample_id"].tolist() != plain.holdout["sample_id"].tolist()
    pool = pd.concat([thinned.labeled["sample_id"], thinned.unlabeled["sample_id"]])
    assert pool.str[0].value_counts().to_dict() == {"a": 30, "b": 6}
    assert len(thinned.catalog) == 36 + 20


def test_a_source_without_labels_asks_for_the_holdout_and_the_first_samples(tmp_path: Path) -> None:
    root = tmp_path / "pics"
    root.mkdir()
    for number in range(20):
        (root / f"{number}.png").write_bytes(file_of(picture(number)))
    report = build(open_source(f"folder:{root}", ["ok", "bad"]), tmp_path / "data")
    made = pools.load(tmp_path / "data")
    assert (len(made.labeled), len(made.holdout), report.requested) == (0, 5, 9)
    assert made.holdout["label"].isna().all()
    assert pools.open_requests(made)["purpose"].value_counts().to_dict() == {"holdout": 5, "label": 4}
    assert set(pools.open_requests(made)["requested_round"]) == {0}
    assert report.oracle.empty
    with pytest.raises(UserError, match="has no labels: name its classes with --classes"):
        build(open_source(f"folder:{root}"), tmp_path / "other")
    with pytest.raises(UserError, match="--imbalance needs labels"):
        build(open_source(f"folder:{root}", ["ok", "bad"]), tmp_path / "other", imbalance="rare:0")


def test_unreadable_files_are_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=10, b=10)
    whole = file_of(picture(99, 64, 64))
    (root / "a" / "cut.png").write_bytes(whole[:-500])
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "b" / "notes.txt").write_bytes(b"not an image")
    (root / "b" / "large.png").write_bytes(whole)
    settings = Params(images=ImageSettings(max_megapixels=0.001))
    report = build(
        open_source(f"folder:{root}"), tmp_path / "data", settings=settings, quarantine=tmp_path / "quarantine"
    )
    assert len(report.pools.catalog) == 20
    reasons = {Path(path).name: reason for path, reason in report.unreadable}
    assert set(reasons) == {"cut.png", "empty.png", "notes.txt", "large.png"}
    assert "empty" in reasons["empty.png"]
    with (tmp_path / "quarantine" / "quarantine.csv").open(newline="") as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == set(reasons)
    assert any("4 unreadable" in line for line in report.lines())


def test_of_two_files_with_the_same_content_the_second_is_told_and_left_out(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=10, b=10)
    (root / "b" / "copy.png").write_bytes((root / "a" / "000.png").read_bytes())
    report = build(open_source(f"folder:{root}"), tmp_path / "data")
    assert report.duplicates == (str(root / "b" / "copy.png"),)
    assert len(report.pools.catalog) == 20


def test_files_whose_names_lead_to_the_same_id_are_told_apart_by_content(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=10, b=10)
    data = file_of(picture(500), "BMP")
    (root / "a" / "000.bmp").write_bytes(data)
    made = build(open_source(f"folder:{root}"), tmp_path / "data").pools
    ids = set(made.catalog["sample_id"])
    assert {"a-000"} < ids
    assert len({name for name in ids if name.startswith("a-000-")}) == 1


def test_groups_of_a_source_never_straddle_pool_and_holdout(tmp_path: Path) -> None:
    pictures = np.stack([picture(number) for number in range(40)])
    source = npz(tmp_path / "a.npz", images=pictures, labels=np.arange(40) % 2, groups=np.arange(40) // 5)
    told: list[str] = []
    made = build(source, tmp_path / "data", tell=told.append).pools
    assert "40 images in 8 groups, each kept on one side of the holdout" in told
    group = {f"a-{index:04d}": index // 5 for index in range(40)}
    held = {group[name] for name in made.holdout["sample_id"]}
    rest = {group[name] for name in [*made.labeled["sample_id"], *made.unlabeled["sample_id"]]}
    assert held
    assert held & rest == set()
    assert dict(zip(made.catalog["sample_id"], made.catalog["group"], strict=True)) == {
        name: str(number) for name, number in group.items()
    }


def test_cifar_keeps_its_own_holdout_and_says_so(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    report = build(open_source(f"cifar10:{tmp_path}"), tmp_path / "data")
    assert report.pools.holdout["sample_id"].tolist() == ["cifar10-test-00000", "cifar10-test-00001"]
    assert any("brings its own holdout of 2 images" in line for line in report.lines())


def test_classes_without_a_sample_are_said_not_refused(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=20, b=1)
    report = build(open_source(f"folder:{root}"), tmp_path / "data", initial=2)
    assert "no sample of class b in the holdout" in report.notes


def test_a_holdout_that_promotion_cannot_judge_is_told_before_the_first_round(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=40, b=10)
    few = build(open_source(f"folder:{root}"), tmp_path / "few", initial=2)
    assert any("classes with fewer than 6 images in the holdout: b (" in note for note in few.notes)
    assert any("promotion will wait, for two classes with 6 images each in the holdout" in note for note in few.notes)

    enough = build(open_source(f"folder:{root}"), tmp_path / "enough", initial=2, holdout=0.6)
    assert not any("promotion" in note for note in enough.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"initial": 15}, "--initial 15: the pool has only 14 labelled images"),
        ({"initial": 0}, "at least one sample"),
        ({"holdout": 1.0}, "below 1"),
        ({"imbalance": "rare:7"}, "no class 7"),
    ],
)
def test_wishes_that_the_source_cannot_grant_leave_nothing_behind(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    root = class_folders(tmp_path / "pics", a=10, b=10)
    with pytest.raises(UserError, match=said):
        build(open_source(f"folder:{root}"), tmp_path / "made" / "data", **changes)
    assert not (tmp_path / "made").exists() or list((tmp_path / "made").iterdir()) == []


def test_one_class_or_no_readable_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two classes are needed, found only"):
        build(open_source(f"folder:{class_folders(tmp_path / 'one', only=3)}"), tmp_path / "data")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match="no readable image in it"):
        build(open_source(f"folder:{tmp_path / 'none'}", ["a", "b"]), tmp_path / "data")


def test_round_0_is_not_made_over_another(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "pics", a=10, b=10)
    build(open_source(f"folder:{root}"), tmp_path / "data")
    before = contents(tmp_path / "data")
    with pytest.raises(UserError, match="is not empty"):
        build(open_source(f"folder:{root}"), tmp_path / "data", seed=1)
    assert contents(tmp_path / "data") == before


def test_an_image_that_changes_between_the_passes_is_noticed(tmp_path: Path) -> None:
    class Restless:
        name = "restless"
        classes = ("a", "b")
        size_hint = (8, 1)
        unreadable: list[tuple[str, str]] = []  # noqa: RUF012
        passes = 0

        def items(self, _: ImageSettings | None = None, /) -> Any:
            self.passes += 1
            for number in range(12):
                yield Item(f"s{number}", file_of(picture(number + 100 * self.passes)), "ab"[number % 2])

    with pytest.raises(UserError, match="12 images changed while they were read"):
        build(Restless(), tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "sample_id"),
    [
        ("cat/001.png", "cat-001"),
        ("a b/c,d;e.tar.png", "a-b-c-d-e.tar"),
        ("=1+1.png", "1-1"),
        ("größe/ä.png", "größe-ä"),
        ("gro\u0308ße.png", "größe"),
        ("(.png", "image"),
    ],
)
def test_ids_come_from_paths_without_signs_that_hurt(path: str, sample_id: str) -> None:
    assert sample_id_of(path) == sample_id
