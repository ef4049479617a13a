"""What several people's opinions on an image come to, where that is not simply the newest of them.

A consensus is an opinion too: it enters the history as a label event of its own, behind the opinions that it settles,
so that which event stands is decided as ever (`pools.standing`).
"""

from typing import Final

import pandas as pd

from vabal.pools import EVENTS, FROM_SOURCE, among, stack, standing, typed

CONSENSUS: Final = "consensus"  # the annotator of labels that were settled


def settle(history: pd.DataFrame, incoming: pd.DataFrame, rule: str) -> pd.DataFrame:
    """The events (columns of `EVENTS`) that settle the images of the events `incoming`, which follow on `history`.

    `latest`: none. `majority`: where two people or more have an opinion, the last of each counts once; what more of
    them say than anything else is set, if another label stands. A rejection is an opinion; labels of the source are
    nobody's. Of a tie the newest opinion stands.
    """
    if rule != "majority" or incoming.empty:
        return stack([], EVENTS)
    past = history[among(history["sample_id"], incoming["sample_id"])]
    both = stack([past, incoming], EVENTS)
    people = standing(both[~both["annotator"].isin([FROM_SOURCE, CONSENSUS])], by=["sample_id", "annotator"])
    votes = people.groupby(["sample_id", "label"], sort=False, dropna=False).size().rename("votes").reset_index()
    most = votes["votes"] == votes.groupby("sample_id")["votes"].transform("max")
    winners = votes[most & (votes["votes"] > 1)].drop_duplicates("sample_id", keep=False)
    stands = standing(both)[["sample_id", "label"]].merge(winners[["sample_id", "label"]], on="sample_id", how="right")
    known, won = stands["label_x"].fillna(""), stands["label_y"].fillna("")  # no class has an empty name
    settled = stands.loc[known != won, ["sample_id", "label_y"]].rename(columns={"label_y": "label"})
    when = both["imported_at"].fillna(both["labeled_at"]).groupby(both["sample_id"]).max()
    told = settled.assign(annotator=CONSENSUS, source=f"{CONSENSUS} by {rule}")
    return typed(told.assign(labeled_at=settled["sample_id"].map(when)).sort_values("sample_id"), EVENTS)
