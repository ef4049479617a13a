"""The pools: which images there are, who labelled them, which wait. Five tables and the class names, as files."""

from vabal.pools.changes import apply_images, apply_labels, by_id, mark_requested, open_requests
from vabal.pools.columns import among, stack, typed
from vabal.pools.digest import digests, table_digest
from vabal.pools.files import load, read, read_table, save, write_table
from vabal.pools.groups import NEAR, groups_of, merged
from vabal.pools.invariants import check, places
from vabal.pools.opinions import standing
from vabal.pools.tables import (
    AVAILABLE,
    CLASSES_FILE,
    EVENTS,
    FROM_SOURCE,
    INCOMING,
    REJECTED,
    REQUESTED,
    SCHEMAS,
    TABLE_FILES,
    IntakeReport,
    Pools,
    counts,
)

__all__ = [
    "AVAILABLE",
    "CLASSES_FILE",
    "EVENTS",
    "FROM_SOURCE",
    "INCOMING",
    "NEAR",
    "REJECTED",
    "REQUESTED",
    "SCHEMAS",
    "TABLE_FILES",
    "IntakeReport",
    "Pools",
    "among",
    "apply_images",
    "apply_labels",
    "by_id",
    "check",
    "counts",
    "digests",
    "groups_of",
    "load",
    "mark_requested",
    "merged",
    "open_requests",
    "places",
    "read",
    "read_table",
    "save",
    "stack",
    "standing",
    "table_digest",
    "typed",
    "write_table",
]
