"""Where samples stand in the tables of candidates, for who asks about one of them in a year of nights.

A Parquet table gives a row by unpacking some ten thousand, milliseconds a round. An index holds what is told of a
candidate in small blocks, ordered by their ids, is named by the digest that the manifest has of its table, and is made
of that table alone: without it, or where it is damaged, the table is read. It is no part of the record and can be made
again.

In a block a column's numbers are packed byte by byte; columns of few values are one number together, the place of their
combination.
"""

import json
import mmap
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vabal import files
from vabal.pools.reading import opened
from vabal.rounds import tables
from vabal.rounds.manifests import manifest_numbers, round_folder

#: What is told of a candidate.
TOLD: Final = ("rank", "score", "predicted_class", "vae_class", "log_likelihood", "prior", "precision", "strategy")
#: Bytes of all indices together: the newest rounds', of a million candidates each a year.
MOST: Final = 2 * 10**9
_FORMAT: Final = 1  # another number where what stands in the files changes
_ROWS: Final = 2**12  # of a block
_FEW: Final = 2**8  # different numbers that stand once in the file, and their places in the blocks
_TOGETHER: Final = 2**12  # different combinations of values, of columns that share their places
_CODEC: Final = "zstd"


def keep(data: Path, folder: Path, most: int = MOST) -> list[int]:
    """Make the indices in `folder` that rounds below `data` lack, the newest first; of which rounds one was made.

    What no manifest names any more goes, and of the oldest rounds what together takes more than `most` bytes. Raises
    OSError where the folder cannot be written.
    """
    made, size, largest = [], 0, 0
    files.private_folder(folder)
    stale = {path.name for path in folder.iterdir()}
    for number in reversed(manifest_numbers(data)):
        digest = digest_of(data, number)
        if digest is None:
            continue
        path = _path(folder, digest)
        if Index.of(folder, digest) is None:
            if size + largest > most or not _make(round_folder(data, number) / tables.CANDIDATES_FILE, digest, path):
                continue
            made.append(number)
        largest = max(largest, path.stat().st_size)
        size += path.stat().st_size
        if size <= most:
            stale.discard(path.name)
    for name in stale:
        files.remove(folder / name)
    return made


def digest_of(data: Path, number: int) -> str | None:
    """The SHA-256 of a round's candidates that its manifest names; None if it names none, or cannot be read."""
    try:
        manifest = json.loads((round_folder(data, number) / "manifest.json").read_bytes())
        return str(manifest["files"][tables.CANDIDATES_FILE])
    except (OSError, ValueError, KeyError, TypeError):  # `audit --verify` says what is wrong with it
        return None


@dataclass(frozen=True)
class Index:
    """An opened one."""

    about: dict[bytes, bytes]
    blocks: pa.RecordBatch

    @classmethod
    def of(cls, folder: Path, digest: str) -> "Index | None":
        """That of the table with this digest; None if there is none that can be read."""
        try:
            with _path(folder, digest).open("rb") as stream:
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.py_buffer(content))
            if not reader.schema.equals(_SCHEMA):
                return None
            about, blocks = reader.schema.metadata, reader.get_batch(0)
            blocks.validate(full=True)
            return cls(about, blocks) if about[_HEAD] == _head_checksum(about, blocks) else None
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            return None

    def row(self, sample_id: str) -> dict[str, Any] | None:
        """What the table says of the sample; None if it was no candidate. Raises ValueError if the index is damaged."""
        wanted = sample_id.encode()
        place = bisect_right(self.blocks.column("first").to_pylist(), wanted) - 1
        if place < 0:
            return None
        rows, packed, crc32 = (self.blocks.column(name)[place].as_py() for name in ("rows", "packed", "crc32"))
        if _checksum(packed) != crc32:
            raise ValueError("a block of the index is damaged")
        ids, *columns = json.loads(self.about[_COLUMNS])
        at = _row_of(_unpacked(packed.pop(0), rows * np.dtype(ids["kind"]).itemsize), ids["kind"], wanted)
        if at is None:
            return None
        row = dict[str, Any]()
        for column in columns:
            kind = np.dtype(column["kind"])
            number = bytes(_unpacked(packed.pop(0), rows)[at] for _ in range(kind.itemsize))
            row |= zip(column["names"], self._told(column, np.frombuffer(number, kind)[0].item()), strict=True)
        return row

    def _told(self, column: dict[str, Any], number: Any) -> list[Any]:
        """One value for each of the column's names."""
        values = self.about.get(_values_of(column["names"]))
        if values is None:
            return [number]
        told: list[Any] = json.loads(values.split(b"\n")[number])
        return told


_COLUMNS: Final = b"columns"
_HEAD: Final = b"crc32"  # of all but the packed blocks, which have one each


def _values_of(names: list[str]) -> bytes:
    return f"values of {' '.join(names)}".encode()


def _path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.{_FORMAT}.arrow"


def _row_of(content: bytes, kind: str, wanted: bytes) -> int | None:
    by_bytes = np.frombuffer(content, np.uint8).reshape(np.dtype(kind).itemsize, -1)
    ids_N = np.ascontiguousarray(by_bytes.T).view(kind)[:, 0]
    at = int(ids_N.searchsorted(wanted))
    return at if at < len(ids_N) and ids_N[at] == wanted else None


def _packed(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec=_CODEC, asbytes=True)
    return packed


def _unpacked(packed: bytes, size: int) -> bytes:
    content: bytes = pa.decompress(packed, size, codec=_CODEC, asbytes=True)
    return content


_NUMBERS: Final = {"rows": "<i4", "crc32": "<u4"}


def _head_checksum(about: dict[bytes, bytes], blocks: pa.RecordBatch) -> bytes:
    told = [part for name in sorted(about) if name != _HEAD for part in (name, about[name])]
    # Not `to_numpy`, which loads pandas.
    numbers = [np.array(blocks.column(name).to_pylist(), kind).tobytes() for name, kind in _NUMBERS.items()]
    return str(zlib.crc32(b"".join([*told, *numbers, *blocks.column("first").to_pylist()]))).encode()


def _checksum(packed: list[bytes]) -> int:
    return zlib.crc32(b"".join(packed))


# -- how it is made -------------------------------------------------------------------------------------------------


def _make(table: Path, digest: str, path: Path) -> bool:
    """False where the table is missing, damaged or another one than the record's."""
    try:
        if files.file_sha256(table) != digest:
            return False
        file = opened(table, tables.OF_FEW_NAMES)
        told = [name for name in TOLD if name in file.schema_arrow.names]
        rows = file.read(["sample_id", *told], use_threads=False).combine_chunks()
    except (OSError, pa.ArrowException):  # `audit --verify` names it
        return False
    ids = rows.column("sample_id").combine_chunks()
    if not pc.all(pc.less_equal(ids[:-1], ids[1:])).as_py():
        rows = rows.take(pc.sort_indices(ids))
    columns = [_ids(rows.column("sample_id")), *_columns({name: rows.column(name).combine_chunks() for name in told})]
    kinds = [{"names": each.names, "kind": each.numbers_N.dtype.str} for each in columns]
    about = {_COLUMNS: json.dumps(kinds).encode()}
    for each in columns:
        if each.values is not None:
            about[_values_of(each.names)] = "\n".join(json.dumps(value) for value in each.values).encode()
    blocks = pa.RecordBatch.from_pylist(list(_blocks(columns)), schema=_SCHEMA)
    about[_HEAD] = _head_checksum(about, blocks)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, _SCHEMA.with_metadata(about)) as writer:
        writer.write_batch(blocks)
    files.write_bytes(path, memoryview(sink.getvalue()))
    return True


_SCHEMA: Final = pa.schema(
    {"first": pa.binary(), "rows": pa.int32(), "crc32": pa.uint32(), "packed": pa.list_(pa.binary())}
)


@dataclass(frozen=True)
class _Column:
    """One or several columns' numbers, or with `values` places among these, each a value for each name."""

    names: list[str]
    numbers_N: NDArray[Any]
    values: list[list[Any]] | None = None


def _ids(column: pa.ChunkedArray) -> _Column:
    return _Column(["sample_id"], np.array(column.cast(pa.binary()).to_pylist(), dtype=np.bytes_))


def _columns(told: dict[str, pa.Array]) -> Iterator[_Column]:
    names, places_N, values = list[str](), np.zeros(0, dtype=np.int64), list[list[Any]]()
    for name, column in told.items():
        if _of_many(column):
            yield _Column([name], _narrow(column.to_numpy()))
            continue
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode("encode")
        own = [*encoded.dictionary.to_pylist(), None]
        own_N = pc.fill_null(encoded.indices, len(own) - 1).to_numpy(zero_copy_only=False).astype(np.int64)
        if names:
            both = pa.array(places_N * len(own) + own_N).dictionary_encode()
            if len(both.dictionary) <= _TOGETHER:
                pairs = [divmod(pair, len(own)) for pair in both.dictionary.to_pylist()]
                values = [[*values[before], own[here]] for before, here in pairs]
                names, places_N = [*names, name], both.indices.to_numpy().astype(np.int64)
                continue
            yield _places(names, places_N, values)
        names, places_N, values = [name], own_N, [[value] for value in own]
    if names:
        yield _places(names, places_N, values)


def _of_many(column: pa.Array) -> bool:
    return pa.types.is_floating(column.type) and not column.null_count and len(pc.unique(column)) > _FEW


def _narrow(numbers_N: NDArray[Any]) -> NDArray[Any]:
    """As float32 where these are its numbers, as a compact record's are."""
    with np.errstate(over="ignore"):
        narrow_N = numbers_N.astype(np.float32)
    return narrow_N if np.array_equal(narrow_N, numbers_N) else numbers_N


def _places(names: list[str], places_N: NDArray[np.int64], values: list[list[Any]]) -> _Column:
    return _Column(names, places_N.astype(np.min_scalar_type(len(values))), values)


def _blocks(columns: list[_Column]) -> Iterator[dict[str, Any]]:
    ids_N = columns[0].numbers_N
    for start in range(0, len(ids_N), _ROWS):
        rows = slice(start, start + _ROWS)
        ids, *others = (_by_bytes(column.numbers_N[rows]) for column in columns)
        packed = [_packed(ids.tobytes()), *(_packed(each.tobytes()) for by_bytes in others for each in by_bytes)]
        yield {"first": bytes(ids_N[start]), "rows": len(ids_N[rows]), "crc32": _checksum(packed), "packed": packed}


def _by_bytes(numbers_N: NDArray[Any]) -> NDArray[np.uint8]:
    """The first byte of each number, then the second of each: what is alike packs small."""
    return np.ascontiguousarray(numbers_N).view(np.uint8).reshape(len(numbers_N), -1).T
