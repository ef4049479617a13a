"""DVC and git for real, with a folder as the remote."""

import json
import os
from pathlib import Path

import pytest

from tests.support.repositories import git
from vabal.adapters import dvc_process
from vabal.adapters.dvc_process import DvcProcess
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Versioning:
    for name, value in (("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_SYSTEM", "/dev/null")):
        monkeypatch.setenv(name, value)
    root = tmp_path / "work"
    root.mkdir()
    versions = Versioning(root)
    versions.init(str(tmp_path / "remote"))
    (root / "data" / "images").mkdir(parents=True)
    (root / "data" / "labeled.parquet").write_bytes(b"first")
    (root / "data" / "images" / "a.parquet").write_bytes(b"pixels")
    return versions


def test_a_clone_at_a_tag_brings_back_exactly_that_state_with_git_and_dvc_alone(
    versions: Versioning, tmp_path: Path
) -> None:
    versions.add()
    versions.push()
    versions.commit(["data.dvc", ".gitignore", ".dvc/config", ".dvc/.gitignore", ".dvcignore"], "round 0")
    versions.tag("round/0000", "round 0\n\nmanifest sha256:00")
    (versions.root / "data" / "labeled.parquet").write_bytes(b"second")
    versions.add()
    versions.push()
    versions.commit(["data.dvc"], "round 1")
    versions.tag("round/0001", "round 1\n\nmanifest sha256:01")

    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(versions.root), str(clone))
    git(clone, "checkout", "--quiet", "round/0000")
    Versioning(clone).pull()

    assert (clone / "data" / "labeled.parquet").read_bytes() == b"first"
    assert (clone / "data" / "images" / "a.parquet").read_bytes() == b"pixels"


def test_committing_and_tagging_again_changes_nothing_and_works_without_an_identity(versions: Versioning) -> None:
    versions.add()
    assert versions.commit(["data.dvc"], "round 0") is True
    assert versions.commit(["data.dvc"], "round 0") is False
    versions.tag("round/0000", "round 0\n\nmanifest sha256:00")
    versions.tag("round/0000", "round 0\n\nmanifest sha256:00")

    assert git(versions.root, "log", "--format=%s by %an").splitlines() == ["round 0 by vabal"]
    with pytest.raises(UserError, match="exists already"):
        versions.tag("round/0000", "another round")


def test_a_commit_takes_its_own_files_alone_whatever_else_is_staged(versions: Versioning) -> None:
    versions.add()
    (versions.root / "notes.txt").write_text("mine")
    git(versions.root, "add", "notes.txt")

    versions.commit(["data.dvc"], "round 0")

    assert git(versions.root, "show", "--name-only", "--format=", "HEAD").split() == ["data.dvc"]
    assert "A  notes.txt" in git(versions.root, "status", "--porcelain")


def test_files_edited_added_or_removed_by_hand_are_named(versions: Versioning) -> None:
    (versions.root / "data" / "gone.parquet").write_bytes(b"x")
    versions.add()
    versions.commit(["data.dvc"], "round 0")
    assert versions.changed() == []

    (versions.root / "data" / "labeled.parquet").write_bytes(b"edited")
    (versions.root / "data" / "new.parquet").write_bytes(b"added")
    (versions.root / "data" / "gone.parquet").unlink()

    assert versions.changed() == ["data/gone.parquet", "data/labeled.parquet", "data/new.parquet"]


def test_adding_the_pools_takes_no_file_away_even_for_a_moment(versions: Versioning, tmp_path: Path) -> None:
    """DVC would remove a file with a second name, as a round's view has it, and copy it back: a kill loses it."""
    path = versions.root / "data" / "labeled.parquet"
    (tmp_path / "view.parquet").hardlink_to(path)
    before = path.stat().st_ino
    versions.add()
    assert path.stat().st_ino == before
    assert versions.changed() == []


@pytest.mark.parametrize("left", [b"", b'[{"md5": "00'])
def test_a_listing_that_a_killed_run_left_half_written_in_the_cache_does_not_stop_the_next(
    left: bytes, versions: Versioning, tmp_path: Path
) -> None:
    versions.add()
    (listing,) = (versions.root / ".dvc" / "cache").glob("files/md5/*/*.dir")
    listing.unlink()
    listing.write_bytes(left)
    versions.add()
    versions.push()
    assert len(list((tmp_path / "remote").glob("files/md5/*/*.dir"))) == 1


def test_a_broken_rwlock_and_a_stale_index_lock_of_a_killed_run_do_not_stop_the_next(versions: Versioning) -> None:
    (versions.root / ".dvc" / "tmp").mkdir(exist_ok=True)
    (versions.root / ".dvc" / "tmp" / "rwlock").write_text('{"/data": {"wri')
    lock = versions.root / ".git" / "index.lock"
    lock.touch()
    os.utime(lock, (0, 0))

    versions.add()
    assert versions.commit(["data.dvc"], "round 0") is True
    assert json.loads((versions.root / ".dvc" / "tmp" / "rwlock").read_text() or "{}") is not None


def test_an_s3_server_that_is_down_is_one_line_that_says_so(
    versions: Versioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    (versions.root / ".dvc" / "config").write_text(
        "[core]\n    remote = vabal\n['remote \"vabal\"']\n    url = s3://vabal/dvc\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    versions.add()
    with pytest.raises(UserError, match=r"S3 is down: no answer at http://127\.0\.0\.1:9"):
        versions.push()


def test_the_commands_of_a_publication_share_a_process_that_dvc_runs_in(
    versions: Versioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dvc_process, "DvcProcess", DvcProcess)  # not the tests' quicker one
    with versions.in_one_process() as process:
        started = process.pid
        versions.add()
        versions.push()
        (versions.root / "data" / "labeled.parquet").write_bytes(b"edited")
        assert versions.changed() == ["data/labeled.parquet"]
        versions.bring_back()
        assert process.pid == started
    assert (versions.root / "data" / "labeled.parquet").read_bytes() == b"first"
    assert len(list((tmp_path / "remote").glob("files/md5/*/*.dir"))) == 1


def test_dvc_is_not_asked_about_files_that_look_as_it_left_them(
    versions: Versioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    real = versions._run_dvc

    def noted(*words: str) -> object:
        asked.append(words)
        return real(*words)

    monkeypatch.setattr(versions, "_run_dvc", noted)
    table = versions.root / "data" / "labeled.parquet"
    versions.add()
    (versions.root / "view.parquet").hardlink_to(table)  # as a round's view has it
    assert versions.changed() == []
    assert [words[0] for words in asked] == ["add"]

    os.utime(table)
    assert versions.changed() == versions.changed() == []  # DVC is asked once: the content is the same
    assert [words[0] for words in asked] == ["add", "data"]

    before = table.stat()
    table.write_bytes(b"FIRST")  # as many bytes
    os.utime(table, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    assert versions.changed() == versions.changed() == ["data/labeled.parquet"]  # what differs is never noted
    table.unlink()
    assert versions.changed() == ["data/labeled.parquet"]
    table.symlink_to("elsewhere")
    versions.changed()
    assert len(asked) == 6


def test_what_was_edited_while_dvc_added_the_pools_is_not_taken_for_unchanged(
    versions: Versioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = versions._run_dvc

    def edited(*words: str) -> object:
        done = real(*words)
        (versions.root / "data" / "labeled.parquet").write_bytes(b"edited meanwhile")
        return done

    with monkeypatch.context() as patched:
        patched.setattr(versions, "_run_dvc", edited)
        versions.add()
    assert versions.changed() == ["data/labeled.parquet"]


def test_another_pin_is_asked_about_though_the_files_are_the_same(versions: Versioning) -> None:
    versions.add()
    pin = versions.root / "data.dvc"
    (versions.root / "data" / "new.parquet").write_bytes(b"new")
    earlier = pin.read_bytes()
    versions.add()
    pin.write_bytes(earlier)
    assert versions.changed() == ["data/new.parquet"]
