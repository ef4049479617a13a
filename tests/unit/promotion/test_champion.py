"""The promotion record, and what a promotion or rollback does with it, git and the registry's alias."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.small_manifests import manifest as small_manifest
from tests.support.small_registry import CLASSES, HOLDOUT, NOW, SETTINGS, Killed, Place, cut, even, make_place, mend
from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256
from vabal.promotion import champion, comparison
from vabal.promotion import registry as promotion_registry
from vabal.promotion.champion import ChampionPeriod, Entry, champions, promote, read_record, settle
from vabal.promotion.registry import NotPromoted


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return make_place(tmp_path / "workspace")


# -- the gate moves the alias, or does not --------------------------------------------------------------------------


def test_a_first_version_that_beats_the_majority_class_becomes_champion_with_figures_as_tags(place: Place) -> None:
    place.publish(1, even(0.8))
    outcome = place.promote()
    assert outcome.action == "promoted"
    assert place.registry.aliases["champion"] == "1"
    [entry] = read_record(place.root)
    assert (entry.action, entry.version, entry.round, entry.previous_version) == ("promote", "1", 1, None)
    assert entry.who == "Ada <ada@example.org>"
    assert entry.when == "2026-03-04T02:00:00+00:00"
    tags = place.registry.versions["1"].tags
    told = json.loads(tags["vabal.promotion.0001"])
    assert told["challenger"]["balanced_accuracy"] == pytest.approx(0.8)
    assert (told["who"], told["record"]) == (entry.who, entry.digest())
    assert tags[promotion_registry.STATUS_TAG] == "champion"
    assert place.git("status", "--porcelain", champion.RECORD) == ""
    assert "version 1 (round 1) is champion" in place.git("log", "-1", "--format=%s")


def test_a_first_version_no_better_than_the_majority_class_is_refused_and_recorded(place: Place) -> None:
    place.publish(1, {"crack": 1.0, "dust": 0.0, "good": 0.0})
    with pytest.raises(NotPromoted, match=r"its lower bound 0\.3137 at 99\.17 % .*, must be above 0\.3333"):
        place.promote()
    assert "champion" not in place.registry.aliases
    assert place.actions() == ["refuse"]
    assert champions(read_record(place.root)) == ()


def test_a_better_challenger_replaces_the_champion_and_both_carry_both_figures(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.9))
    outcome = place.promote()
    assert outcome.entry is not None
    assert (outcome.entry.previous_version, outcome.entry.previous_round) == ("1", 1)
    assert outcome.message.startswith("version 2 (round 2) is champion, version 1 (round 1) was before: ")
    assert "at 99.4 % (the holdout was used for 2 decisions)" in outcome.message
    assert place.registry.aliases["champion"] == "2"
    for version, status in (("1", "former champion"), ("2", "champion")):
        tags = place.registry.versions[version].tags
        told = json.loads(tags["vabal.promotion.0002"])
        assert told["challenger"]["balanced_accuracy"] == pytest.approx(0.9)
        assert told["champion"]["balanced_accuracy"] == pytest.approx(0.7)
        assert tags[promotion_registry.STATUS_TAG] == status


def test_a_challenger_that_costs_one_class_its_recall_is_refused_by_that_number_and_the_alias_stays(
    place: Place,
) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, {"crack": 0.6, "dust": 0.95, "good": 0.95})
    with pytest.raises(NotPromoted) as refusal:
        place.promote()
    assert "recall of crack 0.7000 -> 0.6000 on 100 images, a drop of at least +0.0607 at 95 %" in str(refusal.value)
    assert "may drop by 0.0500 at most" in str(refusal.value)
    assert "gained" not in str(refusal.value)  # that check held
    assert "\n" not in str(refusal.value)
    assert place.registry.aliases["champion"] == "1"
    assert place.actions() == ["promote", "refuse"]
    assert place.registry.versions["2"].tags[promotion_registry.STATUS_TAG] == "refused"
    assert place.registry.versions["1"].tags[promotion_registry.STATUS_TAG] == "champion"


def test_asking_again_after_a_refusal_refuses_again_and_adds_nothing_to_the_record(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.5))
    for _ in range(2):
        with pytest.raises(NotPromoted):
            place.promote()
    assert place.actions() == ["promote", "refuse"]


def test_the_champion_itself_as_challenger_changes_nothing(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    before = place.state()
    outcome = place.promote()
    assert (outcome.action, outcome.entry) == ("unchanged", None)
    assert place.state() == before


def test_the_first_champion_is_the_best_of_all_candidates_not_the_one_that_came_first_or_last(place: Place) -> None:
    for number, right in ((1, 0.6), (2, 0.9), (3, 0.8)):
        place.publish(number, even(right))
    outcome = place.promote()
    assert place.registry.aliases["champion"] == "2"
    assert "balanced accuracy 0.9000, the best of 3 candidates" in read_record(place.root)[-1].why
    assert outcome.entry is not None
    assert outcome.entry.decision is not None
    assert outcome.entry.decision["level"] == pytest.approx(1 - 0.05 / 6 / 3)  # the best of three: Bonferroni


def test_of_candidates_that_are_equal_the_newest_is_the_first_champion(place: Place) -> None:
    for number in (1, 2, 3):
        place.publish(number, even(0.8))
    place.promote()
    assert place.registry.aliases["champion"] == "3"


def test_the_labels_of_today_say_which_candidate_is_the_best(place: Place) -> None:
    place.publish(1, even(0.0))  # calls every image by the next class's name
    place.publish(2, even(0.9))
    swapped = {sample: CLASSES[(CLASSES.index(label) + 1) % 3] for sample, label in HOLDOUT.items()}
    pd.DataFrame({"sample_id": swapped.keys(), "label": swapped.values()}).to_parquet(place.data / "holdout.parquet")
    place.promote()
    assert place.registry.aliases["champion"] == "1"


def test_a_candidate_whose_predictions_do_not_verify_is_left_out_and_named(place: Place) -> None:
    for number, right in ((1, 0.9), (2, 0.8)):
        place.publish(number, even(right))
    path = place.data / "rounds" / "0001" / comparison.PREDICTIONS
    pd.read_parquet(path).assign(predicted_class=list(HOLDOUT.values())).to_parquet(path)
    outcome = place.promote()
    assert place.registry.aliases["champion"] == "2"
    assert outcome.mended[0].startswith("version 1 (round 1) is no candidate: ")
    assert "was changed" in outcome.mended[0]


def test_a_first_champion_that_is_named_must_not_be_clearly_worse_than_the_best(place: Place) -> None:
    place.publish(1, even(0.8))
    place.publish(2, even(0.9))
    place.publish(3, even(0.89))
    with pytest.raises(NotPromoted, match=r"version 2 is better by \+0\.1000, at least \+0\.0\d+ .*: promote that one"):
        place.promote("1")
    assert "champion" not in place.registry.aliases
    assert place.promote("3").action == "promoted"  # it is not the best, but this is not shown
    assert place.registry.aliases["champion"] == "3"


def test_a_version_whose_round_was_not_published_does_not_count_even_when_it_is_named(place: Place) -> None:
    place.publish(1, even(0.9))
    place.registry.tag_version("1", {"vabal.status": "unpublished"})
    with pytest.raises(UserError, match=r"^version 1 does not count: .* not published here \(unpublished\)$"):
        place.promote("1")
    assert not (place.root / champion.RECORD).exists()


def test_candidates_are_all_versions_but_those_that_were_withdrawn_oldest_first(place: Place) -> None:
    for number in (1, 2, 3):
        place.publish(number, even(0.9))
    candidates, left_out = comparison.candidate_versions(place.data, place.registry, {"1"})
    assert (list(candidates), left_out) == (["2", "3"], ())


def test_without_a_challenger_the_way_to_one_is_told(place: Place) -> None:
    (place.data / "rounds" / "0000").mkdir(parents=True)
    (place.data / "rounds" / "0000" / "manifest.json").write_text(json.dumps(small_manifest(0)))
    with pytest.raises(UserError, match="vabal round"):
        place.promote()


def test_labels_of_the_holdout_that_were_corrected_since_decide(place: Place) -> None:
    place.publish(1, even(0.8))
    swapped = {sample: CLASSES[(CLASSES.index(label) + 1) % 3] for sample, label in HOLDOUT.items()}
    pd.DataFrame({"sample_id": swapped.keys(), "label": swapped.values()}).to_parquet(place.data / "holdout.parquet")
    with pytest.raises(NotPromoted, match=r"balanced accuracy 0\.2000"):
        place.promote()


# -- how often the holdout was used ---------------------------------------------------------------------------------


def uses(place: Place) -> list[int]:
    return [entry.decision["use"] for entry in read_record(place.root) if entry.decision is not None]


def grow_holdout(place: Place, images: int) -> None:
    labels = dict(HOLDOUT) | {f"new{index:03d}": CLASSES[index % 3] for index in range(images)}
    pd.DataFrame({"sample_id": labels.keys(), "label": labels.values()}).to_parquet(place.data / "holdout.parquet")


def test_every_decision_is_a_use_of_the_holdout_and_asks_for_more_than_the_one_before(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    lower = []
    for number in range(2, 6):
        place.publish(number, even(0.72))
        with pytest.raises(NotPromoted) as refusal:
            place.promote()
        assert f"(the holdout was used for {number} decisions)" in str(refusal.value)
        decision = read_record(place.root)[-1].decision
        assert decision is not None
        lower.append(decision["gain_lower"])
    assert uses(place) == [1, 2, 3, 4, 5]
    assert lower == sorted(lower, reverse=True)
    assert len(set(lower)) == 4


def test_asking_again_is_no_further_use_whoever_asks(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.71))
    for who in ("Ada <ada@example.org>", "Bob <bob@example.org>", "Bob <bob@example.org>"):
        with pytest.raises(NotPromoted):
            promote(replace(place.office, who=who), place.data, SETTINGS, now=NOW)
    assert uses(place) == [1, 2, 2]
    place.publish(3, even(0.71))
    with pytest.raises(NotPromoted):
        place.promote()
    assert uses(place) == [1, 2, 2, 3]


def test_a_label_that_was_corrected_makes_the_same_question_a_further_use(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.71))
    for label in ("crack", "dust"):
        pd.DataFrame({"sample_id": HOLDOUT.keys(), "label": [label, *list(HOLDOUT.values())[1:]]}).to_parquet(
            place.data / "holdout.parquet"
        )
        with pytest.raises(NotPromoted):
            place.promote()
    assert uses(place) == [1, 2, 3]


def test_a_holdout_that_grows_by_a_few_images_a_night_is_no_new_one_and_one_twice_as_large_is(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    for number, images in ((2, 1), (3, 150), (4, 300), (5, 301)):
        grow_holdout(place, images)
        place.publish(number, even(0.71))
        with pytest.raises(NotPromoted):
            place.promote()
    assert uses(place) == [1, 2, 3, 4, 1]


def test_decisions_of_earlier_versions_are_read_and_count_as_uses(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.5))
    with pytest.raises(NotPromoted):
        place.promote()
    path = place.root / champion.RECORD
    parent, lines = None, []
    for entry in read_record(place.root):  # as they were before uses were counted
        old = {k: v for k, v in (entry.decision or {}).items() if k not in NEW_IN_A_DECISION}
        lines.append(replace(entry, decision=old, parent=parent))
        parent = lines[-1].digest()
    path.write_bytes(b"".join(entry.line() + b"\n" for entry in lines))
    place.git("reset", "-q", "--soft", place.git("rev-list", "--max-parents=0", "HEAD").strip())
    place.git("commit", "-qam", "as it was")
    place.git("tag", "-d", "promotion/0001", "promotion/0002")
    for manifest in place.data.glob("rounds/*/manifest.json"):
        manifest.write_bytes(canonical_json(json.loads(manifest.read_bytes()) | {"promotions": None}))
    for entry in lines:
        for version in (entry.version, entry.previous_version or entry.version):
            tag = json.loads(place.registry.versions[version].tags[f"vabal.promotion.{entry.sequence:04d}"])
            told = json.dumps(tag | {"record": entry.digest()})
            place.registry.tag_version(version, {f"vabal.promotion.{entry.sequence:04d}": told})
    place.publish(3, even(0.9))
    assert place.promote().action == "promoted"
    decision = read_record(place.root)[-1].decision
    assert decision is not None
    assert decision["use"] == 3


NEW_IN_A_DECISION = ("use", "level", "holdout", "not_judged", "unsure")


# -- a holdout that cannot judge ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        ({}, "predicted no labelled one"),
        (dict.fromkeys(HOLDOUT, "good"), "predicted good 300: "),
        ({"h000": "crack", "h001": "dust"}, "predicted crack 1, dust 1: "),
    ],
    ids=["no label", "one class", "two images"],
)
@pytest.mark.parametrize("there_is_a_champion", [False, True])
def test_promotion_says_why_it_waits_and_records_nothing(
    place: Place, labels: dict[str, str], missing: str, there_is_a_champion: bool
) -> None:
    place.publish(1, even(0.7))
    if there_is_a_champion:
        place.promote()
        place.publish(2, even(0.9))
    table = pd.DataFrame({"sample_id": HOLDOUT.keys(), "label": [labels.get(sample) for sample in HOLDOUT]})
    table.to_parquet(place.data / "holdout.parquet")
    before = read_record(place.root)
    with pytest.raises(NotPromoted, match="promotion waits: two classes with 6 labelled holdout images") as waiting:
        place.promote()
    assert missing in str(waiting.value)
    assert "\n" not in str(waiting.value)
    assert read_record(place.root) == before


@pytest.mark.parametrize("recorded", ["empty", "untyped", "none"])
def test_a_round_that_could_measure_nothing_is_no_champion_and_no_crash(place: Place, recorded: str) -> None:
    place.publish(1, even(0.7))
    folder = place.data / "rounds" / "0001"
    manifest = json.loads((folder / "manifest.json").read_bytes())
    empty = pd.read_parquet(folder / comparison.PREDICTIONS).iloc[:0]
    if recorded == "untyped":
        empty = pd.DataFrame({name: [] for name in empty.columns})
    if recorded == "none":
        (folder / comparison.PREDICTIONS).unlink()
        del manifest["files"][comparison.PREDICTIONS]
    else:
        empty.to_parquet(folder / comparison.PREDICTIONS)
        manifest["files"][comparison.PREDICTIONS] = file_sha256(folder / comparison.PREDICTIONS)
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(UserError) as waiting:
        place.promote()
    assert "waits" in str(waiting.value) or "no predictions for the holdout" in str(waiting.value)
    place.publish(2, even(0.8))
    assert place.promote().action == "promoted"
    assert place.registry.aliases["champion"] == "2"


# -- rollback -------------------------------------------------------------------------------------------------------


def three_champions(place: Place) -> None:
    for number, right in ((1, 0.6), (2, 0.75), (3, 0.9)):
        place.publish(number, even(right))
        place.promote()


def test_a_rollback_puts_the_previous_champion_back_and_a_second_one_goes_further(place: Place) -> None:
    three_champions(place)
    outcome = place.rollback()
    assert outcome.action == "rolled back"
    assert outcome.entry == read_record(place.root)[-1]
    assert (outcome.entry.when, outcome.entry.why) == (
        "2026-03-04T02:00:00+00:00",
        "asked for by Ada <ada@example.org>",
    )
    assert place.registry.aliases["champion"] == "2"
    assert place.registry.versions["3"].tags[promotion_registry.STATUS_TAG] == "rolled back"
    place.rollback()
    assert place.registry.aliases["champion"] == "1"
    assert place.actions() == ["promote"] * 3 + ["rollback"] * 2


def test_a_rollback_with_nothing_before_is_refused_and_nothing_is_recorded(place: Place) -> None:
    place.publish(1, even(0.8))
    with pytest.raises(UserError, match="nothing was promoted yet"):
        place.rollback()
    place.promote()
    before = place.state()
    with pytest.raises(UserError, match=r"version 1 is the first champion, and serves$"):
        place.rollback()
    assert place.state() == before


def test_a_rollback_after_a_promotion_after_a_rollback_returns_to_the_champion_put_back(place: Place) -> None:
    three_champions(place)
    place.rollback()  # to 2
    place.publish(4, even(0.95))
    place.promote()
    place.rollback()
    assert place.registry.aliases["champion"] == "2"


def test_a_version_that_was_rolled_back_returns_only_if_it_is_named(place: Place) -> None:
    three_champions(place)
    place.rollback()
    outcome = place.promote()  # the alias `challenger` still stands at 3
    assert (outcome.action, outcome.entry) == ("unchanged", None)
    assert "--version" in outcome.message
    assert place.promote("3").action == "promoted"
    assert place.registry.aliases["champion"] == "3"


@given(st.lists(st.one_of(st.integers(1, 9), st.none()), max_size=12))
def test_the_champions_are_those_promoted_and_not_taken_away_again(steps: list[int | None]) -> None:
    entries: list[Entry] = []
    expected: list[int] = []
    for step in steps:
        if step is not None:
            expected.append(step)
        elif expected:
            expected.pop()
        else:
            continue
        about = str(step) if step is not None else "0"
        action = "promote" if step is not None else "rollback"
        entries.append(Entry(len(entries) + 1, "", "", action, about, int(about), None, None, "", None, None))  # type: ignore[arg-type]
    assert champions(tuple(entries)) == tuple(ChampionPeriod(str(number), number) for number in expected)


# -- killed anywhere ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(8))
def test_a_promotion_killed_at_any_step_ends_like_an_undisturbed_one_when_run_again(tmp_path: Path, after: int) -> None:
    states = []
    for name, killed in (("undisturbed", False), ("killed", True)):
        place = make_place(tmp_path / name)
        place.publish(1, even(0.7))
        place.promote()
        place.publish(2, even(0.9))
        if killed:
            cut(place, after)
            with pytest.raises(Killed):
                place.promote()
            mend(place)
        place.promote()
        states.append(place.state())
    assert states[0]["aliases"]["champion"] == "2"
    assert states[0] == states[1]


@pytest.mark.parametrize("after", range(7))
def test_a_refusal_killed_at_any_step_is_recorded_once(place: Place, after: int) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.5))
    cut(place, after)
    with pytest.raises(Killed):
        place.promote()
    mend(place)
    with pytest.raises(NotPromoted):
        place.promote()
    assert place.actions() == ["promote", "refuse"]
    assert "vabal.promotion.0002" in place.registry.versions["2"].tags
    assert place.state()["record"] == place.state()["committed"]
    assert place.registry.aliases["champion"] == "1"


# The first two changes of a rollback are `settle`'s look at git; before the third nothing is recorded yet.
@pytest.mark.parametrize("after", range(8))
def test_a_rollback_killed_at_any_step_and_run_again_goes_back_once(place: Place, after: int) -> None:
    three_champions(place)
    cut(place, after)
    with pytest.raises(Killed):
        place.rollback()
    mend(place)
    outcome = place.rollback()
    assert (outcome.action, outcome.entry) == ("rolled back", read_record(place.root)[-1])
    assert outcome.message == "version 2 (round 2) is champion again, version 3 (round 3) was rolled back"
    assert place.registry.aliases["champion"] == "2"
    assert place.actions() == ["promote"] * 3 + ["rollback"]


# -- the record is the truth ----------------------------------------------------------------------------------------


def test_an_alias_moved_by_hand_is_put_back_and_said(place: Place) -> None:
    three_champions(place)
    place.registry.aliases["champion"] = "1"
    entries, mended = settle(place.office)
    assert place.registry.aliases["champion"] == "3"
    assert mended == ("the alias champion pointed at version 1: moved to version 3, as promotions.jsonl says",)
    assert len(entries) == 3
    assert settle(place.office)[1] == ()


def test_a_champion_that_the_record_does_not_know_stops_a_promotion(place: Place) -> None:
    place.publish(1, even(0.8))
    place.registry.aliases["champion"] = "1"
    with pytest.raises(UserError, match=r"promotions\.jsonl knows of no promotion"):
        place.promote()
    assert not (place.root / champion.RECORD).exists()


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: [lines[0].replace(b'"version":"1"', b'"version":"3"'), *lines[1:]], 2),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [*lines[:2], lines[2][:40]], 3),
        (lambda lines: [lines[0], lines[1].replace(b'","', b'", "', 1), lines[2]], 2),
    ],
    ids=["edited", "removed", "swapped", "torn", "reformatted"],
)
def test_a_broken_chain_is_found_and_its_line_named(
    place: Place, damage: Callable[[list[bytes]], list[bytes]], line: int
) -> None:
    three_champions(place)
    path = place.root / champion.RECORD
    lines = path.read_bytes().splitlines()
    broken = damage(lines)
    assert broken != lines
    path.write_bytes(b"\n".join(broken) + b"\n")
    with pytest.raises(UserError, match=rf"promotions\.jsonl line {line} ") as error:
        place.rollback()
    assert "git checkout" in str(error.value)
    assert place.registry.aliases["champion"] == "3"


def test_an_entry_edited_in_the_middle_is_found_at_the_next_line(place: Place) -> None:
    three_champions(place)
    path = place.root / champion.RECORD
    lines = path.read_bytes().splitlines()
    forged = Entry(**(json.loads(lines[1]) | {"who": "Mallory"}))
    path.write_bytes(b"\n".join([lines[0], forged.line(), lines[2]]) + b"\n")
    with pytest.raises(UserError, match="line 3 does not follow from line 2"):
        read_record(place.root)


def test_a_last_entry_that_was_edited_differs_from_what_git_and_its_version_were_tagged_with(place: Place) -> None:
    three_champions(place)
    path = place.root / champion.RECORD
    lines = path.read_bytes().splitlines()
    forged = Entry(**(json.loads(lines[2]) | {"who": "Mallory"}))
    path.write_bytes(b"\n".join([*lines[:2], forged.line()]) + b"\n")
    with pytest.raises(UserError, match=r"promotions\.jsonl does not go on from what git has at HEAD"):
        place.rollback()


def test_every_entry_carries_the_digest_of_the_line_before(place: Place) -> None:
    three_champions(place)
    lines = (place.root / champion.RECORD).read_bytes().splitlines()
    parents = [json.loads(line)["parent"] for line in lines]
    assert parents == [None, hashlib.sha256(lines[0]).hexdigest(), hashlib.sha256(lines[1]).hexdigest()]
    assert [asdict(entry) for entry in read_record(place.root)] == [json.loads(line) for line in lines]


def test_holdout_predictions_that_were_changed_since_their_round_stop_a_promotion(place: Place) -> None:
    place.publish(1, even(0.7))
    path = place.data / "rounds" / "0001" / comparison.PREDICTIONS
    pd.read_parquet(path).assign(predicted_class=list(HOLDOUT.values())).to_parquet(path)
    with pytest.raises(UserError, match=r"0001/holdout_predictions\.parquet is missing or was changed"):
        place.promote()
    assert not (place.root / champion.RECORD).exists()


def test_a_version_whose_weights_are_not_those_of_its_round_is_not_promoted(place: Place) -> None:
    place.publish(1, even(0.7))
    place.registry.versions["1"] = replace(place.registry.versions["1"], weights_sha256="0" * 64)
    with pytest.raises(UserError, match="the weights differ"):
        place.promote()
    assert "champion" not in place.registry.aliases


def test_a_git_remote_that_refuses_stops_a_promotion_before_the_registry_changes(place: Place) -> None:
    place.publish(1, even(0.7))
    office = replace(place.office, git_remote=str(place.root / "nowhere.git"))
    with pytest.raises(UserError, match="git remote"):
        promote(office, place.data, SETTINGS, now=NOW)
    assert "champion" not in place.registry.aliases
    subprocess.run(["git", "init", "-q", "--bare", str(place.root / "nowhere.git")], check=True)
    assert promote(office, place.data, SETTINGS, now=NOW).action == "promoted"
    assert place.registry.aliases["champion"] == "1"
    pushed = subprocess.run(
        ["git", "--git-dir", "nowhere.git", "log", "--all", "--format=%s"],
        cwd=place.root, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert "version 1 (round 1) is champion" in pushed


# -- what vouches for versions, predictions and labels ----------------------------------------------------------------


def tag_rounds(place: Place) -> None:
    for path in sorted((place.data / "rounds").iterdir()):
        digest = file_sha256(path / "manifest.json")
        place.git("tag", "-a", "-m", f"round\n\nmanifest sha256:{digest}", f"round/{path.name}")


def test_a_manifest_that_its_rounds_tag_does_not_name_moves_nothing(place: Place) -> None:
    place.publish(1, even(0.7))
    place.promote()
    place.publish(2, even(0.5))
    tag_rounds(place)
    before = place.state()
    folder = place.data / "rounds" / "0002"
    right = pd.read_parquet(folder / comparison.PREDICTIONS).assign(predicted_class=list(HOLDOUT.values()))
    genuine = (folder / comparison.PREDICTIONS).read_bytes(), (folder / "manifest.json").read_bytes()
    right.to_parquet(folder / comparison.PREDICTIONS)
    manifest = json.loads(genuine[1]) | {
        "files": {comparison.PREDICTIONS: file_sha256(folder / comparison.PREDICTIONS)}
    }
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(UserError, match=r"0002/manifest\.json is not the one that git tag round/0002 names"):
        place.promote()
    assert place.state() == before
    (folder / comparison.PREDICTIONS).write_bytes(genuine[0])
    (folder / "manifest.json").write_bytes(genuine[1])
    place.git("tag", "--delete", "round/0002")
    with pytest.raises(UserError, match=r"git has no tag round/0002, which vouches for .*git fetch --tags"):
        place.promote()
    tag_two = f"round\n\nmanifest sha256:{file_sha256(folder / 'manifest.json')}"
    place.git("tag", "-a", "-m", tag_two, "round/0002")
    with pytest.raises(NotPromoted):
        place.promote()


def test_labels_of_the_holdout_that_no_round_published_decide_nothing(place: Place) -> None:
    place.publish(1, even(0.8))
    manifest = place.data / "rounds" / "0001" / "manifest.json"
    tables = {name: file_sha256(place.data / name) for name in ("holdout.parquet", "classes.json")}
    manifest.write_bytes(canonical_json(json.loads(manifest.read_bytes()) | {"tables": tables}))
    genuine = (place.data / "holdout.parquet").read_bytes()
    swapped = {sample: CLASSES[(CLASSES.index(label) + 1) % 3] for sample, label in HOLDOUT.items()}
    pd.DataFrame({"sample_id": swapped.keys(), "label": swapped.values()}).to_parquet(place.data / "holdout.parquet")
    with pytest.raises(UserError, match=r"holdout\.parquet was changed: `vabal checkout --force`"):
        place.promote()
    assert not (place.root / champion.RECORD).exists()
    (place.data / "holdout.parquet").write_bytes(genuine)
    assert place.promote().action == "promoted"


def test_a_copy_of_a_rounds_version_is_refused_and_leaves_no_entry_that_the_audit_would_find(place: Place) -> None:
    place.publish(1, even(0.9))
    place.promote()
    place.publish(2, even(0.5))
    place.registry.versions["9"] = replace(place.registry.versions["2"], version="9")
    with pytest.raises(UserError, match="round 2 made it, which registered version 2: a copy of it is no candidate"):
        place.promote("9")
    assert place.actions() == ["promote"]


def test_a_decision_that_another_workspace_anchored_under_its_name_is_refused_before_anything_is_written(
    place: Place,
) -> None:
    heads: dict[str, str] = {}
    anchor = mock.Mock(known=heads.get, write=heads.__setitem__)
    place.office = replace(place.office, anchor=anchor)
    place.publish(1, even(0.7))
    place.promote()
    assert heads == {"promotion/0001": f"record sha256:{read_record(place.root)[0].digest()}"}
    place.publish(2, even(0.9))
    heads["promotion/0002"] = "record sha256:theirs"
    before = place.state()
    with pytest.raises(UserError, match=r"promotion/0002 was anchored already.*prefix of its own"):
        place.promote()
    assert place.state() == before
    del heads["promotion/0002"]
    assert place.promote().action == "promoted"
