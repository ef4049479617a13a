"""The pool's images: decoded safely, kept in shards as their files' own bytes, read back streaming."""

from typing import TYPE_CHECKING

from vabal._lazy import members

if TYPE_CHECKING:
    from vabal.images.decoded import DecodedShards
    from vabal.images.decoding import Unreadable, decode, probe, read, shape, thumbnail
    from vabal.images.shard_files import SharedShards
    from vabal.images.shards import encoded, encoded_many, write_shards
    from vabal.images.unreadable import note_left_out, quarantine, safe_name

__all__ = [
    "DecodedShards",
    "SharedShards",
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
    "thumbnail",
    "write_shards",
]

__getattr__ = members(
    __name__,
    {
        "decoded": ("DecodedShards",),
        "decoding": (
            "Unreadable",
            "decode",
            "probe",
            "read",
            "shape",
            "thumbnail",
        ),
        "shard_files": ("SharedShards",),
        "shards": (
            "encoded",
            "encoded_many",
            "write_shards",
        ),
        "unreadable": (
            "note_left_out",
            "quarantine",
            "safe_name",
        ),
    },
)
