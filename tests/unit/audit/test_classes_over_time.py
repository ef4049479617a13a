"""Rounds verify under the classes of their time, whatever became of these."""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.support.small_books import Books, forge
from vabal import audit, pools
from vabal.audit.why import why
from vabal.errors import UserError
from vabal.pages import night
from vabal.pools import Classes
from vabal.rounds import tables
from vabal.rounds.believed import believed
from vabal.workspace import Workspace


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """Round 1 under cat, dog, emu; round 2 adds owl; round 3 renames cat, and merges emu into dog."""
    books = Books(tmp_path_factory.mktemp("classes")).begin(total=60).round("vabal")
    first = books.picked(1)
    early: dict[str, str | None] = {first[0]: "owl", first[1]: "emu", first[2]: "cat"}
    books.round("entropy", labels=early, changes=[("add", "owl", None)])
    later: dict[str, str | None] = {first[3]: "cat", first[4]: "lion", books.picked(2)[0]: "dog"}
    books.round("vabal", labels=later, changes=[("rename", "cat", "lion"), ("merge", "emu", "dog")])
    return books.round("vabal")


def test_every_round_verifies_and_has_its_own_list(changed: Books) -> None:
    assert changed.verify().findings == ()
    lists = [pools.read_classes(changed.data, number).names for number in range(5)]
    assert lists[:2] == [("cat", "dog", "emu")] * 2
    assert lists[2:] == [("cat", "dog", "emu", "owl"), *([("lion", "dog", "owl")] * 2)]


def test_queries_count_by_todays_classes_and_one_sample_tells_what_was_said(changed: Books) -> None:
    told = audit.rounds(changed.data)
    assert told[1]["labeled_by_class"] == {"lion": 3, "dog": 6, "owl": 0}
    assert told[1]["picks_by_class"] == {"lion": 3, "dog": 1, "owl": 1}
    renamed = changed.picked(1)[2]
    assert audit.history(changed.data, renamed)["label"] == "lion"
    events = audit.history(changed.data, renamed)["events"]
    assert [(event["round"], event["label"]) for event in events if event["what"] == "labelled"] == [(2, "cat")]
    [change] = [event for event in events if event["what"] == "class"]
    assert (change["round"], change["detail"], change["author"]) == (3, "class cat is called lion", "eve")
    assert list(audit.picks(changed.data, 1)["label"].dropna()) == ["owl", "dog", "lion", "lion", "lion"]


def test_why_reads_a_round_under_its_classes(changed: Books) -> None:
    for number, names in [(1, {"cat", "dog", "emu"}), (3, {"lion", "dog", "owl"})]:
        assert set(why(changed.data, number, changed.picked(number)[0]).sample.posterior) == names


def test_a_nights_page_has_the_classes_of_its_time_and_says_what_changed(changed: Books) -> None:
    (changed.root / "params.yaml").write_text("{}")
    pages = [night.page(Workspace(changed.root), number) for number in (1, 3)]
    assert "From this round on, class cat is called lion." in pages[1]
    assert "From this round on" not in pages[0]
    assert "emu" in pages[0]


def test_a_forged_change_is_found(changed: Books, tmp_path: Path) -> None:
    import shutil

    place = Books(tmp_path)
    shutil.copytree(changed.data, place.data)
    place.tags, place.number = dict(changed.tags), changed.number
    state = pools.load(place.data)
    early = state.class_events.copy()
    early.loc[early["action"] == "add", "author"] = "mallory"
    pools.write_table(early, place.data / "class_events.parquet", pools.SCHEMAS["class_events"])
    forge(place, place.number)
    assert "class_events.parquet" in {finding.file for finding in place.verify(images=False).findings}
    (place.data / "class_events.parquet").unlink()
    assert not place.verify(images=False).ok


def test_what_people_and_classifier_come_to_goes_on_over_changes_of_the_classes(tmp_path: Path) -> None:
    """Round 1 records posteriors of cat, dog, emu; the night after counts them as lion, dog and owl, and settles."""
    books = Books(tmp_path).begin(total=60, labeled=30).round("entropy", consensus="crowdlab", ask_again=0.4)
    ids, then_N_C = tables.read_held_out(books.data / "rounds/0001/held_out.parquet")
    changes = [("add", "owl", None), ("rename", "cat", "lion"), ("merge", "emu", "dog")]
    said = [("cat", "lion", "cat"), ("lion", "emu", "owl")]  # by names of before and of today
    opinions = [
        (name, said[place % 2][who], ["ann", "bob", "eve"][who]) for place, name in enumerate(ids) for who in range(3)
    ]
    books.round("entropy", opinions=opinions, consensus="crowdlab", changes=changes, ask_again=0.4)
    assert books.pools.classes == ("lion", "dog", "owl")
    found = believed(books.data, 1, Classes.of(books.pools))
    assert found is not None
    assert found.posterior_N_C == pytest.approx(
        np.stack([then_N_C[:, 0], then_N_C[:, 1:].sum(axis=1), 0 * then_N_C[:, 0]], axis=1)
    )
    events = books.pools.label_events
    settled = events[events["annotator"] == "consensus"]
    assert {"dog"} <= set(settled["label"]) <= {"lion", "dog", "owl"}
    assert len(tables.read_held_out(books.data / "rounds/0002/held_out.parquet")[1][0]) == 3
    books.round("entropy", opinions=[(ids[0], "owl", "ann")], consensus="crowdlab")
    assert books.verify(images=False).findings == ()


ACTIONS = ("add", "rename", "merge")


@pytest.mark.parametrize("seed", range(4))
def test_random_changes_and_rounds_always_verify(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    books = Books(tmp_path).begin(total=60, labeled=9)
    for number in range(1, 6):
        changes, known = [], Classes.of(books.pools)
        for step in range(chance.randrange(4)):
            action = chance.choice(ACTIONS)
            name = f"n{number}-{step}" if action == "add" else chance.choice(known.names)
            into = chance.choice([*known.names, *known.meaning, f"m{number}-{step}"]) if action != "add" else None
            try:
                known = known.after(action, name, into)
            except UserError:
                continue
            changes.append((action, name, into))
        said = list(known.meaning)  # of before and of today
        ids = chance.sample(list(books.pools.catalog["sample_id"]), 5)
        opinions = [(each, chance.choice([*said, None]), who) for each in ids for who in ("ann", "bob", "eve")]
        held = set(books.pools.holdout["sample_id"])
        opinions = [one for one in opinions if one[0] not in held or one[1] is not None]
        rule = chance.choice(["latest", "majority", "crowdlab", "crowdlab"])
        books.round("entropy", changes=changes, opinions=opinions, consensus=rule, ask_again=chance.choice([0.0, 0.3]))
        pools.check(books.pools)
    assert books.verify(images=False).findings == ()
