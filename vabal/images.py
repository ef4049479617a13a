"""Images: kept in shards as their files' own bytes, and read back decoded, streaming. What is wrong is set aside.

How one image is read stands in `decoding`. A shard is an immutable parquet file `images/<shard>.parquet` with the
columns sample_id and image. Its footer carries a digest of its content, under which the decoded cache is kept.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from vabal.decoding import Unreadable, decode, decoder, extension, for_browser, png, probe, read, shape, too_large
from vabal.errors import BRING_BACK, UserError
from vabal.params import BitDepth, PoolSettings
from vabal.store import sync_folder, write_bytes

__all__ = [
    "DecodedShards",
    "Unreadable",
    "decode",
    "decoder",
    "encoded",
    "encoded_many",
    "extension",
    "for_browser",
    "note_left_out",
    "png",
    "probe",
    "quarantine",
    "read",
    "safe_name",
    "shape",
    "shard_digest",
    "too_large",
    "whole_shard",
    "write_shards",
]
_SHARD_SCHEMA: Final = pa.schema(
    [pa.field("sample_id", pa.string(), nullable=False), pa.field("image", pa.binary(), nullable=False)]
)
_GROUP_BYTES: Final = 8_000_000
_GROUP_ROWS: Final = 1024
_DIGEST_KEY: Final = b"vabal_digest"


# --- files that cannot be read ----------------------------------------------------------------------------------------


def quarantine(folder: Path, path: str, data: bytes | None, reason: str, when: datetime) -> None:
    """Copy an unreadable file into `folder` and note it in quarantine.csv; the same file is noted once.

    `data` is None where the file cannot or should not be copied (too large, no permission): it stays where it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "quarantine.csv"
    copied = ""
    if data is not None:
        copied = safe_name(Path(path).stem, hashlib.sha256(data).hexdigest()) + Path(path).suffix[:10].lower()
        if (folder / copied).exists() and _is_listed(listing, copied):
            return
        write_bytes(folder / copied, data)
    _append(listing, ["path", "reason", "when", "copy"], [[path, reason, when.isoformat(timespec="seconds"), copied]])


def note_left_out(folder: Path, left_out: Sequence[tuple[str, str]], when: datetime) -> None:
    """Note what was left out though it can be read, (name, reason) each, in `folder/left_out.csv`."""
    if left_out:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [[name, reason, when.isoformat(timespec="seconds")] for name, reason in left_out]
        _append(folder / "left_out.csv", ["name", "reason", "when"], rows)


def _append(listing: Path, header: list[str], rows: list[list[str]]) -> None:
    new = not listing.exists()
    with listing.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(header)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(listing.parent)


def _is_listed(listing: Path, copied: str) -> bool:
    """Whether a copy has its line: one that was cut short after copying gets it the next time."""
    if not listing.exists():
        return False
    with listing.open(encoding="utf-8", newline="") as file:
        return any(row[-1:] == [copied] for row in csv.reader(file))


def safe_name(text: str, digest: str = "") -> str:
    """`text` as a file name that any system takes, with the first eight digits of `digest` behind it, if given."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80] or "sample"
    return f"{name}-{digest[:8]}" if digest else name


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
        if self._group_bytes >= _GROUP_BYTES or len(self._ids) >= _GROUP_ROWS:
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
    return next(_rows(_open_shard(data / "images" / f"{shard}.parquet"), [row]))[1]


def encoded_many(data: Path, catalog_rows: pd.DataFrame) -> Iterator[tuple[str, bytes]]:
    """(sample_id, the original file's bytes) of these catalog rows, shard by shard: each row group is read once."""
    for shard, rows in catalog_rows.sort_values(["shard", "row"]).groupby("shard"):
        yield from _rows(_open_shard(data / "images" / f"{shard}.parquet"), rows["row"].tolist())


def whole_shard(data: Path, shard: str) -> Iterator[tuple[str, bytes]]:
    """(sample_id, the original file's bytes) of a shard, a row group at a time."""
    file = _open_shard(data / "images" / f"{shard}.parquet")
    return _rows(file, range(file.metadata.num_rows))


def shard_digest(data: Path, shard: str) -> str:
    """The digest of a shard's content, as its footer has it."""
    return _digest_of(_open_shard(data / "images" / f"{shard}.parquet"), shard)


def _digest_of(file: pq.ParquetFile, shard: str) -> str:
    digest = (file.metadata.metadata or {}).get(_DIGEST_KEY, b"").decode()
    if not digest:
        raise UserError(f"shard {shard} carries no digest: shards are written by `vabal init` and `vabal ingest`")
    return str(digest)


def _open_shard(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, pre_buffer=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {BRING_BACK}") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable shard ({' '.join(str(error).split())[:200]})") from None


def _rows(file: pq.ParquetFile, rows: Sequence[int]) -> Iterator[tuple[str, bytes]]:
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


class DecodedShards:
    """The pool's images as uint8 arrays, shard by shard, in constant memory.

    The first pass over a shard decodes it and fills a cache (`.npy` files in `cache`, named for the shard's content,
    the image size and what decoded it); later passes read raw bytes. `data` is a folder with `images/`, or several of
    them, searched in turn; `names` follows `catalog`, or else the first folder's catalog.parquet, or else the file
    names.
    """

    def __init__(
        self,
        data: Path | Sequence[Path],
        cache: Path,
        size: int,
        channels: int,
        *,
        catalog: pd.DataFrame | None = None,
        bit_depth: BitDepth = "auto",
    ) -> None:
        self._bit_depth: BitDepth = bit_depth
        self._folders = [data] if isinstance(data, Path) else list(data)
        self._cache = cache
        self._shape = (size, size, channels)
        self._catalog = catalog

    def names(self) -> list[str]:
        """Shard names in catalog order."""
        if self._catalog is not None:
            return [str(name) for name in self._catalog["shard"].unique()]
        path = self._folders[0] / "catalog.parquet"
        if path.exists():
            return [str(name) for name in pq.read_table(path, columns=["shard"]).column("shard").unique().to_pylist()]
        return sorted(file.stem for folder in self._folders for file in (folder / "images").glob("*.parquet"))

    def rows(self, shard: str) -> int:
        """How many images the shard holds."""
        return int(self._open(shard).metadata.num_rows)

    def sample_ids(self, shard: str) -> np.ndarray:
        """The shard's sample ids, in row order (an object array of str)."""
        ids: np.ndarray = self._open(shard).read(columns=["sample_id"]).column("sample_id").to_numpy()
        return ids

    def batches(self, shard: str, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, images_N_H_W_K uint8) over the whole shard in row order.

        Raises UserError naming the sample if an image of the shard cannot be decoded.
        """
        file = self._open(shard)
        total = file.metadata.num_rows
        path = self._cached(shard, file)
        if self._usable(path, total):
            yield from self._read_batches(path, total, batch_size)
            return
        with _cache_file(path, (total, *self._shape)) as cache:
            for start, images in _rebatch(self._decode_groups(file, shard), batch_size, self._shape):
                cache.write(images.data)
                yield start, images

    def gather(self, catalog_rows: pd.DataFrame) -> np.ndarray:
        """images_N_H_W_K uint8 of these catalog rows, in the order given."""
        images = np.empty((len(catalog_rows), *self._shape), dtype=np.uint8)
        shards = catalog_rows["shard"].to_numpy(dtype=object)
        rows = catalog_rows["row"].to_numpy(dtype=np.int64)
        for shard in dict.fromkeys(shards):
            places = np.flatnonzero(shards == shard)
            self._gather_shard(str(shard), rows[places], places, images)
        return images

    def _gather_shard(self, shard: str, rows: np.ndarray, places: np.ndarray, images: np.ndarray) -> None:
        file = self._open(shard)
        total = file.metadata.num_rows
        if len(rows) and (rows.min() < 0 or rows.max() >= total):
            raise UserError(f"shard {shard} has {total} images, no row {int(rows.max())}")
        path = self._cached(shard, file)
        order = np.argsort(rows, kind="stable")
        if not self._usable(path, total) and 2 * len(rows) > total:
            for _ in self.batches(shard, _GROUP_ROWS):
                pass  # fills the cache
        if self._usable(path, total):
            with path.open("rb", buffering=0) as raw:
                begin = len(_npy_header((total, *self._shape)))
                for place, row in zip(places[order], rows[order], strict=True):
                    raw.seek(begin + int(row) * images[place].nbytes)
                    raw.readinto(images[place].data)
            return
        encoded_rows = _rows(file, rows[order].tolist())
        for place, (sample_id, data) in zip(places[order], encoded_rows, strict=True):
            images[place] = self._decode(shard, sample_id, data)

    def _open(self, shard: str) -> pq.ParquetFile:
        paths = [folder / "images" / f"{shard}.parquet" for folder in self._folders]
        return _open_shard(next((path for path in paths if path.exists()), paths[0]))

    def _cached(self, shard: str, file: pq.ParquetFile) -> Path:
        digest = _digest_of(file, shard)
        size, _, channels = self._shape
        return self._cache / f"{shard}-{digest[:16]}-{size}x{channels}-{self._bit_depth}-{decoder()}.npy"

    def _usable(self, path: Path, total: int) -> bool:
        """Whether the cache file is there and as long as it must be (a full disk may have cut it)."""
        expected = len(_npy_header((total, *self._shape))) + total * int(np.prod(self._shape))
        return path.exists() and path.stat().st_size == expected

    def _read_batches(self, path: Path, total: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        with path.open("rb", buffering=0) as raw:  # plain reads: pages of a memory map would count as resident memory
            raw.seek(len(_npy_header((total, *self._shape))))
            for start in range(0, total, batch_size):
                images = np.empty((min(batch_size, total - start), *self._shape), dtype=np.uint8)
                if raw.readinto(images.data) != images.nbytes:
                    raise UserError(f"{path} was cut while it was read: delete it and run again")
                yield start, images

    def _decode_groups(self, file: pq.ParquetFile, shard: str) -> Iterator[np.ndarray]:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            images = np.empty((table.num_rows, *self._shape), dtype=np.uint8)
            columns = zip(table.column("sample_id"), table.column("image"), strict=True)
            for index, (sample_id, data) in enumerate(columns):
                images[index] = self._decode(shard, sample_id.as_py(), data.as_py())
            yield images

    def _decode(self, shard: str, sample_id: str, data: bytes) -> np.ndarray:
        try:
            # what came in was whole, or came before broken JPEGs were noticed: no round may be stuck with it
            return decode(data, self._shape[0], self._shape[2], self._bit_depth, check=False)
        except Unreadable as reason:
            raise UserError(f"sample {sample_id} in shard {shard} cannot be decoded: {reason}") from None


def _rebatch(groups: Iterator[np.ndarray], batch_size: int, shape: tuple[int, ...]) -> Iterator[tuple[int, np.ndarray]]:
    """The same images in batches of another size, with the row that each begins at."""
    start = 0
    rest = np.empty((0, *shape), dtype=np.uint8)
    for group in groups:
        rest = np.concatenate([rest, group])
        while len(rest) >= batch_size:
            yield start, np.ascontiguousarray(rest[:batch_size])
            rest = rest[batch_size:]
            start += batch_size
    if len(rest):
        yield start, rest


@contextmanager
def _cache_file(path: Path, shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A new .npy file that gets its name only once it was written to its end."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(_npy_header(shape))
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()
