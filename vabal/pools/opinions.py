"""Which of the labels that came for a sample stands."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.pools.columns import column
from vabal.pools.tables import TIME

# --- changes ----------------------------------------------------------------------------------------------------------


def standing(events: pd.DataFrame, by: Sequence[str] = ("sample_id",)) -> pd.DataFrame:
    """Of all events (in the order of their arrival) those that count now, one a sample: the newest opinion on it.

    `by` with `annotator`: the newest of each person.

    An opinion is as old as its `labeled_at` says: where that came with the import, as the import, and never older than
    an import before it; where the file gave it (`imported_at` is set), as old as the file says, but not younger than
    its import. Of opinions of the same age the one that came last counts.
    """
    if "imported_at" not in events.columns or events["imported_at"].isna().all():
        return events.drop_duplicates(list(by), keep="last")
    ordered = events.iloc[np.argsort(opinion_times(events), kind="stable")]
    return ordered.drop_duplicates(list(by), keep="last").sort_index()


def counting(events: pd.DataFrame) -> pd.DataFrame:
    """The events, in the order of their rounds, that stood when they came: as old as the newest on their sample."""
    ordered = events.sort_values("round", kind="stable")
    time = pd.Series(opinion_times(ordered), index=ordered.index)
    stood: pd.DataFrame = ordered[time == time.groupby(ordered["sample_id"].to_numpy(dtype=object)).cummax()]
    return stood


def opinion_times(events: pd.DataFrame) -> np.ndarray:
    """How young each event's opinion is, to be compared within a sample: microseconds, as `standing` says."""
    said, imported = (_micros(events[name]) for name in ("labeled_at", "imported_at"))
    told = events["imported_at"].notna().to_numpy(dtype=bool)
    arrived = pd.Series(np.where(told, imported, said)).groupby(events["sample_id"].to_numpy(dtype=object)).cummax()
    arrived_N = arrived.to_numpy(dtype=np.int64)
    return np.where(told, np.minimum(said, arrived_N), arrived_N)


def _micros(times: pd.Series) -> np.ndarray:
    """Microseconds since 1970, the smallest number for a null: what came with the source is older than all."""
    array = column(times, TIME).combine_chunks().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    filled: np.ndarray = pc.fill_null(array, np.iinfo(np.int64).min).to_numpy(zero_copy_only=False)
    return filled
