"""Images: kept in shards as their files' own bytes, and read back decoded, streaming. What is wrong is set aside.

How one image is read stands in `decoding`. A shard is an immutable parquet file `images/<shard>.parquet` with the
columns sample_id and image. Its footer carries a digest of its content, under which the decoded cache is kept.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal.errors import BRING_BACK, UserError
from vabal.files import sync_folder
from vabal.images.decoding import decoder, extension, for_browser, png, too_large
from vabal.settings.models import PoolSettings

__all__ = [
    "decoder",
    "encoded",
    "encoded_many",
    "extension",
    "for_browser",
    "png",
    "shard_digest",
    "too_large",
    "whole_shard",
    "write_shards",
]

_SHARD_SCHEMA: Final = pa.schema(
    [pa.field("sample_id", pa.string(), nullable=False), pa.field("image", pa.binary(), nullable=False)]
)
_GROUP_BYTES: Final = 8_000_000
GROUP_ROWS: Final = 1024
_DIGEST_KEY: Final = b"vabal_digest"


# --- shards: writing --------------------------------------------------------------------------------------------------


def write_shards(
    items: Iterable[tuple[str, bytes]], folder: Path, *, settings: PoolSettings, name_prefix: str
) -> list[tuple[str, int, str]]:
    """Write images, as the bytes given, into `folder/<name_prefix>-0000.parquet` and so on; returns (shard, row, id).

    Streams: at most one row group (8 MB or 1 024 images) is in memory. Deterministic for one version of pyarrow. Every
    shard appears whole or not at all. Raises ValueError if one of them exists already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    placed: list[tuple[str, int, str]] = []
    writer: _ShardWriter | None = None
    count = 0
    try:
        for sample_id, data in items:
            if writer is None:
                writer = _ShardWriter(folder / f"{name_prefix}-{count:04d}.parquet")
                count += 1
            placed.append((writer.path.stem, writer.rows, sample_id))
            writer.add(sample_id, data)
            if writer.rows >= settings.shard_rows or writer.bytes >= settings.shard_megabytes * 1e6:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()
    except BaseException:
        if writer is not None:
            writer.discard()
        raise
    return placed


class _ShardWriter:
    def __init__(self, path: Path) -> None:
        if path.exists():
            raise ValueError(f"{path} exists: shards are never written over")
        self.path = path
        self.rows = 0
        self.bytes = 0
        self._ids: list[str] = []
        self._images: list[bytes] = []
        self._group_bytes = 0
        self._digest = hashlib.sha256()
        self._temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}.tmp")
        self._file: BinaryIO = self._temporary.open("xb")
        self._parquet = pq.ParquetWriter(
            self._file,
            _SHARD_SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )

    def add(self, sample_id: str, data: bytes) -> None:
        self._digest.update(f"{len(sample_id)} {sample_id} {len(data)} ".encode() + hashlib.sha256(data).digest())
        self._ids.append(sample_id)
        self._images.append(data)
        self.rows += 1
        self.bytes += len(data)
        self._group_bytes += len(data)
        if self._group_bytes >= _GROUP_BYTES or len(self._ids) >= GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        columns = [pa.array(self._ids, pa.string()), pa.array(self._images, pa.binary())]
        self._parquet.write_table(pa.Table.from_arrays(columns, schema=_SHARD_SCHEMA))
        self._ids, self._images, self._group_bytes = [], [], 0

    def close(self) -> None:
        if self._ids:
            self._write_group()
        self._parquet.add_key_value_metadata({_DIGEST_KEY: self._digest.hexdigest().encode()})
        self._parquet.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        self._parquet.close()
        self._file.close()
        self._temporary.unlink(missing_ok=True)


# --- shards: reading --------------------------------------------------------------------------------------------------


def encoded(data: Path, shard: str, row: int) -> bytes:
    """The original file's bytes of one image. Raises UserError if the shard is missing or has no such row."""
    return next(rows_of(open_shard(data / "images" / f"{shard}.parquet"), [row]))[1]


def encoded_many(data: Path, catalog_rows: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """(sample_id, the original file's bytes) of these catalog rows, shard by shard: each row group is read once."""
    for shard, rows in catalog_rows.sort_values(["shard", "row"]).groupby("shard"):
        yield from rows_of(open_shard(data / "images" / f"{shard}.parquet"), rows["row"].tolist())


def whole_shard(data: Path, shard: str) -> Iterator[tuple[str, bytes]]:
    """(sample_id, the original file's bytes) of a shard, a row group at a time."""
    file = open_shard(data / "images" / f"{shard}.parquet")
    return rows_of(file, range(file.metadata.num_rows))


def shard_digest(data: Path, shard: str) -> str:
    """The digest of a shard's content, as its footer has it."""
    return digest_in(open_shard(data / "images" / f"{shard}.parquet"), shard)


def digest_in(file: pq.ParquetFile, shard: str) -> str:
    digest = (file.metadata.metadata or {}).get(_DIGEST_KEY, b"").decode()
    if not digest:
        raise UserError(f"shard {shard} carries no digest: shards are written by `vabal init` and `vabal ingest`")
    return str(digest)


def open_shard(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {BRING_BACK}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable shard ({' '.join(str(error).split())[:200]})") from None


def rows_of(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """(sample_id, bytes) of ascending rows of a shard."""
    group, first, table = -1, 0, None
    end = 0
    for row in rows:
        if not 0 <= row < file.metadata.num_rows:
            raise UserError(f"a shard of {file.metadata.num_rows} images has no row {row}")
        while row >= end:
            group += 1
            first, end, table = end, end + file.metadata.row_group(group).num_rows, None
        if table is None:
            table = file.read_row_group(group)
        yield table.column("sample_id")[row - first].as_py(), table.column("image")[row - first].as_py()
