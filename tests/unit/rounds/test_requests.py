"""How much of the last request has come, the inbox included; and what was changed by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.support.small_manifests import manifest as small_manifest
from tests.support.small_pools import WHEN, small_pools
from vabal import pools, rounds
from vabal.errors import UserError
from vabal.labels import inbox
from vabal.rounds import requests, tables
from vabal.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Round 1 asked for the label of c; round 2 picked nothing and has no selection."""
    place = Workspace(tmp_path)
    pools.save(small_pools(), place.data)
    for number in (0, 1, 2):
        folder = rounds.round_folder(place.data, number)
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps(small_manifest(number)))
    tables.write_selection(tables.unscored(["c"], "random"), rounds.round_folder(place.data, 1) / "selection.parquet")
    return place


def take(place: Workspace, sample_id: str, label: str | None, name: str = "labels.csv") -> None:
    row = {"where": "line 2", "sample_id": sample_id, "label": label, "annotator": "ada", "problem": None}
    answers = pd.DataFrame([row], dtype=object)
    content = f"{name}{sample_id}{label}".encode()
    inbox.take_labels(place.inbox, small_pools(), answers, file=name, content=content, when=WHEN)


def test_the_newest_round_that_made_a_request_counts(workspace: Workspace) -> None:
    assert requests.picked_ids(workspace) == requests.Request(1, ["c"])
    assert requests.answers(workspace) == requests.Answers(round=1, requested=1, answered=0, labeled=1)
    assert requests.answers(workspace).share == 0


@pytest.mark.parametrize(("label", "labeled"), [("dog", 2), (None, 1)])
def test_a_label_or_a_rejection_in_the_inbox_is_an_answer(
    workspace: Workspace, label: str | None, labeled: int
) -> None:
    take(workspace, "c", label)
    assert requests.pending(workspace) != []
    assert requests.answers(workspace) == requests.Answers(round=1, requested=1, answered=1, labeled=labeled)
    assert requests.answers(workspace).share == 1


def test_a_label_for_what_was_not_asked_is_no_answer(workspace: Workspace) -> None:
    take(workspace, "b", "cat")
    assert requests.answers(workspace) == requests.Answers(round=1, requested=1, answered=0, labeled=2)


def test_where_nothing_was_asked_nothing_is_out(workspace: Workspace) -> None:
    (rounds.round_folder(workspace.data, 1) / "selection.parquet").unlink()
    assert requests.picked_ids(workspace) == requests.Request(0, [])
    assert requests.answers(workspace).share == 1


class Edited:
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def changed(self) -> list[str]:
        return self.names


def test_hand_edits_are_named_and_many_are_counted() -> None:
    requests.refuse_hand_edits(Edited([]))
    with pytest.raises(UserError, match=r"^data/ was edited by hand: data/a; `vabal checkout --force`"):
        requests.refuse_hand_edits(Edited(["data/a"]))
    with pytest.raises(UserError, match=r"hand: data/0, data/1, data/2 and 2 more; `vabal checkout"):
        requests.refuse_hand_edits(Edited([f"data/{number}" for number in range(5)]))
