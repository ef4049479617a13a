"""The pools: which images there are, who labelled them, which wait. Tables and the class names, as files."""

from typing import TYPE_CHECKING

from vabal._lazy import members

if TYPE_CHECKING:
    from vabal.pools.changes import (
        apply_images,
        apply_labels,
        ask_again,
        by_id,
        mark_requested,
        mark_still_requested,
        open_again,
        open_requests,
    )
    from vabal.pools.class_names import ADD, MERGE, RENAME, Classes, in_words
    from vabal.pools.classes import apply_classes, changes_of, classes_at, named
    from vabal.pools.columns import among, stack, typed
    from vabal.pools.digest import digests, table_digest
    from vabal.pools.files import load, read, read_one, read_table, save, table_files, write_table
    from vabal.pools.groups import NEAR, groups_of, merged
    from vabal.pools.invariants import check, places
    from vabal.pools.opinions import counting, standing
    from vabal.pools.reading import read_classes
    from vabal.pools.tables import (
        AVAILABLE,
        CLASS_CHANGES,
        CLASS_EVENTS_FILE,
        CLASSES_FILE,
        DISPUTED,
        EVENTS,
        FROM_SOURCE,
        INCOMING,
        REJECTED,
        REQUESTED,
        SCHEMAS,
        SPARSE,
        SUSPECTED,
        TABLE_FILES,
        IntakeReport,
        Pools,
        counts,
        no_rows,
    )

__all__ = [
    "ADD",
    "AVAILABLE",
    "CLASSES_FILE",
    "CLASS_CHANGES",
    "CLASS_EVENTS_FILE",
    "DISPUTED",
    "EVENTS",
    "FROM_SOURCE",
    "INCOMING",
    "MERGE",
    "NEAR",
    "REJECTED",
    "RENAME",
    "REQUESTED",
    "SCHEMAS",
    "SPARSE",
    "SUSPECTED",
    "TABLE_FILES",
    "Classes",
    "IntakeReport",
    "Pools",
    "among",
    "apply_classes",
    "apply_images",
    "apply_labels",
    "ask_again",
    "by_id",
    "changes_of",
    "check",
    "classes_at",
    "counting",
    "counts",
    "digests",
    "groups_of",
    "in_words",
    "load",
    "mark_requested",
    "mark_still_requested",
    "merged",
    "named",
    "no_rows",
    "open_again",
    "open_requests",
    "places",
    "read",
    "read_classes",
    "read_one",
    "read_table",
    "save",
    "stack",
    "standing",
    "table_digest",
    "table_files",
    "typed",
    "write_table",
]

__getattr__ = members(
    __name__,
    {
        "changes": (
            "apply_images",
            "apply_labels",
            "ask_again",
            "by_id",
            "mark_requested",
            "mark_still_requested",
            "open_again",
            "open_requests",
        ),
        "class_names": (
            "ADD",
            "MERGE",
            "RENAME",
            "Classes",
            "in_words",
        ),
        "classes": (
            "apply_classes",
            "changes_of",
            "classes_at",
            "named",
        ),
        "columns": (
            "among",
            "stack",
            "typed",
        ),
        "digest": (
            "digests",
            "table_digest",
        ),
        "files": (
            "load",
            "read",
            "read_one",
            "read_table",
            "save",
            "table_files",
            "write_table",
        ),
        "groups": (
            "NEAR",
            "groups_of",
            "merged",
        ),
        "invariants": (
            "check",
            "places",
        ),
        "opinions": (
            "counting",
            "standing",
        ),
        "reading": ("read_classes",),
        "tables": (
            "AVAILABLE",
            "CLASS_CHANGES",
            "CLASS_EVENTS_FILE",
            "CLASSES_FILE",
            "DISPUTED",
            "EVENTS",
            "FROM_SOURCE",
            "INCOMING",
            "REJECTED",
            "REQUESTED",
            "SCHEMAS",
            "SPARSE",
            "SUSPECTED",
            "TABLE_FILES",
            "IntakeReport",
            "Pools",
            "counts",
            "no_rows",
        ),
    },
)
