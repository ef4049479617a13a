"""p(mistake) and the moments that it takes (paper, Eq. 6), in log space throughout."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.probabilities.blocks import rounded
from vabal.probabilities.checks import Values, all_finite, float64, settings_of
from vabal.probabilities.class_terms import SMALLEST_DOUBT, ClassTerms, LikelihoodMoments

# -- Eq. 6 ------------------------------------------------------------------------------------------------------


GUARDED = 1e6  # taken from a score, more than any two differ: asked about last
LIKELY = 0.02  # of the labelled samples may lie below the level from which on a sample is as likely as they are


def labeled_floor(log_likelihood_L_C: Any) -> float | None:
    """The level (mean over the classes) below which lie LIKELY of the labelled samples; None where there are none."""
    values_L_C = float64(log_likelihood_L_C)
    return _floor(_level(values_L_C), LIKELY) if len(values_L_C) else None


def pool_moments(
    log_likelihood_shards: Iterable[Any], guard: float = 0.0, labeled_floor: float | None = None
) -> LikelihoodMoments:
    """Moments of the candidates' log likelihoods, in one pass over the shards, and the level below which the share
    `guard` of them lies, or fewer: those alone that lie below `labeled_floor` (the function's).

    Rounded to nine digits, so that the order of the summation cannot show. A deviation of zero becomes 1: there is
    nothing to scale. Raises ValueError if there are no candidates.
    """
    count, mean, spread, contrast = 0, np.zeros(0), np.zeros(0), 0.0
    levels: list[NDArray[np.float64]] = []
    for shard in log_likelihood_shards:
        values_N_C = float64(shard)
        if not len(values_N_C):
            continue
        if guard:
            levels.append(_level(values_N_C))
        level_N = values_N_C.mean(axis=1, keepdims=True)
        contrast += float(np.square(values_N_C - level_N).mean(axis=1).sum())
        columns = np.hstack([values_N_C, level_N])
        here = columns.mean(axis=0)
        spread_here = np.square(columns - here).sum(axis=0)
        if not count:
            mean, spread = np.zeros_like(here), np.zeros_like(here)
        total = count + len(columns)  # the parts are merged as Chan, Golub and LeVeque do
        spread = spread + spread_here + np.square(here - mean) * (count * len(columns) / total)
        mean = mean + (here - mean) * (len(columns) / total)
        count = total
    if not count:
        raise ValueError("no candidates: their log likelihoods have no moments")
    deviation = [rounded(value) or 1.0 for value in np.sqrt(spread / count)]
    means = [rounded(value) for value in mean]
    return LikelihoodMoments(
        tuple(means[:-1]),
        tuple(deviation[:-1]),
        means[-1],
        deviation[-1],
        rounded((contrast / count) ** 0.5) or 1.0,
        _lower(_floor(np.concatenate(levels), guard), labeled_floor) if guard else None,
    )


def _lower(floor: float, other: float | None) -> float:
    return floor if other is None else min(floor, other)


def _floor(level_N: NDArray[np.float64], guard: float) -> float:
    """The level of the first that is not shut out; of all, the highest is not."""
    place = min(int(guard * len(level_N)), len(level_N) - 1)
    return float(np.partition(level_N, place)[place])


def mistake_score(
    log_likelihood_N_C: Values,
    class_terms: ClassTerms | None,
    settings: Any = None,
    *,
    vae_class_N: Any = None,
    predicted_class_N: Any = None,
    margin_N: Any = None,
    posterior_N_C: Any = None,
    sample_ids: Sequence[Any] | NDArray[Any] | None = None,
    level_N: Any = None,
) -> Values:
    """score_N (float64): p(mistake) of Eq. 6 up to a monotone function; the highest are asked about first.

    Takes log likelihoods as `estimate_likelihood` yields them. `classes: predicted` needs vae_class_N, `classifier`
    needs predicted_class_N (the classifier's), `posterior` needs posterior_N_C, `margin_weight` needs margin_N (the
    classifier's best probability less its second). With `posterior` the score is log sum_n p(n|x) / (term of class n),
    Eq. 6's inverse expected under the classifier's posterior: a sample counts that may be of a class which the labelled
    pool lacks. `guard` puts the samples last whose likelihood, over all classes, is below the pool's `floor`. Where
    prior, precision, likelihood and guard are off, class_terms may be None. Each sample's score depends on its own row
    alone, bit for bit.

    level_N, where given, is each sample's likelihood over all classes (a mean); with `likelihood_weight: 0` the values
    of log_likelihood_N_C do not count then.

    Raises ValueError for something missing, UserError naming the samples whose numbers are not finite.
    """
    chosen = settings_of(settings)
    values_N_C = float64(log_likelihood_N_C)
    all_finite(values_N_C, "the log likelihood", sample_ids)
    if chosen.likelihood_weight:
        values_N_C = chosen.likelihood_weight * _scaled(values_N_C, class_terms, chosen.likelihood_reduction)
    else:
        values_N_C = np.zeros_like(values_N_C)
    log_terms_C = _log_terms(class_terms, chosen, values_N_C.shape[1])
    own_N = _own_class(chosen.classes, vae_class_N, predicted_class_N, len(values_N_C))
    if chosen.score == "published_code":  # the loss in the likelihood's place, as the authors' code has it
        score_N = 1 + _sum_over_classes(values_N_C * np.exp(log_terms_C), own_N)
    elif chosen.classes == "posterior":
        log_posterior_N_C = _log_posterior(posterior_N_C, values_N_C.shape)
        score_N = _log_sum_exp(log_posterior_N_C - values_N_C - log_terms_C, None)
    else:
        score_N = -_log_sum_exp(values_N_C + log_terms_C, own_N)  # Eq. 6
    if chosen.margin_weight:
        if margin_N is None:
            raise ValueError("margin_weight is set: pass margin_N")
        margins_N = float64(margin_N)
        all_finite(margins_N[:, None], "the classifier's margin", sample_ids)
        score_N = score_N + chosen.margin_weight * np.log(np.maximum(1 - margins_N, SMALLEST_DOUBT))
    if chosen.guard:
        over_all_N = _level(float64(log_likelihood_N_C)) if level_N is None else float64(level_N)
        all_finite(over_all_N[:, None], "the log likelihood", sample_ids)
        score_N = score_N - GUARDED * _is_junk(over_all_N, class_terms)
    all_finite(score_N[:, None], "the score", sample_ids)
    if isinstance(log_likelihood_N_C, Tensor):
        return torch.from_numpy(score_N)
    return score_N


def _log_terms(class_terms: ClassTerms | None, chosen: Any, classes: int) -> NDArray[np.float64]:
    """log_terms_C: prior and precision, as far as they are on, to the power `exponent`."""
    log_terms_C = np.zeros(classes)
    if not (chosen.use_prior or chosen.use_precision):
        return log_terms_C
    if class_terms is None:
        raise ValueError("use_prior or use_precision is set: pass class_terms")
    if chosen.use_prior:
        log_terms_C = log_terms_C + float64(class_terms.log_prior_C)
    if chosen.use_precision:
        log_terms_C = log_terms_C + float64(class_terms.log_precision_C)
    return np.asarray(chosen.exponent * log_terms_C)


def _is_junk(level_N: NDArray[np.float64], class_terms: ClassTerms | None) -> NDArray[np.bool_]:
    moments = None if class_terms is None else class_terms.moments
    if moments is None or moments.floor is None:
        raise ValueError("guard is set: class_terms.with_moments(pool_moments(..., guard)) comes first")
    return np.asarray(level_N < moments.floor)


def _level(values_N_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """level_N: a sample's mean over the classes."""
    return np.asarray(_sum_over_classes(values_N_C, None) / values_N_C.shape[1])


def _scaled(values_N_C: NDArray[np.float64], class_terms: ClassTerms | None, reduction: str) -> NDArray[np.float64]:
    if reduction in ("sum", "mean"):
        return values_N_C
    moments = None if class_terms is None else class_terms.moments
    if moments is None:
        raise ValueError(
            f"likelihood_reduction is {reduction}: class_terms.with_moments(pool_moments(...)) comes first"
        )
    if reduction == "standardised":
        return np.asarray((values_N_C - np.array(moments.mean)) / np.array(moments.deviation))
    level_N_1 = _level(values_N_C)[:, None]
    contrast_N_C = (values_N_C - level_N_1) / moments.contrast_deviation
    standard_level_N_1 = (level_N_1 - moments.level_mean) / moments.level_deviation
    return np.asarray(contrast_N_C + standard_level_N_1)


def _own_class(classes: str, vae_class_N: Any, predicted_class_N: Any, samples: int) -> NDArray[np.int64] | None:
    """The one class whose term counts; None where all do."""
    if classes in ("all", "posterior"):
        return None
    name, given = ("vae_class_N", vae_class_N) if classes == "predicted" else ("predicted_class_N", predicted_class_N)
    if given is None or len(given) != samples:
        raise ValueError(f"classes is {classes}: pass {name}, one class a sample")
    return np.asarray(given, dtype=np.int64)


def _log_posterior(posterior_N_C: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    if posterior_N_C is None or np.shape(posterior_N_C) != shape:
        raise ValueError("classes is posterior: pass posterior_N_C, a probability for each sample and class")
    return np.log(np.maximum(float64(posterior_N_C), np.finfo(np.float64).tiny))


def _log_sum_exp(terms_N_C: NDArray[np.float64], own_N: NDArray[np.int64] | None) -> NDArray[np.float64]:
    if own_N is not None:
        return _sum_over_classes(terms_N_C, own_N)
    largest_N = terms_N_C.max(axis=1, initial=-np.inf)
    share_N_C = terms_N_C - largest_N[:, None]
    return np.asarray(largest_N + np.log(_sum_over_classes(np.exp(share_N_C, out=share_N_C), None)))


def _sum_over_classes(terms_N_C: NDArray[np.float64], own_N: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Class by class, in order: a sample's sum does not depend on which others stand beside it."""
    if own_N is not None:
        return np.asarray(np.take_along_axis(terms_N_C, own_N[:, None], axis=1)[:, 0])
    total_N = np.zeros(len(terms_N_C))
    for column_N in terms_N_C.T:
        total_N = total_N + column_N
    return total_N
