"""What a night costs on this machine, in seconds: measured on a few images, not guessed.

What a night does is done here with the learning code itself: whole where that is quick, else a part of it that is
timed, and multiplied by how often a night does it. The servers' seconds come on top. Axes as in `learner`.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vabal import strategies
from vabal.learning import committee, features
from vabal.learning.batches import batches_of
from vabal.learning.network import Network
from vabal.rounds.learner import Learner, TrainingSet
from vabal.settings.models import Params
from vabal.vae.training import epochs_of

_ROWS: Final = 1024  # of a pool that is like the labelled samples; what a larger one costs follows from it
_STEPS: Final = 10  # of the VAE that are timed
_IMAGES: Final = 8  # that a network from random weights is timed on ...
_PIXELS: Final = 2**13  # ... or fewer, if they have more pixels in all


class Night(NamedTuple):
    """Seconds of a night: to learn from the labels, and to score the pool and pick from it."""

    training: float
    picking: float

    @property
    def seconds(self) -> float:
        return self.training + self.picking


def measure(params: Params, known: TrainingSet, num_classes: int, *, labels: int, images: int) -> Night:
    """Seconds of a night with these settings, `labels` labelled images that are like `known`, and `images` without."""
    learner = Learner(params, 1, strategies.get(params.selection.strategy))
    timed = _timed_probe if known.embedded is not None else _timed_scratch
    trained = timed(learner, known, num_classes, labels)
    return Night(trained.training, _picking(learner, trained, known, num_classes, images))


@dataclass(frozen=True)
class _Trained:
    """A classifier, the seconds that it and the scoring networks take to train, and what it says of some samples."""

    network: Network
    training: float
    features_N_D: NDArray[np.float32]
    logits_N_C: NDArray[np.float32]
    describing: float  # seconds a row, by all networks


def _timed_probe(learner: Learner, known: TrainingSet, num_classes: int, labels: int) -> _Trained:
    watch = _Watch()
    network, training = learner.classifier(known, num_classes)
    _run(training)
    if committee.is_needed(learner.needs):
        _run(learner.committee(network, known)[1])
    if learner.folds:
        learner.cross_fit(network, known)
    seconds = watch.seconds * max(labels / len(known.labels_L), 1.0)
    return _described(learner, network, known.inputs_L[np.arange(_ROWS) % len(known.inputs_L)], seconds)


def _timed_scratch(learner: Learner, known: TrainingSet, num_classes: int, labels: int) -> _Trained:
    """A step of a few images, behind one that sets up: it counts for each image of each epoch of each network."""
    settings = learner.params.classifier
    count = max(2, min(_IMAGES, _PIXELS // known.inputs_L.shape[1] ** 2))
    few = known.inputs_L[np.arange(count) % len(known.inputs_L)]
    brief = settings.model_copy(update={"epochs": 2, "batch_size": count, "decay_at": 1.0})
    short = Learner(learner.params.model_copy(update={"classifier": brief}), 1, learner.strategy)
    labels_L = np.arange(count) % num_classes
    network, training = short.classifier(TrainingSet(few, labels_L, [str(row) for row in range(count)]), num_classes)
    ends = {metric.step: time.perf_counter() for metric in training}
    networks = learner.needs.members + learner.folds + bool(learner.needs.auxiliary_loss or learner.needs.dropout)
    seconds = (ends[2] - ends[1]) / count * labels * settings.epochs * networks
    return _described(learner, network, few, seconds)


def _described(learner: Learner, network: Network, inputs_N: NDArray[Any], training: float) -> _Trained:
    watch = _Watch()
    with learner.multiplying():
        parts = list(features.describe(network, [(0, inputs_N)], learner.device))
    seconds = watch.seconds / len(inputs_N) * learner.needs.members
    rows = np.arange(_ROWS) % len(inputs_N)
    features_N_D = np.concatenate([part.features_N_D for part in parts])[rows]
    logits_N_C = np.concatenate([part.logits_N_C for part in parts])[rows]
    return _Trained(network, training, features_N_D, logits_N_C, seconds)


def _picking(learner: Learner, trained: _Trained, known: TrainingSet, num_classes: int, images: int) -> float:
    """Features and logits of the pool, and, where the strategy asks for it, the VAE and what it tells."""
    seconds = trained.describing * images
    if not learner.needs.vae:
        return seconds
    settings = learner.params.vae
    steps = epochs_of(images, settings) * batches_of(images, settings.batch_size)
    rows = min(_ROWS, _STEPS * settings.batch_size)
    per_pass = batches_of(rows, settings.batch_size)
    brief = settings.model_copy(update={"epochs": -(-_STEPS // per_pass), "min_steps": 0, "warmup_epochs": 0})
    short = Learner(learner.params.model_copy(update={"vae": brief}), 1, learner.strategy)
    pool_N_D, classes_N = trained.features_N_D[:rows], trained.logits_N_C[:rows].argmax(axis=1)
    dims = trained.network.feature_dims
    watch = _Watch()
    vae, training = short.vae(pool_N_D, classes_N, dims, num_classes)
    _run(training)
    seconds += watch.again() / (brief.epochs * per_pass) * steps
    labelled = pool_N_D[: len(known.labels_L)], known.labels_L[:rows]
    learner.class_terms(vae, labelled, [pool_N_D], (labelled[1], labelled[1]) if learner.folds else None)
    seconds += watch.again()
    _run(learner.likelihood(vae, [pool_N_D]))
    return seconds + watch.again() / rows * images


class _Watch:
    def __init__(self) -> None:
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since

    def again(self) -> float:
        """Seconds since the last call, or the making."""
        gone, self._since = self.seconds, time.perf_counter()
        return gone


def _run(steps: Iterable[Any]) -> None:
    for _ in steps:
        pass
