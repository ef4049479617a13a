"""What a strategy says of every candidate: the columns of `candidates.parquet`, and of `selection.parquet`."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vabal.strategies.columns import rows_of_lists

if TYPE_CHECKING:
    from vabal.probabilities import ClassTerms

_TERMS = (
    ("score", pa.float64()),
    ("predicted_class", pa.string()),
    ("vae_class", pa.string()),
    ("log_likelihood", pa.float32()),
    ("prior", pa.float64()),
    ("precision", pa.float64()),
)


# The numbers of the candidates' table, and what they are called here.
COLUMNS = {
    "margin": "margin_N",
    "log_likelihoods": "log_likelihood_N_C",
    "posteriors": "posterior_N_C",
    "logits": "logits_N_C",
    "mean_posteriors": "predictive_N_C",
    "expected_entropy": "expected_entropy_N",
    "votes": "votes_N_C",
    "predicted_loss": "predicted_loss_N",
}


@dataclass(frozen=True, eq=False)
class Candidates:
    """Some candidates in some order, column by column; None where a strategy has no such number.

    Classes are indices. `predicted_class_N` and `margin_N` (the best probability less the second) are the classifier's,
    or those of the ensemble whose mean posterior the score takes; `vae_class_N` is Eq. 7's; `prior_N` and `precision_N`
    are those of `own_class_N`, the class whose term the score takes (left out: `vae_class_N`). log_likelihood_N_C,
    posterior_N_C and what stands behind it, which is the shard's (`base.Shard`), are what the score was computed from:
    with them and the class terms it can be derived again. `level_N` stands in the place of log_likelihood_N_C where a
    compact record needs no more of it.
    """

    sample_ids: NDArray[Any]
    score_N: NDArray[np.float64]
    predicted_class_N: NDArray[np.int32] | None = None
    vae_class_N: NDArray[np.int32] | None = None
    log_likelihood_N_C: NDArray[np.float32] | None = None
    prior_N: NDArray[np.float64] | None = None
    precision_N: NDArray[np.float64] | None = None
    margin_N: NDArray[np.float64] | None = None
    own_class_N: NDArray[np.int32] | None = None
    posterior_N_C: NDArray[np.float32] | None = None
    logits_N_C: NDArray[np.float32] | None = None
    predictive_N_C: NDArray[np.float64] | None = None
    expected_entropy_N: NDArray[np.float64] | None = None
    votes_N_C: NDArray[np.int32] | None = None
    predicted_loss_N: NDArray[np.float32] | None = None
    level_N: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if values is not None and len(values) != len(self.sample_ids):
                raise ValueError(f"{field.name}: {len(values)} values for {len(self.sample_ids)} candidates")

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def log_likelihood_N(self) -> NDArray[np.float32] | None:
        """Of each sample's own class; or its level, where that is what there is."""
        if self.level_N is not None:
            return self.level_N
        own_class_N = self.vae_class_N if self.own_class_N is None else self.own_class_N
        if self.log_likelihood_N_C is None or own_class_N is None:
            return None
        own = own_class_N[:, None].astype(np.int64)
        return np.asarray(np.take_along_axis(self.log_likelihood_N_C, own, axis=1)[:, 0])

    def take(self, rows: NDArray[np.integer]) -> "Candidates":
        """The candidates in these rows, in this order."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {name: None if column is None else column[rows] for name, column in values.items()}
        return Candidates(**taken)

    def to_table(self, classes: Sequence[str]) -> pa.Table:
        """As `candidates.parquet` has them: class names; what there is of each class as lists."""
        wanted = schema(len(classes))
        given = {"own_class": _names(self.own_class_N, classes)}
        given |= {name: getattr(self, attribute) for name, attribute in COLUMNS.items()}
        more = [_column(given[name], wanted.field(name).type, len(self)) for name in wanted.names[1 + len(_TERMS) :]]
        return pa.Table.from_arrays([*self._columns(classes), *more], schema=wanted)

    def _columns(self, classes: Sequence[str]) -> list[pa.Array]:
        values = {
            "score": self.score_N,
            "predicted_class": _names(self.predicted_class_N, classes),
            "vae_class": _names(self.vae_class_N, classes),
            "log_likelihood": self.log_likelihood_N,
            "prior": self.prior_N,
            "precision": self.precision_N,
        }
        ids = pa.array([str(sample_id) for sample_id in self.sample_ids], pa.string())
        return [ids, *(_column(values[name], kind, len(self)) for name, kind in _TERMS)]

    @classmethod
    def from_table(
        cls, table: pa.Table | pa.RecordBatch, classes: Sequence[str], *, margins: bool = True
    ) -> "Candidates":
        """What `to_table` wrote, bit for bit; margins that a compact record leaves out are computed, or stay NaN
        where `margins` are not asked for.

        Raises ValueError for a class that is not in the list, or margins left out for some alone.
        """
        numbers = {attribute: _numbers(table, name) for name, attribute in COLUMNS.items()}
        if numbers["margin_N"] is not None and np.isnan(numbers["margin_N"]).any():
            numbers["margin_N"] = _computed_margins(numbers, wanted=margins)
        return cls(
            np.array(table.column("sample_id").to_pylist(), dtype=object),
            _numbers(table, "score"),
            _indices(table, "predicted_class", classes),
            _indices(table, "vae_class", classes),
            prior_N=_numbers(table, "prior"),
            precision_N=_numbers(table, "precision"),
            own_class_N=_indices(table, "own_class", classes),
            level_N=_level(table),
            **numbers,
        )


def schema(num_classes: int) -> pa.Schema:
    """Of what `to_table` gives, one log likelihood, or probability, a class in each list.

    Write it with `store_schema=False`: reading lists of a fixed size, pyarrow stumbles over nulls; as plain lists,
    which `from_table` takes as well, they come back.
    """
    lists = pa.list_(pa.float32(), num_classes)
    more = [("margin", pa.float64()), ("log_likelihoods", lists), ("posteriors", lists), ("own_class", pa.string())]
    inputs = [
        ("logits", lists),
        ("mean_posteriors", pa.list_(pa.float64(), num_classes)),
        ("expected_entropy", pa.float64()),
        ("votes", pa.list_(pa.int32(), num_classes)),
        ("predicted_loss", pa.float32()),
    ]
    return pa.schema([("sample_id", pa.string()), *_TERMS, *more, *inputs])


def selection_table(picked: Candidates, classes: Sequence[str], strategy: str) -> pa.Table:
    """As `selection.parquet` has the picks, which are given in rank order; the first has rank 1."""
    ranks = pa.array(np.arange(1, len(picked) + 1, dtype=np.int32))
    names = pa.array([strategy] * len(picked), pa.string())
    kinds = [("rank", pa.int32()), ("sample_id", pa.string()), *_TERMS, ("strategy", pa.string())]
    return pa.Table.from_arrays([ranks, *picked._columns(classes), names], schema=pa.schema(kinds))


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """The parts one behind the other; a column that one of them lacks is left out. Raises ValueError for no parts."""
    if not parts:
        raise ValueError("expected at least one part")
    columns = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Candidates)}
    joined: dict[str, Any] = {
        name: None if any(value is None for value in values) else np.concatenate(values)
        for name, values in columns.items()
    }
    return Candidates(**joined)


def softmax(logits_N_C: NDArray[np.floating]) -> NDArray[np.float64]:
    """probabilities_N_C of logits."""
    shares_N_C = np.array(logits_N_C, dtype=np.float64)
    if len(shares_N_C):  # SciPy's, to the bit, in half the time: in the place of four arrays it fills one
        shares_N_C -= shares_N_C.max(axis=1, keepdims=True)
        np.exp(shares_N_C, out=shares_N_C)
        shares_N_C /= shares_N_C.sum(axis=1, keepdims=True)
    return shares_N_C


def margin(probabilities_N_C: NDArray[np.float64]) -> NDArray[np.float64]:
    """margin_N: the best probability less the second."""
    if not len(probabilities_N_C) or probabilities_N_C.shape[1] < 2:
        return np.ones(len(probabilities_N_C))
    best_two = np.partition(probabilities_N_C, -2, axis=1)[:, -2:]
    return np.asarray(best_two[:, 1] - best_two[:, 0])


def class_columns(vae_class_N: NDArray[np.integer], class_terms: "ClassTerms") -> tuple[Any, Any]:
    """prior_N and precision_N of each sample's own class."""
    own = np.asarray(vae_class_N, dtype=np.int64)
    return class_terms.prior_C[own], class_terms.precision_C[own]


def as_parts(candidates: Candidates | Iterable[Candidates]) -> Iterator[Candidates]:
    if isinstance(candidates, Candidates):
        yield candidates
    else:
        yield from candidates


def _names(indices_N: NDArray[np.integer] | None, classes: Sequence[str]) -> list[str] | None:
    return None if indices_N is None else [classes[index] for index in indices_N]


def _indices(table: Any, name: str, classes: Sequence[str]) -> NDArray[np.int32] | None:
    if name not in table.schema.names:
        return None
    names = table.column(name)
    if names.null_count or not len(names):
        return None
    if pa.types.is_dictionary(names.type):
        names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        known = pc.index_in(names.dictionary, value_set=pa.array(classes, names.type.value_type))
        indices = known.take(names.indices)
    else:
        indices = pc.index_in(names, value_set=pa.array(classes, names.type))
    if indices.null_count:
        strange = names.filter(pc.is_null(indices))[0].as_py()
        raise ValueError(f"{name}: {strange!r} is not in the list of classes")
    return np.asarray(indices.to_numpy(zero_copy_only=False) if isinstance(indices, pa.Array) else indices.to_numpy())


def _column(values: Any, kind: pa.DataType, length: int) -> pa.Array:
    if values is None:
        return pa.nulls(length, kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(values).ravel(), kind.value_type), type=kind
        )
    return pa.array(values, kind)


def _numbers(table: pa.Table | pa.RecordBatch, name: str) -> Any:
    """None where the column is null, or not there: rounds of earlier versions have fewer.

    Raises ValueError for a list of another length than the others', and for nulls beside lists or within one.
    """
    if name not in table.schema.names:
        return None
    column = table.column(name)
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_list(column.type) and not pa.types.is_fixed_size_list(column.type):
        return None if column.null_count else column.to_numpy(zero_copy_only=False)
    return None if column.null_count == len(column) else rows_of_lists(column, name, _OF_LISTS.get(name, pa.float32()))


_OF_LISTS = {"mean_posteriors": pa.float64(), "votes": pa.int32()}


def _computed_margins(numbers: Mapping[str, Any], *, wanted: bool) -> NDArray[np.float64] | None:
    """Of a compact record, which has NaN in their place: from what is there of the posteriors."""
    if not np.isnan(numbers["margin_N"]).all():
        raise ValueError("margin: left to be computed for some candidates alone")
    logits_N_C, posterior_N_C = numbers["logits_N_C"], numbers["posterior_N_C"]
    if logits_N_C is None and posterior_N_C is None:
        return None
    if not wanted:
        left_N: NDArray[np.float64] = numbers["margin_N"]
        return left_N
    return margin(posterior_N_C.astype(np.float64) if logits_N_C is None else softmax(logits_N_C))


def _level(table: pa.Table | pa.RecordBatch) -> NDArray[np.float32] | None:
    """The column log_likelihood where a table that could have the log likelihood of every class has none."""
    names = table.schema.names
    if not {"log_likelihood", "log_likelihoods", "logits"} <= set(names):
        return None
    if not len(table) or table.column("log_likelihoods").null_count < len(table):
        return None
    values = _numbers(table, "log_likelihood")
    return None if values is None else values.astype(np.float32)
