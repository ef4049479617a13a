"""`promotions.jsonl`: an append-only chain of decisions, and what else vouches for it.

A chain shows that no line in the middle was edited. It does not show lines that were cut off its end, nor a record that
was chained anew. So every decision has an annotated git tag (`promotion/0007`) that names its digest, every later
manifest names the record's head, every commit that holds the file holds a beginning of it, and the versions in MLflow
carry a tag for each entry. `disagreements` holds all of them against the file.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vabal.errors import UserError
from vabal.files import canonical_json, sha256, write_bytes

RECORD = "promotions.jsonl"
TAGS = "promotion/*"
_TAG = re.compile(r"promotion/(\d{4,})")  # others that begin so are somebody's own
_DIGEST = re.compile(r"^record sha256:([0-9a-f]{64})$", re.MULTILINE)
_MEND = f"see `git log -p {RECORD}`, and bring the right one back with `git checkout`"


@dataclass(frozen=True)
class Entry:
    """One line of the record. `version` is whom it is about, `previous_version` the champion until then."""

    sequence: int
    when: str  # ISO 8601, UTC
    who: str
    action: Literal["promote", "refuse", "rollback"]
    version: str
    round: int
    previous_version: str | None
    previous_round: int | None
    why: str
    decision: dict[str, Any] | None  # checks and figures of both versions; none for a rollback
    parent: str | None  # sha256 of the previous line

    def line(self) -> bytes:
        return canonical_json(asdict(self))

    def digest(self) -> str:
        return sha256(self.line())


def asked_for(who: str) -> str:
    """Why, of a rollback for which nobody gave a reason."""
    return f"asked for by {who}"


@dataclass(frozen=True)
class ChampionPeriod:
    """A champion: the version, and the round that made it."""

    version: str
    round: int


# -- the file -----------------------------------------------------------------------------------------------------


def read_record(root: Path) -> tuple[Entry, ...]:
    """Every entry, oldest first; none if nothing was ever promoted. Raises UserError naming the line that is wrong."""
    return parse(read_bytes(root), root / RECORD)


def read_bytes(root: Path) -> bytes:
    path = root / RECORD
    return path.read_bytes() if path.exists() else b""


def parse(content: bytes, path: Path) -> tuple[Entry, ...]:
    """The entries in the bytes of a record. Raises UserError naming the line of `path` that is wrong."""
    entries: list[Entry] = []
    parent: str | None = None
    stack: list[ChampionPeriod] = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            entry = Entry(**json.loads(line))
            same = entry.line() == line
        except (ValueError, TypeError):
            raise UserError(f"{path} line {number} is no entry of the record: {_MEND}") from None
        if entry.parent != parent or entry.sequence != number or not same:
            raise UserError(f"{path} line {number} does not follow from line {number - 1}: one was edited: {_MEND}")
        if not _possible(entry, stack):
            raise UserError(f"{path} line {number} says what no promotion or rollback could: {_MEND}")
        entries.append(entry)
        parent = entry.digest()
    if not content.endswith(b"\n") and content:
        raise UserError(f"{path} line {len(entries) + 1} is no entry of the record: {_MEND}")
    return tuple(entries)


def champions(entries: tuple[Entry, ...]) -> tuple[ChampionPeriod, ...]:
    """The champions that a rollback can reach, oldest first; the last is the present one.

    A promotion goes on top, a rollback takes the top away: two rollbacks go back two promotions, and a promotion after
    a rollback builds on the champion that was put back.
    """
    stack: list[ChampionPeriod] = []
    for entry in entries:
        _begin_period(entry, stack)
    return tuple(stack)


def _begin_period(entry: Entry, stack: list[ChampionPeriod]) -> None:
    if entry.action == "promote":
        stack.append(ChampionPeriod(entry.version, entry.round))
    elif entry.action == "rollback":
        stack.pop()


def _possible(entry: Entry, stack: list[ChampionPeriod]) -> bool:
    """Whether the entry can follow on these champions; if so it takes its place among them."""
    present = stack[-1] if stack else None
    before = (present.version, present.round) if present else (None, None)
    if (
        entry.action not in ("promote", "refuse", "rollback")
        or (entry.previous_version, entry.previous_round) != before
    ):
        return False
    if entry.action == "rollback":
        possible = len(stack) > 1 and ChampionPeriod(entry.version, entry.round) == stack[-2] and entry.decision is None
    else:
        promoted = entry.decision.get("promoted") if isinstance(entry.decision, dict) else None
        possible = promoted is (entry.action == "promote") and entry.version != entry.previous_version
    if possible:
        _begin_period(entry, stack)
    return possible


def append(root: Path, entry: Entry) -> None:
    write_bytes(root / RECORD, read_bytes(root) + entry.line() + b"\n")


# -- a decision that is on its way --------------------------------------------------------------------------------


def begin(state: Path, entry: Entry) -> None:
    """Note below `.vabal/` which entry is about to be written: only that one is finished after a kill."""
    write_bytes(state / "deciding.json", canonical_json({"record": entry.digest()}))


def finish(state: Path) -> None:
    (state / "deciding.json").unlink(missing_ok=True)


def deciding(state: Path) -> str | None:
    """The digest of the entry that was being written when this machine was last heard of; None if none was."""
    try:
        return str(json.loads((state / "deciding.json").read_bytes())["record"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


# -- what vouches for it ------------------------------------------------------------------------------------------


def tag_name(sequence: int) -> str:
    return f"promotion/{sequence:04d}"


def ours(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that stand for decisions; `promotion/summer` is somebody's own."""
    return {name: message for name, message in tags.items() if _TAG.fullmatch(name)}


def tag_message(entry: Entry, headline: str) -> str:
    return f"{headline}\n\nrecord sha256:{entry.digest()}"


def registry_tag(sequence: int) -> str:
    """The key of the tag that versions in MLflow carry for an entry."""
    return f"vabal.promotion.{sequence:04d}"


def anchor(entries: tuple[Entry, ...]) -> dict[str, Any] | None:
    """The record's head as a manifest names it: number and digest of the last line; None for an empty record."""
    return {"sequence": len(entries), "sha256": entries[-1].digest()} if entries else None


@dataclass(frozen=True)
class Copy:
    """The record as a commit holds it: git's name of its content, and its size."""

    blob: str
    size: int


@dataclass(frozen=True)
class GitWitness:
    """What git knows of the record: the promotion tags' messages, and the file in the commits that count.

    Those are HEAD and what the tags of rounds and promotions stand at. `history` has the other commits of HEAD's past;
    a record that was restored leaves wrong ones there for ever, so all that they show is that there once was more.
    """

    tags: Mapping[str, str]
    copies: Mapping[str, Copy | None]  # by the name of a tag or commit; None: the commit has no such file
    history: Mapping[str, Copy | None]

    def newest(self) -> str | None:
        """The tag of the last entry, to bring the record back from; None without tags."""
        return max(self.tags, key=lambda name: (len(name), name), default=None)


def manifest_disagreements(
    entries: tuple[Entry, ...], anchors: Mapping[int, Mapping[str, Any] | None]
) -> Iterator[str]:
    """Heads that manifests name, by round, and that the record does not have."""
    for number, head in anchors.items():
        if head is None:
            continue
        sequence = head.get("sequence")
        if not isinstance(sequence, int) or not 0 < sequence <= len(entries):
            yield f"ends with entry {len(entries)}, round {number}'s manifest names entry {sequence}"
        elif entries[sequence - 1].digest() != head.get("sha256"):
            yield f"entry {sequence} is not the one that round {number}'s manifest names"


def git_disagreements(
    content: bytes, entries: tuple[Entry, ...], witness: GitWitness, *, deciding: str | None
) -> Iterator[str]:
    """What git's tags and commits say against the record.

    The last entry may lack its tag if it is the one that `deciding` names: it was cut short. A record without any tag
    is of a version that made none: then each of its entries must be committed.
    """
    blobs = {copy.blob: copy.size for copy in witness.copies.values() if copy is not None}
    odd = {blob for blob, size in blobs.items() if _blob(content[:size], len(blob)) != blob}
    for name, copy in witness.copies.items():
        if copy is not None and copy.blob in odd:
            yield f"does not go on from what git has at {name}"
    for name, copy in witness.history.items():
        if copy is not None and copy.size > len(content):
            yield f"ends with entry {len(entries)}, git's commit {name[:12]} has more"
            break
    ends = [match.end() for match in re.finditer(rb"\n", content)]
    for name, message in sorted(witness.tags.items()):
        number = _TAG.fullmatch(name)
        sequence, said, copy = int(number[1]) if number else 0, _DIGEST.search(message), witness.copies.get(name)
        if not 0 < sequence <= len(entries):
            yield f"ends with entry {len(entries)}, git has a tag {name}"
        elif said is None or said[1] != entries[sequence - 1].digest():
            yield f"entry {sequence} is not the one that git tag {name} names"
        elif copy is None or copy.size < ends[sequence - 1]:
            yield f"git tag {name} stands at a commit without its entry"
    committed = witness.copies.get("HEAD")
    for entry, end in zip(entries, ends, strict=True):
        if entry.digest() == deciding and entry is entries[-1]:
            continue  # it was cut short, and is finished
        if witness.tags and tag_name(entry.sequence) not in witness.tags:
            yield f"entry {entry.sequence} has no git tag {tag_name(entry.sequence)}"
        elif not witness.tags and (committed is None or committed.size < end):
            yield f"entry {entry.sequence} is in no commit, and no decision was begun here"


def remote_disagreements(
    entries: tuple[Entry, ...], own: Mapping[str, str | None], theirs: Mapping[str, str]
) -> Iterator[str]:
    """What the promotion tags of the git remote say: `theirs` by name with their commits, `own` likewise."""
    for name, commit in sorted(theirs.items()):
        number = _TAG.fullmatch(name)
        if number and int(number[1]) > len(entries):
            yield f"ends with entry {len(entries)}, the git remote has a tag {name}"
        elif number and own.get(name) not in (None, commit):
            yield f"git tag {name} stands at another commit in the git remote"


def registry_disagreements(
    entries: tuple[Entry, ...], tags: Mapping[str, Mapping[str, str]], *, deciding: str | None
) -> Iterator[str]:
    """What the tags of the versions in MLflow (by version) say against the record. A version that is gone says nothing.

    The last entry may lack its tags if it is the one that `deciding` names.
    """
    for version, own in sorted(tags.items()):
        for key, value in sorted(own.items()):
            number = re.fullmatch(r"vabal\.promotion\.(\d{4,})", key)
            if number is None:
                continue
            sequence = int(number[1])
            if not 0 < sequence <= len(entries):
                yield f"ends with entry {len(entries)}, version {version} in MLflow has a tag {key}"
            elif entries[sequence - 1].digest() not in value:
                yield f"entry {sequence} is not the one that version {version} was tagged with in MLflow"
    for entry in entries:
        cut_short = entry is entries[-1] and entry.digest() == deciding
        if entry.version in tags and registry_tag(entry.sequence) not in tags[entry.version] and not cut_short:
            key = registry_tag(entry.sequence)
            yield f"version {entry.version} in MLflow lacks the tag {key} of entry {entry.sequence}"


def _blob(content: bytes, length: int) -> str:
    """Git's name of a file with this content, in a repository whose names have so many digits."""
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(usedforsecurity=False)
    digest.update(b"blob %d\0" % len(content) + content)
    return digest.hexdigest()
