"""Feature extraction from shards against a bare forward-only loop over batches that are decoded already.

Both run in one process, in turn; the ratio of their speeds is taken repeat by repeat. `python -m benchmarks.features`.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vabal.images import DecodedShards, write_shards
from vabal.images.shards import png
from vabal.learning.features import extract
from vabal.learning.network import ResNetClassifier
from vabal.learning.recipe import pieces, place
from vabal.settings.models import PoolSettings

SIZE, CHANNELS, BATCH = 32, 3, 256
TARGET = 0.85


def run(*, images: int = 1024, width: int = 16, repeats: int = 7, device: str = "cpu") -> dict[str, Any]:
    """Images a second of both loops, and the median ratio: with the decoded cache, and on the pass that fills it."""
    network = ResNetClassifier(num_classes=10, image_size=SIZE, channels=CHANNELS, width=width).eval()
    place(network, torch.device(device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(_encoded(images), folder / "data" / "images", settings=PoolSettings(), name_prefix="bench")
        decoded = _decoded(_shards(folder, "warm"), network, device)
        _forward(network, decoded)  # both loops start with warm caches
        bare, cached, first = [], [], []
        for repeat in range(repeats):
            bare.append(_forward(network, decoded))
            cached.append(_extract(network, _shards(folder, "warm"), folder, device))
            first.append(_extract(network, _shards(folder, f"cold-{repeat}"), folder, device))
    ratios = [ours / theirs for ours, theirs in zip(cached, bare, strict=True)]
    first_ratios = [ours / theirs for ours, theirs in zip(first, bare, strict=True)]
    return {
        "name": "features",
        "images": images,
        "image": f"{SIZE}x{SIZE}x{CHANNELS} PNG",
        "network": f"resnet18, width {width}",
        "device": device,
        "threads": torch.get_num_threads(),
        "bare_images_per_second": statistics.median(bare),
        "extract_images_per_second": statistics.median(cached),
        "ratio": statistics.median(ratios),
        "ratio_first_pass": statistics.median(first_ratios),
        "target": TARGET,
        "ok": statistics.median(ratios) >= TARGET,
    }


def _encoded(count: int) -> Iterator[tuple[str, bytes]]:
    generator = np.random.default_rng(0)
    for index in range(count):
        yield f"image-{index:06d}", png(generator.integers(256, size=(SIZE, SIZE, CHANNELS), dtype=np.uint8))


def _shards(folder: Path, cache: str) -> DecodedShards:
    return DecodedShards(folder / "data", folder / cache, SIZE, CHANNELS)


def _decoded(shards: DecodedShards, network: ResNetClassifier, device: str) -> list[torch.Tensor]:
    """Every batch in memory as the network takes it best, so that the bare loop is the fastest there is.

    Fills the shards' cache on the way.
    """
    return [
        piece
        for shard in shards.names()
        for _, batch in shards.batches(shard, BATCH)
        for piece in pieces(batch, network, torch.device(device))
    ]


def _forward(network: ResNetClassifier, batches: list[torch.Tensor]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            network.stages(batch)
    _finish(batches[0].device)
    return sum(map(len, batches)) / (time.perf_counter() - started)


def _extract(network: ResNetClassifier, shards: DecodedShards, folder: Path, device: str) -> float:
    rows = 0
    started = time.perf_counter()
    for shard in shards.names():
        target = folder / "features" / shard
        target.mkdir(parents=True, exist_ok=True)
        extract(network, shards.batches(shard, BATCH), shards.rows(shard), target, device)
        rows += shards.rows(shard)
    return rows / (time.perf_counter() - started)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
