"""The seam between a round and the strategies: what one declares, what it is given, what it hands back."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vabal.probabilities import ClassTerms
from vabal.strategies.batch import Picker, Rule
from vabal.strategies.candidates import Candidates


@dataclass(frozen=True)
class Needs:
    """What a strategy asks of training (the first four) and of the pool."""

    dropout: float = 0.0
    members: int = 1
    auxiliary_loss: str | None = None
    cross_fit: bool = False
    features: bool = False
    posteriors: bool = False
    images: bool = False
    vae: bool = False


@dataclass(frozen=True)
class Shard:
    """The candidates of one shard; None where the strategy's needs do not include it. Arrays may be memory-mapped."""

    sample_ids: NDArray[Any]
    logits_N_C: NDArray[np.floating] | None = None
    features_N_D: NDArray[np.floating] | None = None
    log_likelihood_N_C: NDArray[np.floating] | None = None
    vae_class_N: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class Labeled:
    """The labelled pool: features_N_D, and labels_N as indices of classes."""

    features_N_D: NDArray[np.floating]
    labels_N: NDArray[np.integer]


@dataclass(frozen=True)
class Context:
    """What a selection works on.

    `shards` starts a new pass over the candidates each time it is called. `settings` holds the sections
    `probabilities` and `selection`. `write`, where given, receives every candidate once, shard by shard, in the order
    of the shards: it fills the candidates' table.
    """

    shards: Callable[[], Iterable[Shard]]
    settings: Any
    seed: int
    class_terms: ClassTerms | None = None
    labeled: Labeled | None = None
    write: Callable[[Candidates], None] | None = None


@dataclass(frozen=True)
class Selection:
    """The picks in rank order, and what derives them from the candidates' table again.

    That is `strategies.pick(candidates, budget, rule, beta, seed)`. `class_terms` are those of the context, completed
    with the pool's moments where the score needs them. `notes` are for people: what did not go as asked.
    """

    strategy: str
    picks: Candidates
    budget: int
    rule: Rule
    beta: float
    seed: int
    candidates: int
    class_terms: ClassTerms | None = None
    notes: tuple[str, ...] = ()

    @property
    def sample_ids(self) -> list[str]:
        return [str(sample_id) for sample_id in self.picks.sample_ids]


def no_picks(strategy: str, budget: int, seed: int) -> Selection:
    """Of a round that has no candidates: there is nothing left to label."""
    nothing = Candidates(np.array([], dtype=object), np.zeros(0))
    return Selection(strategy, nothing, budget, "topk", beta=1.0, seed=seed, candidates=0)


@runtime_checkable
class Strategy(Protocol):
    """What `get` returns; plug-ins implement it, `ScoringStrategy` being the short way."""

    name: ClassVar[str]
    needs: ClassVar[Needs]

    def select(self, context: Context, budget: int) -> Selection:
        """Picks at most `budget` of the context's candidates, and hands every candidate to `context.write`."""

    def rescore(
        self, candidates: Candidates, *, class_terms: ClassTerms | None, settings: Any, seed: int
    ) -> NDArray[np.float64] | None:
        """score_N from the columns of the candidates' table, bit for bit; None if they do not hold what it takes."""


class ScoringStrategy:
    """A strategy that scores each candidate by itself: it defines `score`, the rest follows."""

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()

    def prepare(self, context: Context) -> Context:
        """A first pass, for a score that needs something of the whole pool; by default there is none."""
        return context

    def score(self, shard: Shard, context: Context) -> Candidates:
        """The shard's candidates in their order, with scores: the highest are picked first."""
        raise NotImplementedError(f"{type(self).__name__} does not define score")

    def rescore(
        self,
        candidates: Candidates,  # noqa: ARG002 -- the default, which needs none of it
        *,
        class_terms: ClassTerms | None,  # noqa: ARG002
        settings: Any,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> NDArray[np.float64] | None:
        return None

    def rule(self, settings: Any) -> Rule:  # noqa: ARG002 -- a strategy may follow the settings
        """How scores become a batch."""
        return "topk"

    def select(self, context: Context, budget: int) -> Selection:
        """Scores shard by shard and keeps the best: memory does not grow with the pool.

        Raises UserError naming the samples whose score is not finite.
        """
        context = self.prepare(context)
        rule, beta = self.rule(context.settings), float(context.settings.selection.beta)
        picker = Picker(budget, rule, beta, context.seed)
        for shard in context.shards():
            scored = self.score(shard, context)
            picker.add(scored)
            if context.write is not None:
                context.write(scored)
        picks = picker.picks() if picker.candidates else no_picks(self.name, budget, context.seed).picks
        return Selection(
            strategy=self.name,
            picks=picks,
            budget=budget,
            rule=rule,
            beta=beta,
            seed=context.seed,
            candidates=picker.candidates,
            class_terms=context.class_terms,
            notes=shortfall(budget, picker.candidates),
        )


def shortfall(budget: int, candidates: int) -> tuple[str, ...]:
    """The note of a selection whose budget is larger than what is left."""
    if candidates >= budget:
        return ()
    return (f"{budget} asked for, {candidates} left to pick from: all of them are picked",)


def posteriors(shard: Shard) -> NDArray[np.float64]:
    """The classifier's probabilities_N_C. Raises ValueError if the shard came without logits."""
    if shard.logits_N_C is None:
        raise ValueError("the shard came without logits: declare Needs(posteriors=True)")
    logits_N_C = np.asarray(shard.logits_N_C, dtype=np.float64)
    if not len(logits_N_C):
        return logits_N_C
    powers_N_C = np.exp(logits_N_C - logits_N_C.max(axis=1, keepdims=True))
    return np.asarray(powers_N_C / powers_N_C.sum(axis=1, keepdims=True))


def margin(probabilities_N_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """margin_N: the best probability less the second."""
    if not len(probabilities_N_C) or probabilities_N_C.shape[1] < 2:
        return np.ones(len(probabilities_N_C))
    best_two = np.partition(probabilities_N_C, -2, axis=1)[:, -2:]
    return np.asarray(best_two[:, 1] - best_two[:, 0])
