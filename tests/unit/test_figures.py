import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vabal.figures import confusion_figure, recall_figure


def counts(classes: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.integers(0, 3, size=(classes, classes)) + np.diag(generator.integers(5, 60, size=classes))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_figures_are_drawn_large_enough_for_their_classes_and_carry_no_clock_or_version(
    classes: int, tmp_path: Path
) -> None:
    names = [f"class {index}" for index in range(classes)]
    for draw in (confusion_figure, recall_figure):
        draw(counts(classes), names, tmp_path / "a.png")
        draw(counts(classes), names, tmp_path / "b.png")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
        with Image.open(tmp_path / "a.png") as image:
            assert set(image.info) <= {"dpi"}
            assert image.height >= 7 * classes  # pixels a class
            assert max(image.size) <= 2500


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
        "import sys, numpy as np, pathlib; from vabal.figures import confusion_figure;"
        f"confusion_figure(np.eye(2, dtype=int), ['a', 'b'], pathlib.Path({str(tmp_path / 'a.png')!r}));"
        "print('matplotlib.pyplot' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "False", result.stderr
