"""What several people's opinions on an image come to, where that is not simply the newest of them.

A consensus is an opinion too: it enters the history as a label event of its own, behind the opinions that it settles,
so that which event stands is decided as ever (`pools.standing`).
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.labels.crowdlab import crowdlab
from vabal.pools import EVENTS, FROM_SOURCE, among, stack, standing, typed

CONSENSUS: Final = "consensus"  # the annotator of labels that were settled
_DIGITS: Final = 12  # to which posteriors are compared: the last ones are the machine's


class Believed(NamedTuple):
    """posterior_N_C of images, by a classifier that has not learned from their labels."""

    sample_ids: Sequence[str]
    posterior_N_C: NDArray[np.floating]
    classes: Sequence[str]


def settle(history: pd.DataFrame, incoming: pd.DataFrame, rule: str, believed: Believed | None = None) -> pd.DataFrame:
    """The events (columns of `EVENTS`) that settle the images of the events `incoming`, which follow on `history`.

    `latest`: none. `majority`: where two people or more have an opinion, the last of each counts once; what more of
    them say than anything else is set, if another label stands. A rejection is an opinion; labels of the source are
    nobody's. Of a tie the newest opinion stands. `crowdlab`: of the same images, what is most probable to people and
    classifier together; as by `majority` where somebody rejects the image, or `believed` does not have it.
    """
    if rule not in ("majority", "crowdlab") or incoming.empty:
        return stack([], EVENTS)
    past = history[among(history["sample_id"], incoming["sample_id"])]
    both = stack([past, incoming], EVENTS)
    winners = _majority(_people(both))
    if rule == "crowdlab" and believed is not None:
        crowd = _crowd(_people(stack([history, incoming], EVENTS)), both, believed)
        winners = pd.concat([crowd, winners[~among(winners["sample_id"], crowd["sample_id"])]], ignore_index=True)
    stands = standing(both)[["sample_id", "label"]].merge(winners[["sample_id", "label"]], on="sample_id", how="right")
    known, won = stands["label_x"].fillna(""), stands["label_y"].fillna("")  # no class has an empty name
    settled = stands.loc[known != won, ["sample_id", "label_y"]].rename(columns={"label_y": "label"})
    when = both["imported_at"].fillna(both["labeled_at"]).groupby(both["sample_id"]).max()
    told = settled.assign(annotator=CONSENSUS, source=f"{CONSENSUS} by {rule}")
    return typed(told.assign(labeled_at=settled["sample_id"].map(when)).sort_values("sample_id"), EVENTS)


def _people(events: pd.DataFrame) -> pd.DataFrame:
    """What each person last said of each image."""
    return standing(events[~events["annotator"].isin([FROM_SOURCE, CONSENSUS])], by=["sample_id", "annotator"])


def _majority(people: pd.DataFrame) -> pd.DataFrame:
    """sample_id and label where more people, two or more, say one thing than any other."""
    votes = people.groupby(["sample_id", "label"], sort=False, dropna=False).size().rename("votes").reset_index()
    most = votes["votes"] == votes.groupby("sample_id")["votes"].transform("max")
    return votes.loc[most & (votes["votes"] > 1), ["sample_id", "label"]].drop_duplicates("sample_id", keep=False)


def _crowd(people: pd.DataFrame, touched: pd.DataFrame, believed: Believed) -> pd.DataFrame:
    """sample_id and label of the touched images that several people gave a class, and the classifier was asked about.

    Of labels that are as probable as each other, the one that stands."""
    row_of = {str(name): row for row, name in enumerate(believed.sample_ids)}
    refused = people.loc[people["label"].isna(), "sample_id"]
    people = people[among(people["sample_id"], list(row_of)) & ~among(people["sample_id"], refused)]
    samples, names = (pd.Index(sorted(people[column].unique())) for column in ("sample_id", "annotator"))
    said_N_A = np.full((len(samples), len(names)), -1, dtype=np.int64)
    places = samples.get_indexer(pd.Index(people["sample_id"])), names.get_indexer(pd.Index(people["annotator"]))
    said_N_A[places] = pd.Index(list(believed.classes)).get_indexer(pd.Index(people["label"].astype(object)))
    wanted_N = ((said_N_A >= 0).sum(axis=1) > 1) & samples.isin(touched["sample_id"])
    if not wanted_N.any():
        return pd.DataFrame({"sample_id": [], "label": []}, dtype="str")
    model_N_C = believed.posterior_N_C[[row_of[str(name)] for name in samples]]
    probable_N_C = crowdlab(said_N_A, model_N_C).posterior_N_C.round(_DIGITS)
    stands = standing(touched).set_index("sample_id")["label"].reindex(samples).astype(object)
    stands_N = pd.Index(list(believed.classes)).get_indexer(pd.Index(stands))
    rows = np.arange(len(samples))
    keeps_N = (stands_N >= 0) & (probable_N_C[rows, stands_N] == probable_N_C.max(axis=1))
    best_N = np.where(keeps_N, stands_N, probable_N_C.argmax(axis=1))
    labels = np.array(list(believed.classes), dtype=object)[best_N[wanted_N]]
    return pd.DataFrame({"sample_id": samples[wanted_N], "label": labels})
