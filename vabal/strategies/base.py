"""What stands between a round and the strategies: what one declares, what it is given, what it hands back."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs, check_finite
from vabal.strategies import compact
from vabal.strategies.batch import Picker
from vabal.strategies.candidates import Candidates, margin, softmax
from vabal.strategies.coverage import labeled_distances
from vabal.strategies.rules import BatchRule, Rule, rule_named

if TYPE_CHECKING:
    from vabal.probabilities import ClassTerms


@dataclass(frozen=True)
class Shard:
    """The candidates of one shard; None where the strategy's needs do not include it. Arrays may be memory-mapped.

    Of a committee (dropout passes, or the members of an ensemble): `predictive_N_C` is the mean of its posteriors,
    `expected_entropy_N` the mean of their entropies in nats, `votes_N_C` how many of them predict each class.
    `predicted_loss_N` is the output of the auxiliary loss's module; `images_N_H_W_K` are uint8. `level_N` stands in the
    place of log_likelihood_N_C where a compact record has no more of it.
    """

    sample_ids: NDArray[Any]
    logits_N_C: NDArray[np.floating] | None = None
    features_N_D: NDArray[np.floating] | None = None
    log_likelihood_N_C: NDArray[np.floating] | None = None
    level_N: NDArray[np.floating] | None = None
    vae_class_N: NDArray[np.integer] | None = None
    predictive_N_C: NDArray[np.floating] | None = None
    expected_entropy_N: NDArray[np.floating] | None = None
    votes_N_C: NDArray[np.integer] | None = None
    predicted_loss_N: NDArray[np.floating] | None = None
    images_N_H_W_K: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.sample_ids)

    def compact(self) -> "Shard":
        """With the digits that a compact record keeps (`strategies.compact`) of what the networks say."""
        seen: dict[str, Any] = {}
        if self.logits_N_C is not None:
            seen["logits_N_C"] = compact.logits(self.logits_N_C)
        for name in ("predictive_N_C", "expected_entropy_N"):
            if getattr(self, name) is not None:
                seen[name] = compact.single(getattr(self, name))
        return replace(self, **seen)


@dataclass(frozen=True)
class Labeled:
    """The labelled pool: labels_N as indices of classes, and what the needs include, in one order."""

    features_N_D: NDArray[np.floating]
    labels_N: NDArray[np.integer]
    sample_ids: NDArray[Any] | None = None
    logits_N_C: NDArray[np.floating] | None = None
    images_N_H_W_K: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Context:
    """What a selection works on.

    `shards` starts a new pass over the candidates each time it is called. `settings` holds the sections
    `probabilities` and `selection`. `write`, where given, receives every candidate once, shard by shard, in the order
    of the shards: it fills the candidates' table. `feature_dims` are the lengths of the stages' features, which stand
    side by side in features_N_D; `device` is where a strategy that computes much should do so.
    """

    shards: Callable[[], Iterable[Shard]]
    settings: Any
    seed: int
    class_terms: "ClassTerms | None" = None
    labeled: Labeled | None = None
    write: Callable[[Candidates], None] | None = None
    feature_dims: tuple[int, ...] | None = None
    device: str = "cpu"
    features: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None  # of some candidates, for the search alone
    listed: "Callable[[NDArray[Any]], Listed] | None" = None  # what a search sees, where shards have no features
    searches: bool = True  # False: who asks follows a search itself, and of a rule that searches wants scores alone

    def deep(self, features_N_D: NDArray[np.floating]) -> NDArray[np.floating]:
        """The features of the last stage, which the classifier's linear layer sees; a view."""
        return features_N_D if self.feature_dims is None else features_N_D[:, -self.feature_dims[-1] :]


@dataclass(frozen=True)
class Selection:
    """The picks in rank order, and what derives them from the candidates' table again.

    That is `strategies.pick(candidates, budget, rule, beta, seed)`; with the rule `spread`, a search among the
    `shortlist`. `class_terms` are those of the context, completed with the pool's moments where the score needs them.
    `notes` are for people: what did not go as asked.
    """

    strategy: str
    picks: Candidates
    budget: int
    rule: Rule
    beta: float
    seed: int
    candidates: int
    class_terms: "ClassTerms | None" = None
    notes: tuple[str, ...] = ()
    shortlist: "Shortlist | None" = None

    @property
    def sample_ids(self) -> list[str]:
        return [str(sample_id) for sample_id in self.picks.sample_ids]


class Listed(NamedTuple):
    """What a search sees of the candidates on its list: the last stage's features, and, of a rule that looks there, how
    far each lies from the labelled pool (`coverage.labeled_distances`)."""

    features_N_D: NDArray[np.float32]
    labeled_distance_N: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Shortlist:
    """The candidates among which a batch was searched, the highest score first, and what the search saw (`Listed`).

    `per_pick` times the budget they are, or all where there are fewer.
    """

    sample_ids: NDArray[Any]
    features_N_D: NDArray[np.float32]
    per_pick: int
    labeled_distance_N: NDArray[np.float32] | None = None


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
        self, candidates: Candidates, *, class_terms: "ClassTerms | None", settings: Any, seed: int
    ) -> NDArray[np.float64] | None:
        """score_N from the columns of the candidates' table, bit for bit; None if they do not hold what it takes."""


def needs_of(strategy: Strategy, settings: Any) -> Needs:
    """What the strategy needs under these settings: its `needs`, or what its method `needs_under(settings)` says."""
    depending = getattr(strategy, "needs_under", None)
    needs: Needs = strategy.needs if depending is None else depending(settings)
    return needs


class BaseStrategy:
    """What the audit asks a strategy about its record: by default, scores do not follow from the candidates' table.

    `inputs` names the columns of the shards that go into that table beside the scores; `labeled_inputs` says that the
    labelled pool's logits are recorded as well. Who is `derivable` gets its scores by being run again on these.
    """

    inputs: tuple[str, ...] = ()
    labeled_inputs: bool = False
    derivable: bool = False
    uniform: bool = False  # its picks are a uniform draw
    only_searches_features: bool = False  # no score takes them, so those of the shortlist are enough

    def batch(self, settings: Any) -> tuple[Rule, float] | None:  # noqa: ARG002
        """Rule and beta under these settings; None where only the selection itself says so."""
        return None

    def rounding(self, settings: Any) -> float:  # noqa: ARG002
        """How far a score may lie from one that is derived again, relative to it: processors round otherwise."""
        return 1e-9

    def scores_are(self, candidates: int, budget: int) -> NDArray[np.float64] | None:  # noqa: ARG002
        """The scores of so many candidates, the highest first, where all selections have the same; else None."""
        return None

    def scores_follow(self, columns: Collection[str], settings: Any) -> bool:  # noqa: ARG002
        """Whether the scores of a table with these columns are this version's: earlier versions recorded fewer."""
        return True

    def terms(
        self,
        candidates: Candidates,  # noqa: ARG002
        *,
        class_terms: "ClassTerms | None",  # noqa: ARG002
        settings: Any,  # noqa: ARG002
    ) -> dict[str, NDArray[np.float64]]:
        """The parts of the score by name, of candidates that hold what it takes: they add up to it. Empty where the
        score is one number."""
        return {}

    def rescore(
        self,
        candidates: Candidates,  # noqa: ARG002 -- the base's, which who can follow them overrides
        *,
        class_terms: "ClassTerms | None",  # noqa: ARG002
        settings: Any,  # noqa: ARG002
        seed: int,  # noqa: ARG002
    ) -> NDArray[np.float64] | None:
        return None


def record_of(strategy: Strategy) -> BaseStrategy:
    """What the audit asks: the strategy itself, or, of one that is no `BaseStrategy`, what it has of its attributes."""
    return strategy if isinstance(strategy, BaseStrategy) else _OfAPlugIn(strategy)


class _OfAPlugIn(BaseStrategy):
    def __init__(self, strategy: Strategy) -> None:
        self._strategy: Any = strategy
        for name in (
            "inputs",
            "labeled_inputs",
            "derivable",
            "uniform",
            "scores_are",
            "scores_follow",
            "terms",
            "rescore",
        ):
            if hasattr(strategy, name):
                setattr(self, name, getattr(strategy, name))

    def batch(self, settings: Any) -> tuple[Rule, float] | None:
        rule, beta = getattr(self._strategy, "rule", None), getattr(self._strategy, "beta", None)
        if callable(rule) and callable(beta):
            return rule(settings), beta(settings)
        return ("topk", 1.0) if self.inputs else None


class ScoringStrategy(BaseStrategy):
    """A strategy that scores each candidate by itself: it defines `score`, the rest follows."""

    name: ClassVar[str]
    needs: ClassVar[Needs] = Needs()

    def prepare(self, context: Context) -> Context:
        """A first pass, for a score that needs something of the whole pool; by default there is none."""
        return context

    def score(self, shard: Shard, context: Context) -> Candidates:
        """The shard's candidates in their order, with scores: the highest are picked first."""
        raise NotImplementedError(f"{type(self).__name__} does not define score")

    def rule(self, settings: Any) -> Rule:  # noqa: ARG002 -- a strategy may follow the settings
        """How scores become a batch."""
        return "topk"

    def beta(self, settings: Any) -> float:
        """The inverse temperature of the rules."""
        return float(settings.selection.beta)

    def batch(self, settings: Any) -> tuple[Rule, float]:
        return self.rule(settings), self.beta(settings)

    def scored(self, shard: Shard, context: Context) -> Candidates:
        """The shard's candidates with scores, and what these were computed from."""
        return recording(self.score(shard, context), shard, self.inputs)

    def select(self, context: Context, budget: int) -> Selection:
        """Scores shard by shard and keeps the best: memory does not grow with the pool.

        Raises UserError naming the samples whose score is not finite.
        """
        context = self.prepare(context)
        name, beta = self.batch(context.settings)
        rule = rule_named(name)
        picker = Picker.among(rule, budget, beta, context.seed, rule.per_pick)
        wanted = context.searches or not rule.searches
        for shard in context.shards():
            scored = self.scored(shard, context)
            (picker.add if wanted else picker.count)(scored)
            if context.write is not None:
                context.write(scored)
        some = wanted and picker.candidates
        selection = Selection(
            strategy=self.name,
            picks=picker.picks() if some else no_picks(self.name, budget, context.seed).picks,
            budget=budget,
            rule=rule.name,
            beta=beta,
            seed=context.seed,
            candidates=picker.candidates,
            class_terms=context.class_terms,
            notes=shortfall(budget, picker.candidates),
        )
        return _searched(selection, rule, context) if rule.searches and (wanted or not picker.candidates) else selection


def _searched(selection: Selection, rule: BatchRule, context: Context) -> Selection:
    """The batch that the rule finds among the best candidates, which are the picks so far."""
    best, budget = selection.picks, selection.budget
    if not len(best) or rule.per_pick is None:
        return no_picks(selection.strategy, budget, context.seed)
    seen = _seen(best.sample_ids, rule, context) if context.listed is None else context.listed(best.sample_ids)
    features_N_D, distance_N = seen
    if compact.asked_for(context.settings):
        features_N_D = compact.features(features_N_D)
    picks = best.take(rule.order(best, features_N_D, budget, selection.beta, distance_N))
    listed = Shortlist(best.sample_ids, features_N_D, rule.per_pick, distance_N)
    return replace(selection, picks=picks, shortlist=listed)


def _seen(sample_ids: NDArray[Any], rule: BatchRule, context: Context) -> Listed:
    features_N_D = _features_of(sample_ids, context)
    if not rule.looks_at_labels:
        return Listed(features_N_D)
    labeled_L_D = features_N_D[:0] if context.labeled is None else context.deep(context.labeled.features_N_D)
    return Listed(features_N_D, labeled_distances(features_N_D, labeled_L_D))


def _features_of(sample_ids: NDArray[Any], context: Context) -> NDArray[np.float32]:
    """The last stage's features of these candidates, in their order, gathered in one pass over the shards."""
    if context.features is not None:
        asked_for = np.ascontiguousarray(context.deep(context.features(sample_ids)))
        check_finite("features_N_D", asked_for, sample_ids)
        return asked_for
    row_of = {str(sample_id): row for row, sample_id in enumerate(sample_ids)}
    gathered: NDArray[np.float32] | None = None
    for shard in context.shards():
        if shard.features_N_D is None:
            raise ValueError("the shards came without features: declare Needs(features=True)")
        rows = np.array([row_of.get(str(sample_id), -1) for sample_id in shard.sample_ids], dtype=np.int64)
        here = np.flatnonzero(rows >= 0)
        values_N_D = context.deep(shard.features_N_D)[here]
        if gathered is None:
            gathered = np.empty((len(sample_ids), values_N_D.shape[1]), dtype=np.float32)
        gathered[rows[here]] = values_N_D
    assert gathered is not None  # noqa: S101 -- the candidates came from these shards
    check_finite("features_N_D", gathered, sample_ids)
    return gathered


def recording(scored: Candidates, shard: Shard, columns: tuple[str, ...]) -> Candidates:
    """The candidates with these columns of their shard beside them, where it carries them."""
    return replace(scored, **{name: getattr(shard, name) for name in columns})


def shortfall(budget: int, candidates: int) -> tuple[str, ...]:
    """The note of a selection whose budget is larger than what is left."""
    if candidates >= budget:
        return ()
    return (f"{budget} asked for, {candidates} left to pick from: all of them are picked",)


def posteriors(shard: Shard) -> NDArray[np.float64]:
    """The classifier's probabilities_N_C. Raises ValueError if the shard came without logits."""
    if shard.logits_N_C is None:
        raise ValueError("the shard came without logits: declare Needs(posteriors=True)")
    return softmax(shard.logits_N_C)


def with_prediction(shard: Shard, score_N: NDArray[np.float64]) -> Candidates:
    """The shard's candidates with these scores, and what the classifier predicts of them."""
    probabilities_N_C = posteriors(shard)
    predicted_N = probabilities_N_C.argmax(axis=1) if len(score_N) else np.zeros(0)
    return Candidates(shard.sample_ids, score_N, predicted_N.astype(np.int32), margin_N=margin(probabilities_N_C))
