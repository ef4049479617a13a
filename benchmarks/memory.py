"""Resident memory of extract-features, train-vae and estimate-probabilities, at 100 000 and at 1 000 000 samples.

`python -m benchmarks.memory`. Each measurement is a process of its own that runs the library's stages shard by shard
over shards as the library makes them: features of every image (decoding included), the VAE's training on all of them,
class terms with the prior counted in the unlabelled pool, and the likelihood of every image. The networks are small and
the draws few, so that it ends.
What counts is the peak of resident memory over the process's life, as the kernel keeps it.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SMALL, LARGE = 100_000, 1_000_000
MOST_GROWTH = 0.10
PARAMS: dict[str, Any] = {
    "images": {"size": 8, "channels": 1},
    "compute": {"threads": 1, "device": "cpu"},
    "classifier": {"width": 2},
    "vae": {"head_width": 8, "hidden_width": 16, "latent_per_class": 2},
    "probabilities": {"draws": 2, "prior_pool": "unlabeled"},
}
LABELED = 1_000
KEY = "be9c4be9c4be9c40"  # of the stages that are given here: intake, train-classifier


def run(*, small: int = SMALL, large: int = LARGE, repeats: int = 2) -> dict[str, Any]:
    """Peak megabytes at both sizes (the smaller one's median of `repeats`), and by how much the larger one's is more.

    `growth_beside_start` leaves out what the process held before the first image: a stricter number, without a bound.
    """
    from benchmarks.random_pool import encoded_images  # noqa: PLC0415
    from vabal import images  # noqa: PLC0415
    from vabal.settings.models import PoolSettings  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="vabal-bench-") as name:
        folder = Path(name)
        settings = PoolSettings(shard_rows=min(small, PoolSettings().shard_rows))
        images.write_shards(encoded_images(large), folder / "shards", settings=settings, name_prefix="pool")
        few = [_measure(folder, small) for _ in range(repeats)]
        many = _measure(folder, large)
    peak = statistics.median(one["peak_mb"] for one in few)
    start = statistics.median([one["start_mb"] for one in [*few, many]])
    return {
        "repeats": repeats,
        "small": {"images": small, "shards": few[0]["shards"], "peak_mb": peak, "cpu_seconds": few[0]["cpu_seconds"]},
        "large": {"images": large} | {name: many[name] for name in ("shards", "peak_mb", "cpu_seconds")},
        "start_mb": start,
        "growth": round(many["peak_mb"] / peak - 1, 4),
        "growth_beside_start": round((many["peak_mb"] - start) / (peak - start) - 1, 4),
    }


def _measure(folder: Path, count: int) -> dict[str, Any]:
    root = folder / "workspace"
    root.mkdir()
    out = folder / "measured.json"
    command = [sys.executable, "-m", "benchmarks.memory", "--in", str(root), "--out", str(out), "--count", str(count)]
    subprocess.run(command, check=True)
    shutil.rmtree(root)
    measured: dict[str, Any] = json.loads(out.read_text())
    return measured


# -- inside the measuring process ---------------------------------------------------------------------------------


def measure(root: Path, shards: list[Path]) -> dict[str, Any]:
    """Runs the stages over these shards in the workspace `root`; megabytes and CPU seconds of this process."""
    from vabal.rounds import steps  # noqa: PLC0415

    trained = _prepare(root, shards)
    start = memory_mb("VmRSS")
    extracted = [steps.extract_features(_context(root), trained, shard.stem) for shard in shards]
    encoded = steps.train_vae(_context(root), extracted)
    steps.estimate_class_terms(_context(root), trained, extracted, encoded)
    for ref in extracted:
        steps.estimate_likelihood(_context(root), ref, encoded)
    times = os.times()
    return {
        "shards": len(shards),
        "start_mb": start,
        "peak_mb": memory_mb("VmHWM"),
        "cpu_seconds": round(times.user + times.system, 1),
    }


def _context(root: Path) -> Any:
    """As a task of the flow makes it: anew for every shard."""
    from vabal.rounds import OpenRound  # noqa: PLC0415
    from vabal.rounds.context import RoundContext, own_store  # noqa: PLC0415
    from vabal.settings import params  # noqa: PLC0415
    from vabal.workspace import Workspace  # noqa: PLC0415

    place = Workspace(root)
    begun = OpenRound(1, "0" * 64, (), "2024-06-01T02:00:00+00:00")
    return RoundContext(place, params.parse(PARAMS), begun, own_store(place), KEY)


def _prepare(root: Path, shards: list[Path]) -> dict[str, str]:
    """Puts into the stage store what stands before these stages: intake's view and a classifier, untrained."""
    from benchmarks.random_pool import CLASSES  # noqa: PLC0415
    from vabal.files import canonical_json, file_sha256, write_bytes  # noqa: PLC0415
    from vabal.learning import classifier  # noqa: PLC0415

    context = _context(root)
    settings = context.params
    with context.local.produce("intake", KEY) as view:
        (view / "images").mkdir()
        (view / "roles").mkdir()
        for number, shard in enumerate(shards):
            (view / "images" / shard.name).hardlink_to(shard)
            _write_roles(view / "roles" / f"{shard.stem}.npz", shard, LABELED if number == 0 else 0)
        digests = {"labeled": KEY, "unlabeled": KEY}
        report = {"classes": CLASSES, "digests": digests, "shards": {item.stem: file_sha256(item) for item in shards}}
        write_bytes(view / "intake.json", canonical_json(report))
    network = classifier.build(
        settings.classifier, num_classes=len(CLASSES), image_size=8, channels=1, mean=(0.5,), std=(0.3,), seed=0
    )
    with context.stages.produce("train-classifier", KEY) as folder:
        classifier.save(network, folder / "weights.safetensors")
    return {"stage": "train-classifier", "key": KEY}


def _write_roles(path: Path, shard: Path, labeled: int) -> None:
    import pyarrow.parquet as pq  # noqa: PLC0415

    from vabal.rounds.context import CANDIDATE, LABELED  # noqa: PLC0415

    rows = pq.ParquetFile(shard).metadata.num_rows
    role, label = np.full(rows, CANDIDATE, np.uint8), np.full(rows, -1, np.int32)
    role[:labeled], label[:labeled] = LABELED, np.arange(labeled) % 3
    np.savez(path, role=role, label=label)


def peak_above(work: Callable[[], object]) -> float:
    """Megabytes by which this process's resident memory was at most above what it is before the work; on Linux."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here on
    before = memory_mb("VmRSS")
    work()
    return max(0.0, memory_mb("VmHWM") - before)


def memory_mb(name: str) -> float:
    """VmRSS (resident memory now) or VmHWM (its peak) of this process, in megabytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, f"the kernel tells no {name}"
    return round(int(found[1]) / 1024, 1)


def main() -> None:
    """Without arguments: the benchmark. With them, what the measuring process does."""
    parser = argparse.ArgumentParser(description="growth of resident memory with the pool")
    parser.add_argument("--in", dest="root", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--count", type=int)
    chosen = parser.parse_args()
    if chosen.root is None:
        print(json.dumps(run(), indent=2))
        return
    import pyarrow.parquet as pq  # noqa: PLC0415

    shards, rows = [], 0
    for path in sorted((chosen.root.parent / "shards").glob("*.parquet")):
        if rows < chosen.count:
            shards.append(path)
            rows += pq.ParquetFile(path).metadata.num_rows
    assert rows == chosen.count, f"shards of {rows} images, {chosen.count} wanted"
    chosen.out.write_text(json.dumps(measure(chosen.root, shards)))


if __name__ == "__main__":
    main()
