"""Images: kept in shards as their files' own bytes, and read back decoded, streaming. What is wrong is set aside.

How one image is read stands in `decoding`. A shard is an immutable parquet file `images/<shard>.parquet` with the
columns sample_id and image, or, of images that stay where they are, sample_id, uri, etag, version, sha256 and size. Its
footer carries a digest of its images' content, under which the decoded cache is kept.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal import objects
from vabal.errors import BRING_BACK, UserError
from vabal.files import sha256, sync_folder
from vabal.images.decoding import decoder, extension, for_browser, png, too_large
from vabal.objects import Reference
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
_REFERENCE_SCHEMA: Final = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("sample_id", "uri", "etag")),
        pa.field("version", pa.string()),
        pa.field("sha256", pa.string(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
    ]
)
_GROUP_BYTES: Final = 8_000_000
GROUP_ROWS: Final = 1024
_DIGEST_KEY: Final = b"vabal_digest"


# --- shards: writing --------------------------------------------------------------------------------------------------


def write_shards(
    items: Iterable[tuple[str, bytes | Reference]], folder: Path, *, settings: PoolSettings, name_prefix: str
) -> list[tuple[str, int, str]]:
    """Write images, as the bytes given, into `folder/<name_prefix>-0000.parquet` and so on; returns (shard, row, id).

    Of an image that stays where it is, its reference: a shard holds either.

    Streams: at most one row group (8 MB or 1 024 images) is in memory. Deterministic for one version of pyarrow. Every
    shard appears whole or not at all. Raises ValueError if one of them exists already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    placed: list[tuple[str, int, str]] = []
    writer: _ShardWriter | None = None
    count = 0
    try:
        for sample_id, data in items:
            stays = isinstance(data, Reference)
            if writer is not None and writer.of_references != stays:
                writer.close()
                writer = None
            if writer is None:
                writer = _ShardWriter(folder / f"{name_prefix}-{count:04d}.parquet", of_references=stays)
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
    def __init__(self, path: Path, *, of_references: bool) -> None:
        if path.exists():
            raise ValueError(f"{path} exists: shards are never written over")
        self.path = path
        self.of_references = of_references
        self.rows = 0
        self.bytes = 0
        self._schema = _REFERENCE_SCHEMA if of_references else _SHARD_SCHEMA
        self._waiting: list[tuple[str | bytes | int | None, ...]] = []
        self._group_bytes = 0
        self._digest = hashlib.sha256()
        self._temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}.tmp")
        self._file: BinaryIO = self._temporary.open("xb")
        self._parquet = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd" if of_references else "none",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        )

    def add(self, sample_id: str, image: bytes | Reference) -> None:
        """The digest is of what the image is, wherever its bytes are."""
        if isinstance(image, Reference):
            size, content, here = image.size, bytes.fromhex(image.sha256), len(image.uri) + len(image.etag)
            self._waiting.append((sample_id, image.uri, image.etag, image.version, image.sha256, size))
        else:
            size, content, here = len(image), hashlib.sha256(image).digest(), len(image)
            self._waiting.append((sample_id, image))
        self._digest.update(f"{len(sample_id)} {sample_id} {size} ".encode() + content)
        self.rows += 1
        self.bytes += here
        self._group_bytes += here
        if self._group_bytes >= _GROUP_BYTES or len(self._waiting) >= GROUP_ROWS:
            self._write_group()

    def _write_group(self) -> None:
        columns = zip(*self._waiting, strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._parquet.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._waiting, self._group_bytes = [], 0

    def close(self) -> None:
        if self._waiting:
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
    """(sample_id, bytes) of ascending rows of a shard; of those that stay where they are, several are fetched at once.

    Raises UserError for a row that there is not, and for an object that is gone or changed.
    """
    if holds_references(file):
        return objects.read_many(
            (table.column("sample_id")[place].as_py(), _reference(table, place)) for table, place in _places(file, rows)
        )
    return (
        (table.column("sample_id")[place].as_py(), table.column("image")[place].as_py())
        for table, place in _places(file, rows)
    )


def contents_of(file: pq.ParquetFile) -> Iterator[tuple[str, str]]:
    """(sample_id, sha256) of every row of a shard: of its bytes, or as it says where they are elsewhere."""
    images = "sha256" if holds_references(file) else "image"
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["sample_id", images])
        for sample_id, image in zip(table.column("sample_id"), table.column(images), strict=True):
            yield sample_id.as_py(), image.as_py() if images == "sha256" else sha256(image.as_buffer())


def contents_many(data: Path, catalog_rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """(sample_id, sha256) of these catalog rows, as their shards have them; nothing is fetched."""
    for shard, rows in catalog_rows.groupby("shard"):
        wanted = set(rows["row"])
        file = open_shard(data / "images" / f"{shard}.parquet")
        yield from (pair for row, pair in enumerate(contents_of(file)) if row in wanted)


def reference_table(data: Path, shard: str, columns: Sequence[str]) -> pa.Table | None:
    """Columns of a shard whose images stay where they are; None for any other shard."""
    file = open_shard(data / "images" / f"{shard}.parquet")
    return file.read(columns=list(columns)) if holds_references(file) else None


def references(data: Path, shard: str) -> Iterator[tuple[str, Reference]]:
    """(sample_id, where the image is) of a shard whose images stay where they are; nothing of any other shard."""
    file = open_shard(data / "images" / f"{shard}.parquet")
    if holds_references(file):
        for table, place in _places(file, range(file.metadata.num_rows)):
            yield table.column("sample_id")[place].as_py(), _reference(table, place)


def holds_references(file: pq.ParquetFile) -> bool:
    """Whether the shard's images stay where they are."""
    return "uri" in file.schema_arrow.names


def _reference(table: pa.Table, place: int) -> Reference:
    return Reference(*(table.column(name)[place].as_py() for name in _REFERENCE_SCHEMA.names[1:]))


def _places(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[pa.Table, int]]:
    """Where ascending rows of a shard stand: a row group's table, and the place in it."""
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
        yield table, row - first
