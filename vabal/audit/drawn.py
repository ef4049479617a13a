"""Is a round's control arm the draw that its settings, its seed and the pool of then give?"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from vabal import pools, strategies
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.audit.recorded import Derived, shard_of
from vabal.pools import Pools
from vabal.rounds import derive_seed, tables
from vabal.settings.params import recorded
from vabal.strategies import Candidates, control, with_prediction


def draw_of(record: Record, taken_in: Pools) -> list[str]:
    """The arm in its order. Raises what reading settings and strategy raises."""
    chosen, there = recorded(record.settings), int((taken_in.unlabeled["status"] == pools.AVAILABLE).sum())
    selection, strategy = chosen.selection, strategies.get(record.strategy)
    count = control.size(strategy, selection.control_share, selection.budget, there)
    if not count:
        return []
    available = _available(taken_in)
    return control.draw([available.to_numpy(dtype=object)], count, derive_seed(chosen.seed, record.round, "control"))


def check_control(data: Path, record: Record, taken_in: Pools, selection: pd.DataFrame) -> Iterator[Finding]:
    """The arm of the selection is that draw, with its probability, and its table says what the classifier said."""
    try:
        expected = draw_of(record, taken_in)
    except UNREADABLE:  # `check_round` names it
        return
    arm = selection[selection["probability"].notna()]
    file = f"{record.folder}/{tables.SELECTION_FILE}"
    if list(arm["sample_id"]) != expected:
        changed = sorted(set(arm["sample_id"]).symmetric_difference(expected))
        which = f"differs in {few(pd.Series(changed))}" if changed else "stands in another order"
        yield Finding(record.round, file, f"its control arm is not the draw that follows from the seed: it {which}")
    elif expected:
        probability = len(expected) / len(_available(taken_in))
        if not np.allclose(arm["probability"], probability, rtol=1e-12, atol=0):
            yield Finding(
                record.round, file, f"its control arm was drawn with another probability than {probability:.6g}"
            )
        if list(arm["rank"]) != list(range(len(selection) - len(arm) + 1, len(selection) + 1)):
            yield Finding(record.round, file, "its control arm does not stand behind the picks")
    if bool(expected) != (tables.CONTROL_FILE in record.files):
        said = "names no" if expected else "names a"
        yield Finding(record.round, record.file, f"{said} {tables.CONTROL_FILE}")
    path = data / record.folder / tables.CONTROL_FILE
    if tables.CONTROL_FILE in record.files and path.is_file():  # else `check_files` names it
        yield from _check_table(path, record, taken_in, arm)


def _check_table(path: Path, record: Record, taken_in: Pools, arm: pd.DataFrame) -> Iterator[Finding]:
    file = f"{record.folder}/{tables.CONTROL_FILE}"
    try:
        table = pq.ParquetFile(path).read()
        if table.schema.names != tables.CANDIDATES.names:
            raise ValueError("its columns are not those of a candidates' table")
        table.validate(full=True)
        told = Candidates.from_table(table, taken_in.classes)
        again = with_prediction(shard_of(told), np.zeros(len(told)))
        frame = table.to_pandas()[["rank", *tables.SCORED]].astype(object)
    except UNREADABLE as error:
        yield Finding(record.round, file, one_line(error))
        return
    given = arm[["rank", *tables.SCORED]].astype(object).reset_index(drop=True)
    same = len(frame) == len(given) and bool(((frame == given) | (frame.isna() & given.isna())).all(axis=None))
    if not same:
        yield Finding(record.round, file, "differs from what selection.parquet says of the control arm")
    derived = Derived()
    derived.compare(told, again)
    if set(derived.odd) & {"predicted_class", "margin"}:
        yield Finding(record.round, file, "predicted class and margin do not follow from the logits")


def _available(taken_in: Pools) -> "pd.Series[str]":
    unlabeled = taken_in.unlabeled
    return unlabeled.loc[unlabeled["status"] == pools.AVAILABLE, "sample_id"]
