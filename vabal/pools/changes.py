"""What a night does to the pools: labels and images in, picks marked as requested."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.errors import UserError
from vabal.pools.class_names import Classes
from vabal.pools.classes import named
from vabal.pools.columns import among, stack, strings, typed
from vabal.pools.invariants import few, few_ids
from vabal.pools.opinions import opinion_times, standing
from vabal.pools.tables import (
    AVAILABLE,
    CLASSES_FILE,
    EVENTS,
    INCOMING,
    REJECTED,
    REQUESTED,
    SCHEMAS,
    IntakeReport,
    Pools,
    schema,
)


def apply_labels(pools: Pools, events: pd.DataFrame, round_number: int | np.ndarray) -> tuple[Pools, IntakeReport]:
    """Pools after labels came in (`events` in the order of arrival, columns of `EVENTS`), and what came of them.

    `round_number` is that of the round which takes them in, or one an event.

    Which opinion on a sample counts, `standing` says: one that is older than what stands changes nothing (`outdated`).
    A null label rejects a sample: it is never asked for again, unless somebody labels it after all. The same label
    again changes nothing, but that a known time makes it the opinion that stands; another one corrects. All events
    enter the history, but those of samples that the catalog does not know: they are left out and reported. Samples of
    the holdout keep their pool.
    A label under an earlier name of its class counts as today's; the history keeps what was said.
    Raises UserError if a label is no name of a class.
    """
    if events.empty:
        return pools, IntakeReport()
    incoming = typed(events, EVENTS)
    known = among(incoming["sample_id"], pools.catalog["sample_id"])
    unknown = tuple(dict.fromkeys(incoming.loc[~known, "sample_id"]))
    taken = incoming[known].reset_index(drop=True)
    round_N = np.broadcast_to(np.asarray(round_number, dtype=np.int32), len(incoming))[known.to_numpy()]
    told = named(taken, Classes.of(pools))
    codes = _codes(told, pools.classes)
    previous, counts = _before_each(pools, told, codes)
    report = replace(_came_of(codes, previous, counts), received=len(incoming), unknown=unknown)
    if taken.empty:
        return pools, report
    history = taken.assign(round=round_N)
    timed = taken["imported_at"].notna().to_numpy(dtype=bool)
    deciding = told.assign(round=round_N)[counts & ((codes != previous) | timed)].drop_duplicates(
        "sample_id", keep="last"
    )
    changed = _settle(pools, deciding)
    label_events = stack([pools.label_events, history], SCHEMAS["label_events"])
    return replace(changed, label_events=label_events), report


def _came_of(codes_N: np.ndarray, previous_N: np.ndarray, counts_N: np.ndarray) -> IntakeReport:
    """How many labels did what, by the codes of what they say and of what stood before them, and whether they count."""
    same_N = codes_N == previous_N
    return IntakeReport(
        new=int((counts_N & (codes_N >= 0) & (previous_N < 0)).sum()),
        repeated=int(same_N.sum()),
        corrected=int((counts_N & (codes_N >= 0) & (previous_N >= 0) & ~same_N).sum()),
        rejected=int((counts_N & (codes_N == _REJECTED_CODE) & ~same_N).sum()),
        outdated=int((~counts_N & ~same_N).sum()),
    )


_REJECTED_CODE = -1
_UNTOLD_CODE = -2


def _codes(events: pd.DataFrame, classes: tuple[str, ...]) -> np.ndarray:
    """Class index of every event, -1 for a rejection."""
    codes: np.ndarray = pd.Index(classes).get_indexer(pd.Index(events["label"].astype(object)))
    wrong = events["label"].notna().to_numpy() & (codes < 0)
    if wrong.any():
        label = events.loc[wrong, "label"].iloc[0]
        raise UserError(
            f"label {label!r} of {few(events[wrong])} is not in {CLASSES_FILE}: `vabal classes add` makes it a class"
        )
    return codes


def _before_each(pools: Pools, taken: pd.DataFrame, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What stood of a sample before each event, and whether the event counts: is no older than that."""
    past = pools.label_events[among(pools.label_events["sample_id"], taken["sample_id"])]
    past = named(past, Classes.of(pools))
    both = pd.concat([past[EVENTS.names], taken], ignore_index=True)
    sample = both["sample_id"].to_numpy(dtype=object)
    time = pd.Series(opinion_times(both))
    newest = time.groupby(sample).cummax()
    counts = time == newest
    code = pd.Series(np.concatenate([_codes(past, pools.classes), codes]), dtype="float64").where(counts)
    before = code.groupby(sample).ffill().groupby(sample).shift().fillna(_UNTOLD_CODE)
    return before.to_numpy(dtype=np.int64)[len(past) :], counts.to_numpy(dtype=bool)[len(past) :]


def _settle(pools: Pools, deciding: pd.DataFrame) -> Pools:
    """Pools with the last word on each sample of `deciding` (one row a sample) put in force."""
    in_holdout = among(deciding["sample_id"], pools.holdout["sample_id"])
    holdout = pools.holdout
    if in_holdout.any():
        said = deciding[in_holdout].set_index("sample_id")["label"]
        touched = among(holdout["sample_id"], said.index)
        holdout = holdout.copy()
        holdout.loc[touched, "label"] = said.reindex(holdout.loc[touched, "sample_id"]).to_numpy()
    rest = deciding[~in_holdout]
    rejected = rest.loc[rest["label"].isna(), "sample_id"]
    labeled = pools.labeled[~among(pools.labeled["sample_id"], rest["sample_id"])]
    return replace(
        pools,
        holdout=holdout,
        labeled=by_id(stack([labeled, rest[rest["label"].notna()]], SCHEMAS["labeled"])),
        unlabeled=_refuse(_without(pools.unlabeled, rest.loc[rest["label"].notna(), "sample_id"]), rejected),
    )


def _without(unlabeled: pd.DataFrame, sample_ids: pd.Series) -> pd.DataFrame:
    gone = among(unlabeled["sample_id"], sample_ids).to_numpy()
    return unlabeled[~gone].reset_index(drop=True) if gone.any() else unlabeled


def _refuse(unlabeled: pd.DataFrame, rejected: pd.Series) -> pd.DataFrame:
    """Those that wait there stay in their places: to sort a large table anew takes longer than all else."""
    waiting = np.flatnonzero(among(unlabeled["sample_id"], rejected))
    if len(waiting):
        unlabeled = _marked(unlabeled, waiting, REJECTED, None)
    others = rejected[~among(rejected, unlabeled["sample_id"].iloc[waiting])]
    if others.empty:
        return unlabeled
    refused = pd.DataFrame({"sample_id": others, "status": REJECTED, "requested_round": None})
    return by_id(stack([unlabeled, refused], SCHEMAS["unlabeled"]))


def _marked(
    unlabeled: pd.DataFrame, rows: np.ndarray, status: str, requested_round: int | np.ndarray | None
) -> pd.DataFrame:
    """With another status in these rows."""
    there = np.zeros(len(unlabeled), dtype=bool)
    there[rows] = True
    name = pa.scalar(status, pa.large_string())
    statuses = pc.if_else(pa.array(there), name, strings(unlabeled["status"]))
    requested = unlabeled["requested_round"].copy()
    requested.iloc[rows] = pd.NA if requested_round is None else requested_round
    changed = pd.Series(statuses, dtype=unlabeled["status"].dtype, index=unlabeled.index)
    return unlabeled.assign(status=changed, requested_round=requested)


def apply_images(pools: Pools, new_catalog_rows: pd.DataFrame, round_number: int) -> tuple[Pools, IntakeReport]:
    """Pools with new images (columns of `INCOMING`) available, and what came of them.

    An image whose sample_id or content the catalog has already is left out and reported, so that the same rows may
    come twice.
    """
    if new_catalog_rows.empty:
        return pools, IntakeReport()
    incoming = typed(new_catalog_rows, INCOMING)
    known = among(incoming["sample_id"], pools.catalog["sample_id"]) | among(
        incoming["sha256"], pools.catalog["sha256"]
    )
    known |= incoming["sample_id"].duplicated() | incoming["sha256"].duplicated()
    report = IntakeReport(images=int((~known).sum()), duplicates=tuple(incoming.loc[known, "sample_id"]))
    if not report.images:
        return pools, report
    fresh = incoming[~known].assign(added_round=np.int32(round_number))
    waiting = pd.DataFrame({"sample_id": fresh["sample_id"], "status": AVAILABLE, "requested_round": None})
    catalog = stack([pools.catalog, fresh], SCHEMAS["catalog"])
    unlabeled = by_id(stack([pools.unlabeled, waiting], SCHEMAS["unlabeled"]))
    return replace(pools, catalog=catalog, unlabeled=unlabeled), report


def open_requests(pools: Pools) -> pd.DataFrame:
    """What people are asked to label: sample_id, requested_round and purpose, oldest first.

    The purpose is "label", "holdout", or "again" for what has opinions already and waits for one more.
    """
    asked = pools.unlabeled.loc[pools.unlabeled["status"] == REQUESTED, ["sample_id", "requested_round"]]
    blank = pools.holdout.loc[pools.holdout["label"].isna(), ["sample_id"]]
    told = pools.label_events.loc[among(pools.label_events["sample_id"], blank["sample_id"]), "sample_id"]
    blank = blank[~among(blank["sample_id"], told)]  # what stands of it can only be a rejection
    again = open_again(pools).rename(columns={"round": "requested_round"})[["sample_id", "requested_round"]]
    parts = [
        asked.assign(purpose="label"),
        blank.assign(requested_round=0, purpose="holdout"),
        again.assign(purpose="again"),
    ]
    frame = typed(pd.concat(parts), _REQUESTS)
    return frame.sort_values(["requested_round", "purpose", "sample_id"], kind="stable").reset_index(drop=True)


_REQUESTS = schema(
    ("sample_id", pa.string(), False), ("requested_round", pa.int32(), False), ("purpose", pa.string(), False)
)


def open_again(pools: Pools) -> pd.DataFrame:
    """The newest row of `asked_again` of each image that nobody has said anything of since."""
    newest = pools.asked_again.drop_duplicates("sample_id", keep="last")
    waiting_N = _events_of(pools, newest["sample_id"]) == newest["events"].to_numpy(dtype=np.int64)
    waiting: pd.DataFrame = newest.loc[waiting_N]
    return waiting


def ask_again(pools: Pools, wanted: pd.DataFrame, round_number: int) -> Pools:
    """Pools in which one more opinion on these images has been asked for: `wanted` has sample_id and reason, in order.

    What stands of them goes on to stand until it comes.
    """
    if wanted.empty:
        return pools
    said = pools.label_events[among(pools.label_events["sample_id"], wanted["sample_id"])]
    stands = named(standing(said.reset_index(drop=True)), Classes.of(pools)).set_index("sample_id")["label"]
    ids = wanted["sample_id"]
    rows = wanted.assign(
        round=np.int32(round_number), label=stands.reindex(ids).to_numpy(), events=_events_of(pools, ids)
    )
    return replace(pools, asked_again=stack([pools.asked_again, rows], SCHEMAS["asked_again"]))


def _events_of(pools: Pools, ids: pd.Series) -> np.ndarray:
    """How many label events each of these samples has."""
    told = pools.label_events["sample_id"]
    counts = told[among(told, ids)].value_counts().reindex(ids).fillna(0)
    return counts.to_numpy(dtype=np.int64)


def mark_requested(pools: Pools, sample_ids: Sequence[str], round_number: int) -> Pools:
    """Pools in which labels for these available samples have been asked for.

    Raises ValueError if one of them is not available.
    """
    wanted = pd.Series(list(sample_ids), dtype="str")
    rows = np.flatnonzero(among(pools.unlabeled["sample_id"], wanted))
    chosen = pools.unlabeled.iloc[rows]
    available = chosen.loc[chosen["status"] == AVAILABLE, "sample_id"]
    if len(available) != len(wanted):
        raise ValueError(f"not available, or named twice: {few_ids(_other_than(wanted, available))}")
    return replace(pools, unlabeled=_marked(pools.unlabeled, rows, REQUESTED, round_number))


def mark_still_requested(pools: Pools, sample_ids: pd.Series, round_N: np.ndarray) -> Pools:
    """Pools in which labels have been asked for in these rounds, which ascend; what is not available is passed over."""
    ids, rounds = strings(sample_ids).combine_chunks(), pd.Series(round_N).to_numpy(dtype=np.int64)
    last = len(ids) - 1 - pc.index_in(strings(pools.unlabeled["sample_id"]), value_set=ids[::-1]).to_numpy()
    open_N = (pools.unlabeled["status"] == AVAILABLE).to_numpy(dtype=bool) & ~np.isnan(last)
    rows = np.flatnonzero(open_N)
    requested_N = rounds[last[rows].astype(np.int64)]
    return replace(pools, unlabeled=_marked(pools.unlabeled, rows, REQUESTED, requested_N)) if len(rows) else pools


def _other_than(wanted: pd.Series, available: pd.Series) -> pd.Series:
    return wanted[~among(wanted, available) | wanted.duplicated()]


def by_id(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of their ids' UTF-8 bytes, which is how tables are kept: digests need no sorting then."""
    ids = strings(table["sample_id"]).combine_chunks()
    if pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py() is False:
        table = table.iloc[pc.sort_indices(ids).to_numpy()]
    return table.reset_index(drop=True)
