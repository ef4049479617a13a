"""What a source was understood to be, said before anything is made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from vabal import images, pools
from vabal.errors import UserError, some
from vabal.images import near_copies
from vabal.learning.metrics import FEWEST_IMAGES
from vabal.objects import Reference
from vabal.settings.base import BitDepth
from vabal.settings.models import ImageSettings
from vabal.sources.base import Item, Source
from vabal.sources.files import Files, Folder
from vabal.sources.layouts import LAYOUTS
from vabal.sources.sifting import ItemFilter, name_of

LONGEST_TABLE = 20  # lines, of classes


@dataclass(frozen=True)
class DrawSettings:
    """What the user asked round 0 to be."""

    imbalance: str | None
    initial: int
    holdout: float
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise UserError(f"--holdout {self.holdout}: must be at least 0 (no holdout) and below 1")
        if self.initial < 1:
            raise UserError(f"--initial {self.initial}: at least one sample must be labelled or asked for")


@dataclass(frozen=True)
class Contradiction:
    """Two files that show the same picture under two labels."""

    kept: str
    label: str
    other: str
    other_label: str

    def __str__(self) -> str:
        return f"{self.kept} is {self.label}, {self.other} is {self.other_label}"


@dataclass(frozen=True)
class Survey:
    """What a first pass over the source found: one row per readable picture that no other one shows."""

    items: pd.DataFrame  # sample_id, label, group (near copies share one), split, sha256, width, height
    left_out: tuple[tuple[str, str], ...]  # name, reason
    aside: tuple[tuple[str, str, bytes | None], ...]  # path, reason, bytes or None of what cannot be read
    contradictions: tuple[Contradiction, ...] = ()
    near: tuple[tuple[str, str], ...] = ()  # ids of near copies
    several: tuple[str, ...] = ()
    bit_depth: BitDepth = "auto"
    # By id, of images that stay where they are: where, and the digest of pixels and the fingerprint that they have.
    references: Mapping[str, tuple[Reference, str, bytes]] = field(default_factory=dict)

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        return tuple((path, reason) for path, reason, _ in self.aside)

    def set_aside(self, folder: Path) -> None:
        """Put what could not be read into quarantine."""
        for path, reason, data in self.aside:
            images.quarantine(folder, path, data, reason, datetime.now(UTC))

    def notes(self) -> list[str]:
        """What was left out, for people: counts and the first few."""
        notes = []
        if self.left_out:
            names = first_of([name for name, _ in self.left_out])
            said = f"{len(self.left_out)} left out, same picture as another: {names}"
            notes.append(said + self._contradicting())
        if self.near:
            pairs = [f"{one} and {other}" for one, other in self.near]
            notes.append(f"{len(pairs)} pairs of near copies, kept on one side of the holdout: {first_of(pairs)}")
        label = self.items.set_index("sample_id")["label"].dropna().to_dict()
        apart = [
            f"{one} is {label[one]}, {other} is {label[other]}"
            for one, other in self.near
            if label.get(one, None) != label.get(other, None) and one in label and other in label
        ]
        if apart:
            notes.append(f"{len(apart)} pairs of near copies carry different labels: {first_of(apart)}")
        if self.unreadable:
            listed = [f"{path} ({reason})" for path, reason in self.unreadable]
            notes.append(f"{len(listed)} unreadable, listed in quarantine/quarantine.csv: {first_of(listed)}")
            notes += grouped(self.unreadable) if len({reason for _, reason in self.unreadable}) > 1 else []
        if self.several:
            notes.append(f"{len(self.several)} files hold several pictures, the first counts: {first_of(self.several)}")
        if self.bit_depth != "auto":
            notes.append(
                f"16-bit files do not tell their depth, the largest value takes {self.bit_depth} bits: they "
                f"are scaled by images.bit_depth = {self.bit_depth}"
            )
        return notes

    def _contradicting(self) -> str:
        if not self.contradictions:
            return ""
        listed = first_of([str(item) for item in self.contradictions])
        return f"; {len(self.contradictions)} of them under another label, so that no label counts: {listed}"


def first_of(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def survey(source: Source, settings: ImageSettings, *, near_distance: int = 0) -> Survey:
    """What is in a source: readable, distinct images. Raises UserError if there are none.

    Near copies within `near_distance` (0: none are looked for) share a group.
    """
    sieve = ItemFilter(settings)
    rows, prints = [], []
    references: dict[str, tuple[Reference, str, bytes]] = {}
    for new in sieve.sift(source):
        item = new.item
        rows.append((item.sample_id, item.label, item.group, item.split, new.sha256, new.width, new.height))
        prints.append(new.fingerprint if near_distance else b"")
        if item.reference is not None:
            references[item.sample_id] = (item.reference, new.pixels, new.fingerprint)
    if not rows:
        reasons = grouped([(path, reason) for path, reason, _ in sieve.unreadable])
        raise UserError("; ".join([f"source {source.name}: no readable image in it", *reasons]))
    items = pd.DataFrame(rows, columns=["sample_id", "label", "group", "split", "sha256", "width", "height"])
    contradictions = _settle_labels(items, sieve.duplicates)
    near = near_copies.pairs(prints, near_distance)
    items["group"] = pools.merged(items, near)
    ids = items["sample_id"].tolist()
    against = {item.other: f" under label {item.other_label}, not {item.label}" for item in contradictions}
    return Survey(
        items,
        tuple(
            (name_of(item), f"same picture as {twin}{against.get(name_of(item), '')}")
            for item, twin in sieve.duplicates
        ),
        tuple(sieve.unreadable),
        contradictions,
        tuple((ids[one], ids[other]) for one, other in near),
        tuple(sieve.several),
        _depth(sieve.guessed_bits),
        references,
    )


def _depth(bits: int) -> BitDepth:
    depths: tuple[BitDepth, ...] = (8, 10, 12, 14, 16)
    return next((depth for depth in depths if depth == bits), "auto")


def _settle_labels(items: pd.DataFrame, duplicates: Sequence[tuple[Item, str]]) -> tuple[Contradiction, ...]:
    """Give a kept picture the label of one that shows the same, and none where two labels contradict each other.

    A published holdout keeps its labels.
    """
    row_of = {sample_id: row for row, sample_id in enumerate(items["sample_id"])}
    label: list[str | None] = [name if isinstance(name, str) else None for name in items["label"]]
    doubted: set[int] = set()
    found = []
    for item, twin in duplicates:
        row = row_of.get(twin)
        if row is None or item.label is None or item.label == label[row]:
            continue
        here = label[row]
        if here is None:
            label[row] = item.label
            continue
        found.append(Contradiction(twin, here, name_of(item), item.label))
        if items["split"].iloc[row] != "holdout":
            doubted.add(row)
    items["label"] = pd.Series([None if row in doubted else name for row, name in enumerate(label)], dtype=object)
    return tuple(found)


def grouped(unreadable: Sequence[tuple[str, str]]) -> list[str]:
    """Unreadable files by their reason, as lines for people."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in unreadable:
        by_reason.setdefault(reason, []).append(path)
    return [f"{len(paths)} unreadable, {reason}: {some(paths)}" for reason, paths in by_reason.items()]


def understood(source: Source, found: Survey, classes: tuple[str, ...]) -> list[str]:
    """What a source was understood to be, for people: how it is read, its classes with counts, what is left out."""
    items = found.items
    place = f" {source.place}" if isinstance(source, Files) and source.place else ""
    head = f"source {source.name}{place}: {len(items)} images, {len(classes)} classes"
    notes = list(source.notes) if isinstance(source, Files) else []
    if isinstance(source, Folder):
        head += f"; {source.layout}: {LAYOUTS[source.layout]}"
    if isinstance(source, Files) and not source.given:
        gone = [name for name in source.classes or () if name not in classes]
        if gone:
            notes.append(f"no readable image of its own in {some(gone)}: no class (named with --classes, it is one)")
    return [head, *_counts(items, classes), *_groups(items), *notes, *found.notes()]


def _groups(items: pd.DataFrame) -> list[str]:
    """Those that the source tells of; near copies have a line of their own."""
    told = items["group"].dropna().astype(str)
    counts = told[~told.str.startswith(pools.NEAR)].value_counts()
    several = counts[counts > 1]
    if several.empty:
        return []
    return [f"{several.sum()} images in {len(several)} groups, each kept on one side of the holdout"]


def _counts(items: pd.DataFrame, classes: tuple[str, ...]) -> list[str]:
    """A table of images per class, and per split where the source brings its own; long ones are shortened."""
    splits = [name for name in ("pool", "holdout") if (items["split"] == name).any()]
    parts = [items[items["split"] == name] for name in splits] or [items]
    rows = [(name, [int((part["label"] == name).sum()) for part in parts]) for name in classes]
    unlabelled = [int(part["label"].isna().sum()) for part in parts]
    lines = ["".join(f"{title:>10}" for title in splits or ["images"]) + "  class"]
    shortened = len(rows) > LONGEST_TABLE
    for name, counts in rows[: LONGEST_TABLE - 1] if shortened else rows:
        lines.append("".join(f"{count:>10}" for count in counts) + f"  {name}")
    if shortened:
        totals = [sum(counts) for _, counts in rows[LONGEST_TABLE - 1 :]]
        lines.append(f"{sum(totals):>10}  in {len(totals)} more classes, {min(totals)} to {max(totals)} each")
    if any(unlabelled):
        lines.append("".join(f"{count:>10}" for count in unlabelled) + "  without a label")
    return lines


def class_names(source: Source, items: pd.DataFrame | None = None) -> tuple[str, ...]:
    """The source's classes. Raises UserError if it has no names for them, or fewer than two.

    With what a survey found, the classes of a folder are those with an image, unless the user named them.
    """
    names = source.classes
    if not names:
        raise UserError(f"source {source.name} has no labels: name its classes with --classes a,b,c")
    gone: list[str] = []
    if items is not None and isinstance(source, Files) and not source.given:
        gone = without_image(names, items)
        names = tuple(name for name in names if name not in gone)
    if len(names) < 2:
        lost = (
            f"; no readable image of its own in {some(gone)} (--layout class-folders --classes a,b leaves folders out)"
            if gone
            else ""
        )
        raise UserError(
            f"source {source.name}: at least two classes are needed, found {', '.join(names) or 'none'}{lost}"
        )
    return names


def without_image(names: Sequence[str], items: pd.DataFrame) -> list[str]:
    """Classes of which no readable image was found."""
    found = set(items["label"])
    return [name for name in names if name not in found]


def class_notes(classes: tuple[str, ...], held: pd.DataFrame, begun: pd.DataFrame) -> list[str]:
    notes = []
    for where, rows in (("holdout", held), ("initial labelled pool", begun)):
        if held is rows and rows.empty:
            continue
        missing = [name for name in classes if name not in set(rows["label"])]
        if missing:
            notes.append(f"no sample of class {first_of(missing)} in the {where}")
    images = held["label"].value_counts()
    few = [f"{name} ({images[name]})" for name in classes if 0 < images.get(name, 0) < FEWEST_IMAGES]
    if few:
        notes.append(
            f"promotion does not judge classes with fewer than {FEWEST_IMAGES} images in the holdout: {first_of(few)}"
        )
    if len(held) and (images >= FEWEST_IMAGES).sum() < 2:
        notes.append(
            f"promotion will wait, for two classes with {FEWEST_IMAGES} images each in the holdout are needed: "
            "take more images or a larger --holdout"
        )
    return notes
