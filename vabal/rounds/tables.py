"""The tables of a round: its picks, all its candidates, and what the classifier said of the holdout."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vabal import pools
from vabal.errors import BRING_BACK
from vabal.learning import metrics
from vabal.pools.reading import opened, readable

if TYPE_CHECKING:
    import pandas as pd

# A round's files.
SELECTION_FILE: Final = "selection.parquet"
CANDIDATES_FILE: Final = "candidates.parquet"
PREDICTIONS_FILE: Final = "holdout_predictions.parquet"
CONTROL_FILE: Final = "control.parquet"  # what the classifier says of the control arm; columns of CANDIDATES
SHORTLIST_FILE: Final = "shortlist.parquet"
DRIFT_FILE: Final = "drift.parquet"  # new images among earlier ones; columns of SHORTLIST
LABELED_FILE: Final = "labeled.parquet"
HELD_OUT_FILE: Final = "held_out.parquet"  # what a probe says of labelled images that it has not learned from

_SCORED = [
    pa.field("sample_id", pa.string(), nullable=False),
    pa.field("score", pa.float64(), nullable=False),
    pa.field("predicted_class", pa.string()),
    pa.field("vae_class", pa.string()),
    pa.field("log_likelihood", pa.float64()),
    pa.field("prior", pa.float64()),
    pa.field("precision", pa.float64()),
    pa.field("strategy", pa.string(), nullable=False),
]
# `probability`: how likely a sample of the control arm was to be drawn; null of a pick.
SELECTION = pa.schema([pa.field("rank", pa.int32(), nullable=False), *_SCORED, pa.field("probability", pa.float64())])
SCORED: Final = tuple(field.name for field in _SCORED)  # what a selection says of a pick, and its candidates too

# The selection's columns (rank: null where not picked), and what the scores can be derived from again.
CANDIDATES = pa.schema(
    [
        pa.field("rank", pa.int32()),
        *_SCORED,
        pa.field("margin", pa.float64()),
        pa.field("log_likelihoods", pa.list_(pa.float32())),  # not of fixed size: parquet cannot read their nulls back
        pa.field("posteriors", pa.list_(pa.float32())),
        pa.field("own_class", pa.string()),
        pa.field("logits", pa.list_(pa.float32())),
        pa.field("mean_posteriors", pa.list_(pa.float64())),
        pa.field("expected_entropy", pa.float64()),
        pa.field("votes", pa.list_(pa.int32())),
        pa.field("predicted_loss", pa.float32()),
    ]
)
# Among whom a batch was searched, the highest scores first, and by which features.
SHORTLIST = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("features", pa.list_(pa.float32()), nullable=False),
    ]
)
NEAREST: Final = pa.field("labeled_distance", pa.float32(), nullable=False)  # the squared distance to the labelled pool
_FARTHEST: Final = 4.0001  # at unit length, rounding included; infinite, all of them, where nothing is labelled
# What the classifier says of the labelled pool, where a strategy looks at it.
LABELED = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("logits", pa.list_(pa.float32()), nullable=False),
    ]
)
# By class, of the labelled pool; float32, adding up to 1.
HELD_OUT = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
    ]
)
PREDICTIONS = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("predicted_class", pa.string(), nullable=False),
        pa.field("probabilities", pa.list_(pa.float32()), nullable=False),
    ]
)


def unscored(sample_ids: list[str], strategy: str) -> "pd.DataFrame":
    """A selection that no score decided, in this order."""
    import pandas as pd  # noqa: PLC0415 -- half a second, which who reads a few rows does without

    table = pd.DataFrame({"rank": range(1, len(sample_ids) + 1), "sample_id": sample_ids, "score": 0.0})
    return table.assign(strategy=strategy).reindex(columns=SELECTION.names)


def write_selection(table: "pd.DataFrame", path: Path) -> None:
    pools.write_table(table, path, SELECTION)


def read_selection(path: Path) -> "pd.DataFrame":
    """Picks in rank order, from 1, and behind them the control arm: those with a `probability`.

    Raises UserError if the file is missing or damaged.
    """
    return pools.read_table(path, SELECTION)


class ShortlistRows(NamedTuple):
    """A shortlist as it is recorded; `labeled_distance_N` of a rule that looks at the labelled pool."""

    sample_ids: list[str]
    features_N_D: NDArray[np.float32]
    labeled_distance_N: NDArray[np.float32] | None


def write_shortlist(
    sample_ids: NDArray[Any],
    features_N_D: NDArray[np.float32],
    path: Path,
    labeled_distance_N: NDArray[np.float32] | None = None,
) -> None:
    _write_rows(sample_ids, features_N_D, path, SHORTLIST, labeled_distance_N)


def read_shortlist(path: Path) -> ShortlistRows:
    """What `write_shortlist` wrote. Raises ValueError for another table, features that are no finite numbers or
    distances that are none, and what pyarrow raises."""
    has_distances = NEAREST.name in pq.read_schema(path).names
    table = _table(path, SHORTLIST.append(NEAREST) if has_distances else SHORTLIST)
    ids, features_N_D = _rows(table, SHORTLIST.names[1])
    if not has_distances:
        return ShortlistRows(ids, features_N_D, None)
    distance_N = table.column(NEAREST.name).to_numpy()
    if not (np.isinf(distance_N).all() or (distance_N <= _FARTHEST).all()) or not (distance_N >= 0).all():
        raise ValueError(f"{NEAREST.name}: not all of them are distances")
    return ShortlistRows(ids, features_N_D, distance_N)


def read_drift(path: Path) -> ShortlistRows:
    """A round's new images among earlier ones. Raises UserError if the file is missing or damaged."""
    with readable(path, BRING_BACK):
        return read_shortlist(path)


def write_labeled(sample_ids: NDArray[Any], logits_N_C: NDArray[np.float32], path: Path) -> None:
    _write_rows(sample_ids, logits_N_C, path, LABELED)


def read_labeled(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """What `write_labeled` wrote. Raises what `read_shortlist` raises."""
    return _rows(_table(path, LABELED), LABELED.names[1])


def write_held_out(sample_ids: Sequence[str], posterior_L_C: NDArray[np.float32], path: Path) -> None:
    _write_rows(sample_ids, posterior_L_C, path, HELD_OUT)


def read_held_out(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    """What `write_held_out` wrote. Raises what `read_shortlist` raises, and ValueError for no probabilities."""
    ids, posterior_L_C = _rows(_table(path, HELD_OUT), HELD_OUT.names[1])
    wrong_L = ~(np.abs(posterior_L_C.sum(axis=1, dtype=np.float64) - 1) < _SUM) | (posterior_L_C < 0).any(axis=1)
    if wrong_L.any():
        raise ValueError(f"{HELD_OUT.names[1]}: not all of them add up to 1")
    return ids, posterior_L_C


_SUM: Final = 1e-5  # float32 probabilities of many classes


def _write_rows(
    sample_ids: NDArray[Any] | Sequence[str],
    rows_N_D: NDArray[np.float32],
    path: Path,
    schema: pa.Schema,
    distance_N: NDArray[np.float32] | None = None,
) -> None:
    """Bit for bit."""
    count, width = rows_N_D.shape
    flat = pa.array(np.ascontiguousarray(rows_N_D).ravel(), pa.float32())
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1) * width, pa.int32()), flat)
    table = pa.table([pa.array([str(sample_id) for sample_id in sample_ids], pa.string()), lists], schema=schema)
    if distance_N is not None:
        table = table.append_column(NEAREST, pa.array(distance_N, pa.float32()))
    pq.write_table(table, path, store_schema=False, **_packing(table.schema))


def _packing(schema: pa.Schema) -> dict[str, Any]:
    """How pyarrow is to write these columns small: the bytes of numbers by their places, ids by what they share."""
    encodings = {}
    for field in schema:
        listed = pa.types.is_list(field.type)
        kind = field.type.value_type if listed else field.type
        path = f"{field.name}.list.element" if listed else field.name
        if pa.types.is_floating(kind) and field.name not in _FEW_VALUES:
            encodings[path] = "BYTE_STREAM_SPLIT"
        elif field.name == "sample_id":
            encodings[path] = "DELTA_BYTE_ARRAY"
    few = [name for name in _FEW_VALUES if name in schema.names]
    return {"compression": "zstd", "use_dictionary": few, "column_encoding": encodings}


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    table = pq.ParquetFile(path).read()
    if table.schema.names != schema.names:
        raise ValueError(f"expected the columns {', '.join(schema.names)}, found {', '.join(table.schema.names)}")
    table.validate(full=True)
    return table


def _rows(table: pa.Table, name: str) -> tuple[list[str], NDArray[np.float32]]:
    from vabal.strategies.columns import rows_of_lists  # noqa: PLC0415 -- most who read tables need no strategy

    rows_N_D = rows_of_lists(table.column(name).combine_chunks(), name)
    if not np.isfinite(rows_N_D).all():
        raise ValueError(f"{name}: not all of them are finite")
    return [str(sample_id) for sample_id in table.column("sample_id").to_pylist()], rows_N_D


def write_predictions(table: "pd.DataFrame", path: Path) -> None:
    pools.write_table(table, path, PREDICTIONS)


def read_predictions(path: Path) -> "pd.DataFrame":
    """The holdout's labels and predictions. Raises UserError if the file is missing or damaged."""
    return _read(path)


def read_confusions(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the classes that occur among the holdout's labels or predictions, in order, and counts_C_C of images:
    row the label, column the prediction. No class where the table has none of both.

    Raises UserError if the file is missing or damaged.
    """
    wanted = ["label", "predicted_class"]
    with readable(path, BRING_BACK):
        file = opened(path, wanted)
        if not set(wanted) <= set(file.schema_arrow.names):
            return [], np.zeros((0, 0), dtype=np.int64)
        table = file.read(columns=wanted).drop_null().unify_dictionaries().combine_chunks()
        if not len(table):
            return [], np.zeros((0, 0), dtype=np.int64)
        columns = [table.column(name).chunk(0) for name in wanted]
        names = sorted({name for each in columns for name in each.dictionary.to_pylist()})
        places = {name: place for place, name in enumerate(names)}
        own = [np.array([places[name] for name in each.dictionary.to_pylist()]) for each in columns]
        label_N, predicted_N = (of[each.indices.to_numpy()] for of, each in zip(own, columns, strict=True))
    counts_C_C = metrics.confusion_matrix(label_N, predicted_N, len(names))
    there_C = counts_C_C.sum(axis=0) + counts_C_C.sum(axis=1) > 0
    return [name for name, there in zip(names, there_C, strict=True) if there], counts_C_C[np.ix_(there_C, there_C)]


class ScoredWriter:
    """Writes candidates (columns of `strategies.schema`) as they are scored, for `write_candidates`; a context manager.

    Small parts are gathered into row groups. The file lives for minutes, so nothing is spent on compressing it.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._parquet = pq.ParquetWriter(path, schema, compression="none", use_dictionary=False, store_schema=False)
        self._parts: list[pa.Table] = []
        self._rows = 0

    def write(self, part: pa.Table) -> None:
        self._parts.append(part)
        self._rows += part.num_rows
        if self._rows >= _GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        self._parquet.write_table(pa.concat_tables(self._parts))
        self._parts, self._rows = [], 0

    def __enter__(self) -> "ScoredWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._parts:
            self._write_group()
        self._parquet.close()


_GROUP_ROWS = 1 << 15
OF_FEW_NAMES: Final = ["predicted_class", "vae_class", "own_class", "strategy"]  # cheaper read as dictionaries
# One a class, or one for all: a dictionary of ids or scores would only cost.
_FEW_VALUES = [*OF_FEW_NAMES, "prior", "precision"]


def write_candidates(
    scored: Path, path: Path, ranks: Mapping[str, int], strategy: str, *, compact: bool = False
) -> None:
    """Every candidate of the file `scored` (columns of `strategies.schema`) with its rank, where it has one.

    A `compact` table has NaN in the place of margins, which `Candidates.from_table` computes from what stands beside
    them. Memory holds a row group at a time.
    """
    source = pq.ParquetFile(scored)
    picked, rank_of = pa.array(list(ranks), pa.string()), pa.array(list(ranks.values()), pa.int32())
    with pq.ParquetWriter(path, CANDIDATES, store_schema=False, **_packing(CANDIDATES)) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            table = table.append_column("rank", rank_of.take(pc.index_in(table.column("sample_id"), value_set=picked)))
            table = table.append_column("strategy", pa.array([strategy] * table.num_rows, pa.string()))
            table = _without_margin(table) if compact else table
            writer.write_table(table.select(CANDIDATES.names).cast(CANDIDATES))


def _without_margin(table: pa.Table) -> pa.Table:
    told = any(table.column(name).null_count == 0 for name in ("logits", "posteriors"))
    if not told or table.column("margin").null_count:
        return table
    place = table.schema.get_field_index("margin")
    return table.set_column(place, "margin", pa.array(np.full(table.num_rows, np.nan), pa.float64()))


def _read(path: Path) -> "pd.DataFrame":
    with readable(path, BRING_BACK):
        frame: pd.DataFrame = pq.ParquetFile(path).read().to_pandas()
    return frame
