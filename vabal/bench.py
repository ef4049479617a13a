"""`vabal bench`: simulated active learning over sources x imbalances x strategies x seeds, resumable cell by cell.

A cell is one run of `vabal.simulation`; its document is a JSON file in `OUT/cells`, written whole or not at all. Those
files are the record: `results.csv`, `summary.json` and `report.html` are made from them again whenever a grid ends, so
what a killed grid left half written there is repaired by the next one, which goes on with the cells that are missing.
"""

import base64
import csv
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vabal import comparison, images, params, protocols, simulation, sources, strategies
from vabal import report as reports
from vabal.errors import UserError
from vabal.params import Params
from vabal.protocols import Variant
from vabal.stages import device_of, one_thread
from vabal.store import canonical_json, code_version, write_bytes

VERSION = 1
NATURAL = "natural"  # as it is: what the column `imbalance` says where a source is not thinned
TOP_PICKS = 10  # images of the first batch that a cell keeps for the report (paper, Fig. 5)
_CELL = re.compile(r"-[0-9a-f]{16}\.json$")  # the end of a cell's file name
_HALF = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")  # a file that is being written
COLUMNS = (
    "source",
    "imbalance",
    "strategy",
    "seed",
    "round",
    "labeled",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "seconds",
    "picked_per_class",
)


@dataclass(frozen=True)
class Grid:
    """What is compared. Round r trains on `initial` + (r - 1) x `budget` labels; `settings` are dotted ones."""

    sources: tuple[str, ...]
    imbalances: tuple[str | None, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    rounds: int
    budget: int
    initial: int
    holdout: float
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, value in (("--rounds", self.rounds), ("--budget", self.budget), ("--initial", self.initial)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if not self.seeds:
            raise UserError("--seeds: at least one is needed")

    def common(self) -> dict[str, Any]:
        """What all cells of a folder share: results of other budgets are not comparable, nor of other recipes."""
        return {
            "rounds": self.rounds,
            "budget": self.budget,
            "initial": self.initial,
            "holdout": self.holdout,
            "settings": dict(self.settings),
        }

    def cells(self) -> list["Cell"]:
        """Seeds outermost, so that an unfinished grid has whole matched comparisons; strategies innermost."""
        return [
            Cell(
                source,
                imbalance or NATURAL,
                variant.label,
                variant.strategy,
                dict(variant.settings),
                seed,
                self.common(),
            )
            for seed in self.seeds
            for source in self.sources
            for imbalance in self.imbalances
            for variant in self.variants
        ]


@dataclass(frozen=True)
class Wishes:
    """A command's arguments; what is None comes from the protocol, or else from `_DEFAULTS`."""

    protocol: str | None = None
    root: Path | None = None
    sources: Sequence[str] = ()
    imbalances: Sequence[str] = ()
    strategies: str | None = None
    seeds: int | None = None
    first_seed: int = 0
    rounds: int | None = None
    budget: int | None = None
    initial: int | None = None
    holdout: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def grid(self) -> Grid:
        """What to compare. Raises UserError for arguments that are missing or do not fit."""
        base = protocols.get(self.protocol) if self.protocol else None
        if base is None and not self.sources:
            raise UserError("name what to compare on: --source S, or --protocol NAME")
        if base is None and self.root is not None:
            raise UserError("--root: says where a protocol's data lies; without --protocol the source says it")
        if base is None:
            given, specs = tuple(self.sources), ["random", "vabal"]
        else:
            given, specs = tuple(self.sources) or base.sources_in(self.root), list(base.strategies)
        named = tuple(None if name == NATURAL else name for name in self.imbalances)
        if self.strategies is not None:
            specs = protocols.split_specs(self.strategies)

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return value if value is not None else getattr(base, name) if base else _DEFAULTS[name]

        return Grid(
            sources=given,
            imbalances=named or (base.imbalances if base else (None,)),
            variants=tuple(protocols.parse_variants(specs)),
            seeds=tuple(range(self.first_seed, self.first_seed + chosen("seeds"))),
            rounds=chosen("rounds"),
            budget=chosen("budget"),
            initial=chosen("initial"),
            holdout=chosen("holdout"),
            settings={**(base.settings if base else {}), **self.settings},
        )


_DEFAULTS = {"seeds": 3, "rounds": 5, "budget": 100, "initial": 100, "holdout": 0.2}


@dataclass(frozen=True)
class Cell:
    """One run. `label` is what results call the strategy; `settings` are the strategy's own."""

    source: str
    imbalance: str
    label: str
    strategy: str
    settings: Mapping[str, Any]
    seed: int
    common: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str, int]:
        return self.source, self.imbalance, self.label, self.seed

    @property
    def key(self) -> str:
        """Of all settings, those left out as they are by default: another default is another run."""
        about = asdict(self) | {"resolved": self.params(8, 1).model_dump(mode="json")}
        return hashlib.sha256(canonical_json(about)).hexdigest()[:16]

    @property
    def file_name(self) -> str:
        readable = "-".join([self.source, self.imbalance, self.label, str(self.seed)])
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)[:100]}-{self.key}.json"

    def params(self, size: int, channels: int) -> Params:
        """The settings of the run. Raises UserError for one that does not exist or does not fit."""
        raw: dict[str, Any] = {"seed": self.seed, "images": {"size": size, "channels": channels}}
        chosen = {**self.common["settings"], **self.settings, "selection.strategy": self.strategy}
        return params.parse(params.override(raw, {**chosen, "selection.budget": self.common["budget"]}), where="bench")


# -- sources --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A source whose images are decoded: a folder with `images.npy` and `items.parquet`, and the class names.

    `data` is a digest of what the source held: ids, images, labels.
    """

    folder: str
    classes: tuple[str, ...]
    brings_holdout: bool
    data: str


def prepare(source: str, settings: Mapping[str, Any], folder: Path) -> Prepared:
    """Decodes a source's images once for all cells, and again if they changed. Raises UserError for an unusable one."""
    opened = sources.open_source(source)
    sources.class_names(opened)
    size, channels = opened.size_hint
    chosen = params.parse(
        params.override({"images": {"size": size, "channels": channels}}, dict(settings)), where="--set"
    )
    items = sources.survey(opened, chosen.images).items
    classes = sources.class_names(opened, items)
    if items["label"].isna().all():
        raise UserError(f"--source {source}: it has no labels, and the benchmark's oracle needs them")
    # in the order of their ids, in which a night trains as well
    items = items[items["label"].notna()].sort_values("sample_id", ignore_index=True)
    data = hashlib.sha256(canonical_json(classes) + items.to_csv(index=False).encode()).hexdigest()
    about = [data, chosen.images.model_dump(), code_version()]
    place = folder / hashlib.sha256(canonical_json(about)).hexdigest()[:16]
    if not (place / "items.parquet").exists():
        _decode(opened, items, chosen, place)
    return Prepared(str(place), classes, bool(items["split"].notna().any()), data)


def _decode(opened: Any, items: pd.DataFrame, chosen: Params, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    settings = chosen.images
    rows = {sha256: row for row, sha256 in enumerate(items["sha256"])}
    shape = (len(items), settings.size, settings.size, settings.channels)
    decoded = np.lib.format.open_memmap(place / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for item in opened.items(settings):
        row = rows.pop(hashlib.sha256(item.data).hexdigest(), None)
        if row is not None:
            decoded[row] = images.decode(item.data, settings.size, settings.channels, settings.bit_depth)
    if rows:
        raise UserError(f"source {opened.name}: {len(rows)} images changed while they were read")
    decoded.flush()
    content = io.BytesIO()
    items.drop(columns=["sha256", "width", "height"]).to_parquet(content)
    write_bytes(place / "items.parquet", content.getvalue())


@lru_cache(maxsize=4)
def arena(source: str, prepared: Prepared, imbalance: str, seed: int, initial: int, holdout: float) -> simulation.Arena:
    """The pools of one seed: drawn exactly as `vabal init` with these arguments draws them."""
    items = pd.read_parquet(Path(prepared.folder) / "items.parquet")
    wishes = sources.Wishes(None if imbalance == NATURAL else imbalance, initial, holdout, seed)
    draws = sources.plan_draws(sources.open_source(source), items, prepared.classes, wishes)
    rows = pd.Index(items["sample_id"])
    return simulation.Arena(
        prepared.classes,
        items["sample_id"].to_numpy(dtype=object),
        np.load(Path(prepared.folder) / "images.npy", mmap_mode="r"),
        pd.Index(prepared.classes).get_indexer(pd.Index(items["label"])).astype(np.int64),
        np.sort(rows.get_indexer(pd.Index([*draws.initial, *draws.rest]))),
        np.sort(rows.get_indexer(pd.Index(draws.holdout))),
        np.sort(rows.get_indexer(pd.Index(draws.initial))),
    )


# -- cells ----------------------------------------------------------------------------------------------------------

_shared = simulation.Shared()  # of this process


class Ended(NamedTuple):
    """A cell that ended: its file's name, or why there is none."""

    file: str | None
    failure: str | None = None


def run_cell(cell: Cell, prepared: Prepared, folder: Path) -> Ended:
    """Runs one cell and writes its document below `folder`, whole or not at all.

    What a user can mend (a training that diverges, a score that is not finite) is told, so that other cells go on.
    """
    common = cell.common
    shape = np.load(Path(prepared.folder) / "images.npy", mmap_mode="r").shape
    chosen = cell.params(shape[1], shape[3])
    try:
        place = arena(cell.source, prepared, cell.imbalance, cell.seed, common["initial"], common["holdout"])
        simulation.check_budget(place, common["budget"], common["rounds"])
        key = (prepared.folder, cell.imbalance, common["initial"], common["holdout"])
        with one_thread(device_of(chosen)):  # so that the number of jobs cannot change a result
            chosen = chosen.model_copy(update={"compute": chosen.compute.model_copy(update={"threads": 0})})
            rounds = list(simulation.run(place, chosen, rounds=common["rounds"], shared=_shared, shared_key=key))
    except UserError as error:
        return Ended(None, f"{cell.source}, {cell.imbalance}, {cell.label}, seed {cell.seed}: {error}")
    write_bytes(folder / cell.file_name, canonical_json(_document(cell, place, rounds)))
    return Ended(cell.file_name)


def _document(cell: Cell, place: simulation.Arena, rounds: Sequence[simulation.Round]) -> dict[str, Any]:
    return {
        "version": VERSION,
        "key": cell.key,
        "source": cell.source,
        "imbalance": cell.imbalance,
        "strategy": cell.label,
        "seed": cell.seed,
        "budget": cell.common["budget"],
        "initial": cell.common["initial"],
        "settings": {**cell.common["settings"], **cell.settings, "selection.strategy": cell.strategy},
        "code": code_version(),
        "classes": list(place.classes),
        "pool_per_class": place.per_class(place.pool_P),
        "holdout_per_class": place.per_class(place.holdout_M),
        "rounds": [
            {
                "round": item.round,
                "labeled": item.labeled,
                **item.measured,
                "recall_per_class": item.recall_C,
                "picked_per_class": place.per_class(item.fresh_L),
                "seconds": dict(item.seconds),
                "notes": list(item.notes),
            }
            for item in rounds
        ],
        "top_picks": [_picture(place, pick) for pick in rounds[0].picks[:TOP_PICKS]],
    }


def _picture(place: simulation.Arena, pick: simulation.Pick) -> dict[str, str]:
    pixels = np.asarray(place.images_N_H_W_K[pick.row])
    encoded = images.png(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return {
        "sample_id": str(place.sample_ids[pick.row]),
        "label": place.classes[int(place.labels_N[pick.row])],
        "predicted_class": place.classes[pick.predicted_class],
        "png": base64.b64encode(encoded).decode("ascii"),
    }


# -- running them ---------------------------------------------------------------------------------------------------

Work = tuple[Cell, Prepared, Path]
Execute = Callable[[Sequence[Work]], Iterator[Ended]]  # yields cells as they end


def on_processes(jobs: int) -> Execute:
    """Runs cells in `jobs` processes of one thread each; one job stays in this process."""

    def execute(work: Sequence[Work]) -> Iterator[Ended]:
        if jobs == 1:
            yield from (run_cell(*item) for item in work)
            return
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_end_with_parent)
        try:
            for future in as_completed([pool.submit(run_cell, *item) for item in work]):
                yield future.result()
        finally:  # not `with`, whose end would run the cells that are still waiting
            pool.shutdown(wait=True, cancel_futures=True)

    return execute


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
) -> dict[str, Any]:
    """Runs what is missing of the grid and writes the results; returns the summary.

    `execute` runs cells (`on_processes`, or a Prefect flow's task runner); `record` is given each finished cell's
    document (MLflow); `tell` a line for people. Seeds, strategies, sources and imbalances may be added to a folder;
    other budgets, rounds or common settings are refused. Raises UserError for arguments that do not fit, before any
    cell runs, and for cells that failed, after the others' results were written.
    """
    cells = grid.cells()
    for variant in grid.variants:
        strategies.get(variant.strategy)
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    own(out)
    with _locked(out):
        _same_common(grid, out)
        known = _known_cells(out, tell)
        _no_other_meaning(cells, known)
        missing = [cell for cell in cells if cell.identity not in known]
        if len(missing) < len(cells):
            tell(f"{len(cells) - len(missing)} of {len(cells)} cells are there already{_other_code(out)}")
        ready = {source: prepare(source, grid.settings, out / "cache") for source in grid.sources} if missing else {}
        _check(missing, ready)
        _same_data(ready, out, {source for source, *_ in known})
        tell(f"{len(missing)} cells to run")
        clock = _Clock(len(missing))
        failures = []
        for ended in execute([(cell, ready[cell.source], out / "cells") for cell in missing]):
            if ended.file is None:
                failures.append(ended.failure)
                tell(f"{clock.count()} FAILED: {ended.failure}")
                continue
            document = json.loads((out / "cells" / ended.file).read_text(encoding="utf-8"))
            record(document)
            tell(clock.line(document))
        summary = write_results(out, title=title, command=command) if len(failures) < len(cells) else {}
    if failures:
        raise UserError(
            f"{len(failures)} of {len(cells)} cells failed; the results of the others are in {out}. The first: "
            f"{failures[0]}"
        )
    return summary


def own(out: Path) -> None:
    """Raises UserError if the folder holds things, and none of a benchmark: its files would go over theirs."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is no folder: name another --out")
    names = {path.name for path in out.iterdir()} - {".lock", "mlflow.db", "mlruns", "mlflow.db-journal"}
    foreign = sorted(name for name in names if not _HALF.fullmatch(name))
    if foreign and not _is_grid(out / "grid.json"):
        raise UserError(f"{out} is not empty and holds no benchmark (but {foreign[0]}): name a new folder with --out")


def _is_grid(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _check(missing: Sequence[Cell], ready: Mapping[str, Prepared]) -> None:
    """Every setting and every pool, before the first cell costs anything."""
    seen: set[Any] = set()
    for cell in missing:
        cell.params(8, 1)
        place = (cell.source, cell.imbalance)
        if place not in seen:
            seen.add(place)
            drawn = arena(
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
        accuracies = [item["accuracy"] for item in cell["rounds"]]
        named = f"{cell['source']} {cell['imbalance']} {cell['strategy']} seed {cell['seed']}"
        return (
            f"{count} {named}: accuracy "
            f"{accuracies[0]:.3f} -> {accuracies[-1]:.3f}, average {np.mean(accuracies):.3f}; {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another benchmark is writing there: wait for it, or name another --out") from None
        yield


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


def _cell_files(out: Path) -> list[Path]:
    """The files that cells wrote, by the names that they give; links and other people's files are passed over."""
    found = sorted((out / "cells").glob("*.json"))
    return [path for path in found if _CELL.search(path.name) and path.is_file() and not path.is_symlink()]


def read_cells(out: Path) -> list[dict[str, Any]]:
    """The documents of the finished cells, ordered by source, imbalance, strategy and seed."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in _cell_files(out)]
    return sorted(documents, key=lambda item: (item["source"], item["imbalance"], item["strategy"], item["seed"]))


def _known_cells(out: Path, tell: Callable[[str], None]) -> dict[Any, str]:
    """Identity and key of the finished cells; a file that is damaged is removed, and its cell runs again."""
    known: dict[Any, str] = {}
    for path in _cell_files(out):
        try:
            item = json.loads(path.read_text(encoding="utf-8"))
            known[item["source"], item["imbalance"], item["strategy"], item["seed"]] = item["key"]
        except (ValueError, KeyError, TypeError):
            tell(f"{path.name} was damaged: its cell runs again")
            path.unlink()
    return known


def _no_other_meaning(cells: Sequence[Cell], known: Mapping[Any, str]) -> None:
    for cell in cells:
        if known.get(cell.identity, cell.key) != cell.key:
            raise UserError(
                f"strategy {cell.label!r} had other settings when its cell of seed {cell.seed} ran: give it another "
                "label (label=name[...]), or name another --out"
            )


# -- results --------------------------------------------------------------------------------------------------------


def write_results(out: Path, *, title: str, command: str) -> dict[str, Any]:
    """results.csv, summary.json and report.html from the cells in `out`; returns the summary."""
    cells = read_cells(out)
    if not cells:
        raise UserError(f"{out} holds no finished cell: run the grid first")
    write_bytes(out / "results.csv", _csv(cells).encode())
    summary = comparison.summarise(cells)
    write_bytes(out / "summary.json", json.dumps(summary, indent=1, sort_keys=True, allow_nan=False).encode())
    about = {"command": command, **_about(out, cells)}
    reports.write(cells, summary, out / "report.html", title=title, about=about)
    return summary


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
            )
    return text.getvalue()
