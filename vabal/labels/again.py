"""Which images people are asked about once more: those that they contradict each other about, and those whose label a
classifier that has not learned from it does not believe.

Axes: L labelled images, C classes.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.labels.consensus import CONSENSUS
from vabal.labels.suspicion import suspicion
from vabal.pools import DISPUTED, FROM_SOURCE, SUSPECTED, Classes, Pools, among, named, open_again, standing

MOST_TIMES: Final = 2  # that one image is asked about again


class HeldOut(NamedTuple):
    """posterior_L_C of labelled images, by classifiers that have not learned from them; others may stand behind."""

    sample_ids: Sequence[str]
    posterior_L_C: NDArray[np.float32]


def size(share: float, budget: int, beside: int) -> int:
    """How many images may be asked about again: that share of the budget, rounded, at least one; none where it is 0.

    One place is always left to the strategy; `beside` of the others are taken already.
    """
    return min(max(1, round(share * budget)), budget - 1 - beside) if share > 0 else 0


def choose(pools: Pools, held_out: HeldOut | None, most: int) -> pd.DataFrame:
    """The images to ask about, `most` of them at most, in their order: sample_id and reason.

    Disputed ones first, those whose commonest opinion has the least share of all in front: images on which no opinion
    has more people behind it than any other. Then labels that confident learning holds for wrong, the least probable
    first. No image of the holdout; none that waits for an opinion already; none whose label was asked about before and
    stood that; and none for the `MOST_TIMES` and first time.
    """
    if most < 1 and held_out is None:
        return pd.DataFrame({"sample_id": [], "reason": []}, dtype="str")
    asked = named(pools.asked_again, Classes.of(pools))
    events = named(pools.label_events, Classes.of(pools))
    stands = standing(events).set_index("sample_id")["label"]
    disputed = _disputed(events)
    suspected = [] if held_out is None else _suspected(pools, held_out)
    reasons = {**dict.fromkeys(suspected, SUSPECTED), **dict.fromkeys(disputed, DISPUTED)}
    ids = pd.Series(list(dict.fromkeys([*disputed, *suspected])), dtype="str")
    newest = asked.drop_duplicates("sample_id", keep="last").set_index("sample_id")["label"]
    before, now = (labels.reindex(ids).fillna("").to_numpy(dtype=object) for labels in (newest, stands))
    times = asked["sample_id"].value_counts().reindex(ids).fillna(0).to_numpy()
    free = ~among(ids, pools.holdout["sample_id"]) & ~among(ids, open_again(pools)["sample_id"])
    wanted = ids[free & (times < MOST_TIMES) & ((times == 0) | (before != now))].head(max(most, 0))
    return pd.DataFrame({"sample_id": wanted, "reason": wanted.map(reasons)}).reset_index(drop=True)


def _disputed(events: pd.DataFrame) -> list[str]:
    people = standing(events[~events["annotator"].isin([FROM_SOURCE, CONSENSUS])], by=["sample_id", "annotator"])
    votes = people.groupby(["sample_id", "label"], dropna=False).size().groupby("sample_id")
    table = pd.DataFrame({"most": votes.max(), "all": votes.sum(), "tied": votes.agg(_tied)})
    table = table[table["tied"].astype(bool)]
    share = table["most"] / table["all"]
    return [str(sample_id) for sample_id in table.assign(share=share).sort_values(["share", "sample_id"]).index]


def _tied(votes: "pd.Series[int]") -> bool:
    return int((votes == votes.max()).sum()) > 1


def _suspected(pools: Pools, held_out: HeldOut) -> list[str]:
    """Raises ValueError where the labelled pool lacks a posterior, or one is of an image that waits for no label."""
    label_of = dict(zip(pools.labeled["sample_id"], pools.labeled["label"], strict=True))
    ids = [str(name) for name in held_out.sample_ids]
    if not set(label_of) <= set(ids) <= set(label_of) | set(pools.unlabeled["sample_id"]) or len(set(ids)) < len(ids):
        raise ValueError("not the posteriors of the labelled pool")
    number = {name: index for index, name in enumerate(pools.classes)}
    rows_L = np.array([row for row, name in enumerate(ids) if name in label_of], dtype=np.int64)
    labels_L = np.array([number[label_of[ids[row]]] for row in rows_L], dtype=np.int64)
    order_L, wrong = suspicion(labels_L, held_out.posterior_L_C[rows_L])
    return [ids[rows_L[place]] for place in order_L[:wrong]]
