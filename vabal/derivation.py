"""Do a round's scores and picks follow from what it recorded? Both derived again, candidate by candidate."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from vabal import round_tables, strategies
from vabal.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.params import parse
from vabal.probabilities import ClassTerms
from vabal.progress import track
from vabal.store import code_version
from vabal.strategies.spread import departures, spread


def check_picks(
    data: Path, records: Sequence[Record], selections: Mapping[int, pd.DataFrame], classes: Sequence[str]
) -> Iterator[Finding]:
    """Every round's scores and picks, derived again from its candidates, settings, class terms and seed."""
    for record in track(records, "verify picks", len(records)):
        if record.round == 0:
            continue  # its labels came with the source, or were asked for at random before there was any model
        file = f"{record.folder}/candidates.parquet"
        if "candidates.parquet" not in record.files:
            yield Finding(record.round, f"{record.folder}/manifest.json", "names no candidates.parquet")
        elif (data / file).is_file():  # else `check_files` names it
            try:
                odd, best = _derive(data / file, record, classes)
            except UNREADABLE as error:
                yield Finding(record.round, file, f"the picks cannot be derived from it: {one_line(error)}")
                continue
            if odd:
                what = f"the score of {few(pd.Series(odd))} does not follow from its other columns{_other_code(record)}"
                yield Finding(record.round, file, what)
            if record.round in selections:
                yield from _check_order(data, record, best, list(selections[record.round]["sample_id"]))


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


def _derive(path: Path, record: Record, classes: Sequence[str]) -> tuple[list[str], Any]:
    """Candidates whose score does not follow from what it was computed from; and the best by score, in order.

    Those are the picks, or with the rule `spread` the candidates among which the picks were searched.
    """
    if record.selection is None:
        raise ValueError("the manifest does not say by which rule")
    settings = parse(record.settings, where="settings of the manifest")
    terms = None if record.class_terms is None else ClassTerms.from_json(record.class_terms)
    strategy = strategies.get(record.strategy)
    seed, budget, rule = (record.selection[name] for name in ("seed", "budget", "rule"))
    if rule == "spread":
        picker = strategies.Picker(record.selection["shortlist"] * budget, "topk", seed=seed)
    else:
        picker = strategies.Picker(budget, rule, record.selection["beta"], seed)
    file = pq.ParquetFile(path)
    # Tables without posteriors are of versions whose spread batches had places for scores.
    earlier = "posteriors" not in file.schema_arrow.names and record.strategy == "vabal"
    earlier = earlier and (settings.selection.batch == "spread" or settings.probabilities.classes == "posterior")
    odd: list[str] = []
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
        batch.validate(full=True)
        part = strategies.Candidates.from_table(batch, classes)
        score_N = None if earlier else strategy.rescore(part, class_terms=terms, settings=settings, seed=seed)
        if score_N is not None:
            # Another processor may round the last bit of an exponential otherwise.
            wrong_N = ~np.isclose(part.score_N, score_N, rtol=1e-9, atol=1e-9)
            odd += [str(sample_id) for sample_id in part.sample_ids[wrong_N]]
        picker.add(part)
    if not picker.candidates:
        return odd, None
    if not earlier:
        _same_rule(record.selection, strategy, settings)
    return odd, picker.picks()


def _same_rule(selection: Mapping[str, Any], strategy: Any, settings: Any) -> None:
    """Raises ValueError for picks by another rule, or of another number, than the settings ask for."""
    asked: dict[str, Any] = {"budget": settings.selection.budget}
    if callable(getattr(strategy, "rule", None)) and callable(getattr(strategy, "beta", None)):
        asked |= {"rule": strategy.rule(settings), "beta": strategy.beta(settings)}
    for name, value in asked.items():
        if selection[name] != value:
            raise ValueError(f"the manifest's selection has {name} {selection[name]}, its settings ask for {value}")


def _follow(folder: Path, record: Record, best: Any, recorded: Sequence[str]) -> Sequence[str]:
    """The picks that follow from the best candidates; the recorded ones, where only rounding could lead to others.

    Raises ValueError if the shortlist of a spread batch does not hold the best candidates.
    """
    if best is None or record.selection is None:
        return []
    best_ids = [str(sample_id) for sample_id in best.sample_ids]
    if record.selection["rule"] != "spread":
        return best_ids
    ids, features_N_D = round_tables.read_shortlist(folder / "shortlist.parquet")
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


_ROWS_AT_ONCE = 2**16
