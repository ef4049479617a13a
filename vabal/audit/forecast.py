"""What the next labels would buy: the real rounds' learning curve, continued.

Errors of classifiers fall about as powers of the number of labels (Hestness et al. 2017, arXiv:1712.00409): the
logarithm of the error is a line over that of the labels. It starts near chance with a label a class, and a curve walks
away from it, by more where errors are few. That is a Gaussian process about a line, whose few constants stand for the
curves of `python -m benchmarks.forecast`, which also measures how often the intervals hold. What is forecast is what
the model will come to on the same holdout, less what the newest came to. Axis: K rounds.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from scipy import special

from vabal.audit.curve import DEVIATIONS, curve
from vabal.errors import UserError

MEASURE: Final = "balanced_accuracy"
CONFIDENCE: Final = 0.9
TIMES: Final = (1, 2, 5)  # the asked number of labels, and multiples of it


class Point(NamedTuple):
    """A round: labels, what its model came to on the holdout and how sure that is (a standard deviation), the classes
    and the images there."""

    labels: int
    value: float
    deviation: float
    classes: int
    images: int


class Prior(NamedTuple):
    """Standard deviations are of the error's logarithm, but for `walk`, which has the root of the error below it."""

    slope: float  # of the line: its mean ...
    slopes: float  # ... and its standard deviation
    start: float  # how far a curve is from chance with a label a class
    walk: float  # how far it walks from the line while the labels grow by a factor of e
    noise: float  # the holdout's share (of a variance) that is not the same from round to round
    weight: float  # as many rounds' worth all this is known


PRIOR: Final = Prior(slope=0.3, slopes=1.0, start=0.1, walk=0.09, noise=0.25, weight=6.0)


class Gain(NamedTuple):
    """What is expected, and the ends of the interval that holds it with `CONFIDENCE`."""

    expected: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """What `ahead` more labels would buy, in shares of 1, from `rounds` rounds of which the newest has `labels`."""

    labels: int
    value: float
    rounds: int
    ahead: int
    expected: float
    low: float
    high: float

    def __str__(self) -> str:
        interval = f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"
        return f"the next {self.ahead} labels: {100 * self.expected:+.1f} points ({interval})"

    def to_json(self) -> dict[str, Any]:
        return {"measure": MEASURE, "confidence": CONFIDENCE, **asdict(self)}


def forecast(data: Path, ahead: int) -> list[Forecast]:
    """For `ahead` labels and multiples of it. Raises UserError where no round has measured anything."""
    known = points(data)
    if not known:
        raise UserError("nothing to forecast from: no round's model was measured on a labelled holdout (`vabal round`)")
    return of_curve(known, ahead)


def points(data: Path, up_to: int | None = None) -> list[Point]:
    """The curve's, as far as they were measured on a labelled holdout. Of several rounds that learned from as many
    labels, the last counts. Raises UserError if a file is missing or damaged."""
    known = []
    for row in curve(data, up_to):
        value, low, high = (row[MEASURE][name] for name in ("value", "low", "high"))
        if low is not None:
            known.append(Point(row["labels"], value, (high - low) / DEVIATIONS, row["classes"], row["holdout"]))
    return _the_last(known)


def _the_last(known: Iterable[Point]) -> list[Point]:
    return list({point.labels: point for point in known}.values())


def of_curve(known: Iterable[Point], ahead: int) -> list[Forecast]:
    """The same from a curve's points."""
    kept = _the_last(known)
    newest = kept[-1]
    now = newest.labels, newest.value, len(kept)
    return [Forecast(*now, times * ahead, *gain(kept, times * ahead)) for times in TIMES]


def gain(points: Iterable[Point], ahead: int, prior: Prior = PRIOR) -> Gain:
    """What `ahead` labels would add to the last point. An error of nothing counts as half an image.

    Raises ValueError without a point, or for labels that are not positive.
    """
    labels_K, value_K, deviation_K, classes_K, images_K = np.array(list(points), dtype=np.float64).reshape(-1, 5).T
    if not len(labels_K) or labels_K.min() <= 0 or ahead <= 0:
        raise ValueError("a forecast needs a round, with labels, and labels to come")
    error_K, classes = np.maximum(1 - value_K, 0.5 / images_K), max(classes_K[-1], 2)
    # The points, behind that of chance and before the one to come (Rasmussen and Williams 2006, Eqs. 2.25 and 2.26, and
    # 2.42 for the line; Shah, Wilson and Ghahramani 2014 for Student's t, where the scale of it all is not known).
    at = np.log(np.concatenate([[classes], labels_K, [labels_K[-1] + ahead]]))
    over = at - at.min()
    holdout_K = prior.noise * (deviation_K / error_K) ** 2
    spread = np.diag(np.concatenate([[prior.start**2], holdout_K, holdout_K[-1:]]))
    spread += prior.walk**2 / error_K[-1] * np.minimum(over[:, None], over)
    spread += 100 + prior.slopes**2 * np.outer(over, over)  # the line's height is free
    line = -prior.slope * over
    off = np.log(np.concatenate([[1 - 1 / classes], error_K])) - line[:-1]
    towards = np.linalg.solve(spread[:-1, :-1], spread[:-1, -1])
    freedom = prior.weight + len(error_K)
    squares = prior.weight + off @ np.linalg.solve(spread[:-1, :-1], off)
    scale = np.sqrt(squares / freedom * (spread[-1, -1] - towards @ spread[:-1, -1]))
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * scale
    then = np.minimum(np.exp(line[-1] + towards @ off + np.array([0.0, half, -half])), 1.0)
    return Gain(*(float(value) for value in error_K[-1] - then))
