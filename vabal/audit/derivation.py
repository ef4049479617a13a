"""Do a round's scores and picks follow from what it recorded? Both derived again, candidate by candidate.

Rounds whose manifest has version 2 record what the score takes: the strategy is run again on that, and must come to the
same columns. Of earlier rounds the scores are computed again as far as their columns allow.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vabal import strategies
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.pools import AVAILABLE, Pools
from vabal.probabilities import ClassTerms
from vabal.rounds import derive_seed, tables
from vabal.rounds.stage_store import code_version
from vabal.settings.models import Params
from vabal.settings.params import parse
from vabal.strategies import Candidates, Context, Labeled, Shard
from vabal.strategies.bald import with_prediction
from vabal.strategies.base import margin, needs_of, recording
from vabal.strategies.candidates import class_columns
from vabal.strategies.spread import departures, spread

_ROWS_AT_ONCE = 2**16
_ROUNDED = 2e-7  # what float32 posteriors leave open of a margin that was computed from float64 ones


def check_round(data: Path, record: Record, taken_in: Pools, recorded: Sequence[str] | None) -> Iterator[Finding]:
    """A round's scores and picks, derived again from its candidates, settings, class terms and seed.

    `taken_in` are the pools that it picked from, `recorded` its picks in their order, None if they cannot be read.
    """
    manifest, file = f"{record.folder}/manifest.json", f"{record.folder}/candidates.parquet"
    if "candidates.parquet" not in record.files:
        yield Finding(record.round, manifest, "names no candidates.parquet")
        return
    if not (data / file).is_file():  # `check_files` names it
        return
    try:
        derived = (_derive if record.version > 1 else _derive_earlier)(data / file, record, taken_in)
    except UNREADABLE as error:
        yield Finding(record.round, file, f"the picks cannot be derived from it: {one_line(error)}")
        return
    for column, odd in derived.odd.items():
        what = f"the {column} of {few(pd.Series(odd))} does not follow from its other columns{_other_code(record)}"
        yield Finding(record.round, file, what)
    if derived.wrong:
        yield Finding(record.round, manifest, "; ".join(derived.wrong))
    if recorded is not None:
        yield from _check_order(data, record, derived.best, recorded)


@dataclass
class _Derived:
    """What the derivation came to: columns with the samples whose value does not follow, statements of the manifest
    that are not so, and the best candidates by the recorded scores, in order: the picks, or with the rule `spread`
    those among which the picks were searched."""

    odd: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    best: Candidates | None = None

    def compare(self, recorded: Candidates, derived: Candidates, *, margins: float = 1e-9) -> None:
        """Column by column; another processor may round the last bit of an exponential otherwise."""
        for column in fields(Candidates)[1:]:
            absolute = {"score_N": 1e-9, "margin_N": margins}.get(column.name, 0.0)
            name = column.name.partition("_N")[0]
            self.note(name, recorded, _apart(getattr(recorded, column.name), getattr(derived, column.name), absolute))

    def note(self, column: str, recorded: Candidates, wrong_N: NDArray[np.bool_] | bool) -> None:
        wrong = recorded.sample_ids[np.broadcast_to(wrong_N, len(recorded))]
        if len(wrong):
            self.odd.setdefault(column, []).extend(str(sample_id) for sample_id in wrong)


def _apart(values: Any, others: Any, absolute: float) -> NDArray[np.bool_] | bool:
    if values is None or others is None:
        return (values is None) != (others is None)
    if np.shape(values) != np.shape(others):
        return True
    apart: NDArray[np.bool_] = ~np.isclose(values, others, rtol=1e-9, atol=absolute)
    return np.asarray(apart if apart.ndim == 1 else apart.any(axis=1))


class _Table:
    """The recorded candidates, part by part; what a pass over them handed out last waits to be compared."""

    def __init__(self, path: Path, record: Record, classes: Sequence[str], derived: _Derived) -> None:
        self.path, self.record, self.classes, self.derived = path, record, classes, derived
        self.waiting: deque[Candidates] = deque()
        names = pq.ParquetFile(path).schema_arrow.names
        if record.version > 1 and names != tables.CANDIDATES.names:
            odd = sorted(set(names).symmetric_difference(tables.CANDIDATES.names)) or ["their order"]
            raise ValueError(f"its columns are not those of a candidates' table: {', '.join(odd)}")

    def parts(self) -> Iterator[Candidates]:
        for batch in pq.ParquetFile(self.path).iter_batches(batch_size=_ROWS_AT_ONCE):
            batch.validate(full=True)
            yield Candidates.from_table(batch, self.classes)

    def checked_parts(self) -> Iterator[Candidates]:
        """The same, with those columns looked at that stand in no `Candidates`."""
        for batch in pq.ParquetFile(self.path).iter_batches(batch_size=_ROWS_AT_ONCE):
            batch.validate(full=True)
            part = Candidates.from_table(batch, self.classes)
            partly = [name for name in batch.schema.names if 0 < batch.column(name).null_count < len(batch)]
            if set(partly) - {"rank"}:
                raise ValueError(f"{partly[-1]}: empty for some candidates")
            others = pc.fill_null(pc.not_equal(batch.column("strategy"), pa.scalar(self.record.strategy)), True)
            self.derived.note("strategy", part, others.to_numpy(zero_copy_only=False))
            told = batch.column("log_likelihood")
            values = None if told.null_count else told.to_numpy(zero_copy_only=False)
            self.derived.note("log_likelihood", part, _apart(values, part.log_likelihood_N, 0.0))
            yield part

    def shards(self) -> Iterator[Shard]:
        """A pass over what the strategy saw of the candidates."""
        self.waiting.clear()
        for part in self.parts():
            self.waiting.append(part)
            yield _shard(part)


def _shard(part: Candidates) -> Shard:
    """What the strategy saw, as far as it is recorded; an ensemble's posteriors may be recorded as float32."""
    predictive_N_C = part.posterior_N_C if part.predictive_N_C is None else part.predictive_N_C
    return Shard(
        part.sample_ids,
        logits_N_C=part.logits_N_C,
        log_likelihood_N_C=part.log_likelihood_N_C,
        vae_class_N=part.vae_class_N,
        predictive_N_C=predictive_N_C,
        expected_entropy_N=part.expected_entropy_N,
        votes_N_C=part.votes_N_C,
        predicted_loss_N=part.predicted_loss_N,
    )


# -- rounds that record what their scores take ----------------------------------------------------------------------


def _derive(path: Path, record: Record, taken_in: Pools) -> _Derived:
    """The strategy run again on what is recorded, or what can be said of the scores where too little is."""
    said, settings, strategy, terms = _read(record, taken_in.classes)
    derived = _Derived()
    table = _Table(path, record, taken_in.classes, derived)
    picker = _picker(said)
    for part in table.checked_parts():
        picker.add(part)
    derived.wrong += _wrong_terms(terms, settings, strategy, taken_in)
    if not picker.candidates:
        return derived
    seed = derive_seed(settings.seed, record.round, "selection")
    again = {"budget": settings.selection.budget, "seed": seed}
    if getattr(strategy, "derivable", False):
        again |= _run_again(table, strategy, settings, terms, _labeled(path.parent, strategy, taken_in), seed)
    else:
        again |= _what_else(table, strategy, settings, terms, seed)
    derived.wrong += _not_so(said, again)
    derived.best = picker.picks()
    return derived


def _read(record: Record, classes: Sequence[str]) -> tuple[Mapping[str, Any], Params, Any, ClassTerms | None]:
    if record.selection is None:
        raise ValueError("the manifest does not say by which rule")
    settings = parse(record.settings, where="settings of the manifest")
    terms = None if record.class_terms is None else ClassTerms.from_json(record.class_terms)
    if terms is not None and {len(terms.log_prior_C), len(terms.log_precision_C)} != {len(classes)}:
        raise ValueError("the manifest's class terms are not those of the classes")
    return record.selection, settings, strategies.get(record.strategy), terms


def _not_so(said: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    return [
        f"the manifest's selection has {name} {said[name]}, its settings ask for {value}"
        for name, value in asked.items()
        if said[name] != value
    ]


def _picker(said: Mapping[str, Any]) -> strategies.Picker:
    if said["rule"] == "spread":
        return strategies.Picker(said["shortlist"] * said["budget"], "topk", seed=said["seed"])
    return strategies.Picker(said["budget"], said["rule"], said["beta"], said["seed"])


def _run_again(
    table: _Table, strategy: Any, settings: Params, terms: ClassTerms | None, labeled: Labeled, seed: int
) -> dict[str, Any]:
    """Compares every candidate's columns with those of a new selection; what that says of itself."""
    derived = table.derived

    def compare(part: Candidates) -> None:
        recorded = table.waiting.popleft()
        derived.compare(recorded, part)

    context = Context(
        shards=table.shards,
        settings=settings,
        seed=seed,
        class_terms=None if terms is None else replace(terms, moments=None),
        labeled=labeled,
        write=compare,
        features_of=_listed(table.path.parent),
    )
    selection = strategy.select(context, settings.selection.budget)
    if table.waiting:
        raise ValueError("not every candidate was scored again")
    derived.wrong += _wrong_moments(terms, selection.class_terms)
    said = {"rule": selection.rule, "beta": selection.beta}
    if selection.shortlist is None:
        return said | {"shortlist": None}
    if selection.rule == "spread":  # `_check_order` looks at the list
        return said
    # How many are listed for each pick was the code's constant of then, and shows in the file.
    listed = len(tables.read_shortlist(table.path.parent / "shortlist.parquet")[0])
    told = (table.record.selection or {})["shortlist"] * settings.selection.budget
    if listed != min(told, selection.candidates):
        raise ValueError(f"the manifest's selection has shortlist {told}, shortlist.parquet has {listed} rows")
    return said


def _listed(folder: Path) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """The features of a shortlist as recorded; zeros for samples that are not on it, which lead to other picks."""
    try:
        ids, features_N_D = tables.read_shortlist(folder / "shortlist.parquet")
    except UNREADABLE:  # `_check_order` names it
        ids, features_N_D = [], np.zeros((0, 1), dtype=np.float32)
    row_of = {sample_id: row for row, sample_id in enumerate(ids)}
    with_none = np.vstack([features_N_D, np.zeros((1, features_N_D.shape[1]), dtype=np.float32)])
    return lambda sample_ids: with_none[[row_of.get(str(sample_id), -1) for sample_id in sample_ids]]


def _labeled(folder: Path, strategy: Any, taken_in: Pools) -> Labeled:
    """The labelled pool of then; with what the classifier said of it, where the strategy looks at that."""
    label_of = dict(zip(taken_in.labeled["sample_id"], taken_in.labeled["label"], strict=True))
    ids, logits_N_C = list(label_of), None
    if getattr(strategy, "labeled_inputs", False):
        ids, logits_N_C = tables.read_labeled(folder / "labeled.parquet")
        if sorted(ids) != sorted(label_of):
            raise ValueError("labeled.parquet does not hold the labelled samples of then")
    labels_N = pd.Index(taken_in.classes).get_indexer(pd.Index([label_of[name] for name in ids], dtype=object))
    nothing_N_D = np.zeros((len(ids), 0), dtype=np.float32)
    return Labeled(nothing_N_D, labels_N, np.array(ids, dtype=object), logits_N_C)


def _what_else(table: _Table, strategy: Any, settings: Params, terms: ClassTerms | None, seed: int) -> dict[str, Any]:
    """Of scores that do not follow from the record: what the classifier says, and that they are scores of a search."""
    inputs = tuple(getattr(strategy, "inputs", ()))
    scores = []
    for part in table.parts():
        again = part if "logits_N_C" not in inputs else _predicted(part, inputs)
        score_N = strategy.rescore(part, class_terms=terms, settings=settings, seed=seed)
        table.derived.compare(part, again if score_N is None else replace(again, score_N=score_N))
        scores.append(part.score_N)
    falling_N = np.sort(np.concatenate(scores))[::-1]
    budget, expected = settings.selection.budget, getattr(strategy, "scores_are", None)
    expected_N = None if expected is None else expected(len(falling_N), budget)
    if expected_N is not None and not np.allclose(falling_N, expected_N, rtol=1e-9, atol=1e-9):
        raise ValueError("its scores are not the places of a search")
    if not inputs:  # a plug-in says of its rule what it likes
        return _asked(strategy, settings)
    rule, beta = getattr(strategy, "rule", "topk"), getattr(strategy, "beta", 1.0)
    return {
        "rule": rule(settings) if callable(rule) else rule,
        "beta": beta(settings) if callable(beta) else beta,
        "shortlist": None,
    }


def _predicted(part: Candidates, inputs: tuple[str, ...]) -> Candidates:
    shard = _shard(part)
    return recording(with_prediction(shard, part.score_N), shard, inputs)


# -- class terms ----------------------------------------------------------------------------------------------------


def _wrong_terms(terms: ClassTerms | None, settings: Params, strategy: Any, taken_in: Pools) -> list[str]:
    """What Eqs. 11 and 12 cannot have come to, with so many samples, draws and so much smoothing."""
    nothing_left = not (taken_in.unlabeled["status"] == AVAILABLE).any()
    needed = needs_of(strategy, settings).vae and not nothing_left
    if terms is None or not needed:
        return [] if (terms is None) != needed else ["class_terms are there where none are needed, or missing"]
    prior_C, precision_C = terms.prior_C, terms.precision_C
    wrong = [] if abs(prior_C.sum() - 1) < _SUM else ["class_terms: the priors do not add up to 1"]
    if not ((precision_C > 0) & (precision_C <= 1 + _SUM)).all():
        wrong.append("class_terms: a precision does not lie between 0 and 1")
    chosen, classes = settings.probabilities, len(prior_C)
    pool = taken_in.labeled if chosen.prior_pool == "labeled" else taken_in.unlabeled
    draws = max(chosen.draws, _CLASS_DRAWS) if chosen.sampling == "anchored" else chosen.draws
    predicted_C = prior_C * (len(pool) + classes * chosen.smoothing) - chosen.smoothing  # Eq. 12
    if not _are_counts(predicted_C * draws):
        wrong.append(f"class_terms: no prior of a count over {len(pool)} samples")
    if chosen.prior_pool == "labeled" and chosen.precision_from == "vae":
        correct_C = precision_C * (predicted_C + classes * chosen.smoothing) - chosen.smoothing  # Eq. 11
        if not _are_counts(correct_C * draws) or (correct_C > predicted_C + _SUM).any():
            wrong.append(f"class_terms: no precision of a count over {len(pool)} samples")
    return wrong


def _are_counts(values_C: NDArray[np.float64]) -> bool:
    room_C = 1e-9 * np.maximum(np.abs(values_C), 1e3)  # what the logarithm and back leave of a whole number
    return bool((np.abs(values_C - np.round(values_C)) <= room_C).all() and (values_C > -room_C).all())


_SUM = 1e-9
_CLASS_DRAWS = 100  # probabilities.CLASS_DRAWS, as it was in every version


def _wrong_moments(terms: ClassTerms | None, again: ClassTerms | None) -> list[str]:
    one = None if terms is None else terms.moments
    other = None if again is None else again.moments
    if one is None or other is None:
        return [] if one is other else ["class_terms: moments of the pool where none are needed, or none"]
    values, others = (np.hstack([getattr(each, part.name) for part in fields(each)]) for each in (one, other))
    same = values.shape == others.shape and np.allclose(values, others, rtol=1e-7, atol=0)
    return [] if same else ["class_terms: the moments are not those of the candidates"]


# -- rounds of earlier versions -------------------------------------------------------------------------------------


def _derive_earlier(path: Path, record: Record, taken_in: Pools) -> _Derived:
    """Scores by `rescore`, where it can; and the columns that follow from others, where these are there."""
    said, settings, strategy, terms = _read(record, taken_in.classes)
    derived, picker = _Derived(), _picker(said)
    table = _Table(path, record, taken_in.classes, derived)
    names = pq.ParquetFile(path).schema_arrow.names
    # Tables without posteriors are of versions whose spread batches had places for scores.
    earlier = "posteriors" not in names and record.strategy == "vabal"
    earlier = earlier and (settings.selection.batch == "spread" or settings.probabilities.classes == "posterior")
    if "logits" in names:
        raise ValueError("a table of version 2 beside a manifest of version 1")
    for part in table.checked_parts():
        again = _terms_of(part, terms) if "own_class" in names else part
        rescored = None if earlier else strategy.rescore(part, class_terms=terms, settings=settings, seed=said["seed"])
        derived.compare(part, again if rescored is None else replace(again, score_N=rescored), margins=_ROUNDED)
        picker.add(part)
    if picker.candidates:
        if not earlier:
            derived.wrong += _not_so(said, _asked(strategy, settings))
        derived.best = picker.picks()
    return derived


def _terms_of(part: Candidates, terms: ClassTerms | None) -> Candidates:
    """The candidates with the columns that follow from posteriors, own class and class terms."""
    if part.own_class_N is not None and terms is not None:
        prior_N, precision_N = class_columns(part.own_class_N, terms)
        part = replace(part, prior_N=prior_N, precision_N=precision_N)
    if part.posterior_N_C is None or part.predicted_class_N is None:
        return part
    posterior_N_C = part.posterior_N_C.astype(np.float64)
    told = np.take_along_axis(posterior_N_C, part.predicted_class_N[:, None].astype(np.int64), axis=1)[:, 0]
    largest = told >= posterior_N_C.max(axis=1) - _ROUNDED
    predicted_N = np.where(largest, part.predicted_class_N, posterior_N_C.argmax(axis=1)).astype(np.int32)
    return replace(part, predicted_class_N=predicted_N, own_class_N=predicted_N, margin_N=margin(posterior_N_C))


def _asked(strategy: Any, settings: Params) -> dict[str, Any]:
    """Rule, beta and budget as the settings ask for them."""
    asked: dict[str, Any] = {"budget": settings.selection.budget}
    if callable(getattr(strategy, "rule", None)) and callable(getattr(strategy, "beta", None)):
        asked |= {"rule": strategy.rule(settings), "beta": strategy.beta(settings)}
    return asked


# -- the order of the picks -----------------------------------------------------------------------------------------


def _check_order(data: Path, record: Record, best: Any, recorded: Sequence[str]) -> Iterator[Finding]:
    """The recorded picks are those that follow from the best candidates, in their order."""
    if "shortlist.parquet" in record.files and not (data / record.folder / "shortlist.parquet").is_file():
        return  # `check_files` names it
    try:
        picks = _follow(data / record.folder, record, best, recorded)
    except UNREADABLE as error:
        yield Finding(record.round, f"{record.folder}/shortlist.parquet", one_line(error))
        return
    if picks != recorded:
        changed = sorted(set(picks).symmetric_difference(recorded))
        which = f"differ in {few(pd.Series(changed))}" if changed else "stand in another order"
        what = f"its picks are not those that follow from the candidates: they {which}"
        yield Finding(record.round, f"{record.folder}/selection.parquet", what)


def _follow(folder: Path, record: Record, best: Any, recorded: Sequence[str]) -> Sequence[str]:
    """The picks that follow from the best candidates; the recorded ones, where only rounding could lead to others.

    Raises ValueError if the shortlist of a spread batch does not hold the best candidates.
    """
    if best is None or record.selection is None:
        return []
    best_ids = [str(sample_id) for sample_id in best.sample_ids]
    if record.selection["rule"] != "spread":
        return best_ids
    ids, features_N_D = tables.read_shortlist(folder / "shortlist.parquet")
    if ids != best_ids:
        raise ValueError("does not hold the candidates with the highest scores, the highest first")
    beta, count = record.selection["beta"], min(record.selection["budget"], len(ids))
    row_of = {sample_id: row for row, sample_id in enumerate(ids)}
    rows = np.array([row_of.get(sample_id, -1) for sample_id in recorded], dtype=np.int64)
    if len(rows) == count and (rows >= 0).all() and not departures(best.score_N, features_N_D, rows, beta):
        return recorded
    return [ids[row] for row in spread(best.score_N, features_N_D, count, beta)]


def _other_code(record: Record) -> str:
    here = code_version()
    return "" if record.code == here else f" (made by {record.code}, checked by {here})"
