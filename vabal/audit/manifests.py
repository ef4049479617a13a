"""Is what a manifest says of its round so? Every statement against the others, the pools and the predictions."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.learning.metrics import classification_metrics
from vabal.pools import IntakeReport, Pools
from vabal.rounds import FIRST_VERSION, MANIFEST_VERSION, tables
from vabal.rounds.manifests import ModelRecord

_CODE = re.compile(r"[^\s+]+\+[0-9a-f]{12}")
_RUN = re.compile(r"[0-9a-f]{32}")
_FLOW_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_manifests(records: Sequence[Record]) -> Iterator[Finding]:
    """What a manifest says against itself and the one before it."""
    previous: Record | None = None
    for record in records:
        wrong = [*_wrong_form(record), *_wrong_names(record)]
        if record.round:
            wrong += [*_wrong_origin(record), *_wrong_times(record, previous)]
        if previous is not None:
            wrong += _wrong_after(record, previous)
        if wrong:
            yield Finding(record.round, record.file, "; ".join(wrong))
        previous = record


def _wrong_form(record: Record) -> Iterator[str]:
    if not record.canonical:
        yield "its bytes are not canonical JSON"
    if not FIRST_VERSION <= record.version <= MANIFEST_VERSION:
        yield f"version {record.version} is none that this package knows"
    if record.unknown:
        yield f"unknown keys {', '.join(record.unknown)}"
    if record.lacking:
        yield f"it lacks {', '.join(record.lacking)}"


def _wrong_names(record: Record) -> Iterator[str]:
    """Strategy and seed stand twice."""
    if record.seed != record.settings.get("seed", record.seed):
        yield "seed is not that of the settings"
    if not record.round:
        if record.strategy != "initial":
            yield f"strategy {record.strategy}, where the first round has initial"
        trained = ("code", "class_terms", "selection", "intake", "model", "mlflow_run", "prefect_flow_run")
        for name in (*trained, "metrics", "times", "environment"):
            if getattr(record, name) is not None:
                yield f"{name} stands there, though nothing was trained yet"
        return
    chosen = record.settings.get("selection")
    if isinstance(chosen, dict) and chosen.get("strategy", record.strategy) != record.strategy:
        yield f"strategy {record.strategy} is not the settings' {chosen.get('strategy')}"


def _wrong_origin(record: Record) -> Iterator[str]:
    """Code, model, runs and packages, as far as their form tells. Earlier versions may have said less."""
    if record.version == FIRST_VERSION:
        return
    for name, pattern in (("code", _CODE), ("mlflow_run", _RUN), ("prefect_flow_run", _FLOW_RUN)):
        value = getattr(record, name)
        if value is None and name == "prefect_flow_run":
            continue
        if value is None or not pattern.fullmatch(value):
            yield f"{name} {value!r} is none"
    if not _is_whole(record.model):
        yield "model is no name, version and sha256"
    packages = record.environment or {}
    if not (set(packages) >= _PACKAGES and all(packages.values())):
        yield "environment does not name the versions of the packages"
    if set(record.files) != _files_of(record):
        yield f"files are {', '.join(sorted(record.files))}, not {', '.join(sorted(_files_of(record)))}"


_PACKAGES = {"torch", "numpy", "pandas", "pyarrow", "scikit-learn", "python", "machine"}


def _is_whole(model: ModelRecord | None) -> bool:
    if model is None or not (model.name and model.version and model.sha256):
        return False
    return model.version.isdecimal() and bool(_SHA256.fullmatch(model.sha256))


def _files_of(record: Record) -> set[str]:
    from vabal import strategies  # noqa: PLC0415 -- loads torch

    files = {tables.SELECTION_FILE, tables.CANDIDATES_FILE, tables.PREDICTIONS_FILE}
    if record.selection is not None and record.selection.get("shortlist") is not None:
        files.add(tables.SHORTLIST_FILE)
    try:
        looks = getattr(strategies.get(record.strategy), "labeled_inputs", False)
    except UNREADABLE:  # a strategy that is not installed here, which the derivation of its picks names
        looks = tables.LABELED_FILE in record.files
    # Whether they should be there, `check_control`, `check_drift` and `check_again` look at.
    files |= {tables.CONTROL_FILE, tables.DRIFT_FILE, tables.HELD_OUT_FILE} & set(record.files)
    return files | {tables.LABELED_FILE} if looks else files


def _wrong_times(record: Record, previous: Record | None) -> Iterator[str]:
    if record.times is None:
        if record.version > FIRST_VERSION:
            yield "times are not there"
        return
    try:
        started, finished = (datetime.fromisoformat(time) for time in (record.times.started, record.times.finished))
        before = previous.times if previous is not None else None
        ended = None if before is None else datetime.fromisoformat(before.finished)
        if started > finished:
            yield "times: it finished before it started"
        if record.version > FIRST_VERSION and ended is not None and started < ended:
            yield "times: it started before the round before it finished"
    except UNREADABLE as error:
        yield f"times cannot be read: {one_line(error)}"


def _wrong_after(record: Record, previous: Record) -> Iterator[str]:
    if record.version < previous.version:
        yield f"version {record.version} follows version {previous.version}"
    if record.version > FIRST_VERSION:
        for name in sorted(set(record.tables) & set(previous.tables)):
            pool = name.partition(".")[0]
            same = record.pools_after.get(pool) == previous.pools_after.get(pool)
            if same != (record.tables[name] == previous.tables[name]):
                yield f"tables: {name} changed and its pool did not, or the other way round"
    one, other = previous.model, record.model
    if one and other and _is_whole(one) and _is_whole(other) and one.name == other.name:
        earlier, later = int(one.version or 0), int(other.version or 0)
        if later <= earlier and later != 1:  # a registry that was set up anew counts from 1 again
            yield f"model version {later} follows version {earlier}"


# -- intake -------------------------------------------------------------------------------------------------------


def check_intake(record: Record, images: int, events: int, came: IntakeReport) -> Iterator[Finding]:
    """What came in, as counted then, against the images and label events that the round added.

    Labels of samples that the catalog did not know enter no table: of these only their number can be bounded.
    """
    if not record.round or (record.intake is None and record.version == FIRST_VERSION):
        return
    said = record.intake or {}
    counted = {"images": images, **{name: getattr(came, name) for name in _COUNTED}}
    wrong = []
    try:
        wrong = [f"{name} {said[name]}, counted {value}" for name, value in counted.items() if said[name] != value]
        if said.get("outdated", 0) != came.outdated:  # earlier versions did not count them: there were none
            wrong.append(f"outdated {said.get('outdated', 0)}, counted {came.outdated}")
        strange = said["received"] - events
        if strange < said["unknown"] or (strange > 0) != (said["unknown"] > 0) or said["duplicates"] < 0:
            wrong.append(f"{said['received']} labels received, {said['unknown']} of them unknown, {events} taken in")
    except UNREADABLE as error:
        wrong.append(one_line(error))
    if wrong:
        yield Finding(record.round, record.file, f"wrong intake: {'; '.join(wrong)}")


_COUNTED = ("new", "repeated", "corrected", "rejected")


# -- predictions ---------------------------------------------------------------------------------------------------


def check_predictions(data: Path, record: Record, taken_in: Pools) -> Iterator[Finding]:
    """The predictions are of the holdout as it was then, and the manifest's metrics are theirs."""
    file = f"{record.folder}/{tables.PREDICTIONS_FILE}"
    if not record.round or not (data / file).is_file():  # `check_files` names it
        return
    try:
        table = tables.read_predictions(data / file)
        odd, measured = _measure(table, taken_in)
    except UNREADABLE as error:
        yield Finding(record.round, file, f"cannot be read: {one_line(error)}")
        return
    yield from (Finding(record.round, file, what) for what in odd)
    if measured is not None:
        yield from _check_metrics(record, measured)


def _measure(table: pd.DataFrame, taken_in: Pools) -> tuple[list[str], dict[str, float] | None]:
    """What is wrong with the table; and what it comes to, where it can be measured."""
    names = tables.PREDICTIONS.names
    if list(table.columns) != names:
        return [f"its columns are not {', '.join(names)}"], None
    holdout = taken_in.holdout.dropna(subset=["label"]).sort_values("sample_id", ignore_index=True)
    if table["sample_id"].tolist() != holdout["sample_id"].tolist():
        other = set(table["sample_id"].astype(str)) ^ set(holdout["sample_id"])
        return [f"does not hold the holdout's labelled samples of then: {few(pd.Series(sorted(other)))}"], None
    odd = []
    wrong_N = table["label"].to_numpy(dtype=object) != holdout["label"].to_numpy(dtype=object)
    if wrong_N.any():
        odd.append(f"another label than the holdout had then: {few(table.loc[wrong_N, 'sample_id'])}")
    if table.empty:
        return odd, {}
    probabilities_N_C = np.stack([np.asarray(row, dtype=np.float32) for row in table["probabilities"]])
    classes = np.array(taken_in.classes, dtype=object)
    if probabilities_N_C.shape[1] != len(classes):
        return [*odd, "probabilities: not one a class"], None
    predicted_N = classes[probabilities_N_C.argmax(axis=1)]
    wrong_N = table["predicted_class"].to_numpy(dtype=object) != predicted_N
    if wrong_N.any():
        odd.append(f"predicted_class is not the most probable one: {few(table.loc[wrong_N, 'sample_id'])}")
    total_N = probabilities_N_C.sum(axis=1, dtype=np.float64)
    wrong_N = ~(np.abs(total_N - 1) < _SUM) | (probabilities_N_C < 0).any(axis=1)
    if wrong_N.any():
        odd.append(f"probabilities that do not add up to 1: {few(table.loc[wrong_N, 'sample_id'])}")
    labels_N = pd.Index(classes).get_indexer(pd.Index(holdout["label"].astype(object)))
    return odd, classification_metrics(labels_N, probabilities_N_C, taken_in.classes)


_SUM = 1e-5  # float32 probabilities of many classes


def _check_metrics(record: Record, measured: Mapping[str, float]) -> Iterator[Finding]:
    said = record.metrics or {}
    if record.version == FIRST_VERSION and not said:
        return
    expected = {f"holdout/{name}": value for name, value in measured.items()}
    names = set(expected) | set(said) if record.version > FIRST_VERSION else set(expected) & set(said)
    wrong = [name for name in sorted(names) if not _same(said.get(name), expected.get(name))]
    if wrong:
        told = ", ".join(f"{name} {said.get(name)}, not {expected.get(name)}" for name in wrong[:3])
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        what = f"metrics are not those of {tables.PREDICTIONS_FILE}: {told}{more}"
        yield Finding(record.round, record.file, what)


def _same(value: Any, other: Any) -> bool:
    return (
        isinstance(value, int | float)
        and isinstance(other, int | float)
        and bool(np.isclose(value, other, 1e-9, 1e-12))
    )
