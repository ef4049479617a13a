"""Does what a round asked about again follow from opinions, labels, settings and the posteriors that it recorded?"""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from vabal import pools
from vabal.audit.drawn import draw_of
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.labels.again import HeldOut, choose, size
from vabal.labels.suspicion import can_be_doubted
from vabal.pools import Pools
from vabal.rounds import tables
from vabal.settings.params import recorded


def check_again(
    data: Path, record: Record, taken_in: Pools, again: pd.DataFrame, *, any_offered: bool
) -> Iterator[Finding]:
    """`again` are the rows that the round added to `asked_again`; `taken_in` are the pools that it chose from. Where no
    candidate was offered, nothing is asked again either."""
    file = f"{record.folder}/{tables.HELD_OUT_FILE}"
    try:
        settings = recorded(record.settings)
        share, budget = settings.labelling.ask_again, settings.selection.budget
        most = size(share, budget, len(draw_of(record, taken_in))) if any_offered else 0
    except UNREADABLE:  # `check_round` names it
        return
    wanted = share > 0 or settings.labelling.consensus == "crowdlab"
    doubted = wanted and can_be_doubted(taken_in.labeled["label"])
    if doubted != (tables.HELD_OUT_FILE in record.files):
        said = "names no" if doubted else "names a"
        yield Finding(record.round, record.file, f"{said} {tables.HELD_OUT_FILE}")
    held_out = None
    if tables.HELD_OUT_FILE in record.files:
        if not (data / file).is_file():  # `check_files` names it
            return
        try:
            held_out = HeldOut(*tables.read_held_out(data / file))
            if held_out.posterior_L_C.shape[1] != len(taken_in.classes):
                raise ValueError("not one probability a class")
        except UNREADABLE as error:
            yield Finding(record.round, file, one_line(error))
            return
    try:
        expected = pools.ask_again(taken_in, choose(taken_in, held_out, most), record.round).asked_again
    except UNREADABLE as error:
        yield Finding(record.round, file, one_line(error))
        return
    odd = _odd(again, expected[expected["round"] == record.round])
    if odd is not None:
        what = f"what round {record.round} asked about again does not follow from opinions and labels: it {odd}"
        yield Finding(record.round, pools.TABLE_FILES["asked_again"], what)


def _odd(found: pd.DataFrame, expected: pd.DataFrame) -> str | None:
    """How the rows differ from those that were to be; None where they do not."""
    rows, others = (table.astype(object).reset_index(drop=True) for table in (found, expected))
    if len(rows) == len(others) and bool(((rows == others) | (rows.isna() & others.isna())).all(axis=None)):
        return None
    ids = sorted(set(rows["sample_id"]).symmetric_difference(others["sample_id"]))
    return f"differs in {few(pd.Series(ids))}" if ids else "stands in another order, or says something else"
