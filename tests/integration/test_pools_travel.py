"""The pools of any night, in another place, with git and DVC alone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import RunningStack
from workspaces import TwoNights, ask, call, digests, done

from tests.support.repositories import git

REPOSITORY = Path(__file__).resolve().parents[2]


def dvc(root: Path, stack: RunningStack, *arguments: str) -> None:
    """DVC with nothing but the S3 address and keys in its environment."""
    keys = {name: value for name, value in stack.environment.items() if name.startswith("AWS_")}
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONHASHSEED") if name in os.environ}
    command = [sys.executable, "-m", "dvc", *arguments]
    subprocess.run(command, cwd=root, env=kept | keys | {"DVC_NO_ANALYTICS": "1"}, check=True, capture_output=True)


def test_an_empty_clone_gets_any_nights_pools_back_byte_for_byte(
    nights: TwoNights, running_stack: RunningStack, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(nights.root), str(clone))
    assert not (clone / "data").exists()
    git(clone, "checkout", "--quiet", "round/0002")
    dvc(clone, running_stack, "pull")
    assert digests(clone / "data") == nights.data[2]

    verified = ask(clone, "audit", "--verify")
    assert verified["ok"] is True
    assert [record["tag"] for record in ask(clone, "audit")] == ["round/0000", "round/0001", "round/0002"]

    git(clone, "checkout", "--quiet", "round/0000")
    dvc(clone, running_stack, "pull")
    assert digests(clone / "data") == nights.data[0]


def test_checking_out_a_tag_brings_back_exactly_that_nights_pools(
    nights: TwoNights, running_stack: RunningStack, tmp_path: Path
) -> None:
    root = nights.copy(tmp_path / "copy")
    git(root, "checkout", "--quiet", "round/0001")
    dvc(root, running_stack, "checkout")
    assert digests(root / "data") == nights.data[1]
    git(root, "checkout", "--quiet", "main")
    dvc(root, running_stack, "checkout")
    assert digests(root / "data") == nights.data[2]


def test_a_clone_without_its_pools_says_how_to_bring_them(nights: TwoNights, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(nights.root), "clone")
    said = call(tmp_path / "clone", "audit")
    assert said.code == 1
    assert "`vabal checkout` brings it" in said.err


@pytest.fixture
def this_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What this repository commits of its own workspace, in a repository without servers."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    root = tmp_path / "clone"
    (root / ".dvc").mkdir(parents=True)
    for name in ("params.yaml", "data.dvc", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copyfile(REPOSITORY / name, root / name)
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "a clone")
    return root


def test_init_makes_round_0_of_this_repository_again_to_the_byte(this_repository: Path) -> None:
    said = done(call(this_repository, "init", "--source", "digits", "--imbalance", "dominant:0:0.3"))
    assert "data/ is what data.dvc pins" in said.out
    assert (this_repository / "data.dvc").read_bytes() == (REPOSITORY / "data.dvc").read_bytes()
    assert ask(this_repository, "audit", "--verify")["ok"] is True
    assert git(this_repository, "status", "--porcelain") == ""


def test_init_with_other_arguments_is_refused_and_leaves_the_clone_as_it_was(this_repository: Path) -> None:
    said = call(this_repository, "init", "--source", "digits", "--imbalance", "dominant:1:0.3")
    assert said.code == 1
    assert said.err.startswith("vabal: that makes other pools than data.dvc pins")
    assert said.err.count("\n") == 1
    assert not (this_repository / "data").exists()
    assert git(this_repository, "status", "--porcelain") == ""
