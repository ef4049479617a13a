"""Pools of a few samples, made by code."""

import hashlib
import io
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from vabal import pools
from vabal.pools import Pools

WHEN = datetime(2024, 6, 1, 2, 0, tzinfo=UTC)


def catalog_of(ids: list[str]) -> pd.DataFrame:
    rows = [
        (name, "pool-0000", row, hashlib.sha256(name.encode()).hexdigest(), 8, 8, 0) for row, name in enumerate(ids)
    ]
    return pools.typed(
        pd.DataFrame(rows, columns=[name for name in pools.SCHEMAS["catalog"].names if name != "group"]),
        pools.SCHEMAS["catalog"],
    )


def small_pools(*, classes: tuple[str, ...] = ("cat", "dog"), **changes: pd.DataFrame) -> Pools:
    """Classes cat, dog; a labelled cat, b available, c requested in round 1, d a dog of the holdout."""
    tables = {name: table.copy() for name, table in _unchanged().items()}
    tables |= {name: pools.typed(table, pools.SCHEMAS[name]) for name, table in changes.items()}
    return Pools(**tables, classes=classes)


@cache
def _unchanged() -> dict[str, pd.DataFrame]:
    """Made once: to type five tables takes longer than most that tests do with them."""
    source = {"annotator": "source", "round": 0, "labeled_at": None}
    tables = {
        "catalog": catalog_of(["a", "b", "c", "d"]),
        "labeled": pd.DataFrame([{"sample_id": "a", "label": "cat", **source}]),
        "unlabeled": pd.DataFrame(
            {"sample_id": ["b", "c"], "status": ["available", "requested"], "requested_round": [None, 1]}
        ),
        "holdout": pd.DataFrame({"sample_id": ["d"], "label": ["dog"]}),
        "label_events": pd.DataFrame(
            [
                {"sample_id": "a", "label": "cat", **source, "source": "test"},
                {"sample_id": "d", "label": "dog", **source, "source": "test"},
            ]
        ),
    }
    return {name: pools.typed(table, pools.SCHEMAS[name]) for name, table in tables.items()}


def events_of(*pairs: tuple[str, str | None], annotator: str = "ann") -> pd.DataFrame:
    table = pd.DataFrame(list(pairs), columns=["sample_id", "label"], dtype=object)
    return pools.typed(table.assign(annotator=annotator, labeled_at=WHEN, source="labels.csv"), pools.EVENTS)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def file_of(array: np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    return saved(Image.fromarray(array), form, **options)


def picture(seed: int, height: int = 8, width: int = 8, channels: int | None = None) -> np.ndarray:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
