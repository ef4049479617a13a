"""Pools of random 8 x 8 images, as large as wanted: no two images alike, so that none is taken for a duplicate."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vabal import images, pools, rounds
from vabal.adapters import storage
from vabal.adapters.versioning import Versioning
from vabal.files import write_bytes
from vabal.rounds import initial
from vabal.settings import params
from vabal.settings.models import Params
from vabal.workspace import Workspace

SIZE = 8
CLASSES = ("a", "b", "c")
HOLDOUT, LABELED = 0.2, 100  # share and number
_BLOCK = 4096  # images drawn at once


def encoded_images(count: int) -> Iterator[tuple[str, bytes]]:
    """(sample_id, PNG) of `count` images of random grey values."""
    generator = np.random.default_rng(0)
    for start in range(0, count, _BLOCK):
        rows = np.zeros((min(_BLOCK, count - start), SIZE, SIZE + 1), np.uint8)  # PNG: a filter's byte before each row
        rows[:, :, 1:] = generator.integers(256, size=(len(rows), SIZE, SIZE), dtype=np.uint8)
        for index, row in enumerate(rows):
            yield f"image-{start + index:07d}", _png(row.tobytes())


def _png(rows: bytes) -> bytes:
    """A PNG of grey values, stored rather than deflated: noise does not shrink, and a million must not take long."""
    return _SIGNATURE + _HEADER + _chunk(b"IDAT", zlib.compress(rows, 0)) + _END


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = _chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 0, 0, 0, 0))
_END = _chunk(b"IEND", b"")


def make_workspace(root: Path, count: int, settings: dict[str, Any]) -> Params:
    """A workspace with round 0 published, as `vabal init` leaves it, without reading a million images twice."""
    place = Workspace(root)
    raw = {"images": {"size": SIZE, "channels": 1}, "workspace": {"name": root.name}}
    chosen = params.parse(params.override(raw, settings))
    write_bytes(root / "params.yaml", params.dump(chosen).encode())
    folder = place.state / "made"
    placed = images.write_shards(encoded_images(count), folder / "images", settings=chosen.pool, name_prefix="pool")
    pools.save(_pools(placed), folder)
    storage.preflight(chosen.storage.bucket, chosen.storage.prefix)
    versions = Versioning(root)
    made = versions.init(f"s3://{chosen.storage.bucket}/{chosen.storage.prefix}")
    versions.commit(["params.yaml", *made], "Workspace of a benchmark")
    plan, contents = initial.round_zero(folder, {"source": "random", "count": count}, chosen.seed)
    rounds.stage(place, plan, contents)
    rounds.carry_out(place, versions)
    return chosen


def _pools(placed: list[tuple[str, int, str]]) -> pools.Pools:
    count = len(placed)
    catalog = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
    # What stands in for the images' digests: as long, as random, and quicker by a minute.
    noise = np.random.default_rng(1).bytes(32 * count).hex()
    catalog["sha256"] = [noise[start : start + 64] for start in range(0, 64 * count, 64)]
    order = np.random.default_rng(2).permutation(count)
    held, labeled, rest = np.split(order, [int(HOLDOUT * count), int(HOLDOUT * count) + LABELED])
    label = np.asarray(CLASSES, dtype=object)[np.random.default_rng(3).integers(len(CLASSES), size=count)]
    told = catalog[["sample_id"]].assign(label=label)
    source: dict[str, Any] = {"annotator": pools.FROM_SOURCE, "round": 0, "labeled_at": None}
    tables = {
        "catalog": catalog.assign(width=SIZE, height=SIZE, added_round=0),
        "labeled": told.iloc[labeled].assign(**source),
        "unlabeled": catalog.iloc[rest][["sample_id"]].assign(status=pools.AVAILABLE, requested_round=None),
        "holdout": told.iloc[held],
        "label_events": told.iloc[np.concatenate([labeled, held])].assign(**source, source="random"),
    }
    typed = {name: pools.typed(table, pools.SCHEMAS[name]) for name, table in tables.items()}
    ordered = {name: pools.by_id(typed[name]) for name in ("labeled", "unlabeled", "holdout")}
    return pools.Pools(**(typed | ordered), classes=CLASSES)
