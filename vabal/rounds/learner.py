"""What a round trains, estimates and selects: the same over a workspace's files and over a simulated run's arrays.

A step of a round (`rounds/steps/`) reads its inputs from the stage store, calls a method here, and stores what comes of
it; a simulated run (`benchmark/simulation.py`) calls the same methods on what it holds in memory. Trainings come as
iterators: a network has learned once its metrics were taken. Axes: N samples, L labelled ones, H x W x K images, C
classes, D features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vabal import probabilities, strategies, vae
from vabal.learning import classifier, committee, recipe
from vabal.learning.classifier import CrossFit
from vabal.learning.committee import Committee
from vabal.learning.device import device_of, one_thread
from vabal.learning.metrics import Metric
from vabal.learning.network import ResNetClassifier
from vabal.rounds.manifests import derive_seed
from vabal.settings.models import Params
from vabal.vae import FeatureVAE

CHUNK_ROWS = 4096  # rows in memory at once, where they carry no images

# One column of the pool in pieces: (row of the first, rows), in order. A file's, or an array's.
Batches = Iterator[tuple[int, NDArray[Any]]]
Columns = Mapping[str, Callable[[int], Batches]]


class TrainingSet(NamedTuple):
    """The labelled pool, in the order of the sample ids."""

    images_L_H_W_K: NDArray[np.uint8]
    labels_L: NDArray[np.int64]
    sample_ids: list[str]


@dataclass(frozen=True)
class Learner:
    """One round's learning: its settings, its strategy, and seeds that derive from the setting `seed`, the round and
    the purpose alone."""

    params: Params
    round: int
    strategy: strategies.Strategy

    @cached_property
    def needs(self) -> strategies.Needs:
        return strategies.needs_of(self.strategy, self.params)

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.params)

    def seed(self, purpose: str) -> int:
        return derive_seed(self.params.seed, self.round, purpose)

    @property
    def folds(self) -> int:
        """Folds of the labelled pool of which out-of-fold predictions are needed; 0 for none."""
        wanted = self.needs.vae and self.params.probabilities.precision_from == "cross_fitted"
        return self.params.probabilities.folds if wanted else 0

    # -- trained --

    def classifier(self, known: TrainingSet, num_classes: int) -> tuple[ResNetClassifier, Iterator[Metric]]:
        """The same for every strategy."""
        mean, std = recipe.channel_statistics(known.images_L_H_W_K)
        network = classifier.build(
            self.params.classifier,
            num_classes=num_classes,
            image_size=known.images_L_H_W_K.shape[1],
            channels=known.images_L_H_W_K.shape[3],
            mean=mean,
            std=std,
            seed=self.seed("classifier"),
        )
        images, labels, _ = known
        seed = self.seed("classifier")
        return network, classifier.fit(network, images, labels, self.params.classifier, seed=seed, device=self.device)

    def cross_fit(
        self, first: ResNetClassifier, known: TrainingSet, report: Callable[[Metric], None] | None = None
    ) -> CrossFit:
        """Out-of-fold predictions of the labelled pool, by networks like the classifier."""
        return classifier.cross_fit(
            first.config,
            *known,
            self.params.classifier,
            folds=self.folds,
            seed=self.seed("classifier"),
            device=self.device,
            report=report,
        )

    def committee(self, first: ResNetClassifier, known: TrainingSet) -> tuple[Committee, Iterator[Metric]]:
        """The scoring networks that the strategy needs beside the classifier `first`."""
        networks = committee.build(self.needs, first.config, first=first, seed=self.seed("classifier"))
        images, labels, _ = known
        return networks, networks.fit(images, labels, self.params.classifier, device=self.device)

    def vae(
        self, pool: vae.Features, predicted_N: NDArray[np.integer], feature_dims: tuple[int, ...], num_classes: int
    ) -> tuple[FeatureVAE, Iterator[Metric]]:
        """Of the unlabelled pool's features, told what the classifier predicts there."""
        seed = self.seed("vae")
        network = vae.build(feature_dims, num_classes, self.params.vae, seed=seed)
        return network, self._on_one_thread(vae.fit(network, pool, predicted_N, seed=seed, device=self.device))

    def _on_one_thread(self, training: Iterator[Metric]) -> Iterator[Metric]:
        with one_thread(self.device):
            yield from training

    # -- estimated --

    def committee_columns(
        self, networks: Committee, batches: Batches, sample_ids: NDArray[Any]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """What the scoring networks say of the images, batch by batch."""
        for start, images in batches:
            ids = sample_ids[start : start + len(images)]
            yield networks.columns(images, device=self.device, sample_ids=ids)

    def class_terms(
        self,
        network: FeatureVAE,
        labeled: tuple[NDArray[np.floating], NDArray[np.integer]],
        unlabeled: Iterable[NDArray[np.floating]],
        cross_fitted: tuple[NDArray[np.integer], NDArray[np.integer]] | None,
    ) -> probabilities.ClassTerms:
        """Prior and precision of every class (Eqs. 12 and 11); `labeled` are features and labels."""
        return probabilities.estimate_class_terms(
            network,
            *labeled,
            generator=self.seed("draws"),
            settings=self.params.probabilities,
            unlabeled_features=unlabeled,
            cross_fitted=cross_fitted,
        )

    def likelihood(
        self, network: FeatureVAE, chunks: Iterable[NDArray[np.floating]]
    ) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """log_likelihood_N_C (Eq. 9) and vae_class_N of each chunk of features."""
        return probabilities.estimate_likelihood(
            network, chunks, generator=self.seed("draws"), settings=self.params.probabilities
        )

    # -- selected --

    @property
    def chunk_rows(self) -> int:
        """Candidates in memory at once."""
        return self.params.features.batch_size if self.needs.images else CHUNK_ROWS

    def shards(
        self, columns: Columns, sample_ids: NDArray[Any], wanted_N: NDArray[np.bool_]
    ) -> Iterator[strategies.Shard]:
        """The wanted rows, chunk by chunk, with the columns under the names that a strategy knows them by."""
        batches = [read(self.chunk_rows) for read in columns.values()]
        for parts in zip(*batches, strict=True):
            start, count = parts[0][0], len(parts[0][1])
            keep = np.flatnonzero(wanted_N[start : start + count])
            values: dict[str, Any] = {name: part[keep] for name, (_, part) in zip(columns, parts, strict=True)}
            yield strategies.Shard(sample_ids[start + keep], **values)

    def select(
        self,
        shards: Callable[[], Iterable[strategies.Shard]],
        *,
        candidates: int,
        labeled: strategies.Labeled | None,
        class_terms: probabilities.ClassTerms | None,
        feature_dims: tuple[int, ...],
        write: Callable[[strategies.Candidates], None] | None = None,
    ) -> strategies.Selection:
        """The round's picks; none where there are no candidates."""
        budget, seed = self.params.selection.budget, self.seed("selection")
        if not candidates:
            return strategies.no_picks(self.strategy.name, budget, seed)
        offered = strategies.Context(
            shards=shards,
            settings=self.params,
            seed=seed,
            class_terms=class_terms,
            labeled=labeled,
            write=write,
            feature_dims=feature_dims,
            device=str(self.device),
        )
        return self.strategy.select(offered, budget)


def array_batches(values: NDArray[Any]) -> Callable[[int], Batches]:
    """A column that is in memory, as a file's are read."""

    def read(rows: int) -> Batches:
        for start in range(0, len(values), rows):
            yield start, values[start : start + rows]

    return read
