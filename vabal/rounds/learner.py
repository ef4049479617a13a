"""What a round trains, estimates and selects: the same over a workspace's files and over a simulated run's arrays.

A step of a round (`rounds/steps/`) reads its inputs from the stage store, calls a method here, and stores what comes of
it; a simulated run (`benchmark/simulation.py`) calls the same methods on what it holds in memory. Trainings come as
iterators: a network has learned once its metrics were taken. Axes: N samples, L labelled ones, H x W x K images, C
classes, D features.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vabal import probabilities, strategies, vae
from vabal.files import Shared
from vabal.learning import backbones, classifier, committee, finetune, finetune_committee, probe, recipe
from vabal.learning.committee import Committee
from vabal.learning.device import device_of, multiplying, one_thread, precision_of
from vabal.learning.embeddings import Embedder
from vabal.learning.finetune import LabelledImages
from vabal.learning.finetune_committee import FineTunedCommittee
from vabal.learning.head_committee import HeadCommittee
from vabal.learning.metrics import Metric
from vabal.learning.network import FineTuned, LinearProbe, Network
from vabal.learning.probe import Embedded, LabelledEmbeddings
from vabal.learning.recipe import CrossFit
from vabal.rounds.manifests import derive_seed
from vabal.settings.learners import ClassifierSettings
from vabal.settings.models import Params
from vabal.strategies import compact, control
from vabal.vae import FeatureVAE

CHUNK_ROWS = 4096  # rows in memory at once, where they carry no images

ScoringNetworks = Committee | HeadCommittee | FineTunedCommittee

# One column of the pool in pieces: (row of the first, rows), in order. A file's, or an array's.
Batches = Iterator[tuple[int, NDArray[Any]]]
Columns = Mapping[str, Callable[[int], Batches]]


class TrainingSet(NamedTuple):
    """The labelled pool, in the order of the sample ids, as the classifier sees it: images, uint8, or, for a probe, the
    numbers of `embedded`. Samples of one of `groups_L` show much the same."""

    inputs_L: NDArray[Any]
    labels_L: NDArray[np.int64]
    sample_ids: list[str]
    embedded: Embedded | None = None
    groups_L: NDArray[Any] | None = None

    def as_embeddings(self) -> LabelledEmbeddings:
        return LabelledEmbeddings(self.inputs_L, self.labels_L, self.sample_ids, self.groups_L)

    def as_images(self) -> LabelledImages:
        return LabelledImages(self.inputs_L, self.labels_L, self.sample_ids, self.groups_L)


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

    @cached_property
    def precision(self) -> torch.dtype:
        """Of networks that see images."""
        return precision_of(self.params, self.device)

    def multiplying(self) -> AbstractContextManager[Any]:
        """Within it they are asked in that precision; while they learn they have it anyway."""
        return multiplying(self.device, self.precision)

    def seed(self, purpose: str) -> int:
        return derive_seed(self.params.seed, self.round, purpose)

    @property
    def folds(self) -> int:
        """Folds of the labelled pool of which out-of-fold predictions are needed; 0 for none."""
        chosen = self.params.probabilities
        wanted = self.needs.vae or (self.needs.class_terms and chosen.use_precision)
        return chosen.folds if wanted and chosen.precision_from == "cross_fitted" else 0

    @cached_property
    def backbone(self) -> dict[str, Any] | None:
        """What the pretrained backbone is, for keys; None where the classifier has none."""
        return None if self.params.classifier.learner == "scratch" else backbones.identity(self.params.backbone)

    @property
    def probing(self) -> ClassifierSettings:
        """How a probe is fitted on the settings' backbone, whatever the learner."""
        return self.params.classifier.model_copy(update={"learner": "probe"})

    @cached_property
    def doubting(self) -> dict[str, Any] | None:
        """What asking again and the next night's consensus depend on, for keys; None where settings want neither."""
        share, params = self.params.labelling.ask_again, self.params
        if not share and params.labelling.consensus != "crowdlab":
            return None
        by = {"probe": self.probing.model_dump(), "backbone": backbones.identity(params.backbone)}
        return {"share": share, **by, "images": params.images.model_dump(), "seed": params.seed}

    @property
    def fine_tuning(self) -> finetune.Recipe:
        """How a pretrained backbone learns, where the learner is `finetune`."""
        params = self.params
        return finetune.Recipe(params.classifier, params.finetune, params.backbone, self.device, self.precision)

    def epochs(self, samples: int) -> int:
        """Passes over so many labelled samples in which the classifier learns; 1 where it is fitted at once."""
        if self.params.classifier.learner == "probe":
            return 1
        if self.params.classifier.learner == "finetune":
            return finetune.epochs_of(samples, self.params.finetune)
        return self.params.classifier.epochs

    # -- trained --

    def embedder(self, cache: Path, shared: Shared | None = None) -> Embedder | None:
        """What turns images into a probe's inputs; None where the classifier sees the images themselves."""
        if self.params.classifier.learner != "probe":
            return None
        return Embedder(self.params.backbone, self.device, cache, shared)

    def frozen(self, cache: Path, shared: Shared | None = None) -> Embedder | None:
        """What turns images into features, where the strategy asks for a frozen network's; else None."""
        return Embedder(self.params.backbone, self.device, cache, shared) if self.needs.embeddings else None

    def classifier(self, known: TrainingSet, num_classes: int) -> tuple[Network, Iterator[Metric]]:
        """The same for every strategy."""
        settings, seed = self.params.classifier, self.seed("classifier")
        if known.embedded is not None:
            return probe.fit(known.as_embeddings(), known.embedded, num_classes, settings, seed=seed)
        if settings.learner == "finetune":
            return finetune.fit(known.as_images(), num_classes, self.fine_tuning, seed=seed)
        mean, std = recipe.channel_statistics(known.inputs_L)
        network = classifier.build(
            settings,
            num_classes=num_classes,
            image_size=known.inputs_L.shape[1],
            channels=known.inputs_L.shape[3],
            mean=mean,
            std=std,
            seed=seed,
        )
        training = classifier.fit(
            network, known.inputs_L, known.labels_L, settings, seed=seed, device=self.device, precision=self.precision
        )
        return network, training

    def cross_fit(self, first: Network, known: TrainingSet, report: Callable[[Metric], None] | None = None) -> CrossFit:
        """Out-of-fold predictions of the labelled pool, by networks like the classifier."""
        settings, seed = self.params.classifier, self.seed("classifier")
        if isinstance(first, LinearProbe):
            return probe.cross_fit(first, known.as_embeddings(), settings, folds=self.folds, seed=seed)
        if isinstance(first, FineTuned):
            recipe = self.fine_tuning
            return finetune.cross_fit(first, known.as_images(), recipe, folds=self.folds, seed=seed, report=report)
        return classifier.cross_fit(
            first.config,
            known.inputs_L,
            known.labels_L,
            known.sample_ids,
            settings,
            folds=self.folds,
            seed=seed,
            device=self.device,
            precision=self.precision,
            report=report,
            groups_N=known.groups_L,
        )

    @property
    def members(self) -> list[str]:
        """Scoring networks that are worth a task each; those on a frozen backbone's features take a second together."""
        return [] if self.params.classifier.learner == "probe" else committee.names(self.needs)

    def committee(
        self, first: Network, known: TrainingSet, only: str | None = None
    ) -> tuple[ScoringNetworks, Iterator[Metric]]:
        """The scoring networks that the strategy needs beside the classifier `first`; or one of its `members`."""
        if isinstance(first, LinearProbe):
            heads = HeadCommittee(self.needs, first, self.seed("classifier"))
            return heads, heads.fit(known.as_embeddings(), self.params.classifier)
        if isinstance(first, FineTuned):
            trunks = finetune.pretrained_trunks(self.params.backbone)
            tuned = finetune_committee.build(self.needs, first, trunks, seed=self.seed("classifier"))
            tuned = tuned if only is None else tuned.alone(only)
            return tuned, tuned.fit(known.as_images(), self.fine_tuning)
        networks = committee.build(self.needs, first.config, first=first, seed=self.seed("classifier"))
        networks = networks if only is None else networks.alone(only)
        training = networks.fit(
            known.inputs_L, known.labels_L, self.params.classifier, device=self.device, precision=self.precision
        )
        return networks, training

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

    def stand_in(self, pool: int) -> NDArray[np.bool_]:
        """Which of so many rows of the unlabelled pool the VAE and the class terms see: `vae.rows` of a larger one."""
        chosen_N, most = np.ones(pool, dtype=np.bool_), self.params.vae.rows
        if 0 < most < pool:
            generator = np.random.default_rng(self.seed("vae rows"))
            chosen_N[generator.choice(pool, pool - most, replace=False)] = False
        return chosen_N

    # -- estimated --

    @property
    def estimated_rows(self) -> int:
        """Rows of features in memory at once; a GPU is kept busy by many."""
        return CHUNK_ROWS if self.device.type == "cpu" else 16 * CHUNK_ROWS

    def committee_columns(
        self, networks: ScoringNetworks, batches: Batches, sample_ids: NDArray[Any]
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """What the scoring networks say of the classifier's inputs, some rows at a time."""
        described = committee.described(networks, batches, self.device, sample_ids)
        while True:
            with self.multiplying():
                said = next(described, None)
            if said is None:
                return
            yield said

    def class_terms(
        self,
        network: FeatureVAE,
        labeled: tuple[NDArray[np.floating], NDArray[np.integer]],
        unlabeled: Iterable[NDArray[np.floating]],
        cross_fitted: tuple[NDArray[np.integer], NDArray[np.integer]] | None,
    ) -> probabilities.ClassTerms:
        """Prior and precision of every class (Eqs. 12 and 11); `labeled` are features and labels.

        With a guard also how likely labelled samples are."""
        terms = probabilities.estimate_class_terms(
            network,
            *labeled,
            generator=self.seed("draws"),
            settings=self.params.probabilities,
            unlabeled_features=unlabeled,
            cross_fitted=cross_fitted,
        )
        if not self.params.probabilities.guard:
            return terms
        ((log_likelihood_L_C, _),) = self.likelihood(network, [labeled[0]])
        return replace(terms, labeled_floor=probabilities.labeled_floor(log_likelihood_L_C))

    def counted_terms(
        self,
        labels_L: NDArray[np.integer],
        num_classes: int,
        cross_fitted: tuple[NDArray[np.integer], NDArray[np.integer]] | None,
    ) -> probabilities.ClassTerms:
        """The same where the strategy needs no VAE for them."""
        return probabilities.count_class_terms(
            labels_L, num_classes, settings=self.params.probabilities, cross_fitted=cross_fitted
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
            shard = strategies.Shard(sample_ids[start + keep], **values)
            yield shard.compact() if compact.asked_for(self.params) else shard

    def control(self, sample_ids: Iterable[NDArray[Any]], candidates: int) -> list[str]:
        """What is drawn uniformly of these candidates, before the picks."""
        chosen = self.params.selection
        count = control.size(self.strategy, chosen.control_share, chosen.budget, candidates)
        return control.draw(sample_ids, count, self.seed("control"))

    def select(
        self,
        shards: Callable[[], Iterable[strategies.Shard]],
        *,
        candidates: int,
        labeled: strategies.Labeled | None,
        class_terms: probabilities.ClassTerms | None,
        feature_dims: tuple[int, ...],
        write: Callable[[strategies.Candidates], None] | None = None,
        drawn: int = 0,
        features: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None,
    ) -> strategies.Selection:
        """The round's picks; none where there are no candidates. `drawn` places of the budget are taken by the control
        arm and by what is asked again."""
        budget, seed = self.params.selection.budget - drawn, self.seed("selection")
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
            features=features,
        )
        return self.strategy.select(offered, budget)


def array_batches(values: NDArray[Any]) -> Callable[[int], Batches]:
    """A column that is in memory, as a file's are read."""

    def read(rows: int) -> Batches:
        for start in range(0, len(values), rows):
            yield start, values[start : start + rows]

    return read
