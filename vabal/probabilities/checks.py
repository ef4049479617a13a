"""What the estimates ask of their arguments."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vabal.errors import UserError
from vabal.settings.models import ProbabilitySettings
from vabal.vae import FeatureVAE

Values = TypeVar("Values", Tensor, NDArray[Any])


# -- checks -----------------------------------------------------------------------------------------------------


def settings_of(settings: Any) -> Any:
    if settings is None:
        return ProbabilitySettings()
    return ProbabilitySettings(**settings) if isinstance(settings, Mapping) else settings


def encoder_of(vae: FeatureVAE) -> FeatureVAE:
    """A copy in evaluation and in float64: heads and encoder run once a sample, beside T x C decodings."""
    return copy.deepcopy(vae).double().eval()


def checked_classes(values: Any, num_classes: int, what: str) -> NDArray[np.int64]:
    classes_N = np.asarray(values)
    if classes_N.ndim != 1 or (len(classes_N) and classes_N.dtype.kind not in "iu"):
        raise ValueError(f"{what}: expected a list of class indices, found {classes_N.dtype} {classes_N.shape}")
    if len(classes_N) and not 0 <= classes_N.min() <= classes_N.max() < num_classes:
        raise ValueError(f"{what}: expected 0 to {num_classes - 1}, found {classes_N.min()} to {classes_N.max()}")
    return classes_N.astype(np.int64)


def all_finite(values_N_C: NDArray[Any], what: str, sample_ids: Sequence[Any] | NDArray[Any] | None) -> None:
    wrong = np.flatnonzero(~np.isfinite(values_N_C).all(axis=1))
    if len(wrong):
        names = [f"row {row}" for row in wrong] if sample_ids is None else [str(sample_ids[int(row)]) for row in wrong]
        raise UserError(
            f"{what} is not finite for {first_of(names)}: train the VAE again with a lower vae.learning_rate"
        )


def first_of(names: Sequence[Any]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(str(name) for name in names[:5]) + more


def float64(values: Any) -> NDArray[np.float64]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return np.asarray(array, dtype=np.float64)
