"""What a night keeps of every candidate where `selection.record` is `compact`: no more digits than picks depend on.

What is left out is left out before anything is computed from it, so that scores and picks follow from the record to the
last bit, as they do from a full one. The files keep their types: the digits that are dropped are zeros, which
compression removes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of the fraction: bfloat16's for differences of logits (off by 0.4 % at most), float16's for the others.
_LOGIT_BITS, _LEVEL_BITS, _FEATURE_BITS = 7, 10, 10
SCORE_ROUNDING = 2.0**-22  # relative: where two processors round a score's last digit otherwise


def asked_for(settings: Any) -> bool:
    """Whether the section `selection` of these settings asks for it."""
    return bool(getattr(settings.selection, "record", "full") == "compact")


def logits(values_N_C: NDArray[np.floating]) -> NDArray[np.float32]:
    """Less the largest of each row, which leaves the posterior as it is, in bfloat16's precision.

    The largest is 0 then and every other one below it, so that no prediction changes. float32.
    """
    if not values_N_C.size:
        return np.asarray(values_N_C, dtype=np.float32)
    wide_N_C = np.asarray(values_N_C, dtype=np.float32)
    with np.errstate(invalid="ignore"):  # whoever looks at what is not finite names it
        return _rounded(wide_N_C - wide_N_C.max(axis=1, keepdims=True), _LOGIT_BITS)


def level(log_likelihood_N_C: NDArray[np.floating]) -> NDArray[np.float32]:
    """level_N: each row's mean over the classes in float16's precision, and float32's range."""
    return _rounded(np.asarray(log_likelihood_N_C, dtype=np.float64).mean(axis=1), _LEVEL_BITS)


def features(values_N_D: NDArray[np.floating]) -> NDArray[np.float32]:
    """In float16's precision, and float32's range."""
    return _rounded(values_N_D, _FEATURE_BITS)


def single(values: NDArray[np.floating]) -> NDArray[Any]:
    """In float32's precision; the same type."""
    return values.astype(np.float32).astype(values.dtype)


def _rounded(values: NDArray[np.floating], bits: int) -> NDArray[np.float32]:
    """To the nearest float32 with so many bits of its fraction, to the even one of two; what is not finite stays."""
    single_precision = np.array(values, dtype=np.float32)
    dropped = np.uint32(23 - bits)
    as_bits = single_precision.view(np.uint32)
    odd = (as_bits >> dropped) & np.uint32(1)
    half = np.uint32((1 << (int(dropped) - 1)) - 1)
    kept = ((as_bits + half + odd) >> dropped) << dropped
    return np.where(np.isfinite(single_precision), kept.view(np.float32), single_precision)
