from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from vabal.errors import UserError
from vabal.images.rows import RowReader, read_rows, shape_of


class Elsewhere:
    """A file that is read by ranges until it is brought here; `asked` counts the ranges behind its header."""

    def __init__(self, path: Path) -> None:
        self.name, self.size = path.name, path.stat().st_size
        self._path = path
        self.asked = 0
        self.brought = False

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        content = self._path.read_bytes()
        self.asked += len(ranges)
        return [content[first : first + size] for first, size in ranges]

    def here(self) -> Path:
        self.brought = True
        return self._path


@pytest.fixture
def far(tmp_path: Path) -> Elsewhere:
    np.save(tmp_path / "features.npy", np.arange(120, dtype=np.float32).reshape(40, 3))
    return Elsewhere(tmp_path / "features.npy")


def test_few_rows_of_a_file_that_lies_elsewhere_are_read_where_it_lies(far: Elsewhere) -> None:
    assert read_rows(far, [7, 0, 39, 7]).tolist() == [[21, 22, 23], [0, 1, 2], [117, 118, 119], [21, 22, 23]]
    assert not far.brought
    assert shape_of(far) == (40, 3)


def test_a_file_of_which_many_rows_are_asked_for_is_brought(far: Elsewhere) -> None:
    rows = np.arange(39, 19, -1)
    assert (read_rows(far, rows) == np.arange(120).reshape(40, 3)[rows]).all()
    assert far.brought
    assert far.asked == 1, "the header alone"


def test_no_rows_at_all_have_the_shape_of_rows(far: Elsewhere) -> None:
    assert read_rows(far, []).shape == (0, 3)


@pytest.mark.parametrize("row", [-1, 40])
def test_a_row_that_is_not_there_is_an_error(far: Elsewhere, row: int) -> None:
    with RowReader(far) as read, pytest.raises(IndexError, match=f"row {row} of 40"):
        read([row])


def test_a_file_that_was_cut_elsewhere_is_refused_in_one_line(far: Elsewhere) -> None:
    far.size -= 4
    with pytest.raises(UserError, match=r"^features\.npy: incomplete[^\n]*$"):
        RowReader(far)
