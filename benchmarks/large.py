"""Peak memory and CPU seconds of the strategies that gather the pool, at 512 features: `python -m benchmarks.large`.

Each size and strategy is a process of its own that reads float32 features and logits chunk by chunk from files and
selects, on one thread. Memory is the process's peak resident, imports and all. A million samples' features are 2.05 GB.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.coreset import activations
from benchmarks.growth import exponents
from benchmarks.threads import one_thread

SIZES = (10_000, 100_000, 1_000_000)
NAMES = ("badge", "coreset", "typiclust")
DIMS, CLASSES, PICKS, CHUNK_ROWS = 512, 10, 100, 2**16

MOST_GB, MOST_EXPONENT = 4.0, 1.2


def run(sizes: tuple[int, ...] = SIZES, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    """By strategy and size seconds and gigabytes; `largest_gb` of all, and the largest fitted exponent of seconds."""
    measured: dict[str, dict[int, dict[str, float]]] = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as there:
        for size in sizes:
            _write(Path(there), size)
            for name in names:
                command = [sys.executable, "-m", "benchmarks.large", there, str(size), name]
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
    return {"cpu_seconds": seconds, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
    else:
        print(json.dumps(run(), indent=2))
