"""One cell of a benchmark: prepared, run, written down."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from vabal import images, sources
from vabal.benchmark import simulation
from vabal.benchmark.grids import CELL, HALF, NATURAL, TOP_PICKS, VERSION, Cell
from vabal.errors import UserError
from vabal.files import canonical_json, sha256, write_bytes
from vabal.images import shards
from vabal.learning.device import device_of, one_thread
from vabal.rounds.stage_store import code_version
from vabal.settings import params
from vabal.settings.models import Params

# -- sources --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """A source whose images are decoded: a folder with `images.npy` and `items.parquet`, and the class names.

    `data` is a digest of what the source held: ids, images, labels. `caveat` is what must stand beside every result.
    """

    folder: str
    classes: tuple[str, ...]
    brings_holdout: bool
    data: str
    caveat: str | None = None


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
    data = sha256(canonical_json(classes) + items.to_csv(index=False).encode())
    about = [data, chosen.images.model_dump(), code_version()]
    place = folder / sha256(canonical_json(about))[:16]
    if not (place / "items.parquet").exists():
        _decode(opened, items, chosen, place)
    caveat = getattr(opened, "caveat", None) if items["group"].isna().all() else None
    return Prepared(str(place), classes, bool(items["split"].notna().any()), data, caveat)


def _decode(opened: Any, items: pd.DataFrame, chosen: Params, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    settings = chosen.images
    rows = {sha256: row for row, sha256 in enumerate(items["sha256"])}
    shape = (len(items), settings.size, settings.size, settings.channels)
    decoded = np.lib.format.open_memmap(place / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    for item in opened.items(settings):
        row = rows.pop(sha256(item.data), None)
        if row is not None:
            decoded[row] = images.decode(item.data, settings.size, settings.channels, settings.bit_depth)
    if rows:
        raise UserError(f"source {opened.name}: {len(rows)} images changed while they were read")
    decoded.flush()
    content = io.BytesIO()
    items.drop(columns=["sha256", "width", "height"]).to_parquet(content)
    write_bytes(place / "items.parquet", content.getvalue())


@lru_cache(maxsize=4)
def simulated_pool(
    source: str, prepared: Prepared, imbalance: str, seed: int, initial: int, holdout: float
) -> simulation.SimulatedPool:
    """The pools of one seed: drawn exactly as `vabal init` with these arguments draws them."""
    items = pd.read_parquet(Path(prepared.folder) / "items.parquet")
    wishes = sources.DrawSettings(None if imbalance == NATURAL else imbalance, initial, holdout, seed)
    draws = sources.plan_draws(sources.open_source(source), items, prepared.classes, wishes)
    rows = pd.Index(items["sample_id"])
    return simulation.SimulatedPool(
        prepared.classes,
        items["sample_id"].to_numpy(dtype=object),
        np.load(Path(prepared.folder) / "images.npy", mmap_mode="r"),
        pd.Index(prepared.classes).get_indexer(pd.Index(items["label"])).astype(np.int64),
        np.sort(rows.get_indexer(pd.Index([*draws.initial, *draws.rest]))),
        np.sort(rows.get_indexer(pd.Index(draws.holdout))),
        np.sort(rows.get_indexer(pd.Index(draws.initial))),
        groups_N=items["group"].where(items["group"].notna(), "\0" + items["sample_id"]).to_numpy(dtype=object),
        folder=Path(prepared.folder),
        thinned=imbalance != NATURAL,
    )


# -- cells ----------------------------------------------------------------------------------------------------------

_shared = simulation.Shared()  # of this process


class CellOutcome(NamedTuple):
    """A cell that ended: its file's name, or why there is none."""

    file: str | None
    failure: str | None = None


def run_cell(cell: Cell, prepared: Prepared, folder: Path) -> CellOutcome:
    """Runs one cell and writes its document below `folder`, whole or not at all.

    What a user can mend (a training that diverges, a score that is not finite) is told, so that other cells go on.
    """
    common = cell.common
    shape = np.load(Path(prepared.folder) / "images.npy", mmap_mode="r").shape
    chosen = cell.params(shape[1], shape[3])
    try:
        place = simulated_pool(cell.source, prepared, cell.imbalance, cell.seed, common["initial"], common["holdout"])
        simulation.check_budget(place, common["budget"], common["rounds"])
        key = (prepared.folder, cell.imbalance, common["initial"], common["holdout"])
        with one_thread(device_of(chosen)), threadpool_limits(1):  # so that the number of jobs cannot change a result
            chosen = chosen.model_copy(update={"compute": chosen.compute.model_copy(update={"threads": 0})})
            rounds = list(
                simulation.run(
                    place,
                    chosen,
                    rounds=common["rounds"],
                    baseline=cell.baseline,
                    shared=_shared,
                    shared_key=key,
                )
            )
    except UserError as error:
        return CellOutcome(None, f"{cell.source}, {cell.imbalance}, {cell.label}, seed {cell.seed}: {error}")
    write_bytes(folder / cell.file_name, canonical_json(_document(cell, prepared, place, rounds)))
    return CellOutcome(cell.file_name)


def _document(
    cell: Cell, prepared: Prepared, place: simulation.SimulatedPool, rounds: Sequence[simulation.Round]
) -> dict[str, Any]:
    return {
        "version": VERSION,
        "key": cell.key,
        "source": cell.source,
        "imbalance": cell.imbalance,
        "strategy": cell.label,
        "learner": cell.learner,
        "seed": cell.seed,
        "budget": cell.common["budget"],
        "initial": cell.common["initial"],
        "settings": {**cell.common["settings"], **cell.settings, "selection.strategy": cell.strategy},
        "code": code_version(),
        "caveat": prepared.caveat,
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
                "cpu_seconds": item.cpu_seconds,
                "trained": item.trained,
                "notes": list(item.notes),
                "settled": item.settled._asdict() if item.settled else None,
            }
            for item in rounds
        ],
        "top_picks": [_picture(place, pick) for pick in rounds[0].picks[:TOP_PICKS]],
    }


def _picture(place: simulation.SimulatedPool, pick: simulation.Pick) -> dict[str, str]:
    pixels = np.asarray(place.images_N_H_W_K[pick.row])
    encoded = shards.png(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return {
        "sample_id": str(place.sample_ids[pick.row]),
        "label": place.classes[int(place.labels_N[pick.row])],
        "predicted_class": place.classes[pick.predicted_class],
        "png": base64.b64encode(encoded).decode("ascii"),
    }


def own(out: Path) -> None:
    """Raises UserError if the folder holds things, and none of a benchmark: its files would go over theirs."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is no folder: name another --out")
    names = {path.name for path in out.iterdir()} - {".lock", "mlflow.db", "mlruns", "mlflow.db-journal"}
    foreign = sorted(name for name in names if not HALF.fullmatch(name))
    if foreign and not _is_grid(out / "grid.json"):
        raise UserError(f"{out} is not empty and holds no benchmark (but {foreign[0]}): name a new folder with --out")


def _is_grid(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _cell_files(out: Path) -> list[Path]:
    """The files that cells wrote, by the names that they give; links and other people's files are passed over."""
    found = sorted((out / "cells").glob("*.json"))
    return [path for path in found if CELL.search(path.name) and path.is_file() and not path.is_symlink()]


def read_cells(out: Path) -> list[dict[str, Any]]:
    """The documents of the finished cells, ordered by source, imbalance, strategy and seed."""
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in _cell_files(out)]
    return sorted(documents, key=lambda item: (item["source"], item["imbalance"], item["strategy"], item["seed"]))


def known_cells(out: Path, tell: Callable[[str], None]) -> dict[Any, str]:
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


def no_other_meaning(cells: Sequence[Cell], known: Mapping[Any, str]) -> None:
    for cell in cells:
        if known.get(cell.identity, cell.key) != cell.key:
            raise UserError(
                f"strategy {cell.label!r} had other settings when its cell of seed {cell.seed} ran: give it another "
                "label (label=name[...]), or name another --out"
            )
