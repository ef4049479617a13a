"""Folders as people keep them: what is read, what is left out and told, what is refused and by which option mended."""

import os
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.small_pools import file_of, picture, small_pools
from tests.support.small_sources import build
from vabal import pools, sources
from vabal.benchmark import cells
from vabal.errors import UserError, shown
from vabal.labels.names import sample_id_of
from vabal.settings.models import ImageSettings, Params
from vabal.sources import ingestion, open_source
from vabal.sources.files import Folder
from vabal.sources.folders import class_name, walk
from vabal.sources.layouts import LAYOUTS


def fill(root: Path, *paths: str, start: int = 0) -> Path:
    """A distinct image at each of these paths."""
    for number, path in enumerate(paths, start=start):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(file_of(picture(number)))
    return root


def classes_of(root: Path, *names: str, count: int = 3, start: int = 0) -> Path:
    return fill(root, *(f"{name}/{index}.png" for name in names for index in range(count)), start=start)


@dataclass
class Said:
    """What a source was understood to be."""

    classes: tuple[str, ...]
    labels: dict[str, str | None]  # by sample id
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def understand(root: Path, classes: Sequence[str] | None = None, layout: str | None = None) -> Said:
    source = open_source(f"folder:{root}", classes, layout)
    found = sources.survey(source, ImageSettings())
    names = sources.class_names(source, found.items)
    known = found.items["label"].astype(object).where(found.items["label"].notna(), None)
    labels = dict(zip(found.items["sample_id"], known, strict=True))
    return Said(names, labels, sources.understood(source, found, names))


def refusal(root: Path, classes: Sequence[str] | None = None, layout: str | None = None) -> str:
    with pytest.raises(UserError) as error:
        understand(root, classes, layout)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- what is no class -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [{"readme.txt": b"how"}, {}, {"x.png": b""}, {"x.png": file_of(picture(1))[:60]}])
def test_a_folder_without_a_readable_image_is_no_class_and_told(tmp_path: Path, content: dict[str, bytes]) -> None:
    root = classes_of(tmp_path / "pics", "cat", "dog")
    (root / "notes").mkdir()
    for name, data in content.items():
        (root / "notes" / name).write_bytes(data)
    said = understand(root)
    assert said.classes == ("cat", "dog")
    assert any("notes" in line for line in said.lines)
    report = build(open_source(f"folder:{root}"), tmp_path / "data", initial=2)
    assert report.pools.classes == ("cat", "dog")


def test_a_class_without_an_image_stands_where_the_user_names_it(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "cat", "dog")
    assert understand(root, ["cat", "dog", "bird"]).classes == ("cat", "dog", "bird")


def test_a_class_of_a_table_whose_files_are_gone_is_no_class(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.png", "b.png")
    (root / "labels.csv").write_text("path,label\na.png,ok\nb.png,bad\ngone.png,rare\n")
    assert understand(root).classes == ("bad", "ok")


def test_extensions_do_not_decide_what_is_an_image(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "cat")
    (root / "dog").mkdir()
    (root / "dog" / "IMG_0001").write_bytes(file_of(picture(50)))
    (root / "dog" / "b.dat").write_bytes(file_of(picture(51), "JPEG"))
    (root / "dog" / "c.jpg").write_bytes(file_of(picture(52), "PNG"))
    assert list(understand(root).labels.values()).count("dog") == 3


# --- what lies beside the class folders -------------------------------------------------------------------------------


def test_a_stray_image_on_top_is_unlabelled_and_the_class_folders_stand(tmp_path: Path) -> None:
    root = fill(classes_of(tmp_path, "cat", "dog"), "overview.png", start=90)
    for classes in (None, ["cat", "dog"]):
        said = understand(root, classes)
        assert said.classes == ("cat", "dog")
        assert said.labels["overview"] is None
        assert list(said.labels.values()).count("dog") == 3
        assert "1 image outside the class folders, without a label: overview.png" in said.lines


def test_many_images_on_top_are_refused_until_the_user_says_what_they_are(tmp_path: Path) -> None:
    root = fill(classes_of(tmp_path, "cat", "dog"), *(f"{index}.png" for index in range(4)), start=90)
    said = refusal(root)
    assert "4 images lie beside the folders cat, dog with 6" in said
    assert list(understand(root, layout="class-folders").labels.values()).count(None) == 4
    assert list(understand(root, ["cat", "dog"]).labels.values()).count(None) == 4
    assert set(understand(root, ["ok", "bad"], "flat").labels.values()) == {None}


def test_a_folder_named_unlabelled_is_no_class(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "cat", "dog", "unlabeled")
    said = understand(root)
    assert said.classes == ("cat", "dog")
    assert [name for name, label in said.labels.items() if label is None] == [f"unlabeled-{n}" for n in range(3)]


@pytest.mark.parametrize(
    "side",
    [
        *("@eaDir", "#recycle", "#snapshot", "@Recycle", ".snapshot", "lost+found", "$RECYCLE.BIN"),
        *("System Volume Information", "__MACOSX", ".ipynb_checkpoints", ".git", ".AppleDouble", ".Trash-1000"),
    ],
)
def test_side_folders_of_systems_and_servers_are_left_out_and_told(tmp_path: Path, side: str) -> None:
    root = classes_of(tmp_path, "cat", "dog")
    fill(root, f"{side}/cat/thumb.jpg", f"cat/{side}/x.png", start=90)
    (root / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    said = understand(root)
    assert (said.classes, len(said.labels)) == (("cat", "dog"), 6)
    told = [line for line in said.lines if line.startswith("left out, ")]
    assert len(told) == 1
    assert f"cat/{side} (1 image), {side} (1 image)" in told[0] or f"{side} (1 image), cat/{side} (1 image)" in told[0]


def test_hidden_files_named_as_images_are_left_out_and_told(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "cat", "dog")
    (root / "cat" / "._0.png").write_bytes(b"\0\5\x16\7")
    assert "left out, hidden files and folders: cat/._0.png" in understand(root).lines


# --- links ------------------------------------------------------------------------------------------------------------


def test_linked_class_folders_and_linked_images_are_followed(tmp_path: Path) -> None:
    store = classes_of(tmp_path / "store", "bird", "fish", start=50)
    root = classes_of(tmp_path / "view", "cat")
    (root / "bird").symlink_to(store / "bird")
    (root / "fish").mkdir()
    for index in range(3):
        (root / "fish" / f"{index}.png").symlink_to(store / "fish" / f"{index}.png")
    said = understand(root)
    assert said.classes == ("bird", "cat", "fish")
    assert said.labels["bird-1"] == "bird"
    assert "4 links followed: bird, fish/0.png, fish/1.png and 1 more (4 in all)" in said.lines


def test_links_that_lead_nowhere_or_in_circles_are_told_and_end(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "pics", "cat", "dog")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "out").symlink_to(tmp_path)  # around the source: nothing beside it is drawn in
    (root / "cat" / "gone.png").symlink_to(root / "nowhere.png")
    (root / "dog" / "self").symlink_to(root / "dog" / "self")
    os.mkfifo(root / "dog" / "pipe.png")
    fill(tmp_path, "secret.png", start=90)
    said = understand(root)
    assert len(said.labels) == 6
    assert "left out, links back to a folder around them: cat/out, cat/up" in said.lines
    assert "left out, links to nothing: cat/gone.png" in said.lines
    assert any(line.endswith(": dog/self") for line in said.lines)
    assert any(line.endswith(": dog/pipe.png") for line in said.lines)


def test_folders_that_link_to_each_other_are_read_a_bounded_number_of_times(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", *(f"f{level}/{level}.png" for level in range(12)))
    for level in range(11):
        for name in ("one", "two"):
            (store / f"f{level}" / name).symlink_to(store / f"f{level + 1}")
    (tmp_path / "view").mkdir()
    (tmp_path / "view" / "start").symlink_to(store / "f0")
    found = walk(tmp_path / "view")
    assert len(found.files) < 8 * 12
    assert "folders that were reached by 8 links already" in found.left_out


def test_a_file_that_a_link_reaches_again_is_told_and_under_two_classes_left_to_the_sieve(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "pics", "cat", "dog")
    (root / "cat" / "again.png").symlink_to(root / "cat" / "0.png")
    (root / "dog" / "twin.png").symlink_to(root / "cat" / "0.png")
    source = open_source(f"folder:{root}")
    assert isinstance(source, Folder)
    assert "left out, links to files that are there: cat/again.png (is cat/0.png)" in source.notes
    assert "dog-twin" in {item.sample_id for item in source.items()}


def test_class_folders_of_links_into_a_heap_beside_them_are_settled_by_naming_them(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "all", count=6)
    for index in range(6):
        link = root / ("cat", "dog")[index % 2] / f"{index}.png"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(root / "all" / f"{index}.png")
    said = understand(root, ["cat", "dog"], "class-folders")
    assert list(said.labels.values()) == ["cat", "cat", "cat", "dog", "dog", "dog"]
    with pytest.raises(UserError):
        understand(root)


def test_a_links_target_is_never_copied_into_quarantine(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a key")
    root = classes_of(tmp_path / "pics", "cat", "dog")
    (root / "cat" / "x.png").symlink_to(secret)
    build(open_source(f"folder:{root}"), tmp_path / "data", initial=2, quarantine=tmp_path / "aside")
    assert [path.name for path in (tmp_path / "aside").iterdir()] == ["quarantine.csv"]
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "y.png").symlink_to(secret)
    for path in (tmp_path / "cam", tmp_path / "cam" / "y.png"):
        report = ingest(tmp_path, path)
        assert len(report.unreadable) == 1
    assert [path.name for path in (tmp_path / "aside").iterdir()] == ["quarantine.csv"]


# --- names ------------------------------------------------------------------------------------------------------------


def test_both_unicode_forms_of_a_name_are_one_class_and_keep_all_their_images(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "größe") for form in ("NFC", "NFD"))
    root = classes_of(classes_of(tmp_path, composed, "cat"), apart, start=50)
    said = understand(root)
    assert said.classes == ("cat", composed)
    assert list(said.labels.values()).count(composed) == 6
    assert "größe is spelled in 2 forms (Unicode): one class" in said.lines
    assert understand(root, [apart, "cat"]).classes == (composed, "cat")


def test_names_in_no_valid_encoding_are_read_and_written_with_escapes(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "pics", "cat")
    for name in (b"caf\xe9", b"caf\xe8"):
        (Path(os.fsdecode(os.fsencode(root) + b"/" + name))).mkdir()
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name + b"/\xfc.png"))
        path.write_bytes(file_of(picture(name[-1])))
        path.with_name(os.fsdecode(b"\xe9bad.png")).write_bytes(b"nothing in " + name)
    said = understand(root)
    assert said.classes == ("caf\\xe8", "caf\\xe9", "cat")
    assert {"caf-xe8-xfc", "caf-xe9-xfc"} < set(said.labels)
    assert any(line.startswith("not valid UTF-8, their names are written with \\x..: caf\\xe8/") for line in said.lines)
    report = build(open_source(f"folder:{root}"), tmp_path / "data", initial=2, quarantine=tmp_path / "aside")
    pools.check(report.pools)
    assert len((tmp_path / "aside" / "quarantine.csv").read_text(encoding="utf-8").splitlines()) == 3
    taken = ingest(tmp_path, root)
    assert {"caf-xe8-xfc", "caf-xe9-xfc"} < set(taken.sample_ids)
    assert "\n".join(taken.lines()).encode()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / os.fsdecode(b"\xe9.png")).write_bytes(b"nothing either")
    assert ingest(tmp_path, tmp_path / "more" / os.fsdecode(b"\xe9.png")).unreadable[0][0].endswith("\\xe9.png")


def test_names_that_break_a_line_or_turn_it_are_written_as_escapes(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "a\nb", "tab\there", "\u202etxt", "😀👩\u200d🚒", "שלום", "con", "x" * 200)
    said = understand(root)
    assert {"a\\nb", "tab\\there", "\\u202etxt", "😀👩\u200d🚒", "שלום", "con", "x" * 200} == set(said.classes)
    assert all("\n" not in line for line in said.lines)
    assert shown("plain/ä b.png") == "plain/ä b.png"
    assert sample_id_of("cat/001.png") == "cat-001"


@pytest.mark.parametrize("twin", ["cat.", "cat\u200b", "ｃａｔ", "cat...", "CAT "])
def test_names_that_look_alike_are_refused_until_all_are_named(tmp_path: Path, twin: str) -> None:
    root = classes_of(tmp_path, "cat", twin, "dog")
    assert "alone: rename or merge them" in refusal(root)
    assert understand(root, ["cat", twin, "dog"]).classes == ("cat", class_name(twin), "dog")


def test_copies_of_a_folder_days_and_weeks_in_other_languages_are_refused(tmp_path: Path) -> None:
    assert "cat - Copy looks like a copy of another folder" in refusal(classes_of(tmp_path / "a", "cat", "cat - Copy"))
    assert "look like copies" not in " ".join(understand(classes_of(tmp_path / "b", "class (1)", "class (2)")).lines)
    assert "days of the week" in refusal(classes_of(tmp_path / "c", "Montag", "Dienstag"))
    assert "batches" in refusal(classes_of(tmp_path / "d", "KW01", "KW02"))


def test_a_table_without_labels_of_the_test_folder_is_refused_with_both_ways_out(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "train", "test")
    (root / "labels.csv").write_text("path,label\n" + "".join(f"train/{n}.png,c{n % 2}\n" for n in range(3)))
    said = refusal(root)
    assert "labels.csv has labels, but none of test: --layout splits" in said
    assert understand(root, layout="flat").classes == understand(root, layout="splits").classes == ("c0", "c1")


def test_a_pool_without_labels_beside_a_holdout_with_labels_asks_for_the_first_ones(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "test/cat", "test/dog")
    fill(root, "train/a.png", "train/b.png", "train/c.png", start=50)
    report = build(open_source(f"folder:{root}", layout="splits"), tmp_path / "data", initial=2)
    assert "no image of the pool has a label: the initial ones are asked for" in report.lines()
    assert (report.requested, len(report.pools.labeled), len(report.pools.holdout)) == (2, 0, 6)


def test_a_holdout_that_no_class_can_give_is_told(tmp_path: Path) -> None:
    report = build(open_source(f"folder:{classes_of(tmp_path, 'cat', 'dog', count=1)}"), tmp_path / "data", initial=1)
    assert "too few images of each class for a holdout" in " ".join(report.lines())


def test_blanks_around_a_name_are_not_part_of_the_class(tmp_path: Path) -> None:
    root = classes_of(tmp_path, " cat ", "dog")
    assert understand(root).classes == ("cat", "dog")
    assert "'cat', 'cat\\xa0' differ in blanks alone" in refusal(classes_of(tmp_path / "two", "cat", "cat\xa0", "dog"))
    assert "a class whose name is blanks alone" in refusal(classes_of(tmp_path / "three", " ", "cat", "dog"))


def test_names_that_differ_in_case_alone_are_refused_until_all_are_named(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "pics", "Cat", "cat", "dog")
    said = refusal(root)
    assert "Cat, cat differ in case alone" in said
    assert said.endswith("--classes Cat,cat,dog")
    assert understand(root, ["Cat", "cat", "dog"]).classes == ("Cat", "cat", "dog")
    assert "'cat' is spelled otherwise" in refusal(classes_of(tmp_path / "low", "cat", "dog"), ["Cat", "Dog"])
    table = fill(tmp_path / "table", "a.png", "b.png")
    (table / "labels.csv").write_text("path,label\na.png,OK\nb.png,ok\n")
    assert "OK, ok differ in case alone" in refusal(table)


# --- what cannot be listed --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is needed")
def test_a_folder_that_may_not_be_listed_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = classes_of(Path(name), "cat", "dog", "secret")
        root.chmod(0o755)
        (root / "secret").chmod(0)
        code = (
            "import os, sys; from pathlib import Path; from vabal.sources.folders import walk; os.setgroups([]);"
            "os.setuid(65534);"
            "found = walk(Path(sys.argv[1])); print(len(found.files), found.notes());"
            "walk(Path(sys.argv[1]) / 'secret')"
        )
        ours = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}  # nobody may not
        done = subprocess.run([sys.executable, "-c", code, name], env=ours, capture_output=True, text=True, check=False)
    assert done.stdout == "6 ['left out, folders that cannot be read (Permission denied): secret']\n"
    assert done.stderr.splitlines()[-1] == f"vabal.errors.UserError: {name}/secret: Permission denied"


def test_a_folder_with_nothing_to_read_says_what_was_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "@eaDir/a.png")
    assert refusal(tmp_path) == (
        f"{tmp_path}: no files in this folder; left out, side folders of a file server or a system: @eaDir (1 image)"
    )
    (tmp_path / "file").write_bytes(b"")
    assert refusal(tmp_path / "file") == f"{tmp_path}/file: a file, not a folder"


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_folders_around_everything_are_looked_through(tmp_path: Path) -> None:
    for around, stray in (("train", "x.png"), ("data set/2024", "data set/2024/x.png")):
        root = classes_of(tmp_path / around[:4], f"{around}/cat", f"{around}/dog")
        understand(root)
        said = understand(fill(root, stray, start=90))
        assert list(said.labels.values()).count(None) == 1
        assert said.classes == ("cat", "dog")
        assert f"the classes are the folders in {around}" in said.lines


def test_the_first_folder_is_the_class_however_deep_an_image_lies(tmp_path: Path) -> None:
    said = understand(fill(tmp_path, "cat/1.png", "cat/a/b/2.png", "dog/c/3.png", "dog/c/4.png"))
    assert list(said.labels.values()) == ["cat", "cat", "dog", "dog"]
    assert "folders inside cat, dog say nothing: the first folder is the class" in said.lines


def test_splits_are_refused_until_a_layout_keeps_or_ignores_them(tmp_path: Path) -> None:
    names = [f"{split}/{name}" for split in ("train", "val", "test") for name in ("cat", "dog")]
    root = classes_of(tmp_path / "pics", *names)
    (root / "test" / "cat" / "leak.png").write_bytes((root / "train" / "cat" / "0.png").read_bytes())
    said = refusal(root)
    assert "test, train, val are splits, not classes" in said
    for option in ("--layout splits takes test as the holdout and train, val as the pool", "--layout class-folders"):
        assert option in said
    kept = understand(root, layout="splits")
    assert kept.classes == ("cat", "dog")
    assert "      pool   holdout  class" in kept.lines
    assert "         5         4  cat" in kept.lines
    made = build(open_source(f"folder:{root}", layout="splits"), tmp_path / "data", initial=2).pools
    assert len(made.holdout) == 7
    assert set(made.holdout["sample_id"].str.partition("-")[0]) == {"test"}
    assert understand(root, layout="class-folders").classes == ("test", "train", "val")
    assert understand(root / "train").classes == ("cat", "dog")
    assert understand(root, ["test", "train", "val"]).classes == ("test", "train", "val")


def test_without_a_test_folder_the_validation_folder_is_held_out(tmp_path: Path) -> None:
    root = classes_of(tmp_path, *(f"{split}/{name}" for split in ("training_set", "Val") for name in ("cat", "dog")))
    said = understand(root, layout="splits")
    assert "training_set is the pool, Val the holdout" in said.lines
    assert "needs a folder train and a folder test" in refusal(root / "Val", layout="splits")


def test_splits_without_class_folders_are_unlabelled(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "train", "test")
    assert "with --classes a,b for images without labels" in refusal(root)
    assert "--layout splits keeps the splits" in refusal(root, ["ok", "bad"])
    said = understand(root, ["ok", "bad"], "splits")
    assert set(said.labels.values()) == {None}
    assert "         3         3  without a label" in said.lines


def test_splits_beside_other_folders_are_refused_and_each_option_settles_it(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "train/cat", "train/dog", "test/cat", "test/dog", "extra", "unlabeled")
    said = refusal(root)
    assert "test, train may be splits beside the folders extra" in said
    kept = understand(root, layout="splits")
    assert "left out, outside the splits (images): extra (3)" in kept.lines
    assert kept.labels["unlabeled-0"] is None
    assert understand(root, layout="class-folders").classes == ("extra", "test", "train")
    beside = classes_of(tmp_path / "two", "cat", "dog", "test")
    assert "--layout class-folders takes each folder as a class (with --classes cat,dog only these)" in refusal(beside)
    assert "--layout splits" not in refusal(beside)
    assert understand(beside, ["cat", "dog", "test"]).classes == ("cat", "dog", "test")
    only = understand(beside, ["cat", "dog"], "class-folders")
    assert (only.classes, len(only.labels)) == (("cat", "dog"), 6)
    assert "left out, folders that --classes does not name (images): test (3)" in only.lines
    assert "leave such folders out with --layout class-folders" in refusal(beside, ["cat", "dog"])


@pytest.mark.parametrize(
    "names",
    [
        *(
            ("2024-06-01", "2024-06-02"),
            ("20240601", "20240602"),
            ("01.06.2024", "02.06.2024"),
            ("2024-06-01_a", "cat"),
        ),
        *(("2024-06-01T12-30", "2024-06-01T13-30"), ("2023", "2024"), ("2024-W05", "2024-W06"), ("Monday", "tue")),
        *(("january", "Feb"), ("cam01", "cam02"), ("camera_1", "camera_2", "other"), ("Cam A", "Cam B")),
        *(("100CANON", "101CANON"), ("batch1", "batch2"), ("session-1", "session-2"), ("fold0", "fold1")),
        *((sha256(b"1").hexdigest(), sha256(b"2").hexdigest()), ("1717243200", "1717329600"), ("images", "masks")),
        tuple(f"{number:02x}" for number in range(0, 255, 9)),
        ("cat", "dog", "thumbnails"),
    ],
)
def test_days_cameras_and_the_like_are_no_classes_until_the_user_says_so(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    root = classes_of(tmp_path, *names)
    said = refusal(root)
    assert "perhaps no classes" in said
    assert "--layout class-folders" in said
    assert "--layout flat --classes a,b" in said
    assert set(understand(root, layout="class-folders").classes) == set(names)
    assert set(understand(root, names).classes) == set(names)
    flat = understand(root, ["ok", "bad"], "flat")
    assert (flat.classes, set(flat.labels.values())) == (("ok", "bad"), {None})
    if not set(names) & {"cat", "other"}:
        assert set(understand(root, ["ok", "bad"]).labels.values()) == {None}


@pytest.mark.parametrize(
    "names",
    [
        *(tuple("0123456789"), ("n01440764", "n01443537"), ("001.Black_footed", "002.Laysan"), ("may", "elm")),
        *(("dirt", "fold", "scratch"), ("lines", "spots"), ("type1", "type2"), ("mono-0.33", "poly-1.00")),
        *(("good", "bad"), ("10", "2000"), ("sun", "moon"), ("camera", "phone"), ("train station", "airport")),
    ],
)
def test_plain_names_are_classes_without_a_question(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert set(understand(classes_of(tmp_path, *names)).classes) == set(names)


def test_very_many_folders_with_few_images_are_doubted(tmp_path: Path) -> None:
    root = classes_of(tmp_path, *(f"p{number}" for number in range(12)), count=1)
    assert "there are 12 folders, most with 1 image or fewer" in refusal(root)
    assert len(understand(root, layout="class-folders").classes) == 12


def test_folders_that_all_hold_the_same_folders_may_be_places(tmp_path: Path) -> None:
    root = classes_of(tmp_path, *(f"{site}/{name}" for site in ("north", "south") for name in ("ok", "bad")))
    said = refusal(root)
    assert "the folders north, south all hold the same folders bad, ok" in said
    assert "--layout parent-folders takes the innermost folders (bad, ok)" in said
    inner = understand(root, layout="parent-folders")
    assert inner.classes == ("bad", "ok")
    assert inner.labels["south-ok-1"] == "ok"
    assert understand(root, layout="class-folders").classes == ("north", "south")


def test_one_folder_alone_is_no_set_of_classes(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "images")
    assert "at least two classes are needed, found images" in refusal(root)
    assert set(understand(root, ["ok", "bad"]).labels.values()) == {None}


def test_classes_that_no_folder_bears_are_refused_where_folders_look_like_classes(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "cat", "dog")
    said = refusal(root, ["ok", "bad"])
    assert "no folder is named as one of the classes given (ok, bad), the folders are cat, dog" in said
    assert set(understand(root, ["ok", "bad"], "flat").labels.values()) == {None}


@pytest.mark.parametrize(
    ("spec", "layout", "said"),
    [
        ("folder:x", "tree", "--layout 'tree': known are class-folders, parent-folders, splits, flat"),
        ("folder+tree:x", None, "--layout 'tree': known are"),
        ("digits", "flat", "says how a folder:PATH is read"),
        ("digits+flat", None, "says how a folder:PATH is read"),
    ],
)
def test_a_layout_that_there_is_not_is_refused(spec: str, layout: str | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_source(spec, layout=layout)


def test_a_source_can_carry_its_layout(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "2023", "2024")
    for layout in LAYOUTS:
        assert sources.with_layout(f"folder:{root}", layout) == f"folder+{layout}:{root}"
    assert open_source(f"folder+class-folders:{root}").classes == ("2023", "2024")


@pytest.mark.parametrize("classes", [["a", "a"], ["a", ""]])
def test_classes_are_named_once_each(tmp_path: Path, classes: list[str]) -> None:
    with pytest.raises(UserError, match="each class is named once"):
        open_source(f"folder:{classes_of(tmp_path, 'a', 'b')}", classes)


# --- labels.csv -------------------------------------------------------------------------------------------------------


def listed(root: Path, *names: str) -> list[str | None]:
    """Labels that a table with these names gives to the images there."""
    (root / "labels.csv").write_text(
        "path,label\n" + "".join(f"{name},{['ok', 'bad'][i % 2]}\n" for i, name in enumerate(names))
    )
    return list(understand(root).labels.values())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("sub/größe.png", "b.PNG"),
        (unicodedata.normalize("NFD", "sub/größe.png"), "b.PNG"),
        ("sub\\größe.png", "b.PNG"),
        ("./sub/größe.png", "b.png"),
        ("SUB/GRÖSSE.PNG", "B.png"),
        ("sub/größe", "b"),
        ("größe.png", "b.PNG"),
        ("{root}/sub/größe.png", "file://{root}/b.PNG"),
        ("pics/sub/größe.png", "pics/b.PNG"),
    ],
)
def test_a_table_may_name_its_files_in_many_ways(tmp_path: Path, first: str, second: str) -> None:
    root = fill(tmp_path / "pics", "sub/größe.png", "b.PNG")
    assert listed(root, *(name.format(root=root) for name in (first, second))) == ["bad", "ok"]


def test_a_name_that_several_files_might_mean_means_none(tmp_path: Path) -> None:
    root = fill(tmp_path, "a/1.png", "b/1.png", "x.png", "y.png")
    assert listed(root, "x.png", "y.png", "1.png", "c/1.png") == [None, None, "ok", "bad"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["https://example.org/a.png"], "'https://example.org/a.png' is an address: fetch the images"),
        (["/elsewhere/a.png"], "is no path below this folder"),
        (["C:/pics/a.png"], "is no path below this folder"),
        (["sub/../../a.png"], "is no path below this folder"),
        (["nowhere.png"], "none of its 1 names is a file there: nowhere.png"),
        (["a.png", "A.png"], "a.png and A.png mean the same file, with different values"),
    ],
)
def test_a_table_whose_names_lead_elsewhere_is_refused(tmp_path: Path, names: list[str], said: str) -> None:
    root = fill(tmp_path / "pics", "a.png", "b.png")
    with pytest.raises(UserError, match=said):
        listed(root, *names)


def test_a_table_stands_before_folders_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    root = classes_of(tmp_path, "train", "test")
    (root / "Labels.csv").write_text(
        "path,label\n" + "".join(f"{s}/{n}.png,c{n}\n" for s in ("train", "test") for n in range(3))
    )
    assert understand(root).classes == ("c0", "c1", "c2")
    assert "labels come from Labels.csv" in understand(root).lines
    kept = understand(root, layout="splits")
    assert (kept.classes, kept.lines[1]) == (("c0", "c1", "c2"), "      pool   holdout  class")
    assert understand(root, layout="class-folders").classes == ("test", "train")


def test_labels_of_a_table_in_both_unicode_forms_are_one_class(tmp_path: Path) -> None:
    root = fill(tmp_path, "a.png", "b.png", "c.png")
    forms = [unicodedata.normalize(form, "größe") for form in ("NFC", "NFD")]
    (root / "labels.csv").write_text(f"path,label\na.png,{forms[0]}\nb.png,{forms[1]}\nc.png,ok\n", encoding="utf-8")
    assert understand(root).classes == (forms[0], "ok")
    assert understand(root, ["ok", forms[1]]).classes == ("ok", forms[0])


def test_a_table_that_is_not_alone_on_top_is_refused(tmp_path: Path) -> None:
    root = fill(tmp_path / "pics", "data/a.png", "data/b.png")
    (root / "data" / "labels.csv").write_text("path,label\na.png,ok\nb.png,bad\n")
    said = refusal(root)
    assert f"data/labels.csv is read only on top: name {root}/data as the source" in said
    assert understand(root / "data").classes == ("bad", "ok")
    (root / "data" / "Labels.csv").write_text("path,label\na.png,bad\nb.png,ok\n")
    assert "Labels.csv, labels.csv: keep one of them" in refusal(root / "data")


def test_a_copy_in_quarantine_that_was_not_listed_is_listed_the_next_time(tmp_path: Path) -> None:
    (tmp_path / "cam").mkdir()
    (tmp_path / "cam" / "a.png").write_bytes(b"nothing")
    for _ in range(2):
        ingest(tmp_path, tmp_path / "cam")
        listing = tmp_path / "aside" / "quarantine.csv"
        assert len(listing.read_text().splitlines()) == 2
    listing.unlink()
    ingest(tmp_path, tmp_path / "cam")
    assert len(listing.read_text().splitlines()) == 2


# --- what is told, and when -------------------------------------------------------------------------------------------


def test_what_was_understood_is_told_before_anything_is_written(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "pics", "cat", "dog")
    (root / "cat" / "x.png").write_bytes(b"")
    there: list[list[Path]] = []
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        there.append(list((tmp_path / "made").rglob("*")))

    build(
        open_source(f"folder:{root}"),
        *(tmp_path / "made" / "data",),
        initial=2,
        quarantine=tmp_path / "made" / "quarantine",
        tell=tell,
    )
    assert lines[:4] == [
        f"source folder {root}: 6 images, 2 classes; class-folders: the first folder of an image is its class",
        "    images  class",
        "         3  cat",
        "         3  dog",
    ]
    assert "1 unreadable, listed in quarantine/quarantine.csv" in "\n".join(lines)
    assert there == [[]] * len(lines)
    assert (tmp_path / "made" / "quarantine" / "quarantine.csv").exists()


def test_a_long_list_of_classes_is_shortened(tmp_path: Path) -> None:
    root = classes_of(tmp_path, *(f"class{number}" for number in range(60)), count=4)
    lines = understand(root).lines
    assert len(lines) == 2 + sources.LONGEST_TABLE
    assert lines[-1] == "       164  in 41 more classes, 4 to 4 each"


def test_the_command_prints_it_and_takes_names_with_commas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vabal.cli.app import app

    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    root = classes_of(tmp_path / "pics", "a,b", "2024-06-01")
    (tmp_path / "work").mkdir()
    command = ["-C", str(tmp_path / "work"), "init", "--source", f"folder:{root}", "--initial", "2"]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, UserError)
    assert {path.name for path in (tmp_path / "work").iterdir()} <= {".vabal"}
    done = CliRunner().invoke(app, [*command, "--classes", '"a,b",2024-06-01'])
    assert done.exit_code == 0, done.output
    assert "         3  a,b" in done.output


# --- ingest -----------------------------------------------------------------------------------------------------------


def ingest(tmp_path: Path, path: Path) -> ingestion.IngestReport:
    from datetime import UTC, datetime

    when = datetime(2026, 1, 1, tzinfo=UTC)
    return ingestion.ingest(tmp_path / "inbox", small_pools(), path, Params(), quarantine=tmp_path / "aside", when=when)


def test_ingest_reads_folders_alike_and_tells_what_it_left_out(tmp_path: Path) -> None:
    root = fill(tmp_path / "cam", "x.png", "2024-06-01/y.png", "@eaDir/x.png", start=30)
    (root / "z.png").symlink_to(root / "x.png")
    (root / "gone.png").symlink_to(root / "nowhere")
    (root / "round").symlink_to(root)
    report = ingest(tmp_path, root)
    assert report.sample_ids == ("2024-06-01-y", "x")
    said: Any = report.lines()
    assert "left out, links to files that are there: z.png (is x.png)" in said
    assert "left out, links to nothing: gone.png" in said
    assert "left out, links back to a folder around them: round" in said
    assert "left out, side folders of a file server or a system: @eaDir (1 image)" in said


# --- bench ------------------------------------------------------------------------------------------------------------


def test_bench_reads_a_layout_from_its_source_and_drops_classes_without_an_image(tmp_path: Path) -> None:
    root = classes_of(tmp_path / "pics", *(f"{split}/{name}" for split in ("train", "test") for name in ("cat", "dog")))
    (root / "train" / "empty").mkdir()
    (root / "train" / "empty" / "x.png").write_bytes(b"")
    prepared = cells.prepare(f"folder+splits:{root}", {}, tmp_path / "cache")
    assert (prepared.classes, prepared.brings_holdout) == (("cat", "dog"), True)
    arena = cells.simulated_pool(f"folder+splits:{root}", prepared, "natural", 0, 2, 0.2)
    assert len(arena.holdout_M) == 6
