import math
from typing import Any

import numpy as np
import pytest

from vabal.benchmark.gradients import BLOCK, ORIENTATIONS, cell_size, histograms


def slow_histograms(image_H_W_K: Any) -> list[float]:
    """Pixel by pixel, cell by cell, block by block, in Dalal and Triggs' words."""
    values = image_H_W_K.astype(float) / 255
    height, width, channels = values.shape
    cell = cell_size(height)
    rows, columns = height // cell, width // cell
    cells = np.zeros((rows, columns, ORIENTATIONS))
    for y in range(rows * cell):
        for x in range(columns * cell):
            best = (-1.0, 0.0)
            for k in range(channels):
                down = values[y + 1, x, k] - values[y - 1, x, k] if 0 < y < height - 1 else 0.0
                right = values[y, x + 1, k] - values[y, x - 1, k] if 0 < x < width - 1 else 0.0
                strength = math.hypot(down, right)
                if strength > best[0]:
                    best = (strength, math.atan2(down, right) % math.pi)
            place = best[1] / math.pi * ORIENTATIONS - 0.5  # the first orientation's middle is at 10 degrees
            lower = math.floor(place)
            for orientation, share in ((lower, 1 - (place - lower)), (lower + 1, place - lower)):
                cells[y // cell, x // cell, orientation % ORIENTATIONS] += share * best[0]
    found: list[float] = []
    for row in range(rows - BLOCK + 1):
        for column in range(columns - BLOCK + 1):
            block = cells[row : row + BLOCK, column : column + BLOCK].ravel()
            block = np.minimum(block / math.sqrt((block**2).sum() + 1e-10), 0.2)
            found += list(block / math.sqrt((block**2).sum() + 1e-10))
    return found


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (2, 16, 16, 3), (1, 37, 37, 1)])
def test_histograms_agree_with_a_slow_reading_of_the_paper(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = histograms(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [slow_histograms(image) for image in images], atol=2e-5)


def test_a_ramp_to_the_right_votes_half_for_each_of_the_two_orientations_beside_it() -> None:
    ramp = np.broadcast_to(np.arange(0, 160, 10, dtype=np.uint8)[None, None, :, None], (1, 16, 16, 1))
    first = histograms(ramp)[0][:ORIENTATIONS]
    assert np.flatnonzero(first).tolist() == [0, ORIENTATIONS - 1]
    assert first[0] == pytest.approx(first[-1])


def test_a_flat_image_has_no_gradients_and_no_number_that_is_not_finite() -> None:
    assert not histograms(np.full((1, 16, 16, 1), 200, dtype=np.uint8)).any()
