"""The pools as they are, and as they were after every round: made again from nothing, or at once."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from vabal import pools
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.errors import UserError
from vabal.pools import IntakeReport, Pools


def read_pools(data: Path, records: Sequence[Record]) -> tuple[Pools | None, list[Finding]]:
    """The pools as they are now. Those that hold together nowhere are named; None if a table cannot be read."""
    head = records[-1].round if records else None
    findings: list[Finding] = []
    tables: dict[str, pd.DataFrame] = {}
    classes: tuple[str, ...] | None = None
    for name in pools.SCHEMAS:
        try:
            tables[name] = pools.read_one(data, name)
        except UNREADABLE as error:
            findings.append(Finding(head, pools.TABLE_FILES[name], one_line(error)))
    try:
        classes = tuple(json.loads((data / pools.CLASSES_FILE).read_text(encoding="utf-8")))
    except UNREADABLE as error:
        findings.append(Finding(head, pools.CLASSES_FILE, one_line(error)))
    if findings or classes is None:
        return None, findings
    current = Pools(**tables, classes=classes)
    try:
        pools.check(current)
    except UNREADABLE as error:
        file, _, what = str(error).partition(": ")
        findings.append(Finding(head, file, what))
    return current, findings


@dataclass(frozen=True)
class Replayed:
    """What the events and selections say a round's pools were: after intake, and after its picks were requested.

    `again` are the rows of `asked_again` that the round added.
    """

    taken_in: Pools
    after: Pools
    problems: tuple[str, ...]  # of its picks
    images: int = 0  # that came in with the round
    came: IntakeReport = field(default_factory=IntakeReport)  # of its labels
    events: int = 0  # that it took in
    again: pd.DataFrame = field(default_factory=lambda: pools.no_rows("asked_again"))


def replay(
    current: Pools, records: Sequence[Record], selections: Mapping[int, pd.DataFrame], state: Pools | None = None
) -> Iterator[Replayed]:
    """The pools of every round, made again from nothing: by round images, changes of the classes, label events, picks.

    Starts with every image of round 0 unlabelled, those of the holdout aside; or with the `state` that the round before
    the first of these records left.
    """
    state = _before_labels(current) if state is None else state
    added = current.catalog["added_round"]
    changes = current.class_events
    events = current.label_events
    for record in records:
        images = 0
        if record.round > 0:
            incoming = current.catalog.loc[added == record.round, pools.INCOMING.names]
            state, came = pools.apply_images(state, incoming, record.round)
            images = came.images
            told = changes.loc[changes["round"] == record.round, pools.CLASS_CHANGES.names]
            state, _ = pools.apply_classes(state, told, record.round)
        told = events.loc[events["round"] == record.round, pools.EVENTS.names]
        taken_in, came = _apply(state, told, record.round)
        state, problems = _request(taken_in, selections.get(record.round), record.round)
        again = current.asked_again[current.asked_again["round"] == record.round].reset_index(drop=True)
        asked = pools.stack([state.asked_again, again], pools.SCHEMAS["asked_again"])
        state = replace(state, asked_again=asked) if len(again) else state
        yield Replayed(taken_in, state, problems, images, came, len(told), again)


def _before_labels(current: Pools, catalog: pd.DataFrame | None = None) -> Pools:
    """Of the images of round 0, or those of this catalog."""
    if catalog is None:
        catalog = current.catalog[current.catalog["added_round"] == 0].reset_index(drop=True)
    holdout = current.holdout.assign(label=None)
    rest = catalog.loc[~catalog["sample_id"].isin(holdout["sample_id"]), ["sample_id"]]
    unlabeled = rest.assign(status=pools.AVAILABLE, requested_round=None)
    return Pools(
        catalog=catalog,
        labeled=pools.no_rows("labeled"),
        unlabeled=pools.typed(pools.by_id(unlabeled), pools.SCHEMAS["unlabeled"]),
        holdout=pools.typed(holdout, pools.SCHEMAS["holdout"]),
        label_events=pools.no_rows("label_events"),
        classes=pools.classes_at(current.class_events, current.classes, 0).names,
    )


def pools_after(current: Pools, record: Record, selections: Mapping[int, pd.DataFrame]) -> Pools | None:
    """The pools that a round left, made at once from all that came until then: quicker than a replay.

    None where they are not what its manifest says: then a replay alone tells what they were.
    """
    number = record.round
    catalog = current.catalog[current.catalog["added_round"] <= number].sort_values("added_round", kind="stable")
    asked = pd.concat([selections[each]["sample_id"] for each in sorted(selections) if each <= number] or [_nobody()])
    asked_in = [each for each in sorted(selections) if each <= number for _ in range(len(selections[each]))]
    changes, events, again = (
        table[table["round"] <= number].reset_index(drop=True)
        for table in (current.class_events, current.label_events, current.asked_again)
    )
    if not changes["round"].any():  # the first change brings the classes of the source along
        changes = pools.no_rows("class_events")
    try:
        names = pools.classes_at(current.class_events, current.classes, number).names
        start = replace(_before_labels(current, catalog.reset_index(drop=True)), class_events=changes, classes=names)
        told = events.sort_values("round", kind="stable")
        state, _ = pools.apply_labels(start, told[pools.EVENTS.names], told["round"].to_numpy(dtype=np.int32))
        state = replace(pools.mark_still_requested(state, asked, np.array(asked_in)), asked_again=again)
        return state if pools.digests(state) == record.pools_after else None
    except UNREADABLE:  # which the replay names
        return None


def _nobody() -> "pd.Series[str]":
    return pd.Series([], dtype="str")


def _apply(state: Pools, told: pd.DataFrame, round_number: int) -> tuple[Pools, IntakeReport]:
    try:
        return pools.apply_labels(state, told, round_number)
    except UserError:  # a label outside the classes: `pools.check` has named it
        return state, IntakeReport()


def _request(state: Pools, picks: pd.DataFrame | None, round_number: int) -> tuple[Pools, tuple[str, ...]]:
    if picks is None:
        return state, ()
    named = state.unlabeled[pools.among(state.unlabeled["sample_id"], picks["sample_id"])]
    available = named.loc[named["status"] == pools.AVAILABLE, "sample_id"]
    good = pools.among(picks["sample_id"], available) & ~picks["sample_id"].duplicated()
    wrong = picks.loc[~good, "sample_id"]
    problems = (f"picks {few(wrong)}, which could not be picked then",) if len(wrong) else ()
    return pools.mark_requested(state, list(picks.loc[good, "sample_id"]), round_number), problems
