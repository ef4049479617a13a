"""Changes of the classes wait in the inbox; labels that come behind them know of them."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.label_files import imported, stand
from tests.support.small_pools import WHEN, small_pools
from vabal import pools
from vabal.errors import UserError
from vabal.labels import arrivals, classes
from vabal.labels.classes import Change


def ask(box: Path, *changes: Change, reason: str | None = None, minutes: int = 0) -> classes.ChangeReport:
    when = WHEN + timedelta(minutes=minutes)
    return classes.change(box, small_pools(), changes, author="eve", when=when, reason=reason)


def test_a_change_waits_and_labels_of_the_class_to_come_are_taken_in(tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    with pytest.raises(UserError, match=r"label 'emu' is no class.*`vabal classes add emu` makes it one"):
        imported(box, "sample_id,label,annotator\nb,emu,ann\n")
    report = ask(box, ("add", "emu", None))
    assert report.lines() == ["class emu is added from the next round on", "classes then: cat, dog, emu"]
    assert imported(box, "sample_id,label,annotator\nb,emu,ann\n").labels == 1
    assert arrivals.pending(box)[0] == report.name
    assert arrivals.pending(box)[1].startswith("labels/000002")
    assert stand(box, classes.upcoming(box, small_pools()))["b"] == "emu"
    assert small_pools().classes == ("cat", "dog")  # tonight's


def test_changes_build_on_those_that_wait(tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    ask(box, ("add", "emu", None))
    ask(box, ("rename", "emu", "owl"), minutes=1)
    assert ask(box, ("merge", "cat", "dog"), ("rename", "dog", "pet"), minutes=2).classes == ("pet", "owl")
    with pytest.raises(UserError, match=r"no class 'emu' \(it is called 'owl' now\)"):
        ask(box, ("rename", "emu", "bird"), minutes=3)
    with pytest.raises(UserError, match="the last two classes"):
        ask(box, ("merge", "owl", "pet"), minutes=4)
    assert len(arrivals.pending(box)) == 3
    assert classes.upcoming(box, small_pools()).classes == ("pet", "owl")


def test_a_name_has_one_unicode_form(tmp_path: Path) -> None:
    assert ask(tmp_path / "inbox", ("add", "e\u0301mu", None)).classes == ("cat", "dog", "\u00e9mu")
    with pytest.raises(UserError, match="there is a class"):
        ask(tmp_path / "inbox", ("add", "\u00e9mu", None), minutes=1)


def test_of_several_changes_all_are_asked_for_or_none(tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    for wrong in (("add", "dog", None), ("add", "x" * 101, None)):
        with pytest.raises(UserError):
            ask(box, ("add", "emu", None), wrong)
    for reason in ("", " ", "x" * 501):
        with pytest.raises(UserError, match="--reason: 1 to 500 characters"):
            ask(box, ("add", "emu", None), reason=reason)
    assert arrivals.pending(box) == []


def test_a_label_of_before_a_rename_repeats_the_one_of_after_it(tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    imported(box, "sample_id,label,annotator\nb,cat,ann\n")
    ask(box, ("rename", "cat", "lion"))
    report = imported(box, "sample_id,label,annotator\nb,lion,ann\nc,cat,ann\n", "more.csv")
    assert (report.labels, report.repeated, report.changed) == (1, 1, ())
    assert imported(box, "sample_id,label,annotator\nb,lion,bob\n", "third.csv").disagreeing == ()


def test_what_data_has_by_now_waits_no_longer(tmp_path: Path) -> None:
    box = tmp_path / "inbox"
    ask(box, ("rename", "cat", "lion"), reason="as the plant says")
    taken = arrivals.read_changes(box, arrivals.pending(box))
    made, _ = pools.apply_classes(small_pools(), taken, 4)  # published; its entry not yet removed
    found = classes.listed(box, made)
    assert found.waiting.empty
    assert found.lines() == ["round 4: class cat is called lion (eve, 2024-06-01 02:00 UTC: as the plant says)"]
    assert [(row.name, row.labeled, row.holdout, row.earlier) for row in found.rows] == [
        *(("lion", 1, 0, ("cat",)), ("dog", 0, 1, ()))
    ]
    assert classes.upcoming(box, made).classes == ("lion", "dog")
    report = classes.change(box, made, [("add", "emu", None)], author="eve", when=WHEN, reason=None)
    assert report.classes == ("lion", "dog", "emu")


def test_the_list_as_json_is_plain(tmp_path: Path) -> None:
    from vabal.cli.render import plain

    box = tmp_path / "inbox"
    ask(box, ("add", "emu", None))
    document = json.loads(json.dumps(plain(classes.listed(box, small_pools()).to_json())))
    assert document["classes"][0] == {"name": "cat", "labeled": 1, "holdout": 0, "earlier": []}
    assert document["events"] == []
    assert document["waiting"][0]["name"] == "emu"
    assert document["waiting"][0]["reason"] is None
