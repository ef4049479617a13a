"""The paper's strategy: the samples with the highest p(mistake) (Eq. 6).

`selection.batch: spread` turns scores into a batch of which the members lie far apart (vabal.strategies.spread). It is
a search over features, which the candidates' table does not hold; so the table's score is then budget - place for the
picks and the rank by Eq. 6 below them, and the terms of Eq. 6 stand beside it. Memory: the features of a shortlist of
SHORTLIST x budget candidates, and of the pool an id and a number each; each candidate is scored twice.
"""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from vabal.probabilities import ClassTerms, mistake_score, pool_moments
from vabal.strategies.batch import Picker, Rule, hash_ids
from vabal.strategies.candidates import Candidates, class_columns
from vabal.strategies.seam import (
    Context,
    Needs,
    ScoringStrategy,
    Selection,
    Shard,
    check_finite,
    margin,
    no_picks,
    posteriors,
    shortfall,
)
from vabal.strategies.spread import spread

SHORTLIST = 100  # candidates a pick among which a spread batch is searched, those with the highest scores
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
        by_classifier = context.settings.probabilities.classes in ("classifier", "posterior")
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
        return replace(unscored, score_N=_score(unscored, terms, context.settings, probabilities_N_C))

    def rescore(
        self,
        candidates: Candidates,
        *,
        class_terms: ClassTerms | None,
        settings: Any,
        seed: int,  # noqa: ARG002 -- the seam's
    ) -> NDArray[np.float64] | None:
        if not len(candidates):
            return np.zeros(0)
        if settings.selection.batch == "spread" or settings.probabilities.classes == "posterior":
            return None  # the table holds neither features nor posteriors
        return _score(candidates, _required(class_terms, "class terms"), settings)

    def rule(self, settings: Any) -> Rule:
        """The setting `selection.batch`; the picks of a spread batch stand at the head of the table's scores."""
        chosen: Rule = "topk" if settings.selection.batch == "spread" else settings.selection.batch
        return chosen

    def select(self, context: Context, budget: int) -> Selection:
        if context.settings.selection.batch != "spread":
            return super().select(context, budget)
        context = self.prepare(context)
        shortlist = Picker(SHORTLIST * budget, "topk", seed=context.seed)
        ids, scores = [], []
        for shard in context.shards():
            scored = self.score(shard, context)
            shortlist.add(scored)
            ids.append(np.array([str(sample_id) for sample_id in scored.sample_ids], dtype=str))
            scores.append(scored.score_N)
        if not shortlist.candidates:
            return no_picks(self.name, budget, context.seed)
        listed = shortlist.picks()
        features_N_D = _features_of(listed.sample_ids, context)
        order = spread(listed.score_N, features_N_D, min(budget, len(listed)), float(context.settings.selection.beta))
        picks = replace(listed.take(order), score_N=budget - np.arange(len(order), dtype=np.float64))
        if context.write is not None:
            encoded = _encoded(np.concatenate(ids), np.concatenate(scores), picks, context.seed)
            ends = np.cumsum([len(part) for part in ids])
            for shard, end, part in zip(context.shards(), ends, ids, strict=True):
                context.write(replace(self.score(shard, context), score_N=encoded[end - len(part) : end]))
        return Selection(
            strategy=self.name,
            picks=picks,
            budget=budget,
            rule="topk",
            beta=1.0,
            seed=context.seed,
            candidates=shortlist.candidates,
            class_terms=context.class_terms,
            notes=shortfall(budget, shortlist.candidates),
        )


def _features_of(sample_ids: NDArray[Any], context: Context) -> NDArray[np.float32]:
    """The last stage's features of these candidates, in their order, gathered in one pass over the shards."""
    row_of = {str(sample_id): row for row, sample_id in enumerate(sample_ids)}
    gathered: NDArray[np.float32] | None = None
    for shard in context.shards():
        rows = np.array([row_of.get(str(sample_id), -1) for sample_id in shard.sample_ids], dtype=np.int64)
        here = np.flatnonzero(rows >= 0)
        values_N_D = context.deep(_required(shard.features_N_D, "features"))[here]
        if gathered is None:
            gathered = np.empty((len(sample_ids), values_N_D.shape[1]), dtype=np.float32)
        gathered[rows[here]] = values_N_D
    assert gathered is not None  # noqa: S101 -- the candidates came from these shards
    check_finite("features_N_D", gathered, sample_ids)
    return gathered


def _encoded(
    ids_N: NDArray[np.str_], score_N: NDArray[np.float64], picks: Candidates, seed: int
) -> NDArray[np.float64]:
    """The picks' own scores at the head, the others' ranks by Eq. 6 below zero."""
    encoded_N = np.empty(len(ids_N))
    order = np.lexsort((ids_N, hash_ids(ids_N, seed), -score_N))
    encoded_N[order] = -np.arange(1, len(ids_N) + 1, dtype=np.float64)
    score_of = dict(zip(map(str, picks.sample_ids), picks.score_N, strict=True))
    for row in np.flatnonzero(np.isin(ids_N, list(score_of))):
        encoded_N[row] = score_of[str(ids_N[row])]
    return encoded_N


def _score(
    candidates: Candidates, class_terms: ClassTerms, settings: Any, posterior_N_C: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    return mistake_score(
        _required(candidates.log_likelihood_N_C, "log likelihoods"),
        class_terms,
        settings.probabilities,
        vae_class_N=candidates.vae_class_N,
        predicted_class_N=candidates.predicted_class_N,
        margin_N=candidates.margin_N,
        posterior_N_C=posterior_N_C,
        sample_ids=candidates.sample_ids,
    )


def _required(value: Any, what: str) -> Any:
    if value is None:
        raise ValueError(f"strategy vabal: {what} are missing; the context must carry what its needs declare")
    return value
