"""The class prior and the class difficulty (paper, Eqs. 11 and 12)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vabal.probabilities.blocks import blocks_of
from vabal.probabilities.checks import checked_classes, encoder_of, float64, settings_of
from vabal.probabilities.noise import NoiseBank, latents, noise_bank
from vabal.vae import FeatureVAE

SMALLEST_DOUBT = 1e-6  # of 1 - margin: below this a float32 margin says nothing


@dataclass(frozen=True)
class LikelihoodMoments:
    """Moments of the candidates' log likelihoods, for the reductions that need the pool.

    `mean` and `deviation` are each class's; a sample's level is its mean over the classes, `contrast_deviation` the
    root mean square of the differences from it. Below the level `floor` lies the share of candidates that the setting
    `guard` shuts out; None where it shuts out none.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    level_mean: float
    level_deviation: float
    contrast_deviation: float
    floor: float | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "LikelihoodMoments":
        return cls(**{**document, "mean": tuple(document["mean"]), "deviation": tuple(document["deviation"])})

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, eq=False)
class ClassTerms:
    """Eqs. 12 and 11 by class (float64, on the CPU), with the pool's moments where the likelihood's scale needs them.

    `labeled_floor` is the level (`score.labeled_floor`) from which on a sample is as likely as labelled ones are, where
    the setting `guard` asks for it. Together with the candidates' log likelihoods they give the scores again.
    """

    log_prior_C: Tensor
    log_precision_C: Tensor
    moments: LikelihoodMoments | None = None
    labeled_floor: float | None = None

    @property
    def prior_C(self) -> NDArray[np.float64]:
        """p(y^_n)."""
        return np.exp(float64(self.log_prior_C))

    @property
    def precision_C(self) -> NDArray[np.float64]:
        """p(y_n | y^_n)."""
        return np.exp(float64(self.log_precision_C))

    def with_moments(self, moments: LikelihoodMoments) -> "ClassTerms":
        return replace(self, moments=moments)

    def to_json(self) -> dict[str, Any]:
        """For the manifest; `from_json` gives the same bits back."""
        document = {
            "log_prior": float64(self.log_prior_C).tolist(),
            "log_precision": float64(self.log_precision_C).tolist(),
            "moments": None if self.moments is None else self.moments.to_json(),
        }
        return document if self.labeled_floor is None else document | {"labeled_floor": self.labeled_floor}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "ClassTerms":
        moments = document.get("moments")
        return cls(
            torch.tensor(document["log_prior"], dtype=torch.float64),
            torch.tensor(document["log_precision"], dtype=torch.float64),
            None if moments is None else LikelihoodMoments.from_json(moments),
            document.get("labeled_floor"),
        )


# -- Eqs. 11 and 12 ---------------------------------------------------------------------------------------------


class _Counts(NamedTuple):
    """In units of samples: how often each class is predicted, and how often rightly."""

    predicted_C: NDArray[np.float64]
    correct_C: NDArray[np.float64]
    samples: int


def estimate_class_terms(
    vae: FeatureVAE,
    labeled_features: Any,
    labels: Any,
    *,
    draws: int | None = None,
    generator: torch.Generator | int,
    settings: Any = None,
    unlabeled_features: Iterable[Any] | None = None,
    cross_fitted: tuple[Any, Any] | None = None,
) -> ClassTerms:
    """Prior (Eq. 12) and precision (Eq. 11) of each class, from the labelled pool's features and label indices.

    y^ is Eq. 7's class of each of `draws` latents (at least 100 with the samplings `anchored` and `auto`); only the
    energies are needed, no decoder. Smoothing adds
    `settings.smoothing` samples to each class (to each label of each predicted class in Eq. 11), so that a class that
    is never predicted has a small prior and the precision 1/C. `unlabeled_features`, an iterable of arrays N x D, is
    where Eq. 12 counts with `prior_pool: unlabeled` (with `labels` it counts the labels); `cross_fitted`, labels and
    out-of-fold predictions, is what Eq. 11 counts with `precision_from: cross_fitted`. `generator` is a generator or a
    seed; `settings` is a section `probabilities`, a mapping of its keys, or None for the defaults.

    Raises ValueError for labels that do not fit or a pool that is missing, UserError for features that are not finite.
    """
    chosen = settings_of(settings)
    bank = noise_bank(vae, draws or chosen.draws, generator, chosen.sampling)
    labels_N = checked_classes(labels, vae.num_classes, "labels")
    labeled = _count(vae, [labeled_features], [labels_N], bank, "the labelled pool")
    if chosen.prior_pool == "unlabeled":
        if unlabeled_features is None:
            raise ValueError("prior_pool is unlabeled: pass unlabeled_features")
        for_prior = _count(vae, unlabeled_features, None, bank, "the unlabelled pool")
    elif chosen.prior_pool == "labels":
        for_prior = _count_predictions(labels_N, labels_N, vae.num_classes)
    else:
        for_prior = labeled
    for_precision = labeled
    if chosen.precision_from == "cross_fitted":
        if cross_fitted is None:
            raise ValueError("precision_from is cross_fitted: pass labels and out-of-fold predictions as cross_fitted")
        for_precision = _count_predictions(*cross_fitted, vae.num_classes)
    return _class_terms(for_prior, for_precision, vae.num_classes, float(chosen.smoothing))


def count_class_terms(
    labels: Any, num_classes: int, *, settings: Any = None, cross_fitted: tuple[Any, Any] | None = None
) -> ClassTerms:
    """Prior and precision where no VAE is asked: of the labels themselves, and of `cross_fitted` predictions.

    A term that is off is 1. Raises ValueError for labels that do not fit, and where a term that is on counts the VAE's
    classes.
    """
    chosen = settings_of(settings)
    if chosen.use_prior and chosen.prior_pool != "labels":
        raise ValueError(f"prior_pool is {chosen.prior_pool}: it takes a VAE, see estimate_class_terms")
    if chosen.use_precision and (chosen.precision_from == "vae" or cross_fitted is None):
        raise ValueError("use_precision is on: without a VAE it takes precision_from: cross_fitted, and cross_fitted")
    labels_N = checked_classes(labels, num_classes, "labels")
    for_prior = _count_predictions(labels_N, labels_N, num_classes) if chosen.use_prior else None
    for_precision = None
    if chosen.use_precision and cross_fitted is not None:
        for_precision = _count_predictions(*cross_fitted, num_classes)
    return _class_terms(for_prior, for_precision, num_classes, float(chosen.smoothing))


def _class_terms(
    for_prior: _Counts | None, for_precision: _Counts | None, classes: int, smoothing: float
) -> ClassTerms:
    """Of these counts; 1 where there are none."""
    prior_C = precision_C = np.ones(classes)
    if for_prior is not None:  # Eq. 12
        prior_C = (for_prior.predicted_C + smoothing) / (for_prior.samples + classes * smoothing)
    if for_precision is not None:  # Eq. 11
        precision_C = (for_precision.correct_C + smoothing) / (for_precision.predicted_C + classes * smoothing)
    return ClassTerms(torch.from_numpy(np.log(prior_C)), torch.from_numpy(np.log(precision_C)))


def _count(
    vae: FeatureVAE,
    features_shards: Iterable[Any],
    labels_shards: Sequence[NDArray[np.int64]] | None,
    bank: "NoiseBank",
    where: str,
) -> _Counts:
    predicted_C = np.zeros(vae.num_classes, dtype=np.int64)  # in draws: whole numbers, so that no order can show
    correct_C = np.zeros(vae.num_classes, dtype=np.int64)
    samples = 0
    encoder = encoder_of(vae)
    for number, features in enumerate(features_shards):
        labels_N = None if labels_shards is None else labels_shards[number]
        if labels_N is not None and len(labels_N) != len(features):
            raise ValueError(f"{where}: {len(features)} rows of features, {len(labels_N)} labels")
        for rows, features_N_D in blocks_of(features, encoder, bank.draws, f"{where}, shard {number}"):
            drawn_N_T = _drawn_classes(encoder, features_N_D, bank)
            predicted_C += np.bincount(drawn_N_T.ravel(), minlength=vae.num_classes)
            if labels_N is not None:
                right = drawn_N_T[drawn_N_T == labels_N[rows, None]]
                correct_C += np.bincount(right, minlength=vae.num_classes)
        samples += len(features)
    return _Counts(predicted_C / bank.draws, correct_C / bank.draws, samples)


def _count_predictions(labels: Any, predictions: Any, num_classes: int) -> _Counts:
    labels_N = checked_classes(labels, num_classes, "cross-fitted labels")
    predictions_N = checked_classes(predictions, num_classes, "cross-fitted predictions")
    if len(labels_N) != len(predictions_N):
        raise ValueError(f"cross-fitted: {len(labels_N)} labels, {len(predictions_N)} predictions")
    return _Counts(
        np.bincount(predictions_N, minlength=num_classes).astype(np.float64),
        np.bincount(labels_N[labels_N == predictions_N], minlength=num_classes).astype(np.float64),
        len(labels_N),
    )


@torch.inference_mode()
def _drawn_classes(vae: FeatureVAE, features_N_D: Tensor, bank: "NoiseBank") -> NDArray[np.int64]:
    """classes_N_T: Eq. 7's class of each draw."""
    mean_N_Z, log_var_N_Z = vae.encode(vae.inputs(features_N_D))
    latent_N_T_Z = latents(mean_N_Z, log_var_N_Z, bank.of(features_N_D))
    classes: NDArray[np.int64] = vae.class_energy(latent_N_T_Z).argmin(dim=-1).cpu().numpy()
    return classes
