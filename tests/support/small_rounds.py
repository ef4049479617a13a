"""The first round of a small workspace, without servers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vabal import rounds
from vabal.adapters.versioning import Versioning
from vabal.benchmark.simulation import SimulatedPool
from vabal.rounds import steps
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.initial import initialise
from vabal.rounds.steps.plan import learn
from vabal.workspace import Workspace


@contextmanager
def first_round(
    folder: Path,
    images: int,
    settings: Mapping[str, Any],
    chosen: dict[str, Any] | None = None,
    *,
    arrays: Mapping[str, Any] | None = None,
    initial: int = 20,
) -> Iterator[RoundContext]:
    """Of a workspace of that many random images of three classes (or of a source with these `arrays`), of which
    `initial` are labelled and a fifth is held out.

    `settings` go into its params.yaml, `chosen` over them for this round.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8), dtype=np.uint8)
    np.savez(folder / "some.npz", **(arrays or {"images": pixels, "labels": np.arange(images) % 3}))
    root = folder / "workspace"
    root.mkdir()
    with pytest.MonkeyPatch.context() as without_servers:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
            without_servers.delenv(name, raising=False)
        initialise(
            root,
            source=f"npz:{folder / 'some.npz'}",
            imbalance=None,
            initial=initial,
            holdout=0.2,
            seed=5,
            classes=None,
            name=None,
            settings=settings,
            versions=Versioning(root),
            prepare=lambda _storage: None,
        )
        place = Workspace(root)
        begun = rounds.open_round(place, [], datetime(2026, 1, 1, tzinfo=UTC))
        yield RoundContext(place, place.params(chosen), begun, own_store(place), steps.intake(place, begun))


def learned(context: RoundContext) -> dict[str, Any]:
    """All learning steps of a round; what each put out, by name."""
    return learn(
        steps,
        context,
        steps.shard_names(context),
        needs_vae=context.needs.vae,
        needs_class_terms=context.needs.class_terms,
        needs_embeddings=True,
    )


def simulated(context: RoundContext) -> SimulatedPool:
    """The workspace's pools as arrays."""
    catalog = pd.read_parquet(context.view / "catalog.parquet").sort_values("sample_id", ignore_index=True)
    tables = {name: pd.read_parquet(context.view / f"{name}.parquet") for name in ("labeled", "unlabeled", "holdout")}
    rows = pd.Index(catalog["sample_id"])
    number = {"0": 0, "1": 1, "2": 2}
    told = pd.read_csv(context.workspace.state / "oracle.csv", dtype=str)
    labels = {**dict(zip(told["sample_id"], told["label"], strict=True))}
    for name in ("labeled", "holdout"):
        labels |= dict(zip(tables[name]["sample_id"], tables[name]["label"], strict=True))
    labeled, unlabeled, holdout = (rows.get_indexer(pd.Index(tables[name]["sample_id"])) for name in tables)
    return SimulatedPool(
        context.classes,
        catalog["sample_id"].to_numpy(dtype=object),
        context.shards.gather(catalog),
        np.array([number[labels[sample_id]] for sample_id in catalog["sample_id"]]),
        np.sort(np.concatenate([labeled, unlabeled])),
        np.sort(holdout),
        np.sort(labeled),
    )
