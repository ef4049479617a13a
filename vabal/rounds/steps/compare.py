"""What select-batch records of a night's new images beside the picks: how they lie among earlier ones."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from vabal import pools
from vabal.images.rows import RowReader
from vabal.learning import features
from vabal.rounds import drift, tables
from vabal.rounds.context import RoundContext, StageReference, file_of


def compared_images(context: RoundContext) -> drift.Compared:
    """Catalog rows, as `drift.compared` draws them."""
    added_N = pq.ParquetFile(context.view / pools.TABLE_FILES["catalog"]).read(columns=["added_round"]).column(0)
    if np.count_nonzero(added_N.to_numpy() == context.round.round) < drift.FEWEST:  # most nights: no more is read
        return drift.Compared(pools.no_rows("catalog"), pools.no_rows("catalog"))
    catalog, holdout = (pools.read_one(context.view, name) for name in ("catalog", "holdout"))
    return drift.compared(catalog, holdout["sample_id"], context.round.round, context.params, context.seed("drift"))


def write_compared(context: RoundContext, extracted: Sequence[StageReference], folder: Path) -> None:
    """`drift.parquet`; none where too few came in."""
    found = compared_images(context)
    if not len(found.new):
        return
    rows = pd.concat(found, ignore_index=True)
    parts: dict[int, np.ndarray] = {}
    for ref in extracted:
        here = np.flatnonzero(rows["shard"] == ref["shard"])
        if len(here):
            with RowReader(file_of(context, ref, features.FEATURES)) as read:
                parts.update(zip(here.tolist(), read(rows["row"].to_numpy()[here]), strict=True))
    coordinates_N_Z = drift.components(np.stack([parts[place] for place in range(len(rows))]))
    tables.write_shortlist(np.array(found.sample_ids, dtype=object), coordinates_N_Z, folder / tables.DRIFT_FILE)
