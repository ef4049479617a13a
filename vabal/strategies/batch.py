"""From scores to a batch, shard by shard: what a rule (`rules`) picks, or picks from.

A candidate's key is computed from its score and, for noise and ties, from a hash of (seed, sample_id). So the picks do
not depend on the pool's order or shards, and the candidates' table gives the same picks again, whenever it is read.
Memory: the picks and one shard (with quotas, the picks of every class).
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.strategies.candidates import Candidates, as_parts, concatenate
from vabal.strategies.noise import TIES, hash_ids
from vabal.strategies.rules import BatchRule, Rule, rule_named


class Picker:
    """Takes candidates shard by shard and keeps those that can still be picked, by one of the rules (`rules`).

    A rule that searches over features picks among the candidates with the highest scores: `Picker.among` keeps these.
    Of `quota` the classes are those whose terms stand in a candidate's row, or the classifier's where there are none;
    shares are equal where there are no class terms, and what a small class leaves over goes to the others.

    Raises ValueError for a budget below one or a rule that is unknown or searches, UserError naming the samples whose
    score is not finite.
    """

    def __init__(self, budget: int, rule: Rule = "topk", beta: float = 1.0, seed: int = 0) -> None:
        if budget < 1:
            raise ValueError(f"expected a budget of at least 1, found {budget}")
        self._rule = rule_named(rule)
        if self._rule.searches:
            raise ValueError(f"the rule {rule} is a search over features: no picks follow from scores alone")
        self.budget, self.rule, self.beta, self.seed = budget, rule, beta, seed
        self.candidates = 0
        self._best: dict[int, _Best] = {}
        self._available: Counter[int] = Counter()
        self._log_weights: dict[int, float] = {}
        self._empty: Candidates | None = None

    @classmethod
    def among(cls, rule: BatchRule, budget: int, beta: float, seed: int, per_pick: int | None) -> "Picker":
        """Keeps what the rule picks from: `per_pick` times the budget where it searches, else its picks themselves."""
        if rule.searches:
            if per_pick is None:
                raise ValueError(f"the rule {rule.name} searches, but it is not said among how many candidates")
            return cls(per_pick * budget, rule.listed_by, beta, seed)
        return cls(budget, rule.name, beta, seed)

    def add(self, shard: Candidates) -> None:
        """More candidates, each of which comes once."""
        self.count(shard)
        if self._empty is None:
            self._empty = shard.take(np.zeros(0, dtype=np.int64))
        if not len(shard):
            return
        group_N = self._rule.groups(shard)
        if group_N is None:
            self._add_group(0, 0.0, shard)
            return
        log_weight_N = self._rule.log_weights(shard, self.beta)
        for group in np.unique(group_N):
            rows = np.flatnonzero(group_N == group)
            self._add_group(int(group), float(log_weight_N[rows[0]]), shard.take(rows))

    def count(self, shard: Candidates) -> None:
        """Looks at more candidates and keeps none: for who wants no picks. Raises UserError as `add` does."""
        _check_finite(shard)
        self.candidates += len(shard)

    def picks(self) -> Candidates:
        """At most `budget` candidates in rank order, all where there are no more. ValueError before any `add`."""
        if self._empty is None:
            raise ValueError("no candidates were added, not even an empty shard")
        if not self._best:
            return self._empty
        budgets = self._rule.shares(self.budget, self._log_weights, self._available)
        chosen = [best.first(budgets[group]) for group, best in sorted(self._best.items())]
        picked = _Best.merge([part for part in chosen if len(part.rows)])
        ids = Counter(str(sample_id) for sample_id in picked.rows.sample_ids)
        twice = [sample_id for sample_id, times in ids.items() if times > 1]
        if twice:
            raise ValueError(f"these samples came more than once: {', '.join(twice[:5])}")
        return picked.rows

    def _add_group(self, group: int, log_weight: float, shard: Candidates) -> None:
        key_N = self._rule.key(shard, self.beta, self.seed)
        self._log_weights[group] = log_weight
        self._available[group] += len(shard)
        before = self._best.get(group)
        least = -np.inf  # what is below the k-th key of those so far, or of the shard alone, cannot be picked
        if before is not None and len(before.rows) == self.budget:
            least = before.key_N[-1]
        elif len(shard) > self.budget:
            least = np.partition(key_N, -self.budget)[-self.budget]
        kept = np.flatnonzero(key_N >= least)
        if not len(kept):
            return
        if len(kept) < len(shard):
            shard, key_N = shard.take(kept), key_N[kept]
        best = _Best(shard, key_N, hash_ids(shard.sample_ids, self.seed, TIES))
        self._best[group] = (_Best.merge([before, best]) if before else _Best.merge([best])).first(self.budget)


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
        order = np.lexsort((together.tie_N, -together.key_N))
        key_N, tie_N = together.key_N[order], together.tie_N[order]
        if ((key_N[1:] == key_N[:-1]) & (tie_N[1:] == tie_N[:-1])).any():  # as good as never: ids are slow to sort
            ids = np.array([str(sample_id) for sample_id in together.rows.sample_ids])
            order = np.lexsort((ids, together.tie_N, -together.key_N))
        return together._take(order)


def pick(
    candidates: Candidates | Iterable[Candidates], budget: int, rule: Rule = "topk", beta: float = 1.0, seed: int = 0
) -> Candidates:
    """The picks in rank order, from all candidates at once or shard by shard: see `Picker`."""
    picker = Picker(budget, rule, beta, seed)
    for part in as_parts(candidates):
        picker.add(part)
    return picker.picks()


def _check_finite(shard: Candidates) -> None:
    wrong = np.flatnonzero(~np.isfinite(shard.score_N))
    if len(wrong):
        names = ", ".join(str(sample_id) for sample_id in shard.sample_ids[wrong[:5]])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"the score is not finite for {names}{more}: look at these images, and at the training of the round"
        )
