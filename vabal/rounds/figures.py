"""Pictures of an evaluation, as PNG files whose bytes depend on the numbers alone (no clock, no software version)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vabal.learning.metrics import recalls

# matplotlib, which is no part of the core and takes a while, is imported where something is drawn.
if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NUMBERS = 25  # classes; in a larger matrix numbers cannot be read, colour alone remains
_LONGEST_NAME = 24  # characters
_GAMMA = 0.5  # below 1: a confusion of a few per cent can be seen beside a recall near 1


def confusion_figure(counts_C_C: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draws the confusion matrix: colour is the share of the label's samples (its root), the numbers are counts."""
    from matplotlib.colors import PowerNorm  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    num_classes = len(classes)
    totals_C = counts_C_C.sum(axis=1, keepdims=True)
    share_C_C = np.divide(counts_C_C, totals_C, out=np.zeros(counts_C_C.shape), where=totals_C > 0)
    side = min(18.0, max(5.0, 2.4 + 0.42 * num_classes))
    figure = Figure(figsize=(side + 1.0, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share_C_C, cmap="Blues", norm=PowerNorm(_GAMMA, 0, 1), interpolation="nearest")
    names, size = _names(classes), _font_size(num_classes)
    upright = num_classes > 10 or max(map(len, names)) > 5
    axes.set_xticks(range(num_classes), names, rotation=90 if upright else 0, fontsize=size)
    axes.set_yticks(range(num_classes), names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")
    axes.set_title(f"Confusion matrix, {int(counts_C_C.sum())} samples")
    figure.colorbar(image, ax=axes, label="share of the label's samples", shrink=0.8)
    if num_classes <= _MOST_NUMBERS:
        for row, column in np.argwhere(counts_C_C > 0):
            colour = "white" if share_C_C[row, column] ** _GAMMA > 0.6 else "black"
            number = str(counts_C_C[row, column])
            axes.text(float(column), float(row), number, ha="center", va="center", color=colour, fontsize=size)
    _save(figure, path)


def recall_figure(counts_C_C: NDArray[np.integer], classes: Sequence[str], path: Path) -> None:
    """Draws the recall of each class as a bar, with its number of samples and the mean (balanced accuracy)."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    recall_C, totals_C = recalls(counts_C_C), counts_C_C.sum(axis=1)
    num_classes = len(classes)
    figure = Figure(figsize=(7.0, max(2.4, 1.4 + 0.22 * num_classes)), dpi=100, layout="constrained")
    axes = figure.subplots()
    positions = np.arange(num_classes)
    size = _font_size(num_classes)
    axes.barh(positions, np.nan_to_num(recall_C), color="#4c78a8", height=0.75)
    axes.set_yticks(positions, _names(classes), fontsize=size)
    axes.set_ylim(num_classes - 0.4, -0.6)
    axes.set_xlim(0, 1.18)
    axes.set_xticks(np.linspace(0, 1, 6))
    for position, recall, total in zip(positions, recall_C, totals_C, strict=True):
        text = f"{recall:.2f} of {total}" if total else "no samples"
        axes.text(float(np.nan_to_num(recall)) + 0.01, float(position), text, va="center", fontsize=size)
    if totals_C.sum():
        mean = float(np.nanmean(recall_C))
        axes.axvline(mean, color="#e45756", linewidth=1, zorder=0)
        axes.set_title(f"Recall per class; their mean, balanced accuracy, is {mean:.3f}", fontsize=10)
    axes.set_xlabel("recall")
    _save(figure, path)


def _names(classes: Sequence[str]) -> list[str]:
    # "$" would start matplotlib's mathematical typesetting, and fail on what is no formula.
    short = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in classes]
    return [name.replace("$", r"\$") for name in short]


def _font_size(num_classes: int) -> float:
    return 9.0 if num_classes <= 20 else 8.0 if num_classes <= 40 else 7.0


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})
