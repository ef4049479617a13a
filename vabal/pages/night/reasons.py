"""Why a sample was picked, in words that follow from the record: by rules that the page tells too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vabal.pages.headline import counted

UNDECIDED: Final = 0.2  # a class whose probability is less than this below the best one is in question
LEANING: Final = 0.5
RARE: Final = 0.5  # of the share that a class would have if all had the same
FAR: Final = 0.25  # this quantile of the distances between two picks is far
# The kinds of reasons in the order in which picks are sorted by them.
UNSURE, SCARCE, UNLIKE, LEANS, SURE, DRAWN, SCORED = range(7)


@dataclass(frozen=True)
class Pick:
    """What the reason is told from; `posterior` by class, `alone` and `new`: far from every other pick, label."""

    strategy: str
    score: float
    posterior: Mapping[str, float]
    alone: bool
    new: bool
    drawn: bool = False  # of the control arm

    @property
    def by_chance(self) -> bool:
        return self.drawn or self.strategy == "random"


@dataclass(frozen=True)
class Reason:
    kind: int
    words: str


def reason(pick: Pick, labels: Mapping[str, int]) -> Reason:
    """`labels` counts the labelled pool by class."""
    parts, kinds = list[str](), list[int]()
    if pick.by_chance:
        parts.append("drawn at random" + (", for the control arm" if pick.drawn else ""))
        kinds.append(DRAWN)
    if pick.posterior:
        asked, kind, words = _doubt(pick.posterior)
        parts.append(words if not pick.by_chance else f"the classifier is {words}" if kind != LEANS else words)
        kinds.append(kind)
        scarce = _scarce(asked, labels)
        parts += scarce
        kinds += [SCARCE] * bool(scarce)
    elif not pick.by_chance:
        parts.append(f"score {pick.score:.4g} by {pick.strategy}, of which the record tells no more")
        kinds.append(SCORED)
    if pick.alone:
        parts.append("unlike every other pick")
    if pick.new:
        parts.append("unlike every labelled image")
    kinds += [UNLIKE] * (pick.alone or pick.new)
    first = DRAWN if pick.by_chance else min(kinds)
    return Reason(first, "; ".join(parts))


def _doubt(posterior: Mapping[str, float]) -> tuple[list[str], int, str]:
    """The classes in question, the kind of the reason, and its words."""
    ordered = sorted(posterior, key=lambda name: -posterior[name])
    best = posterior[ordered[0]]
    close = [name for name in ordered if best - posterior[name] < UNDECIDED]
    if len(close) > 1:
        shown = close[:4]
        named = f"{', '.join(shown[:-1])} and {shown[-1]}"
        more = f" and {counted(len(close) - len(shown), 'other')}" if len(close) > len(shown) else ""
        return close, UNSURE, f"undecided between {named}{more}"
    if len(ordered) > 1 and best - posterior[ordered[1]] < LEANING:
        return ordered[:2], LEANS, f"rather {ordered[0]} than {ordered[1]}"
    return ordered[:1], SURE, f"sure of {ordered[0]}"


def _scarce(asked: Sequence[str], labels: Mapping[str, int]) -> list[str]:
    total, few = sum(labels.values()), RARE / max(len(labels), 1)
    parts = []
    for name in asked[:4]:
        count = labels.get(name, 0)
        if not count:
            parts.append(f"no label is {name} yet")
        elif count < few * total:
            parts.append(f"{name} is rare among the labels ({count} of {total})")
    return parts


def far(distances_P: NDArray[np.floating]) -> float:
    """From where on a distance is far: `FAR` of the pairs of picks lie closer. Infinite without a pair."""
    return float(np.quantile(distances_P, FAR)) if len(distances_P) else float("inf")


def rules() -> list[str]:
    """The rules in words, for the page."""
    return [
        f"Undecided: classes whose probability lies less than {UNDECIDED:g} below the best one; rather A than B: less "
        f"than {LEANING:g}; sure: all others.",
        f"Rare among the labels: a class with less than {RARE:g} of the share that it would have if all had the same.",
        f"Unlike every other pick, or every labelled image: farther from the nearest of them than {100 * FAR:.0f} % of "
        "all pairs of picks are apart.",
    ]
