"""A check that leaps to a round instead of replaying all before it: the same pools, or none."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from tests.support.small_books import Books
from vabal import pools
from vabal.audit import replayed, round_checks
from vabal.audit.chain import read_records
from vabal.audit.findings import Record
from vabal.audit.selections import read_selections
from vabal.audit.verification import verify


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Images that come late, renamed classes, corrections, rejections, what was asked again and what was imported."""
    made = Books(tmp_path_factory.mktemp("leap")).begin()
    made.round(new=4)
    first = made.picked(1)
    said = [(name, "cat", "ann") for name in first[:3]] + [(name, "dog", "bob") for name in first[:3]]
    made.round("entropy", opinions=[*said, (first[3], None, "ann")], ask_again=0.5, consensus="majority")
    answers: dict[str, str | None] = {
        **dict.fromkeys(first[:3], "dog"),
        first[3]: "emu",
        first[4]: "cat",
        "s000": "emu",
    }
    made.round("entropy", labels=answers, changes=[("rename", "dog", "hound")], new=3)
    made.round("entropy", labels={first[4]: None, first[0]: "emu"}, said=datetime(2026, 2, 1, tzinfo=UTC))
    return made


def parts(books: Books) -> tuple[pools.Pools, list[Record], dict[int, pd.DataFrame]]:
    records, _ = read_records(books.data)
    current, _ = replayed.read_pools(books.data, records)
    selections, _ = read_selections(books.data, records)
    assert current is not None
    return current, records, selections


def test_pools_made_at_once_are_those_of_the_replay(books: Books) -> None:
    current, records, selections = parts(books)
    assert books.verify().findings == ()
    for record, step in zip(records, replayed.replay(current, records, selections), strict=True):
        at_once = replayed.pools_after(current, record, selections)
        assert at_once is not None
        assert at_once.classes == step.after.classes
        for name in pools.SCHEMAS:
            assert getattr(at_once, name).equals(getattr(step.after, name)), (record.round, name)


def test_there_are_none_where_the_manifest_says_otherwise(books: Books) -> None:
    current, records, selections = parts(books)
    fewer = {number: table for number, table in selections.items() if number != 1}
    assert replayed.pools_after(current, records[2], fewer) is None
    events = current.label_events.iloc[1:].reset_index(drop=True)
    assert replayed.pools_after(replace(current, label_events=events), records[2], selections) is None


def test_leaping_checks_find_what_a_replay_finds(books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_checks, "_SHORTEST_RUN", 1)
    damaged = books.copied(tmp_path)
    path = damaged.data / "label_events.parquet"
    events = pools.read_table(path, pools.SCHEMAS["label_events"])
    pools.write_table(events.drop(index=len(events) - 1), path, pools.SCHEMAS["label_events"])
    for each in (books, damaged):
        alone = verify(each.data, each.tags)
        current, records, selections = parts(each)
        rounds = round_checks.Rounds(each.data, current, records, selections)
        round_checks._own_rounds.cache_clear()
        shared = list(round_checks.check_pools(rounds, 0, partial(map)))
        assert [finding for finding in alone.findings if finding in shared] == shared
        assert bool(shared) == (each is damaged)


def test_what_a_run_left_otherwise_than_the_manifest_says_is_replayed_from_there() -> None:
    class Told:
        data = Path()

        def check(self, place: int, since: int) -> round_checks.Checked:
            return round_checks.Checked(other=(f"replayed {place} since {since}",))

    said = iter([(True, [round_checks.Checked()]), (True, [round_checks.Checked(other=("labeled",))]), (True, [])])
    runs = [range(1), range(1, 2), range(2, 4)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(round_checks, "_in_runs", lambda _: runs)
        found = [each.other for each in round_checks._shared(Told(), 0, range(4), lambda *_: said)]  # type: ignore[arg-type]
    assert found == [(), ("labeled",), ("replayed 2 since 0",), ("replayed 3 since 0",)]


def test_runs_cover_every_place_once_and_grow_shorter() -> None:
    runs = list(round_checks._in_runs(range(5, 370)))
    assert [place for run in runs for place in run] == list(range(5, 370))
    assert [len(run) for run in runs] == sorted((len(run) for run in runs), reverse=True)
    assert len(runs) < 40
