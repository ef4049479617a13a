"""The check shared among processes, and begun at a later round: the same findings; what is not looked at is said."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.sleeping import die
from tests.support.small_books import Books, build
from vabal import audit
from vabal.audit import rows, shared
from vabal.errors import UserError


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Books:
    return build(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def books(kept: Books, tmp_path: Path) -> Books:
    return kept.copied(tmp_path)


def change(path: Path, column: str, value: Any) -> None:
    table = pd.read_parquet(path)
    table.loc[table.index[0], column] = value
    table.to_parquet(path)


def an_old_selection(books: Books) -> None:
    change(books.data / "rounds/0001/selection.parquet", "sample_id", "s030")


def scores_of_every_round(books: Books) -> None:
    for number in (1, 2, 3):
        change(books.data / f"rounds/{number:04d}/candidates.parquet", "score", 9.0)


def images_and_files(books: Books) -> None:
    change(next((books.data / "images").iterdir()), "image", b"another image")
    (books.data / "rounds/0003/stranger").write_text("here")
    (books.data / "rounds/0002/shortlist.parquet").unlink()


def an_event_that_cannot_be(books: Books) -> None:
    change(books.data / "label_events.parquet", "label", "nobody's class")


def all_of_them(books: Books) -> None:
    for change_one in (an_old_selection, scores_of_every_round, images_and_files):
        change_one(books)


CHANGES: list[Callable[[Books], None]] = [
    an_old_selection,
    scores_of_every_round,
    images_and_files,
    an_event_that_cannot_be,
    all_of_them,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_found_from_a_round_on_is_what_is_found_of_it_in_all(
    books: Books, change: Callable[[Books], None]
) -> None:
    change(books)
    whole = books.verify()
    assert not whole.ok
    for since in range(1, 4):
        later = books.verify(since=since)
        assert told(later) <= told(whole)
        assert told(whole, since) <= told(later)
        assert later.since == since


def told(report: audit.AuditReport, since: int = 0) -> set[tuple[str, str]]:
    """What is found; of which rounds a table is not what they recorded may begin later."""
    findings = [found for found in report.findings if since == 0 or (found.round or 0) >= since]
    return {(found.file, found.what.partition("it is not what")[0]) for found in findings}


def test_two_processes_find_what_one_does_in_its_order(books: Books) -> None:
    all_of_them(books)
    assert books.verify(workers=2) == books.verify()
    an_event_that_cannot_be(books)
    assert books.verify(since=2, workers=2) == books.verify(since=2)


def test_files_of_rounds_before_are_not_read_and_that_is_said(books: Books) -> None:
    (books.data / "rounds/0001/candidates.parquet").write_bytes(b"damaged")
    assert not books.verify().ok
    report = books.verify(since=2)
    assert report.ok
    assert report.notes[0].startswith("rounds 0 to 1 are taken as verified before")
    assert (report.to_json()["since"], report.images) == (2, 5)
    assert report.files < books.verify().files


def test_a_past_that_leads_elsewhere_is_found_though_its_files_are_not_read(books: Books) -> None:
    an_old_selection(books)
    found = books.verify(since=3).findings
    assert ("unlabeled.parquet", 2) in {(finding.file, finding.round) for finding in found}


def test_a_round_that_is_not_there_is_one_line(books: Books) -> None:
    with pytest.raises(UserError, match="--since 7: there is no such round"):
        books.verify(since=7)


def test_a_worker_that_is_killed_is_one_line() -> None:
    with pytest.raises(UserError, match="a process of the check died"), shared.among(2) as each:
        list(each(die, range(3)))


def test_a_check_that_ended_leaves_no_process_behind() -> None:
    with shared.among(2) as each:
        assert list(each(abs, range(-3, 1))) == [3, 2, 1, 0]
    assert multiprocessing.active_children() == []


def test_what_is_interrupted_leaves_no_process_behind(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"""
from tests.support.sleeping import sleep
from vabal.audit import shared
if __name__ == "__main__":
    with shared.among(2) as each:
        list(each(sleep, [{str(started)!r}] * 4))
"""
    (tmp_path / "run.py").write_text(code)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], start_new_session=True)
    while not list(tmp_path.glob("started*")):
        assert run.poll() is None
    os.kill(run.pid, signal.SIGKILL)  # not even a chance to say it
    run.wait()
    for path in tmp_path.glob("started*"):
        gone(int(path.suffix[1:]))


def gone(process: int) -> None:
    for _ in range(200):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} goes on")


def test_row_groups_that_cannot_hold_a_sample_are_not_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"sample_id": [f"s{place:03d}" for place in range(100)], "score": range(100)})
    path = tmp_path / "rows.parquet"
    frame.to_parquet(path, row_group_size=10)
    assert rows.rows_of(path, "s055") == [{"sample_id": "s055", "score": 55}]
    assert rows.row_of(path, "s055", ["score"], names=["own_class"]) == {"score": 55}
    assert rows.row_of(path, "s055", ["score"], optional=["rank"]) == {"score": 55}
    assert (rows.rows_of(path, "s05"), rows.row_of(path, "s05", ["score"])) == ([], None)
    frame.sample(frac=1, random_state=0).to_parquet(path, row_group_size=10, index=False)
    assert rows.rows_of(path, "s055") == [{"sample_id": "s055", "score": 55}]
    assert rows.row_of(path, "s055", ["score"]) == {"score": 55}


def test_a_row_behind_many_ids_and_beside_names_is_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_IDS_AT_ONCE", 7)
    names = [f"class-{place % 40}" for place in range(100)]
    frame = pd.DataFrame({"sample_id": [f"s{place:03d}" for place in range(100)], "label": names})
    path = tmp_path / "rows.parquet"
    frame.to_parquet(path, row_group_size=60)
    for place in (0, 6, 7, 59, 60, 99):
        assert rows.row_of(path, f"s{place:03d}", ["label"], names=["label"]) == {"label": f"class-{place % 40}"}
