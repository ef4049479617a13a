"""Every round in a line: what it trained on, what it picked, what became of the picks, its model and its tag.

Reads tables as Arrow has them: a year of rounds is told in the time that pandas would take to load.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vabal.audit.ages import stood
from vabal.errors import BRING_BACK
from vabal.pools.reading import read_classes, read_one_arrow, readable
from vabal.promotion.record import read_record
from vabal.rounds import tables
from vabal.rounds.manifests import ModelRecord, manifest_numbers, read_manifest, round_folder, tag_name


def rounds(data: Path, tags: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Every round in order: strategy, pools, picks by class, model, MLflow run, git tag and promotions.

    `labeled_by_class` counts the labelled pool that the round trained on, `picks_by_class` the picks whose label is
    known by now, both by today's classes, `picks_open` those without one, `picks_rejected` those that were rejected.
    Raises UserError if a manifest or a table is missing or damaged.
    """
    classes = read_classes(data)
    events = _label_events(data, classes.meaning)
    latest = {event.sample_id: event.label for event in events if event.stands}
    numbers = manifest_numbers(data)
    labeled = _labeled_by_class(events, classes.names, numbers)
    promotions = read_record(data.parent)
    records = []
    for number in numbers:
        manifest = read_manifest(data, number)
        model = manifest.model or ModelRecord()
        tag = tag_name(number)
        records.append(
            {
                "round": number,
                "strategy": manifest.strategy,
                **{name: manifest.counts[name] for name in ("catalog", "labeled", "unlabeled", "holdout", "picks")},
                "labeled_by_class": labeled[number],
                **_labels_of_picks(data, number, latest, classes.names),
                "metrics": manifest.metrics or {},
                "model": model.name,
                "model_version": model.version,
                "mlflow_run": manifest.mlflow_run,
                "prefect_flow_run": manifest.prefect_flow_run,
                "tag": tag if tag in (tags or {}) else None,
                "times": manifest.times.model_dump() if manifest.times else None,
                "promotions": [
                    {"action": entry.action, "when": entry.when, "who": entry.who, "why": entry.why}
                    for entry in promotions
                    if entry.round == number
                ],
            }
        )
    return records


@dataclass(frozen=True, slots=True)
class _Event:
    sample_id: str
    label: str | None  # by today's name of its class; None rejects
    round: int
    stands: bool  # or stood, when it came


def _label_events(data: Path, meaning: Mapping[str, str]) -> list[_Event]:
    """Every label event in the order of arrival, but those of the holdout."""
    table = read_one_arrow(data, "label_events")
    held = read_one_arrow(data, "holdout").column("sample_id").combine_chunks()
    table = table.filter(pc.invert(pc.is_in(table.column("sample_id"), value_set=held)))
    ids, labels, numbers = (table.column(name).to_pylist() for name in ("sample_id", "label", "round"))
    said, imported = (table.column(name).cast(pa.int64()).to_pylist() for name in ("labeled_at", "imported_at"))
    stand = stood(zip(ids, said, imported, strict=True))
    return [
        _Event(sample_id, meaning.get(label, label), number, stands)
        for sample_id, label, number, stands in zip(ids, labels, numbers, stand, strict=True)
    ]


def _labels_of_picks(
    data: Path, number: int, latest: Mapping[str, str | None], classes: Sequence[str]
) -> dict[str, Any]:
    """`latest` is the last word on every sample that has one."""
    picked = _picked_ids(round_folder(data, number) / tables.SELECTION_FILE)
    said = [latest[name] for name in picked if name in latest]
    by_class = Counter(said)
    return {
        "picks_by_class": {name: by_class[name] for name in classes},
        "picks_open": len(picked) - len(said),
        "picks_rejected": by_class[None],
    }


def _picked_ids(path: Path) -> list[str]:
    if not path.exists():
        return []
    with readable(path, BRING_BACK):
        file = pq.ParquetFile(path)
        if "sample_id" in file.schema_arrow.names:
            return list(map(str, file.read(columns=["sample_id"], use_threads=False).column(0).to_pylist()))
    return list(tables.read_selection(path)["sample_id"])  # which says what is wrong with it


def _labeled_by_class(
    events: Sequence[_Event], classes: Sequence[str], numbers: Sequence[int]
) -> dict[int, dict[str, int]]:
    """By round, the labels that stood in it, in one pass: each event that counts takes the place of the one before."""
    code_of, before = {name: code for code, name in enumerate(classes)}, dict[str, int]()
    change_R_C = np.zeros((len(numbers) + 1, len(classes) + 1), dtype=np.int64)  # the last ones are nobody's
    for event in sorted(events, key=lambda event: event.round):
        if event.stands:
            place, code = bisect_left(numbers, event.round), code_of.get(event.label or "", len(classes))
            change_R_C[place, code] += 1
            change_R_C[place, before.get(event.sample_id, len(classes))] -= 1
            before[event.sample_id] = code
    count_R_C = change_R_C.cumsum(axis=0)
    return {number: dict(zip(classes, count_R_C[place].tolist(), strict=False)) for place, number in enumerate(numbers)}
