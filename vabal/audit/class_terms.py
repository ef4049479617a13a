"""Can Eqs. 11 and 12 have come to a manifest's class terms?"""

from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from vabal.pools import AVAILABLE, Pools
from vabal.probabilities import ClassTerms
from vabal.probabilities.class_terms import LikelihoodMoments
from vabal.settings.models import Params
from vabal.strategies import Strategy, needs_of


def wrong_terms(terms: ClassTerms | None, settings: Params, strategy: Strategy, taken_in: Pools) -> list[str]:
    """What Eqs. 11 and 12 cannot have come to, with so many samples, draws and so much smoothing."""
    left, needs = bool((taken_in.unlabeled["status"] == AVAILABLE).any()), needs_of(strategy, settings)
    # A strategy that can need a VAE had one in earlier versions, whatever the settings took of it.
    allowed = left and (needs.estimated or strategy.needs.vae)
    misplaced = not allowed if terms is not None else left and needs.estimated
    if terms is None or misplaced:
        return ["class_terms are there where none are needed, or missing"] if misplaced else []
    prior_C, precision_C = terms.prior_C, terms.precision_C
    wrong: list[str] = []
    if terms.labeled_floor is not None and not (settings.probabilities.guard and np.isfinite(terms.labeled_floor)):
        wrong.append("class_terms: labeled_floor is there where no guard asks, or is no finite number")
    if not ((precision_C > 0) & (precision_C <= 1 + _SUM)).all():
        wrong.append("class_terms: a precision does not lie between 0 and 1")
    chosen, classes = settings.probabilities, len(prior_C)
    if not needs.vae and not chosen.use_prior and (prior_C == 1).all():  # off, and not counted
        return wrong
    if abs(prior_C.sum() - 1) >= _SUM:
        wrong.insert(0, "class_terms: the priors do not add up to 1")
    pool = taken_in.unlabeled if chosen.prior_pool == "unlabeled" else taken_in.labeled
    draws = max(chosen.draws, _CLASS_DRAWS) if chosen.sampling in ("anchored", "auto") else chosen.draws
    predicted_C = prior_C * (len(pool) + classes * chosen.smoothing) - chosen.smoothing  # Eq. 12
    if chosen.prior_pool == "labels":
        labels_C = taken_in.labeled["label"].value_counts().reindex(taken_in.classes, fill_value=0).to_numpy()
        if np.abs(predicted_C - labels_C).max(initial=0) > _SUM * max(len(pool), 1):
            wrong.append("class_terms: the priors are not those of the labels")
    elif not _are_counts(predicted_C * draws):
        wrong.append(f"class_terms: no prior of a count over {len(pool)} samples")
    if chosen.prior_pool == "labeled" and chosen.precision_from == "vae":
        correct_C = precision_C * (predicted_C + classes * chosen.smoothing) - chosen.smoothing  # Eq. 11
        if not _are_counts(correct_C * draws) or (correct_C > predicted_C + _SUM).any():
            wrong.append(f"class_terms: no precision of a count over {len(pool)} samples")
    return wrong


def _are_counts(values_C: NDArray[np.float64]) -> bool:
    room_C = 1e-9 * np.maximum(np.abs(values_C), 1e3)  # what the logarithm and back leave of a whole number
    return bool((np.abs(values_C - np.round(values_C)) <= room_C).all() and (values_C > -room_C).all())


_SUM = 1e-9
_CLASS_DRAWS = 100  # probabilities.CLASS_DRAWS, as it was in every version


def wrong_moments(terms: ClassTerms | None, again: ClassTerms | None) -> list[str]:
    one = None if terms is None else terms.moments
    other = None if again is None else again.moments
    if one is None or other is None:
        return [] if one is other else ["class_terms: moments of the pool where none are needed, or none"]
    values, others = (_numbers(each) for each in (one, other))
    same = values.shape == others.shape and np.allclose(values, others, rtol=1e-7, atol=0, equal_nan=True)
    return [] if same else ["class_terms: the moments are not those of the candidates"]


def _numbers(moments: LikelihoodMoments) -> NDArray[np.float64]:
    """All of them side by side; nan for one that there is not."""
    told = [getattr(moments, part.name) for part in fields(moments)]
    return np.hstack([np.nan if value is None else np.asarray(value, dtype=np.float64) for value in told])
