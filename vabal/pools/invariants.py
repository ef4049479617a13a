"""What holds of pools at any time."""

from collections.abc import Iterable
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from vabal.errors import UserError
from vabal.pools.class_names import Classes, is_name
from vabal.pools.classes import named
from vabal.pools.columns import among, strings
from vabal.pools.opinions import standing
from vabal.pools.tables import (
    AVAILABLE,
    CLASS_EVENTS_FILE,
    CLASSES_FILE,
    DISPUTED,
    REJECTED,
    REQUESTED,
    SCHEMAS,
    SUSPECTED,
    Pools,
)

# --- invariants -------------------------------------------------------------------------------------------------------


def check(pools: Pools, before: Pools | None = None) -> None:
    """Raise UserError, naming the table and the samples, unless every invariant holds.

    Classes: at least two, distinct, plain text, the list that their events lead to. Catalog: ids unique and not empty,
    one row of one shard each, sha256 in hexadecimal, positive sizes. Catalog = labeled + unlabeled + holdout, disjoint.
    Labels among the classes, those of events among all names that classes had. Statuses known; `requested_round` set
    exactly for the requested. The standing event of a sample agrees with the pool it is
    in, and every label that stands has an event. Asked about again are samples with an event, outside the holdout.

    `before`: pools in which all of this holds. Where the new ones have the same tables (the very same objects), what
    depends on these alone is not looked at again.
    """
    changed = {name for name in SCHEMAS if before is None or getattr(pools, name) is not getattr(before, name)}
    if before is None or pools.classes != before.classes or "class_events" in changed:
        _check_classes(pools)
        changed = set(SCHEMAS)
    if "catalog" in changed:
        _check_catalog(pools.catalog)
    if before is None or not _same_ids(pools, before, changed):
        _check_membership(pools)
    for name in ("labeled", "holdout", "label_events"):
        if name not in changed:
            continue
        table = getattr(pools, name)
        known = Classes.of(pools).meaning if name == "label_events" else pools.classes
        wrong = table["label"].notna() & ~among(table["label"], known)
        if wrong.any():
            label = table.loc[wrong, "label"].iloc[0]
            raise UserError(f"{name}.parquet: label {label!r} of {few(table[wrong])} is not in {CLASSES_FILE}")
    for name in ("labeled", "label_events"):
        if name not in changed:
            continue
        table = getattr(pools, name)
        _refuse(table, (table["round"] < 0), name, "round below 0")
        _refuse(table, (table["annotator"] == ""), name, "no annotator")
    if "unlabeled" in changed:
        _check_requests(pools.unlabeled)
    if before is None or changed - {"unlabeled", "asked_again"} or not _same_rejected(pools, before):
        _check_events(pools)
    if "asked_again" in changed:
        _check_asked_again(pools)


def _same_ids(pools: Pools, before: Pools, changed: set[str]) -> bool:
    """Whether catalog and pools hold the same samples in the same rows as before."""
    return all(
        _equal(getattr(pools, name)["sample_id"], getattr(before, name)["sample_id"])
        for name in changed & {"catalog", *_MEMBERS}
    )


def _same_rejected(pools: Pools, before: Pools) -> bool:
    now, then = (table.loc[table["status"] == REJECTED, "sample_id"] for table in (pools.unlabeled, before.unlabeled))
    return _equal(now, then)


def _equal(column: pd.Series, other: pd.Series) -> bool:
    same: bool = strings(column).equals(strings(other))
    return same


def _check_classes(pools: Pools) -> None:
    classes, events = pools.classes, pools.class_events
    if len(classes) < 2:
        raise UserError(f"{CLASSES_FILE}: at least two classes are needed, found {len(classes)}")
    if len(set(classes)) < len(classes):
        twice = sorted({name for name in classes if classes.count(name) > 1})
        raise UserError(f"{CLASSES_FILE}: class {twice[0]!r} stands there twice")
    for name in classes:
        if not is_name(name):
            raise UserError(
                f"{CLASSES_FILE}: {name!r} is no class name (empty, spaces around it, or control characters)"
            )
    if not events["round"].is_monotonic_increasing:
        raise UserError(f"{CLASS_EVENTS_FILE}: its events do not stand in the order of their rounds")
    if Classes.of(pools).names != classes:
        raise UserError(f"{CLASSES_FILE}: not the list that the events of {CLASS_EVENTS_FILE} lead to")


def _check_catalog(catalog: pd.DataFrame) -> None:
    _refuse(catalog, catalog["sample_id"] == "", "catalog", "an empty sample_id")
    _refuse(catalog, catalog["shard"] == "", "catalog", "no shard")
    _refuse(catalog, (catalog["row"] < 0) | (catalog["added_round"] < 0), "catalog", "a row or round below 0")
    _refuse(catalog, (catalog["width"] < 1) | (catalog["height"] < 1), "catalog", "a width or height below 1")
    _refuse(catalog, catalog["group"] == "", "catalog", "a group without a name")
    _refuse(catalog, catalog["sha256"].str.len() != 64, "catalog", "a sha256 that is none")
    shard = pd.factorize(catalog["shard"])[0].astype(np.int64)
    place = shard * (int(catalog["row"].max()) + 1 if len(catalog) else 1) + catalog["row"].to_numpy()
    ordered = np.sort(place)
    if (ordered[1:] == ordered[:-1]).any():
        twice = pd.Series(place, index=catalog.index).duplicated(keep=False)
        raise UserError(f"catalog.parquet: {few(catalog[twice])} share one row of one shard")


def _check_membership(pools: Pools) -> None:
    position = _positions(pools)
    if not position.null_count:
        counts = np.bincount(position.to_numpy(), minlength=len(pools.catalog))
        if (counts == 1).all():
            return
    _explain_membership(pools.catalog, {name: getattr(pools, name) for name in _MEMBERS})


_MEMBERS: Final = ("labeled", "unlabeled", "holdout")
_known_positions: Final[WeakKeyDictionary[Pools, pa.ChunkedArray]] = WeakKeyDictionary()


def _positions(pools: Pools) -> pa.ChunkedArray:
    """The catalog's row of each member of the three pools, one pool behind the other; null for a stranger.

    Looked for once: tables of pools do not change.
    """
    if pools in _known_positions:
        return _known_positions[pools]
    chunks = [chunk for name in _MEMBERS for chunk in strings(getattr(pools, name)["sample_id"]).chunks]
    members = pa.chunked_array(chunks, pa.large_string())
    _known_positions[pools] = pc.index_in(members, value_set=strings(pools.catalog["sample_id"]))
    return _known_positions[pools]


def places(pools: Pools) -> dict[str, np.ndarray]:
    """The catalog's row of each row of `labeled`, `unlabeled` and `holdout`. The pools must hold their invariants."""
    ends = np.cumsum([len(getattr(pools, name)) for name in _MEMBERS])
    return dict(zip(_MEMBERS, np.split(_positions(pools).to_numpy(), ends[:-1]), strict=True))


def _explain_membership(catalog: pd.DataFrame, parts: dict[str, pd.DataFrame]) -> None:
    for name, table in [("catalog", catalog), *parts.items()]:
        _refuse(table, table["sample_id"].duplicated(), name, "the same sample_id twice")
    for name, table in parts.items():
        strangers = table[~among(table["sample_id"], catalog["sample_id"])]
        if len(strangers):
            raise UserError(f"{name}.parquet: {few(strangers)} not in catalog.parquet")
    names = list(parts)
    for first, second in ((first, second) for i, first in enumerate(names) for second in names[i + 1 :]):
        shared = parts[first][among(parts[first]["sample_id"], parts[second]["sample_id"])]
        if len(shared):
            raise UserError(f"{first}.parquet: {few(shared)} also in {second}.parquet")
    members = pd.concat([table["sample_id"] for table in parts.values()])
    lost = catalog[~among(catalog["sample_id"], members)]
    raise UserError(f"catalog.parquet: {few(lost)} in none of {', '.join(f'{name}.parquet' for name in names)}")


def _check_requests(unlabeled: pd.DataFrame) -> None:
    unknown = ~among(unlabeled["status"], [AVAILABLE, REQUESTED, REJECTED])
    if unknown.any():
        status = unlabeled.loc[unknown, "status"].iloc[0]
        raise UserError(f"unlabeled.parquet: unknown status {status!r} of {few(unlabeled[unknown])}")
    asked = unlabeled["requested_round"].notna()
    wrong = asked != (unlabeled["status"] == REQUESTED)
    _refuse(unlabeled, wrong, "unlabeled", "a requested_round that does not fit the status")
    _refuse(unlabeled, asked & (unlabeled["requested_round"].fillna(0) < 0), "unlabeled", "requested_round below 0")


def _check_events(pools: Pools) -> None:
    events = pools.label_events
    strangers = events[~among(events["sample_id"], pools.catalog["sample_id"])]
    if len(strangers):
        raise UserError(f"label_events.parquet: {few(strangers)} not in catalog.parquet")
    last = named(standing(events), Classes.of(pools)).set_index("sample_id")["label"]
    told = last.dropna()
    labels = _standing_labels(pools)
    expected = told.reindex(labels.index)
    wrong = labels[(expected != labels).fillna(True).to_numpy(dtype=bool)]
    if len(wrong):
        raise UserError(f"labeled.parquet, holdout.parquet: {few_ids(wrong.index)} with a label that no event gave")
    if len(told) != len(labels):
        lost = told.index[~told.index.isin(labels.index)]
        raise UserError(f"label_events.parquet: {few_ids(lost)} labelled last, but without a label in the pools")
    refused = last.index[last.isna()]
    rejected = pools.unlabeled.loc[pools.unlabeled["status"] == REJECTED, "sample_id"]
    invented = rejected[~among(rejected, refused)]
    if len(invented):
        raise UserError(f"unlabeled.parquet: {few_ids(invented)} rejected, but no event says so")
    if len(refused) != len(rejected) + int(among(pools.holdout["sample_id"], refused).sum()):
        waiting = refused[~refused.isin(rejected) & ~refused.isin(pools.holdout["sample_id"])]
        raise UserError(f"label_events.parquet: {few_ids(waiting)} rejected last, but not in unlabeled.parquet")


def _check_asked_again(pools: Pools) -> None:
    asked, name = pools.asked_again, "asked_again"
    _refuse(asked, ~among(asked["sample_id"], pools.label_events["sample_id"]), name, "no label event")
    _refuse(asked, among(asked["sample_id"], pools.holdout["sample_id"]), name, "in the holdout")
    _refuse(asked, ~among(asked["reason"], [DISPUTED, SUSPECTED]), name, "unknown reason")
    _refuse(asked, asked.duplicated(["sample_id", "round"]), name, "twice in a round")
    unknown = asked["label"].notna() & ~among(asked["label"], Classes.of(pools).meaning)
    _refuse(asked, unknown, name, f"a label that is not in {CLASSES_FILE}")
    if not asked["round"].is_monotonic_increasing:
        raise UserError("asked_again.parquet: its rows do not stand in the order of their rounds")


def _standing_labels(pools: Pools) -> pd.Series:
    """Labels that count now, by sample_id: the labelled pool's and the holdout's."""
    both = pd.concat([pools.labeled[["sample_id", "label"]], pools.holdout[["sample_id", "label"]]])
    return both.dropna().set_index("sample_id")["label"]


def _refuse(table: pd.DataFrame, wrong: pd.Series, name: str, what: str) -> None:
    if wrong.any():
        raise UserError(f"{name}.parquet: {what}: {few(table[wrong])}")


def few(rows: pd.DataFrame) -> str:
    return few_ids(rows["sample_id"])


def few_ids(ids: Iterable[str]) -> str:
    """The first three ids and how many more."""
    names = list(dict.fromkeys(ids))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"sample{'s' if len(names) > 1 else ''} {', '.join(names[:3])}{more}"
