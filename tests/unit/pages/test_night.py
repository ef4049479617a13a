import base64
import hashlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support import small_books
from tests.support.documents import Document
from tests.support.small_books import Books
from vabal.audit.curve import curve
from vabal.errors import UserError
from vabal.flows.report import keep_indices, keep_report
from vabal.images import write_shards
from vabal.pages import night
from vabal.pages.blocks import Block, Card, Commands, Fact, Gallery, Group, Pictured, Pictures, Section, Text
from vabal.pages.night import changes, judged, looks, reasons
from vabal.pages.night.record import read
from vabal.pages.pictures import Picture, pictures
from vabal.pages.rendering import render
from vabal.promotion.record import Entry, append
from vabal.rounds import tables
from vabal.settings.models import PoolSettings
from vabal.settings.params import parse
from vabal.workspace import Workspace

SECTIONS = ["picks", "changes", "curve", "champion", "seconds", "method"]


def place_of(books: Books) -> Workspace:
    (books.root / "params.yaml").write_text("{}")
    return Workspace(books.root)


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Three rounds: look at them, and copy them before changing anything."""
    return small_books.build(tmp_path_factory.mktemp("books"))


@pytest.fixture(scope="module")
def place(books: Books) -> Workspace:
    return place_of(books)


@pytest.fixture(scope="module")
def second(place: Workspace) -> str:
    return night.page(place, 2, {"intake": 0.5, "train-classifier": 3.0})


@pytest.fixture
def copied(books: Books, tmp_path: Path) -> Workspace:
    shutil.copytree(books.data, tmp_path / "data")
    (tmp_path / "params.yaml").write_text("{}")
    return Workspace(tmp_path)


def said(page: str) -> str:
    return " ".join(" ".join(Document(page).text).split())


# -- the page -----------------------------------------------------------------------------------------------------


def test_a_page_has_every_section_and_every_pick_with_its_picture(second: str, books: Books) -> None:
    document = Document(second)
    assert [section["id"] for section in document.all("section")] == SECTIONS
    told = said(second)
    for sample in books.picked(2):
        assert sample in told
        assert any((image["alt"] or "").startswith(f"{sample}, rank") for image in document.all("img"))
    assert all(image["alt"] and (image["src"] or "").startswith("data:image/") for image in document.all("img"))
    assert "train-classifier 3.0" in told
    assert "vabal report 2" in told


def test_a_page_loads_nothing_and_its_policy_allows_no_script_but_its_own(second: str) -> None:
    assert "://" not in second
    document = Document(second)
    assert not {tag for tag, _ in document.elements} & {"link", "iframe", "object", "base"}
    [script] = re.findall(r"<script>(.*?)</script>", second, flags=re.DOTALL)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [meta["content"] or "" for meta in document.all("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{allowed}'" in policy
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_same_record_gives_the_same_file_which_git_ignores(place: Workspace) -> None:
    path = night.write(place, 3)
    assert path == place.root / "reports" / "0003.html"
    first = path.read_bytes()
    assert night.write(place, 3).read_bytes() == first
    assert (path.parent / ".gitignore").read_text() == "*\n"


def test_without_scripts_picks_stand_by_rank_within_their_class(second: str) -> None:
    groups = second.split('<ol class="cards">')[1:]
    assert len(groups) > 1
    for group in groups:
        ranks = [int(rank) for rank in re.findall(r'data-rank="(\d+)"', group)]
        assert ranks == sorted(ranks)
    assert '<form class="orders" hidden>' in second


@pytest.mark.parametrize(("number", "why"), [(0, "round 0 has no page"), (7, "no round 7: there are rounds 0 to 3")])
def test_rounds_without_a_page_are_refused(place: Workspace, number: int, why: str) -> None:
    with pytest.raises(UserError, match=why):
        night.page(place, number)


HOSTILE = "<script>alert('1')</script>\"><u onload=x>"


def test_hostile_names_are_shown_and_do_nothing() -> None:
    image = Picture("", "data:image/png;base64,AAAA", 1, 1).saying(HOSTILE)
    card = Card(HOSTILE, image, HOSTILE, [Fact(HOSTILE, HOSTILE)], {"rank": 1}, image, HOSTILE)
    kinds: list[Block] = [
        Gallery([Group(HOSTILE, [card])], {"rank": HOSTILE}),
        Pictures([Pictured(Picture(HOSTILE), [HOSTILE])], HOSTILE),
        Text([HOSTILE]),
        Commands([HOSTILE]),
    ]
    page = render(
        "night.html.j2",
        title=HOSTILE,
        headline=HOSTILE,
        notes=[HOSTILE],
        about={},
        sections=[Section("a", HOSTILE, kinds)],
    )
    document = Document(page)
    assert not {tag for tag, _ in document.elements} & {"script", "u"}
    assert "".join(document.text).count(HOSTILE) == 18
    assert [image["alt"] for image in document.all("img")] == [HOSTILE] * 2


def test_hostile_class_names_of_a_record_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Books, "classes", (HOSTILE, "$x_1$", "絵 & 0.12345"))
    page = night.page(place_of(Books(tmp_path).begin().round("entropy")), 1)
    document = Document(page)
    assert not {tag for tag, _ in document.elements} & {"u", "onload"}
    assert len(document.all("script")) == 1
    assert HOSTILE in "".join(document.text)


# -- a record that lacks something --------------------------------------------------------------------------------


def test_without_candidates_picks_are_told_by_their_scores_and_the_page_says_so(copied: Workspace) -> None:
    (copied.data / "rounds/0002/candidates.parquet").unlink()
    told = said(night.page(copied, 2))
    assert "has no candidates.parquet" in told
    assert "by vabal, of which the record tells no more" in told
    assert "undecided between" not in told


def test_without_predictions_there_is_no_curve_and_no_comparison(copied: Workspace) -> None:
    for number in (1, 2, 3):
        (copied.data / f"rounds/{number:04d}/holdout_predictions.parquet").unlink()
    page = night.page(copied, 2)
    assert [section["id"] for section in Document(page).all("section")] == [
        name for name in SECTIONS if name != "curve"
    ]
    assert "Nothing was measured" in page


def test_without_its_images_a_page_has_words_in_their_place(copied: Workspace) -> None:
    for path in (copied.data / "images").iterdir():
        path.unlink()
    page = night.page(copied, 2)
    assert not Document(page).all("img")
    assert "Pictures were not compared" in page
    assert "cannot be read" in page


def test_without_a_labelled_image_nothing_is_shown_beside_a_pick(tmp_path: Path) -> None:
    page = night.page(place_of(Books(tmp_path).begin(labeled=0, asked=3).round("random")), 1)
    assert 'class="near"' not in page
    assert "drawn at random" in said(page).lower()


# -- reasons ------------------------------------------------------------------------------------------------------

COUNTS = {"crack": 90, "fray": 4, "hole": 0}


def pick(**changes: Any) -> reasons.Pick:
    return reasons.Pick(**{"strategy": "vabal", "score": 1.5, "posterior": {}, "alone": False, "new": False, **changes})


@pytest.mark.parametrize(
    ("told", "words", "kind"),
    [
        (
            pick(posterior={"crack": 0.5, "fray": 0.45, "hole": 0.05}, alone=True),
            "undecided between crack and fray; fray is rare among the labels (4 of 94); unlike every other pick",
            reasons.UNSURE,
        ),
        (pick(posterior={"crack": 0.6, "fray": 0.3}), "rather crack than fray; fray is rare", reasons.SCARCE),
        (pick(posterior={"crack": 0.9, "fray": 0.1, "hole": 0.0}), "sure of crack", reasons.SURE),
        (pick(posterior={"hole": 0.9, "crack": 0.1}), "sure of hole; no label is hole yet", reasons.SCARCE),
        (pick(posterior={"crack": 0.9}, new=True), "sure of crack; unlike every labelled image", reasons.UNLIKE),
        (pick(strategy="mine"), "score 1.5 by mine, of which the record tells no more", reasons.SCORED),
        (pick(strategy="random"), "drawn at random", reasons.DRAWN),
    ],
)
def test_a_reason_is_told_in_words(told: reasons.Pick, words: str, kind: int) -> None:
    found = reasons.reason(told, COUNTS)
    assert found.words.startswith(words)
    assert found.kind == kind


# -- distances ----------------------------------------------------------------------------------------------------


def test_the_nearest_pick_and_the_nearest_label_are_found_by_what_images_show(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    kinds = random.integers(0, 256, (3, 8, 8), dtype=np.uint8)
    names = ["a", "b", "c", "x", "y"]
    shown = [kinds[0], kinds[0] // 2, kinds[1], kinds[1], kinds[2]]  # b is a, darker
    contents = [(name, encoded(Image.fromarray(image))) for name, image in zip(names, shown, strict=True)]
    placed = write_shards(contents, tmp_path / "data/images", settings=PoolSettings(), name_prefix="r0")
    rows = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
    settings = parse({"images": {"size": 8, "channels": 1}, "classifier": {"learner": "scratch"}})
    found = looks.looks(Workspace(tmp_path), settings, rows.iloc[:3], rows.iloc[3:])
    assert [found.picks[name].sample for name in "ab"] == ["b", "a"]
    assert found.picks["a"].distance < 0.01
    assert not found.picks["a"].far
    assert found.picks["c"].far
    assert found.labeled["c"].sample == "x"
    assert found.labeled["c"].distance < 1e-6
    assert found.measure == looks.PIXELS


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


# -- what changed, who is better ----------------------------------------------------------------------------------


def test_what_a_nights_labels_did_is_counted(place: Workspace, books: Books) -> None:
    found = changes.came(read(place.data, 2))
    first = books.picked(1)
    assert found.new == dict.fromkeys(first[:4], "dog")
    assert found.corrected == {"s006": ("cat", "emu")}
    assert found.rejected == [first[4]]
    assert found.images == 5
    assert found.disputed == {"s006": {"source": "cat", "ann": "emu"}}


def promoted(number: int, previous: int | None, action: str, parent: Entry | None) -> Entry:
    return Entry(
        sequence=1 if parent is None else parent.sequence + 1,
        when="2026-03-02T08:00:00+00:00",
        who="ann",
        action=action,  # type: ignore[arg-type]
        version=str(number),
        round=number,
        previous_version=None if previous is None else str(previous),
        previous_round=previous,
        why="because of <reasons>",
        decision={"promoted": action == "promote"},
        parent=None if parent is None else parent.digest(),
    )


def test_champion_and_challenger_are_compared_class_by_class_and_the_decision_is_told(copied: Workspace) -> None:
    assert "does not tell who was champion then" in night.page(copied, 2)
    first = promoted(1, None, "promote", None)
    append(copied.root, first)
    append(copied.root, promoted(2, 1, "refuse", first))
    page = night.page(copied, 2)
    assert "Version 2 was refused on 2026-03-02 08:00 UTC by ann: because of &lt;reasons&gt;" in page
    assert "Recall of each class" in page
    found = judged.duel(read(copied.data, 2))
    assert isinstance(found, judged.Duel)
    mine, theirs = (found.table[who] == found.table["label"] for who in ("challenger", "champion"))
    for words, some in (("champion wrong", mine & ~theirs), ("champion right", theirs & ~mine)):
        assert (f"and the {words}" in page) == bool(some.any())
        for sample in found.table.loc[some, "sample_id"]:
            assert f'alt="{sample}, labelled' in page
    assert "There was no champion yet when" in night.page(copied, 1)


def test_a_pages_curve_is_that_of_the_command(place: Workspace) -> None:
    rows, points = curve(place.data), judged.curve(read(place.data, 3))
    assert [row["round"] for row in rows] == [point.round for point in points]
    for row, point in zip(rows, points, strict=True):
        for measure, found in ((row["balanced_accuracy"], point.balanced), (row["accuracy"], point.accuracy)):
            assert [found.value, found.low, found.high] == pytest.approx(list(measure.values()))


@pytest.mark.parametrize(("right", "images"), [(0, 7), (7, 7), (3, 10), (180, 200)])
def test_the_interval_of_one_share_is_wilsons(right: int, images: int) -> None:
    z, p = 1.959964, right / images
    middle = (p + z * z / (2 * images)) / (1 + z * z / images)
    half = z / (1 + z * z / images) * np.sqrt(p * (1 - p) / images + z * z / (4 * images**2))
    found = judged.share([right], [images])
    assert (found.low, found.value, found.high) == pytest.approx((middle - half, p, middle + half), abs=1e-5)
    assert 0 <= found.low <= found.high <= 1


def test_a_class_without_images_is_left_out_of_the_mean_over_classes() -> None:
    assert judged.share([5, 0, 1], [10, 0, 1]).value == pytest.approx(0.75)


# -- size ---------------------------------------------------------------------------------------------------------


def test_the_more_pictures_a_page_has_the_smaller_they_are(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 300, 300, 3), dtype=np.uint8)
    contents = [(str(number), encoded(Image.fromarray(image))) for number, image in enumerate(noise)]
    placed = write_shards(contents, tmp_path / "data/images", settings=PoolSettings(), name_prefix="r0")
    rows = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])

    few = pictures(tmp_path / "data", rows, dict.fromkeys("0123", 1))
    many = pictures(tmp_path / "data", rows, dict.fromkeys("0123", 520))

    assert {picture.width for picture in few.values()} == {224}
    assert all(picture.width < 224 for picture in many.values())
    assert sum(520 * len(picture.source) for picture in many.values()) < 18e6


# -- when it fails ------------------------------------------------------------------------------------------------


def test_a_page_that_fails_is_told_in_one_line_and_raises_nothing(copied: Workspace) -> None:
    class Mlflow:
        kept: list[Path] = []  # noqa: RUF012
        described = ""

        def log_artifacts(self, run: str, files: list[Path], folder: str) -> None:
            assert (run, folder) == (f"{2:032x}", "report")
            self.kept += files

        def describe_run(self, run: str, text: str) -> None:
            assert run == f"{2:032x}"
            assert text.startswith("#")

        def describe_version(self, version: str, text: str) -> None:
            self.described = f"{version}: {text}"

    server: Any = Mlflow()
    told: list[str] = []

    assert keep_report(copied, 2, server, told.append) == copied.report(2)
    assert server.kept == [copied.report(2), copied.report(2).with_name("0002-card.md")]
    assert server.kept[1].read_text().startswith(server.described.removeprefix("2: ")[:40])
    copied.report(2).unlink()
    (copied.data / "rounds/0002/selection.parquet").write_bytes(b"nothing")
    assert keep_report(copied, 2, server, told.append) is None
    [line] = told
    assert line.startswith("the page of round 2 was not written: ")
    assert line.endswith("(`vabal report 2` tries again)")
    assert "\n" not in line
    assert not copied.report(2).exists()


def test_where_an_index_cannot_be_kept_a_line_says_so(books: Books, tmp_path: Path) -> None:
    place, told = place_of(books.copied(tmp_path)), list[str]()
    place.indices.write_bytes(b"a file where the folder should be")
    keep_indices(place, told.append)
    [line] = told
    assert line.startswith("the candidates' index was not kept: ")
    assert line.endswith("(`vabal audit --sample` reads the tables until it is)")
    place.indices.unlink()
    keep_indices(place, told.append)
    assert (len(told), len(list(place.indices.iterdir()))) == (1, 3)


def test_what_control_arm_and_drift_tell_is_logged_and_on_the_page(tmp_path: Path) -> None:
    class Mlflow:
        points: dict[str, tuple[float, int]] = {}  # noqa: RUF012

        def log_artifacts(self, run: str, files: list[Path], folder: str) -> None:
            pass

        def describe_run(self, run: str, text: str) -> None:
            pass

        def describe_version(self, version: str, text: str) -> None:
            pass

        def log_metrics(self, run: str, metrics: list[tuple[str, float, int]]) -> None:
            assert run == f"{2:032x}"
            self.points |= {name: (value, step) for name, value, step in metrics}

    books = Books(tmp_path).begin(total=60).round("vabal", control_share=0.5)
    heard: list[str] = []
    arm = tables.read_selection(books.data / "rounds/0001/selection.parquet")
    arm = arm[arm["probability"].notna()]
    answers = dict(zip(arm["sample_id"], arm["predicted_class"], strict=True))
    place = place_of(books.round("vabal", labels=answers, new=20, shift=2.0, control_share=0.5))
    server: Any = Mlflow()
    assert keep_report(place, 2, server, heard.append) is not None
    assert server.points["control/accuracy"] == (1.0, 2)
    assert server.points["drift/p_value"] == (0.001, 2)
    assert [line.partition(":")[0] for line in heard] == ["round 2's new images are not like those before"]
    page = night.page(place, 2)
    assert "drift" in [section["id"] for section in Document(page).all("section")]
    assert "Round 2's new images are not like those before: p 0.001" in said(page)


def test_a_page_tells_what_the_control_arm_shows_and_who_was_drawn(tmp_path: Path) -> None:
    books = Books(tmp_path).begin(total=60).round("vabal", control_share=0.5)
    labels: dict[str, str | None] = dict.fromkeys(books.picked(1), "dog")
    place = place_of(books.round("vabal", labels=labels, control_share=0.5))
    page = night.page(place, 2)
    assert "control" in [section["id"] for section in Document(page).all("section")]
    told = said(page)
    assert "3 images picked by vabal and 3 drawn uniformly beside them" in told
    assert told.count("Drawn at random, for the control arm") == 3
    assert "3 of 3" in told
    assert "The model was wrong on" in told
    assert "class round 1 cat 0.0 [0, 56] dog 100.0 [44, 100] emu 0.0 [0, 56]" in told
    added = [("add", "<owl>", None)]
    labels = dict.fromkeys(books.picked(2), "cat")
    place_of(
        books.round("bald", labels=labels, changes=added, control_share=0.5)
    )  # posteriors, where the arm has logits
    told = said(night.page(place, 3))
    assert "class round 2 rounds 1 to 3 cat 100.0 [44, 100] 50.0 [19, 81]" in told
    assert "Rare classes" not in told  # that class was none among the first labels
    assert "no posteriors of the picks" not in said(night.page(place, 3))


def test_a_page_tells_how_far_people_agree(tmp_path: Path) -> None:
    books = Books(tmp_path).begin().round("random")
    one, two, *_ = books.picked(1)
    said_of = [
        (one, "cat", "ann"),
        (one, "cat", "bob"),
        (one, "dog", "<b>eve"),
        (two, "emu", "ann"),
        (two, "emu", "bob"),
    ]
    place = place_of(books.round("random", opinions=said_of, consensus="majority"))
    page = night.page(place, 2)
    told = said(page)
    assert "3 people have an opinion on 2 images; of 2 images with several opinions they disagree about 1" in told
    assert "<b>eve 1 0 1 0 %" in told
    assert "ann, bob 2 1.00" in told
    assert "what most say, else the newest opinion, stands" in told
    assert "consensus: cat" not in told
    assert "people" not in [section["id"] for section in Document(night.page(place, 1)).all("section")]


def test_a_page_tells_what_is_asked_about_again_and_why(tmp_path: Path) -> None:
    books = Books(tmp_path).begin(total=60).round("vabal")
    one = books.picked(1)[0]
    place = place_of(books.round("vabal", opinions=[(one, "cat", "ann"), (one, "dog", "bob")], ask_again=0.5))
    told = said(night.page(place, 2))
    assert f"{6 - len(books.asked)} images picked by vabal, and {len(books.asked)} asked about again" in told
    assert "again about 1 image on which people contradict each other and" in told
    assert f"{one} dog stands ann: cat bob: dog" in told
    assert len(re.findall(r"stands probability 0\.\d{3}", told)) == len(books.asked) - 1 > 0
    (books.data / "rounds/0002/held_out.parquet").write_bytes(b"damaged")
    assert "stands probability" not in said(night.page(place, 2))
