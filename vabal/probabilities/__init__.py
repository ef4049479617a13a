"""The three terms of p(mistake) and what they add up to (paper, Eqs. 6, 9, 11 and 12), in log space throughout."""

from vabal.probabilities.anchors import anchored
from vabal.probabilities.checks import encoder_of
from vabal.probabilities.class_terms import ClassTerms, count_class_terms, estimate_class_terms
from vabal.probabilities.decoder import fold, products_of
from vabal.probabilities.likelihood import estimate_likelihood
from vabal.probabilities.noise import LONG_RUN, counting_noise, drawing_of, shared_noise
from vabal.probabilities.score import labeled_floor, mistake_score, pool_moments

__all__ = [
    "LONG_RUN",
    "ClassTerms",
    "anchored",
    "count_class_terms",
    "counting_noise",
    "drawing_of",
    "encoder_of",
    "estimate_class_terms",
    "estimate_likelihood",
    "fold",
    "labeled_floor",
    "mistake_score",
    "pool_moments",
    "products_of",
    "shared_noise",
]
