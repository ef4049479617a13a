"""Pictures that show the same: equal pixels, and near copies (saved anew, resized, a little brighter).

A near copy has a perceptual hash (imagehash's pHash, 256 bits) within a Hamming distance, and a thumbnail that
correlates: docs/decisions/near-copies.md says how both were chosen. What was computed of a shard is kept outside the
pools and can be made again from them.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import imagehash
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageStat
from scipy.fft import dctn
from scipy.spatial import KDTree

from vabal import images
from vabal.images import shards
from vabal.settings.models import ImageSettings

_VERSION: Final = f"2-{shards.decoder()}-{imagehash.__version__}"
_HASH_SIDE: Final = 16  # 256 bits
_THUMB_SIDE: Final = 16
_LEAST_SIDE: Final = 8  # a smaller picture, or a flatter one, has no near copies, only equals
_LEAST_DEVIATION: Final = 2.0  # grey levels of the thumbnail
_CORRELATION: Final = {True: 0.998, False: 0.97}  # by whether both are of the largest class: their copies keep more
_CLEAR: Final = 0.999  # so alike that more bits may differ: of a smooth picture, most of them are noise
_CLEAR_SHARE: Final = 3
_GAIN: Final = 1.5  # how many times the contrast of one may be that of the other
_SIDES: Final = (32, 64, 128)  # pixels, where the classes of size begin
_DIFFERENCE: Final = np.array([255.0, 12.0, 6.0, 6.0])  # grey levels at one place of the thumbnail, by class of size
_COLOUR: Final = 16.0  # levels that the mean red and blue, each less green, may differ; grey may be of any colour
_LOW: Final = 4  # frequencies a side by which candidates are looked up
_CHUNK: Final = 1024
_TABLE: Final = pa.schema([("sample_id", pa.string()), ("pixels", pa.string()), ("print", pa.binary())])


def fingerprint(image: Image.Image) -> bytes:
    """A picture's fingerprint: its size's class and tint, then of its grey values hash and thumbnail.

    Empty where there is too little in the picture.
    """
    grey = image.convert("L")
    thumb = np.asarray(grey.resize((_THUMB_SIDE, _THUMB_SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0))
    if min(image.size) < _LEAST_SIDE or thumb.std() < _LEAST_DEVIATION:
        return b""
    side = 4 * _HASH_SIDE
    small = grey.resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0) if min(grey.size) > side else grey
    bits = imagehash.phash(small, hash_size=_HASH_SIDE).hash
    size = sum(min(image.size) >= side for side in _SIDES)
    return bytes([size, *_tint(image)]) + np.packbits(bits).tobytes() + thumb.tobytes()


def _tint(image: Image.Image) -> tuple[int, int]:
    """Mean red and mean blue, each less the mean green, halved to fit a byte: 128 is grey."""
    if image.mode == "L":
        return 128, 128
    red, green, blue = ImageStat.Stat(image.convert("RGB")).mean
    return min(255, round(128 + (red - green) / 2)), min(255, round(128 + (blue - green) / 2))


class Index:
    """Finds near copies among N fingerprints; empty ones have none."""

    def __init__(self, prints: Sequence[bytes], distance: int) -> None:
        self._distance = distance
        self._parts = _Parts(prints)
        self._trees = {
            large: (rows, KDTree(self._parts.low_N_15[rows]))
            for large in (False, True)
            if len(rows := self._rows(large))
        }

    def _rows(self, large: bool) -> np.ndarray:
        return np.flatnonzero(self._parts.there_N & (self._parts.large_N == large))

    def near(self, prints: Sequence[bytes]) -> Iterator[tuple[int, int]]:
        """(place among `prints`, place in the index) of every pair of near copies."""
        for start in range(0, len(prints), _CHUNK):
            asked = _Parts(prints[start : start + _CHUNK])
            for large, (rows, tree) in self._trees.items():
                for asked_large in (False, True):
                    some = np.flatnonzero(asked.there_N & (asked.large_N == asked_large))
                    least = _CORRELATION[large and asked_large]
                    found = tree.query_ball_point(asked.low_N_15[some], np.sqrt(2 * (1 - least)) + 1e-6)
                    for one, places in zip(some, found, strict=True):
                        close = self._close(asked, int(one), rows[np.array(places, dtype=np.int64)], least)
                        yield from ((start + int(one), int(other)) for other in close)

    def _close(self, asked: "_Parts", one: int, places: np.ndarray, least: float) -> np.ndarray:
        there = self._parts
        bits = np.bitwise_count(there.hash_N_4[places] ^ asked.hash_N_4[one]).sum(axis=1)
        some = bits <= _CLEAR_SHARE * self._distance
        places, bits = places[some], bits[some]
        alike = there.normal(places) @ asked.normal(np.array([one]))[0]
        allowed = np.where(alike >= _CLEAR, _CLEAR_SHARE * self._distance, self._distance)
        places = places[(alike >= least) & (bits <= allowed)]
        return np.sort(places[self._same_everywhere(asked, one, places)])

    def _same_everywhere(self, asked: "_Parts", one: int, places: np.ndarray) -> np.ndarray:
        """Which show the same at each place of the thumbnail, but for brightness and contrast, in the same colours.

        Other pictures of one kind of part correlate as copies do, and differ at the part's edges or where its fault is.
        """
        there = self._parts
        thumb, deviation = asked.normal(np.array([one])), asked.deviation(np.array([one]))
        gain = there.deviation(places) / deviation
        levels = np.maximum(there.deviation(places), deviation) * _THUMB_SIDE  # a normal thumbnail has length 1
        difference = np.abs(there.normal(places) - thumb).max(axis=1, initial=0) * levels
        most = _DIFFERENCE[np.minimum(there.size_N[places], asked.size_N[one])]
        tints, tint = there.tint_N_2[places], asked.tint_N_2[one]
        some_grey = (np.abs(tints).max(axis=1, initial=0) <= 1) | (np.abs(tint).max() <= 1)
        coloured = np.abs(tints - tint).max(axis=1, initial=0) * 2 <= _COLOUR
        same: np.ndarray = (difference <= most) & (gain <= _GAIN) & (gain >= 1 / _GAIN) & (some_grey | coloured)
        return same


class _Parts:
    """Fingerprints as arrays."""

    def __init__(self, prints: Sequence[bytes]) -> None:
        self.there_N = np.array([len(item) > 0 for item in prints], dtype=bool)
        length = 3 + _HASH_SIDE**2 // 8 + _THUMB_SIDE**2
        rows = np.frombuffer(b"".join(item or bytes(length) for item in prints), dtype=np.uint8).reshape(-1, length)
        self.size_N, self.large_N = rows[:, 0], rows[:, 0] == len(_SIDES)
        self.tint_N_2 = rows[:, 1:3].astype(np.float32) - 128
        self.hash_N_4 = np.ascontiguousarray(rows[:, 3 : 3 + _HASH_SIDE**2 // 8]).view(np.uint64)
        self._thumbs = rows[:, 3 + _HASH_SIDE**2 // 8 :]
        self.low_N_15 = np.empty((len(rows), _LOW**2 - 1), dtype=np.float32)
        for start in range(0, len(rows), 16 * _CHUNK):
            places = np.arange(start, min(start + 16 * _CHUNK, len(rows)))
            pictures = self.normal(places).reshape(-1, _THUMB_SIDE, _THUMB_SIDE)
            waves = dctn(pictures, axes=(1, 2), norm="ortho")  # keeps distances, so the lowest ones never add any
            self.low_N_15[places] = waves[:, :_LOW, :_LOW].reshape(len(places), -1)[:, 1:]

    def normal(self, places: np.ndarray) -> np.ndarray:
        """Thumbnails of mean 0 and length 1, places x 256."""
        thumbs = self._thumbs[places].astype(np.float32)
        thumbs -= thumbs.mean(axis=1, keepdims=True)
        lengths: np.ndarray = np.linalg.norm(thumbs, axis=1, keepdims=True)
        normal: np.ndarray = thumbs / np.maximum(lengths, 1e-6)
        return normal

    def deviation(self, places: np.ndarray) -> np.ndarray:
        """The thumbnails' standard deviations, in grey levels."""
        deviation: np.ndarray = self._thumbs[places].astype(np.float32).std(axis=1)
        return deviation


def pairs(prints: Sequence[bytes], distance: int) -> list[tuple[int, int]]:
    """Every pair of near copies among fingerprints, the earlier first; none for a distance of 0."""
    if distance == 0 or not prints:
        return []
    return sorted((one, other) for one, other in Index(prints, distance).near(prints) if one < other)


def of_shards(data: Path, catalog: pd.DataFrame, cache: Path, settings: ImageSettings) -> pd.DataFrame:
    """sample_id, pixels (digest) and print of the pool's images, by shard; computed once a shard, kept in `cache`."""
    tables = [_of_shard(data, str(shard), cache, settings) for shard in catalog["shard"].unique()]
    table = pd.concat(tables, ignore_index=True) if tables else _TABLE.empty_table().to_pandas()
    return table[table["sample_id"].isin(catalog["sample_id"])].reset_index(drop=True)


def _of_shard(data: Path, shard: str, cache: Path, settings: ImageSettings) -> pd.DataFrame:
    path = _kept(data, shard, cache, settings)
    if path.exists():
        with suppress(pa.ArrowException):  # damaged: it is made again
            kept: pd.DataFrame = pq.read_table(path, schema=_TABLE).to_pandas()
            return kept
    rows = [(sample_id, *of_file(content, settings)) for sample_id, content in shards.whole_shard(data, shard)]
    return _keep(rows, path)


def remember(
    data: Path, shard: str, rows: Sequence[tuple[str, str, bytes]], cache: Path, settings: ImageSettings
) -> None:
    """Keep what is known already of a shard's images, (sample_id, pixels, print) each, so that nobody reads them."""
    _keep(rows, _kept(data, shard, cache, settings))


def _kept(data: Path, shard: str, cache: Path, settings: ImageSettings) -> Path:
    digest = shards.shard_digest(data, shard)
    return cache / f"{shard}-{digest[:16]}-{settings.bit_depth}-{_VERSION}.parquet"


def _keep(rows: Sequence[tuple[str, str, bytes]], path: Path) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=_TABLE.names)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    pq.write_table(pa.Table.from_pandas(table, _TABLE, preserve_index=False), temporary)
    temporary.replace(path)
    return table


def of_file(content: bytes, settings: ImageSettings) -> tuple[str, bytes]:
    """Digest of the pixels and fingerprint of an image of the pool; both empty for one that would be refused today."""
    try:
        picture = images.read(content, settings.model_copy(update={"max_megapixels": 1e6, "max_megabytes": 1e6}))
    except images.Unreadable:
        return "", b""
    return picture.digest(), fingerprint(picture.image)
