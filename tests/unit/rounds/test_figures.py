import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vabal.rounds.figures import confusion_figure, recall_figure


def counts(classes: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 3, size=(classes, classes)) + np.diag(generator.integers(5, 60, size=classes))


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("draw", [confusion_figure, recall_figure])
def test_figures_are_large_enough_for_their_classes_and_no_larger_than_a_screen(
    classes: int, draw: Callable[..., None], tmp_path: Path
) -> None:
    draw(counts(classes), [f"class {index}" for index in range(classes)], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.height >= 15 * classes  # pixels a class
        assert max(image.size) <= 2500


@pytest.mark.parametrize("draw", [confusion_figure, recall_figure])
def test_the_same_numbers_are_the_same_bytes_with_no_clock_or_version_in_them(
    draw: Callable[..., None], tmp_path: Path
) -> None:
    for name in ("a.png", "b.png"):
        draw(counts(3), ["a", "b", "c"], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert set(image.info) == {"dpi"}


def test_other_numbers_make_another_picture(tmp_path: Path) -> None:
    one, other = counts(3), counts(3)
    other[0, 1] += 5
    for draw in (confusion_figure, recall_figure):
        draw(one, ["a", "b", "c"], tmp_path / "a.png")
        draw(other, ["a", "b", "c"], tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_classes_without_samples_and_odd_names_are_drawn(tmp_path: Path) -> None:
    sparse = np.array([[3, 0, 0], [0, 0, 0], [1, 0, 2]])
    names = ["$\\frac$ $", "a very long name of a class that would fill the page", "Öl & Rost_<2>"]
    for draw in (confusion_figure, recall_figure):
        draw(sparse, names, tmp_path / "a.png")
        draw(np.zeros((3, 3), dtype=int), names, tmp_path / "a.png")


def test_drawing_needs_no_display_and_touches_no_global_figure(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, pathlib; from vabal.rounds.figures import confusion_figure;"
        f"confusion_figure(np.eye(2, dtype=int), ['a', 'b'], pathlib.Path({str(tmp_path / 'a.png')!r}));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "False", result.stderr
