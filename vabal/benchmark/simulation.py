"""One simulated active-learning run over a pool whose labels are all known: the oracle answers every request.

It calls the functions that a night's stages call (classifier, committee, features, VAE, probabilities, strategies), on
arrays in memory instead of files. Seeds derive from the run's seed, the round and the purpose, never from the strategy:
runs of one seed start from the same pools and the same first weights. Axes: N samples, H x W x K images, C classes.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vabal import probabilities, strategies, vae
from vabal.errors import UserError
from vabal.learning import classifier, committee, metrics, recipe
from vabal.learning.device import device_of, one_thread
from vabal.learning.network import ResNetClassifier
from vabal.rounds import derive_seed
from vabal.rounds.steps import CHUNK_ROWS
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

    def per_class(self, rows: NDArray[np.integer]) -> list[int]:
        """How many of the rows each class has."""
        counts: list[int] = np.bincount(self.labels_N[rows], minlength=len(self.classes)).tolist()
        return counts


class Pick(NamedTuple):
    """One of a batch, as the classifier saw it."""

    row: int
    predicted_class: int


@dataclass(frozen=True)
class Round:
    """What one round came to. `fresh_L`: what was labelled newly to get here; `picks`: the batch chosen at its end."""

    round: int
    labeled: int
    measured: Mapping[str, float]
    recall_C: list[float | None]
    fresh_L: NDArray[np.int64]
    picks: tuple[Pick, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()


@dataclass
class Trained:
    """A classifier and what it says of the whole arena; the runs of one seed share that of their first round."""

    network: ResNetClassifier
    features_N_D: NDArray[np.float32]
    logits_N_C: NDArray[np.float32]
    measured: Mapping[str, float]
    recall_C: list[float | None]
    seconds: float


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
    arena: SimulatedPool, params: Params, *, rounds: int, shared: Shared | None = None, shared_key: Any = None
) -> Iterator[Round]:
    """Yields `rounds` rounds: round r trains on the initial samples and (r - 1) batches of `selection.budget`.

    The last round only trains and measures. A pool that is used up ends the run early, with a note. `shared_key` names
    the arena for `shared`. Raises UserError for what the strategy cannot work with.
    """
    device = device_of(params)
    strategy = strategies.get(params.selection.strategy)
    labeled_L = fresh_L = np.sort(arena.initial_L)
    for number in range(1, rounds + 1):
        trained = _first_or_new(arena, params, number, labeled_L, device, shared, shared_key)
        left_P = np.setdiff1d(arena.pool_P, labeled_L)
        seconds = {"train": trained.seconds, "select": 0.0}
        picks: tuple[Pick, ...] = ()
        notes: tuple[str, ...] = ()
        if number < rounds and len(left_P):
            start = time.perf_counter()
            selection = _Selecting(arena, params, strategy, number, trained, labeled_L, left_P, device).select()
            seconds["select"] = time.perf_counter() - start
            picks, notes = _picks(arena, selection, trained), selection.notes
        yield Round(number, len(labeled_L), trained.measured, trained.recall_C, fresh_L, picks, seconds, notes)
        if not picks:
            return
        fresh_L = np.sort(np.array([pick.row for pick in picks], dtype=np.int64))
        labeled_L = np.sort(np.concatenate([labeled_L, fresh_L]))


def _picks(arena: SimulatedPool, selection: strategies.Selection, trained: Trained) -> tuple[Pick, ...]:
    rows = {str(sample_id): row for row, sample_id in enumerate(arena.sample_ids)}
    picked = [rows[sample_id] for sample_id in selection.sample_ids]
    predicted = trained.logits_N_C[picked].argmax(axis=1) if picked else []
    return tuple(Pick(row, int(seen)) for row, seen in zip(picked, predicted, strict=True))


def _first_or_new(
    arena: SimulatedPool,
    params: Params,
    number: int,
    labeled_L: NDArray[np.int64],
    device: torch.device,
    shared: Shared | None,
    shared_key: Any,
) -> Trained:
    if number > 1 or shared is None:
        return _train(arena, params, number, labeled_L, device)
    key = (shared_key, params.classifier.model_dump_json(), params.seed)
    known = shared.get(key)
    if known is None:
        known = _train(arena, params, number, labeled_L, device)
        shared.put(key, known)
    return known


def _train(
    arena: SimulatedPool, params: Params, number: int, labeled_L: NDArray[np.int64], device: torch.device
) -> Trained:
    """The classifier of one round, measured on the holdout, and its features of every image."""
    start = time.perf_counter()
    seed = derive_seed(params.seed, number, "classifier")
    pixels, labels = arena.images_N_H_W_K[labeled_L], arena.labels_N[labeled_L]
    mean, std = recipe.channel_statistics(pixels)
    network = classifier.build(
        params.classifier,
        num_classes=len(arena.classes),
        image_size=pixels.shape[1],
        channels=pixels.shape[3],
        mean=mean,
        std=std,
        seed=seed,
    )
    for _ in classifier.fit(network, pixels, labels, params.classifier, seed=seed, device=device):
        pass
    seconds = time.perf_counter() - start
    features_N_D, logits_N_C = _describe(network, arena, params.features.batch_size, device)
    truth_M = arena.labels_N[arena.holdout_M]
    probabilities_M_C = _softmax(logits_N_C[arena.holdout_M])
    measured = metrics.classification_metrics(truth_M, probabilities_M_C, arena.classes)
    counts = metrics.confusion_matrix(truth_M, probabilities_M_C.argmax(axis=1), len(arena.classes))
    recall_C = [None if np.isnan(value) else float(value) for value in metrics.recalls(counts)]
    kept = {name: measured[name] for name in ("accuracy", "balanced_accuracy", "macro_f1")}
    return Trained(network, features_N_D, logits_N_C, kept, recall_C, seconds)


def _describe(
    network: ResNetClassifier, arena: SimulatedPool, batch_size: int, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """features_N_D and logits_N_C of pool and holdout; what is in neither stays zero."""
    recipe.place(network, device).eval()
    features_N_D = np.zeros((len(arena.labels_N), sum(network.feature_dims)), dtype=np.float32)
    logits_N_C = np.zeros((len(arena.labels_N), len(arena.classes)), dtype=np.float32)
    wanted = np.union1d(arena.pool_P, arena.holdout_M)
    for first in range(0, len(wanted), batch_size):
        rows = wanted[first : first + batch_size]
        for images_P_K_H_W in recipe.pieces(arena.images_N_H_W_K[rows], network, device):
            with torch.inference_mode():
                features_P_D, logits_P_C = network.stages(images_P_K_H_W)
            here, rows = rows[: len(features_P_D)], rows[len(features_P_D) :]
            features_N_D[here], logits_N_C[here] = features_P_D.float().cpu(), logits_P_C.float().cpu()
    return features_N_D, logits_N_C


def _softmax(logits_N_C: NDArray[np.float32]) -> NDArray[np.float32]:
    return torch.softmax(torch.from_numpy(logits_N_C), dim=1).numpy()


@dataclass
class _Selecting:
    """One round's choice: trains what the strategy needs beside the classifier, and lets it choose."""

    arena: SimulatedPool
    params: Params
    strategy: strategies.Strategy
    number: int
    trained: Trained
    labeled_L: NDArray[np.int64]
    left_P: NDArray[np.int64]
    device: torch.device

    @cached_property
    def needs(self) -> strategies.Needs:
        return strategies.needs_of(self.strategy, self.params)

    def select(self) -> strategies.Selection:
        needs, arena, trained = self.needs, self.arena, self.trained
        columns = {"logits_N_C": trained.logits_N_C[self.left_P], "features_N_D": trained.features_N_D[self.left_P]}
        terms = None
        if committee.is_needed(needs):
            columns |= self._committee_columns()
        if needs.vae:
            terms, estimated = self._estimate()
            columns |= estimated
        context = strategies.Context(
            shards=lambda: self._shards(columns),
            settings=self.params,
            seed=self._seed("selection"),
            class_terms=terms,
            labeled=strategies.Labeled(
                trained.features_N_D[self.labeled_L],
                arena.labels_N[self.labeled_L],
                sample_ids=arena.sample_ids[self.labeled_L],
                logits_N_C=trained.logits_N_C[self.labeled_L],
                images_N_H_W_K=arena.images_N_H_W_K[self.labeled_L] if needs.images else None,
            ),
            feature_dims=trained.network.feature_dims,
            device=str(self.device),
        )
        return self.strategy.select(context, self.params.selection.budget)

    def _seed(self, purpose: str) -> int:
        return derive_seed(self.params.seed, self.number, purpose)

    def _shards(self, columns: Mapping[str, NDArray[Any]]) -> Iterator[strategies.Shard]:
        for start in range(0, len(self.left_P), CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            values = {name: column[rows] for name, column in columns.items()}
            if self.needs.images:
                values["images_N_H_W_K"] = self.arena.images_N_H_W_K[self.left_P[rows]]
            yield strategies.Shard(self.arena.sample_ids[self.left_P[rows]], **values)

    def _committee_columns(self) -> dict[str, NDArray[Any]]:
        built = committee.build(
            self.needs,
            self.trained.network.config,
            first=self.trained.network,
            seed=self._seed("classifier"),
        )
        pixels, labels = self.arena.images_N_H_W_K[self.labeled_L], self.arena.labels_N[self.labeled_L]
        for _ in built.fit(pixels, labels, self.params.classifier, device=self.device):
            pass
        step = self.params.features.batch_size
        parts = [
            built.columns(
                self.arena.images_N_H_W_K[self.left_P[start : start + step]],
                device=self.device,
                sample_ids=self.arena.sample_ids[self.left_P[start : start + step]].tolist(),
            )
            for start in range(0, len(self.left_P), step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _estimate(self) -> tuple[probabilities.ClassTerms, dict[str, NDArray[Any]]]:
        """The VAE of this round's unlabelled pool, the class terms, and the candidates' likelihoods."""
        chosen, trained = self.params.probabilities, self.trained
        unlabeled_N_D = trained.features_N_D[self.left_P]
        predicted_N = trained.logits_N_C[self.left_P].argmax(axis=1)
        network = vae.build(
            trained.network.feature_dims, len(self.arena.classes), self.params.vae, seed=self._seed("vae")
        )
        with one_thread(self.device):
            for _ in vae.fit(network, unlabeled_N_D, predicted_N, seed=self._seed("vae"), device=self.device):
                pass
        terms = probabilities.estimate_class_terms(
            network,
            trained.features_N_D[self.labeled_L],
            self.arena.labels_N[self.labeled_L],
            generator=self._seed("draws"),
            settings=chosen,
            unlabeled_features=[unlabeled_N_D],
            cross_fitted=self._cross_fitted(),
        )
        ((log_likelihood_N_C, vae_class_N),) = probabilities.estimate_likelihood(
            network, [unlabeled_N_D], generator=self._seed("draws"), settings=chosen
        )
        return terms, {"log_likelihood_N_C": log_likelihood_N_C, "vae_class_N": vae_class_N}

    def _cross_fitted(self) -> tuple[NDArray[Any], NDArray[Any]] | None:
        chosen = self.params.probabilities
        if not (self.needs.cross_fit or chosen.precision_from == "cross_fitted"):
            return None
        labels = self.arena.labels_N[self.labeled_L]
        fitted = classifier.cross_fit(
            self.trained.network.config,
            self.arena.images_N_H_W_K[self.labeled_L],
            labels,
            [str(sample_id) for sample_id in self.arena.sample_ids[self.labeled_L]],
            self.params.classifier,
            folds=chosen.folds,
            seed=self._seed("classifier"),
            device=self.device,
        )
        return labels, fitted.predicted_N


def check_budget(arena: SimulatedPool, budget: int, rounds: int) -> None:
    """Raises UserError if the pool cannot answer all the rounds' requests."""
    wanted = len(arena.initial_L) + (rounds - 1) * budget
    if wanted > len(arena.pool_P):
        raise UserError(
            f"{rounds} rounds ask for {wanted} labels, but the pool has only {len(arena.pool_P)} images: "
            "lower --rounds, --budget or --initial"
        )
