"""The tables of a round: its picks, all its candidates, and what the classifier said of the holdout."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal import pools
from vabal.errors import UserError

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
SELECTION = pa.schema([pa.field("rank", pa.int32(), nullable=False), *_SCORED])


def candidates_schema(num_classes: int) -> pa.Schema:
    """The selection's columns (rank: null where not picked), and what the scores can be derived from again."""
    return pa.schema(
        [
            pa.field("rank", pa.int32()),
            *_SCORED,
            pa.field("margin", pa.float64()),
            pa.field("log_likelihoods", pa.list_(pa.float32(), num_classes)),
        ]
    )


def predictions_schema(num_classes: int) -> pa.Schema:
    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("predicted_class", pa.string(), nullable=False),
            pa.field("probabilities", pa.list_(pa.float32(), num_classes), nullable=False),
        ]
    )


def unscored(sample_ids: list[str], strategy: str) -> pd.DataFrame:
    """A selection that no score decided, in this order."""
    table = pd.DataFrame({"rank": range(1, len(sample_ids) + 1), "sample_id": sample_ids, "score": 0.0})
    return table.assign(strategy=strategy).reindex(columns=SELECTION.names)


def write_selection(table: pd.DataFrame, path: Path) -> None:
    pools.write_table(table, path, SELECTION)


def read_selection(path: Path) -> pd.DataFrame:
    """Picks in rank order, from 1. Raises UserError if the file is missing or damaged."""
    return pools.read_table(path, SELECTION)


def write_predictions(table: pd.DataFrame, path: Path, num_classes: int) -> None:
    pools.write_table(table, path, predictions_schema(num_classes))


def read_predictions(path: Path) -> pd.DataFrame:
    """The holdout's labels and predictions. Raises UserError if the file is missing or damaged."""
    return _read(path)


def write_candidates(scored: Path, path: Path, ranks: Mapping[str, int], strategy: str, num_classes: int) -> None:
    """Every candidate of the file `scored` (columns of `strategies.schema`) with its rank, where it has one.

    Memory holds a row group at a time.
    """
    schema = candidates_schema(num_classes)
    source = pq.ParquetFile(scored)
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group)
            rank = pa.array([ranks.get(sample_id) for sample_id in table.column("sample_id").to_pylist()], pa.int32())
            table = table.append_column("rank", rank)
            table = table.append_column("strategy", pa.array([strategy] * table.num_rows, pa.string()))
            writer.write_table(table.select(schema.names).cast(schema))


def _read(path: Path) -> pd.DataFrame:
    try:
        return pq.ParquetFile(path).read().to_pandas()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc checkout data.dvc --force` brings it back") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None
