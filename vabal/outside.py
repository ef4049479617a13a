"""What vouches for the record from outside `data/`: git's tags and their commits, DVC's pins, S3, a remote, an anchor.

Whoever forges a history below `data/` must forge these as well. Git, DVC and S3 stand behind protocols; each check
yields what it finds, and what cannot be looked at here is said in a note, not passed over.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vabal import pools, promotion_record, registered
from vabal.errors import Unavailable, UserError
from vabal.findings import UNREADABLE, Finding, Record, one_line, span
from vabal.progress import track
from vabal.rounds import number_of, round_folder, tag_name
from vabal.store import file_sha256

TABLES = [*(f"{name}.parquet" for name in pools.SCHEMAS), "classes.json"]
DECISION = re.compile(r"promotion/(\d{4,})")


@dataclass(frozen=True)
class Pinned:
    """What a commit's `data.dvc` names: the digest of the folder's listing, its bytes and its files."""

    digest: str
    size: int
    files: int


@dataclass(frozen=True)
class Tag:
    """A git tag: its own object, the commit that it stands at, and whether it is annotated (not a tag of a tag)."""

    object: str
    commit: str
    annotated: bool = True


class Repository(Protocol):
    """What is needed of `adapters.versioning`."""

    def tag_objects(self) -> dict[str, Tag]: ...
    def remote_tag_objects(self, remote: str) -> dict[str, Tag]: ...
    def commit_of(self, name: str) -> str | None: ...
    def branch(self) -> str | None: ...
    def is_on_a_branch(self, commit: str) -> bool: ...
    def precedes(self, commit: str, later: str) -> bool: ...
    def changed_in(self, commit: str, path: str) -> bool: ...
    def pinned(self, at: str | None) -> Pinned | None: ...
    def is_shallow(self) -> bool: ...
    def damage(self) -> str | None: ...
    def listing(self, digest: str) -> dict[str, str] | None: ...
    def cached(self, md5: str) -> Path | None: ...
    def signature_problem(self, tag: str) -> str | None: ...


class Bucket(Protocol):
    """What is needed of S3: `adapters.storage.Bucket` below DVC's prefix."""

    def objects(self) -> dict[str, tuple[int, str]]: ...
    def read(self, name: str) -> bytes: ...


class Anchor(Protocol):
    """Where heads are written once: `adapters.storage.Anchor`."""

    def read(self) -> dict[str, str]: ...


class Registry(Protocol):
    """What is needed of `adapters.tracking`."""

    def version(self, version: str) -> registered.Registered: ...
    def files(self, version: str) -> Mapping[str, str]: ...


@dataclass
class Outside:
    """What the checks may ask, and the notes of what they could not look at."""

    repository: Repository
    sign: bool = False
    anchor: Anchor | None = None
    bucket: Bucket | None = None  # with --remote alone
    git_remote: str | None = None  # with --remote alone
    registry: Registry | None = None  # with --remote alone
    pending: int | None = None  # the round whose publication was cut short: git may not know it yet
    notes: list[str] = field(default_factory=list)
    _md5: dict[Path, str] = field(default_factory=dict)

    def md5(self, path: Path) -> str:
        if path not in self._md5:
            with path.open("rb") as stream:
                self._md5[path] = hashlib.file_digest(stream, "md5").hexdigest()
        return self._md5[path]


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
    if outside.sign or any(_asks_for_signature(record) for record in records):
        yield from check_signatures(records, tags, outside)
    if outside.anchor is not None:
        yield from check_anchor(data, records, later, outside)
    if outside.git_remote is not None:
        yield from check_remote_tags(tags, outside)
    if outside.bucket is not None:
        yield from check_bucket(data, records, tags, outside)
    if outside.registry is not None:
        yield from check_registry(data, records, outside)


# -- a checkout of an older round --------------------------------------------------------------------------------------


def later_rounds(records: Sequence[Record], repository: Repository) -> list[int]:
    """Rounds after the newest one in `data/` that a branch holds, where HEAD is an older commit: they are no alarm.

    A tag that no branch holds, or whose round the checked-out branch should have, stands for a round that was undone.
    """
    here, head = (records[-1].round if records else -1), repository.commit_of("HEAD")
    if head is None or repository.branch() is not None:
        return []
    return sorted(
        number
        for name, tag in repository.tag_objects().items()
        if (number := number_of(name)) is not None and number > here
        if repository.precedes(head, tag.commit) and repository.is_on_a_branch(tag.commit)
    )


# -- tags and the commits that they stand at ---------------------------------------------------------------------------


def check_places(records: Sequence[Record], tags: Mapping[str, Tag], repository: Repository) -> Iterator[Finding]:
    """Each round's tag is annotated and stands at the commit that published the round, each behind the one before."""
    previous: Tag | None = None
    head = repository.commit_of("HEAD")
    for record in records:
        name, file = tag_name(record.round), f"{record.folder}/manifest.json"
        tag = tags.get(name)
        if tag is None:
            continue  # `check_tags` names it
        if not tag.annotated:
            yield Finding(record.round, file, f"git tag {name} is no annotated tag")
        if not repository.changed_in(tag.commit, "data.dvc"):
            yield Finding(record.round, file, f"git tag {name} stands at a commit that published nothing")
        if head is not None and head != tag.commit and not repository.precedes(tag.commit, head):
            yield Finding(record.round, file, f"git tag {name} stands at a commit that is not in this history")
        if previous is not None and not repository.precedes(previous.commit, tag.commit):
            yield Finding(record.round, file, f"git tag {name} does not stand behind the tag of the round before")
        previous = tag


def check_decisions(tags: Mapping[str, Tag], repository: Repository) -> Iterator[Finding]:
    """Each decision's tag is annotated and stands at a commit that wrote the record, in this history or after it.

    Which entry it names is `promotion_record`'s question. Tags of several entries may stand at one commit.
    """
    head, previous, file = repository.commit_of("HEAD"), None, promotion_record.RECORD
    for name in sorted(filter(DECISION.fullmatch, tags), key=lambda name: (len(name), name)):
        tag = tags[name]
        if not tag.annotated:
            yield Finding(None, file, f"git tag {name} is no annotated tag")
        if not repository.changed_in(tag.commit, file):
            yield Finding(None, file, f"git tag {name} stands at a commit that wrote no decision")
        here = head in (None, tag.commit) or repository.precedes(tag.commit, str(head))
        if not here and not repository.precedes(str(head), tag.commit):
            yield Finding(None, file, f"git tag {name} stands at a commit that is not in this history")
        follows = previous is None or previous.commit == tag.commit or repository.precedes(previous.commit, tag.commit)
        if not follows:
            yield Finding(None, file, f"git tag {name} does not stand behind the tag of the decision before")
        previous = tag


def check_signatures(records: Sequence[Record], tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """Tags of rounds that were published under `audit.sign` have a good signature.

    With the setting on now, once any tag has one, none after the last that has may lack it: what stands before is
    vouched for by the chains. Where it was just switched on, a note says what is not signed.
    """
    wanted = [tag_name(record.round) for record in records]
    decisions = sorted(filter(DECISION.fullmatch, tags), key=lambda name: (len(name), name))
    problems = {name: outside.repository.signature_problem(name) for name in (*wanted, *decisions) if name in tags}
    for record in records:
        problem = problems.get(tag_name(record.round))
        if problem is not None and _asks_for_signature(record):
            yield _unsigned(tag_name(record.round), problem)
    if not outside.sign:
        return
    good = {name for name, problem in problems.items() if problem is None}
    asked = {tag_name(record.round) for record in records if _asks_for_signature(record)}
    for names in (wanted, decisions):
        last = max((place for place, name in enumerate(names) if name in good), default=-1)
        late = [name for name in names[last + 1 :] if name in problems and name not in asked]
        if good or asked:
            yield from (_unsigned(name, str(problems[name])) for name in late)
        elif late:
            outside.notes.append(f"audit.sign is set, but no tag up to {late[-1]} is signed: the next one will be")


def _unsigned(name: str, problem: str) -> Finding:
    number = number_of(name)
    file = promotion_record.RECORD if number is None else f"{round_folder(Path(), number).as_posix()}/manifest.json"
    return Finding(number, file, f"git tag {name}: {problem}")


def _asks_for_signature(record: Record) -> bool:
    asked = record.settings.get("audit")
    return isinstance(asked, dict) and asked.get("sign") is True


# -- what `data.dvc` pins ----------------------------------------------------------------------------------------------


def check_here(records: Sequence[Record], tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """`data.dvc` at HEAD, and as it lies in the workspace, pins what the newest round's tag does."""
    newest = records[-1].round
    tag = tags.get(tag_name(newest))
    if tag is None or outside.pending is not None:
        return
    pinned = outside.repository.pinned(tag.commit)
    for at, where, way in (
        ("HEAD", "at HEAD", f"`git checkout {tag_name(newest)} -- data.dvc`, then `git commit -m restored data.dvc`"),
        (None, "in the workspace", "`git checkout HEAD -- data.dvc`"),
    ):
        if outside.repository.pinned(at) != pinned:
            yield Finding(newest, "data.dvc", f"{where} it is not that of git tag {tag_name(newest)}: {way} brings it")
            return


def check_pins(data: Path, records: Sequence[Record], tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """`data.dvc` at each round's tag names the files that the round's manifest names, byte for byte.

    The newest round's are those in `data/`. Of past rounds DVC's own listing is read where its cache has it.
    """
    unseen = []
    for record in track(records, "verify pins", len(records)):
        tag, newest = tags.get(tag_name(record.round)), record is records[-1]
        pinned = outside.repository.pinned(tag.commit) if tag else None
        if tag is not None and pinned is None:
            yield Finding(record.round, "data.dvc", f"missing or damaged at git tag {tag_name(record.round)}")
        if pinned is None:
            continue
        listing = outside.repository.listing(pinned.digest)
        if listing is None and newest:
            listing = _listing_of(data, outside)
            if _digest_of(listing) != pinned.digest:
                yield Finding(record.round, "data.dvc", "pins other files than data/ holds")
        elif listing is None:
            unseen.append(record.round)
        else:
            yield from _compare(data, record, listing, outside, newest=newest)
            if len(listing) != pinned.files:
                yield Finding(record.round, "data.dvc", f"says {pinned.files} files, there are {len(listing)}")
    if unseen and outside.bucket is None:
        which = span(unseen[0], unseen[-1]) if unseen[-1] - unseen[0] == len(unseen) - 1 else f"{len(unseen)} rounds"
        outside.notes.append(f"data.dvc of {which} was not compared: not in this machine's cache (--remote asks S3)")


def _listing_of(data: Path, outside: Outside) -> dict[str, str]:
    files = [path for path in data.rglob("*") if path.is_file() and not re.fullmatch(r"\..*\.tmp", path.name)]
    return {path.relative_to(data).as_posix(): outside.md5(path) for path in files}


def _digest_of(listing: Mapping[str, str]) -> str:
    """DVC's digest of a folder: the md5 of its listing as JSON, by names."""
    entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(listing.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def expected_files(records: Sequence[Record], record: Record) -> set[str]:
    """The files below `data/` as the round left them."""
    past = [item for item in records if item.round <= record.round]
    rounds = {f"{item.folder}/{name}" for item in past for name in (*item.files, "manifest.json")}
    return {*TABLES, *rounds, *(f"images/{shard}.parquet" for shard in record.shards)}


def _compare(
    data: Path, record: Record, listing: Mapping[str, str], outside: Outside, *, newest: bool
) -> Iterator[Finding]:
    at = f"at git tag {tag_name(record.round)}"
    own = {name for name in listing if name in TABLES or name.startswith((f"{record.folder}/", "images/"))}
    missing = {*TABLES, *(f"{record.folder}/{name}" for name in (*record.files, "manifest.json"))} - own
    missing |= {f"images/{shard}.parquet" for shard in record.shards} - own
    for name in sorted(missing):
        yield Finding(record.round, "data.dvc", f"pins no {name} {at}")
    for name, md5 in sorted(listing.items()):
        if name in TABLES and not newest:
            problem = _table_problem(outside.repository.cached(md5), record.tables.get(name))
        elif not (data / name).is_file():
            problem = "a file that is not here"  # where it should be, `check_files` names it too
        else:
            problem = None if outside.md5(data / name) == md5 else "other bytes than are here"
        if problem is not None:
            yield Finding(record.round, "data.dvc", f"pins {problem} for {name} {at}")


def _table_problem(cached: Path | None, sha256: str | None) -> str | None:
    if cached is None:
        return None  # its bytes are elsewhere; `check_bucket` asks for them
    return None if file_sha256(cached) == sha256 else "another table than the manifest names"


# -- the anchor --------------------------------------------------------------------------------------------------------


def check_anchor(data: Path, records: Sequence[Record], later: Collection[int], outside: Outside) -> Iterator[Finding]:
    """Every head that was anchored is the one here; every round published with an anchor set has its head there."""
    assert outside.anchor is not None  # noqa: S101 -- asked before
    try:
        anchored = outside.anchor.read()
    except Unavailable as error:
        yield Finding(None, "anchor", f"not asked: {error}")
        return
    by_name = {tag_name(record.round): record for record in records}
    for name, record in by_name.items():
        file = f"{record.folder}/manifest.json"
        if name in anchored and anchored[name] != f"manifest sha256:{record.digest}":
            yield Finding(record.round, file, f"its sha256 is not the one that was anchored as {name}")
        elif name not in anchored and _is_anchored(record):
            yield Finding(record.round, file, f"the anchor has no {name}")
    for name in sorted(set(anchored) - set(by_name)):
        number = number_of(name)
        if number is not None and number not in later:
            file = round_folder(Path(), number).as_posix()
            yield Finding(number, file, f"round {number} was anchored and is not here: undone, or not fetched")
    yield from _check_decisions(data, anchored, later)


def _check_decisions(data: Path, anchored: Mapping[str, str], later: Collection[int]) -> Iterator[Finding]:
    """The anchored decisions are those of the record; in a checkout of an older round later ones are no alarm."""
    try:
        content = promotion_record.read_bytes(data.parent)
        entries = promotion_record.parse(content, data.parent / promotion_record.RECORD)
    except UNREADABLE:
        return  # `check_promotions` names it
    digests = {promotion_record.tag_name(entry.sequence): entry.digest() for entry in entries}
    for name in sorted(anchored):
        if not DECISION.fullmatch(name) or (name not in digests and later):
            continue
        if name not in digests:
            yield Finding(None, promotion_record.RECORD, f"lacks the decision that was anchored as {name}")
        elif anchored[name] != f"record sha256:{digests[name]}":
            yield Finding(None, promotion_record.RECORD, f"is not the record that was anchored as {name}")


def _is_anchored(record: Record) -> bool:
    asked = record.settings.get("audit")
    return isinstance(asked, dict) and bool(asked.get("anchor"))


# -- the registry ------------------------------------------------------------------------------------------------------


def check_registry(data: Path, records: Sequence[Record], outside: Outside) -> Iterator[Finding]:
    """Every version that a round registered is in the registry, with the files that the round's manifest names."""
    assert outside.registry is not None  # noqa: S101 -- asked before
    for record in track(records, "verify versions", len(records)):
        name = (record.document.get("model") or {}).get("version")
        if name is None:
            continue
        file = f"{record.folder}/manifest.json"
        try:
            told = registered.require_recorded_bytes(data, outside.registry, outside.registry.version(name))
            outside.notes.extend(told)
        except Unavailable as error:
            yield Finding(None, "MLflow", f"the registry was not looked at: {error}")
            return
        except UNREADABLE as error:
            yield Finding(record.round, file, one_line(error))


# -- the git remote and the bucket -------------------------------------------------------------------------------------


def check_remote_tags(tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """The git remote has the same tags of rounds and decisions, each the same object."""
    remote = outside.git_remote or ""
    try:
        there = outside.repository.remote_tag_objects(remote)
    except (Unavailable, UserError) as error:
        yield Finding(None, "git", f"the tags of {remote} were not compared: {error}")
        return
    for name in sorted(set(tags) | set(there)):
        number = number_of(name)
        if number is None and not DECISION.fullmatch(name):
            continue
        file = "promotions.jsonl" if number is None else f"{round_folder(Path(), number).as_posix()}/manifest.json"
        if name not in there:
            yield Finding(number, file, f"git remote {remote} has no tag {name}")
        elif name not in tags:
            yield Finding(
                number, file, f"git remote {remote} has the tag {name}, which is not here (`git fetch --tags`)"
            )
        elif tags[name].object != there[name].object:
            yield Finding(number, file, f"git tag {name} is another one at {remote}")


def check_bucket(data: Path, records: Sequence[Record], tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """Every object that each round's `data.dvc` needs is in the bucket, with the right size and, as told, bytes."""
    assert outside.bucket is not None  # noqa: S101 -- asked before
    try:
        objects = outside.bucket.objects()
    except Unavailable as error:
        yield Finding(None, "S3", f"the bucket was not looked at: {error}")
        return
    sound: dict[str, str | None] = {}
    for record in track(records, "verify objects", len(records)):
        tag = tags.get(tag_name(record.round))
        pinned = outside.repository.pinned(tag.commit) if tag else None
        if pinned is None:
            continue  # named by others
        try:
            yield from _check_objects(data, record, pinned, objects, sound, outside, newest=record is records[-1])
        except UNREADABLE as error:
            yield Finding(record.round, "S3", f"the objects of data.dvc cannot be read: {one_line(error)}")


def _check_objects(
    data: Path,
    record: Record,
    pinned: Pinned,
    objects: Mapping[str, tuple[int, str]],
    sound: dict[str, str | None],
    outside: Outside,
    *,
    newest: bool,
) -> Iterator[Finding]:
    assert outside.bucket is not None  # noqa: S101 -- asked before
    name = _object_name(pinned.digest)
    if name not in objects:
        yield Finding(record.round, "S3", f"the bucket lacks {name}, the listing of data.dvc")
        return
    content = outside.bucket.read(name)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != pinned.digest.removesuffix(".dir"):
        yield Finding(record.round, "S3", f"{name} holds other bytes than data.dvc names")
        return
    listing = {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
    total = 0
    for file, md5 in sorted(listing.items()):
        wanted = _object_name(md5)
        total += objects.get(wanted, (0, ""))[0]
        if md5 not in sound:
            local = data / file if (newest or file not in TABLES) and (data / file).is_file() else None
            sound[md5] = _object_problem(wanted, md5, objects, local, outside)
        if sound[md5] is not None:
            yield Finding(record.round, "S3", f"{wanted} ({file}): {sound[md5]}")
        elif _is_another_table(record, file, md5, outside, newest=newest):
            yield Finding(record.round, "S3", f"{wanted} is another {file} than the manifest names")
    if total != pinned.size and all(sound[md5] is None for md5 in listing.values()):
        yield Finding(record.round, "S3", f"the objects have {total} bytes together, data.dvc says {pinned.size}")
    if outside.repository.listing(pinned.digest) is None:
        yield from _compare(data, record, listing, outside, newest=newest)


def _is_another_table(record: Record, file: str, md5: str, outside: Outside, *, newest: bool) -> bool:
    """A past round's table, of which only the bucket has the bytes, against the manifest."""
    if outside.bucket is None or file not in TABLES or newest or outside.repository.cached(md5) is not None:
        return False
    return hashlib.sha256(outside.bucket.read(_object_name(md5))).hexdigest() != record.tables.get(file)


def _object_name(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _object_problem(
    name: str, md5: str, objects: Mapping[str, tuple[int, str]], local: Path | None, outside: Outside
) -> str | None:
    """What is wrong with an object; its bytes are read only where the size or the entity tag leaves a doubt."""
    assert outside.bucket is not None  # noqa: S101 -- asked before
    if name not in objects:
        return "missing in the bucket"
    size, tag = objects[name]
    if local is not None and outside.md5(local) == md5 and local.stat().st_size != size:
        return f"{size} bytes in the bucket, {local.stat().st_size} here"
    if re.fullmatch(r"[0-9a-f]{32}", tag) and tag == md5:
        return None
    if hashlib.md5(outside.bucket.read(name), usedforsecurity=False).hexdigest() != md5:
        return "holds other bytes than its name says"
    return None
