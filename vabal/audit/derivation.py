"""Do a round's scores and picks follow from what it recorded? Both derived again, candidate by candidate.

Rounds whose manifest has version 2 record what the score takes: the strategy is run again on that, and must come to the
same columns. Of earlier rounds the scores are computed again as far as their columns allow.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.audit.class_terms import wrong_moments, wrong_terms
from vabal.audit.drawn import draw_of
from vabal.audit.earlier import derive_earlier
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.audit.recorded import CandidatesTable, Derived, asked_for, not_so, picker_of, read_statements, shard_of
from vabal.pools import Pools
from vabal.probabilities import ClassTerms
from vabal.rounds import derive_seed, tables
from vabal.rounds.stage_store import code_version
from vabal.settings.models import Params
from vabal.strategies import Candidates, Context, Labeled, Strategy, record_of, rule_named, with_prediction
from vabal.strategies.base import Listed, recording


def check_round(
    data: Path, record: Record, taken_in: Pools, recorded: Sequence[str] | None, *, again: int = 0
) -> Iterator[Finding]:
    """A round's scores and picks, derived again from its candidates, settings, class terms and seed.

    `taken_in` are the pools that it picked from, `recorded` its picks in their order, None if they cannot be read;
    `again` places of its budget went to images that were asked about again.
    """
    manifest, file = f"{record.folder}/manifest.json", f"{record.folder}/candidates.parquet"
    if "candidates.parquet" not in record.files:
        yield Finding(record.round, manifest, "names no candidates.parquet")
        return
    if not (data / file).is_file():  # `check_files` names it
        return
    try:
        path = data / file
        derived = (
            _derive(path, record, taken_in, again) if record.version > 1 else derive_earlier(path, record, taken_in)
        )
    except UNREADABLE as error:
        yield Finding(record.round, file, f"the picks cannot be derived from it: {one_line(error)}")
        return
    for column, odd in derived.odd.items():
        what = f"the {column} of {few(pd.Series(odd))} does not follow from its other columns{_other_code(record)}"
        yield Finding(record.round, file, what)
    if derived.wrong:
        yield Finding(record.round, manifest, "; ".join(derived.wrong))
    if recorded is not None:
        yield from _check_order(data, record, derived.best, recorded, any_labeled=len(taken_in.labeled) > 0)


# -- rounds that record what their scores take ----------------------------------------------------------------------


def _derive(path: Path, record: Record, taken_in: Pools, again: int) -> Derived:
    """The strategy run again on what is recorded, or what can be said of the scores where too little is."""
    said, settings, strategy, terms = read_statements(record, taken_in.classes)
    derived = Derived(record_of(strategy).rounding(settings))
    run_again = record_of(strategy).derivable
    table = CandidatesTable(path, record, taken_in.classes, derived, margins=not run_again)
    picker = picker_of(said)
    for part in table.checked_parts():
        picker.add(part)
    derived.wrong += wrong_terms(terms, settings, strategy, taken_in)
    if not picker.candidates:
        return derived
    seed, beside = derive_seed(settings.seed, record.round, "selection"), len(draw_of(record, taken_in)) + again
    asked = {"budget": settings.selection.budget - beside, "seed": seed}
    if run_again:
        labeled = _labeled(path.parent, strategy, taken_in)
        asked |= _run_again(table, strategy, settings, terms, labeled, seed, asked["budget"])
    else:
        asked |= _what_else(table, strategy, settings, terms, seed, beside)
    derived.wrong += not_so(said, asked)
    derived.best = picker.picks()
    return derived


def _run_again(
    table: CandidatesTable,
    strategy: Strategy,
    settings: Params,
    terms: ClassTerms | None,
    labeled: Labeled,
    seed: int,
    budget: int,
) -> dict[str, Any]:
    """Compares every candidate's columns with those of a new selection; what that says of itself."""
    derived = table.derived

    def compare(part: Candidates) -> None:
        derived.compare(table.waiting.popleft(), part)

    context = Context(
        shards=table.shards,
        settings=settings,
        seed=seed,
        class_terms=None if terms is None else replace(terms, moments=None),
        labeled=labeled,
        write=compare,
        listed=_listed(table.path.parent),
        searches=not rule_named((table.record.selection or {})["rule"]).searches,  # what is wrapped finds its order so
    )
    selection = strategy.select(context, budget)
    if table.waiting:
        raise ValueError("not every candidate was scored again")
    derived.wrong += wrong_moments(terms, selection.class_terms)
    said = {"rule": selection.rule, "beta": selection.beta}
    if rule_named(selection.rule).searches:  # `_check_order` looks at the list, and searches it
        return said
    if selection.shortlist is None:
        return said | {"shortlist": None}
    # How many are listed for each pick was the code's constant of then, and shows in the file.
    listed = len(tables.read_shortlist(table.path.parent / "shortlist.parquet").sample_ids)
    told = (table.record.selection or {})["shortlist"] * budget
    if listed != min(told, selection.candidates):
        raise ValueError(f"the manifest's selection has shortlist {told}, shortlist.parquet has {listed} rows")
    return said


def _listed(folder: Path) -> Callable[[NDArray[Any]], Listed]:
    """A shortlist as recorded; zeros for samples that are not on it, which lead to other picks."""
    try:
        ids, features_N_D, distance_N = tables.read_shortlist(folder / "shortlist.parquet")
    except UNREADABLE:  # `_check_order` names it
        ids, features_N_D, distance_N = [], np.zeros((0, 1), dtype=np.float32), None
    row_of = {sample_id: row for row, sample_id in enumerate(ids)}
    with_none = np.vstack([features_N_D, np.zeros((1, features_N_D.shape[1]), dtype=np.float32)])
    distance_with_none = None if distance_N is None else np.append(distance_N, np.float32(0))

    def seen(sample_ids: NDArray[Any]) -> Listed:
        rows = [row_of.get(str(sample_id), -1) for sample_id in sample_ids]
        return Listed(with_none[rows], None if distance_with_none is None else distance_with_none[rows])

    return seen


def _labeled(folder: Path, strategy: Strategy, taken_in: Pools) -> Labeled:
    """The labelled pool of then; with what the classifier said of it, where the strategy looks at that."""
    label_of = dict(zip(taken_in.labeled["sample_id"], taken_in.labeled["label"], strict=True))
    ids, logits_N_C = list(label_of), None
    if record_of(strategy).labeled_inputs:
        ids, logits_N_C = tables.read_labeled(folder / "labeled.parquet")
        if sorted(ids) != sorted(label_of):
            raise ValueError("labeled.parquet does not hold the labelled samples of then")
    labels_N = pd.Index(taken_in.classes).get_indexer(pd.Index([label_of[name] for name in ids], dtype=object))
    nothing_N_D = np.zeros((len(ids), 0), dtype=np.float32)
    return Labeled(nothing_N_D, labels_N, np.array(ids, dtype=object), logits_N_C)


def _what_else(
    table: CandidatesTable, strategy: Strategy, settings: Params, terms: ClassTerms | None, seed: int, beside: int
) -> dict[str, Any]:
    """Of scores that do not follow from the record: what the classifier says, and that they are scores of a search."""
    record = record_of(strategy)
    scores = []
    for part in table.parts():
        again = part if "logits_N_C" not in record.inputs else _predicted(part, record.inputs)
        score_N = strategy.rescore(part, class_terms=terms, settings=settings, seed=seed)
        table.derived.compare(part, again if score_N is None else replace(again, score_N=score_N))
        scores.append(part.score_N)
    falling_N = np.sort(np.concatenate(scores))[::-1]
    expected_N = record.scores_are(len(falling_N), settings.selection.budget - beside)
    if expected_N is not None and not np.allclose(falling_N, expected_N, rtol=1e-9, atol=1e-9):
        raise ValueError("its scores are not the places of a search")
    return asked_for(strategy, settings, beside) | ({"shortlist": None} if record.inputs else {})


def _predicted(part: Candidates, inputs: tuple[str, ...]) -> Candidates:
    shard = shard_of(part)
    return recording(with_prediction(shard, part.score_N), shard, inputs)


# -- the order of the picks -----------------------------------------------------------------------------------------


def _check_order(
    data: Path, record: Record, best: Candidates | None, recorded: Sequence[str], *, any_labeled: bool
) -> Iterator[Finding]:
    """The recorded picks are those that follow from the best candidates, in their order."""
    if "shortlist.parquet" in record.files and not (data / record.folder / "shortlist.parquet").is_file():
        return  # `check_files` names it
    try:
        picks = _follow(data / record.folder, record, best, recorded, any_labeled=any_labeled)
    except UNREADABLE as error:
        yield Finding(record.round, f"{record.folder}/shortlist.parquet", one_line(error))
        return
    if picks != list(recorded):
        changed = sorted(set(picks).symmetric_difference(recorded))
        which = f"differ in {few(pd.Series(changed))}" if changed else "stand in another order"
        what = f"its picks are not those that follow from the candidates: they {which}"
        yield Finding(record.round, f"{record.folder}/selection.parquet", what)


def _follow(
    folder: Path, record: Record, best: Candidates | None, recorded: Sequence[str], *, any_labeled: bool
) -> list[str]:
    """The picks that follow from the best candidates; the recorded ones, where only rounding could lead to others.

    Raises ValueError if the shortlist of a batch that was searched does not hold the best candidates, or what its rule
    looks at.
    """
    if best is None or record.selection is None:
        return []
    said, features_N_D, distance_N = record.selection, None, None
    rule = rule_named(said["rule"])
    if rule.searches:
        ids, features_N_D, distance_N = tables.read_shortlist(folder / "shortlist.parquet")
        if ids != [str(sample_id) for sample_id in best.sample_ids]:
            raise ValueError("does not hold the candidates with the highest scores, the highest first")
        if rule.looks_at_labels != (distance_N is not None):
            raise ValueError(f"its columns are not those of the rule {rule.name}")
        if distance_N is not None and np.isfinite(distance_N).any() != any_labeled:
            raise ValueError(f"labeled_distance: {'infinite' if any_labeled else 'finite'}, against the labelled pool")
    return rule.follow(best, features_N_D, recorded, said["budget"], said["beta"], distance_N)


def _other_code(record: Record) -> str:
    here = code_version()
    return "" if record.code == here else f" (made by {record.code}, checked by {here})"
