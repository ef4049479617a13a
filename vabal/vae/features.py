"""The unlabelled pool's features, as training asks for them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.learning.device import fits, sent

_ROWS_A_PIECE = 2**16


def to_tensor(values: Any, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An array or tensor as a tensor; a read-only array is copied, which torch else warns of."""
    if isinstance(values, np.ndarray) and not values.flags.writeable:
        values = values.copy()
    return sent(torch.as_tensor(values), device).to(dtype)


def resident(features: "Features", device: torch.device, dtype: torch.dtype) -> "Features | Tensor":
    """All features on a GPU, read in pieces, where they fit there; else what reads them."""
    if device.type == "cpu":
        return features
    rows, first_1_D = len(features), torch.as_tensor(features[np.arange(1)])
    if not fits(rows * first_1_D.nbytes, device):
        return features
    there_N_D = torch.empty(rows, first_1_D.shape[1], device=device, dtype=dtype)
    for start in range(0, rows, _ROWS_A_PIECE):
        positions = np.arange(start, min(start + _ROWS_A_PIECE, rows))
        there_N_D[start : start + len(positions)] = to_tensor(features[positions], device, dtype)
    return there_N_D


class Features(Protocol):
    """Features by position: an array, a memory-mapped array, a tensor, or a reader of files such as `PoolFeatures`."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions_B: NDArray[np.int64], /) -> Any: ...


class PoolFeatures:
    """The wanted rows of many shards as one long table, read from their files as they are asked for.

    A shard is a function that reads the given rows, and the rows of the shard that belong to the pool.
    """

    def __init__(self, shards: Sequence[tuple[Callable[[NDArray[np.int64]], NDArray[Any]], NDArray[np.integer]]]):
        self._read = [read for read, _ in shards]
        self._rows = [np.asarray(rows) for _, rows in shards]
        self._ends = np.cumsum([len(rows) for rows in self._rows], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, positions_B: NDArray[np.int64], /) -> NDArray[Any]:
        """features_B_D in the order asked for. Raises IndexError for a position outside, or for none at all."""
        positions = np.asarray(positions_B)
        if not len(positions) or positions.min() < 0 or positions.max() >= len(self):
            raise IndexError(f"expected positions from 0 to {len(self) - 1}, found {positions}")
        places = np.searchsorted(self._ends, positions, side="right")
        gathered: NDArray[Any] | None = None
        for place in np.unique(places):
            here = np.flatnonzero(places == place)
            start = self._ends[place] - len(self._rows[place])
            rows = self._rows[place][positions[here] - start]
            ascending = np.argsort(rows, kind="stable")  # a file is read front to back
            values = np.asarray(self._read[place](rows[ascending].astype(np.int64)))
            if gathered is None:
                gathered = np.empty((len(positions), *values.shape[1:]), dtype=values.dtype)
            gathered[here[ascending]] = values
        assert gathered is not None  # noqa: S101 -- there is at least one position, checked above
        return gathered
