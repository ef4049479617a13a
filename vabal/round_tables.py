"""The tables of a round: its picks, all its candidates, and what the classifier said of the holdout."""

from collections.abc import Iterable
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
            pa.field("margin", pa.float32()),
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


def write_candidates(tables: Iterable[pa.Table], path: Path, num_classes: int) -> None:
    """Streams the candidates' rows into one file; memory holds a table at a time."""
    schema = candidates_schema(num_classes)
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))


def _read(path: Path) -> pd.DataFrame:
    try:
        return pq.ParquetFile(path).read().to_pandas()
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `dvc checkout data.dvc --force` brings it back") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({' '.join(str(error).split())[:200]})") from None
