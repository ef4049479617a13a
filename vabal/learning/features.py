"""Features and logits of a pool, streamed to `.npy` files and back: memory does not grow with the pool."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.files import canonical_json, write_bytes
from vabal.images.rows import RowWriter, row_batches
from vabal.learning.device import brought
from vabal.learning.needs import check_finite
from vabal.learning.network import Network
from vabal.learning.recipe import Inputs, pieces, place

FEATURES = "features.npy"
LOGITS = "logits.npy"
DIMS = "feature_dims.json"


def extract(
    network: Network,
    batches: Iterable[tuple[int, Inputs]],
    rows: int,
    folder: Path,
    device: torch.device | str = "cpu",
    sample_ids: NDArray[Any] | None = None,
) -> None:
    """Writes features.npy (rows x D) and logits.npy (rows x C), float32, in the order of the rows; feature_dims.json.

    `batches` yields (start, inputs_N), images_N_H_W_K uint8 or a probe's embeddings_N_E, that together cover `rows`
    rows in order. The next batch is read while the network works on the last. Raises ValueError if rows are missing or
    out of order, UserError if a number is not finite; the files are then incomplete, and `row_batches` refuses them.
    """
    write_bytes(folder / DIMS, canonical_json(list(network.feature_dims)))
    with (
        RowWriter(folder / FEATURES, rows, sum(network.feature_dims)) as features,
        RowWriter(folder / LOGITS, rows, network.config["num_classes"]) as logits,
    ):
        for described in describe(network, _read_ahead(batches), device, sample_ids):
            if described.start != features.written:
                raise ValueError(f"expected a batch that starts at row {features.written}, found {described.start}")
            features.append(described.features_N_D)
            logits.append(described.logits_N_C)


class FeatureBatch(NamedTuple):
    """The features and logits of consecutive rows, the first of which is `start`."""

    start: int
    features_N_D: NDArray[np.float32]
    logits_N_C: NDArray[np.float32]


def describe(
    network: Network,
    batches: Iterable[tuple[int, Inputs]],
    device: torch.device | str = "cpu",
    sample_ids: NDArray[Any] | None = None,
) -> Iterator[FeatureBatch]:
    """Features and logits of the inputs, float32, piece by piece of each batch (start, inputs_N).

    Raises UserError naming the samples (`sample_ids`, row by row) of which a number is not finite.
    """
    device = torch.device(device)
    place(network, device).eval()
    for row, (features_P_D, logits_P_C) in brought(_answers(network, batches, device)):
        rows = range(row, row + len(features_P_D))
        names = [f"row {place}" for place in rows] if sample_ids is None else sample_ids[rows.start : rows.stop]
        check_finite("a feature", features_P_D, names)
        check_finite("a logit", logits_P_C, names)
        yield FeatureBatch(row, features_P_D, logits_P_C)


def _answers(
    network: Network, batches: Iterable[tuple[int, Inputs]], device: torch.device
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    for start, inputs_N in batches:
        row = start
        for inputs_P in pieces(inputs_N, network, device):
            with torch.inference_mode():
                features_P_D, logits_P_C = network.stages(inputs_P)
            yield row, (features_P_D.float(), logits_P_C.float())
            row += len(inputs_P)


def feature_batches(folder: Path, batch_size: int) -> Iterator[FeatureBatch]:
    """What `extract` wrote into `folder`, in batches of rows. Raises UserError for a damaged or unfinished file."""
    pairs = zip(row_batches(folder / FEATURES, batch_size), row_batches(folder / LOGITS, batch_size), strict=True)
    for (start, features_N_D), (_, logits_N_C) in pairs:
        yield FeatureBatch(start, features_N_D, logits_N_C)


def _read_ahead(batches: Iterable[tuple[int, Inputs]]) -> Iterator[tuple[int, Inputs]]:
    """The same batches; each is made in a second thread while the one before is in use."""
    iterator = iter(batches)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as executor:
        coming = executor.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = executor.submit(next, iterator, None)
            yield batch
