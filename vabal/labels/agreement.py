"""Several opinions on one image: how far people agree, and who says what.

An opinion is the last that a person said of an image: a class, or that it cannot be labelled. What came with the source
is nobody's opinion. Axes: N images, A annotators, K what may be said (the classes and a rejection).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.labels.arrivals import some_of
from vabal.labels.consensus import CONSENSUS
from vabal.pools import FROM_SOURCE, standing

_LISTED: Final = 12  # pairs and people that are told in lines; the JSON has all


@dataclass(frozen=True)
class Person:
    """What one annotator said: labels and rejections in all; of `shared` images, which others have an opinion on too,
    the share in which this person says what most do (of a tie, what stands)."""

    name: str
    labels: int
    rejections: int
    shared: int
    accuracy: float | None


@dataclass(frozen=True)
class Pair:
    """Two annotators on the images that both have an opinion on: Cohen's kappa, None where it is not defined."""

    first: str
    second: str
    images: int
    kappa: float | None


@dataclass(frozen=True)
class Agreement:
    """`several`: images with opinions of two people or more; `kappa`: Fleiss' over them; `disputed`: those of them on
    which people's last opinions differ, the most divided first."""

    images: int
    several: int
    kappa: float | None
    disputed: tuple[str, ...]
    people: tuple[Person, ...]
    pairs: tuple[Pair, ...]

    def lines(self) -> list[str]:
        """For people."""
        if not self.people:
            return ["nobody has labelled yet: labels of the source are nobody's opinion"]
        count = len(self.people)
        said = [f"{count} {'people have' if count > 1 else 'person has'} an opinion on {self.images} images"]
        if self.several:
            said.append(f"{self.several} images have several; Fleiss' kappa {_told(self.kappa)}")
        said += [_line(person) for person in self.people[:_LISTED]]
        said += [
            f"{pair.first} and {pair.second}: Cohen's kappa {_told(pair.kappa)} on {pair.images} images"
            for pair in self.pairs[:_LISTED]
        ]
        if self.disputed:
            said.append(f"{len(self.disputed)} images are disputed: {some_of(self.disputed)}")
        return said

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def metrics(self) -> Iterator[tuple[str, float]]:
        """What is logged of a round; nothing where fewer than two people have labelled."""
        if len(self.people) < 2:
            return
        yield "labels/several_opinions", self.several
        yield "labels/disputed", len(self.disputed)
        if self.kappa is not None:
            yield "labels/fleiss_kappa", self.kappa
        for person in self.people:
            yield f"annotator_labels/{person.name}", person.labels
            if person.accuracy is not None:
                yield f"annotator_accuracy/{person.name}", person.accuracy


def agreement(events: pd.DataFrame) -> Agreement:
    """What people said, from the label events in the order of their arrival."""
    people = standing(events[~events["annotator"].isin([FROM_SOURCE, CONSENSUS])], by=["sample_id", "annotator"])
    names, classes = sorted(people["annotator"].unique()), sorted(people["label"].dropna().unique())
    samples = pd.Index(people["sample_id"].unique())
    said_N_A = np.full((len(samples), len(names)), -1, dtype=np.int64)
    code = pd.Index(classes).get_indexer(pd.Index(people["label"].astype(object)))
    code = np.where(people["label"].isna().to_numpy(dtype=bool), len(classes), code)
    rows, columns = samples.get_indexer(pd.Index(people["sample_id"])), pd.Index(names).get_indexer(people["annotator"])
    said_N_A[rows, columns] = code
    stands = standing(events).set_index("sample_id")["label"].reindex(samples).astype(object)
    stands_N = np.where(stands.isna(), len(classes), pd.Index(classes).get_indexer(pd.Index(stands)))
    counts_N_K = counts_of(said_N_A, len(classes) + 1)
    consensus_N = _consensus(counts_N_K, stands_N)
    several_N = counts_N_K.sum(axis=1) > 1
    share_N = counts_N_K.max(axis=1, initial=0) / np.maximum(counts_N_K.sum(axis=1), 1)
    order_N = np.argsort(share_N, kind="stable")
    return Agreement(
        images=len(samples),
        several=int(several_N.sum()),
        kappa=fleiss_kappa(counts_N_K),
        disputed=tuple(str(samples[place]) for place in order_N if share_N[place] < 1),
        people=tuple(
            _person(name, said_N_A[:, column], consensus_N, several_N, len(classes))
            for column, name in enumerate(names)
        ),
        pairs=tuple(_pairs(names, said_N_A, len(classes) + 1)),
    )


def counts_of(said_N_A: NDArray[np.int64], kinds: int) -> NDArray[np.int64]:
    """counts_N_K: how many said what of each image; -1 said nothing."""
    counts_N_K = np.zeros((len(said_N_A), kinds), dtype=np.int64)
    rows, columns = np.nonzero(said_N_A >= 0)
    np.add.at(counts_N_K, (rows, said_N_A[rows, columns]), 1)
    return counts_N_K


def _consensus(counts_N_K: NDArray[np.int64], stands_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """What most say of each image; of a tie, what stands, if it is among those."""
    rows = np.arange(len(counts_N_K))
    stands_first_N = (stands_N >= 0) & (counts_N_K[rows, stands_N] == counts_N_K.max(axis=1, initial=0))
    return np.where(stands_first_N, stands_N, counts_N_K.argmax(axis=1))


def fleiss_kappa(counts_N_K: NDArray[np.int64]) -> float | None:
    """Fleiss' kappa of the images with two opinions or more, however many each has: agreement of pairs above what the
    frequencies of what is said would give. None where there is no such image, or everybody always says the same."""
    raters_N = counts_N_K.sum(axis=1)
    counts_N_K, raters_N = counts_N_K[raters_N > 1], raters_N[raters_N > 1]
    if not len(raters_N):
        return None
    observed_N = (counts_N_K * (counts_N_K - 1)).sum(axis=1) / (raters_N * (raters_N - 1))
    share_K = counts_N_K.sum(axis=0) / raters_N.sum()
    return _above_chance(float(observed_N.mean()), float((share_K**2).sum()))


def cohens_kappa(first_N: NDArray[np.int64], second_N: NDArray[np.int64], kinds: int) -> float | None:
    """Of two people on the same images; None where there is no image, or both always say the same one thing."""
    if not len(first_N):
        return None
    first_K, second_K = (np.bincount(said_N, minlength=kinds) / len(said_N) for said_N in (first_N, second_N))
    return _above_chance(float((first_N == second_N).mean()), float((first_K * second_K).sum()))


def _above_chance(observed: float, expected: float) -> float | None:
    return None if expected >= 1 else (observed - expected) / (1 - expected)


def _person(
    name: str, said_N: NDArray[np.int64], consensus_N: NDArray[np.int64], several_N: NDArray[np.bool_], rejection: int
) -> Person:
    shared_N = several_N & (said_N >= 0)
    accuracy = float((said_N == consensus_N)[shared_N].mean()) if shared_N.any() else None
    labels, rejections = int(((said_N >= 0) & (said_N < rejection)).sum()), int((said_N == rejection).sum())
    return Person(name, labels, rejections, int(shared_N.sum()), accuracy)


def _pairs(names: list[str], said_N_A: NDArray[np.int64], kinds: int) -> Iterator[Pair]:
    for first, second in combinations(range(len(names)), 2):
        both_N = (said_N_A[:, first] >= 0) & (said_N_A[:, second] >= 0)
        if both_N.any():
            kappa = cohens_kappa(said_N_A[both_N, first], said_N_A[both_N, second], kinds)
            yield Pair(names[first], names[second], int(both_N.sum()), kappa)


def _line(person: Person) -> str:
    rejected = f" and {person.rejections} rejections" if person.rejections else ""
    said = f"{person.name}: {person.labels} labels{rejected}"
    if person.accuracy is None:
        return said
    return f"{said}; of {person.shared} images that others labelled too, {person.accuracy:.0%} as most say"


def _told(kappa: float | None) -> str:
    return "not defined (everybody says the same one thing)" if kappa is None else f"{kappa:.2f}"
