"""The harness of the benchmarks: bounds, the file of results, and the pools that it makes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import draws, estimate, evidence, gpu, growth, junk, vae_step
from benchmarks.__main__ import BENCHMARKS, Benchmark, Check, main
from benchmarks.bookkeeping import Spent, _summary, _watched
from benchmarks.memory import memory_mb
from benchmarks.random_pool import _pools, encoded_images
from tests.support.forking import DVC_PROCESS
from tests.support.small_cells import cell
from vabal import images, pools
from vabal.adapters import dvc_process
from vabal.adapters.git import Git
from vabal.benchmark import comparison, simulation
from vabal.benchmark.summary import Summary
from vabal.errors import UserError
from vabal.learning.backbones import Layer
from vabal.learning.probe import Embedded
from vabal.settings import params
from vabal.vae import build


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
    names = {
        "estimate",
        "draws",
        "vae_step",
        "coreset",
        "badge",
        "bald",
        "typiclust",
        "large",
        "growth",
        "features",
        "memory",
        "bookkeeping",
        "imports",
        "night",
        "waiting",
        "junk",
    }
    assert set(BENCHMARKS) == names


def test_the_bounds_of_the_issue_are_checked() -> None:
    at = {"ratio": 10.0, "ratio_pooled": 3.0, "share_of_matmul_rate": 0.6}
    measured: dict[str, dict[str, Any]] = {
        "estimate": {"C=10": at, "C=100": at | {"ratio_pooled": 7.0}},
        "draws": {"least_worth": 10.0, "largest_error": 1.0},
        "vae_step": {"ratio": 3.0},
        "coreset": {"ratio": 3.0, "memory_ratio": 1.3, "same_picks": True},
        "badge": {"ratio": 10.0, "ratio_plain": 3.0},
        "typiclust": {"ratio": 5.0, "inertia": 1.0},
        "large": {"largest_gb": 4.0, "largest_exponent": 1.2},
        "bald": {"stem_calls_a_piece": 1.0, "memory_ratio": 1.0},
        "junk": {"junk_ratio": 0.5, "gain": 0.0},
    }
    for name, result in measured.items():
        assert all(check.ok for check in BENCHMARKS[name].checks(result)), name
    measured["estimate"]["C=100"] = at
    measured["draws"]["least_worth"] = 9.9
    measured["vae_step"]["ratio"] = 3.1
    measured["coreset"]["same_picks"] = False
    measured["badge"]["ratio"] = 9.9
    measured["typiclust"]["ratio"] = 4.9
    measured["large"]["largest_gb"] = 4.1
    measured["bald"]["stem_calls_a_piece"] = 2.0
    measured["junk"]["junk_ratio"] = 0.6
    for name, result in measured.items():
        assert [check.ok for check in BENCHMARKS[name].checks(result)].count(False) == 1, name


def test_the_estimate_and_the_loop_of_the_published_code_are_compared_on_equal_numbers() -> None:
    result = estimate.run([("paper", 3, 4), ("probe", 3, 4)], repeats=1, choices=[])
    for shape in estimate.SHAPES:
        assert result[f"{shape}, C=3"]["largest_difference"] < 1e-4
    assert result["C=3"]["ratio"] <= result["paper, C=3"]["ratio"]
    assert result["C=3"]["ratio_pooled"] <= result["probe, C=3"]["ratio_pooled"]


def test_a_step_s_bare_products_are_three_for_each_linear_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int, int]] = []
    multiply = torch.mm

    def counted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        shapes.append((*left.shape, right.shape[1]))
        return multiply(left, right)

    monkeypatch.setattr(torch, "mm", counted)
    vae_step.bare_products((4, 4, 4, 4))()
    layers = [m for m in build((4, 4, 4, 4), 10, seed=0).modules() if isinstance(m, torch.nn.Linear)]
    assert len(shapes) == 3 * len(layers)
    assert shapes[:3] == [(128, 4, 128), (128, 128, 4), (128, 128, 4)]  # a head of 4 inputs and 128 outputs


def test_training_and_products_take_turns_epoch_by_epoch() -> None:
    result = vae_step.run(samples=256, epochs=2)
    assert result["ratio"] == max(result[name]["ratio"] for name in vae_step.WIDTHS) > 0


def test_exponents_are_slopes_of_logarithms() -> None:
    assert growth.exponents({10: 0.1, 100: 10.0}) == pytest.approx({"fitted": 2.0, "last": 2.0})
    bent = growth.exponents({10: 1.0, 100: 1.0, 1000: 100.0})
    assert bent == pytest.approx({"fitted": 1.0, "last": 2.0})
    assert growth.exponents({10: 1.0, 100: None}) == {"fitted": None, "last": None}


@pytest.mark.parametrize(
    ("row", "expected"),
    [({}, 0.0), ({10: 3.0}, 3.0), ({10: 1.0, 100: 10.0}, 100.0), ({10: 5.0, 100: 5.0}, 5.0), ({10: None}, np.inf)],
)
def test_what_a_size_will_take_is_told_by_the_growth_before(row: Any, expected: float) -> None:
    size = 10 * max(row, default=1)
    assert growth._expected(row, size) == pytest.approx(expected)


def test_the_growth_s_plot_names_every_row_and_has_no_date(tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {
        "quick": {"seconds": {10: 0.1, 100: 1.0}, "fitted": 1.0},
        "left out": {"seconds": {10: None}, "fitted": None},
    }
    growth.draw(rows, rows, tmp_path / "growth.svg", 10, 1000)
    text = (tmp_path / "growth.svg").read_text()
    assert "quick  1.00" in text
    assert "left out" not in text
    growth.draw(rows, rows, tmp_path / "again.svg", 10, 1000)
    assert (tmp_path / "again.svg").read_text() == text


def test_what_stops_a_size_is_told_by_the_two_largest_and_the_table_shows_it() -> None:
    row = {"seconds": {10: 1.0, 100: 10.0, 1000: None}, "megabytes": {10: 1.0, 100: 10.0, 1000: None}, "last": 1.0}
    assert growth.far(row, 3_600_000) == pytest.approx(
        {"hours": 100.0, "gigabytes": 360.0, "stopped_by": "memory and time"}
    )
    assert growth.far(row, 1000)["stopped_by"] == "nothing"
    assert growth.far(row | {"seconds": {10: 1.0, 100: None}})["stopped_by"] == "too few sizes"
    rows = {"badge": row | {"fitted": 1.0, "far": growth.far(row)}}
    text = "\n".join(growth.lines({"samples": {"rows": rows}, "classes": {"rows": rows}}))
    assert "N = 1,000" in text and "C = 1,000" in text and "memory and time" in text


def test_the_peak_above_is_what_a_work_holds_at_most() -> None:
    code = "import numpy as np; from benchmarks.memory import peak_above; "
    code += "print(peak_above(lambda: np.ones(2**23).sum()))"  # in a process of its own: no other thread frees memory
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 60 < float(told) < 90


def test_errors_are_told_with_and_without_what_is_common() -> None:
    error_N_C = np.array([[1.0, 2.0], [3.0, 6.0]])
    squares = draws._squares(error_N_C)
    assert squares["all"].tolist() == [[1, 4], [9, 36]]
    assert squares["samples"].tolist() == [[1, 4], [1, 4]]
    assert squares["classes"].tolist() == [[0.25, 0.25], [2.25, 2.25]]
    assert squares["both"].tolist() == [[0.25, 0.25], [0.25, 0.25]]


def test_other_noise_is_what_it_is_called() -> None:
    numbers = torch.Generator().manual_seed(0)
    matched, orthogonal = draws._matched(10, 20, numbers), draws._orthogonal(10, 20, numbers)
    assert torch.allclose(matched.square().mean(dim=0), torch.ones(20).double())
    assert torch.allclose(matched.sum(dim=0), torch.zeros(20).double())
    between = orthogonal[:5] @ orthogonal[:5].T
    assert torch.allclose(between, torch.diag(between.diagonal()))
    assert draws._sobol(10, 20, numbers).shape == (10, 20)


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


def test_what_a_round_starts_is_seen_by_the_bookkeeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dvc_process, "DvcProcess", DVC_PROCESS)
    with _watched() as spent, pytest.raises(UserError):  # no repository
        Git(tmp_path).tags()
    assert spent.starts == {"git": 1}


def test_the_peak_of_memory_is_not_below_what_is_resident_now() -> None:
    held = np.ones(30_000_000, dtype=np.uint8)
    now = memory_mb("VmRSS")
    assert 30 < now <= memory_mb("VmHWM")
    assert held[0] == 1


def _summary_of_two_seeds() -> Summary:
    """Averages of the curves, seed 0 and 1: random .5 and .6, margin .6 and .7, vabal .7 and .9."""
    curves = {"random": (0.5, 0.6), "margin": (0.6, 0.7), "vabal": (0.7, 0.9)}
    return comparison.summarise(
        cell((value - 0.1, value + 0.1), strategy=name, seed=seed, imbalance=imbalance)
        for name, values in curves.items()
        for seed, value in enumerate(values)
        for imbalance in ("natural", "rare:0:0.1")
    )


def test_the_table_of_the_evidence_has_points_above_random_and_what_the_own_strategy_is_above_each() -> None:
    head, _, *rows = evidence.table(_summary_of_two_seeds())
    assert head.startswith("| strategy | natural | rare:0:0.1 |")
    cells = {row.split("|")[1].strip(" *`"): [value.strip() for value in row.split("|")[2:-1]] for row in rows}
    assert list(cells) == ["vabal", "margin", "random"]
    assert cells["vabal"][:2] == ["+25.0", "+25.0"]
    assert cells["margin"][2] == "+10.0 (+10.0 to +10.0)"
    assert cells["margin"][4] == "+15.0 ± 5.0"  # 10 and 20 points: a deviation of 7.1 over the root of two seeds
    assert (cells["vabal"][4], cells["random"][2]) == ("", "0")
    assert cells["random"][4] == "+25.0 ± 5.0"
    assert cells["random"][6] == "2.5"  # training, and choosing where there is something to choose


def test_the_table_by_setting_has_each_interval() -> None:
    head, _, *rows = evidence.by_setting(_summary_of_two_seeds())
    assert head == "| | natural | rare:0:0.1 | all pairs |"
    margin = "| margin | +10.0 (+10.0 to +10.0) | +10.0 (+10.0 to +10.0) | +10.0 (+10.0 to +10.0) |"
    assert margin in rows
    assert any(row.startswith("| vabal | +25.0 (-38.5 to +88.5) |") for row in rows)  # 5 points times t of 12.7
    assert len(rows) == 2


def test_the_figure_of_the_evidence_has_a_panel_a_setting_and_no_date(tmp_path: Path) -> None:
    evidence.draw(_summary_of_two_seeds(), tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert "digits, natural" in drawn and "digits, rare:0:0.1" in drawn and "margin" in drawn
    assert "<dc:date>" not in drawn
    evidence.draw(_summary_of_two_seeds(), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_junk_is_made_of_four_kinds_in_turn_and_of_one_seed_alike() -> None:
    picture = np.full((20, 30), 77, dtype=np.uint8)
    made, again = (junk.junk_images(8, 8, [picture], np.random.default_rng(1)) for _ in range(2))
    assert made.shape == (8, 8, 8, 1)
    assert (made == again).all()
    noise, flat, smooth, crop = made[:4, ..., 0].astype(float)
    assert flat.std() < 10 < noise.std()
    assert np.abs(np.diff(smooth)).mean() < np.abs(np.diff(noise)).mean()
    assert (crop == 77).all()


def test_the_simplest_guard_shuts_out_what_lies_beyond_the_principal_components() -> None:
    numbers = np.random.default_rng(0)
    features_P_D = numbers.normal(size=(40, 2)) @ numbers.normal(size=(2, 10))
    features_P_D[[3, 17]] += numbers.normal(size=(2, 10))
    assert np.flatnonzero(junk.far_from_components(features_P_D, 0.05, 2)).tolist() == [3, 17]
    assert not junk.far_from_components(features_P_D, 0.0, 2).any()


def test_junk_asked_about_costs_its_place_and_is_neither_learned_nor_asked_again() -> None:
    numbers = np.random.default_rng(0)
    labels_N = np.arange(60) % 2
    labels_N[40:50] = 2  # junk; the last ten are the holdout
    values_N = (numbers.normal(size=(60, 8)) + 3 * labels_N[:, None]).astype(np.float32)
    pool = simulation.SimulatedPool(
        ("a", "b"),
        np.array([f"{row:02d}" for row in range(60)], dtype=object),
        np.zeros((60, 1, 1, 1), dtype=np.uint8),
        labels_N,
        pool_P=np.arange(50),
        holdout_M=np.arange(50, 60),
        initial_L=np.arange(10),
    )
    inputs = simulation.Inputs(values_N, Embedded({"name": "random"}, (Layer(64, 1, 4), Layer(64, 0, 4))))
    classifier = {"learner": "probe", "layers": "all", "penalty": 1.0}
    asked = {"classifier": classifier, "selection": {"strategy": "random", "budget": 20}}
    outcome = junk.play(pool, inputs, params.parse(asked), rounds=2)
    assert outcome.junk == 10  # all forty were asked about, each once
    assert outcome.balanced_accuracy > 0.9


def test_the_table_of_junk_has_a_line_for_each_row() -> None:
    rows = {"random": {"junk": 7.5, "balanced_accuracy": 0.9}, "default": {"junk": 0.0, "balanced_accuracy": 0.95}}
    drawn = junk.table({"source": "digits", "seeds": 2, "asked": 150, "rows": rows}).splitlines()
    assert "junk of 150" in drawn[0]
    assert [line.split() for line in drawn[1:]] == [["random", "7.5", "0.900"], ["default", "0.0", "0.950"]]


def test_what_a_gpu_should_reach_runs_on_a_cpu_small_and_is_judged_nowhere_but_on_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["device"], found["precision"]) == ("cpu", "torch.float32")
    assert {name: found[name]["ok"] for name in gpu.TARGETS} == {"features": None, "round": None, "estimate": None}
    assert min(found["features"]["share_of_bare"], found["round"]["seconds"], found["estimate"]["share_of_bare"]) > 0
    capsys.readouterr()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.startswith("no GPU that torch can use is here: `--device cpu`")
