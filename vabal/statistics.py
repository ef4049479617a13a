"""What is said about a handful of numbers: means with intervals, paired tests, ranks, curves.

Every function takes plain arrays, one number a seed (or a class, or a round), and is deterministic: where chance is
needed, its seed is fixed. What cannot be known from so few numbers is None, never NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

MAIN = "balanced_accuracy"  # the metric that a benchmark compares by
CONFIDENCE = 0.95
SHARE, GAIN = (0.0, 1.0), (-1.0, 1.0)  # what a share can be, and the difference of two
MOST_EXACT = 15  # differences; up to here all 2^n sign flips are counted
RANDOM_FLIPS = 2**15
RESAMPLES = 10_000
RESAMPLED_CURVES = 1_000
FEWEST_FOR_BOOTSTRAP = 5
_SEED = 20200101
_SAME = 1e-12  # a spread or a mean of shares that only rounding made
_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)


@dataclass(frozen=True)
class Estimate:
    """A mean of n values, their standard deviation, and the 95 % interval of the mean (Student's t)."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Difference(Estimate):
    """The mean of n matched differences, with three paired tests that all are two-sided."""

    bootstrap_low: float | None
    bootstrap_high: float | None
    p: float  # sign-flip permutation test
    wilcoxon_p: float | None
    t_p: float | None  # Student's


Range = tuple[float, float]


def estimate(values: ArrayLike, possible: Range | None = None) -> Estimate:
    """Mean, spread and interval, clipped to what is `possible`. Raises ValueError without values."""
    values_N = np.asarray(values, dtype=np.float64)
    if not len(values_N):
        raise ValueError("the mean of no values")
    n, mean = len(values_N), float(values_N.mean())
    if n == 1:
        return Estimate(n, mean, None, None, None)
    sd = float(values_N.std(ddof=1))
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * sd / n**0.5
    least, most = possible or (-np.inf, np.inf)
    return Estimate(n, mean, sd, max(mean - half, least), min(mean + half, most))


def difference(differences: ArrayLike, possible: Range | None = None) -> Difference:
    """What matched differences say, the interval clipped to what is `possible`. Raises ValueError without any."""
    differences_N = np.asarray(differences, dtype=np.float64)
    known = estimate(differences_N, possible)
    low, high = bootstrap_interval(differences_N) or (None, None)
    return Difference(
        known.n,
        known.mean,
        known.sd,
        known.low,
        known.high,
        low,
        high,
        sign_flip_p(differences_N),
        wilcoxon_p(differences_N),
        student_p(differences_N),
    )


def bootstrap_interval(values: ArrayLike) -> tuple[float, float] | None:
    """The percentile interval of the mean, resampled with a fixed seed; None below five values."""
    values_N = np.asarray(values, dtype=np.float64)
    if len(values_N) < FEWEST_FOR_BOOTSTRAP:
        return None
    low, high = np.quantile(values_N[_resamples_B_N(len(values_N))].mean(axis=1), _ENDS)
    return float(low), float(high)


def sign_flip_p(differences: ArrayLike) -> float:
    """Two-sided p of the hypothesis that every matched difference is symmetric about zero.

    Counts the flips of signs whose sum is at least as far from zero as the observed one: all 2^n of them for n <= 15;
    beyond, 2^15 random ones and the observed one, so that p is never zero. The smallest p of an exact test is 2 / 2^n.
    """
    differences_N = np.asarray(differences, dtype=np.float64)
    n = len(differences_N)
    sums_F = np.abs(_flips_F_N(n) @ differences_N)
    # Sums that are equal on paper differ in their last bits.
    observed = abs(differences_N.sum()) - 1e-12 * np.abs(differences_N).sum()
    as_far = int((sums_F >= observed).sum())
    return as_far / 2**n if n <= MOST_EXACT else (as_far + 1) / (RANDOM_FLIPS + 1)


@lru_cache(maxsize=4)
def _resamples_B_N(n: int) -> NDArray[np.int64]:
    return np.random.default_rng(_SEED).integers(0, n, size=(RESAMPLES, n))


@lru_cache(maxsize=4)
def _flips_F_N(n: int) -> NDArray[np.float64]:
    if n <= MOST_EXACT:
        bits_F_N = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        bits_F_N = np.random.default_rng(_SEED).integers(0, 2, size=(RANDOM_FLIPS, n))
    return np.where(bits_F_N, 1.0, -1.0)


def wilcoxon_p(differences: ArrayLike) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test without the zero differences; None where all are zero."""
    differences_N = np.asarray(differences, dtype=np.float64)
    nonzero_N = differences_N[differences_N != 0]
    if not len(nonzero_N):
        return None
    return float(stats.wilcoxon(nonzero_N).pvalue)


def student_p(differences: ArrayLike) -> float | None:
    """Two-sided p of Student's paired test; None below two differences, or where they do not vary but are not zero."""
    known = estimate(differences)
    if known.sd is None:
        return None
    if known.sd <= _SAME:
        return 1.0 if abs(known.mean) <= _SAME else None
    t = known.mean / (known.sd / known.n**0.5)
    return float(2 * special.stdtr(known.n - 1, -abs(t)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction of several tests: the family-wise error is kept, in any dependence of the tests."""
    corrected: dict[str, float] = {}
    largest = 0.0
    for done, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        largest = max(largest, min(1.0, (len(p_values) - done) * p_values[name]))
        corrected[name] = largest
    return corrected


def area_under_curve(labeled_R: ArrayLike, values_R: ArrayLike) -> float:
    """The trapezoid area over the range of labels, divided by that range: a mean height. One round: its value."""
    labels, values = np.asarray(labeled_R, dtype=np.float64), np.asarray(values_R, dtype=np.float64)
    if len(labels) == 1:
        return float(values[0])
    return float(np.trapezoid(values, labels) / (labels[-1] - labels[0]))


def labels_to_reach(labeled_R: ArrayLike, values_R: ArrayLike, target: float) -> float | None:
    """The labels at which a curve, linear between its rounds, first reaches the target; None if it never does."""
    labels, values = np.asarray(labeled_R, dtype=np.float64), np.asarray(values_R, dtype=np.float64)
    reached = np.flatnonzero(values >= target - 1e-12)
    if not len(reached):
        return None
    after = int(reached[0])
    if after == 0:
        return float(labels[0])
    share = (target - values[after - 1]) / (values[after] - values[after - 1])
    return float(labels[after - 1] + min(1.0, share) * (labels[after] - labels[after - 1]))


def labels_apart(
    labeled_R: ArrayLike, mine_S_R: ArrayLike, theirs_S_R: ArrayLike
) -> tuple[float | None, tuple[float | None, float | None] | None]:
    """How many labels fewer the mean of my curves takes than the mean of theirs for the value at which theirs ends.

    Also its percentile interval over resampled seeds (S, matched; None below five). A curve that never gets there takes
    an unknown number: the mean is None then, and so is an end of the interval that lies among such resamples.
    """
    mine, theirs = np.asarray(mine_S_R, dtype=np.float64), np.asarray(theirs_S_R, dtype=np.float64)

    def saved(mine_R: NDArray[np.float64], theirs_R: NDArray[np.float64]) -> float:
        needed, reference = (labels_to_reach(labeled_R, curve_R, float(theirs_R[-1])) for curve_R in (mine_R, theirs_R))
        return -np.inf if needed is None or reference is None else reference - needed

    found = saved(mine.mean(axis=0), theirs.mean(axis=0))
    mean = None if np.isinf(found) else found
    if len(mine) < FEWEST_FOR_BOOTSTRAP:
        return mean, None
    seeds_B_S = _resamples_B_N(len(mine))[:RESAMPLED_CURVES]
    resampled = np.sort(
        [saved(*curves) for curves in zip(mine[seeds_B_S].mean(1), theirs[seeds_B_S].mean(1), strict=True)]
    )
    ends = [float(resampled[round(share * (len(resampled) - 1))]) for share in _ENDS]
    low, high = (None if np.isinf(end) else end for end in ends)
    return mean, (low, high)


def rank_correlation(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    """Spearman's correlation over the places where both are known; None below three, or where one does not vary."""
    known = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if len(known) < 3:
        return None
    ranks_2_K = stats.rankdata(np.asarray(known, dtype=np.float64).T, axis=1)
    if (np.ptp(ranks_2_K, axis=1) == 0).any():
        return None
    return float(np.corrcoef(ranks_2_K)[0, 1])


def mean_ranks(values_B_S: ArrayLike) -> NDArray[np.float64]:
    """The mean rank of each of S rivals over B blocks, as Friedman's test has it: 1 is the highest; ties share."""
    ranks_B_S = stats.rankdata(-np.asarray(values_B_S, dtype=np.float64), axis=1)
    return np.asarray(ranks_B_S.mean(axis=0), dtype=np.float64)
