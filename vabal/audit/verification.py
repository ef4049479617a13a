"""Is the record intact? Every digest, the chain of manifests, the pools' arithmetic and every pick, recomputed.

Works from the files below `data/` (and `promotions.jsonl` beside it), against the git tags' messages where they are
given. Each check is a function of its own that yields what it finds; none stops at the first finding, and what cannot
be read is a finding too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vabal.audit.chain import check_chain, check_tags, read_records
from vabal.audit.data_files import check_files, check_images, check_strangers, expected_files
from vabal.audit.findings import Finding, Record, span
from vabal.audit.manifests import check_manifests
from vabal.audit.outside import check_outside
from vabal.audit.places import Outside
from vabal.audit.replayed import read_pools
from vabal.audit.round_checks import Rounds, check_pools
from vabal.audit.selections import check_promotions, read_selections
from vabal.audit.shared import among
from vabal.audit.witnesses import later_rounds
from vabal.errors import UserError
from vabal.promotion.record import GitWitness


@dataclass(frozen=True)
class AuditReport:
    """What was checked, and everything that was found. `files` and `images` are those that were read."""

    findings: tuple[Finding, ...]
    rounds: int
    files: int
    images: int
    notes: tuple[str, ...] = ()  # what was not looked at, and why
    since: int = 0  # the first round that was checked in full

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
    since: int = 0,
    workers: int = 1,
) -> AuditReport:
    """Check the whole record in the folder `data`.

    `tags` maps the names of the rounds' git tags to their messages; None leaves the tags out. `images=False` leaves out
    the images' own bytes against the catalog (their shards' digests are checked in any case). `outside` is where git,
    the cache, S3 and the anchor can be asked; `promotions` is what git knows of the promotion record
    (`champion.witness_of`). Rounds before `since` are taken as verified before: manifests, tags and what the pools were
    after them are followed, their files are not read. With several `workers` (processes) the findings are the same.
    Raises UserError if there is no round `since`, or a worker dies.
    """
    records, findings = read_records(data)
    if since and since not in {record.round for record in records}:
        raise UserError(f"--since {since}: there is no such round (`vabal audit` lists them)")
    with among(workers) as each:
        if outside is not None:
            outside.each, outside.since = each, since
            everything, read = (expected_files(records, number) for number in (0, since))
            outside.earlier = frozenset(file for _, file, _ in everything) - {file for _, file, _ in read}
        findings += check_chain(records)
        findings += check_manifests(records)
        later = later_rounds(records, outside.repository) if outside else []
        pending = outside.pending if outside else None
        findings += check_tags(records, tags, later, pending) if tags is not None else []
        findings += check_outside(data, records, outside) if outside else []
        findings += check_files(data, records, since, each)
        findings += check_strangers(data, records)
        current, unread = read_pools(data, records)
        findings += unread
        selections, unread = read_selections(data, records)
        findings += unread
        if current is not None and records:
            findings += check_pools(Rounds(data, current, records, selections), since, each)
        if images and current is not None:
            findings += check_images(data, current.catalog, records, since, each)
        findings += check_promotions(data, promotions)
    seen = 0 if not images or current is None else int((current.catalog["added_round"] >= since).sum())
    notes = [*_said_of(records, later, pending, since), *(outside.notes if outside else [])]
    hashed = len(expected_files(records, since))
    return AuditReport(tuple(dict.fromkeys(findings)), len(records), hashed, seen, tuple(notes), since)


def _said_of(records: Sequence[Record], later: Sequence[int], pending: int | None, since: int) -> list[str]:
    said = []
    if since:
        said.append(
            f"{span(0, since - 1)} are taken as verified before: manifests, tags and the pools that they left were "
            "followed, their files were not read"
        )
    if pending is not None:
        return [*said, f"round {pending} is half published: `vabal round` finishes it, `vabal abandon` drops it"]
    if later:
        said.append(
            f"this is a checkout of round {records[-1].round}: {span(later[0], later[-1])} came later and stayed "
            "unseen (`vabal checkout newest` goes back)"
        )
    return said
