"""`vabal bench`: matched, resumable, recorded once, and the same picks as a night's."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from running import RunningStack
from workspaces import DIGITS, SETTINGS, call, done, make_workspace, picked_ids, run, until

from tests.support.small_sources import few_digits
from vabal import sources, strategies
from vabal.benchmark import cells as benchmark_cells
from vabal.benchmark import grids, variants
from vabal.benchmark import running as benchmark_running
from vabal.errors import UserError
from vabal.images import shards
from vabal.pages import report
from vabal.settings import presets
from vabal.settings.models import Params
from vabal.settings.params import parse
from vabal.strategies import Candidates, Context, Needs, ScoringStrategy, Shard

QUICK = {
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 2,
    "vae.epochs": 1,
    "vae.min_steps": 5,
    "probabilities.draws": 4,
    "probabilities.members": 2,
    "compute.device": "cpu",
}
OPTIONS = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]


def grid(*specs: str, **changes: Any) -> grids.Grid:
    chosen = grids.Grid(
        sources=(few_digits(),),
        imbalances=("dominant:0:0.1",),
        variants=tuple(variants.parse_variants(specs or ("random", "margin"))),
        seeds=(0,),
        rounds=2,
        budget=5,
        initial=12,
        holdout=0.2,
        settings=QUICK,
    )
    return replace(chosen, **changes)


def timeless(out: Path) -> list[dict[str, Any]]:
    cells = benchmark_cells.read_cells(out)
    for cell in cells:
        for item in cell["rounds"]:
            del item["seconds"], item["cpu_seconds"]
    assert cells
    return cells


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# -- matched ------------------------------------------------------------------------------------------------------


def test_strategies_of_one_seed_start_from_the_same_pools_and_the_same_classifier(tmp_path: Path) -> None:
    benchmark_running.run(grid("random", "margin", "vabal", seeds=(0, 1)), tmp_path, benchmark_running.on_processes(1))
    cells = benchmark_cells.read_cells(tmp_path)
    assert len(cells) == 6
    for seed in (0, 1):
        first = [cell["rounds"][0] for cell in cells if cell["seed"] == seed]
        assert len({(item["accuracy"], str(item["picked_per_class"])) for item in first}) == 1
    assert len({str(cell["rounds"][0]["picked_per_class"]) for cell in cells}) == 2  # seeds differ


def learners(text: str, **changes: Any) -> grids.Grid:
    options: dict[str, Any] = {"sources": [few_digits()], "strategies": "random,margin", "seeds": 1, "rounds": 2}
    options |= {"budget": 5, "initial": 12, "settings": QUICK, "learners": text}
    return grids.BenchmarkOptions(**options | changes).grid()


def test_learners_start_from_the_same_pools_and_each_is_compared_with_its_own_random_picks(tmp_path: Path) -> None:
    wanted = learners("scratch,svm-pixels,svm-hog,logreg-pixels")
    summary = benchmark_running.run(wanted, tmp_path, benchmark_running.on_processes(1))
    cells = benchmark_cells.read_cells(tmp_path)
    assert len(cells) == 8
    assert len({str(cell["rounds"][0]["picked_per_class"]) for cell in cells}) == 1
    pairs = {item.strategy: item.pairs for item in summary.settings[0].strategies}
    assert {name: count for name, count in pairs.items() if count} == dict.fromkeys(
        [f"{name}/margin" for name in ("scratch", "svm-pixels", "svm-hog", "logreg-pixels")], 1
    )
    found = rows(tmp_path)
    assert {row["learner"] for row in found} == {"scratch", "svm-pixels", "svm-hog", "logreg-pixels"}
    assert all(float(row["cpu_seconds"]) > 0 and row["trained"] == "1" for row in found)


def test_networks_trained_are_counted_with_those_beside_the_classifier(tmp_path: Path) -> None:
    wanted = learners("scratch", strategies="ensemble,vabal")
    benchmark_running.run(wanted, tmp_path, benchmark_running.on_processes(1))
    trained = {cell["strategy"]: [item["trained"] for item in cell["rounds"]] for cell in benchmark_cells.read_cells(tmp_path)}  # fmt: skip  # noqa: E501
    assert trained == {"scratch/ensemble": [5, 1], "scratch/vabal": [3, 1]}  # five networks; two and the VAE


def test_processes_and_one_process_come_to_the_same(tmp_path: Path) -> None:
    for jobs in (1, 2):
        wanted = learners("scratch,svm-hog,logreg-pixels")
        benchmark_running.run(wanted, tmp_path / str(jobs), benchmark_running.on_processes(jobs))
    assert timeless(tmp_path / "1") == timeless(tmp_path / "2")


def test_the_pools_are_those_that_init_draws(tmp_path: Path) -> None:
    chosen = parse({"images": {"size": 8, "channels": 1}})
    opened = sources.open_source(few_digits())
    built = sources.build_pools(
        opened, imbalance="rare:3:0.1", initial=30, holdout=0.2, seed=7, settings=chosen, folder=tmp_path / "data"
    )
    prepared = benchmark_cells.prepare(few_digits(), {}, tmp_path / "cache")
    arena = benchmark_cells.simulated_pool(few_digits(), prepared, "rare:3:0.1", 7, 30, 0.2)
    assert sorted(built.pools.labeled["sample_id"]) == sorted(arena.sample_ids[arena.initial_L])
    assert sorted(built.pools.holdout["sample_id"]) == sorted(arena.sample_ids[arena.holdout_M])
    unlabeled = np.setdiff1d(arena.pool_P, arena.initial_L)
    assert sorted(built.pools.unlabeled["sample_id"]) == sorted(arena.sample_ids[unlabeled])


def test_a_simulated_first_batch_is_the_one_that_a_night_picks(stack: RunningStack, tmp_path: Path) -> None:
    make_workspace(stack, tmp_path / "night", "as-simulated")
    done(run(tmp_path / "night", "round", "--strategy", "margin"))
    budget = int(SETTINGS["selection.budget"])
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("selection.")}
    wanted = grid(
        "margin",
        imbalances=(DIGITS[1],),
        initial=int(DIGITS[3]),
        budget=budget,
        settings=settings | {"compute.device": "cpu"},
    )
    benchmark_running.run(wanted, tmp_path / "out", benchmark_running.on_processes(1))
    (cell,) = benchmark_cells.read_cells(tmp_path / "out")
    first = [pick["sample_id"] for pick in cell["top_picks"]]
    assert first == picked_ids(tmp_path / "night", 1)[: len(first)]


def test_a_grid_on_larger_images_knows_nothing_of_the_one_before_it_in_this_process(tmp_path: Path) -> None:
    benchmark_running.run(grid("random", rounds=1), tmp_path / "small", benchmark_running.on_processes(1))
    wanted = grid("random", rounds=1, settings=QUICK | {"images.size": 12})
    benchmark_running.run(wanted, tmp_path / "large", benchmark_running.on_processes(1))
    benchmark_cells._shared._kept.clear()
    benchmark_running.run(wanted, tmp_path / "alone", benchmark_running.on_processes(1))
    assert timeless(tmp_path / "large") == timeless(tmp_path / "alone")
    assert timeless(tmp_path / "large")[0]["rounds"] != timeless(tmp_path / "small")[0]["rounds"]


# -- results ------------------------------------------------------------------------------------------------------


def test_results_have_a_row_a_round_and_add_up(tmp_path: Path) -> None:
    summary = benchmark_running.run(grid(), tmp_path, benchmark_running.on_processes(1), page=report.write)
    assert summary.cells == 2
    found = rows(tmp_path)
    assert [(row["strategy"], row["round"], row["labeled"]) for row in found] == [
        ("margin", "1", "12"),
        ("margin", "2", "17"),
        ("random", "1", "12"),
        ("random", "2", "17"),
    ]
    assert [sum(json.loads(row["picked_per_class"]).values()) for row in found] == [12, 5, 12, 5]
    assert all(0 <= float(row[name]) <= 1 for row in found for name in ("accuracy", "balanced_accuracy", "macro_f1"))
    assert (tmp_path / "summary.json").read_bytes() == summary.content()
    assert "margin" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_grid_killed_midway_goes_on_where_it_stopped(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "vabal.cli", "bench", "--source", few_digits(), "--imbalance", "dominant:0:0.1"),
        *("--strategies", "random,margin", "--seeds", "4", "--rounds", "2", "--budget", "5", "--initial", "12"),
        *("--jobs", "2", "--no-mlflow", "--out", str(tmp_path / "out"), *OPTIONS),
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until(lambda: list((tmp_path / "out" / "cells").glob("*.json")), 600, "the first cell")
        process.kill()
        process.wait()
        until(lambda: not _group_lives(process.pid), 600, "the end of its workers")
    finally:
        if _group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*.json")}
    assert 1 <= len(before) < 8
    (tmp_path / "out" / "results.csv").write_text("source,imbalance,strat")  # half written
    (tmp_path / "out" / "cells" / "cut-0123456789abcdef.json").write_text('{"source": "dig')

    told: list[str] = []
    wanted = grid(seeds=tuple(range(4)))
    benchmark_running.run(wanted, tmp_path / "out", benchmark_running.on_processes(1), tell=told.append)
    assert any("cut-0123456789abcdef.json was damaged" in line for line in told)
    assert any(line.startswith(f"{len(before)} of 8 cells are there already") for line in told)
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("*.json")}
    assert len(after) == 8
    assert {name: after[name] for name in before} == before  # what was there was not run again
    assert len(rows(tmp_path / "out")) == 16
    benchmark_running.run(wanted, tmp_path / "undisturbed", benchmark_running.on_processes(1))
    assert timeless(tmp_path / "out") == timeless(tmp_path / "undisturbed")


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_who_stops_listening_stops_the_cells_that_are_waiting(tmp_path: Path) -> None:
    wanted = grid("random", seeds=tuple(range(12)), rounds=1)
    prepared = benchmark_cells.prepare(few_digits(), QUICK, tmp_path / "cache")
    running = benchmark_running.on_processes(2)([(cell, prepared, tmp_path / "cells") for cell in wanted.cells()])
    assert next(running).file is not None
    running.close()  # type: ignore[attr-defined]
    assert 1 <= len(list((tmp_path / "cells").glob("*.json"))) < 12


def test_seeds_and_strategies_may_be_added_and_what_is_there_stays(tmp_path: Path) -> None:
    benchmark_running.run(grid("random"), tmp_path, benchmark_running.on_processes(1))
    summary = benchmark_running.run(
        grid("random", "entropy", seeds=(0, 1)), tmp_path, benchmark_running.on_processes(1)
    )
    assert summary.cells == 4


def test_every_cell_has_one_mlflow_run_however_often_it_is_told(stack: RunningStack, tmp_path: Path) -> None:
    words = ["bench", "--source", few_digits(), "--strategies", "random,margin", "--seeds", "1", "--rounds", "2"]
    words += ["--budget", "5", "--initial", "12", "--jobs", "1", "--out", str(tmp_path / "out"), *OPTIONS]
    said = done(call(tmp_path, *words))
    assert "the whole comparison" in said.out
    done(call(tmp_path, *words))
    client = MlflowClient(stack.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("vabal-bench")
    assert experiment is not None
    keys = {cell["key"] for cell in benchmark_cells.read_cells(tmp_path / "out")}
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags["vabal.cell"] in keys]
    assert sorted(run.data.tags["strategy"] for run in found) == ["margin", "random"]
    assert {run.info.status for run in found} == {"FINISHED"}
    history = client.get_metric_history(found[0].info.run_id, "labeled")
    assert [(point.step, point.value) for point in history] == [(1, 12.0), (2, 17.0)]


def test_without_a_server_the_runs_go_into_a_database_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["bench", "--source", few_digits(), "--strategies", "random", "--seeds", "1", "--rounds", "1"]
    words += ["--jobs", "1", "--budget", "5", "--initial", "12", "--out", str(tmp_path / "out"), *OPTIONS]
    done(call(tmp_path, *words))
    client = MlflowClient(f"sqlite:///{tmp_path}/out/mlflow.db")
    experiment = client.get_experiment_by_name("vabal-bench")
    assert experiment is not None
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert not (tmp_path / "mlruns").exists()


def test_cells_run_on_ray_as_prefect_tasks(stack: RunningStack, tmp_path: Path) -> None:
    words = ["bench", "--ray", "--source", few_digits(), "--imbalance", "dominant:0:0.1", "--no-mlflow"]
    words += ["--strategies", "random,margin", "--seeds", "1", "--rounds", "2", "--budget", "5", "--initial", "12"]
    words += OPTIONS
    environment = {**stack.environment, "RAY_USAGE_STATS_ENABLED": "0", "HOME": str(tmp_path)}
    done(run(tmp_path, *words, "--out", str(tmp_path / "out"), environment=environment))
    benchmark_running.run(grid(), tmp_path / "here", benchmark_running.on_processes(1))
    assert timeless(tmp_path / "out") == timeless(tmp_path / "here")


# -- what cannot be run -------------------------------------------------------------------------------------------


def refused(out: Path, wanted: grids.Grid, match: str) -> None:
    with pytest.raises(UserError, match=match):
        benchmark_running.run(wanted, out, benchmark_running.on_processes(1))


def test_other_budgets_and_other_settings_are_not_mixed_into_one_folder(tmp_path: Path) -> None:
    benchmark_running.run(grid("random", rounds=1), tmp_path, benchmark_running.on_processes(1))
    refused(tmp_path, grid("random", rounds=1, budget=6), "budget 5 and now 6")
    refused(tmp_path, grid("random=margin", rounds=1), "'random' had other settings")
    assert len(benchmark_cells.read_cells(tmp_path)) == 1


def test_another_default_is_another_run_though_nothing_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A strategy's label stands for all settings that its run came to, not for those alone that were named."""
    wanted = grid("vabal", rounds=1)
    benchmark_running.run(wanted, tmp_path, benchmark_running.on_processes(1))
    monkeypatch.setitem(presets.PRESETS["vabal"]["probabilities"], "margin_weight", 0.5)
    refused(tmp_path, replace(wanted, seeds=(0, 1)), "'vabal' had other settings")


def test_cells_run_by_other_code_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(benchmark_running, "code_version", lambda: "0.0.1+old")
        patched.setattr(benchmark_cells, "code_version", lambda: "0.0.1+old")
        benchmark_running.run(grid("random", rounds=1), tmp_path, benchmark_running.on_processes(1))
    benchmark_running.run(
        grid("random", rounds=1, seeds=(0, 1)), tmp_path, benchmark_running.on_processes(1), tell=said.append
    )
    assert "1 of 2 cells are there already, some of them run by other code (0.0.1+old)" in said


def test_results_of_other_images_are_not_mixed_into_one_folder(tmp_path: Path) -> None:
    """A folder of which an image was exchanged is another source, under the same name."""
    numbers, out = np.random.default_rng(0), tmp_path / "out"
    for place in range(24):
        folder = tmp_path / "photos" / ("cat", "dog")[place % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{place}.png").write_bytes(shards.png(numbers.integers(0, 256, (8, 8), dtype=np.uint8)))
    wanted = grid("random", rounds=1, sources=(f"folder:{tmp_path / 'photos'}",), imbalances=(None,), initial=6)
    benchmark_running.run(wanted, out, benchmark_running.on_processes(1))
    benchmark_running.run(replace(wanted, seeds=(0, 1)), out, benchmark_running.on_processes(1))
    assert len(benchmark_cells.read_cells(out)) == 2
    (tmp_path / "photos/cat/0.png").write_bytes(shards.png(numbers.integers(0, 256, (8, 8), dtype=np.uint8)))
    refused(out, replace(wanted, seeds=(0, 1, 2)), "its images or labels changed since")
    assert len(benchmark_cells.read_cells(out)) == 2


def test_a_pool_that_cannot_answer_all_requests_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    refused(tmp_path, grid(rounds=5, budget=100), "5 rounds ask for 412 labels, but the pool has only")
    assert not list((tmp_path / "cells").glob("*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--source", "digits", "--strategies", "marign"],
            "there is no strategy 'marign'; installed are vabal, random",
        ),
        (["--protocol", "cifar11"], "known are cifar10, "),
        (["--protocol", "cifar10"], "needs --root DIR"),
        (["--protocol", "cifar10", "--root", "nowhere"], "nowhere"),
        (["--source", "digits", "--set", "classifier.epoch=1"], "classifier.epoch: unknown setting"),
        (["--source", "digits", "--imbalance", "rare:11"], "no class 11"),
        (["--source", "digits", "--seeds", "0"], "--seeds"),
        ([], "--source S, or --protocol NAME"),
    ],
)
def test_wrong_words_are_answered_in_one_line(tmp_path: Path, words: Sequence[str], said: str) -> None:
    ended = call(tmp_path, "bench", "--no-mlflow", "--jobs", "1", "--out", str(tmp_path / "out"), *words)
    assert ended.code == 1
    assert said in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list((tmp_path / "out" / "cells").glob("*"))


class NotANumber(ScoringStrategy):
    """Scores two samples as nothing that can be ranked."""

    name = "not-a-number"
    needs = Needs(posteriors=True)

    def score(self, shard: Shard, context: Context) -> Candidates:
        return Candidates(shard.sample_ids, np.where(np.arange(len(shard)) < 2, np.nan, 1.0))


def test_a_score_that_is_no_number_names_the_samples_and_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = dict(strategies._BUILT_IN)
    monkeypatch.setattr(strategies, "_BUILT_IN", {"not-a-number": f"{__name__}:NotANumber"})
    monkeypatch.setattr(strategies, "import_module", lambda _name: sys.modules[__name__])
    told = f"{few_digits()}, dominant:0:0.1, not-a-number, seed 0: the score is not finite for"
    refused(tmp_path / "alone", grid("not-a-number"), f"1 of 1 cells failed.*{told}")
    assert not list((tmp_path / "alone" / "cells").glob("*"))

    monkeypatch.setattr(strategies, "_BUILT_IN", known | {"not-a-number": f"{__name__}:NotANumber"})
    monkeypatch.setattr(strategies, "import_module", lambda name: sys.modules.get(name) or import_module(name))
    refused(tmp_path / "both", grid("not-a-number", "random"), f"1 of 2 cells failed.*{told}")
    assert {row["strategy"] for row in rows(tmp_path / "both")} == {"random"}  # the others' results are there


def test_two_benchmarks_do_not_write_into_one_folder_at_once(tmp_path: Path) -> None:
    def execute(_work: Sequence[benchmark_running.Work]) -> Any:
        refused(tmp_path, grid("random"), "another benchmark is writing there")
        return iter(())

    benchmark_running.run(grid("entropy", rounds=1), tmp_path, benchmark_running.on_processes(1))
    benchmark_running.run(grid("random", rounds=1), tmp_path, execute)


def test_a_setting_of_a_strategy_s_own_changes_it_alone(tmp_path: Path) -> None:
    specs = ("random", "quick=random[classifier.epochs=1]")
    benchmark_running.run(grid(*specs), tmp_path, benchmark_running.on_processes(1))
    settings = {cell["strategy"]: cell["settings"] for cell in benchmark_cells.read_cells(tmp_path)}
    assert settings["random"]["classifier.epochs"] == 2
    assert settings["quick"]["classifier.epochs"] == 1
    assert isinstance(grids.Cell("digits", "natural", "a", "random", {}, 0, grid().common()).params(8, 1), Params)
