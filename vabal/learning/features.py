"""Features and logits of a pool, streamed to `.npy` files and back: memory does not grow with the pool.

Files are appended to and read at offsets, never mapped: the pages of a mapped file count as resident memory.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.files import canonical_json, write_bytes
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
    for start, inputs_N in batches:
        row = start
        for inputs_P in pieces(inputs_N, network, device):
            with torch.inference_mode():
                features_P_D, logits_P_C = network.stages(inputs_P)
            described = FeatureBatch(row, features_P_D.float().cpu().numpy(), logits_P_C.float().cpu().numpy())
            names = np.array([f"row {row + place}" for place in range(len(inputs_P))])
            names = names if sample_ids is None else sample_ids[row : row + len(inputs_P)]
            check_finite("a feature", described.features_N_D, names)
            check_finite("a logit", described.logits_N_C, names)
            yield described
            row += len(inputs_P)


def feature_batches(folder: Path, batch_size: int) -> Iterator[FeatureBatch]:
    """What `extract` wrote into `folder`, in batches of rows. Raises UserError for a damaged or unfinished file."""
    pairs = zip(row_batches(folder / FEATURES, batch_size), row_batches(folder / LOGITS, batch_size), strict=True)
    for (start, features_N_D), (_, logits_N_C) in pairs:
        yield FeatureBatch(start, features_N_D, logits_N_C)


class RowWriter:
    """Appends rows to a `.npy` file whose number of rows is known beforehand; a context manager.

    `columns` of None makes a one-dimensional array. Leaving it normally before all rows came raises ValueError.
    """

    def __init__(self, path: Path, rows: int, columns: int | None, dtype: str = "<f4") -> None:
        self.path = path
        self.rows = rows
        self.written = 0
        self._row_shape = () if columns is None else (columns,)
        self._dtype = np.dtype(dtype)
        self._file: BinaryIO = path.open("wb")
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (rows, *self._row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, values: NDArray[Any]) -> None:
        """Adds rows at the end. Raises ValueError for rows of another shape, or too many."""
        if values.shape[1:] != self._row_shape or self.written + len(values) > self.rows:
            raise ValueError(
                f"{self.path.name}: rows of shape {values.shape} do not fit behind {self.written} of {self.rows} rows"
            )
        self._file.write(np.ascontiguousarray(values, dtype=self._dtype).data)
        self.written += len(values)

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self.written != self.rows:
            raise ValueError(f"{self.path.name}: {self.written} rows came, expected {self.rows}")


def row_batches(path: Path, batch_size: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yields (start, rows) of the `.npy` file, each batch an array of its own. Raises UserError for a damaged file."""
    with _open(path) as file:
        shape, dtype, _ = _header(file, path)
        per_row = int(np.prod(shape[1:], dtype=np.int64))
        for start in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - start)
            yield start, np.fromfile(file, dtype, count * per_row).reshape(count, *shape[1:])


class RowReader:
    """Reads rows of a `.npy` file, one by one, in any order: for few rows at a time of a large file.

    Of a memory map every page that was ever touched stays resident, here nothing does. A context manager. Raises
    UserError for a damaged file.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = _open(path)
        try:
            self._shape, self._dtype, self._first = _header(self._file, path)
        except UserError:
            self._file.close()
            raise

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __call__(self, rows_N: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
        """These rows, in the order given. Raises IndexError for one that is not there."""
        values = np.empty((len(rows_N), *self._shape[1:]), self._dtype)
        size, file = self._dtype.itemsize * int(np.prod(self._shape[1:], dtype=np.int64)), self._file.fileno()
        into = values.view(np.uint8).reshape(len(rows_N), size)
        for position, row in enumerate(np.asarray(rows_N).tolist()):
            if not 0 <= row < self._shape[0]:
                raise IndexError(f"{self._name}: row {row} of {self._shape[0]}")
            if os.preadv(file, [into[position]], self._first + row * size) != size:
                raise UserError(f"{self._name}: became shorter while it was read; run the round again")
        return values


def read_rows(path: Path, rows_N: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
    """These rows of the `.npy` file, as a `RowReader` reads them."""
    with RowReader(path) as read:
        return read(rows_N)


def shape_of(path: Path) -> tuple[int, ...]:
    """The shape of the array in the `.npy` file. Raises UserError for a damaged or unfinished file."""
    with _open(path) as file:
        return _header(file, path)[0]


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; run the round again to make it anew") from None


def _header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and the first number's offset; the file's size must be what they say."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise UserError(f"{path}: not an array of rows; delete it and run the round again") from None
    first = file.tell()
    expected = first + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if fortran_order or not shape or dtype.hasobject or path.stat().st_size != expected:
        raise UserError(f"{path}: incomplete or not an array of rows; delete it and run the round again")
    return shape, dtype, first


def _read_ahead(batches: Iterable[tuple[int, Inputs]]) -> Iterator[tuple[int, Inputs]]:
    """The same batches; each is made in a second thread while the one before is in use."""
    iterator = iter(batches)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead") as executor:
        coming = executor.submit(next, iterator, None)
        while (batch := coming.result()) is not None:
            coming = executor.submit(next, iterator, None)
            yield batch
