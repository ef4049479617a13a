"""Rules of batches: how scores become picks, and how recorded picks are held against them.

A rule knows by which key candidates are ranked, into which groups they are sorted first, and, where it searches, how it
picks among the candidates with the highest scores. `vabal audit --verify` asks the same objects, so a new rule is one
class here. Axes: N candidates, D features.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from vabal.strategies import coverage, quotas, spread
from vabal.strategies.candidates import Candidates
from vabal.strategies.noise import gumbel_noise

Rule = Literal["topk", "gumbel", "quota", "spread", "quota_spread", "coverage"]
Walked = Callable[[NDArray[np.integer]], NDArray[np.float64]]  # what given rows were worth at one place of a search


class TopK:
    """The highest scores."""

    name: ClassVar[Rule] = "topk"
    searches: ClassVar[bool] = False  # over features, among the candidates with the highest scores ...
    listed_by: ClassVar[Rule] = "topk"  # ... or that this rule picks, so many for each pick
    draws: ClassVar[bool] = False  # noise, which is added to beta times the score
    looks_at_labels: ClassVar[bool] = False  # at how near each of them lies to the labelled pool

    def key(self, shard: Candidates, beta: float, seed: int) -> NDArray[np.float64]:  # noqa: ARG002
        """key_N: the candidates with the highest are picked first."""
        return shard.score_N

    def groups(self, shard: Candidates) -> NDArray[np.integer] | None:  # noqa: ARG002
        """The group of each candidate, each of which has a share of the budget; None for one group."""
        return None

    def log_weights(self, shard: Candidates, beta: float) -> NDArray[np.float64]:  # noqa: ARG002
        """Of each candidate's group, to which shares are proportional."""
        return np.zeros(len(shard))

    @property
    def per_pick(self) -> int | None:
        """Among how many candidates it searches, for each pick; None if it does not search."""
        return None

    def shares(self, budget: int, log_weights: Mapping[int, float], available: Counter[int]) -> dict[int, int]:
        """How many are picked of each group."""
        largest = max(log_weights.values())
        weights = {group: math.exp(value - largest) for group, value in log_weights.items()}
        return quotas.allot(budget, weights, available)

    def order(
        self,
        best: Candidates,
        features_N_D: NDArray[np.floating] | None,  # noqa: ARG002
        budget: int,
        beta: float,  # noqa: ARG002
        distance_N: NDArray[np.floating] | None = None,  # noqa: ARG002 -- `coverage.labeled_distances`
    ) -> NDArray[np.int64]:
        """The rows of the best candidates in the order picked."""
        return np.arange(min(budget, len(best)))

    def follow(
        self,
        best: Candidates,
        features_N_D: NDArray[np.floating] | None,
        recorded: Sequence[str],  # noqa: ARG002 -- of a rule that allows for rounding
        budget: int,
        beta: float,
        distance_N: NDArray[np.floating] | None = None,
    ) -> list[str]:
        """The picks that follow from the best candidates; the recorded ones, where only rounding leads to others."""
        order = self.order(best, features_N_D, budget, beta, distance_N)
        return [str(sample_id) for sample_id in best.sample_ids[order]]


class Gumbel(TopK):
    """Sampling without replacement, with probabilities proportional to exp(beta * score) (arXiv:2106.12059)."""

    name: ClassVar[Rule] = "gumbel"
    draws: ClassVar[bool] = True

    def key(self, shard: Candidates, beta: float, seed: int) -> NDArray[np.float64]:
        return beta * shard.score_N + gumbel_noise(shard.sample_ids, seed)


class Quota(TopK):
    """A share of the budget for each class, proportional to (prior * precision)^-beta; within it the highest scores."""

    name: ClassVar[Rule] = "quota"

    def groups(self, shard: Candidates) -> NDArray[np.integer] | None:
        return quotas.groups(shard)

    def log_weights(self, shard: Candidates, beta: float) -> NDArray[np.float64]:
        return quotas.log_quota_weights(shard, beta)


class Spread(TopK):
    """One after the other the candidate with a high score that lies far from those before (`spread.spread`)."""

    name: ClassVar[Rule] = "spread"
    searches: ClassVar[bool] = True
    search: ClassVar[Callable[..., NDArray[np.int64]]] = staticmethod(spread.spread)
    # Of recorded picks from the search, and through it along recorded picks.
    departures: ClassVar[Callable[..., list[int]]] = staticmethod(spread.departures)
    walk: ClassVar[Callable[..., Iterator[Walked]]] = staticmethod(spread.walk)

    @property
    def per_pick(self) -> int:
        return spread.SHORTLIST

    def order(
        self,
        best: Candidates,
        features_N_D: NDArray[np.floating] | None,
        budget: int,
        beta: float,
        distance_N: NDArray[np.floating] | None = None,
    ) -> NDArray[np.int64]:
        if features_N_D is None:
            raise ValueError(f"the batch rule {self.name} needs the features of its shortlist")
        beside = self.beside(best, budget, beta, distance_N)
        return self.search(best.score_N, features_N_D, min(budget, len(best)), beta, beside)

    def beside(
        self,
        best: Candidates,  # noqa: ARG002
        budget: int,  # noqa: ARG002
        beta: float,  # noqa: ARG002
        distance_N: NDArray[np.floating] | None,  # noqa: ARG002
    ) -> Any:
        """What the search takes beside scores and features: how many may be picked of each group, or how far each
        candidate lies from the labelled pool; None for neither."""
        return None

    def follow(
        self,
        best: Candidates,
        features_N_D: NDArray[np.floating] | None,
        recorded: Sequence[str],
        budget: int,
        beta: float,
        distance_N: NDArray[np.floating] | None = None,
    ) -> list[str]:
        row_of = {str(sample_id): row for row, sample_id in enumerate(best.sample_ids)}
        rows = np.array([row_of.get(sample_id, -1) for sample_id in recorded], dtype=np.int64)
        are_all = len(rows) == min(budget, len(best)) and bool((rows >= 0).all())
        if are_all and features_N_D is not None:
            beside = self.beside(best, budget, beta, distance_N)
            if not self.departures(best.score_N, features_N_D, rows, beta, beside):
                return list(recorded)
        return super().follow(best, features_N_D, recorded, budget, beta, distance_N)


class QuotaSpread(Spread, Quota):
    """`quota`'s share of the budget for each class, filled by the search of `spread` over all of them together."""

    name: ClassVar[Rule] = "quota_spread"
    listed_by: ClassVar[Rule] = "quota"

    def beside(
        self,
        best: Candidates,
        budget: int,
        beta: float,
        distance_N: NDArray[np.floating] | None,  # noqa: ARG002
    ) -> spread.Rooms:
        group_N = np.asarray(self.groups(best))
        log_weight_N = self.log_weights(best, beta)
        first = dict(zip(group_N[::-1].tolist(), log_weight_N[::-1].tolist(), strict=True))
        return spread.Rooms(group_N, self.shares(min(budget, len(best)), first, Counter(group_N.tolist())))


class Coverage(Spread):
    """One after the other the candidate that covers most of the doubt that is left (`coverage.cover`)."""

    name: ClassVar[Rule] = "coverage"
    looks_at_labels: ClassVar[bool] = True
    search: ClassVar[Callable[..., NDArray[np.int64]]] = staticmethod(coverage.cover)
    departures: ClassVar[Callable[..., list[int]]] = staticmethod(coverage.departures)
    walk: ClassVar[Callable[..., Iterator[Walked]]] = staticmethod(coverage.walk)

    def beside(
        self,
        best: Candidates,  # noqa: ARG002
        budget: int,  # noqa: ARG002
        beta: float,  # noqa: ARG002
        distance_N: NDArray[np.floating] | None,
    ) -> NDArray[np.floating] | None:
        return distance_N


BatchRule = TopK
_ALL = (TopK(), Gumbel(), Quota(), Spread(), QuotaSpread(), Coverage())
_RULES: dict[str, BatchRule] = {rule.name: rule for rule in _ALL}


def rule_named(name: str) -> BatchRule:
    """Raises ValueError for a rule that is not known."""
    if name not in _RULES:
        raise ValueError(f"expected one of the rules {', '.join(_RULES)}, found {name!r}")
    return _RULES[name]
