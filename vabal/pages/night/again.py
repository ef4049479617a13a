"""What a round asks about once more, on its page: each image, what stood, and why it is asked again."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from vabal import pools, rounds
from vabal.labels.consensus import CONSENSUS
from vabal.pages.blocks import Block, Pictured, Pictures, Text
from vabal.pages.headline import counted
from vabal.pages.night.record import Night
from vabal.pages.pictures import Picture
from vabal.rounds import tables

MOST_SHOWN: Final = 100
_CAPTION: Final = (
    "Each with the label that stands, and what speaks against it: what each person said last, or how probable the "
    "classifier holds the label."
)


def asked(night: Night) -> pd.DataFrame:
    """The rows of `asked_again` that the round added, in its order."""
    table = pools.read_one(night.data, "asked_again")
    return table[table["round"] == night.number].reset_index(drop=True)


def blocks(night: Night, rows: pd.DataFrame, pictures: Mapping[str, Picture]) -> list[Block]:
    """Nothing where the round asks nothing again."""
    if rows.empty:
        return []
    disputed = int((rows["reason"] == pools.DISPUTED).sum())
    suspected = len(rows) - disputed
    parts = [f"{counted(disputed, 'image')} on which people contradict each other"] if disputed else []
    if suspected:
        parts.append(f"{counted(suspected, 'label')} that a classifier, which had not learned from the image, doubts")
    said = f"This request asks again about {' and '.join(parts)}. What stands goes on to stand until an opinion comes."
    believed = _believed(night) if suspected else {}
    items = [_pictured(night, row, believed, pictures) for row in rows.head(MOST_SHOWN).to_dict("records")]
    left = len(rows) - len(items)
    return [Text([said]), Pictures(items, _CAPTION + (f" {left} others are not shown." if left else ""))]


def _pictured(
    night: Night, row: Mapping[Any, Any], believed: Mapping[str, float], pictures: Mapping[str, Picture]
) -> Pictured:
    sample = str(row["sample_id"])
    stood = row["label"] if isinstance(row["label"], str) else "rejected"
    lines = [sample, f"{stood} stands"]
    if row["reason"] == pools.DISPUTED:
        lines += _opinions(night, sample)
    elif sample in believed:
        lines.append(f"probability {believed[sample]:.3f}")
    return Pictured(pictures.get(sample, Picture("no picture")).saying(", ".join(lines)), lines)


def _opinions(night: Night, sample: str) -> list[str]:
    events = night.pools.events
    own = events[(events["sample_id"] == sample) & ~events["annotator"].isin([pools.FROM_SOURCE, CONSENSUS])]
    last = pools.standing(own.reset_index(drop=True), by=("sample_id", "annotator"))
    told = zip(last["annotator"], last["label"], strict=True)
    return [f"{who}: {'rejected' if pd.isna(what) else what}" for who, what in told]


def _believed(night: Night) -> dict[str, float]:
    """How probable each label of the labelled pool was to classifiers that had not learned from it."""
    try:
        ids, posterior_L_C = tables.read_held_out(rounds.round_folder(night.data, night.number) / tables.HELD_OUT_FILE)
    except (pa.ArrowException, OSError, ValueError):  # the audit names it
        return {}
    label_of, number = night.pools.labeled, {name: index for index, name in enumerate(night.classes)}
    return {
        name: float(posterior_L_C[row, number[str(label_of[name])]])
        for row, name in enumerate(ids)
        if name in label_of.index and number.get(str(label_of[name]), posterior_L_C.shape[1]) < posterior_L_C.shape[1]
    }
