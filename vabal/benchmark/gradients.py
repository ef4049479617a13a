"""Histograms of oriented gradients (Dalal and Triggs 2005): what a shallow baseline sees of an image.

Axes: N images, H x W pixels, K channels, R x S cells, O orientations.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ORIENTATIONS = 9  # over half a turn: a gradient and its opposite are the same
BLOCK = 2  # cells a side of a block, in which contrast is evened out
CELLS = 8  # a side of an image, where it is large enough
_LEAST_CELL = 2  # pixels
_CLIP = 0.2  # of L2-Hys
_SMALL = 1e-5


def cell_size(size: int) -> int:
    """Pixels a side of a cell: an eighth of the image, as 8 of 64, and at least two."""
    return max(_LEAST_CELL, size // CELLS)


def histograms(images_N_H_W_K: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The histograms of each image, block by block, as one row of numbers.

    Of several channels each pixel takes the one with the strongest gradient. A gradient votes by its magnitude for the
    two orientations next to its own. Blocks overlap, and are scaled by L2-Hys. Pixels beyond the last whole cell are
    left out.
    """
    strength_N_H_W, turn_N_H_W = _gradients(images_N_H_W_K)
    cell = cell_size(images_N_H_W_K.shape[1])
    below = np.floor(turn_N_H_W - 0.5)
    share = (turn_N_H_W - 0.5 - below).astype(np.float32)
    lower = below.astype(np.int64) % ORIENTATIONS
    cells = []
    for orientation in range(ORIENTATIONS):
        votes = np.where(lower == orientation, 1 - share, 0) + np.where(
            (lower + 1) % ORIENTATIONS == orientation, share, 0
        )
        cells.append(_summed(votes * strength_N_H_W, cell))
    return _blocks(np.stack(cells, axis=-1))


def _gradients(images_N_H_W_K: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Magnitude and direction, in units of an orientation's width, by central differences; zero across the border."""
    values = images_N_H_W_K.astype(np.float32) / 255
    down, right = np.zeros_like(values), np.zeros_like(values)
    down[:, 1:-1] = values[:, 2:] - values[:, :-2]
    right[:, :, 1:-1] = values[:, :, 2:] - values[:, :, :-2]
    strength = np.hypot(down, right)
    strongest = strength.argmax(axis=-1)[..., None]
    down, right, strength = (np.take_along_axis(item, strongest, -1)[..., 0] for item in (down, right, strength))
    turn = np.arctan2(down, right) % np.float32(np.pi) * np.float32(ORIENTATIONS / np.pi)
    return strength, turn.astype(np.float32)


def _summed(values_N_H_W: NDArray[Any], cell: int) -> NDArray[np.float32]:
    count, height, width = values_N_H_W.shape
    rows, columns = height // cell, width // cell
    whole = values_N_H_W[:, : rows * cell, : columns * cell].reshape(count, rows, cell, columns, cell)
    return np.asarray(whole.sum(axis=(2, 4)), dtype=np.float32)


def _blocks(cells_N_R_S_O: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every block of neighbouring cells, scaled to length 1, clipped, and scaled again."""
    count, rows, columns, _ = cells_N_R_S_O.shape
    side = min(BLOCK, rows, columns)
    found = []
    for row in range(rows - side + 1):
        for column in range(columns - side + 1):
            block = cells_N_R_S_O[:, row : row + side, column : column + side].reshape(count, -1)
            clipped = np.minimum(block / _length(block), _CLIP)
            found.append(clipped / _length(clipped))
    return np.concatenate(found, axis=1)


def _length(rows_N_B: NDArray[np.float32]) -> NDArray[np.float32]:
    length_N: NDArray[np.float32] = np.sqrt(np.square(rows_N_B).sum(axis=1, keepdims=True) + np.float32(_SMALL**2))
    return length_N
