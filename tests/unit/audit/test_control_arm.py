"""The control arm of a round: drawn before the picks, recorded, and derived again by the audit."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.small_books import Books, forge
from vabal import strategies
from vabal.audit import queries, sample
from vabal.audit.why import why
from vabal.rounds import read_manifest, tables
from vabal.strategies import control

IDS = np.array([f"s{number:03d}" for number in range(50)], dtype=object)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    """A round with an arm of two among six, and one more after their labels came."""
    books = Books(tmp_path).begin(total=60).round("vabal", control_share=0.3)
    answers: dict[str, str | None] = dict.fromkeys(books.picked(1), "dog")
    return books.round("entropy", labels=answers, control_share=0.3)


def arm_of(books: Books, number: int) -> pd.DataFrame:
    table = tables.read_selection(books.data / f"rounds/{number:04d}/selection.parquet")
    return table[table["probability"].notna()]


@pytest.mark.parametrize(
    ("share", "budget", "candidates", "expected"),
    [(0.1, 100, 900, 10), (0.1, 4, 900, 1), (0.0, 100, 900, 0), (0.1, 1, 900, 0), (1.0, 10, 900, 9), (0.5, 10, 3, 3)],
)
def test_the_arm_is_a_share_of_the_budget_and_leaves_the_strategy_a_place(
    share: float, budget: int, candidates: int, expected: int
) -> None:
    assert control.size(strategies.get("margin"), share, budget, candidates) == expected
    assert control.size(strategies.get("random"), share, budget, candidates) == 0


def test_the_draw_depends_on_ids_and_seed_alone() -> None:
    drawn = control.draw([IDS], 5, 7)
    assert control.draw([IDS[30:][::-1], IDS[:0], IDS[:30]], 5, 7) == drawn
    assert control.draw([IDS], 3, 7) == drawn[:3]
    assert control.draw([IDS], 5, 8) != drawn
    assert control.draw([IDS], 0, 7) == control.draw([], 5, 7) == []


def test_every_candidate_is_drawn_with_the_same_probability() -> None:
    times = pd.Series([name for seed in range(4000) for name in control.draw([IDS], 5, seed)]).value_counts()
    spread = (400 * 0.9) ** 0.5
    assert len(times) == len(IDS)
    assert abs(times - 400).max() < 4 * spread


def test_a_round_with_an_arm_is_intact_and_says_who_was_drawn(books: Books) -> None:
    assert books.verify().ok, books.verify().findings
    first, second = arm_of(books, 1), arm_of(books, 2)
    assert list(first["rank"]) == list(second["rank"]) == [5, 6]
    assert first["probability"].tolist() == [2 / 45] * 2
    assert read_manifest(books.data, 1).selection["budget"] == 4  # type: ignore[index]
    picks = queries.picks(books.data, 1)
    assert picks["score"].isna().tolist() == [False] * 4 + [True] * 2
    assert picks["posterior"].notna().all()
    told = sample.history(books.data, first["sample_id"].iloc[0])["events"]
    assert [event["probability"] for event in told if event["what"] == "requested"] == [2 / 45]


def test_why_knows_a_drawn_sample(books: Books) -> None:
    drawn = arm_of(books, 1)["sample_id"].iloc[0]
    answer = why(books.data, 1, drawn, books.picked(1)[0])
    assert (answer.sample.state, answer.sample.rank, answer.sample.score) == ("control", 5, None)
    assert answer.sample.said == "drawn uniformly, with probability 2/45, before the picks; rank 5"
    assert sum(answer.sample.posterior.values()) == pytest.approx(1)
    assert answer.other is not None
    assert answer.other.state == "picked"


@pytest.mark.parametrize("what", ["exchanged", "probability", "hidden", "prediction"])
def test_an_arm_that_was_not_drawn_is_found(books: Books, what: str) -> None:
    folder = books.data / "rounds/0002"
    table = tables.read_selection(folder / "selection.parquet").astype(object)
    last = table.index[-1]
    if what == "exchanged":  # one that was picked, for one that was drawn
        table.loc[[0, last], "sample_id"] = table.loc[[last, 0], "sample_id"].to_numpy()
    elif what == "probability":
        table.loc[table["probability"].notna(), "probability"] = 0.5
    elif what == "hidden":
        table["probability"] = None
    else:
        table.loc[last, "predicted_class"] = {"cat": "dog"}.get(table.loc[last, "predicted_class"], "cat")
    tables.write_selection(table, folder / "selection.parquet")
    forge(books, 2)
    assert "rounds/0002/selection.parquet" in {finding.file for finding in books.verify().findings} or (
        what == "prediction" and not books.verify().ok
    )


def test_a_table_of_the_arm_that_is_gone_is_found(books: Books) -> None:
    (books.data / "rounds/0002/control.parquet").unlink()
    forge(books, 2)
    assert ("rounds/0002/manifest.json", "names no control.parquet") in {
        (finding.file, finding.what) for finding in books.verify().findings
    }
