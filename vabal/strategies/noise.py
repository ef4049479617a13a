"""Numbers drawn from (seed, sample id): the same wherever and in whatever order a sample comes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

TIES, NOISE = 0, 1  # what a hash is drawn for
_HASH_ROWS = 2**16  # ids hashed at once


def uniform_noise(sample_ids: Any, seed: int) -> NDArray[np.float64]:
    """noise_N in (0, 1), the same for the same seed and id."""
    hashed = hash_ids(sample_ids, seed, NOISE)
    return ((hashed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbel_noise(sample_ids: Any, seed: int) -> NDArray[np.float64]:
    """Standard Gumbel noise_N, the same for the same seed and id."""
    return np.asarray(-np.log(-np.log(uniform_noise(sample_ids, seed))))


def hash_ids(sample_ids: Any, seed: int, purpose: int = TIES) -> NDArray[np.uint64]:
    """A 64-bit hash of (seed, purpose, id) for each id: FNV-1a over its UTF-8 bytes, then mixed as splitmix64 does."""
    ids = np.asarray([str(sample_id) for sample_id in sample_ids], dtype=str)
    start = _mix(np.array([seed % 2**64], dtype=np.uint64) * np.uint64(2) + np.uint64(purpose))[0]
    hashed = np.empty(len(ids), dtype=np.uint64)
    for first in range(0, len(ids), _HASH_ROWS):
        rows = slice(first, first + _HASH_ROWS)
        hashed[rows] = _mix(_fnv(ids[rows]) ^ start)
    return hashed


def _fnv(ids: NDArray[np.str_]) -> NDArray[np.uint64]:
    encoded = np.char.encode(ids, "utf-8")
    width = encoded.dtype.itemsize
    bytes_N_L = encoded.view(np.uint8).reshape(len(encoded), width) if width else np.zeros((len(ids), 0), np.uint8)
    lengths = np.char.str_len(encoded)
    value = np.full(len(ids), 0xCBF29CE484222325, dtype=np.uint64)
    for place in range(width):
        mixed = (value ^ bytes_N_L[:, place]) * np.uint64(0x100000001B3)
        value = np.where(place < lengths, mixed, value)  # ids of other shards may be longer: the padding must not show
    return value


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
