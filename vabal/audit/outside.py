"""What vouches for the record from outside `data/`: git's tags and their commits, the pins, S3, a remote, an anchor.

Whoever forges a history below `data/` must forge these as well. Versions and S3 stand behind protocols; each check
yields what it finds, and what cannot be looked at here is said in a note, not passed over.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from vabal.audit.findings import Finding, Record
from vabal.audit.places import Outside
from vabal.audit.staying import check_objects
from vabal.audit.storage import check_bucket, check_here, check_pins, check_remote_tags
from vabal.audit.witnesses import (
    asks_for_signature,
    check_anchor,
    check_decisions,
    check_places,
    check_registry,
    check_signatures,
    later_rounds,
)


def check_outside(data: Path, records: Sequence[Record], outside: Outside) -> Iterator[Finding]:
    """Every check of this module whose source is at hand."""
    if not records:
        return
    tags = outside.repository.tag_objects()
    later = later_rounds(records, outside.repository)
    damage = outside.repository.damage()
    if damage is not None:
        yield Finding(None, "git", f"the repository's objects were changed or lost: {damage}")
    if outside.repository.is_shallow():
        yield Finding(None, "git", "this clone left older commits out: `git fetch --unshallow --tags` brings them")
    else:
        yield from check_places(records, tags, outside.repository)
        yield from check_decisions(tags, outside.repository)
    yield from check_here(records, tags, outside)
    yield from check_pins(data, records, tags, outside)
    if outside.sign or any(asks_for_signature(record) for record in records):
        yield from check_signatures(records, tags, outside)
    if outside.anchor is not None:
        yield from check_anchor(data, records, later, outside)
    if outside.git_remote is not None:
        yield from check_remote_tags(tags, outside)
    if outside.bucket is not None:
        yield from check_bucket(data, records, tags, outside)
    if outside.objects is not None:
        yield from check_objects(data, records, outside)
    if outside.registry is not None:
        yield from check_registry(data, records, outside)
