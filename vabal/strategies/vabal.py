"""The paper's strategy: the samples with the highest p(mistake) (Eq. 6)."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.probabilities import ClassTerms, mistake_score, pool_moments
from vabal.strategies.batch import Rule
from vabal.strategies.candidates import Candidates, class_columns
from vabal.strategies.seam import Context, Needs, ScoringStrategy, Shard, margin, posteriors

_FROM_THE_POOL = ("standardised", "contrast")  # reductions of the likelihood that need the candidates' moments


class VabalStrategy(ScoringStrategy):
    """The score is Eq. 6's, in log space, as the settings put it together."""

    name: ClassVar[str] = "vabal"
    needs: ClassVar[Needs] = Needs(features=True, posteriors=True, vae=True)

    def prepare(self, context: Context) -> Context:
        """Completes the class terms with the candidates' moments, where the likelihood's scale needs them."""
        terms = _required(context.class_terms, "class terms")
        if context.settings.probabilities.likelihood_reduction not in _FROM_THE_POOL or terms.moments is not None:
            return context
        if not any(len(shard.sample_ids) for shard in context.shards()):
            return context
        moments = pool_moments(
            _required(shard.log_likelihood_N_C, "log likelihoods").astype(np.float32) for shard in context.shards()
        )
        return replace(context, class_terms=terms.with_moments(moments))

    def score(self, shard: Shard, context: Context) -> Candidates:
        terms = _required(context.class_terms, "class terms")
        probabilities_N_C = posteriors(shard)
        if not len(probabilities_N_C):
            return Candidates(shard.sample_ids, np.zeros(0))
        vae_class_N = np.asarray(_required(shard.vae_class_N, "the VAE's classes"), dtype=np.int32)
        predicted_N = probabilities_N_C.argmax(axis=1).astype(np.int32)
        by_classifier = context.settings.probabilities.classes == "classifier"
        own_class_N = predicted_N if by_classifier else vae_class_N
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
        )
        return replace(unscored, score_N=_score(unscored, terms, context.settings))

    def rescore(
        self,
        candidates: Candidates,
        *,
        class_terms: ClassTerms | None,
        settings: Any,
        seed: int,  # noqa: ARG002 -- the seam's
    ) -> NDArray[np.float64]:
        if not len(candidates):
            return np.zeros(0)
        return _score(candidates, _required(class_terms, "class terms"), settings)

    def rule(self, settings: Any) -> Rule:
        """The setting `selection.batch`."""
        chosen: Rule = settings.selection.batch
        return chosen


def _score(candidates: Candidates, class_terms: ClassTerms, settings: Any) -> NDArray[np.float64]:
    return mistake_score(
        _required(candidates.log_likelihood_N_C, "log likelihoods"),
        class_terms,
        settings.probabilities,
        vae_class_N=candidates.vae_class_N,
        predicted_class_N=candidates.predicted_class_N,
        margin_N=candidates.margin_N,
        sample_ids=candidates.sample_ids,
    )


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"strategy vabal: {what} are missing; the context must carry what its needs declare")
    return value
