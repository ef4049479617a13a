"""The pool's images: decoded safely, kept in shards as their files' own bytes, read back streaming."""

from vabal.images.decoded import DecodedShards
from vabal.images.decoding import Unreadable, decode, probe, read, shape
from vabal.images.shards import encoded, encoded_many, write_shards
from vabal.images.unreadable import note_left_out, quarantine, safe_name

__all__ = [
    "DecodedShards",
    "Unreadable",
    "decode",
    "encoded",
    "encoded_many",
    "note_left_out",
    "probe",
    "quarantine",
    "read",
    "safe_name",
    "shape",
    "write_shards",
]
