"""One simulated active-learning run over a pool whose labels are all known: the oracle answers every request.

What is trained, estimated and selected is the `Learner`'s, as in a round of a workspace, on arrays in memory instead of
files. Seeds derive from the run's seed, the round and the purpose, never from the strategy:
runs of one seed start from the same pools and the same first weights. Axes: N samples, H x W x K images, C classes.
"""

import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vabal import probabilities, strategies
from vabal.audit.settled import Settled, settled
from vabal.benchmark import shallow
from vabal.errors import UserError
from vabal.learning import committee, features, metrics
from vabal.learning.embeddings import Embedder
from vabal.learning.needs import Needs
from vabal.learning.network import Network
from vabal.learning.probe import Embedded
from vabal.rounds.learner import Batches, Learner, TrainingSet, array_batches
from vabal.settings.models import Params


@dataclass(frozen=True, eq=False)
class SimulatedPool:
    """A pool with all its labels, and a holdout, as row numbers of the arrays; `initial_L` is labelled at the start."""

    classes: tuple[str, ...]
    sample_ids: NDArray[Any]
    images_N_H_W_K: NDArray[np.uint8]
    labels_N: NDArray[np.int64]
    pool_P: NDArray[np.int64]
    holdout_M: NDArray[np.int64]
    initial_L: NDArray[np.int64]
    groups_N: NDArray[Any] | None = None  # of images that show much the same
    folder: Path | None = None  # keeps the images' embeddings
    thinned: bool = False  # by an imbalance

    def per_class(self, rows: NDArray[np.integer]) -> list[int]:
        """How many of the rows each class has."""
        counts: list[int] = np.bincount(self.labels_N[rows], minlength=len(self.classes)).tolist()
        return counts

    def as_read(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows as the published code's loader reads them: of a thinned pool class by class, else as they lie."""
        return rows[np.argsort(self.labels_N[rows], kind="stable")] if self.thinned else rows

    def inputs(self, learner: Learner, baseline: str | None = None) -> "Inputs":
        """What the classifier sees of each row: images, or numbers made of them once and kept.

        `baseline` is a shallow one that learns in the learner's place.
        """
        with ExitStack() as until_made:
            folder = self.folder or Path(until_made.enter_context(tempfile.TemporaryDirectory(prefix="vabal-")))
            if baseline is not None:
                return Inputs(shallow.kept_numbers(baseline, self.images_N_H_W_K, folder), baseline=baseline)
            embedder = learner.embedder(folder)
            return Inputs(self.images_N_H_W_K) if embedder is None else self._embedded(embedder, learner)

    def frozen(self, learner: Learner) -> "Inputs | None":
        """The features of a frozen network, where the strategy asks for these."""
        with ExitStack() as until_made:
            folder = self.folder or Path(until_made.enter_context(tempfile.TemporaryDirectory(prefix="vabal-")))
            embedder = learner.frozen(folder)
            return None if embedder is None else self._embedded(embedder, learner)

    def _embedded(self, embedder: Embedder, learner: Learner) -> "Inputs":
        images = array_batches(self.images_N_H_W_K)
        path = embedder.kept(
            "pool", len(self.labels_N), lambda: images(learner.params.features.batch_size), self.sample_ids
        )
        return Inputs(np.load(path, mmap_mode="r"), embedder.embedded)

    def training_set(self, inputs: "Inputs", labeled_L: NDArray[np.int64]) -> TrainingSet:
        ids = [str(sample_id) for sample_id in self.sample_ids[labeled_L]]
        groups_L = None if self.groups_N is None else self.groups_N[labeled_L]
        return TrainingSet(inputs.values_N[labeled_L], self.labels_N[labeled_L], ids, inputs.embedded, groups_L)

    def image_batches(self, rows_P: NDArray[np.int64], count: int) -> Batches:
        """The images of these rows, so many at once."""
        yield from Inputs(self.images_N_H_W_K).batches(rows_P, count)


class Inputs(NamedTuple):
    """What a classifier sees of every row of a pool; `embedded` says what the numbers of embeddings are, `baseline`
    who learns from numbers that are none."""

    values_N: NDArray[Any]
    embedded: Embedded | None = None
    baseline: str | None = None

    def batches(self, rows_P: NDArray[np.int64], count: int) -> Batches:
        """These rows, so many at once."""
        for start in range(0, len(rows_P), count):
            yield start, self.values_N[rows_P[start : start + count]]


class Pick(NamedTuple):
    """One of a batch, as the classifier saw it."""

    row: int
    predicted_class: int


@dataclass(frozen=True)
class Round:
    """What one round came to. `fresh_L`: what was labelled newly to get here; `picks`: the batch chosen at its end;
    `trained`: networks (or baselines) that were fitted for it; `cpu_seconds`: of all threads, for training, what the
    classifier says of the pool, and the picks."""

    round: int
    labeled: int
    measured: Mapping[str, float]
    recall_C: list[float | None]
    fresh_L: NDArray[np.int64]
    picks: tuple[Pick, ...]
    seconds: Mapping[str, float]
    cpu_seconds: float
    trained: int
    notes: tuple[str, ...] = ()
    settled: Settled | None = None  # beside the model of the round before, on what is left of the pool


@dataclass
class Trained:
    """A classifier and what it says of the whole pool; the runs of one seed share that of their first round."""

    network: Network | None  # None of a baseline
    feature_dims: tuple[int, ...]
    features_N_D: NDArray[np.float32]
    logits_N_C: NDArray[np.float32]
    measured: Mapping[str, float]
    recall_C: list[float | None]
    seconds: float
    cpu_seconds: float


@dataclass
class Shared:
    """Keeps the last few classifiers, by what they were trained on."""

    most: int = 2
    _kept: OrderedDict[Any, Trained] = field(default_factory=OrderedDict)

    def get(self, key: Any) -> Trained | None:
        return self._kept.get(key)

    def put(self, key: Any, trained: Trained) -> None:
        self._kept[key] = trained
        while len(self._kept) > self.most:
            self._kept.popitem(last=False)


def run(
    pool: SimulatedPool,
    params: Params,
    *,
    rounds: int,
    baseline: str | None = None,
    shared: Shared | None = None,
    shared_key: Any = None,
) -> Iterator[Round]:
    """Yields `rounds` rounds: round r trains on the initial samples and (r - 1) batches of `selection.budget`.

    The last round only trains and measures. A pool that is used up ends the run early, with a note. `shared_key` names
    the pool for `shared`; `baseline` is a shallow one (`shallow.KINDS`) that learns in the place of the settings'
    classifier. Raises UserError for what the strategy cannot work with.
    """
    strategy = strategies.get(params.selection.strategy)
    inputs = pool.inputs(Learner(params, 1, strategy), baseline)
    labeled_L = fresh_L = np.sort(pool.initial_L)
    before: Trained | None = None
    for number in range(1, rounds + 1):
        learner = Learner(params, number, strategy)
        trained = _first_or_new(pool, inputs, learner, labeled_L, shared, shared_key)
        left_P = np.setdiff1d(pool.pool_P, labeled_L)
        seconds = {"train": trained.seconds, "select": 0.0}
        cpu_seconds, networks = trained.cpu_seconds, 1
        picks: tuple[Pick, ...] = ()
        notes: tuple[str, ...] = ()
        if number < rounds and len(left_P):
            start, cpu_start = time.perf_counter(), time.process_time()
            selecting = _Selecting(pool, inputs, learner, trained, labeled_L, left_P)
            selection, drawn = selecting.select()
            seconds["select"] = time.perf_counter() - start
            cpu_seconds += time.process_time() - cpu_start
            networks += selecting.networks
            picks, notes = _picks(pool, [*selection.sample_ids, *drawn], trained), selection.notes
        about = trained.measured, trained.recall_C, fresh_L, picks, seconds, cpu_seconds, networks, notes
        yield Round(number, len(labeled_L), *about, _settled(before, trained, left_P))
        before = trained
        if not picks:
            return
        fresh_L = np.sort(np.array([pick.row for pick in picks], dtype=np.int64))
        labeled_L = np.sort(np.concatenate([labeled_L, fresh_L]))


def _settled(before: Trained | None, now: Trained, left_P: NDArray[np.int64]) -> Settled | None:
    if before is None or not len(left_P):
        return None
    logits_P_C = now.logits_N_C[left_P]
    posteriors_P_C = torch.softmax(torch.from_numpy(logits_P_C), dim=1).numpy()
    said = before.logits_N_C[left_P].argmax(axis=1), logits_P_C.argmax(axis=1)
    return settled(*said, logits_P_C.shape[1], posteriors_P_C)


def _picks(pool: SimulatedPool, sample_ids: Sequence[str], trained: Trained) -> tuple[Pick, ...]:
    rows = {str(sample_id): row for row, sample_id in enumerate(pool.sample_ids)}
    picked = [rows[sample_id] for sample_id in sample_ids]
    predicted = trained.logits_N_C[picked].argmax(axis=1) if picked else []
    return tuple(Pick(row, int(seen)) for row, seen in zip(picked, predicted, strict=True))


def _first_or_new(
    pool: SimulatedPool,
    inputs: Inputs,
    learner: Learner,
    labeled_L: NDArray[np.int64],
    shared: Shared | None,
    shared_key: Any,
) -> Trained:
    if learner.round > 1 or shared is None:
        return _train(pool, inputs, learner, labeled_L)
    key = (shared_key, inputs.baseline, _learned_by(learner.params), learner.params.seed)
    known = shared.get(key)
    if known is None:
        known = _train(pool, inputs, learner, labeled_L)
        shared.put(key, known)
    return known


def _learned_by(params: Params) -> str:
    return "".join(part.model_dump_json() for part in (params.classifier, params.finetune, params.backbone))


def _train(pool: SimulatedPool, inputs: Inputs, learner: Learner, labeled_L: NDArray[np.int64]) -> Trained:
    """The classifier of one round, measured on the holdout, and its features of every image."""
    start, cpu_start = time.perf_counter(), time.process_time()
    known, num_classes = pool.training_set(inputs, labeled_L), len(pool.classes)
    network: Network | None = None
    if inputs.baseline is None:
        network, training = learner.classifier(known, num_classes)
        _run(training)
        seconds, feature_dims = time.perf_counter() - start, network.feature_dims
        features_N_D, logits_N_C = _describe(network, pool, inputs, learner)
    else:
        seed = learner.seed("classifier")
        fitted = shallow.fit(inputs.baseline, known, num_classes, learner.params.classifier, seed=seed)
        seconds, feature_dims = time.perf_counter() - start, inputs.values_N.shape[1:]
        features_N_D, logits_N_C = inputs.values_N, _said_by(fitted, pool, inputs, learner)
    truth_M = pool.labels_N[pool.holdout_M]
    probabilities_M_C = torch.softmax(torch.from_numpy(logits_N_C[pool.holdout_M]), dim=1).numpy()
    measured = metrics.classification_metrics(truth_M, probabilities_M_C, pool.classes)
    counts = metrics.confusion_matrix(truth_M, probabilities_M_C.argmax(axis=1), num_classes)
    recall_C = [None if np.isnan(value) else float(value) for value in metrics.recalls(counts)]
    kept = {name: measured[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    cpu_seconds = time.process_time() - cpu_start
    return Trained(network, feature_dims, features_N_D, logits_N_C, kept, recall_C, seconds, cpu_seconds)


def _said_by(fitted: shallow.Fitted, pool: SimulatedPool, inputs: Inputs, learner: Learner) -> NDArray[np.float32]:
    """logits_N_C of pool and holdout by a shallow baseline; what is in neither stays zero."""
    logits_N_C = np.zeros((len(pool.labels_N), len(pool.classes)), dtype=np.float32)
    wanted = np.union1d(pool.pool_P, pool.holdout_M)
    for start, values_P_E in inputs.batches(wanted, learner.params.features.batch_size):
        logits_N_C[wanted[start : start + len(values_P_E)]] = fitted.logits(values_P_E)
    return logits_N_C


def _describe(
    network: Network, pool: SimulatedPool, inputs: Inputs, learner: Learner
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """features_N_D and logits_N_C of pool and holdout; what is in neither stays zero."""
    features_N_D = np.zeros((len(pool.labels_N), sum(network.feature_dims)), dtype=np.float32)
    logits_N_C = np.zeros((len(pool.labels_N), len(pool.classes)), dtype=np.float32)
    wanted = np.union1d(pool.pool_P, pool.holdout_M)
    batches = inputs.batches(wanted, learner.params.features.batch_size)
    described = features.describe(network, batches, learner.device, pool.sample_ids[wanted])
    with learner.multiplying():
        for start, features_P_D, logits_P_C in described:
            rows = wanted[start : start + len(features_P_D)]
            features_N_D[rows], logits_N_C[rows] = features_P_D, logits_P_C
    return features_N_D, logits_N_C


def _run(training: Iterator[metrics.Metric]) -> None:
    for _ in training:
        pass


@dataclass
class _Selecting:
    """One round's choice: trains what the strategy needs beside the classifier, and lets it choose."""

    pool: SimulatedPool
    inputs: Inputs
    learner: Learner
    trained: Trained
    labeled_L: NDArray[np.int64]
    left_P: NDArray[np.int64]
    networks: int = 0  # trained for the choice

    def select(self) -> tuple[strategies.Selection, list[str]]:
        """The strategy's picks, and the control arm beside them."""
        needs, trained = self.learner.needs, self.trained
        columns: dict[str, NDArray[Any]] = {"logits_N_C": trained.logits_N_C[self.left_P]}
        features_N_D, dims = self._features()
        if needs.features:
            columns["features_N_D"] = features_N_D[self.left_P]
        terms = None
        if committee.is_needed(needs):
            columns |= self._committee_columns()
        if needs.estimated:
            terms, estimated = self._estimate()
            columns |= estimated
        ids_P = self.pool.sample_ids[self.left_P]
        drawn = self.learner.control([ids_P], len(ids_P))
        picks = self.learner.select(
            lambda: self._shards(columns, ~np.isin(ids_P.astype(str), drawn)),
            candidates=len(ids_P) - len(drawn),
            labeled=self._labeled(features_N_D) if needs.labeled_pool else None,
            class_terms=terms,
            feature_dims=dims,
            drawn=len(drawn),
        )
        return picks, drawn

    def _features(self) -> tuple[NDArray[np.float32], tuple[int, ...]]:
        """features_N_D as the strategy asks for them, and how long each layer's are."""
        frozen = self.pool.frozen(self.learner)
        if frozen is None or frozen.embedded is None:
            return self.trained.features_N_D, self.trained.feature_dims
        return frozen.values_N, frozen.embedded.feature_dims

    @property
    def _network(self) -> Network:
        """The classifier, of a strategy that asks for networks beside it or a VAE below: no baseline has one."""
        if self.trained.network is None:
            raise UserError(f"strategy {self.learner.strategy.name}: needs more than a shallow baseline has")
        return self.trained.network

    def _known(self) -> TrainingSet:
        return self.pool.training_set(self.inputs, self.labeled_L)

    def _labeled(self, features_N_D: NDArray[np.float32]) -> strategies.Labeled:
        rows = self.labeled_L
        return strategies.Labeled(
            features_N_D[rows],
            self.pool.labels_N[rows],
            sample_ids=self.pool.sample_ids[rows],
            logits_N_C=self.trained.logits_N_C[rows],
            images_N_H_W_K=self.pool.images_N_H_W_K[rows] if self.learner.needs.images else None,
        )

    def _shards(self, columns: Mapping[str, NDArray[Any]], wanted_P: NDArray[np.bool_]) -> Iterator[strategies.Shard]:
        batches: dict[str, Any] = {name: array_batches(values) for name, values in columns.items()}
        if self.learner.needs.images:
            batches["images_N_H_W_K"] = partial(self.pool.image_batches, self.left_P)
        return self.learner.shards(batches, self.pool.sample_ids[self.left_P], wanted_P)

    def _committee_columns(self) -> dict[str, NDArray[Any]]:
        networks, training = self.learner.committee(self._network, self._known())
        _run(training)
        self.networks += _beside(self.learner.needs)
        batches = self.inputs.batches(self.left_P, self.learner.params.features.batch_size)
        parts = [*self.learner.committee_columns(networks, batches, self.pool.sample_ids[self.left_P])]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _estimate(self) -> tuple[probabilities.ClassTerms, dict[str, NDArray[Any]]]:
        """The class terms, and, of a VAE of this round's unlabelled pool where one is needed, the likelihoods."""
        trained, learner = self.trained, self.learner
        labels_L, cross_fitted = self.pool.labels_N[self.labeled_L], None
        if learner.folds:
            cross_fitted = labels_L, learner.cross_fit(self._network, self._known()).predicted_N
            self.networks += learner.folds
        if not learner.needs.vae:
            return learner.counted_terms(labels_L, len(self.pool.classes), cross_fitted), {}
        unlabeled_N_D = trained.features_N_D[self.left_P]
        stand_in_N = learner.stand_in(len(unlabeled_N_D))
        seen_N_D, predicted_N = unlabeled_N_D, trained.logits_N_C[self.left_P].argmax(axis=1)
        if not learner.params.vae.shuffle:
            read_P = self.pool.as_read(self.left_P)
            seen_N_D, predicted_N = trained.features_N_D[read_P], trained.logits_N_C[read_P].argmax(axis=1)
        seen_N_D, predicted_N = seen_N_D[stand_in_N], predicted_N[stand_in_N]
        network, training = learner.vae(seen_N_D, predicted_N, trained.feature_dims, len(self.pool.classes))
        _run(training)
        self.networks += 1
        labeled = trained.features_N_D[self.labeled_L], labels_L
        terms = learner.class_terms(network, labeled, [unlabeled_N_D[stand_in_N]], cross_fitted)
        ((log_likelihood_N_C, vae_class_N),) = learner.likelihood(network, [unlabeled_N_D])
        return terms, {"log_likelihood_N_C": log_likelihood_N_C, "vae_class_N": vae_class_N}


def _beside(needs: Needs) -> int:
    """Scoring networks that the needs ask for beside the classifier."""
    return int(needs.dropout > 0 and needs.passes > 1) + needs.members - 1 + int(needs.auxiliary_loss is not None)


def check_budget(pool: SimulatedPool, budget: int, rounds: int) -> None:
    """Raises UserError if the pool cannot answer all the rounds' requests."""
    wanted = len(pool.initial_L) + (rounds - 1) * budget
    if wanted > len(pool.pool_P):
        raise UserError(
            f"{rounds} rounds ask for {wanted} labels, but the pool has only {len(pool.pool_P)} images: "
            "lower --rounds, --budget or --initial"
        )
