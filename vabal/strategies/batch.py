"""From scores to a batch: the best k, Gumbel top-k sampling, quotas by class.

A candidate's key is computed from its score and, for noise and ties, from a hash of (seed, sample_id). So the picks do
not depend on the pool's order or shards, and the candidates' table gives the same picks again, whenever it is read.
Memory: the picks and one shard (with quotas, the picks of every class).
"""

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.strategies.candidates import Candidates, as_parts, concatenate
from vabal.strategies.quotas import allot, groups, log_quota_weights

Rule = Literal["topk", "gumbel", "quota", "spread"]

_TIES, _NOISE = 0, 1  # what a hash is drawn for
_HASH_ROWS = 2**16  # ids hashed at once


class Picker:
    """Takes candidates shard by shard and keeps those that can still be picked.

    `topk` takes the highest scores. `gumbel` takes the highest of beta * score + Gumbel noise, which is sampling
    without replacement with probabilities proportional to exp(beta * score) (arXiv:2106.12059). `quota` gives each
    class (the one whose terms stand in a candidate's row; the classifier's where there are none) a share of the budget
    proportional to (prior * precision)^-beta, equal shares where there are no class terms, and takes each class's
    highest scores; what a small class leaves over goes to the others. The rule `spread` is a search over features:
    see `vabal.strategies.spread`.

    Raises ValueError for a budget below one or an unknown rule, UserError naming the samples whose score is not finite.
    """

    def __init__(self, budget: int, rule: Rule = "topk", beta: float = 1.0, seed: int = 0) -> None:
        if budget < 1:
            raise ValueError(f"expected a budget of at least 1, found {budget}")
        if rule not in ("topk", "gumbel", "quota"):
            raise ValueError(f"expected the rule topk, gumbel or quota, found {rule!r}")
        self.budget, self.rule, self.beta, self.seed = budget, rule, beta, seed
        self.candidates = 0
        self._best: dict[int, _Best] = {}
        self._available: Counter[int] = Counter()
        self._log_weights: dict[int, float] = {}
        self._empty: Candidates | None = None

    def add(self, shard: Candidates) -> None:
        """More candidates, each of which comes once."""
        _check_finite(shard)
        self.candidates += len(shard)
        if self._empty is None:
            self._empty = shard.take(np.zeros(0, dtype=np.int64))
        if not len(shard):
            return
        if self.rule != "quota":
            self._add_group(0, shard)
            return
        group_N = groups(shard)
        log_weight_N = log_quota_weights(shard, self.beta)
        for group in np.unique(group_N):
            rows = np.flatnonzero(group_N == group)
            self._log_weights[int(group)] = float(log_weight_N[rows[0]])
            self._add_group(int(group), shard.take(rows))

    def picks(self) -> Candidates:
        """At most `budget` candidates in rank order, all where there are no more. ValueError before any `add`."""
        if self._empty is None:
            raise ValueError("no candidates were added, not even an empty shard")
        if not self._best:
            return self._empty
        budgets = {0: self.budget}
        if self.rule == "quota":
            largest = max(self._log_weights.values())
            weights = {group: math.exp(value - largest) for group, value in self._log_weights.items()}
            budgets = allot(self.budget, weights, self._available)
        chosen = [best.first(budgets[group]) for group, best in sorted(self._best.items())]
        picked = _Best.merge([part for part in chosen if len(part.rows)])
        ids = Counter(str(sample_id) for sample_id in picked.rows.sample_ids)
        twice = [sample_id for sample_id, times in ids.items() if times > 1]
        if twice:
            raise ValueError(f"these samples came more than once: {', '.join(twice[:5])}")
        return picked.rows

    def _add_group(self, group: int, shard: Candidates) -> None:
        key_N = self._keys(shard)
        self._available[group] += len(shard)
        if len(shard) > self.budget:  # what is below the k-th key of the shard alone cannot be picked
            kept = np.flatnonzero(key_N >= np.partition(key_N, -self.budget)[-self.budget])
            shard, key_N = shard.take(kept), key_N[kept]
        best = _Best(shard, key_N, hash_ids(shard.sample_ids, self.seed, _TIES))
        before = self._best.get(group)
        self._best[group] = (_Best.merge([before, best]) if before else _Best.merge([best])).first(self.budget)

    def _keys(self, shard: Candidates) -> NDArray[np.float64]:
        if self.rule == "gumbel":
            return self.beta * shard.score_N + gumbel_noise(shard.sample_ids, self.seed)
        return shard.score_N


class _Best:
    """Candidates in the order in which they are picked: by key, then by hash, then by id."""

    def __init__(self, rows: Candidates, key_N: NDArray[np.float64], tie_N: NDArray[np.uint64]) -> None:
        self.rows, self.key_N, self.tie_N = rows, key_N, tie_N

    def first(self, count: int) -> "_Best":
        return self._take(np.arange(min(count, len(self.rows))))

    def _take(self, order: NDArray[np.integer]) -> "_Best":
        return _Best(self.rows.take(order), self.key_N[order], self.tie_N[order])

    @staticmethod
    def merge(parts: list["_Best"]) -> "_Best":
        together = _Best(
            concatenate([part.rows for part in parts]),
            np.concatenate([part.key_N for part in parts]),
            np.concatenate([part.tie_N for part in parts]),
        )
        ids = np.array([str(sample_id) for sample_id in together.rows.sample_ids])
        return together._take(np.lexsort((ids, together.tie_N, -together.key_N)))


def pick(
    candidates: Candidates | Iterable[Candidates], budget: int, rule: Rule = "topk", beta: float = 1.0, seed: int = 0
) -> Candidates:
    """The picks in rank order, from all candidates at once or shard by shard: see `Picker`."""
    picker = Picker(budget, rule, beta, seed)
    for part in as_parts(candidates):
        picker.add(part)
    return picker.picks()


# -- noise ------------------------------------------------------------------------------------------------------


def uniform_noise(sample_ids: Any, seed: int) -> NDArray[np.float64]:
    """noise_N in (0, 1), the same for the same seed and id."""
    hashed = hash_ids(sample_ids, seed, _NOISE)
    return ((hashed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbel_noise(sample_ids: Any, seed: int) -> NDArray[np.float64]:
    """Standard Gumbel noise_N, the same for the same seed and id."""
    return np.asarray(-np.log(-np.log(uniform_noise(sample_ids, seed))))


def hash_ids(sample_ids: Any, seed: int, purpose: int = _TIES) -> NDArray[np.uint64]:
    """A 64-bit hash of (seed, purpose, id) for each id: FNV-1a over its UTF-8 bytes, then mixed as splitmix64 does."""
    ids = np.asarray([str(sample_id) for sample_id in sample_ids], dtype=str)
    start = _mix(np.array([seed % 2**64], dtype=np.uint64) * np.uint64(2) + np.uint64(purpose))[0]
    hashed = np.empty(len(ids), dtype=np.uint64)
    for first in range(0, len(ids), _HASH_ROWS):
        rows = slice(first, first + _HASH_ROWS)
        hashed[rows] = _mix(_fnv(ids[rows]) ^ start)
    return hashed


def _fnv(ids: NDArray[np.str_]) -> NDArray[np.uint64]:
    encoded = np.char.encode(ids, "utf-8")
    width = encoded.dtype.itemsize
    bytes_N_L = encoded.view(np.uint8).reshape(len(encoded), width) if width else np.zeros((len(ids), 0), np.uint8)
    lengths = np.char.str_len(encoded)
    value = np.full(len(ids), 0xCBF29CE484222325, dtype=np.uint64)
    for place in range(width):
        mixed = (value ^ bytes_N_L[:, place]) * np.uint64(0x100000001B3)
        value = np.where(place < lengths, mixed, value)  # ids of other shards may be longer: the padding must not show
    return value


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _check_finite(shard: Candidates) -> None:
    wrong = np.flatnonzero(~np.isfinite(shard.score_N))
    if len(wrong):
        names = ", ".join(str(sample_id) for sample_id in shard.sample_ids[wrong[:5]])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"the score is not finite for {names}{more}: look at these images, and at the training of the round"
        )
