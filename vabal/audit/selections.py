"""The picks and candidates of every round."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vabal import pools, rounds
from vabal.audit.findings import UNREADABLE, Finding, Record, few, one_line
from vabal.pools import Pools
from vabal.pools.columns import strings
from vabal.promotion import record as promotion_record
from vabal.promotion.record import GitWitness
from vabal.rounds import tables

# -- picks --------------------------------------------------------------------------------------------------------


def read_selections(data: Path, records: Sequence[Record]) -> tuple[dict[int, pd.DataFrame], list[Finding]]:
    """Each round's selection, by rank; those that cannot be read are findings."""
    selections: dict[int, pd.DataFrame] = {}
    findings: list[Finding] = []
    for record in records:
        if tables.SELECTION_FILE not in record.files:
            if record.round > 0:
                findings.append(Finding(record.round, record.file, "names no selection.parquet"))
            continue
        file = f"{record.folder}/selection.parquet"
        try:
            table = tables.read_selection(data / file)
            selections[record.round] = table.sort_values("rank")
        except UNREADABLE as error:
            if (data / file).exists():  # else `check_files` names it
                findings.append(Finding(record.round, file, f"cannot be read: {one_line(error)}"))
        else:
            if not table["rank"].is_monotonic_increasing:
                findings.append(Finding(record.round, file, "its rows do not stand in the order of their ranks"))
    return selections, findings


def check_candidates(data: Path, record: Record, taken_in: Pools, selection: pd.DataFrame | None) -> Iterator[Finding]:
    """Every sample that could be picked is a candidate, and the selection says of its picks what the candidates say."""
    file = f"{record.folder}/candidates.parquet"
    if not (data / file).is_file():  # `check_files` names it
        return
    try:
        candidates = _read(data / file, ["rank", *tables.SCORED])
    except UNREADABLE as error:
        yield Finding(record.round, file, f"cannot be read: {one_line(error)}")
        return
    unlabeled = taken_in.unlabeled
    available = unlabeled.loc[unlabeled["status"] == pools.AVAILABLE, "sample_id"]
    # The control arm was drawn before the strategy saw the others.
    nobody: pd.Series[str] = pd.Series([], dtype="str")
    drawn = nobody if selection is None else selection.loc[selection["probability"].notna(), "sample_id"]
    odd = _odd(candidates.column("sample_id"), drawn, available)
    if len(odd):
        what = f"are not the samples that could be picked then: {few(odd)}"
        yield Finding(record.round, file, what)
    if selection is not None:
        picked = candidates.filter(pc.is_valid(candidates.column("rank")))
        names = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in picked.schema]
        picked = picked.cast(pa.schema(list(zip(picked.schema.names, names, strict=True))))
        yield from _check_selection(record, selection, picked.to_pandas())


def _odd(candidates: pa.ChunkedArray, drawn: "pd.Series[str]", available: "pd.Series[str]") -> Any:
    """Samples that are no candidates and should be, or the other way round, or twice; `drawn` ones count as such."""
    expected = strings(available[~pools.among(available, drawn)] if len(drawn) else available).combine_chunks()
    if candidates.cast(pa.large_string()).combine_chunks().equals(expected):
        in_order = pc.all(pc.less(expected[:-1], expected[1:])).as_py()
        if in_order is not False and len(drawn) + len(expected) == len(available):
            return []
    ids = pd.concat([candidates.to_pandas(), drawn], ignore_index=True)
    return pd.concat(
        [ids[~pools.among(ids, available)], available[~pools.among(available, ids)], ids[ids.duplicated()]]
    )


def _check_selection(record: Record, selection: pd.DataFrame, picked: pd.DataFrame) -> Iterator[Finding]:
    file = f"{record.folder}/selection.parquet"
    missing = [name for name in tables.SCORED if name not in selection.columns]
    if missing:
        yield Finding(record.round, file, f"lacks the column {', '.join(missing)}")
        return
    ranks = selection["rank"].tolist()
    if ranks != list(range(1, len(ranks) + 1)):
        yield Finding(record.round, file, "ranks are not 1, 2, 3, ...")
    selection = selection[selection["probability"].isna()]
    picked = picked.sort_values("rank")
    one, other = (
        table[["rank", *tables.SCORED]].astype(object).reset_index(drop=True) for table in (selection, picked)
    )
    if len(one) != len(other):
        yield Finding(record.round, file, f"holds {len(one)} picks, candidates.parquet ranks {len(other)}")
        return
    same = (one == other) | (one.isna() & other.isna())
    odd = one.loc[~same.all(axis=1), "sample_id"]
    if len(odd):
        yield Finding(record.round, file, f"differs from candidates.parquet in {few(odd)}")


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    """Some columns of a round's parquet file. Raises ValueError if one is missing, and what pyarrow raises."""
    file = pq.ParquetFile(path, read_dictionary=tables.OF_FEW_NAMES)
    missing = [name for name in columns if name not in file.schema_arrow.names]
    if missing:
        raise ValueError(f"it lacks the column {', '.join(missing)}")
    table = file.read(columns=list(columns), use_threads=False)
    table.validate(full=True)  # text that is none would stop pandas later
    return table


def check_promotions(data: Path, witness: GitWitness | None = None) -> Iterator[Finding]:
    """The chain of `promotions.jsonl`, which lies beside `data/`; against the manifests, and what git knows of it."""
    try:
        content = promotion_record.read_bytes(data.parent)
        entries = promotion_record.parse(content, data.parent / promotion_record.RECORD)
    except UNREADABLE as error:
        yield Finding(None, promotion_record.RECORD, one_line(error))
        return
    anchors, models = {}, {}
    for number in rounds.manifest_numbers(data):
        try:
            manifest = rounds.read_manifest(data, number)
        except UNREADABLE:  # `read_records` names it
            continue
        anchors[number], models[number] = manifest.promotions, manifest.model.version if manifest.model else None
    disagreements = [*promotion_record.manifest_disagreements(entries, anchors)]
    if witness is not None:
        deciding = promotion_record.deciding(data.parent / ".vabal")
        disagreements += promotion_record.git_disagreements(content, entries, witness, deciding=deciding)
    for entry in entries:
        if not rounds.round_folder(data, entry.round).is_dir():
            disagreements.append(f"entry {entry.sequence} is about round {entry.round}, which is not here")
        elif entry.round in models and models[entry.round] != entry.version:
            disagreements.append(f"entry {entry.sequence} is about version {entry.version}, which is not its round's")
    yield from (Finding(None, promotion_record.RECORD, what) for what in disagreements)
