import base64
import io
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.documents import Document
from tests.support.small_cells import cell, grid
from vabal.benchmark.comparison import summarise
from vabal.errors import missing_extra
from vabal.pages import report
from vabal.pages.headline import headline

NAMES = ("vabal", "vabal-paper", "random", "margin", "balanced:entropy")
ABOUT = {"command": "vabal bench --source digits", "settings": {"rounds": 3, "list": [1, 2]}, "code": ["abc"]}


def page_of(cells: list[dict[str, Any]], title: str = "A comparison", about: dict[str, Any] | None = None) -> str:
    return report.page(cells, summarise(cells), title=title, about=about or {})


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(grid(strategies=NAMES, seeds=3, rounds=3), about=ABOUT)


@pytest.fixture(scope="module")
def document(page: str) -> Document:
    return Document(page)


def test_a_report_is_whole_html_with_every_section_and_strategy(page: str, document: Document) -> None:
    assert page.startswith("<!doctype html>")
    heads = [attributes["id"] for attributes in document.all("section")]
    assert heads == ["overall", "rivals", "curves", "differences", "rare", "classes", "picks", "seconds", "method"]
    said = " ".join(document.text)
    assert all(said.count(name) > 10 for name in NAMES)
    assert "vabal bench --source digits" in said
    assert len(document.all("svg")) == 2 + 4 + 4 + 1 + 2 * len(NAMES) + 2


def test_a_report_asks_nothing_of_a_network_and_runs_no_script(page: str, document: Document) -> None:
    assert "://" not in page
    assert "url(" not in page.replace("url(#", "")
    assert not {tag for tag, _ in document.elements} & {"script", "link", "iframe", "object", "base", "use:href"}
    links = [value for _, attributes in document.elements for name, value in attributes.items() if name == "href"]
    assert links and all(value and value.startswith("#") for value in links)
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in document.all("img"))
    assert not [name for _, attributes in document.elements for name in attributes if name.startswith("on")]


def test_ids_are_unique_and_what_refers_to_them_finds_them(page: str, document: Document) -> None:
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_the_same_cells_give_the_same_bytes_in_any_order_and_another_process(tmp_path: Path) -> None:
    cells = grid(strategies=NAMES[:3], settings=[("digits", "dominant:0:0.1")], seeds=2, rounds=2)
    report.write(cells, summarise(cells), tmp_path / "a.html", title="t", about=ABOUT)
    report.write(cells[::-1], summarise(cells[::-1]), tmp_path / "b.html", title="t", about=ABOUT)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    script = (
        "import sys, pathlib; from tests.support.small_cells import grid; from vabal.benchmark import comparison;"
        "from vabal.pages import report;"
        "drawing = 'matplotlib' in sys.modules;"
        f"cells = grid(strategies={NAMES[:3]!r}, settings=[('digits', 'dominant:0:0.1')], seeds=2, rounds=2);"
        f"report.write(cells, comparison.summarise(cells), pathlib.Path({str(tmp_path / 'c.html')!r}), title='t', "
        f"about={ABOUT!r}); print(drawing, 'matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
    )
    assert result.stdout.strip() == "False False", result.stderr
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "c.html").read_bytes()


def test_hostile_names_are_shown_and_do_nothing() -> None:
    classes = ("<script>alert(1)</script>", "$\\frac$", '"><b>', "#010101", "絵 & 0.123456")
    names = ("random", "<script>alert('s')</script>", '$x_1$ & "q"')
    cells = grid(strategies=names, settings=[("<i>src</i>", "dominant:'0'\"<u>")], seeds=2, rounds=2, classes=classes)
    document = Document(page_of(cells, title="<script>t</script>", about={"<b>": {"<script>": ["<script>"]}}))
    assert not {tag for tag, _ in document.elements} & {"script", "i", "u"}
    said = "".join(document.text)
    for shown in (*names, "<i>src</i>, dominant:'0'\"<u>", "$\\frac$", "#010101", "絵 & 0.123"):
        assert shown in said
    assert any((image["alt"] or "").startswith("labelled <script>") for image in document.all("img"))


def test_tables_have_scopes_and_captions_and_pictures_have_words(document: Document) -> None:
    assert all(head.get("scope") in {"col", "row"} for head in document.all("th"))
    assert len(document.all("caption")) == len(document.all("table"))
    assert all(svg["role"] == "img" and len(svg["aria-label"] or "") > 20 for svg in document.all("svg"))
    assert all(image["alt"] for image in document.all("img"))
    numbers = [int(number) for number in re.findall(r"Table (\d+)\.", " ".join(document.text))]
    assert numbers == list(range(1, len(document.all("table")) + 1))


def test_drawings_take_their_colours_from_the_page(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert not re.findall(r"(?:fill|stroke): #", drawings)
    variables = set(re.findall(r"var\((--[\w-]+)\)", page))
    assert {"--own-0", "--own-1", "--other-0", "--ink"} <= variables
    assert all(f"{variable}:" in page for variable in variables)


def test_picks_of_the_dominant_class_are_framed() -> None:
    cells = grid(strategies=["random"], settings=[("digits", "dominant:0:0.1")], seeds=1, rounds=2)
    picks = cells[0]["top_picks"]
    document = Document(page_of(cells))
    framed = [item for item in document.all("li") if item.get("class") == "dominant"]
    assert 0 < len(framed) == sum(pick["label"] == "0" for pick in picks) < len(picks)
    shown = base64.b64decode((document.all("img")[0]["src"] or "").split(",")[1])
    with Image.open(io.BytesIO(shown)) as image:
        assert image.size == (8, 8)


def test_the_best_of_a_column_is_bold(page: str) -> None:
    first = re.search(r"<caption><b>Table 6.*?</table>", page, flags=re.DOTALL)
    assert first
    rows = re.findall(r'<tr[^>]*><th scope="row">([^<]+)</th>(.*?)</tr>', first[0])
    averages = {name: float(re.findall(r"<td>(?:<b>)?([\d.]+)", cells)[1]) for name, cells in rows}
    bold = [name for name, cells in rows if re.findall(r"<td>(.*?)</td>", cells)[1].startswith("<b>")]
    assert bold == [max(averages, key=lambda name: averages[name])]


@pytest.mark.parametrize(
    "cells",
    [
        [cell([0.5])],
        [cell([0.5], strategy="vabal")],
        [cell([0.5, 0.6]), cell([0.5, 0.7], strategy="vabal")],
        [cell([0.5, 0.6], seed=0), cell([0.5, 0.7], strategy="vabal", seed=1)],
        [cell([0.5, 0.5], recall=[None, None]), cell([0.5, 0.5], strategy="vabal", picked=[[20, 0], [20, 0]])],
        [cell([0.5, 0.6]), cell([0.5, 0.7], strategy="vabal", imbalance="rare:1")],
    ],
    ids=["baseline alone", "no baseline", "one seed", "no pair", "nothing moves", "no setting shared"],
)
def test_a_grid_with_little_in_it_makes_a_report(cells: list[dict[str, Any]]) -> None:
    document = Document(page_of(cells))
    assert "nan" not in " ".join(document.text).split()


def test_what_an_unfinished_grid_lacks_is_said_at_the_top() -> None:
    cells = [cell([0.5, 0.6], seed=seed) for seed in range(3)] + [cell([0.5, 0.7], strategy="margin", seed=1)]
    said = " ".join(Document(page_of(cells)).text)
    assert "margin in digits, natural lacks 2 of 3 seeds" in said


def test_learners_stand_beside_strategies_with_the_best_in_bold_and_verdicts_in_words() -> None:
    cells = [
        cell([0.5, value + seed / 100], strategy=name, seed=seed, learner=learner, caveat="optimistic: they overlap")
        for seed in range(5)
        for learner, name, value in (("probe", "random", 0.8), ("probe", "margin", 0.9), ("svm-hog", "random", 0.6))
    ]
    page = page_of(cells)
    shown = re.search(r"<caption><b>Table 2.*?</table>", page, flags=re.DOTALL)
    assert shown
    assert re.findall(r'<th scope="col">([^<]+)', shown[0]) == ["learner", "random", "margin"]
    found = re.findall(r'<th scope="row">([^<]+)</th>(.*?)</tr>', shown[0])
    assert found == [
        ("probe", "<td>72.00</td><td><b>82.00</b></td>"),
        ("svm-hog", "<td>52.00</td><td>–</td>"),
    ]
    said = " ".join(Document(page).text)
    assert "digits : optimistic: they overlap." in said
    assert "probe/margin less each other row" in said
    assert "not distinguishable" in said  # the same difference in each seed: there is no test


# -- in words -------------------------------------------------------------------------------------------------------


def seeds_of(strategy: str, gain: float, imbalance: str = "natural") -> list[dict[str, Any]]:
    return [
        cell([0.5, 0.6 + 2 * gain + seed / 1000 * (strategy != "random")], strategy=strategy, seed=seed, imbalance=imbalance)  # noqa: E501
        for seed in range(3)
    ]  # fmt: skip


def test_a_gain_is_said_with_its_interval_and_the_closest_rival() -> None:
    cells = seeds_of("random", 0) + seeds_of("vabal", 0.05) + seeds_of("margin", 0.04)
    assert headline(summarise(cells)) == (
        "vabal's average balanced accuracy is 5.05 points above random's with 3 matched seeds "
        "(95 % interval [+4.93, +5.17]). "
        "No rival's mean is higher; the closest, margin, is 1.00 points lower. "
        "Of 1 rival it is, after Holm's correction, ahead of 1 (random)."  # margin's seeds are all alike: no test
    )


def test_a_gain_that_may_be_chance_is_said_to_be_not_distinguishable() -> None:
    values = [(0.6, 0.5), (0.5, 0.6), (0.62, 0.6)]
    cells = [
        cell([0.5, value], strategy=name, seed=seed)
        for seed, pair in enumerate(values)
        for name, value in zip(("vabal", "random"), pair, strict=True)
    ]
    said = headline(summarise(cells))
    assert "], not distinguishable from it." in said.replace(")", "")
    assert "not distinguishable from 1 (random)" in said


def test_axes_say_what_they_count(page: str) -> None:
    for words in ("labelled images", "balanced accuracy, %", "difference to random, percentage points"):
        assert words in page


def test_a_loss_is_said_as_plainly() -> None:
    cells = seeds_of("random", 0) + seeds_of("vabal", -0.05) + seeds_of("margin", 0.04)
    said = headline(summarise(cells))
    assert "4.95 points below random's" in said
    assert "The best rival, margin, is 9.00 points higher [+9.00, +9.00]." in said
    assert said.endswith("Of 1 rival it is, after Holm's correction, behind 1 (random).")


def test_over_settings_it_is_said_where_a_rival_is_higher() -> None:
    cells = seeds_of("random", 0) + seeds_of("vabal", 0.05) + seeds_of("margin", 0.04)
    for name, gain in (("random", 0.0), ("vabal", -0.01), ("margin", 0.02)):
        cells += seeds_of(name, gain, "rare:1")
    said = headline(summarise(cells))
    assert said.startswith(
        "Over 2 settings and 6 matched pairs, vabal's average balanced accuracy is 2.05 points above random's"
    )
    assert "taken alone, 1 of 2 settings have an interval above zero and 1 one below it." in said
    assert "No rival's mean is higher in 1 of 2 settings; in the others, margin is 3.00 points higher in digits, rare:1" in said  # fmt: skip  # noqa: E501


def test_what_cannot_be_compared_is_said() -> None:
    assert "nothing to compare" in headline(summarise([cell([0.5])]))
    alone = headline(summarise([cell([0.5], strategy="vabal")]))
    assert alone == "random was not run beside vabal: there are no matched differences to it."
    cells = [cell([0.5, value], strategy="vabal", seed=seed) for seed, value in enumerate((0.6, 0.5, 0.62))]
    cells += [cell([0.5, value], strategy="margin", seed=seed) for seed, value in enumerate((0.5, 0.6, 0.6))]
    said = headline(summarise(cells))
    assert said.startswith(alone)
    assert said.endswith("Of 1 rival vabal is, after Holm's correction, not distinguishable from 1 (margin).")
    one = headline(summarise([cell([0.5, 0.6]), cell([0.5, 0.7], strategy="vabal")]))
    assert one.endswith("one pair gives no interval. No rival was run beside it.")


# -- figures --------------------------------------------------------------------------------------------------------


def test_no_two_of_thirty_strategies_look_alike_and_ours_and_the_baseline_stand_out() -> None:
    from vabal.pages.figures import series_styles

    own = ["vabal", *(f"vabal-{place}" for place in range(3))]
    names = ["random", *own, *(f"rival-{place}" for place in range(25))]
    found = series_styles(names, "random", own)
    assert len({(look.colour, look.dashes) for look in found.values()}) == 30
    assert [name for name, look in found.items() if look.strong] == ["random", *own]


def test_names_at_the_ends_of_curves_keep_their_order_and_their_distance() -> None:
    from vabal.pages.figures import _apart

    places = _apart([-0.2, 0.5, 0.5, 0.52, 0.99, 1.0], 0.06)
    assert all(later - sooner >= 0.06 - 1e-9 for sooner, later in pairwise(places))
    assert min(places) >= 0 and max(places) <= 1
    assert _apart([0.1, 0.5], 0.06) == [0.1, 0.5]


@pytest.mark.parametrize(("shares", "ticks"), [(True, (0, 100)), (False, (-200, 300))])
def test_intervals_of_few_seeds_stretch_no_axis_of_shares_beyond_what_there_is(
    shares: bool, ticks: tuple[int, int]
) -> None:
    from vabal.pages.figures import Curve, curves, series_styles

    wide = Curve("vabal", [20, 35], [40.0, 50.0], [-210.0, 20.0], [310.0, 80.0])
    drawn = curves(
        [wide], series_styles(["vabal"], "random", ["vabal"]), ylabel="%", label="", prefix="a", shares=shares
    )
    found = {int(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r">(\N{MINUS SIGN}?\d+)</text>", drawn)}
    assert (min(found), max(found)) == ticks


def test_without_matplotlib_there_is_no_report_and_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sections", "figures", "svg"):
        monkeypatch.delitem(sys.modules, f"vabal.pages.{name}", raising=False)
        monkeypatch.delattr(f"vabal.pages.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        page_of([cell([0.5])])
    assert "pip install 'vabal[pipeline]'" in str(missing_extra(caught.value))
