"""The manifests, their chain, and git's tags."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vabal import rounds
from vabal.audit.findings import UNREADABLE, Finding, Record, one_line, span
from vabal.rounds import round_folder, tag_name

_TAGGED = re.compile(r"^manifest sha256:([0-9a-f]{64})$", re.MULTILINE)


# -- manifests, their chain and the tags --------------------------------------------------------------------------


def read_records(data: Path) -> tuple[list[Record], list[Finding]]:
    """Every manifest that can be read, oldest first."""
    records: list[Record] = []
    findings: list[Finding] = []
    names = sorted(path.name for path in (data / "rounds").glob("*") if path.is_dir() and path.name.isdecimal())
    if not names:
        findings.append(Finding(None, "rounds", "there is no round"))
    for name in names:
        file = f"rounds/{name}/manifest.json"
        try:
            record = Record.parse((data / file).read_bytes())
        except FileNotFoundError:
            findings.append(Finding(int(name), file, "missing"))
        except UNREADABLE as error:
            findings.append(Finding(int(name), file, f"not a readable manifest: {one_line(error)}"))
        else:
            if record.round != int(name):
                findings.append(Finding(int(name), file, f"it is the manifest of round {record.round}"))
            else:
                records.append(record)
    return records, findings


def check_chain(records: Sequence[Record]) -> Iterator[Finding]:
    """Rounds without gaps, each naming the digest of the manifest before it."""
    previous: Record | None = None
    for record in records:
        expected = 0 if previous is None else previous.round + 1
        if record.round != expected:
            missing = span(expected, record.round - 1)
            yield Finding(expected, round_folder(Path(), expected).as_posix(), f"no readable record of {missing}")
        elif previous is None and record.parent is not None:
            yield Finding(0, record.file, "round 0 names a manifest before it")
        elif previous is not None and record.parent != previous.digest:
            what = f"its sha256 is not the one that round {record.round} was built on"
            yield Finding(previous.round, previous.file, what)
        if previous is not None and record.round == expected and record.pools_before != previous.pools_after:
            what = f"pools_before are not the pools that round {previous.round} left"
            yield Finding(record.round, record.file, what)
        previous = record


def check_tags(
    records: Sequence[Record], tags: Mapping[str, str], later: Collection[int] = (), pending: int | None = None
) -> Iterator[Finding]:
    """Every round's tag stands, and names the digest of its manifest; no tag stands for a round that is gone.

    `later`: rounds that came after this checkout. `pending`: the round whose publication was cut short, maybe before
    its tag.
    """
    by_tag = {tag_name(record.round): record for record in records}
    for name, record in by_tag.items():
        file = record.file
        said = _TAGGED.search(tags.get(name, ""))
        if name not in tags and record.round == pending:
            continue
        if name not in tags:
            yield Finding(record.round, file, f"git has no tag {name} (`git fetch --tags` brings tags)")
        elif said is None:
            yield Finding(record.round, file, f"git tag {name} names no manifest digest")
        elif said.group(1) != record.digest:
            yield Finding(record.round, file, f"its sha256 is not the one in git tag {name}")
    for name in sorted(set(tags) - set(by_tag)):
        round_number = rounds.number_of(name)
        if round_number is not None and round_number not in later and round_number != pending:
            file = round_folder(Path(), round_number).as_posix()
            what = f"git tag {name} stands for a round that is not here"
            yield Finding(
                round_number, file, f"{what}: undone, or this branch is behind (`git pull`, `vabal checkout`)"
            )
