"""The paper's strategy: the samples with the highest p(mistake) (Eq. 6).

`selection.batch` says how scores become a batch. With `spread` its members lie far apart (vabal.strategies.spread): a
search over features among the candidates with the highest scores, which the selection hands back so that the picks can
be derived again. Memory: the features of that shortlist, and the picks.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.learning.needs import Needs
from vabal.probabilities import ClassTerms, mistake_score, pool_moments
from vabal.strategies import compact
from vabal.strategies.base import (
    Context,
    ScoringStrategy,
    Shard,
    posteriors,
)
from vabal.strategies.candidates import Candidates, class_columns, margin, softmax
from vabal.strategies.rules import Rule

_FROM_THE_POOL = ("standardised", "contrast")  # reductions of the likelihood that need the candidates' moments


class VabalStrategy(ScoringStrategy):
    """The score is Eq. 6's, in log space, as the settings put it together."""

    name: ClassVar[str] = "vabal"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True, vae=True, class_terms=True)
    derivable: bool = True
    only_searches_features: bool = True

    def needs_under(self, settings: Any) -> Needs:
        """The VAE and the class terms, where a part of the score takes them, and the networks beside the classifier."""
        chosen = settings.probabilities
        return replace(
            self.needs,
            members=max(self.needs.members, chosen.members),
            vae=_asks_the_vae(chosen),
            class_terms=chosen.use_prior or chosen.use_precision,
        )

    def prepare(self, context: Context) -> Context:
        """Completes the class terms with the candidates' moments, where the likelihood's scale needs them."""
        needs, chosen = self.needs_under(context.settings), context.settings.probabilities
        terms = _given(context.class_terms, needs.estimated, "class terms")
        needed = chosen.likelihood_reduction in _FROM_THE_POOL or chosen.guard > 0
        if not needed or terms is None or terms.moments is not None:
            return context
        first = next((shard for shard in context.shards() if len(shard.sample_ids)), None)
        if first is None or _given(_told(first, context.settings), needs.vae, "log likelihoods") is None:
            return context
        likelihoods = (_required(_told(shard, context.settings), "log likelihoods") for shard in context.shards())
        shards = (values_N_C.astype(np.float32) for values_N_C in likelihoods)
        moments = pool_moments(shards, chosen.guard, terms.labeled_floor)
        return replace(context, class_terms=terms.with_moments(moments))

    def score(self, shard: Shard, context: Context) -> Candidates:
        needs = self.needs_under(context.settings)
        terms = _given(context.class_terms, needs.estimated, "class terms")
        probabilities_N_C = _posteriors(shard, context.settings.probabilities.members)
        if not len(probabilities_N_C):
            return Candidates(shard.sample_ids, np.zeros(0))
        vae_class_N = _as(np.int32, _given(shard.vae_class_N, needs.vae, "the VAE's classes"))
        predicted_N = probabilities_N_C.argmax(axis=1).astype(np.int32)
        chosen = context.settings.probabilities.classes
        own_class_N = predicted_N if vae_class_N is None or chosen in ("classifier", "posterior") else vae_class_N
        prior_N, precision_N = (None, None) if terms is None else class_columns(own_class_N, terms)
        told = _as(np.float32, _given(_told(shard, context.settings), needs.vae, "log likelihoods"))
        level_N = told[:, 0] if told is not None and _levels_do(context.settings) else None
        unscored = Candidates(
            sample_ids=shard.sample_ids,
            score_N=np.zeros(len(predicted_N)),
            predicted_class_N=predicted_N,
            vae_class_N=vae_class_N,
            own_class_N=None if terms is None else own_class_N,
            log_likelihood_N_C=told if level_N is None else None,
            level_N=level_N,
            prior_N=prior_N,
            precision_N=precision_N,
            margin_N=margin(probabilities_N_C),
            posterior_N_C=probabilities_N_C.astype(np.float32) if self._has_posteriors(context.settings) else None,
            logits_N_C=None if context.settings.probabilities.members > 1 else shard.logits_N_C,
        )
        return replace(unscored, score_N=_score(unscored, terms, context.settings, probabilities_N_C))

    def rounding(self, settings: Any) -> float:
        """Of float32's digits, where a compact record has no more."""
        return compact.SCORE_ROUNDING if compact.asked_for(settings) else super().rounding(settings)

    def _has_posteriors(self, settings: Any) -> bool:
        """Whether posteriors are recorded; else logits are, which say the same and more."""
        several, chosen = settings.probabilities.members > 1, settings.probabilities.classes
        return bool(several or (chosen == "posterior" and not compact.asked_for(settings)))

    def terms(
        self, candidates: Candidates, *, class_terms: ClassTerms | None, settings: Any
    ) -> dict[str, NDArray[np.float64]]:
        """What each part adds to those before it, in the order of `_PARTS`; with a class of its own these are Eq. 6's
        logarithms. What is there without any part (the number of classes, where all are summed) is the `constant`."""
        chosen = settings.probabilities
        parts = {name: change for name, change in _PARTS.items() if any(getattr(chosen, key) for key in change)}
        values = {key: value for change in parts.values() for key, value in change.items()}
        before_N = _with(candidates, class_terms, settings, values)
        terms = {"constant": before_N} if np.abs(before_N).max(initial=0) > _NOTHING else {}
        for name, change in parts.items():
            values = {key: value for key, value in values.items() if key not in change}
            after_N = _with(candidates, class_terms, settings, values)
            terms[name], before_N = after_N - before_N, after_N
        return terms

    def rescore(
        self,
        candidates: Candidates,
        *,
        class_terms: ClassTerms | None,
        settings: Any,
        seed: int,  # noqa: ARG002 -- the base's
    ) -> NDArray[np.float64] | None:
        if not len(candidates):
            return np.zeros(0)
        return _score(candidates, _given(class_terms, self.needs_under(settings).estimated, "class terms"), settings)

    def scores_follow(self, columns: Collection[str], settings: Any) -> bool:
        """Tables without posteriors are of versions whose spread batches had places for scores."""
        searched = settings.selection.batch == "spread" or settings.probabilities.classes == "posterior"
        return "posteriors" in columns or not searched

    def rule(self, settings: Any) -> Rule:
        """The setting `selection.batch`."""
        chosen: Rule = settings.selection.batch
        return chosen


_PARTS: dict[str, dict[str, Any]] = {  # of the score, and the settings without them
    "likelihood": {"likelihood_weight": 0.0},
    "prior": {"use_prior": False},
    "precision": {"use_precision": False},
    "margin": {"margin_weight": 0.0},
    "guard": {"guard": 0.0},
}
_NOTHING = 1e-6  # what rounding leaves of a sum of probabilities


def _with(
    candidates: Candidates, class_terms: ClassTerms | None, settings: Any, values: dict[str, Any]
) -> NDArray[np.float64]:
    """The score under other settings."""
    chosen = settings.probabilities.model_copy(update=values)
    return _score(candidates, class_terms, settings.model_copy(update={"probabilities": chosen}))


def _levels_do(settings: Any) -> bool:
    """Whether the score takes no more of the log likelihoods than each sample's mean, and no more is recorded."""
    return compact.asked_for(settings) and not settings.probabilities.likelihood_weight


def _told(shard: Shard, settings: Any) -> NDArray[np.floating] | None:
    """The shard's log likelihoods, or one column: their level."""
    told_N_C, level_N = shard.log_likelihood_N_C, shard.level_N
    if not _levels_do(settings):
        return told_N_C
    if told_N_C is not None:
        level_N = compact.level(told_N_C)
    return None if level_N is None else level_N[:, None]


def _asks_the_vae(chosen: Any) -> bool:
    """Whether a part of the score takes the VAE's likelihoods, or its classes (Eq. 7)."""
    prior = chosen.use_prior and chosen.prior_pool != "labels"
    precision = chosen.use_precision and chosen.precision_from == "vae"
    return bool(chosen.likelihood_weight or chosen.guard or prior or precision or chosen.classes == "predicted")


def _posteriors(shard: Shard, members: int) -> NDArray[np.float64]:
    """The classifier's posterior of each candidate, or the mean posterior of an ensemble of so many.

    The latter in the float32 in which it is recorded, so that all that is computed from it follows from the record.
    """
    if members == 1:
        return posteriors(shard)
    return np.asarray(_required(shard.predictive_N_C, "the ensemble's posteriors"), dtype=np.float32).astype(np.float64)


def _score(
    candidates: Candidates,
    class_terms: ClassTerms | None,
    settings: Any,
    probabilities_N_C: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """`probabilities_N_C`: the softmax of the logits, for who has it already."""
    likelihoods_N_C = candidates.log_likelihood_N_C
    if likelihoods_N_C is None and (candidates.level_N is not None or not _asks_the_vae(settings.probabilities)):
        of_each_class = candidates.posterior_N_C if candidates.logits_N_C is None else candidates.logits_N_C
        likelihoods_N_C = np.zeros_like(_required(of_each_class, "posteriors"))  # of weight 0
    posterior_N_C: Any = candidates.posterior_N_C
    if posterior_N_C is None and settings.probabilities.classes == "posterior":
        logits_N_C = _required(candidates.logits_N_C, "posteriors")
        posterior_N_C = softmax(logits_N_C) if probabilities_N_C is None else probabilities_N_C
    score_N: NDArray[np.float64] = mistake_score(
        _required(likelihoods_N_C, "log likelihoods"),
        class_terms,
        settings.probabilities,
        vae_class_N=candidates.vae_class_N,
        predicted_class_N=candidates.predicted_class_N,
        margin_N=candidates.margin_N,
        posterior_N_C=posterior_N_C,
        sample_ids=candidates.sample_ids,
        level_N=candidates.level_N,
    )
    return compact.single(score_N) if compact.asked_for(settings) else score_N


def _as(dtype: Any, values: Any) -> NDArray[Any] | None:
    return None if values is None else np.asarray(values, dtype=dtype)


def _given(value: Any, needed: bool, what: str) -> Any:
    """What is there, needed or not: earlier versions had a VAE under all settings, and recorded what it said."""
    return _required(value, what) if needed else value


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"strategy vabal: {what} are missing; the context must carry what its needs declare")
    return value
