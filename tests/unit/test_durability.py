"""A power cut after a call returns takes nothing back: contents are synced before they get their names, names after.

`Disk` watches `os.fsync` and renames. What was not synced in its present state would be lost; a rename of something
that would be lost is an error at once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.recording import Recording
from tests.support.small_pools import WHEN, file_of, picture, small_pools
from vabal import files, images, pools, rounds
from vabal.benchmark import cells, grids
from vabal.errors import UserError
from vabal.files import locked, write_bytes
from vabal.labels import answers, arrivals, inbox
from vabal.rounds import Plan
from vabal.rounds.stage_store import LocalStageStore
from vabal.settings.models import Params
from vabal.sources import ingestion
from vabal.workspace import Workspace

KEY = "01" * 8


class Disk:
    """What would still be there after a power cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: dict[tuple[int, int], Any] = {}
        self.too_early: list[str] = []
        fsync = os.fsync

        def note(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            self.synced[_identity(path)] = _state(path)

        monkeypatch.setattr(os, "fsync", note)
        for name in ("rename", "replace", "link"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))

    def _watched(self, move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, *rest: Any, **options: Any) -> None:
            self.too_early += self.lost(Path(source))
            move(source, target, *rest, **options)

        return moved

    def lost(self, *tops: Path) -> list[str]:
        """Files and folders, these and those below, that are not synced as they are now."""
        found = [path for top in tops for path in (top, *(sorted(top.rglob("*")) if top.is_dir() else ()))]
        kept = [path for path in found if path.name != ".lock" and not path.is_symlink()]
        return [str(path) for path in kept if self.synced.get(_identity(path)) != _state(path)]


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _state(path: Path) -> Any:
    if path.is_dir():
        return {item.name for item in path.iterdir() if item.name != ".lock"}
    return path.stat().st_size, path.stat().st_mtime_ns


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def _in_place(folder: Path) -> None:
    write_bytes(folder / "f", b"first")
    write_bytes(folder / "f", b"second")


def _once(folder: Path) -> None:
    files.write_once(folder / "f", b"first")


def _a_stage(folder: Path) -> None:
    with LocalStageStore(folder).produce("train-vae", KEY) as output:
        (output / "roles").mkdir()
        (output / "roles" / "f").write_bytes(b"x")
        (output / "vae.safetensors").write_bytes(b"weights")


def _labels(folder: Path) -> None:
    (folder.parent / "labels.csv").write_text("sample_id,label,annotator\nb,cat,ann\n")
    answers.import_labels(folder, small_pools(), folder.parent / "labels.csv", WHEN)


def _images(folder: Path) -> None:
    came = folder.parent / "came"
    came.mkdir()
    for number in range(3):
        (came / f"{number}.png").write_bytes(file_of(picture(100 + number)))
    ingestion.ingest(folder, small_pools(), came, Params(), quarantine=folder.parent / "aside", when=WHEN)


def _quarantine(folder: Path) -> None:
    for number in range(2):
        images.quarantine(folder, f"{number}.png", b"no image %d" % number, "damaged", WHEN)


def _left_out(folder: Path) -> None:
    images.note_left_out(folder, [("again.png", "same content")], WHEN)


def _shards(folder: Path) -> None:
    files = ((str(number), file_of(picture(number))) for number in range(3))
    list(images.write_shards(files, folder, settings=Params().pool, name_prefix="new"))


@pytest.mark.parametrize("write", [_in_place, _once, _a_stage, _labels, _images, _quarantine, _left_out, _shards])
def test_what_was_written_survives_a_power_cut(write: Callable[[Path], None], tmp_path: Path, disk: Disk) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder)
    assert disk.too_early == []
    assert disk.lost(folder) == []


def test_a_benchmarks_cell_survives_a_power_cut(tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", np.zeros((2, 8, 8, 1), np.uint8))
    common = {"settings": {}, "initial": 1, "holdout": 0.2, "budget": 1, "rounds": 1}
    cell = grids.Cell("digits", "natural", "random", "random", {}, 0, common)
    monkeypatch.setattr(cells, "simulated_pool", lambda *_: None)
    monkeypatch.setattr(cells, "_document", lambda *_: {"key": cell.key})
    monkeypatch.setattr(cells, "simulation", SimpleNamespace(check_budget=lambda *_: None, run=lambda *_, **__: ()))
    (tmp_path / "cells").mkdir()
    cells.run_cell(cell, cells.Prepared(**{"folder": str(tmp_path), **_rest_of(cells.Prepared)}), tmp_path / "cells")
    assert (tmp_path / "cells" / cell.file_name).is_file()
    assert disk.too_early == []
    assert disk.lost(tmp_path / "cells") == []


def _rest_of(kind: Any) -> dict[str, Any]:
    return {name: None for name in kind.__dataclass_fields__ if name != "folder"}


@pytest.mark.parametrize("links", [True, False])
def test_a_publication_survives_a_power_cut_before_and_after_its_moves(
    links: bool, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path / "work")
    place.root.mkdir()
    place.data.mkdir()
    made = place.state / "made"
    write_bytes(made, b"selection")
    if not links:

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("links are not supported")

        monkeypatch.setattr(os, "link", refuse)
    names = ("rounds/0001/selection.parquet", "labeled.parquet")
    plan = Plan(1, "round 1", {name: files.file_sha256(made) for name in names})
    rounds.stage(place, plan, dict.fromkeys(names, made))
    assert disk.too_early == []
    assert disk.lost(place.state / "publish") == []
    rounds.carry_out(place, Recording())
    moved_out_of = str(place.state / "publish")  # what a cut brings back there is moved or found in place again
    assert [path for path in disk.too_early if not path.startswith(moved_out_of)] == []
    assert disk.lost(place.data) == []


def test_the_disk_of_these_tests_notices_a_write_that_is_not_synced(tmp_path: Path, disk: Disk) -> None:
    write_bytes(tmp_path / "f", b"first")
    (tmp_path / "f").write_bytes(b"second, in place")
    assert disk.lost(tmp_path / "f") == [str(tmp_path / "f")]
    (tmp_path / "g").write_bytes(b"")
    (tmp_path / "g").rename(tmp_path / "h")
    assert disk.too_early == [str(tmp_path / "g")]
    assert str(tmp_path) in disk.lost(tmp_path)


# -- one import at a time -----------------------------------------------------------------------------------------


def _in_a_process(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return process


def test_two_processes_that_import_at_once_come_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box, write = tmp_path / "inbox", pools.write_table
    (holds, now_holds), (may_go_on, go_on) = os.pipe(), os.pipe()

    def slowly(*arguments: Any) -> None:
        os.write(now_holds, b".")
        os.read(may_go_on, 1)
        write(*arguments)

    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"sample_id,label,annotator\nb,cat,{name}\n")
    with monkeypatch.context() as patched:
        patched.setattr(inbox, "write_table", slowly)
        first = _in_a_process(lambda: answers.import_labels(box, small_pools(), tmp_path / "a.csv", WHEN))
    os.read(holds, 1)
    second = _in_a_process(lambda: answers.import_labels(box, small_pools(), tmp_path / "b.csv", WHEN))
    time.sleep(0.7)
    assert os.waitpid(second, os.WNOHANG) == (0, 0), "the second import did not wait for the first"
    os.write(go_on, b".")
    assert [os.waitpid(process, 0)[1] for process in (first, second)] == [0, 0]
    assert [name.partition("-")[0] for name in arrivals.pending(box)] == ["labels/000001", "labels/000002"]
    events, _ = arrivals.read(box, arrivals.pending(box))
    assert events["annotator"].tolist() == ["a", "b"]


def test_a_lock_is_held_by_one_process_and_the_next_is_refused_or_waits(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with locked(path):
        with pytest.raises(UserError, match=r"^busy$"), locked(path, "busy"):
            pass
        program = (
            f"from pathlib import Path; from vabal.files import locked\nwith locked(Path({str(path)!r})): print('in')"
        )
        waiting = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.communicate(timeout=2)
    assert waiting.communicate(timeout=60)[0] == "in\n"
    with locked(path, "busy"):
        pass
