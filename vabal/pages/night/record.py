"""What the record has of one round, as the round's page needs it: read from `data/` and `promotions.jsonl` alone.

A table that is missing, or that an earlier version wrote with fewer columns, leaves out what it would have told:
`lacking` says so in words.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vabal import pools, rounds
from vabal.errors import BRING_BACK, UserError
from vabal.pools.reading import readable
from vabal.promotion.record import Entry, read_record
from vabal.rounds import tables
from vabal.rounds.manifests import Manifest

_POSTERIORS: Final = ("posteriors", "mean_posteriors")  # recorded as they are; else they follow from the logits


@dataclass(frozen=True)
class Pools:
    """The pools as the round left them, as far as the page tells of them; `standing` is the last word on each sample
    that has one (indexed by sample, null: rejected), the holdout's left out."""

    catalog: pd.DataFrame
    events: pd.DataFrame  # up to this round, in the order of their arrival
    held: "pd.Series[str]"  # the holdout's samples
    standing: "pd.DataFrame"

    @property
    def labeled(self) -> "pd.Series[str]":
        """The label of each sample of the labelled pool, the newest round's first."""
        known = self.standing[self.standing["label"].notna()]
        return known.sort_values("round", ascending=False, kind="stable")["label"]


@dataclass(frozen=True)
class Night:
    """One round of the record."""

    data: Path
    manifest: Manifest
    classes: tuple[str, ...]
    pools: Pools
    picks: pd.DataFrame  # in rank order: the selection's columns, and what candidates.parquet has of them
    posterior_N_C: NDArray[np.float64] | None  # of the picks
    predicted: dict[str, int]  # candidates by predicted class; empty where that is not recorded
    promotions: tuple[Entry, ...]
    lacking: tuple[str, ...] = field(default=())
    reclassed: tuple[str, ...] = field(default=())  # what changed the classes in this round, in words

    @property
    def number(self) -> int:
        return self.manifest.round


def read(data: Path, number: int) -> Night:
    """Raises UserError if there is no such round, it is round 0, or what every version records is damaged."""
    numbers = rounds.manifest_numbers(data)
    if number not in numbers:
        known = f"there are rounds {numbers[0]} to {numbers[-1]}" if numbers else "there is none yet"
        raise UserError(f"no round {number}: {known} (`vabal audit` lists them)")
    if number == 0:
        raise UserError("round 0 has no page: nothing was learned or picked in it (`vabal round` makes the first)")
    manifest = rounds.read_manifest(data, number)
    folder, lacking = rounds.round_folder(data, number), list[str]()
    then = pools.read_classes(data, number)
    classes = then.names
    picks = tables.read_selection(folder / tables.SELECTION_FILE).sort_values("rank", ignore_index=True)
    picks = picks.drop_duplicates("sample_id", ignore_index=True)
    more, predicted = _candidates(folder / tables.CANDIDATES_FILE, lacking)
    if (folder / tables.CONTROL_FILE).is_file():
        arm, beside = _candidates(folder / tables.CONTROL_FILE, lacking)
        more = pd.concat([part for part in (more, arm) if part is not None], ignore_index=True)
        predicted = {name: predicted.get(name, 0) + beside.get(name, 0) for name in {**predicted, **beside}}
    if more is not None:
        fresh = [name for name in more.columns if name not in picks.columns]
        picks = picks.merge(more[["sample_id", *fresh]], on="sample_id", how="left")
    posterior_N_C = _posterior(picks, len(classes))
    if posterior_N_C is None and len(picks):
        lacking.append("The record of this round has no posteriors of the picks.")
    promotions = read_record(data.parent)
    events = pools.read_one(data, "class_events")
    changed = tuple(pools.in_words(*change) for change in pools.changes_of(events[events["round"] == number]))
    pools_then = _pools(data, number, then)
    return Night(
        data, manifest, classes, pools_then, picks, posterior_N_C, predicted, promotions, tuple(lacking), changed
    )


def predictions(data: Path, number: int, under: int | None = None) -> pd.DataFrame | None:
    """What a round's classifier said of the holdout: sample_id, label, predicted_class; None where no file tells.

    `under`: the later round whose names the classes have.
    """
    path = rounds.round_folder(data, number) / tables.PREDICTIONS_FILE
    if not path.is_file():
        return None
    table = tables.read_predictions(path)
    wanted = ["sample_id", "label", "predicted_class"]
    if not set(wanted) <= set(table.columns):
        return None
    table = table[wanted].dropna().astype(object)
    meaning = {} if under is None else pools.read_classes(data, under).meaning
    changed = {old: new for old, new in meaning.items() if new != old}
    if not changed:
        return table
    return table.assign(**{name: table[name].map(lambda old: changed.get(old, old)) for name in wanted[1:]})


def _pools(data: Path, number: int, classes: pools.Classes) -> Pools:
    catalog = pools.read_one(data, "catalog")
    events = pools.read_one(data, "label_events")
    events = pools.named(events[events["round"] <= number].reset_index(drop=True), classes)
    held = pools.read_one(data, "holdout")["sample_id"]
    standing = pools.standing(events)
    standing = standing[~pools.among(standing["sample_id"], held)].set_index("sample_id")
    return Pools(catalog[catalog["added_round"] <= number].set_index("sample_id", drop=False), events, held, standing)


def _candidates(path: Path, lacking: list[str]) -> tuple[pd.DataFrame | None, dict[str, int]]:
    """The candidates that were picked, with every column; and how many candidates each class was predicted for."""
    if not path.is_file():
        lacking.append("The record of this round has no candidates.parquet: picks are told by their scores alone.")
        return None, {}
    with readable(path, BRING_BACK):
        file = pq.ParquetFile(path)
        if "rank" not in file.schema_arrow.names:
            lacking.append("The record of this round, of an earlier version, does not tell picks among candidates.")
            return None, {}
        parts, predicted = [], list[pa.Array]()
        for group in range(file.num_row_groups):
            few = file.read_row_group(group, columns=["rank", "predicted_class"])
            predicted.append(few.column("predicted_class").combine_chunks().cast(pa.string()))
            picked = pc.is_valid(few.column("rank"))
            if pc.any(picked).as_py():
                parts.append(file.read_row_group(group).filter(picked))
        counts = pc.value_counts(pa.chunked_array(predicted, pa.string()))
    found = {entry["values"]: entry["counts"] for entry in counts.to_pylist() if entry["values"] is not None}
    return pa.concat_tables(parts).to_pandas() if parts else None, found


def _posterior(picks: pd.DataFrame, classes: int) -> NDArray[np.float64] | None:
    """Of the picks and, behind them, of the control arm, of which a round may have recorded other columns."""
    drawn_N = picks["probability"].notna()
    told = [_recorded(part, classes) for part in (picks[~drawn_N], picks[drawn_N]) if len(part)]
    known = [part for part in told if part is not None]
    return np.concatenate(known) if known and len(known) == len(told) else None


def _recorded(picks: pd.DataFrame, classes: int) -> NDArray[np.float64] | None:
    for name in _POSTERIORS:
        rows_N_C = _rows(picks, name, classes)
        if rows_N_C is not None:
            return rows_N_C
    logits_N_C = _rows(picks, "logits", classes)
    if logits_N_C is None:
        return None
    shifted_N_C = np.exp(logits_N_C - logits_N_C.max(axis=1, keepdims=True))
    return np.asarray(shifted_N_C / shifted_N_C.sum(axis=1, keepdims=True), dtype=np.float64)


def _rows(picks: pd.DataFrame, name: str, classes: int) -> NDArray[np.float64] | None:
    """The column's lists as rows; None unless every pick has one, of a number for each class at most."""
    if name not in picks or not len(picks) or picks[name].isna().any():
        return None
    lists: Sequence[Any] = list(picks[name])
    if len({len(item) for item in lists}) != 1 or not 0 < len(lists[0]) <= classes:
        return None
    return np.asarray([np.asarray(item, dtype=np.float64) for item in lists])
