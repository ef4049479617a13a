"""Every round checked against its replayed pools: digests, counts, candidates, picks; here, or among processes."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Final

import pandas as pd

from vabal import pools
from vabal.audit.chain import read_records
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line, span
from vabal.audit.manifests import check_intake, check_predictions
from vabal.audit.replayed import Replayed, pools_after, read_pools, replay
from vabal.audit.selections import check_candidates, read_selections
from vabal.audit.shared import Each
from vabal.errors import UserError
from vabal.labels.consensus import CONSENSUS, settle
from vabal.pools import Pools
from vabal.progress import track
from vabal.rounds.believed import believed


@dataclass(frozen=True)
class Checked:
    """What came of a round: findings, the tables that have an `other` digest than it recorded, after the newest round
    also what is to be said of the tables of `now`; and what stopped the check, if it `ended` early."""

    findings: tuple[Finding, ...] = ()
    other: tuple[str, ...] = ()
    now: tuple[Finding, ...] = ()
    ended: str | None = None


class Rounds:
    """The rounds of a record, replayed once from the first to the last, and checked as one is asked for; after
    `leap_to` from there on."""

    def __init__(
        self, data: Path, current: Pools, records: Sequence[Record], selections: Mapping[int, pd.DataFrame]
    ) -> None:
        self.data, self.current, self.records, self.selections = data, current, records, selections
        self._steps, self._next = enumerate(replay(current, records, selections)), 0
        self._known: dict[str, tuple[pd.DataFrame, str]] = {}

    def leap_to(self, place: int) -> bool:
        """Goes on at this place, without what lies between, where the pools of the round before are as its manifest
        says; whether it did."""
        state = pools_after(self.current, self.records[place - 1], self.selections) if place > self._next else None
        if state is not None:
            steps = replay(self.current, self.records[place:], self.selections, state)
            self._steps, self._next = enumerate(steps, place), place
        elif place < self._next:
            self._steps, self._next = enumerate(replay(self.current, self.records, self.selections)), 0
        return state is not None

    def check(self, place: int, since: int = 0) -> Checked:
        """The round in this place of the record; places must be asked for in their order. Of a round before `since`
        only its pools are."""
        findings: list[Finding] = []
        self._next = place + 1
        try:
            step = next((step for at, step in self._steps if at == place), None)
            if step is None:  # an earlier place has told what ended the replay
                return Checked(ended="the replay ended")
            record, digests = self.records[place], pools.digests(step.after, self._known)
            other = [name for name, digest in digests.items() if record.pools_after.get(name) != digest]
            if record.round >= since:
                for finding in self.of_round(record, step):
                    findings.append(finding)
            newest = place == len(self.records) - 1
            now = tuple(self._of_now(digests, step.after)) if newest else ()
        except UNREADABLE as error:
            return Checked(tuple(findings), ended=one_line(error))
        return Checked(tuple(findings), tuple(other), now)

    def of_round(self, record: Record, step: Replayed) -> Iterator[Finding]:
        """What is found of one round, beside the digests of its pools."""
        from vabal.audit.asked_again import check_again  # noqa: PLC0415 -- loads torch, which the other checks do without
        from vabal.audit.derivation import check_round  # noqa: PLC0415 -- the same
        from vabal.audit.drawn import check_control  # noqa: PLC0415 -- the same
        from vabal.audit.drift import check_drift  # noqa: PLC0415 -- the same
        from vabal.audit.enough import asked  # noqa: PLC0415 -- SciPy

        data, picks = self.data, self.selections.get(record.round)
        yield from _check_counts(record, step.after)
        file = f"{record.folder}/selection.parquet"
        yield from (Finding(record.round, file, problem) for problem in step.problems)
        offered = step.taken_in if asked(data, record) else _without_candidates(step.taken_in)
        yield from check_candidates(data, record, offered, picks)
        yield from check_intake(record, step.images, step.events, step.came)
        yield from _check_consensus(data, record, self.current.label_events, pools.Classes.of(step.taken_in))
        yield from check_predictions(data, record, step.taken_in)
        if not record.round:  # the first round's labels came with the source, or were asked for before any model was
            return
        recorded = None
        if picks is not None:
            recorded = [str(name) for name in picks.loc[picks["probability"].isna(), "sample_id"]]
            yield from check_control(data, record, offered, picks)
        yield from check_drift(data, record, step.taken_in.catalog, step.taken_in.holdout["sample_id"])
        any_offered = bool((offered.unlabeled["status"] == pools.AVAILABLE).any())
        yield from check_again(data, record, step.taken_in, step.again, any_offered=any_offered)
        yield from check_round(data, record, offered, recorded, again=len(step.again))

    def _of_now(self, expected: Mapping[str, str], after: Pools) -> Iterator[Finding]:
        """The tables of now against what the replay left."""
        head = self.records[-1]
        for name, digest in _digests_now(self.current).items():
            if digest != expected[name]:
                what = f"is not what the label events and picks lead to{_difference(name, self.current, after)}"
                yield Finding(head.round, pools.TABLE_FILES[name], what)
            elif digest != head.pools_after.get(name):
                what = f"its digest is not the one that round {head.round} recorded"
                yield Finding(head.round, pools.TABLE_FILES[name], what)


@lru_cache(maxsize=1)
def _own_rounds(data: Path) -> Rounds:
    """Those that a process of its own reads for itself."""
    records, _ = read_records(data)
    current, _ = read_pools(data, records)
    selections, _ = read_selections(data, records)
    if current is None:
        raise UserError(f"{data} changed while it was checked")
    return Rounds(data, current, records, selections)


def check_elsewhere(data: Path, since: int, places: Sequence[int]) -> tuple[bool, list[Checked]]:
    """`Rounds.check` of several places, one behind the other, in a process that was handed no rounds; and whether it
    leapt to the first of them."""
    rounds = _own_rounds(data)
    leapt = rounds.leap_to(places[0])
    return leapt, [rounds.check(place, since) for place in places]


def _shared(rounds: Rounds, since: int, places: Sequence[int], each: Each) -> Iterator[Checked]:
    """`Rounds.check` of the places among processes, each of which gets a run of them and leaps to the first.

    What a leap lands on is what the manifest before says; where the run before ended with something else, a replay has
    to go on from that.
    """
    runs = list(_in_runs(places))
    said, differs = each(partial(check_elsewhere, rounds.data, since), runs), False
    for run, (leapt, checked) in zip(runs, said, strict=True):
        found = (rounds.check(place, since) for place in run) if leapt and differs else iter(checked)
        for one in found:
            differs = bool(one.other) or one.ended is not None
            yield one


def _in_runs(places: Sequence[int]) -> Iterator[Sequence[int]]:
    """Long ones first, which are few leaps; short ones last, so that nobody waits long for the others."""
    start = 0
    while start < len(places):
        end = start + max(_SHORTEST_RUN, (len(places) - start) // _SHARE_OF_REST)
        yield places[start:end]
        start = end


_SHORTEST_RUN: Final = 3
_SHARE_OF_REST: Final = 8


def check_pools(rounds: Rounds, since: int = 0, each: Each = map) -> Iterator[Finding]:
    """What the events and selections lead to, against every manifest's digests and counts, every round's candidates,
    picks and predictions, and the tables of now. Of the rounds before `since` only the pools that the last of them left
    are looked at."""
    records, wrong, now = rounds.records, dict[str, list[int]](), tuple[Finding, ...]()
    first = next((place for place, record in enumerate(records) if record.round >= since), len(records))
    places = range(max(first - 1, 0), len(records))
    if each is map:
        if places and places[0]:
            rounds.leap_to(places[0])
        told: Iterator[Checked] = map(partial(rounds.check, since=since), places)
    else:
        told = _shared(rounds, since, places, each)
    for place, checked in track(zip(places, told, strict=True), "verify pools", len(places)):
        yield from checked.findings
        if checked.ended is not None:
            yield Finding(records[-1].round, "label_events.parquet", f"damaged, the check ended early: {checked.ended}")
            return
        for name in checked.other:
            wrong.setdefault(name, []).append(records[place].round)
        now = checked.now
    if not rounds.current.label_events["round"].is_monotonic_increasing:
        yield Finding(records[-1].round, "label_events.parquet", "its events do not stand in the order of their rounds")
    for name, rounds_ in wrong.items():
        for first_, last in _runs(rounds_):
            what = f"made again from images, label events and picks, it is not what {span(first_, last)} recorded"
            yield Finding(first_, pools.TABLE_FILES[name], what)
    yield from now


def _without_candidates(taken_in: Pools) -> Pools:
    return replace(taken_in, unlabeled=taken_in.unlabeled.iloc[:0])


def _check_consensus(data: Path, record: Record, events: pd.DataFrame, classes: pools.Classes) -> Iterator[Finding]:
    """What was settled in the round follows from people's opinions by then, by the rule of its settings."""
    events = pools.named(events, classes)
    by_people = events["annotator"] != CONSENSUS
    here = events["round"] == record.round
    labelling = record.settings.get("labelling")
    rule = labelling.get("consensus", "latest") if isinstance(labelling, dict) else "latest"
    try:
        crowd = believed(data, record.round - 1, classes) if rule == "crowdlab" else None
    except UNREADABLE:  # `check_again` of that round names it
        return
    expected = settle(events[events["round"] < record.round], events[here & by_people], rule, crowd)
    both = pd.concat([expected, events.loc[here & ~by_people, pools.EVENTS.names]])
    odd = both.loc[~both.duplicated(keep=False), "sample_id"]
    if len(odd):
        what = f"what was settled by {rule} does not follow from people's opinions: {few(odd)}"
        yield Finding(record.round, "label_events.parquet", what)


def _digests_now(current: Pools) -> dict[str, str]:
    try:
        return pools.digests(current)
    except ValueError:  # the same sample twice, which `pools.check` has named
        return {}


def _check_counts(record: Record, after: Pools) -> Iterator[Finding]:
    counted = pools.counts(after, int((after.unlabeled["requested_round"] == record.round).sum()))
    wrong = [
        f"{name} {record.counts.get(name)}, counted {value}"
        for name, value in counted.items()
        if record.counts.get(name) != value
    ]
    if wrong:
        yield Finding(record.round, record.file, f"wrong counts: {'; '.join(wrong)}")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    for _, run in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]


def _difference(name: str, current: Pools, expected: Pools) -> str:
    if name.startswith("class"):
        return ""
    both = pd.concat([getattr(current, name), getattr(expected, name)])
    odd = both.loc[~both.duplicated(keep=False), "sample_id"]
    return f": {few(odd)}" if len(odd) else ""
