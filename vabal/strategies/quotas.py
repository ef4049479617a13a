"""Quotas: how a batch is shared out to the classes."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vabal.strategies.candidates import Candidates


def allot(budget: int, weights: Mapping[int, float], available: Mapping[int, int]) -> dict[int, int]:
    """How many of each class: proportional to the weights, never more than there are, summing to the budget.

    What small classes leave over is shared among the others in the same proportions. Largest remainders get what
    rounding leaves, a tie goes to the lower class. Where the candidates are fewer than the budget, all are taken.
    """
    given: dict[int, int] = {}
    left = min(budget, sum(available[group] for group in weights))
    while len(given) < len(weights):
        total = sum(weight for group, weight in weights.items() if group not in given)
        shares = {group: left * weight / total for group, weight in weights.items() if group not in given}
        full = [group for group, share in shares.items() if share >= available[group]]
        if not full:
            break
        for group in full:
            given[group] = available[group]
            left -= available[group]
    else:
        return given
    rounded = {group: int(share) for group, share in shares.items()}
    by_remainder = sorted(shares, key=lambda group: (rounded[group] - shares[group], group))
    for group in by_remainder[: left - sum(rounded.values())]:
        rounded[group] += 1
    return given | rounded


# -- quotas -----------------------------------------------------------------------------------------------------


def groups(shard: Candidates) -> NDArray[np.integer]:
    """The class whose terms stand in a candidate's row; where there are no terms, the classifier's."""
    for groups in (shard.own_class_N, shard.vae_class_N, shard.predicted_class_N):
        if groups is not None:
            return groups
    raise ValueError("quotas need the classes that the candidates are predicted to be")


def log_quota_weights(shard: Candidates, beta: float) -> NDArray[np.float64]:
    if shard.prior_N is None or shard.precision_N is None:
        return np.zeros(len(shard))
    return np.asarray(-beta * np.log(shard.prior_N * shard.precision_N))
