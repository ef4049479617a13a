"""Draws: the holdout, the thinning, the first labels; each ranks samples by a hash of seed, purpose and sample id."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from vabal import pools
from vabal.errors import UserError
from vabal.files import sha256
from vabal.sources.base import Source
from vabal.sources.surveys import DrawSettings, class_notes, first_of

# --- draws ------------------------------------------------------------------------------------------------------------


def _rank(seed: int, purpose: str, name: str) -> str:
    return sha256(f"{seed}\0{purpose}\0{name}".encode())


def draw(sample_ids: Sequence[str], count: int, seed: int, purpose: str) -> list[str]:
    """`count` of the samples, uniformly at random, in the order drawn."""
    return sorted(sample_ids, key=lambda name: _rank(seed, purpose, name))[:count]


@dataclass(frozen=True)
class Imbalance:
    """A parsed `--imbalance`: the share of each class (by index) that stays in the pool."""

    kept: tuple[float, ...]

    @classmethod
    def parse(cls, spec: str, num_classes: int) -> "Imbalance":
        """From `dominant:K[:FRACTION]` (K stays whole, FRACTION of the others) or `rare:K[:FRACTION]` (of K).

        K counts from 0; `0,3,44-54` names several. Raises UserError if the spec cannot be read or names no class.
        """
        found = re.fullmatch(r"(dominant|rare):(\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)(?::(\d*\.?\d+(?:[eE]-?\d+)?))?", spec)
        if not found:
            raise UserError(
                f"--imbalance {spec!r}: expected dominant:K[:FRACTION] or rare:K[:FRACTION], K as 0 or 0,3,44-54"
            )
        kind, listed, share = found.groups()
        fraction = float(share) if share else 0.1
        if not 0 < fraction <= 1:
            raise UserError(f"--imbalance {spec!r}: the fraction must be above 0 and at most 1")
        chosen = _indices(spec, listed, num_classes)
        dominant = kind == "dominant"
        return cls(tuple(1.0 if (index in chosen) == dominant else fraction for index in range(num_classes)))


def _indices(spec: str, listed: str, num_classes: int) -> set[int]:
    chosen: set[int] = set()
    for part in listed.split(","):
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise UserError(f"--imbalance {spec!r}: the range {part} runs backwards")
        if high >= num_classes:
            raise UserError(f"--imbalance {spec!r}: no class {high}; the classes are 0 to {num_classes - 1}")
        chosen.update(range(low, high + 1))
    return chosen


def thin(items: pd.DataFrame, imbalance: str, classes: Sequence[str], seed: int) -> pd.DataFrame:
    """The rows of the pool (sample_id, label) that an `--imbalance` keeps, in their order.

    Of a class with n samples, the rounded share of n stays, at least one. Samples without a label all stay.
    """
    kept = Imbalance.parse(imbalance, len(classes)).kept
    gone: set[str] = set()
    for name, share in zip(classes, kept, strict=True):
        members = items.loc[items["label"] == name, "sample_id"].tolist()
        count = max(1, int(share * len(members) + 0.5))
        gone.update(draw(members, len(members), seed, "imbalance")[count:])
    return items[~items["sample_id"].isin(gone)]


_TIED: Final = 10  # near copies of one class, from which on they may be a kind of picture and no copies


def _wanted(items: pd.DataFrame, fraction: float) -> tuple[pd.Series, dict[str, int]]:
    """The images' labels (null: a class of its own), and how many of each the holdout is to have."""
    label = items["label"].astype(object).where(items["label"].notna(), "\0unknown")
    sizes = {str(name): int(size) for name, size in label.value_counts().items()}
    return label, {
        name: min(max(1, int(fraction * size + 0.5)), size - 1) if size > 1 else 0 for name, size in sizes.items()
    }


def _refuse_tied(items: pd.DataFrame, held: Sequence[str], fraction: float) -> None:
    """Raise UserError where so many pictures of a class count as near copies that its holdout falls short."""
    label, wanted = _wanted(items, fraction)
    inside = items["sample_id"].isin(set(held))
    tied = items["group"].astype(object).astype(str).str.startswith(pools.NEAR)
    for name in sorted(wanted):
        here = label == name
        count, drawn = int((here & tied).sum()), int((here & inside).sum())
        if 2 * drawn < wanted[name] and count >= max(_TIED, int(here.sum()) / 2):
            kind = "" if name == "\0unknown" else f" of class {name}"
            raise UserError(
                f"{count} of {int(here.sum())} images{kind} count as near copies of others, so that the holdout gets "
                f"{drawn} of {wanted[name]}: if they are different pictures that look alike, --set pool.near_copies=0 "
                "(in params.yaml, where there is one) looks for equal ones only; if they are copies, take them out"
            )


def draw_holdout(items: pd.DataFrame, fraction: float, seed: int) -> list[str]:
    """Ids of a holdout, stratified: of each class (label null: a class of its own) about `fraction`, groups whole.

    `items`: sample_id, label, group (null: alone). Of a class with two samples and more, at least one goes to the
    holdout where groups allow it, and never all. Groups are taken in the order of their hash, each where that brings
    the counts per class nearer to what is wanted.
    """
    label, wanted = _wanted(items, fraction)
    group = items["group"].astype(object).where(items["group"].notna(), "\0" + items["sample_id"].astype(object))
    members: dict[str, list[tuple[str, str]]] = {}
    for key, sample_id, name in zip(group, items["sample_id"], label, strict=True):
        members.setdefault(key, []).append((sample_id, name))
    drawn: list[str] = []
    for key in sorted(members, key=lambda key: _rank(seed, "holdout", key.removeprefix("\0"))):
        counts: dict[str, int] = {}
        for _, name in members[key]:
            counts[name] = counts.get(name, 0) + 1
        if sum(abs(wanted[name] - count) - abs(wanted[name]) for name, count in counts.items()) < 0:
            drawn += [sample_id for sample_id, _ in members[key]]
            for name, count in counts.items():
                wanted[name] -= count
    return drawn


@dataclass(frozen=True)
class Draws:
    """Which sample goes where, ids sorted."""

    holdout: list[str]
    initial: list[str]
    rest: list[str]
    labelled: bool
    oracle: pd.DataFrame
    notes: list[str]
    left_out: list[tuple[str, str]]  # sample id, reason


def plan_draws(source: Source, items: pd.DataFrame, classes: tuple[str, ...], wishes: DrawSettings) -> Draws:
    """The holdout first, then the pool is thinned, then the initial samples are drawn; all by hashes of the ids."""
    known = items["label"].notna()
    labelled = bool(known.any())
    if wishes.imbalance and not labelled:
        raise UserError("--imbalance needs labels, and this source has none")
    held, notes = _holdout(source, items, wishes)
    pool, stray = _without_copies(items, set(held))
    if len(stray):
        names = stray["sample_id"].tolist()
        notes.append(
            f"{len(names)} left out, near copies or of the group of an image in the holdout: {first_of(names)}"
        )
    if wishes.imbalance:
        pool = thin(pool, wishes.imbalance, classes, wishes.seed)
    if labelled and not pool["label"].notna().any():  # the source's own holdout has its only labels
        labelled = False
        notes.append("no image of the pool has a label: the initial ones are asked for")
    eligible = pool[pool["label"].notna()] if labelled else pool
    if wishes.initial > len(eligible):
        what = "labelled images" if labelled else "images"
        raise UserError(f"--initial {wishes.initial}: the pool has only {len(eligible)} {what}")
    first = set(draw(eligible["sample_id"].tolist(), wishes.initial, wishes.seed, "initial"))
    begun = pool["sample_id"].isin(first)
    oracle = pool.loc[~begun & pool["label"].notna(), ["sample_id", "label"]]
    if labelled:
        notes += class_notes(classes, items[items["sample_id"].isin(set(held))], pool[begun])
        if not known.all():
            notes.append(f"{int((~known).sum())} images have no label: they go to the unlabelled pool")
    return Draws(
        holdout=sorted(held),
        initial=sorted(first),
        rest=sorted(pool.loc[~begun, "sample_id"]),
        labelled=labelled,
        oracle=oracle.sort_values("sample_id").reset_index(drop=True),
        notes=notes,
        left_out=[(name, "near copy or of the group of an image in the holdout") for name in stray["sample_id"]],
    )


def _holdout(source: Source, items: pd.DataFrame, wishes: DrawSettings) -> tuple[list[str], list[str]]:
    """The holdout's ids: the source's own, or drawn of the images with labels (of all, where none has one); notes."""
    held: list[str] = []
    notes = []
    if items["split"].notna().any():
        held = items.loc[items["split"] == "holdout", "sample_id"].tolist()
        notes.append(f"{source.name} brings its own holdout of {len(held)} images: --holdout is not used")
    elif wishes.holdout:
        known = items["label"].notna()
        drawable = items[known] if known.any() else items
        held = draw_holdout(drawable, wishes.holdout, wishes.seed)
        _refuse_tied(drawable, held, wishes.holdout)
    if not held:
        why = "too few images of each class for a holdout" if wishes.holdout else "no holdout"
        notes.append(f"{why}: no round measures anything, and no model is compared with another")
    return held, notes


def _without_copies(items: pd.DataFrame, held: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the pool; and those that belong to neither side, for their group is in the holdout without them.

    That is so where a source brings its own holdout, and for images without a label.
    """
    inside = items["sample_id"].isin(held)
    groups = items.loc[inside, "group"].dropna()
    stray = ~inside & items["group"].isin(groups) & items["group"].notna()
    return items[~inside & ~stray], items[stray]
