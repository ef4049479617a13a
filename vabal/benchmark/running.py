"""`vabal bench`: simulated active learning over sources x imbalances x strategies x seeds, resumable cell by cell.

A cell is one run of `vabal.benchmark.simulation`; its document is a JSON file in `OUT/cells`, written whole or not at
all. Those files are the record: `results.csv`, `summary.json` and `report.html` are made from them again whenever a
grid ends, so what a killed grid left half written there is repaired by the next one, which goes on with the cells that
are missing.
"""

import csv
import importlib.metadata
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vabal import strategies
from vabal.benchmark import comparison, simulation
from vabal.benchmark.cells import (
    CellOutcome,
    Prepared,
    known_cells,
    no_other_meaning,
    own,
    prepare,
    read_cells,
    run_cell,
    simulated_pool,
)
from vabal.benchmark.grids import COLUMNS, Cell, Grid
from vabal.benchmark.summary import Summary
from vabal.errors import UserError, missing_extra
from vabal.files import canonical_json, locked, write_bytes
from vabal.progress import duration
from vabal.rounds.stage_store import code_version
from vabal.statistics import MAIN

# -- running them ---------------------------------------------------------------------------------------------------

Work = tuple[Cell, Prepared, Path]
Execute = Callable[[Sequence[Work]], Iterator[CellOutcome]]  # yields cells as they end


class Page(Protocol):
    """Writes a page of the cells and what they come to."""

    def __call__(
        self, cells: Sequence[Mapping[str, Any]], summary: Summary, path: Path, *, title: str, about: Mapping[str, Any]
    ) -> None: ...


def on_processes(jobs: int) -> Execute:
    """Runs cells in `jobs` processes of one thread each; one job stays in this process."""

    def execute(work: Sequence[Work]) -> Iterator[CellOutcome]:
        if jobs == 1:
            yield from (run_cell(*item) for item in work)
            return
        pool = ProcessPoolExecutor(jobs, _context(), initializer=_end_with_parent)
        try:
            for future in as_completed([pool.submit(run_cell, *item) for item in work]):
                yield future.result()
        finally:  # not `with`, whose end would run the cells that are still waiting
            pool.shutdown(wait=True, cancel_futures=True)

    return execute


def _context() -> BaseContext:
    """Processes forked from one that has imported what cells need and has no threads: seconds each are saved."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["vabal.benchmark.cells"])
    return context


def _end_with_parent() -> None:
    """Workers wait for work on a pipe that they hold open themselves: of a parent that was killed they hear nothing."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def nobody(_cell: Mapping[str, Any]) -> None:
    """Hears of finished cells and keeps nothing."""


def run(
    grid: Grid,
    out: Path,
    execute: Execute,
    *,
    title: str = "Active learning, compared",
    command: str = "",
    tell: Callable[[str], None] = lambda _line: None,
    record: Callable[[Mapping[str, Any]], object] = nobody,
    page: Page | None = None,
) -> Summary:
    """Runs what is missing of the grid and writes the results; returns the summary.

    `execute` runs cells (`on_processes`, or a Prefect flow's task runner); `record` is given each finished cell's
    document (MLflow); `tell` a line for people; `page` writes report.html (`vabal.pages.report.write`). Seeds,
    strategies, sources and imbalances may be added to a folder; other budgets, rounds or common settings are refused.
    Raises UserError for arguments that do not fit, before any cell runs, and for cells that failed, after the others'
    results were written.
    """
    cells = grid.cells()
    for variant in grid.variants:
        strategies.get(variant.strategy)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    own(out)
    with locked(out / ".lock", f"{out}: another benchmark is writing there: wait for it, or name another --out"):
        _same_common(grid, out)
        known = known_cells(out, tell)
        no_other_meaning(cells, known)
        missing = [cell for cell in cells if cell.identity not in known]
        if len(missing) < len(cells):
            tell(f"{len(cells) - len(missing)} of {len(cells)} cells are there already{_other_code(out)}")
        ready = {source: prepare(source, grid.settings, out / "cache") for source in grid.sources} if missing else {}
        _check(missing, ready)
        _same_data(ready, out, {source for source, *_ in known})
        for line in (*grid.told, *(f"{source}: {item.caveat}" for source, item in ready.items() if item.caveat)):
            tell(line)
        tell(f"{len(missing)} cells to run")
        ended = execute([(cell, ready[cell.source], out / "cells") for cell in missing])
        failures = list(_failures(ended, out, len(missing), tell, record))
        summary = None
        if len(failures) < len(cells):
            summary = write_results(out, title=title, command=command, page=page, tell=tell, reference=grid.reference)
    if failures or summary is None:
        raise UserError(
            f"{len(failures)} of {len(cells)} cells failed; the results of the others are in {out}. The first: "
            f"{failures[0]}"
        )
    return summary


def _failures(
    ended: Iterable[CellOutcome],
    out: Path,
    total: int,
    tell: Callable[[str], None],
    record: Callable[[Mapping[str, Any]], object],
) -> Iterator[str]:
    """Tells of each cell when it ends and hands on its document; yields why cells failed."""
    clock = _Clock(total)
    for cell in ended:
        if cell.file is None:
            tell(f"{clock.count()} FAILED: {cell.failure}")
            yield str(cell.failure)
            continue
        document = json.loads((out / "cells" / cell.file).read_text(encoding="utf-8"))
        record(document)
        tell(clock.line(document))


def _check(missing: Sequence[Cell], ready: Mapping[str, Prepared]) -> None:
    """Every setting and every pool, before the first cell costs anything."""
    seen: set[Any] = set()
    for cell in missing:
        cell.params(8, 1)
        place = (cell.source, cell.imbalance)
        if place not in seen:
            seen.add(place)
            drawn = simulated_pool(
                cell.source,
                ready[cell.source],
                cell.imbalance,
                cell.seed,
                cell.common["initial"],
                cell.common["holdout"],
            )
            simulation.check_budget(drawn, cell.common["budget"], cell.common["rounds"])


class _Clock:
    """How long is left, from the pace so far."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()

    def count(self) -> str:
        self._done += 1
        return f"[{self._done}/{self._total}]"

    def line(self, cell: Mapping[str, Any]) -> str:
        count = self.count()
        left = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        values = [item[MAIN] for item in cell["rounds"]]
        named = f"{cell['source']} {cell['imbalance']} {cell['strategy']} seed {cell['seed']}"
        return (
            f"{count} {named}: {MAIN.replace('_', ' ')} "
            f"{values[0]:.3f} -> {values[-1]:.3f}, average {np.mean(values):.3f}; {duration(left)} left"
        )


def _same_common(grid: Grid, out: Path) -> None:
    path = out / "grid.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in grid.common().items() if before.get(name) != value]
        if differing:
            said = ", ".join(f"{name} {before.get(name)!r} and now {grid.common()[name]!r}" for name in differing)
            raise UserError(f"{out} holds results of another set-up ({said}): name another --out")
    else:
        write_bytes(path, canonical_json(grid.common()))


def _other_code(out: Path) -> str:
    """What to say if some of the finished cells were run by other code than this."""
    others = sorted({str(cell["code"]) for cell in read_cells(out)} - {code_version()})
    return f", some of them run by other code ({', '.join(others)})" if others else ""


def _same_data(ready: Mapping[str, Prepared], out: Path, with_cells: set[str]) -> None:
    path = out / "data.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = {source: prepared.data for source, prepared in ready.items()}
    changed = [source for source in now if source in with_cells and before.get(source, now[source]) != now[source]]
    if changed:
        raise UserError(
            f"--source {changed[0]}: its images or labels changed since {out} was begun: name another --out"
        )
    write_bytes(path, canonical_json(before | now))


# -- results --------------------------------------------------------------------------------------------------------


def write_results(
    out: Path,
    *,
    title: str,
    command: str,
    page: Page | None = None,
    tell: Callable[[str], None] = lambda _line: None,
    reference: str | None = None,
) -> Summary:
    """results.csv, summary.json and, with `page`, report.html from the cells in `out`; returns the summary.

    Without matplotlib there is no report; `tell` hears how to get it.
    """
    cells = read_cells(out)
    if not cells:
        raise UserError(f"{out} holds no finished cell: run the grid first")
    write_bytes(out / "results.csv", _csv(cells).encode())
    summary = comparison.summarise(cells, reference=reference)
    write_bytes(out / "summary.json", summary.content())
    if page is not None:
        about = {"command": command, **_about(out, cells)}
        _write_page(page, cells, summary, out / "report.html", title, about, tell)
    return summary


def _write_page(
    page: Page,
    cells: Sequence[Mapping[str, Any]],
    summary: Summary,
    path: Path,
    title: str,
    about: Mapping[str, Any],
    tell: Callable[[str], None],
) -> None:
    try:
        page(cells, summary, path, title=title, about=about)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        path.unlink(missing_ok=True)  # one of before shows other cells
        tell(f"{path.name} is left out: {missing}, then the same command again")


def _about(out: Path, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    common = json.loads((out / "grid.json").read_text(encoding="utf-8"))
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "scikit-learn")}
    return {"settings": common, "versions": versions, "code": sorted({str(cell["code"]) for cell in cells})}


def _csv(cells: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for cell in cells:
        for item in cell["rounds"]:
            picked = dict(zip(cell["classes"], item["picked_per_class"], strict=True))
            writer.writerow(
                {name: cell[name] for name in COLUMNS[:4]}
                | {name: item[name] for name in COLUMNS[4:9]}
                | {"seconds": round(sum(item["seconds"].values()), 3), "picked_per_class": json.dumps(picked)}
                | {"learner": cell.get("learner", ""), "trained": item.get("trained")}
                | {"cpu_seconds": item.get("cpu_seconds") and round(item["cpu_seconds"], 3)}
            )
    return text.getvalue()
