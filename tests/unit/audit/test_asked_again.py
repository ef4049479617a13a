"""What a round asked about again: recorded, told, and derived again by the audit."""

from pathlib import Path

import pandas as pd
import pytest

from tests.support.small_books import CLASSES, Books, forge
from vabal import pools
from vabal.audit import sample
from vabal.audit.why import why
from vabal.rounds import read_manifest, tables


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """A round that asks about a disputed image and two suspected labels again, beside an arm of one; and one more."""
    books = Books(tmp_path_factory.mktemp("made")).begin(total=60).round("vabal")
    one, two = books.picked(1)[:2]
    opinions = [(one, "cat", "ann"), (one, "dog", "bob"), (two, "emu", "ann")]
    books.round("vabal", opinions=opinions, ask_again=0.5, control_share=0.2)
    again = books.asked["sample_id"].tolist()
    return books.round("entropy", opinions=[(again[0], "cat", "eve"), (again[1], "emu", "ann")], ask_again=0.2)


@pytest.fixture
def books(made: Books, tmp_path: Path) -> Books:
    """A copy of the same, to change."""
    return made.copied(tmp_path)


def asked(books: Books, number: int) -> pd.DataFrame:
    table = pools.read_one(books.data, "asked_again")
    return table[table["round"] == number]


def test_what_is_asked_again_takes_its_share_of_the_request_and_is_derived_again(books: Books) -> None:
    assert books.verify().ok, books.verify().findings
    first, disputed = asked(books, 2), books.picked(1)[0]
    assert first["reason"].tolist() == ["disputed", "suspected", "suspected"]
    assert first["sample_id"].tolist()[0] == disputed
    assert first["label"].tolist()[0] == "dog"
    assert read_manifest(books.data, 2).selection["budget"] == 6 - 1 - 3  # type: ignore[index]
    assert len(books.picked(2)) == 6 - 3
    assert len(asked(books, 3)) == 1
    assert not set(asked(books, 3)["sample_id"]) & {disputed, first["sample_id"].tolist()[2]}


def test_a_samples_history_and_why_tell_that_it_was_asked_about_again(books: Books) -> None:
    disputed = books.picked(1)[0]
    told = sample.history(books.data, disputed)["events"]
    assert [(event["round"], event["reason"]) for event in told if event["what"] == "asked again"] == [(2, "disputed")]
    answer = why(books.data, 2, disputed)
    assert answer.sample.state == "again"
    assert answer.sample.said == "asked about again: people contradicted each other about it; dog stood"


@pytest.mark.parametrize("what", ["dropped", "exchanged", "reason", "label", "events", "order", "posterior", "gone"])
def test_what_was_not_to_be_asked_again_is_found(books: Books, what: str) -> None:
    table = pools.read_one(books.data, "asked_again").astype(object)
    if what == "dropped":
        table = table.drop(index=1)
    elif what == "exchanged":
        free = set(books.pools.labeled["sample_id"]) - set(table["sample_id"])
        table.loc[1, "sample_id"] = sorted(free)[0]
    elif what == "reason":
        table.loc[1, "reason"] = "disputed"
    elif what == "label":
        table.loc[1, "label"] = {"cat": "dog"}.get(str(table["label"][1]), "cat")
    elif what == "events":
        table["events"] = table["events"].add(1)
    elif what == "order":
        table = table.loc[[0, 2, 1, 3]]
    file = books.data / "rounds/0002/held_out.parquet"
    if what == "posterior":
        ids, posterior_L_C = tables.read_held_out(file)
        tables.write_held_out(ids, posterior_L_C[:, [1, 2, 0]], file)
    elif what == "gone":
        file.unlink()
    pools.write_table(table, books.data / "asked_again.parquet", pools.SCHEMAS["asked_again"])
    after = pools.digests(pools.read(books.data))
    forge(books, 2, pools_after={**read_manifest(books.data, 2).pools_after, "asked_again": after["asked_again"]})
    found = {finding.file for finding in books.verify().findings}
    assert found & {"asked_again.parquet", "rounds/0002/held_out.parquet", "rounds/0002/manifest.json"}


def test_posteriors_of_other_images_are_no_ground_to_ask(books: Books) -> None:
    file = books.data / "rounds/0002/held_out.parquet"
    ids, posterior_L_C = tables.read_held_out(file)
    tables.write_held_out([*ids[:-1], "s059"], posterior_L_C, file)
    forge(books, 2)
    said = {(finding.file, finding.what) for finding in books.verify().findings}
    assert ("rounds/0002/held_out.parquet", "not the posteriors of the labelled pool") in said


@pytest.fixture
def crowd(tmp_path: Path) -> Books:
    """Two people agree about eight images and split about a ninth, which the second night settles with a classifier."""
    books = Books(tmp_path).begin(labeled=20, total=60).round("random", consensus="crowdlab")
    known = books.pools.labeled[["sample_id", "label"]].to_numpy().tolist()
    ids, posterior_L_C = tables.read_held_out(books.data / "rounds/0001/held_out.parquet")
    sure = {name: CLASSES[row] for name, row in zip(ids, posterior_L_C.argmax(axis=1), strict=True)}
    torn = known[0][0]
    other = next(name for name in CLASSES if name != sure[torn])
    agreed = [(name, sure[name], who) for name, _ in known[1:9] for who in ("ann", "bob")]
    books.round("random", opinions=[*agreed, (torn, sure[torn], "ann"), (torn, other, "bob")], consensus="crowdlab")
    assert books.pools.labeled.set_index("sample_id")["label"][torn] == sure[torn]
    return books


def test_what_people_and_classifier_settled_is_derived_again(crowd: Books) -> None:
    assert crowd.verify().ok, crowd.verify().findings
    events = crowd.pools.label_events
    assert events["annotator"].tolist()[-1] == "consensus"
    torn, likely = events[["sample_id", "label"]].to_numpy()[-1]
    file = crowd.data / "rounds/0001/held_out.parquet"
    ids, posterior_L_C = tables.read_held_out(file)
    posterior_L_C = posterior_L_C.copy()
    posterior_L_C[ids.index(torn)] = [0.0 if name == likely else 0.5 for name in CLASSES]
    tables.write_held_out(ids, posterior_L_C, file)
    forge(crowd, 1)
    assert any("settled by crowdlab does not follow" in finding.what for finding in crowd.verify().findings)
