"""Rows of `.npy` files, written and read front to back or one by one: memory does not grow with the file.

Files are appended to and read at offsets, never mapped: the pages of a mapped file count as resident memory. A file
may lie elsewhere (`files.Remote`): few of its rows are read by ranges, many after it was brought here.
"""

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.files import Remote

_MANY: Final = 8  # one row in so many, and the whole file is brought here
_HEADER: Final = 1024  # bytes of a file that lies elsewhere, in which its header ends


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
        shape, dtype, _ = _header(file, str(path), path.stat().st_size)
        per_row = int(np.prod(shape[1:], dtype=np.int64))
        for start in range(0, shape[0], batch_size):
            count = min(batch_size, shape[0] - start)
            yield start, np.fromfile(file, dtype, count * per_row).reshape(count, *shape[1:])


class RowReader:
    """Reads rows of a `.npy` file, one by one, in any order: for few rows at a time of a large file.

    Of a memory map every page that was ever touched stays resident, here nothing does. Of a file that lies elsewhere
    few rows are read where it lies; where many are asked for, the file is brought here. A context manager. Raises
    UserError for a damaged file.
    """

    def __init__(self, place: Path | Remote) -> None:
        self._remote: Remote | None = None
        self._file: BinaryIO | None = None
        if isinstance(place, Path):
            self._bring(place)
            return
        self._remote, self._name = place, place.name
        (begin,) = place.read([(0, min(_HEADER, place.size))])
        self._shape, self._dtype, self._first = _header(io.BytesIO(begin), place.name, place.size)

    def _bring(self, path: Path) -> None:
        self._name = path.name
        self._file = _open(path)
        try:
            self._shape, self._dtype, self._first = _header(self._file, str(path), path.stat().st_size)
        except UserError:
            self._file.close()
            raise

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array in the file."""
        return self._shape

    def __enter__(self) -> "RowReader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def __call__(self, rows_N: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
        """These rows, in the order given. Raises IndexError for one that is not there."""
        values = np.empty((len(rows_N), *self._shape[1:]), self._dtype)
        size = self._dtype.itemsize * int(np.prod(self._shape[1:], dtype=np.int64))
        rows = np.asarray(rows_N, dtype=np.int64).tolist()
        for row in rows:
            if not 0 <= row < self._shape[0]:
                raise IndexError(f"{self._name}: row {row} of {self._shape[0]}")
        into = values.view(np.uint8).reshape(len(rows_N), size)
        if self._file is None and self._remote is not None:
            if _MANY * len(rows) < self._shape[0]:
                found = self._remote.read([(self._first + row * size, size) for row in rows])
                for position, content in enumerate(found):
                    into[position] = np.frombuffer(content, np.uint8)
                return values
            self._bring(self._remote.here())
        assert self._file is not None  # noqa: S101 -- it was opened, or brought above
        for position, row in enumerate(rows):
            if os.preadv(self._file.fileno(), [into[position]], self._first + row * size) != size:
                raise UserError(f"{self._name}: became shorter while it was read; run the round again")
        return values


def read_rows(place: Path | Remote, rows_N: Sequence[int] | NDArray[np.integer]) -> NDArray[Any]:
    """These rows of the `.npy` file, as a `RowReader` reads them."""
    with RowReader(place) as read:
        return read(rows_N)


def shape_of(place: Path | Remote) -> tuple[int, ...]:
    """The shape of the array in the `.npy` file. Raises UserError for a damaged or unfinished file."""
    with RowReader(place) as read:
        return read.shape


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; run the round again to make it anew") from None


def _header(file: BinaryIO, name: str, size: int) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and the first number's offset; the file's size must be what they say."""
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of the format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise UserError(f"{name}: not an array of rows; delete it and run the round again") from None
    first = file.tell()
    expected = first + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if fortran_order or not shape or dtype.hasobject or size != expected:
        raise UserError(f"{name}: incomplete or not an array of rows; delete it and run the round again")
    return shape, dtype, first
