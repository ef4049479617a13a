"""What a probe should see of the images, by cross-validation on a few labels: their size, and which views of them.

A pretrained network may be shown an image at several sizes, as it is (`plain`), with its mirror image (`mirrored`) or
in all eight ways to turn and mirror it (`turned`). Which of these pays differs from pool to pool, and the labels at
hand tell. What is compared is the cross entropy with every class counting alike; of those that cannot be told from the
best the cheapest is taken (a standard-error rule, as Breiman et al. 1984 have one). Costs are counted in pixels, never
in seconds: the same labels give the same answer on every machine. Axes: L labelled samples, E numbers of an embedding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from vabal.learning import probe
from vabal.learning.backbones import Layer
from vabal.learning.probe import Embedded, LabelledEmbeddings
from vabal.settings.learners import ClassifierSettings

PIXELS: Final = "pixels"  # in place of views: the image's own
PASSES: Final = {"plain": 1, "mirrored": 2, "turned": 8, PIXELS: 0}  # through the network
_SMALLEST, _LARGEST_FIRST, _LARGEST = 32, 64, 192
_STEPS: Final = (1.0, 1.5, 2.0, 3.0)
_TOLD_APART: Final = 0.5  # standard errors
_REPEATS: Final = 3  # of the cross-validation that compares, each with folds of its own

# What a probe sees of an image: at which size, in which views, or its own pixels.
Part = tuple[int, str]
Embeddings = Callable[[Part], tuple[NDArray[np.float32], tuple[Layer, ...]]]


def sizes(native: int) -> tuple[int, ...]:
    """Sizes that are tried for images of `native` pixels."""
    first = min(max(native, _SMALLEST), _LARGEST_FIRST)
    return tuple(size for size in (int(first * step) // 16 * 16 for step in _STEPS) if size <= _LARGEST)


class Candidate(NamedTuple):
    """A probe that may be taken: what it sees of an image, side by side."""

    parts: tuple[Part, ...]

    @property
    def cost(self) -> int:
        """Pixels that the network sees of an image, in all passes."""
        return sum(PASSES[views] * size**2 for size, views in self.parts)

    @property
    def sizes(self) -> list[int]:
        return [size for size, views in self.parts if views != PIXELS]

    @property
    def views(self) -> str | list[str]:
        """One word where that says it, else one for each size."""
        views = [views for _, views in self.parts if views != PIXELS]
        return views[0] if len(set(views)) == 1 else views

    @property
    def pixels(self) -> int:
        """A side of the image whose own pixels are seen as well; 0: they are not."""
        return next((size for size, views in self.parts if views == PIXELS), 0)

    def __str__(self) -> str:
        if isinstance(self.views, str):
            said = f"{' and '.join(str(size) for size in self.sizes)} px, {self.views}"
        else:
            said = " and ".join(f"{size} px, {views}" for size, views in zip(self.sizes, self.views, strict=True))
        return f"{said}, own pixels" if self.pixels else said


@dataclass(frozen=True)
class Judged:
    """How a candidate did on labels that it had not seen."""

    candidate: Candidate
    losses_L: NDArray[np.float64]  # cross entropies, so weighted that every class counts alike
    balanced_accuracy: float

    @property
    def loss(self) -> float:
        return float(self.losses_L.mean())


@dataclass(frozen=True)
class Known:
    """Labelled samples of which embeddings can be had; samples of one of `groups_L` are judged together."""

    labels_L: NDArray[np.int64]
    sample_ids: Sequence[str]
    groups_L: NDArray[Any] | None
    embeddings: Embeddings
    num_classes: int

    def judge(self, candidate: Candidate, settings: ClassifierSettings, seed: int) -> Judged:
        embeddings, layers = zip(*(self.embeddings(part) for part in candidate.parts), strict=True)
        embedded = Embedded({}, tuple(layer for part in layers for layer in part))
        known = LabelledEmbeddings(np.concatenate(embeddings, axis=1), self.labels_L, self.sample_ids, self.groups_L)
        chosen = probe.choose(known, embedded, self.num_classes, settings, seed=seed)
        weights_L = probe.balanced_weights(self.labels_L)
        losses, right = [], []
        for repeat in range(_REPEATS):
            fold_L = known.folds(probe.FOLDS, seed + repeat)
            columns_D, _ = embedded.columns(chosen.layers)
            logits_L_C = probe.held_out_logits(known, columns_D, fold_L, self.num_classes, chosen.penalty, settings)
            log_L_C = log_softmax(logits_L_C / chosen.temperature, axis=1)
            losses.append(-weights_L * log_L_C[np.arange(len(weights_L)), self.labels_L])
            right.append(np.average(logits_L_C.argmax(axis=1) == self.labels_L, weights=weights_L))
        return Judged(candidate, np.mean(losses, axis=0), float(np.mean(right)))


@dataclass(frozen=True)
class Offered:
    """What may be tried: candidates to begin with; sizes to put beside the best of them, and its own pixels, so many a
    side (0: not those); views in place of the first ones; and what a candidate, but for the first, may cost."""

    first: tuple[Candidate, ...]
    beside: tuple[int, ...] = ()
    pixels: int = 0
    views: tuple[str, ...] = ()
    most: float = float("inf")


def search(known: Known, offered: Offered, settings: ClassifierSettings, *, seed: int) -> Iterator[Judged]:
    """Yields each candidate once it was judged: each size; a second one beside the best; the pixels; other views, of
    all sizes and of one of them.

    Forward selection: each step starts from the candidate with the least loss so far.
    """
    tried: dict[Candidate, Judged] = {}

    def judge(candidates: Iterable[Candidate]) -> Iterator[Judged]:
        for candidate in candidates:
            if candidate not in tried and (not tried or candidate.cost <= offered.most):
                tried[candidate] = known.judge(candidate, settings, seed)
                yield tried[candidate]

    def best() -> Candidate:
        return min(tried.values(), key=lambda judged: judged.loss).candidate

    yield from judge(offered.first)
    found = best()
    yield from judge(_with(found, (size, found.parts[0][1])) for size in offered.beside if size not in found.sizes)
    if offered.pixels:
        yield from judge([_with(best(), (offered.pixels, PIXELS))])
    found = best()
    for views in offered.views:
        yield from judge([_seen(found, found.sizes, views)])
    for views in offered.views:
        yield from judge(_seen(found, [size], views) for size in found.sizes)


def _with(candidate: Candidate, part: Part) -> Candidate:
    return Candidate(tuple(sorted((*candidate.parts, part), key=lambda part: (part[1] == PIXELS, part))))


def _seen(candidate: Candidate, sizes: Sequence[int], views: str) -> Candidate:
    """The candidate with other views at these sizes."""
    return Candidate(tuple((size, views if size in sizes and old != PIXELS else old) for size, old in candidate.parts))


def cheapest_of_the_best(tried: Sequence[Judged], groups_L: NDArray[Any] | None = None) -> Judged:
    """The cheapest of those that cannot be told from the best: whose loss is higher by half a standard error at most.

    The error is that of the mean difference, sample by sample; by whole groups, where there are some.
    """
    best = min(tried, key=lambda judged: judged.loss)
    equal = [judged for judged in tried if judged.loss - best.loss <= _TOLD_APART * _error(judged, best, groups_L)]
    return min(equal, key=lambda judged: (judged.candidate.cost, judged.loss))


def _error(one: Judged, other: Judged, groups_L: NDArray[Any] | None) -> float:
    less_L = one.losses_L - other.losses_L
    centred = less_L - less_L.mean()
    if groups_L is not None:
        _, group_L = np.unique(groups_L, return_inverse=True)
        centred = np.bincount(group_L, weights=centred)
    return float(np.sqrt((centred**2).sum()) / len(less_L))
