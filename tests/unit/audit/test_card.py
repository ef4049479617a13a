"""The card of a version: figures by hand, and names that look like Markdown."""

from pathlib import Path

import pytest

from tests.support.small_books import Books, build
from vabal.audit.card import brief, card
from vabal.errors import UserError


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Books:
    return build(tmp_path_factory.mktemp("kept"))


def test_a_card_tells_what_was_learned_from_the_figures_of_each_class_and_the_limits(kept: Books) -> None:
    text = card(kept.data, 3)
    assert text.startswith("# ")
    assert "git tag `round/0003`" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in rows] == ["cat", "dog", "emu"]
    assert sum(int(row[1]) for row in rows) == 14
    assert sum(int(row[2]) for row in rows) == 6
    assert "Fewer than 6 holdout images, too few to judge: cat, dog, emu." in text


def test_rounds_without_a_version_are_told(kept: Books) -> None:
    with pytest.raises(UserError, match="round 0 registered no version"):
        card(kept.data, 0)
    with pytest.raises(UserError, match="no round 9"):
        card(kept.data, 9)


def test_names_are_text_whatever_they_look_like(kept: Books, tmp_path: Path) -> None:
    other = build(tmp_path)
    path = other.data / "classes.json"
    path.write_text(path.read_text().replace("cat", "<b>|[x](y)`"))
    for line in card(other.data, 3).splitlines():
        assert "<b>" not in line
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") == 7


def test_a_long_card_is_cut_at_a_line_and_says_where_the_rest_is() -> None:
    text = "\n".join(f"| class {number} | 1 |" for number in range(1000))
    cut = brief(text, 5000)
    assert len(cut) <= 5000
    assert cut.splitlines()[-3].endswith("| 1 |")
    assert "vabal card" in cut
    assert brief("short", 5000) == "short"
