"""Tables at any width: ids, numbers and words stay whole, and what does not fit beside each other stands below."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.rules.repository import ROOT
from tests.support.small_books import Books, build
from vabal import audit
from vabal.audit.findings import Finding
from vabal.cli import audited, render, tables

IDS = [
    "digits-0693",
    "line-3/camera-02/2026-03-04T05-06-07/frame-000123456789-[left].png",
    "an image with spaces in its name/and a long path/after it, which no line breaks.png",
    "写真/工場のカメラ二号/傷のある太陽電池モジュール-0007.png",
]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Books:
    return build(tmp_path_factory.mktemp("kept"))


def printed(width: int, show: Callable[[Console], None]) -> list[str]:
    out = Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False)
    show(out)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


WORD = st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=30)
TEXT = st.lists(WORD, max_size=6).map(" ".join)
ROW = st.tuples(st.integers(0, 10**9), TEXT.filter(bool), TEXT, st.floats(-1e9, 1e9))


@given(rows=st.lists(ROW, min_size=1, max_size=5), width=st.integers(20, 130))
def test_no_id_number_or_word_of_a_table_is_broken_or_cut(rows: list[tuple[Any, ...]], width: int) -> None:
    columns: list[tables.Column] = [("rank", "right"), ("sample", "whole"), ("what", "left"), ("score", "right")]
    lines = printed(width, lambda out: tables.show_table(out, columns, rows))
    for rank, sample, text, score in rows:
        for whole in (str(rank), sample, str(score)):
            assert any(whole in line for line in lines)
        for word in text.split():
            assert any(word in line for line in lines)


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("name", IDS)
def test_every_command_that_names_a_sample_prints_its_id_in_one_piece(
    kept: Books, name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    picks = audit.picks(kept.data, 2).assign(annotator="ann@example.org", predicted_class="rolled-in_scale")
    shown: list[Callable[[], None]] = [
        lambda: audited.show_picks(picks.assign(sample_id=name)),
        lambda: audited.show_history({**audit.history(kept.data, "s006"), "sample_id": name}),
        lambda: audited.show_report(audit.AuditReport((Finding(1, name, "missing"),), 1, 1, 1)),
        lambda: render.show_status([{**SERVICE, "address": name}], Path("/")),
    ]
    for show in shown:
        show()
        said = capsys.readouterr().out
        assert name in said
        assert "…" not in said


SERVICE = {"service": "s3", "state": "running", "pid": 7, "address": "", "since": "now", "log": "s3.log"}


def test_a_tag_and_a_run_stand_whole_beside_the_longest_class_names(
    kept: Books, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{**record, "picks_by_class": {IDS[1]: 3}} for record in audit.rounds(kept.data, kept.tags)]
    for width in (50, 80):
        monkeypatch.setenv("COLUMNS", str(width))
        audited.show_rounds(records)
        lines = capsys.readouterr().out.splitlines()
        assert all(any(tag in line for line in lines) for tag in kept.tags)
        assert any("0" * 12 in line for line in lines)


def test_the_commands_have_no_other_tables() -> None:
    named = {path.name for path in (ROOT / "vabal/cli").glob("*.py") if "rich.table" in path.read_text()}
    assert named == set()  # and `tables` lays its own out


def test_a_name_folds_behind_a_hyphen_before_a_row_becomes_a_block() -> None:
    columns: list[tables.Column] = [("sample", "whole"), ("label", "name")]
    lines = printed(20, lambda out: tables.show_table(out, columns, [("cell0334", "mono-functional")]))
    assert [line.split() for line in lines[2:]] == [["cell0334", "mono-"], ["functional"]]
    lines = printed(15, lambda out: tables.show_table(out, columns, [("cell0334", "mono-functional")]))
    assert lines == ["cell0334", "   label", "   mono-functional"]


def test_picks_leave_out_what_the_vae_said_where_there_is_no_room(
    kept: Books, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picks = audit.picks(kept.data, 2).assign(
        predicted_class="poly-defective", vae_class="mono-functional", label="mono-functional", annotator="oracle"
    )
    heads = []
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        audited.show_picks(picks)
        heads.append(capsys.readouterr().out.splitlines()[0])
    assert [("log lik." in head, "VAE" in head, "margin" in head, "by" in head) for head in heads] == [
        (False, False, True, True),
        (True, True, True, True),
    ]


def test_a_text_folds_between_words_alone() -> None:
    lines = printed(20, lambda out: tables.say(out, f"see {IDS[1]} and what stands beside it", indent=2))
    assert lines == ["  see", f"  {IDS[1]}", "  and what stands", "  beside it"]
