"""The first round of a small workspace, without servers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vabal import rounds
from vabal.adapters.versioning import Versioning
from vabal.rounds import steps
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.initial import initialise
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
