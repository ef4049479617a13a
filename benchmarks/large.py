"""Peak memory and CPU seconds of what holds the whole pool: `python -m benchmarks.large [NAME ...] [--sizes N ...]`.

The strategies that gather the pool, at 512 features; and `pools`, a night's books: `FRESH` images and `ANSWERS` labels
are taken in from the inbox, `PICKS` picks are marked, tables written, digests taken, and all of it published as the
flow does it (stage store, DVC, git), but that nothing is trained, the images are a byte each, and nothing is sent.

Each size and strategy is a process of its own that reads float32 features and logits chunk by chunk from files and
selects, on one thread. Memory is the process's peak resident, imports and all. A million samples' features are 2.05 GB.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.coreset import activations
from benchmarks.growth import exponents
from benchmarks.threads import one_thread

SIZES = (10_000, 100_000, 1_000_000)
NAMES = ("badge", "coreset", "typiclust", "pools")
FRESH, ANSWERS, HOLDOUT, LABELED, SHARD_ROWS = 1_000, 100, 5_000, 1_000, 100_000
DIMS, CLASSES, PICKS, CHUNK_ROWS = 512, 10, 100, 2**16

MOST_GB, MOST_EXPONENT = 4.0, 1.2


def run(sizes: tuple[int, ...] = SIZES, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """By strategy and size seconds and gigabytes; `largest_gb` of all, and the largest fitted exponent of seconds."""
    measured: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as there:
        for size in sizes:
            if set(names) - {"pools"}:
                _write(Path(there), size)
            for name in names:
                if name == "pools":
                    shutil.rmtree(Path(there, "books"), ignore_errors=True)
                    subprocess.run(
                        [sys.executable, "-m", "benchmarks.large", "--in", there, str(size), "books"], check=True
                    )
                command = [sys.executable, "-m", "benchmarks.large", "--in", there, str(size), name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                measured[name][size] = json.loads(done.stdout)
    grown = {
        name: exponents({size: row["cpu_seconds"] for size, row in rows.items()}) for name, rows in measured.items()
    }
    return {
        "dims": DIMS,
        "picks": PICKS,
        **{name: {"sizes": rows, **grown[name]} for name, rows in measured.items()},
        "largest_gb": max(row["gb"] for rows in measured.values() for row in rows.values()),
        "largest_exponent": max(of["fitted"] or 0.0 for of in grown.values()),
    }


def _write(there: Path, size: int) -> None:
    """From one seed: the classes and what the features mix are the same in all chunks."""
    with (there / "features").open("wb") as features, (there / "logits").open("wb") as logits:
        for start in range(0, size, CHUNK_ROWS):
            numbers = np.random.default_rng(0)
            count = min(CHUNK_ROWS, size - start)
            features_N_D = activations(numbers, count, DIMS)
            features_N_D += np.float32(0.1) * np.random.default_rng(start).random((count, DIMS), dtype=np.float32)
            features_N_D.tofile(features)
            (3 * np.random.default_rng(start).standard_normal((count, CLASSES), dtype=np.float32)).tofile(logits)


def measure(there: Path, size: int, name: str) -> dict[str, float]:
    """This process's CPU seconds of a selection, and its peak memory."""
    from vabal import strategies  # noqa: PLC0415 -- counted, but not as time

    ids_N = np.array([f"s{row:07d}" for row in range(size)], dtype=object)

    def shards() -> Iterator[strategies.Shard]:
        for start in range(0, size, CHUNK_ROWS):
            count = min(CHUNK_ROWS, size - start)
            columns: dict[str, Any] = {
                column: np.fromfile(there / file, np.float32, count * width, offset=4 * start * width).reshape(
                    -1, width
                )
                for column, file, width in (("logits_N_C", "logits", CLASSES), ("features_N_D", "features", DIMS))
            }
            yield strategies.Shard(ids_N[start : start + count], **columns)

    settings = SimpleNamespace(selection=SimpleNamespace(features="classifier"))
    context = strategies.Context(shards, settings, seed=0)
    with one_thread():
        begun = time.process_time()
        assert len(strategies.get(name).select(context, PICKS).sample_ids) == PICKS
        seconds = time.process_time() - begun
    return {"cpu_seconds": seconds, "gb": _peak_gb()}


# -- a night's books ------------------------------------------------------------------------------------------------


def make_books(root: Path, size: int) -> None:
    """A workspace whose round 0 has so many images, and an inbox with what the night takes in."""
    from benchmarks.random_pool import CLASSES as NAMED  # noqa: PLC0415 -- the strategies' process needs none of it
    from vabal import pools, rounds  # noqa: PLC0415
    from vabal.adapters.versioning import Versioning  # noqa: PLC0415
    from vabal.rounds import initial  # noqa: PLC0415
    from vabal.workspace import Workspace  # noqa: PLC0415

    place, folder = Workspace(root), root / ".vabal" / "made"
    (folder / "images").mkdir(parents=True)
    (root / "params.yaml").write_text("workspace:\n  name: large\nimages:\n  size: 8\n  channels: 1\n")
    ids = pd.Series([_name(row) for row in range(size)], dtype="str")
    shards = np.array([f"pool-{shard:04d}" for shard in range(-(-size // SHARD_ROWS))], dtype=object)
    for place_of, shard in enumerate(shards):
        own = ids[place_of * SHARD_ROWS : (place_of + 1) * SHARD_ROWS]
        table = pa.table({"sample_id": pa.array(own).cast(pa.string()), "image": pa.array([b"x"] * len(own))})
        pq.write_table(table, folder / "images" / f"{shard}.parquet")
    noise, row_N = np.random.default_rng(1).bytes(32 * size).hex(), np.arange(size)
    content = [noise[start : start + 64] for start in range(0, 64 * size, 64)]
    where = pd.DataFrame({"sample_id": ids, "shard": shards[row_N // SHARD_ROWS], "row": row_N % SHARD_ROWS})
    catalog = where.assign(sha256=content, width=8, height=8, group=None, added_round=0)
    label = np.array(NAMED, dtype=object)[row_N[: HOLDOUT + LABELED] % len(NAMED)]
    told = pd.DataFrame({"sample_id": ids[: HOLDOUT + LABELED], "label": label})
    source: dict[str, Any] = {"annotator": pools.FROM_SOURCE, "round": 0, "labeled_at": None}
    waiting = pd.DataFrame({"sample_id": ids[HOLDOUT + LABELED :], "status": pools.AVAILABLE, "requested_round": None})
    frames = {
        "catalog": catalog,
        "labeled": told.iloc[HOLDOUT:].assign(**source),
        "unlabeled": waiting.reset_index(drop=True),
        "holdout": told.iloc[:HOLDOUT],
        "label_events": told.assign(**source, source="made"),
    }
    typed = {name: pools.typed(frame, pools.SCHEMAS[name]) for name, frame in frames.items()}
    pools.save(pools.Pools(**typed, classes=NAMED), folder)
    versions = Versioning(root)
    versions.commit(["params.yaml", *versions.init("s3://nowhere/large")], "Workspace of a benchmark")
    rounds.stage(place, *initial.round_zero(folder, {"source": "made", "count": size}, 0))
    rounds.carry_out(place, versions, push=False)
    _fill_inbox(place.inbox)


def _name(row: int) -> str:
    return f"pool/{row // 1000:05d}/image-{row:08d}"


def _fill_inbox(inbox: Path) -> None:
    from benchmarks.random_pool import SIZE, encoded_images  # noqa: PLC0415
    from vabal import images, pools  # noqa: PLC0415
    from vabal.files import make_folder, sha256  # noqa: PLC0415
    from vabal.settings.models import PoolSettings  # noqa: PLC0415

    came, folder = (
        [(f"new/{name}", content) for name, content in encoded_images(FRESH)],
        inbox / "images/000001-00000000",
    )
    placed = images.write_shards(came, folder / "images", settings=PoolSettings(), name_prefix="new")
    rows = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
    rows = rows.assign(sha256=[sha256(content) for _, content in came], width=SIZE, height=SIZE, group=None)
    pools.write_table(rows, folder / "catalog.parquet", pools.INCOMING)
    answers = pd.DataFrame({"sample_id": [_name(HOLDOUT + LABELED + row) for row in range(ANSWERS)], "label": "a"})
    told: dict[str, Any] = {
        "annotator": "ann",
        "labeled_at": datetime(2026, 3, 1, tzinfo=UTC),
        "source": "made",
        "imported_at": None,
    }
    make_folder(inbox / "labels")
    pools.write_table(answers.assign(**told), inbox / "labels/000002-00000000.parquet", pools.EVENTS)


def measure_books(root: Path) -> dict[str, float]:
    """This process's CPU seconds, git's and DVC's included, of intake and publication, and its peak memory."""
    from vabal import pools, rounds  # noqa: PLC0415
    from vabal.adapters.versioning import Versioning  # noqa: PLC0415
    from vabal.files import canonical_json, write_bytes  # noqa: PLC0415
    from vabal.labels import arrivals  # noqa: PLC0415
    from vabal.rounds import record, steps, tables  # noqa: PLC0415
    from vabal.rounds.context import RoundContext, own_store  # noqa: PLC0415
    from vabal.workspace import Workspace  # noqa: PLC0415

    place, now, intake = Workspace(root), datetime(2026, 3, 2, tzinfo=UTC), steps.intake  # and what it imports
    with one_thread():
        begun = _cpu()
        opened = rounds.open_round(place, arrivals.pending(place.inbox), now)
        context = RoundContext(place, place.params(), opened, own_store(place), intake(place, opened))
        taken_in = _cpu()
        picks = list(pools.read_one(context.view, "unlabeled")["sample_id"][: 2 * PICKS : 2])
        said = {"rule": "topk", "beta": 1.0, "budget": PICKS, "seed": 0, "shortlist": None, "class_terms": None}
        with context.local.produce("select-batch", _KEY) as folder:
            chosen = tables.unscored(picks, context.params.selection.strategy)
            tables.write_selection(chosen, folder / tables.SELECTION_FILE)
            write_bytes(folder / tables.CANDIDATES_FILE, b"")
            write_bytes(folder / "selection.json", canonical_json({**said, "notes": [], "again": []}))
        with context.stages.produce("evaluate", _KEY) as folder:
            write_bytes(folder / tables.PREDICTIONS_FILE, b"")
            write_bytes(folder / "metrics.json", canonical_json({}))
        refs = {name: {"stage": stage, "key": _KEY} for name, stage in _STAGES.items()}
        model = {"name": "m", "version": "1", "sha256": "0" * 64}
        made = record.assemble(context, refs, model, mlflow_run="0" * 32, flow_run=None, promotions=None, now=now)
        rounds.stage(place, *made)
        assert rounds.carry_out(place, Versioning(root), push=False) is not None
        ended = _cpu()
    return {"cpu_seconds": ended - begun, "intake": taken_in - begun, "publish": ended - taken_in, "gb": _peak_gb()}


_KEY, _STAGES = "b00c5b00c5b00c50", {"selected": "select-batch", "evaluated": "evaluate"}


def _cpu() -> float:
    return sum(os.times()[:4])


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """With `--in` what a measuring process does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--in", nargs=3, dest="inside", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside is None:
        print(json.dumps(run(tuple(asked.sizes), tuple(asked.names)), indent=2))
        return
    there, size, name = asked.inside
    if name == "books":
        make_books(Path(there) / "books", int(size))
    elif name == "pools":
        print(json.dumps(measure_books(Path(there) / "books")))
    else:
        print(json.dumps(measure(Path(there), int(size), name)))


if __name__ == "__main__":
    main()
