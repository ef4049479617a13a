"""A past round computed again, in a clone that has only git and the S3 address."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningStack
from workspaces import TwoNights, ask, call, digests, done

from tests.support.repositories import git
from vabal import rounds
from vabal.rounds import learner


@pytest.fixture(scope="module")
def cloned(nights: TwoNights, running_stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replay")
    git(folder, "clone", "--quiet", str(nights.root), "clone")
    done(call(folder / "clone", "checkout", environment=running_stack.environment))
    return folder / "clone"


@pytest.fixture
def clone(cloned: Path, stack: RunningStack) -> Iterator[Path]:
    """The same for all tests here: a replay leaves nothing behind."""
    before = digests(cloned)
    yield cloned
    assert digests(cloned) == before


def test_both_nights_come_out_the_same_bit_for_bit(clone: Path) -> None:
    for number in (1, 2):
        said = done(call(clone, "replay", str(number)))
        assert said.out.splitlines()[-1] == f"round {number} again: identical"
        assert "weights of the classifier: the same bytes" in said.out
        assert "8 picks: the same, in the same order" in said.out
    assert list((clone / ".vabal" / "replay").iterdir()) == []
    assert git(clone, "status", "--porcelain") == ""


def test_other_weights_scores_and_picks_are_told_and_end_with_exit_code_1(
    clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = rounds.derive_seed
    monkeypatch.setattr(learner, "derive_seed", lambda seed, number, purpose: real(seed + 1, number, purpose))
    said = call(clone, "replay", "1")
    assert said.code == 1
    assert "weights of the classifier: other bytes" in said.out
    assert "rank correlation" in said.out
    assert " of 8 the same\nshortlist.parquet: other bytes\nround 1 again: not identical\n" in said.out


def test_another_installed_version_is_named_first(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vabal.audit.replay.code_version", lambda: "9.9.9+000000000000")
    again = ask(clone, "replay", "2")
    assert again["versions"][0].startswith("code is 9.9.9+000000000000 here, the round had 0.")
    assert call(clone, "replay", "2").out.startswith("another version: code is 9.9.9+000000000000 here")
    assert again["identical"]


@pytest.mark.parametrize(
    ("number", "message"),
    [("0", "round 0 computed nothing: `vabal init`"), ("7", "git has no tag round/0007 (`git fetch --tags`")],
)
def test_a_round_that_cannot_be_computed_again_is_one_line(clone: Path, number: str, message: str) -> None:
    said = call(clone, "replay", number)
    assert said.code == 1
    assert said.err.startswith(f"vabal: {message}")
    assert len(said.err.splitlines()) == 1
