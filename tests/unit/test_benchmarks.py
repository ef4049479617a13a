"""The harness of the benchmarks: bounds, the file of results, and the pools that it makes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.__main__ import BENCHMARKS, Benchmark, Check, main
from benchmarks.bookkeeping import Spent, _summary
from benchmarks.memory import memory_mb
from benchmarks.random_pool import _pools, encoded_images
from vabal import images, pools


def benchmark(measured: float) -> Benchmark:
    return Benchmark(lambda: {"number": measured}, lambda result: [Check("a number", result["number"], "<=", 1.0)])


@pytest.mark.parametrize(("sign", "measured", "ok"), [("<=", 1.0, True), ("<=", 1.1, False), (">=", 0.9, False)])
def test_a_check_holds_on_the_right_side_of_its_bound(sign: Any, measured: float, ok: bool) -> None:
    assert Check("a number", measured, sign, 1.0).ok is ok


def test_a_bound_that_fails_makes_the_exit_code_1_and_is_written_all_the_same(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert main(["--out", str(out)], {"fast": benchmark(0.5), "slow": benchmark(2.0)}) == 1
    written = json.loads(out.read_text())
    assert [check["ok"] for check in written["fast"]["checks"]] == [True]
    assert [check["ok"] for check in written["slow"]["checks"]] == [False]


def test_results_of_benchmarks_that_were_not_asked_for_stay(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    both = {"first": benchmark(0.5), "second": benchmark(0.5)}
    assert main(["--out", str(out)], both) == 0
    assert main(["second", "--out", str(out)], both | {"second": benchmark(0.25)}) == 0
    written = json.loads(out.read_text())
    assert (written["first"]["result"]["number"], written["second"]["result"]["number"]) == (0.5, 0.25)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sped", "--out", str(tmp_path / "results.json")], {"speed": benchmark(0.5)})
    assert ended.value.code == 2
    assert "no benchmark sped; known are speed" in capsys.readouterr().err


def test_results_name_the_machine_and_no_path(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    main(["--out", str(out)], {"speed": benchmark(0.5)})
    written = json.loads(out.read_text())["speed"]["machine"]
    assert written["cores"] >= 1
    assert written["versions"]["torch"]
    assert str(tmp_path) not in out.read_text()


def test_every_bound_of_the_issue_has_a_benchmark() -> None:
    assert set(BENCHMARKS) == {"estimate", "features", "memory", "bookkeeping"}


def test_the_random_images_are_distinct_and_decode_to_what_was_drawn() -> None:
    made = list(encoded_images(5000))
    assert len({hashlib.sha256(data).digest() for _, data in made}) == 5000
    assert len({sample_id for sample_id, _ in made}) == 5000
    generator = np.random.default_rng(0)
    first, second = (generator.integers(256, size=(count, 8, 8), dtype=np.uint8) for count in (4096, 904))
    assert (images.decode(made[7][1], 8, 1)[..., 0] == first[7]).all()
    assert (images.decode(made[4096 + 7][1], 8, 1)[..., 0] == second[7]).all()


def test_the_random_pools_hold_every_invariant() -> None:
    placed = [("pool-0000", row, f"image-{row:07d}") for row in range(1000)]
    made = _pools(placed)
    pools.check(made)
    assert (len(made.holdout), len(made.labeled), len(made.unlabeled)) == (200, 100, 700)


def test_the_ratio_of_sizes_is_the_median_of_the_pairs() -> None:
    def one(seconds: float) -> dict[str, float]:
        return {"bookkeeping_seconds": seconds, "bookkeeping_cpu_seconds": 1.0}

    measured = {"10": [one(1.0), one(2.0), one(4.0)], "1000": [one(2.0), one(6.0), one(40.0)]}
    summary = _summary(measured, 10, 1000)
    assert summary["ratio_seconds"] == 3.0  # of 2, 3 and 10
    assert summary["small"]["bookkeeping_seconds"] == 2.0
    assert summary["repeats"] == 3


def test_started_programs_are_counted_and_their_time_kept_apart() -> None:
    spent = Spent()
    run = spent.watch_processes(subprocess.run)
    run([sys.executable, "-c", "import time; time.sleep(0.05)"], check=True)
    run([sys.executable, "-c", ""], check=True)
    program = Path(sys.executable).name
    assert spent.starts == {program: 2}
    assert spent.wall[program] >= 0.05
    assert spent.cpu[program] > 0


def test_the_peak_of_memory_is_not_below_what_is_resident_now() -> None:
    held = np.ones(30_000_000, dtype=np.uint8)
    now = memory_mb("VmRSS")
    assert 30 < now <= memory_mb("VmHWM")
    assert held[0] == 1
