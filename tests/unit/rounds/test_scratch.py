import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vabal.rounds import scratch
from vabal.rounds.context import own_store
from vabal.workspace import Workspace

KILO = 1e-6  # GB
OLD, NEWER = "1" * 16, "2" * 16


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    """With two outputs, a decoded shard and embeddings of a thousand bytes each, used at 100, 300, 200 and 400 s."""
    workspace = Workspace(tmp_path)
    store = own_store(workspace)
    for key in (OLD, NEWER):
        with store.produce("train-vae", key) as folder:
            (folder / "vae.safetensors").write_bytes(bytes(1000))
    for folder in (workspace.decoded, workspace.embeddings):
        folder.mkdir()
        (folder / "pool-0000.npy").write_bytes(bytes(1000))
    for path, used in zip(_all(workspace), (100, 300, 200, 400), strict=True):
        os.utime(path, (used, used))
    return workspace


def _all(place: Workspace) -> list[Path]:
    outputs = [own_store(place).folder / "train-vae" / key for key in (OLD, NEWER)]
    return [*outputs, place.decoded / "pool-0000.npy", place.embeddings / "pool-0000.npy"]


def _left(place: Workspace) -> list[bool]:
    return [path.exists() for path in _all(place)]


def test_what_was_not_used_for_longest_goes_until_the_limit_is_kept(place: Workspace) -> None:
    said = scratch.trim(place, 2 * KILO)
    assert (said.files, said.bytes, said.left) == (2, 2000, 2000)
    assert _left(place) == [False, True, False, True]
    assert scratch.trim(place, 2 * KILO).line(2 * KILO) is None


def test_what_was_asked_for_meanwhile_stays(place: Workspace) -> None:
    assert own_store(place).get("train-vae", OLD) is not None
    scratch.trim(place, 2 * KILO)
    assert _left(place) == [True, False, False, True]


def test_of_a_round_at_work_nothing_goes_and_a_line_says_so(place: Workspace) -> None:
    said = scratch.trim(place, 1 * KILO, before=250)
    assert _left(place) == [False, True, False, True]
    line = said.line(1 * KILO)
    assert line is not None
    assert line.startswith("scratch: dropped 2 of what was not used for longest (2e-06 GB)")
    assert line.endswith("2e-06 GB are in use; compute.scratch_gigabytes is 1e-06")


def test_what_another_process_uses_stays_until_it_ends_or_dies(place: Workspace) -> None:
    program = (
        "import sys, time; from pathlib import Path; from vabal.rounds import scratch; "
        "from vabal.workspace import Workspace\n"
        "with scratch.at_work(Workspace(Path(sys.argv[1]))): print('at work', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", program, str(place.root)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "at work\n"
        for path in _all(place):
            os.utime(path)
        assert scratch.trim(place, 0).files == 0
        other.kill()
    time.sleep(0.01)
    assert scratch.trim(place, 0, before=time.time() + 1).files == 4
    assert list((place.state / "at_work").iterdir()) == []


def test_a_benchmark_s_images_count_as_well(place: Workspace) -> None:
    sent = place.bench / "0123456789abcdef"
    sent.mkdir(parents=True)
    (sent / "images.npy").write_bytes(bytes(1000))
    os.utime(sent, (50, 50))
    assert scratch.trim(place, 4 * KILO).files == 1
    assert not sent.exists()


def test_a_file_that_has_another_name_costs_nothing(place: Workspace) -> None:
    for path in _all(place)[2:]:
        (place.root / path.parent.name).hardlink_to(path)
    assert scratch.trim(place, 2 * KILO).files == 0
