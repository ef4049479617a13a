"""Every protocol runs, shrunk, on a tiny stand-in of its data set in the same file format."""

import csv
import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sklearn.datasets

from tests.support import small_sources
from vabal import sources
from vabal.benchmark import grids, running, variants
from vabal.benchmark.protocols import PROTOCOLS, Protocol
from vabal.settings import presets
from vabal.strategies import vaal
from vabal.strategies.bald import BaldStrategy
from vabal.strategies.power_bald import PowerBaldStrategy

SMALLER = {
    "classifier.width": 4,
    "classifier.epochs": 1,
    "vae.epochs": 1,
    "vae.min_steps": 0,
    "probabilities.draws": 2,
    "compute.device": "cpu",
}
STAND_INS: dict[str, Any] = {
    "cifar10": small_sources.cifar10,
    "cifar100": small_sources.cifar100,
    "neu": small_sources.neu,
    "elpv": small_sources.elpv,
}


@pytest.fixture(autouse=True)
def strategies_are_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own numbers of passes, networks and steps are for their own tests."""
    for strategy in (BaldStrategy, PowerBaldStrategy):
        monkeypatch.setattr(strategy, "needs", replace(strategy.needs, passes=2))
    monkeypatch.setitem(presets.PRESETS["vabal"]["probabilities"], "members", 2)
    monkeypatch.setattr(vaal, "FEWEST_STEPS", 1)
    monkeypatch.setattr(vaal, "STEPS", 1)
    monkeypatch.setattr(vaal, "PUBLISHED_EPOCHS", 1)


def install_instead(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package `name` in `folder`, for this test alone."""
    spec = importlib.util.spec_from_file_location(name, folder / name / "__init__.py")
    assert spec is not None
    monkeypatch.setitem(sys.modules, name, importlib.util.module_from_spec(spec))


def with_short_training(grid: grids.Grid) -> grids.Grid:
    """Readings that train the VAE for some minimum of steps of their own do not; all else about them stays."""
    shortened = [
        replace(item, settings=dict(item.settings) | {"vae.min_steps": 0}) if "vae.min_steps" in item.settings else item
        for item in grid.variants
    ]
    return replace(grid, variants=tuple(shortened))


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """A stand-in of what the protocol reads; None where it comes with a package."""
    protocol: Protocol = request.getfixturevalue("protocol")
    kind = protocol.sources[0].partition(":")[0]
    few = small_sources.digits(per_class=12)
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: few)
    if kind not in STAND_INS:
        return None
    made: Path = STAND_INS[kind](tmp_path / "data")
    if kind == "elpv":
        install_instead("elpv_dataset", made, monkeypatch)
    return made if protocol.needs_root else None


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_a_protocol_runs_on_a_stand_in_of_its_data(protocol: Protocol, root: Path | None, tmp_path: Path) -> None:
    """All its strategies on one imbalance, the baseline on the others: the same folder takes up both."""
    options = grids.BenchmarkOptions(protocol.name, root, seeds=1, rounds=2, initial=8, budget=4, settings=SMALLER)
    small = with_short_training(options.grid())
    out, baseline = tmp_path / "out", tuple(variants.parse_variants(["random"]))
    running.run(replace(small, imbalances=small.imbalances[-1:]), out, running.on_processes(1))
    running.run(replace(small, variants=baseline), out, running.on_processes(1))
    with (out / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["strategy"] for row in rows} == {item.label for item in variants.parse_variants(protocol.strategies)}
    assert {row["imbalance"] for row in rows} == {imbalance or grids.NATURAL for imbalance in protocol.imbalances}
    assert len(rows) == 2 * (len(protocol.strategies) + len(protocol.imbalances) - 1)
    assert {(row["round"], row["labeled"]) for row in rows} == {("1", "8"), ("2", "12")}
    if protocol.name == "elpv":
        assert len(list(sources.open_source("elpv").items())) == 96  # the stand-in, not the package installed
    assert all(sum(json.loads(row["picked_per_class"]).values()) == (8, 4)[int(row["round"]) - 1] for row in rows)
