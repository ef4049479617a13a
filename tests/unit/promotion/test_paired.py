"""The bound of the gate, and what a hundred nights on one holdout do to it."""

import time
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, special

from vabal.promotion.paired import gain_lower_bound, spent_on

NIGHTS = 100


# -- what a use may spend -------------------------------------------------------------------------------------------


def test_the_first_uses_spend_the_most_and_all_together_never_more_than_is_allowed() -> None:
    assert [spent_on(use, 0.06) for use in (1, 2, 3)] == pytest.approx([0.01, 0.06 * 5 / 42, 0.06 * 5 / 56])
    spent = np.cumsum([spent_on(use, 0.05) for use in range(1, 10_001)])
    assert spent[4] == pytest.approx(0.025)  # half of it in five uses
    assert spent[NIGHTS - 1] == pytest.approx(0.05 * 100 / 105)
    assert 0.0499 < spent[-1] < 0.05
    with pytest.raises(ValueError, match="counted from 1"):
        spent_on(0, 0.05)


# -- the bound against numbers that are known -----------------------------------------------------------------------


def test_one_class_has_tangos_interval_as_published() -> None:
    # Bentur et al. (2009), 21 pairs of which 1 and 7 are discordant: Tango's 95 % interval is -0.517 to -0.026
    # (Fagerland, Lydersen and Laake 2014, Stat Med 33: 2850-2875).
    low = gain_lower_bound([[1, 7, 13]], 0.025, continuity=False)
    high = -gain_lower_bound([[7, 1, 13]], 0.025, continuity=False)
    assert (float(low), float(high)) == pytest.approx((-0.517, -0.026), abs=0.0005)


def test_images_without_a_difference_have_the_wilson_bound_by_hand() -> None:
    # Nothing lost in 20: as much may be lost as Wilson's upper bound of 0 of 20 says, z^2 / (20 + z^2).
    z = 1.6448536269514722
    assert float(gain_lower_bound([[0, 0, 20]], 0.05, continuity=False)) == pytest.approx(-(z**2) / (20 + z**2))
    # Half an image is 1/40: x is the loss at which (x - 1/40)^2 = z^2 x (1 - x) / 20.
    a, b, c = 1 + z**2 / 20, -(1 / 20 + z**2 / 20), 1 / 1600
    by_hand = (-b + np.sqrt(b**2 - 4 * a * c)) / (2 * a)
    assert float(gain_lower_bound([[0, 0, 20]], 0.05)) == pytest.approx(-by_hand)


def test_on_the_bound_of_no_gain_the_deviation_is_mcnemars() -> None:
    # 33 won, 12 lost: McNemar's z is 21 / sqrt(45), with half an image taken off 20.5 / sqrt(45).
    for continuity, z in ((False, 21 / np.sqrt(45)), (True, 20.5 / np.sqrt(45))):
        bound = gain_lower_bound([[33, 12, 315]], special.ndtr(-z), continuity=continuity)
        assert float(bound) == pytest.approx(0, abs=1e-9)


def slow_bound(counts_C_3: list[list[int]], error: float) -> float:
    """The same by a general optimiser: the likeliest shares under each smaller gain, then the gain that fits."""
    counts, z = np.array(counts_C_3, dtype=float), special.ndtri(1 - error)
    images_C = counts.sum(axis=1)
    observed = ((counts[:, 0] - counts[:, 1]) / images_C).mean()

    def shares(flat: NDArray[np.float64]) -> NDArray[np.float64]:
        won_lost_C_2 = flat.reshape(-1, 2)
        return np.column_stack([won_lost_C_2, 1 - won_lost_C_2.sum(axis=1)])

    def off(gain: float) -> float:
        fitted = optimize.minimize(
            lambda flat: -special.xlogy(counts, np.maximum(shares(flat), 1e-300)).sum(),
            np.full(2 * len(counts), 0.3) - np.tile([0.2, 0.0], len(counts)),
            method="SLSQP",
            bounds=[(1e-9, 1)] * (2 * len(counts)),
            constraints=[
                {"type": "eq", "fun": lambda flat: (shares(flat)[:, 0] - shares(flat)[:, 1]).mean() - gain},
                {"type": "ineq", "fun": lambda flat: shares(flat)[:, 2] - 1e-9},
            ],
            options={"ftol": 1e-12, "maxiter": 1000},
        )
        found = shares(fitted.x)
        variance_C = found[:, 0] + found[:, 1] - (found[:, 0] - found[:, 1]) ** 2
        return float((observed - gain) / np.sqrt((variance_C / images_C).sum() / len(counts) ** 2) - z)

    return float(optimize.brentq(off, -0.95, observed - 1e-6, xtol=1e-6))


@pytest.mark.parametrize(
    ("counts", "error"),
    [
        ([[5, 2, 30], [3, 4, 13]], 0.01),
        ([[12, 3, 85], [0, 0, 10]], 0.005),
        ([[6, 1, 30], [2, 0, 40], [1, 5, 60]], 0.001),
    ],
)
def test_the_bound_is_that_of_a_slow_and_obvious_search(counts: list[list[int]], error: float) -> None:
    assert float(gain_lower_bound(counts, error, continuity=False)) == pytest.approx(
        slow_bound(counts, error), abs=2e-4
    )


def test_a_small_class_without_a_loss_still_leaves_room_for_losses() -> None:
    # Resampling ten images that all stayed as they were would call the second class certain.
    dense = float(gain_lower_bound([[150, 20, 830], [0, 0, 1000]], 0.01))
    sparse = float(gain_lower_bound([[150, 20, 830], [0, 0, 10]], 0.01))
    assert dense > 0.05
    assert sparse < -0.05


def test_many_cases_at_once_are_as_one_by_one_and_nothing_overflows() -> None:
    cases = np.array([[[5, 0, 0], [0, 5, 0]], [[0, 9, 0], [0, 3, 0]], [[0, 0, 1], [0, 0, 1]], [[7, 0, 0], [9, 0, 0]]])
    with np.errstate(all="raise", under="ignore"):
        together = gain_lower_bound(cases, [0.05, 0.01, 1e-6, 0.5])
    alone = [gain_lower_bound(case, error) for case, error in zip(cases, (0.05, 0.01, 1e-6, 0.5), strict=True)]
    np.testing.assert_array_equal(together, alone)
    assert ((together >= -1) & (together <= 1)).all()
    assert together[1] == pytest.approx(-1)


def test_the_bound_falls_as_less_error_is_allowed() -> None:
    bounds = [float(gain_lower_bound([[20, 5, 75], [9, 4, 27]], error)) for error in (0.4, 0.1, 0.01, 1e-4, 1e-7)]
    assert all(later < earlier for earlier, later in pairwise(bounds))


def test_what_is_no_comparison_is_refused() -> None:
    for counts in ([[0, 0, 0]], [[1, 2]], [[-1, 2, 3]]):
        with pytest.raises(ValueError, match="expected counts"):
            gain_lower_bound(counts, 0.05)
    for error in (0, 0.6, -1):
        with pytest.raises(ValueError, match="the error"):
            gain_lower_bound([[1, 1, 1]], error)


# -- a hundred nights on one holdout --------------------------------------------------------------------------------


def nights(
    sizes: list[int],
    champion: float,
    challengers: NDArray[np.float64],
    *,
    shared: float,
    repeats: int,
    seed: int,
    nights: int = NIGHTS,
) -> NDArray[np.bool_]:
    """promoted_R_K: whether the challenger of night k is promoted, in R draws of holdout, champion and challengers.

    Images differ in difficulty, the same for every model (`shared`: 0, all alike; towards 1, each is always right or
    always wrong), so that the models' errors go together, and all nights share the holdout and the champion's luck.
    """
    generator = np.random.default_rng(seed)
    counts = np.zeros((repeats, nights, len(sizes), 3))
    for index, size in enumerate(sizes):
        place_R_1_N = generator.normal(size=(repeats, 1, size)) * np.sqrt(shared)
        own = np.sqrt(1 - shared)
        right_R_1_N = place_R_1_N + own * generator.normal(size=place_R_1_N.shape) < special.ndtri(champion)
        for night in range(nights):
            drawn = place_R_1_N[:, 0] + own * generator.normal(size=(repeats, size))
            mine, theirs = drawn < special.ndtri(challengers[night]), right_R_1_N[:, 0]
            won, lost = (mine & ~theirs).sum(axis=1), (theirs & ~mine).sum(axis=1)
            counts[:, night, index] = np.stack([won, lost, size - won - lost], axis=1)
    # Only what lies well above nothing can come near; the bound of the others need not be computed.
    images = counts.sum(axis=-1)
    gain = ((counts[..., 0] - counts[..., 1]) / images).mean(axis=-1)
    deviation = np.sqrt(((counts[..., 0] + counts[..., 1]) / images**2).sum(axis=-1)) / len(sizes)
    near = np.nonzero(gain > 1.5 * deviation)
    promoted = np.zeros((repeats, nights), dtype=bool)
    spent = np.array([spent_on(night + 2, 0.05) for night in range(nights)])  # the champion's own was the first use
    promoted[near] = gain_lower_bound(counts[near], spent[near[1]]) > 0
    return promoted


@pytest.mark.parametrize(
    ("sizes", "accuracy", "shared"),
    [
        ([36] * 10, 0.9, 0.0),
        ([36] * 10, 0.9, 0.7),
        ([36] * 10, 0.97, 0.3),
        ([200, 50, 10], 0.85, 0.3),
        ([40, 40], 0.5, 0.0),
        ([10, 10, 10], 0.8, 0.5),
    ],
    ids=["digits", "digits, errors in common", "few errors", "rare classes", "coins", "small"],
)
def test_over_a_hundred_nights_of_equal_challengers_at_most_one_in_twenty_holdouts_ever_sees_a_promotion(
    sizes: list[int], accuracy: float, shared: float
) -> None:
    promoted = nights(sizes, accuracy, np.full(NIGHTS, accuracy), shared=shared, repeats=400, seed=1)
    ever = promoted.any(axis=1).mean()  # in one run of a hundred nights, any night
    assert ever <= 0.05
    assert promoted.mean() <= 0.05  # and of all challengers: about one in five thousand
    assert promoted.mean() < 0.002


def test_without_counting_the_uses_a_hundred_nights_would_promote_by_chance() -> None:
    """The simulation above can fail: with the same 95 % each night it does."""
    generator = np.random.default_rng(3)
    right_R_N = generator.random((200, 360)) < 0.9
    ever = np.zeros(200, dtype=bool)
    for _ in range(NIGHTS):
        mine = generator.random((200, 360)) < 0.9
        won, lost = (mine & ~right_R_N).sum(axis=1), (right_R_N & ~mine).sum(axis=1)
        counts = np.stack([won, lost, 360 - won - lost], axis=1)[:, None, :]
        ever |= gain_lower_bound(counts, 0.05) > 0
    assert ever.mean() > 0.3


def test_a_challenger_that_trades_a_class_of_ten_images_for_a_common_one_is_not_called_better() -> None:
    """Equal in balanced accuracy: +0.2 in a class of 1000, -0.2 in one of 10, whose losses often do not show."""
    generator = np.random.default_rng(2)
    promoted = []
    for use in range(1, 11):
        won = generator.binomial(1000, 0.2, size=1000)
        lost = generator.binomial(10, 0.2, size=1000)
        none = np.zeros_like(won)
        counts = np.stack([np.stack([won, none, 1000 - won], 1), np.stack([none, lost, 10 - lost], 1)], axis=1)
        promoted.append((gain_lower_bound(counts, spent_on(use, 0.05)) > 0).mean())
    assert max(promoted) <= 0.01


def test_a_clearly_better_challenger_is_promoted_soon_however_often_the_holdout_was_used() -> None:
    better = nights([36] * 10, 0.75, np.full(NIGHTS, 0.9), shared=0.5, repeats=100, seed=4)
    assert better[:, 0].mean() >= 0.99  # at once
    assert better[:, -1].mean() >= 0.95  # and even as the hundred and first use
    a_little = nights([36] * 10, 0.9, np.full(NIGHTS, 0.95), shared=0.7, repeats=100, seed=5)
    assert a_little[:, :10].any(axis=1).mean() >= 0.9  # within ten nights
    learning = nights([100] * 3, 0.7, np.linspace(0.7, 0.9, NIGHTS), shared=0.5, repeats=100, seed=6)
    assert np.median(learning.argmax(axis=1)) < 60
    assert learning.any(axis=1).all()


def test_a_bound_takes_milliseconds() -> None:
    counts = np.random.default_rng(0).integers(1, 90, size=(100, 3))
    started = time.process_time()
    for _ in range(10):
        gain_lower_bound(counts, 0.001)
    assert time.process_time() - started < 1
