"""A workspace that an earlier version made: it verifies here, answers as it did there, and goes on. No servers."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from earlier_workspace import ANSWERS, unpack
from small_nights import night, pending, without_servers
from workspaces import ask, call, done, run

from tests.support.repositories import git
from vabal import rounds
from vabal.workspace import Workspace

RECORDED: dict[str, Any] = json.loads(ANSWERS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def no_servers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_servers(patch)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Look at it; the test that goes on in it stands last."""
    return unpack(tmp_path_factory.mktemp("earlier"))


def history(root: Path) -> dict[str, Any]:
    """What no later round may touch: the rounds' files and promotions by digest, each tag with its object."""
    files = [root / "promotions.jsonl", *sorted(root.glob("data/rounds/*/*"))]
    tags = git(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags").splitlines()
    digests = {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return digests | dict(line.split() for line in tags)


def holds(recorded: Any, answered: Any) -> bool:
    """Whether all that was recorded is answered; a later version may have more to say of a round or an image."""
    if isinstance(recorded, dict) and isinstance(answered, dict):
        return all(name in answered and holds(value, answered[name]) for name, value in recorded.items())
    if isinstance(recorded, list) and isinstance(answered, list):
        return len(recorded) == len(answered) and all(map(holds, recorded, answered))
    return bool(recorded == answered)


def test_what_is_kept_has_a_correction_a_rejection_new_images_promotions_and_labels_that_wait(root: Path) -> None:
    events = pd.read_parquet(root / "data" / "label_events.parquet")
    assert len(rounds.manifest_numbers(root / "data")) == 4
    assert events["sample_id"].duplicated().any()
    assert events["label"].isna().any()
    assert pd.read_parquet(root / "data" / "catalog.parquet")["added_round"].max() > 0
    assert '"action":"promote"' in (root / "promotions.jsonl").read_text()
    assert pending(Workspace(root))


def test_an_earlier_workspace_verifies(root: Path) -> None:
    said = done(run(root, "audit", "--verify"))
    assert said.out.startswith("intact: 4 rounds, 20 files, 374 images; ")  # and no note of what it could not look at


@pytest.mark.parametrize("command", RECORDED)
def test_an_earlier_workspace_answers_as_it_did(root: Path, command: str) -> None:
    answered = ask(root, *command.split())
    assert holds(RECORDED[command], answered), answered


def test_an_earlier_workspace_says_why_it_picked_and_how_well_it_learned(root: Path) -> None:
    for pick in ask(root, "audit", "2"):
        answer = ask(root, "audit", "2", "--why", pick["sample_id"])
        assert (answer["sample"]["rank"], answer["notes"]) == (pick["rank"], [])
        assert sum(answer["sample"]["terms"].values()) == pytest.approx(pick["score"])
        assert answer["answer"]
    assert [row["round"] for row in ask(root, "curve")] == [1, 2, 3]
    assert all(row["balanced_accuracy"]["low"] is not None for row in ask(root, "curve"))


def test_an_earlier_workspace_shows_its_images(root: Path, tmp_path: Path) -> None:
    late = pd.read_parquet(root / "data" / "catalog.parquet").query("added_round > 0").iloc[0]
    done(call(root, "show", late["sample_id"], "--out", str(tmp_path / "late.png")))
    assert hashlib.sha256((tmp_path / "late.png").read_bytes()).hexdigest() == late["sha256"]


@pytest.mark.parametrize("number", ["1", "2", "3"])
def test_an_earlier_workspaces_rounds_have_pages(root: Path, number: str) -> None:
    page = Path(done(call(root, "report", number)).out.strip()).read_text()
    assert page.count('<div class="images">') == len(
        pd.read_parquet(root / f"data/rounds/000{number}/selection.parquet")
    )
    assert "Learning curve of the real rounds" in page


@pytest.mark.parametrize("name", ["labeled.parquet", "rounds/0002/candidates.parquet", "images/pool-0000.parquet"])
def test_one_changed_byte_in_an_earlier_workspace_is_found_and_its_file_named(tmp_path: Path, name: str) -> None:
    root = unpack(tmp_path)
    content = bytearray((root / "data" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (root / "data" / name).write_bytes(content)
    said = call(root, "audit", "--verify", "--json")
    assert said.code == 1
    assert name in {finding["file"] for finding in json.loads(said.out)["findings"]}


def test_an_earlier_workspace_goes_on_for_a_round_and_its_history_stays(root: Path) -> None:
    before, place = history(root), Workspace(root)
    plan = night(place)
    assert (plan.round, pending(place)) == (4, [])
    assert json.loads((root / "data/rounds/0004/manifest.json").read_bytes())["intake"]["new"] == 4
    after = history(root)
    assert {name: after.get(name) for name in before} == before
    assert "refs/tags/round/0004" in after
    assert done(call(root, "audit", "--verify")).out.startswith("intact: 5 rounds, ")
    assert holds(RECORDED["audit"][:3], ask(root, "audit")[:3])  # of the fourth round's picks the labels came in now
