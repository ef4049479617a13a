"""Two classifiers on the same images: how much better is one, at least? And how often may one holdout be asked?

C classes, each with n_C images; of a class's images the challenger alone was right for `won`, the champion alone for
`lost`, both or neither for `tied`. Every class counts the same, as in balanced accuracy.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

HALF_SPENT_AFTER = 5  # uses of one holdout: after as many, half of the allowed error is spent
_BISECTIONS = 60

Floats = NDArray[np.float64]


class _Null(NamedTuple):
    """What the images would follow if the gain were as small as `gain`, and how far off the observed one then is."""

    gain: Floats
    deviations: Floats


def spent_on(use: int, allowed: float) -> float:
    """The error that the `use`-th use of a holdout may make (from 1), so that all uses together stay below `allowed`.

    After k uses allowed * k / (k + 5) is spent, a spending function as of Lan and DeMets (1983, Biometrika 70); a use
    spends what it adds. The sum bounds the chance that any use errs, whatever depends on whatever (Boole): the same
    images, the same champion, successive models. Raises ValueError for a use below 1.
    """
    if use < 1:
        raise ValueError("uses of a holdout are counted from 1")
    return allowed * HALF_SPENT_AFTER / ((use + HALF_SPENT_AFTER - 1) * (use + HALF_SPENT_AFTER))


def gain_lower_bound(counts_C_3: ArrayLike, error: ArrayLike, *, continuity: bool = True) -> Floats:
    """The lower confidence bound of the mean over the classes of (won - lost) / n, wrong in a share of `error`.

    Tango's score interval for paired proportions (1998, Stat Med 17: 891-908), over strata of equal weight: a gain g
    is in the interval unless the observed gain lies more than z deviations above it, where the deviation is that of the
    likeliest outcomes whose mean gain is g. So images without a single loss still leave room for losses, the more the
    fewer they are, which resampling them does not. `continuity` takes off half of what one image changes, averaged by
    what the classes add to the variance.

    Leading axes of `counts_C_3` (won, lost, tied) and `error` are cases on their own. Raises ValueError for a class
    without images, or an error outside (0, 1/2].
    """
    counts = np.asarray(counts_C_3, dtype=np.float64)
    error = np.asarray(error, dtype=np.float64)
    if counts.ndim < 2 or counts.shape[-1] != 3 or (counts.sum(axis=-1) < 1).any() or (counts < 0).any():
        raise ValueError("expected counts of won, lost and tied images, and at least one image a class")
    if not ((error > 0) & (error <= 0.5)).all():
        raise ValueError("the error must lie above 0 and be at most a half")
    quantile = special.ndtri(1 - error)
    largest = counts.sum(axis=-1).max(axis=-1)
    low, high = np.zeros(counts.shape[:-2]), np.full(counts.shape[:-2], 1 - 1e-9)
    for _ in range(_BISECTIONS):  # of the multiplier's place: from none, the observed gain, to all, a gain of -1
        place = (low + high) / 2
        near = _null(counts, largest * place / (1 - place), continuity).deviations < quantile
        low, high = np.where(near, place, low), np.where(near, high, place)
    return _null(counts, largest * low / (1 - low), continuity).gain


def _null(counts: Floats, multiplier: Floats, continuity: bool) -> _Null:
    """The likeliest outcomes under a smaller gain, by the multiplier of that constraint: the larger, the smaller.

    With multiplier m a class's likeliest shares are won / (s + m), lost / (s - m) and tied / s, where s makes their sum
    1: the largest root of a cubic, at least m, where what is left goes to the images lost.
    """
    won, lost, tied = np.moveaxis(counts, -1, 0)
    images = won + lost + tied
    m = multiplier[..., None]
    s = np.maximum(_largest_root(-images, m * (won - lost) - m**2, m**2 * tied), m)
    s = np.where(s > 0, s, images)
    won_share = won / (s + m)
    lost_share = np.clip(1 - won_share - tied / s, 0, 1)
    gain_C = won_share - lost_share
    weight = 1 / counts.shape[-2]
    variance_C = np.maximum(won_share + lost_share - gain_C**2, 0) / images * weight**2
    variance = variance_C.sum(axis=-1)
    observed = ((won - lost) / images).mean(axis=-1)
    some = variance > 1e-18
    off = observed - gain_C.mean(axis=-1)
    if continuity:
        step = (variance_C * weight / images).sum(axis=-1)
        off = off - np.divide(step, 2 * variance, out=np.zeros_like(step), where=some)
    sure = np.where(off > 0, np.inf, -np.inf)
    return _Null(gain_C.mean(axis=-1), np.divide(off, np.sqrt(variance), out=sure, where=some))


def _largest_root(a: Floats, b: Floats, c: Floats) -> Floats:
    """The largest root of x^3 + a x^2 + b x + c, whose three roots are real."""
    radius = np.sqrt(np.maximum(a**2 - 3 * b, 0)) / 3
    turn = (2 * a**3 - 9 * a * b + 27 * c) / 54
    angle = np.arccos(np.clip(np.divide(turn, radius**3, out=np.zeros_like(turn), where=radius > 0), -1, 1))
    return np.asarray(-2 * radius * np.cos((angle + 2 * np.pi) / 3) - a / 3, dtype=np.float64)
