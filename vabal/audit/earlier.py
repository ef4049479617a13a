"""Rounds of earlier versions: what of their scores follows from the columns that they recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq

from vabal.audit.findings import Record
from vabal.audit.recorded import CandidatesTable, Derived, asked_for, not_so, picker_of, read_statements
from vabal.pools import Pools
from vabal.probabilities import ClassTerms
from vabal.strategies import Candidates, margin, record_of
from vabal.strategies.candidates import class_columns

ROUNDED: Final = 2e-7  # what float32 posteriors leave open of a margin that was computed from float64 ones


def derive_earlier(path: Path, record: Record, taken_in: Pools) -> Derived:
    """Scores by `rescore`, where it can; and the columns that follow from others, where these are there."""
    said, settings, strategy, terms = read_statements(record, taken_in.classes)
    derived, picker = Derived(), picker_of(said)
    table = CandidatesTable(path, record, taken_in.classes, derived)
    names = pq.ParquetFile(path).schema_arrow.names
    follow = record_of(strategy).scores_follow(names, settings)
    if "logits" in names:
        raise ValueError("a table of version 2 beside a manifest of version 1")
    for part in table.checked_parts():
        again = _terms_of(part, terms) if "own_class" in names else part
        rescored = None
        if follow:
            rescored = strategy.rescore(part, class_terms=terms, settings=settings, seed=said["seed"])
        derived.compare(part, again if rescored is None else replace(again, score_N=rescored), margins=ROUNDED)
        picker.add(part)
    if picker.candidates:
        if follow:
            derived.wrong += not_so(said, asked_for(strategy, settings))
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
    largest = told >= posterior_N_C.max(axis=1) - ROUNDED
    predicted_N = np.where(largest, part.predicted_class_N, posterior_N_C.argmax(axis=1)).astype(np.int32)
    return replace(part, predicted_class_N=predicted_N, own_class_N=predicted_N, margin_N=margin(posterior_N_C))
