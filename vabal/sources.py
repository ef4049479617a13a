"""Round 0: images from a source become pools. The holdout is drawn first, then the pool is thinned, then labelled.

Every draw ranks samples by a hash of seed, purpose and sample id: neither the order of the source nor the presence of
other samples changes who comes first.
"""

import hashlib
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from vabal import images, near_copies, pools
from vabal.datasets import Cifar, Digits, Elpv, Files, Folder, Item, Neu, Npz, Source
from vabal.errors import UserError
from vabal.folders import some
from vabal.layouts import LAYOUTS
from vabal.params import BitDepth, ImageSettings, Params
from vabal.pools import Pools
from vabal.progress import track
from vabal.promotion import FEWEST_IMAGES
from vabal.store import sync_folder, write_bytes

_KINDS = {
    "digits": "digits",
    "folder": "folder:PATH",
    "npz": "npz:PATH",
    "cifar10": "cifar10:ROOT",
    "cifar100": "cifar100:ROOT",
    "neu": "neu:ROOT",
    "elpv": "elpv",
}
LONGEST_TABLE = 20  # lines, of classes


def open_source(spec: str, classes: Sequence[str] | None = None, layout: str | None = None) -> Source:
    """The source that a `--source` names; `classes` names the classes of one without labels, or fixes their order.

    `layout` says how the folders of a folder are read; `folder+splits:PATH` is `folder:PATH` with the layout `splits`.
    Raises UserError if the kind is unknown or what it names cannot be used.
    """
    kind, _, place = with_layout(spec, layout).partition(":")
    kind, _, layout = kind.partition("+")
    if kind not in _KINDS:
        raise UserError(f"--source {spec!r}: unknown kind {kind!r}; known are {', '.join(_KINDS.values())}")
    if bool(place) != (":" in _KINDS[kind]):
        raise UserError(f"--source {spec!r}: expected {_KINDS[kind]}")
    if classes and kind not in ("folder", "npz"):
        raise UserError(f"--classes: source {kind} has its own class names")
    if classes is not None and (not all(classes) or len(set(classes)) < len(classes)):
        raise UserError(f"--classes {','.join(classes)}: each class is named once, between commas")
    path = Path(place).expanduser()
    if kind == "folder":
        return Folder(path, classes, layout or None)
    if kind == "npz":
        return Npz(path, classes)
    if kind == "neu":
        return Neu(path)
    if kind.startswith("cifar"):
        return Cifar(kind, path)
    return Digits() if kind == "digits" else Elpv()


def with_layout(spec: str, layout: str | None) -> str:
    """A `--source` with its layout in front of the colon. Raises UserError for a layout that there is not."""
    kind, colon, place = spec.partition(":")
    chosen = layout or kind.partition("+")[2]
    if "+" not in kind and layout is None:
        return spec
    if kind.partition("+")[0] != "folder":
        raise UserError(f"--layout: says how a folder:PATH is read, not {spec!r}")
    if chosen not in LAYOUTS:
        raise UserError(f"--layout {chosen!r}: known are {', '.join(LAYOUTS)}")
    return f"folder+{chosen}{colon}{place}"


# --- draws ------------------------------------------------------------------------------------------------------------


def _rank(seed: int, purpose: str, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


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
    tied = items["group"].astype(object).astype(str).str.startswith(near_copies.GROUP)
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


# --- round 0 ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InitReport:
    """What round 0 is made of. `oracle` (sample_id, label) holds the labels of the pool that stay outside."""

    source: str
    pools: Pools
    oracle: pd.DataFrame
    requested: int
    duplicates: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())
    bit_depth: BitDepth = "auto"  # what holds the grey values of 16-bit files that do not tell their depth
    contradictions: tuple["Contradiction", ...] = ()

    def lines(self) -> list[str]:
        """For people: counts first, then what they should know."""
        return [*self.summary(), *self.notes]

    def summary(self) -> list[str]:
        """What round 0 holds."""
        made = self.pools
        first = f"{len(made.catalog)} images from {self.source}, {len(made.classes)} classes"
        counts = f"labelled {len(made.labeled)}, unlabelled {len(made.unlabeled)}, holdout {len(made.holdout)}"
        asked = [f"{self.requested} labels asked for: `vabal labels export DIR`"] if self.requested else []
        return [f"{first}: {counts}", *asked]

    def to_json(self) -> dict[str, Any]:
        made = self.pools
        return {
            "source": self.source,
            "classes": list(made.classes),
            "images": len(made.catalog),
            "labeled": len(made.labeled),
            "unlabeled": len(made.unlabeled),
            "holdout": len(made.holdout),
            "requested": self.requested,
            "duplicates": list(self.duplicates),
            "unreadable": [list(item) for item in self.unreadable],
            "notes": list(self.notes),
            "contradictions": [asdict(item) for item in self.contradictions],
        }


def build_pools(
    source: Source,
    *,
    imbalance: str | None,
    initial: int,
    holdout: float,
    seed: int,
    settings: Params,
    folder: Path,
    quarantine: Path | None = None,
    tell: Callable[[str], None] | None = None,
) -> InitReport:
    """Write the tables and shards of round 0 into the new folder `folder`, whole or not at all.

    The same source, seed and package versions give the same bytes: nothing in them tells the time. From a source with
    labels, `initial` random samples of the pool are labelled; from one without, they and the holdout are asked for.
    Unreadable files are copied to `quarantine`; of files that show the same picture the first counts, without its label
    where another contradicts it. Near copies never straddle pool and holdout. What was left out is listed in
    `quarantine/left_out.csv`. What was understood of the source is told, line by line, before anything is written.
    Raises UserError if the settings ask for what the source cannot give.
    """
    wishes = Wishes(imbalance, initial, holdout, seed)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: round 0 is made once")
    class_names(source)
    found = survey(source, settings.images, near_distance=settings.pool.near_copies)
    classes = class_names(source, found.items)
    plan = plan_draws(source, found.items, classes, wishes)
    if tell is not None:
        for line in (*understood(source, found, classes), *plan.notes):
            tell(line)
    if quarantine is not None:
        found.set_aside(quarantine)
        images.note_left_out(quarantine, [*found.left_out, *plan.left_out], datetime.now(UTC))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        catalog = _write_images(source, found.items, plan, settings, temporary)
        made = _tables(catalog, found.items, plan, classes, source.name)
        pools.save(made, temporary)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return InitReport(
        source=source.name,
        pools=made,
        oracle=plan.oracle,
        requested=len(pools.open_requests(made)),
        duplicates=tuple(name for name, _ in found.left_out),
        unreadable=found.unreadable,
        notes=(*found.notes(), *plan.notes),
        bit_depth=found.bit_depth,
        contradictions=found.contradictions,
    )


def write_oracle(path: Path, oracle: pd.DataFrame) -> None:
    """Write the labels that stay outside the pools as CSV: sample_id, label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, oracle[["sample_id", "label"]].to_csv(index=False, lineterminator="\n").encode())


@dataclass(frozen=True)
class Wishes:
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
            said = (
                f"{len(self.left_out)} left out, same picture as another: {_first([name for name, _ in self.left_out])}"
            )
            notes.append(said + self._contradicting())
        if self.near:
            pairs = [f"{one} and {other}" for one, other in self.near]
            notes.append(f"{len(pairs)} pairs of near copies, kept on one side of the holdout: {_first(pairs)}")
        label = self.items.set_index("sample_id")["label"].dropna().to_dict()
        apart = [
            f"{one} is {label[one]}, {other} is {label[other]}"
            for one, other in self.near
            if label.get(one, None) != label.get(other, None) and one in label and other in label
        ]
        if apart:
            notes.append(f"{len(apart)} pairs of near copies carry different labels: {_first(apart)}")
        if self.unreadable:
            listed = [f"{path} ({reason})" for path, reason in self.unreadable]
            notes.append(f"{len(listed)} unreadable, listed in quarantine/quarantine.csv: {_first(listed)}")
            notes += grouped(self.unreadable) if len({reason for _, reason in self.unreadable}) > 1 else []
        if self.several:
            notes.append(f"{len(self.several)} files hold several pictures, the first counts: {_first(self.several)}")
        if self.bit_depth != "auto":
            notes.append(
                f"16-bit files do not tell their depth, the largest value takes {self.bit_depth} bits: they "
                f"are scaled by images.bit_depth = {self.bit_depth}"
            )
        return notes

    def _contradicting(self) -> str:
        if not self.contradictions:
            return ""
        listed = _first([str(item) for item in self.contradictions])
        return f"; {len(self.contradictions)} of them under another label, so that no label counts: {listed}"


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


@dataclass(frozen=True)
class Sifted:
    """An image that a sieve let through."""

    item: Item
    sha256: str
    width: int
    height: int
    fingerprint: bytes  # for near copies


@dataclass
class Sieve:
    """Lets through images that can be read and that no other one shows; remembers the others.

    `ids`, `contents` (sha256) and `pixels` (digest, to the id of what shows it) are those known before; they grow.
    `duplicates` holds (item, id of what shows the same), `unreadable` (path, reason, bytes or None). `refuse` may leave
    one out by its fingerprint.
    """

    settings: ImageSettings
    ids: set[str] = field(default_factory=set)
    contents: set[str] = field(default_factory=set)
    pixels: dict[str, str] = field(default_factory=dict)
    refuse: Callable[[Item, bytes], bool] | None = None
    duplicates: list[tuple[Item, str]] = field(default_factory=list)
    unreadable: list[tuple[str, str, bytes | None]] = field(default_factory=list)
    several: list[str] = field(default_factory=list)
    guessed_bits: int = 0

    def sift(self, source: Source) -> Iterator[Sifted]:
        """Yield what is new; an id that is taken gets the first digits of the content behind it."""
        for item in track(source.items(self.settings), "read images", None):
            try:
                picture = images.read(item.data, self.settings)
            except images.Unreadable as reason:
                self.unreadable.append((name_of(item), str(reason), None if item.linked else item.data))
                continue
            sha256, pixels = hashlib.sha256(item.data).hexdigest(), picture.digest()
            if sha256 in self.contents or pixels in self.pixels:
                self.duplicates.append((item, self.pixels.get(pixels, "")))
                continue
            fingerprint = near_copies.fingerprint(picture.image)
            if self.refuse is not None and self.refuse(item, fingerprint):
                continue
            sample_id = next(name for name in self._names(item.sample_id, sha256) if name not in self.ids)
            self.ids.add(sample_id)
            self.contents.add(sha256)
            self.pixels[pixels] = sample_id
            self.guessed_bits = max(self.guessed_bits, picture.guessed_bits or 0)
            if picture.first_of_several:
                self.several.append(name_of(item))
            yield Sifted(replace(item, sample_id=sample_id), sha256, *picture.image.size, fingerprint)
        self.unreadable += [(path, reason, None) for path, reason in source.unreadable]

    @staticmethod
    def _names(sample_id: str, sha256: str) -> tuple[str, str, str]:
        return sample_id, f"{sample_id}-{sha256[:8]}", f"{sample_id}-{sha256}"

    def quarantine(self, folder: Path, when: datetime) -> None:
        """Put what could not be read aside."""
        for path, reason, data in self.unreadable:
            images.quarantine(folder, path, data, reason, when)


def name_of(item: Item) -> str:
    """What people know an image by."""
    return item.origin or item.sample_id


def survey(source: Source, settings: ImageSettings, *, near_distance: int = 0) -> Survey:
    """What is in a source: readable, distinct images. Raises UserError if there are none.

    Near copies within `near_distance` (0: none are looked for) share a group.
    """
    sieve = Sieve(settings)
    rows, prints = [], []
    for new in sieve.sift(source):
        item = new.item
        rows.append((item.sample_id, item.label, item.group, item.split, new.sha256, new.width, new.height))
        prints.append(new.fingerprint if near_distance else b"")
    if not rows:
        reasons = grouped([(path, reason) for path, reason, _ in sieve.unreadable])
        raise UserError("; ".join([f"source {source.name}: no readable image in it", *reasons]))
    items = pd.DataFrame(rows, columns=["sample_id", "label", "group", "split", "sha256", "width", "height"])
    contradictions = _settle_labels(items, sieve.duplicates)
    near = near_copies.pairs(prints, near_distance)
    items["group"] = near_copies.grouped(items, near)
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
    place = f" {source.place}" if isinstance(source, Files) else ""
    head = f"source {source.name}{place}: {len(items)} images, {len(classes)} classes"
    notes = list(source.notes) if isinstance(source, Files) else []
    if isinstance(source, Folder):
        head += f"; {source.layout}: {LAYOUTS[source.layout]}"
        gone = [name for name in source.classes or () if name not in classes]
        if gone:
            notes.append(f"no readable image of its own in {some(gone)}: no class (named with --classes, it is one)")
    return [head, *_counts(items, classes), *notes, *found.notes()]


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
    if items is not None and isinstance(source, Folder) and not source.given:
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


def plan_draws(source: Source, items: pd.DataFrame, classes: tuple[str, ...], wishes: Wishes) -> Draws:
    """The holdout first, then the pool is thinned, then the initial samples are drawn; all by hashes of the ids."""
    known = items["label"].notna()
    labelled = bool(known.any())
    notes: list[str] = []
    if wishes.imbalance and not labelled:
        raise UserError("--imbalance needs labels, and this source has none")
    if items["split"].notna().any():
        held = items.loc[items["split"] == "holdout", "sample_id"].tolist()
        notes.append(f"{source.name} brings its own holdout of {len(held)} images: --holdout is not used")
    elif not wishes.holdout:
        held = []
    else:
        drawable = items[known] if labelled else items
        held = draw_holdout(drawable, wishes.holdout, wishes.seed)
        _refuse_tied(drawable, held, wishes.holdout)
    if not held:
        why = "too few images of each class for a holdout" if wishes.holdout else "no holdout"
        notes.append(f"{why}: no round measures anything, and no model is compared with another")
    pool, stray = _without_copies(items, set(held))
    if len(stray):
        names = stray["sample_id"].tolist()
        notes.append(f"{len(names)} left out, near copies or of the group of an image in the holdout: {_first(names)}")
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
        notes += _class_notes(classes, items[items["sample_id"].isin(set(held))], pool[begun])
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


def _without_copies(items: pd.DataFrame, held: set[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the pool; and those that belong to neither side, for their group is in the holdout without them.

    That is so where a source brings its own holdout, and for images without a label.
    """
    inside = items["sample_id"].isin(held)
    groups = items.loc[inside, "group"].dropna()
    stray = ~inside & items["group"].isin(groups) & items["group"].notna()
    return items[~inside & ~stray], items[stray]


def _class_notes(classes: tuple[str, ...], held: pd.DataFrame, begun: pd.DataFrame) -> list[str]:
    notes = []
    for where, rows in (("holdout", held), ("initial labelled pool", begun)):
        if held is rows and rows.empty:
            continue
        missing = [name for name in classes if name not in set(rows["label"])]
        if missing:
            notes.append(f"no sample of class {_first(missing)} in the {where}")
    images = held["label"].value_counts()
    few = [f"{name} ({images[name]})" for name in classes if 0 < images.get(name, 0) < FEWEST_IMAGES]
    if few:
        notes.append(
            f"promotion does not judge classes with fewer than {FEWEST_IMAGES} images in the holdout: {_first(few)}"
        )
    if len(held) and (images >= FEWEST_IMAGES).sum() < 2:
        notes.append(
            f"promotion will wait, for two classes with {FEWEST_IMAGES} images each in the holdout are needed: "
            "take more images or a larger --holdout"
        )
    return notes


def _write_images(source: Source, items: pd.DataFrame, plan: Draws, settings: Params, folder: Path) -> pd.DataFrame:
    """Write the shards of what the plan keeps; returns the catalog."""
    facts = items.set_index("sample_id")
    kept = [*plan.holdout, *plan.initial, *plan.rest]
    wanted = dict(zip(facts.loc[kept, "sha256"], kept, strict=True))
    stream = _second_pass(source, settings.images, wanted)
    placed = images.write_shards(stream, folder / "images", settings=settings.pool, name_prefix="pool")
    if len(placed) != len(kept):
        raise UserError(f"source {source.name}: {len(kept) - len(placed)} images changed while they were read")
    catalog = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
    about = facts.loc[catalog["sample_id"], ["sha256", "width", "height"]].reset_index(drop=True)
    return pd.concat([catalog, about], axis=1).assign(added_round=0)


def _second_pass(source: Source, settings: ImageSettings, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """(sample_id, bytes) of the images that the plan keeps, told apart by their content."""
    left = dict(wanted)
    for item in track(source.items(settings), "write shards", None):
        sample_id = left.pop(hashlib.sha256(item.data).hexdigest(), None)
        if sample_id is not None:
            yield sample_id, item.data


def _tables(catalog: pd.DataFrame, items: pd.DataFrame, plan: Draws, classes: tuple[str, ...], source: str) -> Pools:
    """Labels that came with the source are events as well, so that a later correction keeps what stood before."""
    label = items.set_index("sample_id")["label"]
    labeled = pd.DataFrame({"sample_id": plan.initial if plan.labelled else []}, dtype=object)
    holdout = pd.DataFrame({"sample_id": plan.holdout}, dtype=object)
    for table in (labeled, holdout):
        table["label"] = label.reindex(table["sample_id"]).to_numpy(dtype=object)
    waiting: list[tuple[str, str, int | None]] = [(sample_id, pools.AVAILABLE, None) for sample_id in plan.rest]
    if not plan.labelled:
        waiting += [(sample_id, pools.REQUESTED, 0) for sample_id in plan.initial]
    told = pd.concat([labeled, holdout[holdout["label"].notna()]], ignore_index=True)
    tables = {
        "catalog": catalog,
        "labeled": _from_source(labeled),
        "unlabeled": pd.DataFrame(waiting, columns=["sample_id", "status", "requested_round"]),
        "holdout": holdout,
        "label_events": _from_source(told).assign(source=source),
    }
    typed = {name: pools.typed(table, pools.SCHEMAS[name]) for name, table in tables.items()}
    typed["unlabeled"] = pools.by_id(typed["unlabeled"])
    return Pools(**typed, classes=classes)


def _from_source(labels: pd.DataFrame) -> pd.DataFrame:
    return labels.assign(annotator=pools.FROM_SOURCE, round=0, labeled_at=None)
