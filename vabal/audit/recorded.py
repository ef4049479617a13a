"""The recorded candidates, and what deriving them again came to."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vabal import strategies
from vabal.audit.findings import Record
from vabal.probabilities import ClassTerms
from vabal.rounds import tables
from vabal.settings.models import Params
from vabal.settings.params import recorded
from vabal.strategies import Candidates, Picker, Shard, Strategy, record_of, rule_named

_ROWS_AT_ONCE = 2**16
_KEPT = 2**28  # bytes of a table, unpacked, that a strategy's passes find in memory


@dataclass
class Derived:
    """What the derivation came to: columns with the samples whose value does not follow, statements of the manifest
    that are not so, and the best candidates by the recorded scores, in order: the picks, or with a rule that
    searches those among which the picks were searched. `rounding` is how far a score may lie from the derived one,
    relative to it."""

    rounding: float = 1e-9
    odd: dict[str, list[str]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    best: Candidates | None = None

    def compare(self, recorded: Candidates, derived: Candidates, *, margins: float = 1e-9) -> None:
        """Column by column; another processor may round the last bit of an exponential otherwise.

        Recorded margins that are NaN were left to be computed: they are what is derived.
        """
        for column in fields(Candidates)[1:]:
            absolute = {"score_N": 1e-9, "margin_N": margins}.get(column.name, 0.0)
            relative = self.rounding if column.name == "score_N" else 1e-9
            values, others = getattr(recorded, column.name), getattr(derived, column.name)
            if column.name == "margin_N" and others is not None and _left_out(values):
                continue
            self.note(column.name.partition("_N")[0], recorded, _apart(values, others, absolute, relative))

    def note(self, column: str, recorded: Candidates, wrong_N: NDArray[np.bool_] | bool) -> None:
        wrong = recorded.sample_ids[np.broadcast_to(wrong_N, len(recorded))]
        if len(wrong):
            self.odd.setdefault(column, []).extend(str(sample_id) for sample_id in wrong)


def _apart(values: Any, others: Any, absolute: float, relative: float = 1e-9) -> NDArray[np.bool_] | bool:
    if values is None or others is None:
        return (values is None) != (others is None)
    if np.shape(values) != np.shape(others):
        return True
    if np.array_equal(values, others):  # nearly always, and much quicker
        return False
    apart: NDArray[np.bool_] = ~np.isclose(values, others, rtol=relative, atol=absolute)
    return np.asarray(apart if apart.ndim == 1 else apart.any(axis=1))


def _left_out(margin_N: Any) -> bool:
    return margin_N is not None and len(margin_N) > 0 and bool(np.isnan(margin_N[0]))


class CandidatesTable:
    """The recorded candidates, part by part; what a pass over them handed out last waits to be compared.

    With `margins`, those that a compact record leaves out are computed.
    """

    def __init__(
        self, path: Path, record: Record, classes: Sequence[str], derived: Derived, *, margins: bool = True
    ) -> None:
        self.path, self.record, self.classes, self.derived, self._margins = path, record, classes, derived, margins
        self.waiting: deque[Candidates] = deque()
        file = pq.ParquetFile(path)
        names, groups = file.schema_arrow.names, range(file.num_row_groups)
        self._keeps = sum(file.metadata.row_group(group).total_byte_size for group in groups) <= _KEPT
        self._kept: list[Candidates] | None = None
        if record.version > 1 and names != tables.CANDIDATES.names:
            odd = sorted(set(names).symmetric_difference(tables.CANDIDATES.names)) or ["their order"]
            raise ValueError(f"its columns are not those of a candidates' table: {', '.join(odd)}")

    def parts(self) -> Iterator[Candidates]:
        """All of them; kept for the next pass where they take little memory."""
        if self._kept is None:
            yield from (part for part, _ in self._read())
        else:
            yield from self._kept

    def checked_parts(self) -> Iterator[Candidates]:
        """The same, with those columns looked at that stand in no `Candidates`."""
        kept: list[Candidates] = []
        for part, batch in self._read():
            partly = [name for name in batch.schema.names if 0 < batch.column(name).null_count < len(batch)]
            if set(partly) - {"rank"}:
                raise ValueError(f"{partly[-1]}: empty for some candidates")
            self.derived.note("strategy", part, ~_are(batch.column("strategy"), self.record.strategy))
            told = batch.column("log_likelihood")
            values = None if told.null_count else told.to_numpy(zero_copy_only=False)
            self.derived.note("log_likelihood", part, _apart(values, part.log_likelihood_N, 0.0))
            if self._keeps:
                kept.append(part)
            yield part
        self._kept = kept if self._keeps else None

    def _read(self) -> Iterator[tuple[Candidates, pa.RecordBatch]]:
        file = pq.ParquetFile(self.path, read_dictionary=tables.OF_FEW_NAMES)
        for group in range(file.num_row_groups):  # a batch across two would be copied together
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group], use_threads=False):
                batch.validate(full=True)
                yield Candidates.from_table(batch, self.classes, margins=self._margins), batch

    def shards(self) -> Iterator[Shard]:
        """A pass over what the strategy saw of the candidates."""
        self.waiting.clear()
        for part in self.parts():
            self.waiting.append(part)
            yield shard_of(part)


def _are(names: pa.Array, wanted: str) -> NDArray[np.bool_]:
    """Which of the names, a dictionary's, are this one."""
    known = np.append([name == wanted for name in names.dictionary.to_pylist()], False)
    return np.asarray(known[pc.fill_null(names.indices, -1).to_numpy(zero_copy_only=False)])


def shard_of(part: Candidates) -> Shard:
    """What the strategy saw, as far as it is recorded; an ensemble's posteriors may be recorded as float32."""
    predictive_N_C = part.posterior_N_C if part.predictive_N_C is None else part.predictive_N_C
    return Shard(
        part.sample_ids,
        logits_N_C=part.logits_N_C,
        log_likelihood_N_C=part.log_likelihood_N_C,
        level_N=part.level_N,
        vae_class_N=part.vae_class_N,
        predictive_N_C=predictive_N_C,
        expected_entropy_N=part.expected_entropy_N,
        votes_N_C=part.votes_N_C,
        predicted_loss_N=part.predicted_loss_N,
    )


# -- what the manifest says of it -----------------------------------------------------------------------------------


def read_statements(
    record: Record, classes: Sequence[str]
) -> tuple[Mapping[str, Any], Params, Strategy, ClassTerms | None]:
    """What the manifest says of its selection, its settings, their strategy, and its class terms.

    Raises ValueError where it says too little, or not of these classes.
    """
    if record.selection is None:
        raise ValueError("the manifest does not say by which rule")
    settings = recorded(record.settings)
    terms = None if record.class_terms is None else ClassTerms.from_json(record.class_terms)
    if terms is not None and {len(terms.log_prior_C), len(terms.log_precision_C)} != {len(classes)}:
        raise ValueError("the manifest's class terms are not those of the classes")
    return record.selection, settings, strategies.get(record.strategy), terms


def not_so(said: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    return [
        f"the manifest's selection has {name} {said[name]}, its settings ask for {value}"
        for name, value in asked.items()
        if said[name] != value
    ]


def picker_of(said: Mapping[str, Any]) -> Picker:
    """Keeps the candidates that the recorded rule picks from."""
    per_pick = said.get("shortlist")  # manifests of earlier versions may lack it
    return Picker.among(rule_named(said["rule"]), said["budget"], said["beta"], said["seed"], per_pick)


def asked_for(strategy: Strategy, settings: Params, beside: int = 0) -> dict[str, Any]:
    """Rule, beta and budget as the settings ask for them, but for the places `beside` the picks."""
    asked: dict[str, Any] = {"budget": settings.selection.budget - beside}
    batch = record_of(strategy).batch(settings)
    return asked if batch is None else asked | {"rule": batch[0], "beta": batch[1]}
