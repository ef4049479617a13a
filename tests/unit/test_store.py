"""The stage store: a stage is done when its folder stands under its key, and never before."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vabal
from vabal import store
from vabal.store import StageStore, canonical_json, code_version, file_sha256, stage_key, write_bytes

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_a_stage_that_was_produced_is_found_again_with_its_files(tmp_path: Path) -> None:
    stages = StageStore(tmp_path)
    assert stages.get("train-vae", "k") is None
    with stages.produce("train-vae", "k") as folder:
        (folder / "vae.bin").write_bytes(b"weights")
    found = stages.get("train-vae", "k")
    assert found is not None
    assert (found / "vae.bin").read_bytes() == b"weights"


def test_a_stage_that_failed_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    stages = StageStore(tmp_path)

    def fail() -> None:
        with stages.produce("s", "k") as folder:
            (folder / "half").write_text("written")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert stages.get("s", "k") is None
    assert list((tmp_path / "s").iterdir()) == []
    with stages.produce("s", "k") as folder:
        (folder / "whole").touch()
    assert stages.get("s", "k") is not None


def test_a_stage_is_not_done_while_it_is_being_produced(tmp_path: Path) -> None:
    stages = StageStore(tmp_path)
    with stages.produce("s", "k"):
        assert stages.get("s", "k") is None


def test_folders_inside_a_stages_output_are_kept(tmp_path: Path) -> None:
    stages = StageStore(tmp_path)
    with stages.produce("intake", "k") as folder:
        (folder / "roles").mkdir()
        (folder / "roles" / "a.npz").write_bytes(b"x")
    assert (tmp_path / "intake/k/roles/a.npz").read_bytes() == b"x"


def test_of_two_runs_that_finish_the_same_stage_the_first_stays(tmp_path: Path) -> None:
    stages = StageStore(tmp_path)
    with stages.produce("s", "k") as late:
        (late / "by").write_text("late")
        with stages.produce("s", "k") as early:
            (early / "by").write_text("early")
    assert (tmp_path / "s/k/by").read_text() == "early"
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["k"]


def test_forgetting_removes_what_is_older_and_what_a_kill_left_then(tmp_path: Path) -> None:
    stages = StageStore(tmp_path)
    for key in ("old", "new"):
        with stages.produce("s", key) as folder:
            (folder / "f").touch()
    (tmp_path / "s" / ".old.1234").mkdir()
    for name in ("old", ".old.1234"):
        os.utime(tmp_path / "s" / name, (1000, 1000))
    assert stages.forget(before=2000) == 2
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["new"]


def test_a_key_depends_on_stage_settings_inputs_and_code_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    key = stage_key("s", {"a": 1, "b": 2}, {"x": "d1", "y": 3})
    assert key == stage_key("s", {"b": 2, "a": 1}, {"y": 3, "x": "d1"})
    assert len(key) == 16
    others = [
        stage_key("t", {"a": 1, "b": 2}, {"x": "d1", "y": 3}),
        stage_key("s", {"a": 1, "b": 3}, {"x": "d1", "y": 3}),
        stage_key("s", {"a": 1, "b": 2}, {"x": "d2", "y": 3}),
    ]
    monkeypatch.setattr(store, "code_version", lambda: "0.1.0+other")
    others.append(stage_key("s", {"a": 1, "b": 2}, {"x": "d1", "y": 3}))
    assert len({key, *others}) == 5


def test_settings_and_inputs_of_a_key_are_not_mixed_up() -> None:
    assert stage_key("s", {"a": "1"}, {}) != stage_key("s", {}, {"a": "1"})


def test_the_code_version_names_the_package_version_and_its_source() -> None:
    version, _, source = code_version().partition("+")
    assert version == vabal.__version__
    assert len(source) == 12


@given(json_values)
def test_equal_documents_have_equal_bytes_whatever_the_order_of_their_keys(value: object) -> None:
    def turned(item: object) -> object:
        if isinstance(item, dict):
            return {key: turned(item[key]) for key in reversed(list(item))}
        return [turned(entry) for entry in item] if isinstance(item, list) else item

    assert canonical_json(value) == canonical_json(turned(value))


def test_canonical_json_is_written_as_the_manifest_says() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_know_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"metric": number})


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert file_sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_writing_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "f.json"
    write_bytes(target, b"a longer first version")
    write_bytes(target, b"second")
    assert target.read_bytes() == b"second"
    assert [path.name for path in target.parent.iterdir()] == ["f.json"]


def test_what_stood_there_survives_a_write_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "f.json"
    write_bytes(target, b"first")

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(target, b"second")
    assert target.read_bytes() == b"first"


def test_stage_folders_can_be_read_by_other_programs_of_the_same_user(tmp_path: Path) -> None:
    with StageStore(tmp_path).produce("s", "k"):
        pass
    assert stat.S_IMODE((tmp_path / "s/k").stat().st_mode) & 0o700 == 0o700
