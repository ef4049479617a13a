"""The stage store: a stage is done when its folder stands under its key, and never before."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vabal
from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256, write_bytes
from vabal.rounds import stage_store
from vabal.rounds.stage_store import LocalStageStore, StageKey, code_version, stage_folder

KEY, OTHER = "01" * 8, "10" * 8

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def test_a_stage_that_was_produced_is_found_again_with_its_files(tmp_path: Path) -> None:
    stages = LocalStageStore(tmp_path)
    assert stages.get("train-vae", KEY) is None
    with stages.produce("train-vae", KEY) as folder:
        (folder / "vae.bin").write_bytes(b"weights")
    found = stages.get("train-vae", KEY)
    assert found is not None
    assert (found / "vae.bin").read_bytes() == b"weights"


def test_a_stage_that_failed_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    stages = LocalStageStore(tmp_path)

    def fail() -> None:
        with stages.produce("train-vae", KEY) as folder:
            (folder / "half").write_text("written")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert stages.get("train-vae", KEY) is None
    assert list((tmp_path / "train-vae").iterdir()) == []
    with stages.produce("train-vae", KEY) as folder:
        (folder / "whole").touch()
    assert stages.get("train-vae", KEY) is not None


def test_a_stage_is_not_done_while_it_is_being_produced(tmp_path: Path) -> None:
    stages = LocalStageStore(tmp_path)
    with stages.produce("train-vae", KEY):
        assert stages.get("train-vae", KEY) is None


def test_folders_inside_a_stages_output_are_kept(tmp_path: Path) -> None:
    stages = LocalStageStore(tmp_path)
    with stages.produce("intake", KEY) as folder:
        (folder / "roles").mkdir()
        (folder / "roles" / "a.npz").write_bytes(b"x")
    assert (tmp_path / f"intake/{KEY}/roles/a.npz").read_bytes() == b"x"


def test_of_two_runs_that_finish_the_same_stage_the_first_stays(tmp_path: Path) -> None:
    stages = LocalStageStore(tmp_path)
    with stages.produce("train-vae", KEY) as late:
        (late / "by").write_text("late")
        with stages.produce("train-vae", KEY) as early:
            (early / "by").write_text("early")
    assert (tmp_path / f"train-vae/{KEY}/by").read_text() == "early"
    assert [path.name for path in (tmp_path / "train-vae").iterdir()] == [KEY]


def test_forgetting_removes_what_is_older_and_what_a_kill_left_then(tmp_path: Path) -> None:
    stages = LocalStageStore(tmp_path)
    for key in (KEY, OTHER):
        with stages.produce("train-vae", key) as folder:
            (folder / "f").touch()
    half = f".{KEY}.{'0' * 32}"
    (tmp_path / "train-vae" / half).mkdir()
    for name in (KEY, half):
        os.utime(tmp_path / "train-vae" / name, (1000, 1000))
    assert stages.forget(before=1000) == 0  # what is as old as that is not older
    assert stages.forget(before=2000) == 2
    assert [path.name for path in (tmp_path / "train-vae").iterdir()] == [OTHER]


# -- the store's own folder ---------------------------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def _grow_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (1000, 1000), follow_symlinks=False)


def test_a_folder_that_the_store_made_is_marked_and_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "stages"
    LocalStageStore(folder, "mine").claim()
    LocalStageStore(folder, "mine").claim()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [stage_store.MARK]
    # what earlier versions wrote and later ones read
    assert (folder / stage_store.MARK).read_bytes() == b'{"stages":1,"workspace":"mine"}'


def test_a_store_without_an_owner_marks_its_folder_as_nobodys(tmp_path: Path) -> None:
    LocalStageStore(tmp_path).claim()
    assert (tmp_path / stage_store.MARK).read_bytes() == b'{"stages":1,"workspace":""}'


@pytest.mark.parametrize("name", ["thesis/chapter1/text.tex", "notes.txt", f"train-vae/{KEY}/vae.safetensors"])
def test_a_folder_with_something_in_it_and_no_mark_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("years of work")
    _grow_old(tmp_path)
    before = _contents(tmp_path)
    stages = LocalStageStore(tmp_path, "mine")
    with pytest.raises(UserError, match=r"^stages: [^\n]*is not empty and no stage store made it[^\n]*$"):
        stages.claim()
    with pytest.raises(UserError, match="not empty"), stages.produce("train-vae", OTHER):
        pass
    assert stages.forget(before=2e9) == 0
    assert _contents(tmp_path) == before


def test_the_store_of_another_workspace_is_refused_and_never_cleared(tmp_path: Path) -> None:
    with LocalStageStore(tmp_path, "theirs").produce("train-vae", KEY) as folder:
        (folder / "f").touch()
    _grow_old(tmp_path)
    mine = LocalStageStore(tmp_path, "mine")
    with pytest.raises(UserError, match=r"^stages: [^\n]*another workspace[^\n]*new or empty folder$"):
        mine.claim()
    assert mine.forget(before=2e9) == 0
    assert LocalStageStore(tmp_path, "theirs").get("train-vae", KEY) is not None


@pytest.mark.parametrize("mark", [b"", b"{}", b"[1]", b"\xff"])
def test_a_damaged_mark_is_nobodys_we_know(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / stage_store.MARK).write_bytes(mark)
    with pytest.raises(UserError, match="another workspace"):
        LocalStageStore(tmp_path, "mine").claim()


def test_what_a_kill_left_of_making_the_mark_does_not_count_as_foreign(tmp_path: Path) -> None:
    (tmp_path / f".{stage_store.MARK}.{'0' * 32}.tmp").touch()
    (tmp_path / f"..{stage_store.MARK}.{'0' * 32}.tmp.{'1' * 32}.tmp").touch()
    LocalStageStore(tmp_path, "mine").claim()


def test_the_workspaces_own_folder_from_before_there_were_marks_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "stages" / "train-vae" / KEY).mkdir(parents=True)
    stages = LocalStageStore(tmp_path / "stages", "mine", adopt=True)
    stages.claim()
    assert stages.get("train-vae", KEY) is not None
    _grow_old(tmp_path)
    assert stages.forget(before=2000) == 1


def test_forgetting_removes_only_folders_that_the_store_named(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "stages"
    (outside / KEY).mkdir(parents=True)
    (outside / KEY / "precious").write_text("x")
    stages = LocalStageStore(folder, "mine")
    with stages.produce("train-vae", KEY) as output:
        (output / "out").symlink_to(outside)
        (output / "f").touch()
    foreign = [
        *("thesis/draft/a.tex", f"thesis/{KEY}/a.tex", "train-vae/notes/a", f"train-vae/{KEY[:15]}/a"),
        *(f"train-vae/{KEY}.old/a", f"train-vae/.{KEY}.bak/a", "train-vae/notes.txt", "a/b/c", ".git/objects/a"),
    ]
    for name in foreign:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    (folder / "train-vae" / OTHER).symlink_to(outside / KEY)
    (folder / "evaluate").symlink_to(outside)
    (folder / "train-vae" / ("e" * 16)).write_text("a file of that name")
    _grow_old(tmp_path)
    before = _contents(folder)
    assert stages.forget(before=2000) == 1
    gone = {name for name in before if name.startswith(f"train-vae/{KEY}/")}
    assert _contents(folder) == {name: content for name, content in before.items() if name not in gone}
    assert (outside / KEY / "precious").read_text() == "x"


@pytest.mark.parametrize(
    "setting",
    [
        *(".", "..", "./", "data", "data/stages", ".git", ".git/stages", "inbox/x", "quarantine", ".dvc/tmp", ".vabal"),
        *(".vabal/publish", ".vabal/stages/more", "a/../data", "/", "{root}", "{root}/data", "{root}/..", "link"),
    ],
)
def test_a_setting_that_names_a_folder_of_something_else_is_refused(tmp_path: Path, setting: str) -> None:
    root = tmp_path / "work"
    root.mkdir()
    (root / "link").symlink_to(root / "data")
    with pytest.raises(UserError, match=r"^stages: [^\n]* cannot be the stage store's folder: name [^\n]*$"):
        stage_folder(root, setting.format(root=root))


@pytest.mark.parametrize("setting", [".vabal/stages", ".vabal/stages-2", "computed", "../stages", "{root}-stages"])
def test_a_setting_may_name_any_other_folder_relative_to_the_workspace_or_whole(tmp_path: Path, setting: str) -> None:
    root = tmp_path / "work"
    root.mkdir()
    assert stage_folder(root, setting.format(root=root)).is_relative_to(tmp_path)


def test_a_name_that_no_store_gives_is_an_error_of_ours(tmp_path: Path) -> None:
    for stage, key in [("elsewhere", KEY), ("../x", KEY), ("train-vae", "k"), ("train-vae", "../../x")]:
        with pytest.raises(ValueError, match="no name"), LocalStageStore(tmp_path).produce(stage, key):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_key_depends_on_stage_settings_inputs_and_code_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    key = StageKey("s", {"a": 1, "b": 2}, {"x": "d1", "y": 3}).digest
    assert key == StageKey("s", {"b": 2, "a": 1}, {"y": 3, "x": "d1"}).digest
    assert len(key) == 16
    others = [
        StageKey("t", {"a": 1, "b": 2}, {"x": "d1", "y": 3}).digest,
        StageKey("s", {"a": 1, "b": 3}, {"x": "d1", "y": 3}).digest,
        StageKey("s", {"a": 1, "b": 2}, {"x": "d2", "y": 3}).digest,
    ]
    monkeypatch.setattr(stage_store, "code_version", lambda: "0.1.0+other")
    others.append(StageKey("s", {"a": 1, "b": 2}, {"x": "d1", "y": 3}).digest)
    assert len({key, *others}) == 5


def test_a_key_is_the_digest_of_its_document_so_that_outputs_of_the_same_code_are_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stage_store, "code_version", lambda: "0.1.0+3f2a")
    document = b'{"code":"0.1.0+3f2a","inputs":{"x":"d1"},"settings":{"a":1},"stage":"s"}'
    assert StageKey("s", {"a": 1}, {"x": "d1"}).digest == hashlib.sha256(document).hexdigest()[:16]


def test_settings_and_inputs_of_a_key_are_not_mixed_up() -> None:
    assert StageKey("s", {"a": "1"}, {}).digest != StageKey("s", {}, {"a": "1"}).digest


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


def test_stage_folders_can_be_read_by_other_programs_of_the_same_user_and_by_nobody_else(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with LocalStageStore(tmp_path).produce("train-vae", KEY):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / f"train-vae/{KEY}").stat().st_mode) == 0o700
