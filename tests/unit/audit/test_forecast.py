"""What the next labels would buy: beside the formulas written out, and on curves whose law is known."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from tests.support.small_books import build, forge
from vabal.audit.forecast import CONFIDENCE, Point, Prior, forecast, gain, of_curve
from vabal.errors import UserError

PLAIN = Prior(slope=0.4, slopes=0.2, start=0.3, walk=0.05, noise=0.5, weight=6.0)


def test_the_forecast_is_a_gaussian_regression_in_logarithms_written_out() -> None:
    """Chance and two points are known; a line's height and slope, a walk, and the holdout's noise."""
    points = [Point(40, 0.5, 0.05, 4, 200), Point(80, 0.6, 0.04, 4, 200)]
    at = [0.0, np.log(10), np.log(20), np.log(40)]  # beyond four labels
    noise = [0.3**2, 0.5 * (0.05 / 0.5) ** 2, 0.5 * (0.04 / 0.4) ** 2, 0.5 * (0.04 / 0.4) ** 2]
    spread = [
        [100 + 0.2**2 * a * b + 0.05**2 / 0.4 * min(a, b) + (noise[i] if i == j else 0) for j, b in enumerate(at)]
        for i, a in enumerate(at)
    ]
    off = np.log([0.75, 0.5, 0.4]) + 0.4 * np.array(at[:3])
    inverse, covers = np.linalg.inv(np.array(spread)[:3, :3]), np.array(spread)[:3, 3]
    expected = -0.4 * at[3] + covers @ inverse @ off
    scale = (spread[3][3] - covers @ inverse @ covers) * (6 + off @ inverse @ off) / 8
    half = stats.t.ppf(0.95, 8) * scale**0.5
    told = gain(points, 80, PLAIN)
    assert told == pytest.approx([0.4 - np.exp(expected + sign * half) for sign in (0, 1, -1)], rel=1e-6)


def test_many_exact_points_on_a_power_law_outweigh_what_was_known_before() -> None:
    points = [Point(labels, 1 - 3 * labels**-0.4, 1e-4, 4, 10**6) for labels in range(100, 3100, 100)]
    told = gain(points, 1000, Prior(1.5, 2.0, 3.0, 0.001, 0.5, 2.0))
    law = 3 * 3000**-0.4 - 3 * 4000**-0.4
    assert told.expected == pytest.approx(law, rel=0.05)
    assert told.low < law < told.high


def test_the_interval_holds_what_comes_as_often_as_it_says_where_curves_are_as_it_takes_them() -> None:
    random, held, curves = np.random.default_rng(0), 0, 2000
    labels = np.array([50, 100, 150, 200, 250])
    over = np.log(labels / 4)
    for _ in range(curves):
        scale = np.sqrt(PLAIN.weight / random.chisquare(PLAIN.weight))
        slope = PLAIN.slope + scale * PLAIN.slopes * random.normal()
        steps = np.sqrt(np.diff(over, prepend=0.0)) * random.normal(size=5)
        error = 0.75 * np.exp(
            scale * PLAIN.start * random.normal() - slope * over + scale * 0.05 / 0.5 * np.cumsum(steps)
        )
        error = np.minimum(error, 0.99)
        points = [Point(int(count), 1 - wrong, 1e-6, 4, 10**9) for count, wrong in zip(labels, error, strict=True)]
        told = gain(points[:4], 50, PLAIN._replace(walk=0.1 * error[3] ** 0.5))
        held += told.low <= error[3] - error[4] <= told.high
    assert abs(held / curves - CONFIDENCE) < 0.02


def test_no_error_and_nothing_but_errors_are_no_trouble() -> None:
    told = gain([Point(50, 1.0, 0.01, 3, 40), Point(100, 1.0, 0.01, 3, 40)], 50)
    assert -1.0 <= told.low < 0.0 < told.high <= 0.5 / 40
    assert 0.0 <= gain([Point(50, 0.0, 0.01, 1, 40)], 10**9).high <= 1.0


def test_the_further_the_wider_and_of_rounds_without_new_labels_the_last_counts() -> None:
    points = [Point(50, 0.5, 0.03, 3, 90), Point(100, 0.55, 0.03, 3, 90), Point(100, 0.6, 0.03, 3, 90)]
    told = of_curve(points, 20)
    assert told == of_curve([points[0], points[2]], 20)
    assert [(each.labels, each.value, each.rounds) for each in told] == [(100, 0.6, 2)] * 3
    assert all(later.high - later.low > each.high - each.low for each, later in pairwise(told))


@pytest.mark.parametrize(
    ("points", "ahead"), [([], 10), ([Point(0, 0.5, 0.1, 2, 9)], 10), ([Point(9, 0.5, 0.1, 2, 9)], 0)]
)
def test_nothing_to_forecast_from_or_for_is_refused(points: list[Point], ahead: int) -> None:
    with pytest.raises(ValueError, match="a forecast needs"):
        gain(points, ahead)


def test_the_record_is_continued_from_its_newest_round(tmp_path_factory: pytest.TempPathFactory) -> None:
    books = build(tmp_path_factory.mktemp("books"))
    told = forecast(books.data, 10)
    assert [(each.labels, each.rounds, each.ahead) for each in told] == [(14, 3, 10), (14, 3, 20), (14, 3, 50)]
    assert str(told[0]).startswith("the next 10 labels: ")
    for number in (1, 2, 3):
        (books.data / f"rounds/{number:04d}/holdout_predictions.parquet").unlink()
        forge(books, number, metrics=None)
    with pytest.raises(UserError, match="nothing to forecast from"):
        forecast(books.data, 10)
