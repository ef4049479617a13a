"""Which learner a new workspace takes: tried on the labels of round 0, and written into its `params.yaml`.

A probe is tried at several sizes and views (`model_selection`). A network from random weights is not: that would take
what a night of it takes, which is timed and told (`night_cost`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from vabal.images import DecodedShards
from vabal.learning.backbones import Layer
from vabal.learning.device import device_of
from vabal.learning.embeddings import Embedder
from vabal.learning.network import embed
from vabal.learning.probe import Embedded
from vabal.learning.recipe import hash_of
from vabal.pools import groups_of
from vabal.progress import advance
from vabal.rounds import model_selection, night_cost
from vabal.rounds.learner import TrainingSet
from vabal.rounds.model_selection import PIXELS, Candidate, Judged, Known, Offered, Part
from vabal.settings import params as reading
from vabal.settings.models import Params
from vabal.sources import InitReport
from vabal.workspace import Workspace

_MOST_IMAGES: Final = 256  # that learners are tried on: a minute at most on two cores
_MOST_PIXELS: Final = 10**9  # that a backbone sees of a whole pool, in all passes: some ten minutes on two cores
_MOST_PIXELS_AN_IMAGE: Final = 2**17  # 128 pixels, turned
_OTHER_VIEWS: Final = ("mirrored", "turned")
_SMALL_DRAWING, _MOST_OWN_PIXELS = 32, 16  # pixels: of images whose own are offered, and how many a side
_SMALLEST: Final = 4  # what `images.size` may be


@dataclass(frozen=True)
class Tried:
    """A learner and how it did: seconds are this machine's; None is what was not tried or not measured."""

    learner: str
    sees: str
    balanced_accuracy: float | None
    cross_entropy: float | None
    embedding: float | None  # of all images, once
    night: float | None


@dataclass(frozen=True)
class LearnerChoice:
    """The settings that were chosen, and why; and what was tried for it on how many labels."""

    settings: Mapping[str, Any]
    why: str
    labels: int = 0
    tried: tuple[Tried, ...] = ()
    embeddings: int = 0  # bytes that those of all images take; 0 where they were not made yet

    @property
    def night(self) -> float | None:
        """Seconds of a night of what was taken, without the servers' share."""
        return next((tried.night for tried in self.tried if tried.learner == "probe" and tried.night), None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def choose(
    tell: Callable[[str], None],
    place: Workspace,
    folder: Path,
    made: InitReport,
    params: Params,
    given: Mapping[str, Any],
) -> LearnerChoice:
    """The learner for the pools in `folder`; settings that the user has given, by their dotted paths, stay.

    What is chosen depends on labels and images alone; seconds are measured to be told. Raises UserError for a backbone
    that is not there.
    """
    pool = _Pool(place, folder, made, params, given)
    if (made.pools.labeled["label"].value_counts() > 1).sum() < 2:
        first = pool.offered.first[0]
        return LearnerChoice(pool.settings(first), f"probe, {first}: there are too few labels yet to try learners on")
    how = "up to a minute on two cores; --learner NAME tries none"
    tell(f"trying learners on {len(pool.sample)} labels ({how})")
    known, probing = pool.known(), reading.changed(params, {"classifier.learner": "probe"})
    tried = []
    for judged in model_selection.search(known, pool.offered, probing.classifier, seed=params.seed):
        tried.append(judged)
        advance("try learners", len(tried), None)
    taken = model_selection.cheapest_of_the_best(tried, known.groups_L)
    rows = [pool.row_of_probe(judged, taken) for judged in tried]
    return LearnerChoice(
        pool.settings(taken.candidate),
        _why(taken, tried),
        len(pool.sample),
        (*rows, pool.scratch()),
        pool.bytes_of(taken.candidate),
    )


def _why(taken: Judged, tried: Sequence[Judged]) -> str:
    if taken is min(tried, key=lambda judged: judged.loss):
        return f"probe, {taken.candidate}: it has the least cross entropy"
    return f"probe, {taken.candidate}: the cheapest of those that these labels cannot tell from the best"


@dataclass(frozen=True)
class _Pool:
    """Round 0 in its folder, the settings so far, and which of them the user has given."""

    place: Workspace
    folder: Path
    made: InitReport
    params: Params
    given: Mapping[str, Any]
    _embedded: dict[Part, "_PartOfEmbedding"] = field(default_factory=dict)

    # -- what is tried --

    @cached_property
    def native(self) -> int:
        """Pixels of the longer side of the image in the middle, or those that the user wants images to have."""
        if self._is_given("images", "size"):
            return self.params.images.size
        return int(np.median(self.made.pools.catalog[["width", "height"]].max(axis=1)))

    @cached_property
    def offered(self) -> Offered:
        backbone = self.params.backbone
        given = backbone.views if isinstance(backbone.views, list) else [backbone.views] * len(backbone.sizes)
        views = () if self._is_given("backbone", "views") else _OTHER_VIEWS
        pixels = min(self.native, _MOST_OWN_PIXELS) if self.native <= _SMALL_DRAWING else 0
        own = ((backbone.pixels, PIXELS),) if backbone.pixels else ()
        if self._is_given("backbone", "pixels"):
            pixels = 0
        most = min(_MOST_PIXELS / len(self.made.pools.catalog), _MOST_PIXELS_AN_IMAGE)
        if self._is_given("backbone", "sizes") and backbone.sizes:
            return Offered((Candidate((*zip(backbone.sizes, given, strict=True), *own)),), (), pixels, views, most)
        sizes = model_selection.sizes(self.native)
        first = tuple(Candidate(((size, str(backbone.views)), *own)) for size in sizes)
        return Offered(first, sizes, pixels, views, most)

    @cached_property
    def sample(self) -> Any:
        """Labelled images to try learners on: their rows of the catalog, with labels, as even over the classes as the
        labels allow, in the order of their ids.

        Where two of each class are too many, there are fewer classes: of a class with one label nothing can be judged.
        """
        labeled = self.made.pools.labeled[["sample_id", "label"]].merge(self.made.pools.catalog, on="sample_id")
        hashed = labeled.assign(hash=[hash_of(self.params.seed, name) for name in labeled["sample_id"]])
        hashed = hashed.sort_values("hash")
        of_class, turn = hashed.groupby("label")["hash"], hashed.groupby("label").cumcount()
        alone, first = of_class.transform("size") == 1, of_class.transform("first")
        places = hashed.assign(
            pair=turn.clip(lower=1), alone=alone, first=first.where(turn < 2, hashed["hash"]), turn=turn
        )
        ordered = places.sort_values(["pair", "alone", "first", "turn"])[:_MOST_IMAGES]
        return ordered.sort_values("sample_id", ignore_index=True)

    def known(self) -> Known:
        return Known(
            labels_L=self._labels_L,
            sample_ids=list(self.sample["sample_id"]),
            groups_L=groups_of(self.sample),
            embeddings=lambda part: (self._part(part).embeddings_L_E, self._part(part).layers),
            num_classes=len(self.made.pools.classes),
        )

    def settings(self, candidate: Candidate) -> dict[str, Any]:
        """What is written for a probe like this."""
        settings: dict[str, Any] = {"classifier.learner": "probe"}
        if not self._is_given("images", "size"):
            settings["images.size"] = max(_SMALLEST, min(self.native, max(candidate.sizes)))
        if candidate.pixels:
            settings["backbone.pixels"] = candidate.pixels
        return settings | {"backbone.sizes": candidate.sizes, "backbone.views": candidate.views}

    # -- what it costs --

    def row_of_probe(self, judged: Judged, taken: Judged) -> Tried:
        parts = [self._part(part) for part in judged.candidate.parts]
        seconds = self._images.seconds + sum(part.seconds for part in parts)
        night = None
        if judged is taken:
            layers = tuple(layer for part in parts for layer in part.layers)
            embeddings_L_E = np.concatenate([part.embeddings_L_E for part in parts], axis=1)
            ids = list(self.sample["sample_id"])
            known = TrainingSet(embeddings_L_E, self._labels_L, ids, Embedded({}, layers), self.known().groups_L)
            night = self._night(reading.changed(self.params, self.settings(judged.candidate)), known)
        embedding = seconds / len(self.sample) * len(self.made.pools.catalog)
        return Tried("probe", str(judged.candidate), judged.balanced_accuracy, judged.loss, embedding, night)

    def bytes_of(self, candidate: Candidate) -> int:
        """What the embeddings of all images take on the disk."""
        made = [self._part(part).embeddings_L_E for part in candidate.parts]
        return sum(part.nbytes // len(part) for part in made) * len(self.made.pools.catalog)

    def scratch(self) -> Tried:
        """The row of the network that is trained from random weights: timed, not tried."""
        settings = self.params.classifier
        known = TrainingSet(self._images_of(self.params.images.size), self._labels_L, list(self.sample["sample_id"]))
        sees = f"{settings.network}, width {settings.width}, {settings.epochs} epochs"
        night = self._night(reading.changed(self.params, {"classifier.learner": "scratch"}), known)
        return Tried("scratch", sees, None, None, None, night)

    def _night(self, params: Params, known: TrainingSet) -> float:
        made, labels = self.made.pools, len(self.made.pools.labeled)
        measured = night_cost.measure(params, known, len(made.classes), labels=labels, images=len(made.unlabeled))
        advance("time a night", 1, None)
        return measured.seconds

    # -- images --

    @property
    def _labels_L(self) -> NDArray[np.int64]:
        classes = self.made.pools.classes
        return np.array([classes.index(label) for label in self.sample["label"]], dtype=np.int64)

    @cached_property
    def _images(self) -> "_Images":
        """As they are kept for the largest size that is tried."""
        largest = max([*self.offered.beside, *self.offered.first[-1].sizes])
        since = time.perf_counter()
        images_L_H_W_K = self._images_of(max(_SMALLEST, min(self.native, largest)))
        return _Images(images_L_H_W_K, time.perf_counter() - since)

    def _images_of(self, size: int) -> NDArray[np.uint8]:
        settings = self.params.images
        shards = DecodedShards(self.folder, self.place.decoded, size, settings.channels, bit_depth=self.made.bit_depth)
        return shards.gather(self.sample)

    def _part(self, part: Part) -> "_PartOfEmbedding":
        if part not in self._embedded:
            size, views = part
            if views == PIXELS:
                self._embedded[part] = self._pixels(size)
                return self._embedded[part]
            settings = self.params.backbone.model_copy(update={"sizes": [size], "views": views})
            embedder = Embedder(settings, device_of(self.params), self.place.embeddings)
            layers = embedder.embedded.layers
            names = list(self.sample["sample_id"])
            embedder.embed(self._images.images_L_H_W_K[:1], names)  # what a first pass sets up is not timed
            since = time.perf_counter()
            embeddings_L_E = embedder.embed(self._images.images_L_H_W_K, names)
            self._embedded[part] = _PartOfEmbedding(embeddings_L_E, layers, time.perf_counter() - since)
        return self._embedded[part]

    def _pixels(self, side: int) -> "_PartOfEmbedding":
        images = torch.from_numpy(self._images.images_L_H_W_K).permute(0, 3, 1, 2)
        nothing: dict[str, Any] = {"sizes": (), "views": "plain", "mean": (0.0,) * 3, "std": (1.0,) * 3}
        values = embed(images, (), **nothing, interpolation="bilinear", pixels=side)
        return _PartOfEmbedding(values.numpy(), (Layer(side, -1, values.shape[1]),), 0.0)

    def _is_given(self, section: str, key: str) -> bool:
        whole = self.given.get(section)
        return f"{section}.{key}" in self.given or (isinstance(whole, Mapping) and key in whole)


@dataclass(frozen=True)
class _Images:
    images_L_H_W_K: NDArray[np.uint8]
    seconds: float  # to decode them


@dataclass(frozen=True)
class _PartOfEmbedding:
    embeddings_L_E: NDArray[np.float32]
    layers: tuple[Layer, ...]
    seconds: float
