"""Why a sample was picked in a round, or why not, and what would have had to differ: from the round's record alone.

The score is taken apart as its strategy puts it together (`BaseStrategy.terms`), the search of a batch is walked again
along the recorded picks. What a round of an earlier version did not record is said in `notes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from vabal.audit import queries
from vabal.audit.contest import Contest
from vabal.audit.findings import UNREADABLE, Record, one_line
from vabal.audit.recorded import read_statements
from vabal.audit.sample import catalog_row
from vabal.audit.searched import Searched
from vabal.errors import BRING_BACK, UserError
from vabal.pools.files import read_one, read_table
from vabal.pools.opinions import standing
from vabal.pools.reading import read_classes, readable
from vabal.pools.tables import DISPUTED, SCHEMAS, SUSPECTED
from vabal.rounds import manifest_numbers, round_folder, tables
from vabal.strategies import Candidates, record_of

_FACTS = ("predicted_class", "margin", "vae_class", "prior", "precision", "expected_entropy", "predicted_loss")
_AGAIN = {
    DISPUTED: "people contradicted each other about it",
    SUSPECTED: "a classifier that had not learned from it did not believe its label",
}
_ADDS_UP = 1e-6  # of a score


@dataclass
class Standing:
    """Where a sample stood in a round. `state`: picked, control, candidate, again, or why it was none (labeled,
    holdout, requested, rejected, absent); `place` is that by score, `terms` add up to the score, `facts` are what was
    recorded beside it.
    """

    sample_id: str
    state: str
    said: str  # the state in words
    rank: int | None = None
    score: float | None = None
    place: int | None = None
    terms: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    posterior: dict[str, float] = field(default_factory=dict)


@dataclass
class Why:
    """The answer: the sample, the other one if one was asked about, and what decided, in sentences."""

    round: int
    strategy: str
    rule: str
    budget: int
    picks: int
    candidates: int
    sample: Standing
    other: Standing | None
    answer: list[str]
    notes: list[str]


def why(data: Path, number: int, sample_id: str, other: str | None = None) -> Why:
    """Why `sample_id` was picked in the round, or not; with `other`, what decided between the two.

    Raises UserError if there is no such round or sample, nothing was picked by score in it, or a file is damaged.
    """
    queries.require_round(data, number)
    folder = round_folder(data, number)
    if not (folder / tables.CANDIDATES_FILE).exists():
        raise UserError(f"round {number} picked nothing by score (`vabal audit` lists the rounds)")
    try:
        names = [catalog_row(data, name)["sample_id"] for name in (sample_id, other) if name is not None]
        if len(set(names)) < len(names):
            raise UserError(f"--why and --not name the same sample {names[0]}: name another one")
        record = Record.parse((folder / "manifest.json").read_bytes())
        with readable(folder / tables.CANDIDATES_FILE, BRING_BACK):
            return _why(data, record, names)
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder} cannot be read: {one_line(error)}: {BRING_BACK}") from None


def _why(data: Path, record: Record, sample_ids: Sequence[str]) -> Why:
    folder, notes = round_folder(data, record.round), list[str]()
    contest = Contest(folder, record, read_classes(data, record.round).names)
    selection = tables.read_selection(folder / tables.SELECTION_FILE).set_index("sample_id")
    stands = []
    for sample_id in sample_ids:
        row = contest.rows.get(sample_id)
        if row is not None:
            stands.append(_standing(contest, record, row, notes))
        elif sample_id in selection.index and selection["probability"].notna()[sample_id]:
            stands.append(_drawn(folder, contest, sample_id, selection))
        else:
            stands.append(_outside(data, record.round, sample_id))
    try:
        decided = Searched(contest) if contest.rule.searches else contest
        answer = list(decided.answer([contest.rows[stand.sample_id] for stand in stands if stand.place is not None]))
    except UNREADABLE as error:
        answer = []
        notes.append(f"what decided is not told, for the record lacks something: {one_line(error)}")
    return Why(
        record.round,
        record.strategy,
        contest.rule.name,
        contest.budget,
        len(contest.picked),
        len(contest.ids),
        stands[0],
        stands[1] if len(stands) > 1 else None,
        answer,
        list(dict.fromkeys(notes)),
    )


# -- a candidate ----------------------------------------------------------------------------------------------------


def _standing(contest: Contest, record: Record, row: int, notes: list[str]) -> Standing:
    sample_id = contest.ids[row]
    one, table = contest.candidate(sample_id)
    told = table.to_pylist()[0]
    rank, place, score = told["rank"], contest.place(row), float(contest.score_N[row])
    said = f"picked, rank {rank}" if rank else "not picked"
    terms = _terms(contest, record, one, score, notes)
    shut_out = "; the guard put it last, for it is among the least likely" if terms.get("guard") else ""
    facts = _facts(told)
    if told.get("votes"):
        facts["votes"] = dict(zip(contest.classes, told["votes"], strict=True))
    noise = contest.noise(row)
    facts |= {} if noise is None else {"noise": noise}
    posterior = queries.posterior_of(told)
    return Standing(
        sample_id,
        "picked" if rank else "candidate",
        f"{said}; its score is number {place} of {len(contest.ids)}{shut_out}",
        rank,
        score,
        place,
        terms,
        facts,
        dict(zip(contest.classes, posterior, strict=True)) if posterior else {},
    )


def _facts(told: dict[str, Any]) -> dict[str, Any]:
    """What was recorded beside the score, and the margin, which a compact record leaves to be computed."""
    told = told | {"margin": queries.margin_of(told)}
    return {name: told[name] for name in _FACTS if told.get(name) is not None}


def _terms(contest: Contest, record: Record, one: Candidates, score: float, notes: list[str]) -> dict[str, float]:
    try:
        _, settings, strategy, class_terms = read_statements(record, contest.classes)
        asked = record_of(strategy)
        if asked.scores_are(len(contest.ids), contest.budget) is not None:
            notes.append(f"a score of {record.strategy} is a place in its search; what that saw is not in the record")
            return {}
        if not asked.scores_follow(contest.columns, settings):
            notes.append("this round's version recorded less than its score takes: it is not taken apart")
            return {}
        terms = {
            name: float(value_N[0])
            for name, value_N in asked.terms(one, class_terms=class_terms, settings=settings).items()
        }
    except UNREADABLE as error:
        notes.append(f"the score is not taken apart, for the record lacks something: {one_line(error)}")
        return {}
    if terms and abs(sum(terms.values()) - score) > _ADDS_UP * max(1.0, abs(score)):
        notes.append("the score is not taken apart: this version's terms do not add up to what was recorded then")
        return {}
    return terms


def _drawn(folder: Path, contest: Contest, sample_id: str, selection: pd.DataFrame) -> Standing:
    """Of the control arm: no score and no rule put it there."""
    arm = selection["probability"].notna()
    drawn, rank = int(arm.sum()), int(selection["rank"][sample_id])
    table = pq.read_table(folder / tables.CONTROL_FILE, filters=[("sample_id", "==", sample_id)])
    told = table.to_pylist()[0]
    said = f"drawn uniformly, with probability {drawn}/{drawn + len(contest.ids)}, before the picks; rank {rank}"
    return Standing(
        sample_id,
        "control",
        said,
        rank,
        facts=_facts(told),
        posterior=dict(zip(contest.classes, queries.posterior_of(told), strict=False)),
    )


# -- a sample that was no candidate -----------------------------------------------------------------------------------


def _outside(data: Path, number: int, sample_id: str) -> Standing:
    """Why the sample could not be picked in the round. Raises UserError if the catalog does not know it."""
    added = catalog_row(data, sample_id)["added_round"]
    if added > number:
        return Standing(sample_id, "absent", f"was no candidate: its image came with round {added}")
    if (read_table(data / "holdout.parquet", SCHEMAS["holdout"])["sample_id"] == sample_id).any():
        return Standing(sample_id, "holdout", "was no candidate: it belongs to the holdout, which no round picks from")
    again = read_one(data, "asked_again")
    for row in again[(again["sample_id"] == sample_id) & (again["round"] == number)].to_dict("records"):
        stood = row["label"] if isinstance(row["label"], str) else "its rejection"
        return Standing(sample_id, "again", f"asked about again: {_AGAIN[row['reason']]}; {stood} stood")
    events = read_table(data / "label_events.parquet", SCHEMAS["label_events"])
    own = events[(events["sample_id"] == sample_id) & (events["round"] <= number)]
    for event in standing(own.reset_index(drop=True)).to_dict("records"):
        by = f"by {event['annotator']}, taken in by round {event['round']}"
        if isinstance(event["label"], str):
            return Standing(sample_id, "labeled", f"was no candidate: it was labelled {event['label']} {by}")
        return Standing(sample_id, "rejected", f"was no candidate: it was rejected {by}")
    asked = _asked_before(data, number, sample_id)
    if asked is None:
        raise UserError(f"sample {sample_id} should be a candidate of round {number}: `vabal audit --verify`")
    return Standing(sample_id, "requested", f"was no candidate: the label that round {asked} asked for was still out")


def _asked_before(data: Path, number: int, sample_id: str) -> int | None:
    for earlier in reversed([each for each in manifest_numbers(data) if each < number]):
        path = round_folder(data, earlier) / tables.SELECTION_FILE
        if path.exists() and sample_id in set(tables.read_selection(path)["sample_id"]):
            return earlier
    return None
