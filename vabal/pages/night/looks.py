"""How alike images look: each pick's nearest other pick, and the labelled image that is most like it.

A probe's nights keep embeddings of the whole pool; where these are at hand, two images are as far apart as their last
layers' directions. Elsewhere their thumbnails are compared. The page says which. Axes: N picks, L labelled images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal import images
from vabal.errors import UserError
from vabal.pages.night import reasons
from vabal.settings.models import Params
from vabal.workspace import Workspace

EMBEDDINGS: Final = "1 less the cosine of the two images' embeddings by the frozen network"
PIXELS: Final = "1 less the correlation of the two images, shrunk to 16 x 16 pixels"
MOST_LABELED: Final = 2_000  # the newest labels
_SIDE: Final = 16

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Nearest:
    """Of one pick: which is the nearest, how far, and whether that is far."""

    sample: str
    distance: float
    far: bool


@dataclass(frozen=True)
class Looks:
    """The nearest of each pick, by sample id; empty where there is none. `measure` says what a distance is, `far` from
    where on it is far (`reasons.far`)."""

    measure: str
    picks: dict[str, Nearest]
    labeled: dict[str, Nearest]
    far: float


NONE: Final = Looks(PIXELS, {}, {}, float("inf"))  # of pictures that were not compared


def looks(place: Workspace, params: Params, picks: pd.DataFrame, labeled: pd.DataFrame) -> Looks:
    """Of catalog rows: of the picks, and of labelled images, the newest first. Raises UserError for a missing shard."""
    labeled = labeled.iloc[:MOST_LABELED]
    rows = pd.concat([picks, labeled], ignore_index=True)
    if not len(picks):
        return NONE
    shards = images.DecodedShards(
        place.data,
        place.decoded,
        params.images.size,
        params.images.channels,
        bit_depth=params.images.bit_depth,
    )
    vectors, measure = _embeddings(place, params, shards, rows), EMBEDDINGS
    if vectors is None:
        vectors, measure = _pixels(shards.gather(rows)), PIXELS
    ids = [str(sample_id) for sample_id in rows["sample_id"]]
    return _nearest(ids[: len(picks)], ids[len(picks) :], _unit(vectors), measure)


def _nearest(picks: Sequence[str], labeled: Sequence[str], unit_M_D: Vectors, measure: str) -> Looks:
    unit_N_D, unit_L_D = unit_M_D[: len(picks)], unit_M_D[len(picks) :]
    apart_N_N = _apart(unit_N_D, unit_N_D)
    pairs = apart_N_N[np.triu_indices(len(picks), 1)]
    limit = reasons.far(pairs)
    np.fill_diagonal(apart_N_N, np.inf)
    others = _of(picks, picks, apart_N_N, limit) if len(picks) > 1 else {}
    near = _of(picks, labeled, _apart(unit_N_D, unit_L_D), limit) if labeled else {}
    return Looks(measure, others, near, limit)


def _of(
    picks: Sequence[str], others: Sequence[str], apart_N_M: NDArray[np.float64], limit: float
) -> dict[str, Nearest]:
    nearest_N = apart_N_M.argmin(axis=1)
    distance_N = apart_N_M[np.arange(len(picks)), nearest_N]
    return {
        pick: Nearest(others[int(place)], float(distance), bool(distance > limit))
        for pick, place, distance in zip(picks, nearest_N, distance_N, strict=True)
    }


def _apart(first_N_D: Vectors, second_M_D: Vectors) -> NDArray[np.float64]:
    return np.clip(1 - (first_N_D @ second_M_D.T).astype(np.float64), 0, 2)


def _unit(vectors_N_D: Vectors) -> Vectors:
    """Of unit length; what is level everywhere has no direction, and is as far from all others."""
    length_N_1 = np.linalg.norm(vectors_N_D, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors_N_D, length_N_1, out=np.zeros_like(vectors_N_D), where=length_N_1 > 0))


def _pixels(images_N_H_W_K: NDArray[np.uint8]) -> Vectors:
    """Means over a grid of at most 16 x 16 fields, less each image's own mean."""
    vectors = []
    for image_H_W_K in images_N_H_W_K:
        rows, columns = (np.linspace(0, length, min(_SIDE, length) + 1).astype(int) for length in image_H_W_K.shape[:2])
        sums = np.add.reduceat(np.add.reduceat(image_H_W_K.astype(np.float32), rows[:-1], 0), columns[:-1], 1)
        small = sums / (np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None])
        vectors.append((small - small.mean()).ravel())
    return np.asarray(vectors, dtype=np.float32)


def _embeddings(place: Workspace, params: Params, shards: images.DecodedShards, rows: pd.DataFrame) -> Vectors | None:
    """Of the last layers, as far as the workspace keeps those of every shard; else None."""
    if params.classifier.learner != "probe" or not place.embeddings.is_dir():
        return None
    from vabal.learning.device import device_of  # noqa: PLC0415 -- torch takes two seconds to import
    from vabal.learning.embeddings import EmbeddedShards, Embedder  # noqa: PLC0415

    settings = params.below(place.root)
    try:
        embedder = Embedder(settings.backbone, device_of(settings), place.embeddings)
        embedded = EmbeddedShards(shards, embedder, settings.features.batch_size)
        if not all(embedded.has(str(shard)) for shard in rows["shard"].unique()):
            return None
        columns_D, _ = embedder.embedded.columns("last")
        return np.asarray(embedded.gather(rows)[:, columns_D], dtype=np.float32)
    except UserError:  # a backbone of before that is not here any more
        return None
