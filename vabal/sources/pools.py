"""Round 0: images from a source become pools. The holdout is drawn first, then the pool is thinned, then labelled.

Every draw ranks samples by a hash of seed, purpose and sample id: neither the order of the source nor the presence of
other samples changes who comes first.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from vabal import images, pools
from vabal.errors import UserError
from vabal.files import sha256, sync_folder, write_bytes
from vabal.images import near_copies
from vabal.objects import Reference
from vabal.pools import Pools
from vabal.progress import track
from vabal.settings.base import BitDepth
from vabal.settings.models import ImageSettings, Params
from vabal.sources.base import Source
from vabal.sources.draws import Draws, plan_draws
from vabal.sources.surveys import Contradiction, DrawSettings, Survey, class_names, survey, understood

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
    fingerprints: Path | None = None,
) -> InitReport:
    """Write the tables and shards of round 0 into the new folder `folder`, whole or not at all.

    The same source, seed and package versions give the same bytes: nothing in them tells the time. From a source with
    labels, `initial` random samples of the pool are labelled; from one without, they and the holdout are asked for.
    Unreadable files are copied to `quarantine`; of files that show the same picture the first counts, without its label
    where another contradicts it. Near copies never straddle pool and holdout. What was left out is listed in
    `quarantine/left_out.csv`. What images that stay where they are look like is kept in `fingerprints`, so that nobody
    has to read them again for it. What was understood of the source is told, line by line, before anything is written.
    Raises UserError if the settings ask for what the source cannot give.
    """
    wishes = DrawSettings(imbalance, initial, holdout, seed)
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
        catalog = _write_images(source, found, plan, settings, temporary)
        made = _tables(catalog, found.items, plan, classes, source.name)
        pools.save(made, temporary)
        if fingerprints is not None:
            _remember(catalog, found, temporary, fingerprints, settings.images)
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


def _write_images(source: Source, found: Survey, plan: Draws, settings: Params, folder: Path) -> pd.DataFrame:
    """Write the shards of what the plan keeps; returns the catalog."""
    facts = found.items.set_index("sample_id")
    kept = [*plan.holdout, *plan.initial, *plan.rest]
    wanted = dict(zip(facts.loc[kept, "sha256"], kept, strict=True))
    stream: Iterator[tuple[str, bytes | Reference]] = _second_pass(source, settings.images, wanted)
    if found.references:  # they were read once, and that was enough
        stay = set(kept)
        stream = ((name, image) for name, (image, _, _) in found.references.items() if name in stay)
    placed = images.write_shards(stream, folder / "images", settings=settings.pool, name_prefix="pool")
    if len(placed) != len(kept):
        raise UserError(f"source {source.name}: {len(kept) - len(placed)} images changed while they were read")
    catalog = pd.DataFrame(placed, columns=["shard", "row", "sample_id"])
    about = facts.loc[catalog["sample_id"], ["sha256", "width", "height", "group"]].reset_index(drop=True)
    return pd.concat([catalog, about], axis=1).assign(added_round=0)


def _remember(catalog: pd.DataFrame, found: Survey, folder: Path, fingerprints: Path, settings: ImageSettings) -> None:
    for shard, rows in catalog.groupby("shard", sort=False) if found.references else ():
        known = [(name, *found.references[name][1:]) for name in rows["sample_id"]]
        near_copies.remember(folder, str(shard), known, fingerprints, settings)


def _second_pass(
    source: Source, settings: ImageSettings, wanted: dict[str, str]
) -> Iterator[tuple[str, bytes | Reference]]:
    """(sample_id, bytes) of the images that the plan keeps, told apart by their content."""
    left = dict(wanted)
    for item in track(source.items(settings), "write shards", None):
        sample_id = left.pop(sha256(item.data), None)
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
