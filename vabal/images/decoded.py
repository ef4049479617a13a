"""Shards decoded to one size, streamed; what was decoded once is kept as arrays beside `data/`."""

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from vabal.errors import UserError
from vabal.files import Shared, found, touched
from vabal.images.decoding import Unreadable, decode, decoder
from vabal.images.rows import read_rows
from vabal.images.shard_files import ShardFiles, ShardFolders
from vabal.images.shards import GROUP_ROWS, rows_of
from vabal.settings.base import BitDepth

__all__ = ["DecodedShards"]

_FOLDER: Final = "decoded"  # where several machines share what they decoded
_DECODERS: Final = 8  # threads at most
_BYTES_WORTH_A_THREAD: Final = 2**13  # of an encoded image; of smaller ones most of the time is Python's, which has one


class DecodedShards:
    """The pool's images as uint8 arrays, shard by shard, in constant memory.

    The first pass over a shard decodes it and fills a cache (`.npy` files in `cache`, named for the shard's content,
    the image size and what decoded it); later passes read raw bytes. `data` is a folder with `images/`, or several of
    them, searched in turn, or says where shards lie; `names` follows `catalog`, or else what `data` says. With `shared`
    what one machine decoded is there for all.
    """

    def __init__(
        self,
        data: Path | Sequence[Path] | ShardFiles,
        cache: Path,
        size: int,
        channels: int,
        *,
        catalog: pd.DataFrame | None = None,
        bit_depth: BitDepth = "auto",
        shared: Shared | None = None,
    ) -> None:
        self._bit_depth: BitDepth = bit_depth
        folders = [data] if isinstance(data, Path) else data
        self._files: ShardFiles = ShardFolders(folders) if isinstance(folders, Sequence) else folders
        self._shared = shared
        self._cache = cache
        self._shape = (size, size, channels)
        self._catalog = catalog

    def names(self) -> list[str]:
        """Shard names in catalog order."""
        if self._catalog is not None:
            return [str(name) for name in self._catalog["shard"].unique()]
        return self._files.names()

    def rows(self, shard: str) -> int:
        """How many images the shard holds."""
        return self._files.rows(shard)

    def sample_ids(self, shard: str) -> np.ndarray:
        """The shard's sample ids, in row order (an object array of str)."""
        return self._files.sample_ids(shard)

    def batches(self, shard: str, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first row, images_N_H_W_K uint8) over the whole shard in row order.

        Raises UserError naming the sample if an image of the shard cannot be decoded.
        """
        total, path = self.rows(shard), self._cached(shard)
        if self._usable(path, total) or self._fetched(path, total):
            yield from self._read_batches(path, total, batch_size)
            return
        with _cache_file(path, (total, *self._shape)) as cache:
            for start, images in _rebatch(self._decode_groups(self._files.open(shard), shard), batch_size, self._shape):
                cache.write(images.data)
                yield start, images
        if self._shared is not None:
            self._shared.publish(f"{_FOLDER}/{path.name}", path)

    def gather(self, catalog_rows: pd.DataFrame) -> np.ndarray:
        """images_N_H_W_K uint8 of these catalog rows, in the order given."""
        images = np.empty((len(catalog_rows), *self._shape), dtype=np.uint8)
        shards = catalog_rows["shard"].to_numpy(dtype=object)
        rows = catalog_rows["row"].to_numpy(dtype=np.int64)
        for shard in dict.fromkeys(shards):
            places = np.flatnonzero(shards == shard)
            self._gather_shard(str(shard), rows[places], places, images)
        return images

    def keep(self, shard: str) -> None:
        """Decodes the shard into the cache, if it is not there."""
        if not self._usable(self._cached(shard), self.rows(shard)):
            for _ in self.batches(shard, GROUP_ROWS):
                pass

    def _gather_shard(self, shard: str, rows: np.ndarray, places: np.ndarray, images: np.ndarray) -> None:
        total, path = self.rows(shard), self._cached(shard)
        if len(rows) and (rows.min() < 0 or rows.max() >= total):
            raise UserError(f"shard {shard} has {total} images, no row {int(rows.max())}")
        order = np.argsort(rows, kind="stable")
        if 2 * len(rows) > total:
            self.keep(shard)
        elif not self._files.is_here(shard) and not self._usable(path, total):
            there = found(self._shared, f"{_FOLDER}/{path.name}", path)
            if there is not None:
                images[places[order]] = read_rows(there, rows[order])
                return
            self.keep(shard)
        if self._usable(path, total):
            with path.open("rb", buffering=0) as raw:
                begin = len(_npy_header((total, *self._shape)))
                for place, row in zip(places[order], rows[order], strict=True):
                    raw.seek(begin + int(row) * images[place].nbytes)
                    raw.readinto(images[place].data)
            return
        encoded_rows = rows_of(self._files.open(shard), rows[order].tolist())
        for place, (sample_id, data) in zip(places[order], encoded_rows, strict=True):
            images[place] = self._decode(shard, sample_id, data)

    def content(self, shard: str) -> str:
        """A name for the shard's decoded images: another shard, size or decoder has another."""
        return self._cached(shard).stem

    def _cached(self, shard: str) -> Path:
        digest = self._files.digest(shard)
        size, _, channels = self._shape
        return self._cache / f"{shard}-{digest[:16]}-{size}x{channels}-{self._bit_depth}-{decoder()}.npy"

    def _fetched(self, path: Path, total: int) -> bool:
        """Whether another machine had decoded the shard; then it is here as well."""
        there = None if path.exists() else found(self._shared, f"{_FOLDER}/{path.name}", path)
        if there is None or isinstance(there, Path):
            return False
        there.here()
        return self._usable(path, total)

    def _usable(self, path: Path, total: int) -> bool:
        """Whether the cache file is there and as long as it must be (a full disk may have cut it)."""
        expected = len(_npy_header((total, *self._shape))) + total * int(np.prod(self._shape))
        return touched(path) and path.stat().st_size == expected

    def _read_batches(self, path: Path, total: int, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        with path.open("rb", buffering=0) as raw:  # plain reads: pages of a memory map would count as resident memory
            raw.seek(len(_npy_header((total, *self._shape))))
            for start in range(0, total, batch_size):
                images = np.empty((min(batch_size, total - start), *self._shape), dtype=np.uint8)
                if raw.readinto(images.data) != images.nbytes:
                    raise UserError(f"{path} was cut while it was read: delete it and run again")
                yield start, images

    def _decode_groups(self, file: pq.ParquetFile, shard: str) -> Iterator[np.ndarray]:
        start = 0
        with ThreadPoolExecutor(min(_DECODERS, len(os.sched_getaffinity(0))), "decoder") as threads:
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                images = np.empty((about.num_rows, *self._shape), dtype=np.uint8)
                small = about.total_byte_size < _BYTES_WORTH_A_THREAD * about.num_rows
                encoded = rows_of(file, range(start, start + about.num_rows))
                one = partial(self._decode, shard)
                for index, image in enumerate(starmap(one, encoded) if small else _in_threads(threads, one, encoded)):
                    images[index] = image
                start += about.num_rows
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


def _in_threads(
    threads: ThreadPoolExecutor, decode_one: Callable[[str, bytes], np.ndarray], encoded: Iterable[tuple[str, bytes]]
) -> Iterator[np.ndarray]:
    """The images in order, a few of them decoded ahead."""
    coming: deque[Future[np.ndarray]] = deque()
    try:
        for sample_id, data in encoded:
            coming.append(threads.submit(decode_one, sample_id, data))
            if len(coming) > 4 * _DECODERS:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


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
