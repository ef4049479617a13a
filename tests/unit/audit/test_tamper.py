"""Random changes below `data/`: a seeded sample of what `python -m benchmarks.tamper` tries by the hundred."""

from pathlib import Path

import pytest

from benchmarks import tamper
from tests.support.small_books import Books


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> list[tamper.Attempt]:
    books = Books(tmp_path_factory.mktemp("made")).begin().round("vabal", budget=3).round("ensemble", budget=3)
    folder = tmp_path_factory.mktemp("changed")
    return list(tamper.tamper(books.data, books.tags, folder, changes=42, seed=1))


@pytest.mark.parametrize("way", ["blunt", "forged"])
def test_every_change_that_leaves_the_tags_is_found(attempts: list[tamper.Attempt], way: str) -> None:
    chosen = [attempt for attempt in attempts if attempt.way == way]
    assert len(chosen) == 14
    assert [attempt for attempt in chosen if not attempt.found] == []


EXCEPTIONS = ("environment.", "code", "model.", "settings.", "times.", "mlflow_run", "vae_class", "features", "tables.")


def test_what_is_not_found_with_new_tags_stands_in_the_table_of_exceptions(attempts: list[tamper.Attempt]) -> None:
    missed = [attempt.what for attempt in attempts if not attempt.found]
    assert [what for what in missed if not what.partition(": ")[2].startswith(EXCEPTIONS)] == []


def test_the_table_names_what_was_not_found(tmp_path: Path) -> None:
    attempts = [tamper.Attempt("forged with tags", "statement", "manifest.json: code", found=False)]
    assert list(tamper.lines(attempts))[1:] == [
        "forged with tags   statement       1      0",
        "not found, forged with tags: manifest.json: code (1)",
    ]
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match="the record is not intact"):
        next(tamper.tamper(tmp_path / "data", {}, tmp_path / "copy", changes=1, seed=0))
