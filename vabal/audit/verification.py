"""Is the record intact? Every digest, the chain of manifests, the pools' arithmetic and every pick, recomputed.

Works from the files below `data/` (and `promotions.jsonl` beside it), against the git tags' messages where they are
given. Each check is a function of its own that yields what it finds; none stops at the first finding, and what cannot
be read is a finding too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vabal.audit.chain import check_chain, check_tags, read_records
from vabal.audit.data_files import check_files, check_images, check_strangers
from vabal.audit.findings import UNREADABLE, Finding, Record, one_line, span
from vabal.audit.manifests import check_manifests
from vabal.audit.outside import check_outside
from vabal.audit.places import Outside
from vabal.audit.replayed import check_pools, read_pools
from vabal.audit.selections import check_promotions, read_selections
from vabal.audit.witnesses import later_rounds
from vabal.promotion.record import GitWitness


@dataclass(frozen=True)
class AuditReport:
    """What was checked, and everything that was found."""

    findings: tuple[Finding, ...]
    rounds: int
    files: int
    images: int
    notes: tuple[str, ...] = ()  # what was not looked at, and why

    @property
    def ok(self) -> bool:
        return not self.findings

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def verify(
    data: Path,
    tags: Mapping[str, str] | None = None,
    *,
    images: bool = True,
    outside: Outside | None = None,
    promotions: GitWitness | None = None,
) -> AuditReport:
    """Check the whole record in the folder `data`.

    `tags` maps the names of the rounds' git tags to their messages; None leaves the tags out. `images=False` leaves out
    the images' own bytes against the catalog (their shards' digests are checked in any case). `outside` is where git,
    the cache, S3 and the anchor can be asked; `promotions` is what git knows of the promotion record
    (`champion.witness_of`).
    """
    records, findings = read_records(data)
    findings += check_chain(records)
    findings += check_manifests(records)
    later = later_rounds(records, outside.repository) if outside else []
    pending = outside.pending if outside else None
    findings += check_tags(records, tags, later, pending) if tags is not None else []
    findings += check_outside(data, records, outside) if outside else []
    findings += check_files(data, records)
    findings += check_strangers(data, records)
    current, unread = read_pools(data, records)
    findings += unread
    selections, unread = read_selections(data, records)
    findings += unread
    if current is not None and records:
        findings += _guarded(check_pools(data, current, records, selections), records[-1].round, "label_events.parquet")
    if images and current is not None:
        findings += check_images(data, current.catalog, records)
    findings += check_promotions(data, promotions)
    hashed = sum(len(record.files) for record in records) + (
        len(records[-1].shards) + len(records[-1].tables) if records else 0
    )
    seen = len(current.catalog) if images and current is not None else 0
    notes = [*_said_of(records, later, pending), *(outside.notes if outside else [])]
    return AuditReport(tuple(dict.fromkeys(findings)), len(records), hashed, seen, tuple(notes))


def _said_of(records: Sequence[Record], later: Sequence[int], pending: int | None) -> list[str]:
    if pending is not None:
        return [f"round {pending} is half published: `vabal round` finishes it, `vabal abandon` drops it"]
    if not later:
        return []
    return [
        f"this is a checkout of round {records[-1].round}: {span(later[0], later[-1])} came later and stayed unseen "
        "(`vabal checkout newest` goes back)"
    ]


def _guarded(findings: Iterator[Finding], round_number: int, file: str) -> Iterator[Finding]:
    """The findings; and one more where damage that no reader notices (text that is none, say) stops the check."""
    try:
        yield from findings
    except UNREADABLE as error:
        yield Finding(round_number, file, f"damaged, the check ended early: {one_line(error)}")
