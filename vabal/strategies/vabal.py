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
from vabal.strategies.base import (
    Context,
    ScoringStrategy,
    Shard,
    margin,
    posteriors,
)
from vabal.strategies.candidates import Candidates, class_columns
from vabal.strategies.rules import Rule

_FROM_THE_POOL = ("standardised", "contrast")  # reductions of the likelihood that need the candidates' moments


class VabalStrategy(ScoringStrategy):
    """The score is Eq. 6's, in log space, as the settings put it together."""

    name: ClassVar[str] = "vabal"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True, vae=True)
    derivable: bool = True

    def needs_under(self, settings: Any) -> Needs:
        """The networks beside the classifier whose mean posterior the settings ask for."""
        return replace(self.needs, members=max(self.needs.members, settings.probabilities.members))

    def prepare(self, context: Context) -> Context:
        """Completes the class terms with the candidates' moments, where the likelihood's scale needs them."""
        terms = _required(context.class_terms, "class terms")
        chosen = context.settings.probabilities
        needed = chosen.likelihood_reduction in _FROM_THE_POOL or chosen.guard > 0
        if not needed or terms.moments is not None:
            return context
        if not any(len(shard.sample_ids) for shard in context.shards()):
            return context
        likelihoods = (_required(shard.log_likelihood_N_C, "log likelihoods") for shard in context.shards())
        moments = pool_moments((values_N_C.astype(np.float32) for values_N_C in likelihoods), chosen.guard)
        return replace(context, class_terms=terms.with_moments(moments))

    def score(self, shard: Shard, context: Context) -> Candidates:
        terms = _required(context.class_terms, "class terms")
        probabilities_N_C = _posteriors(shard, context.settings.probabilities.members)
        if not len(probabilities_N_C):
            return Candidates(shard.sample_ids, np.zeros(0))
        vae_class_N = np.asarray(_required(shard.vae_class_N, "the VAE's classes"), dtype=np.int32)
        predicted_N = probabilities_N_C.argmax(axis=1).astype(np.int32)
        chosen = context.settings.probabilities.classes
        own_class_N = predicted_N if chosen in ("classifier", "posterior") else vae_class_N
        prior_N, precision_N = class_columns(own_class_N, terms)
        unscored = Candidates(
            sample_ids=shard.sample_ids,
            score_N=np.zeros(len(vae_class_N)),
            predicted_class_N=predicted_N,
            vae_class_N=vae_class_N,
            own_class_N=own_class_N,
            log_likelihood_N_C=np.asarray(_required(shard.log_likelihood_N_C, "log likelihoods"), dtype=np.float32),
            prior_N=prior_N,
            precision_N=precision_N,
            margin_N=margin(probabilities_N_C),
            posterior_N_C=probabilities_N_C.astype(np.float32) if self._has_posteriors(context.settings) else None,
            logits_N_C=None if context.settings.probabilities.members > 1 else shard.logits_N_C,
        )
        return replace(unscored, score_N=_score(unscored, terms, context.settings))

    def _has_posteriors(self, settings: Any) -> bool:
        """Whether posteriors are recorded; else logits are, which say the same and more."""
        return bool(settings.probabilities.members > 1 or settings.probabilities.classes == "posterior")

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
        return _score(candidates, _required(class_terms, "class terms"), settings)

    def scores_follow(self, columns: Collection[str], settings: Any) -> bool:
        """Tables without posteriors are of versions whose spread batches had places for scores."""
        searched = settings.selection.batch == "spread" or settings.probabilities.classes == "posterior"
        return "posteriors" in columns or not searched

    def rule(self, settings: Any) -> Rule:
        """The setting `selection.batch`."""
        chosen: Rule = settings.selection.batch
        return chosen


def _posteriors(shard: Shard, members: int) -> NDArray[np.float64]:
    """The classifier's posterior of each candidate, or the mean posterior of an ensemble of so many.

    The latter in the float32 in which it is recorded, so that all that is computed from it follows from the record.
    """
    if members == 1:
        return posteriors(shard)
    return np.asarray(_required(shard.predictive_N_C, "the ensemble's posteriors"), dtype=np.float32).astype(np.float64)


def _score(candidates: Candidates, class_terms: ClassTerms, settings: Any) -> NDArray[np.float64]:
    return mistake_score(
        _required(candidates.log_likelihood_N_C, "log likelihoods"),
        class_terms,
        settings.probabilities,
        vae_class_N=candidates.vae_class_N,
        predicted_class_N=candidates.predicted_class_N,
        margin_N=candidates.margin_N,
        posterior_N_C=candidates.posterior_N_C,
        sample_ids=candidates.sample_ids,
    )


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"strategy vabal: {what} are missing; the context must carry what its needs declare")
    return value
