"""What is pinned, here, at the git remote and in the bucket."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vabal.audit.data_files import expected_files
from vabal.audit.findings import UNREADABLE, Finding, Record, one_line, span
from vabal.audit.places import DECISION, Outside
from vabal.errors import Unavailable, UserError
from vabal.files import file_sha256, sha256
from vabal.pools import TABLE_FILES
from vabal.progress import track
from vabal.rounds import number_of, round_folder, tag_name
from vabal.rounds.versions import Pinned, Tag
from vabal.workspace import PINS

# -- what is pinned ----------------------------------------------------------------------------------------------------


def check_here(records: Sequence[Record], tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """What HEAD pins, and the file of pins as it lies in the workspace, is what the newest round's tag does."""
    newest = records[-1].round
    tag = tags.get(tag_name(newest))
    if tag is None or outside.pending is not None:
        return
    pinned = outside.repository.pinned(tag.commit)
    for at, where, way in (
        ("HEAD", "at HEAD", f"`git checkout {tag_name(newest)} -- {PINS}`, then `git commit -m restored {PINS}`"),
        (None, "in the workspace", f"`git checkout HEAD -- {PINS}`"),
    ):
        if outside.repository.pinned(at) != pinned:
            yield Finding(newest, PINS, f"{where} it is not that of git tag {tag_name(newest)}: {way} brings it")
            return


def check_pins(data: Path, records: Sequence[Record], tags: Mapping[str, Tag], outside: Outside) -> Iterator[Finding]:
    """The pins at each round's tag name the files that the round's manifest names, byte for byte.

    The newest round's are those in `data/`. Of past rounds the listing is read where the cache has it; of rounds before
    `outside.since` the bytes are not.
    """
    unseen, told = [], dict[tuple[str, str], str | None]()
    read = [data / file for _, file, _ in expected_files(records, outside.since)]
    outside.read_ahead([path for path in dict.fromkeys(read) if path.is_file()])
    for record in track(records, "verify pins", len(records)):
        tag, newest = tags.get(tag_name(record.round)), record is records[-1]
        pinned = outside.repository.pinned(tag.commit) if tag else None
        if tag is not None and pinned is None:
            yield Finding(record.round, PINS, f"missing or damaged at git tag {tag_name(record.round)}")
        if pinned is None:
            continue
        listing = outside.repository.listing(pinned.digest)
        if listing is None and newest:
            listing = _listing_of(data, outside)
            if outside.repository.listing_digest(listing) != pinned.digest:
                yield Finding(record.round, PINS, "pins other files than data/ holds")
        elif listing is None:
            unseen.append(record.round)
        else:
            yield from _compare(data, record, listing, outside, told, newest=newest)
            if len(listing) != pinned.files:
                yield Finding(record.round, PINS, f"says {pinned.files} files, there are {len(listing)}")
    if unseen and outside.bucket is None:
        which = span(unseen[0], unseen[-1]) if unseen[-1] - unseen[0] == len(unseen) - 1 else f"{len(unseen)} rounds"
        outside.notes.append(f"{PINS} of {which} was not compared: not in this machine's cache (--remote asks S3)")


def _listing_of(data: Path, outside: Outside) -> dict[str, str]:
    files = [path for path in data.rglob("*") if path.is_file() and not re.fullmatch(r"\..*\.tmp", path.name)]
    return {path.relative_to(data).as_posix(): outside.md5(path) for path in files}


def _compare(
    data: Path,
    record: Record,
    listing: Mapping[str, str],
    outside: Outside,
    told: dict[tuple[str, str], str | None],
    *,
    newest: bool,
) -> Iterator[Finding]:
    """`told` remembers what was said of a file and its md5: every later listing names it again."""
    if record.round < outside.since:
        return
    at = f"at git tag {tag_name(record.round)}"
    own = {
        name for name in listing if name in TABLE_FILES.values() or name.startswith((f"{record.folder}/", "images/"))
    }
    missing = {*record.tables, *(f"{record.folder}/{name}" for name in (*record.files, "manifest.json"))} - own
    missing |= {f"images/{shard}.parquet" for shard in record.shards} - own
    for name in sorted(missing):
        yield Finding(record.round, PINS, f"pins no {name} {at}")
    for name, md5 in sorted(listing.items()):
        if name in TABLE_FILES.values() and not newest:
            problem = _table_problem(outside.repository.cached(md5), record.tables.get(name))
        else:
            if (name, md5) not in told:
                told[name, md5] = _file_problem(data / name, md5, earlier=name in outside.earlier, outside=outside)
            problem = told[name, md5]
        if problem is not None:
            yield Finding(record.round, PINS, f"pins {problem} for {name} {at}")


def _file_problem(path: Path, md5: str, *, earlier: bool, outside: Outside) -> str | None:
    if not path.is_file():
        return "a file that is not here"  # where it should be, `check_files` names it too
    return None if earlier or outside.md5(path) == md5 else "other bytes than are here"


def _table_problem(cached: Path | None, sha256: str | None) -> str | None:
    if cached is None:
        return None  # its bytes are elsewhere; `check_bucket` asks for them
    return None if file_sha256(cached) == sha256 else "another table than the manifest names"


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
    """Every object that each round's pins need is in the bucket, with the right size and, as told, bytes."""
    assert outside.bucket is not None  # noqa: S101 -- asked before
    try:
        objects = outside.bucket.objects()
    except Unavailable as error:
        yield Finding(None, "S3", f"the bucket was not looked at: {error}")
        return
    sound, told = dict[str, str | None](), dict[tuple[str, str], str | None]()
    records = [record for record in records if record.round >= outside.since]
    for record in track(records, "verify objects", len(records)):
        tag = tags.get(tag_name(record.round))
        pinned = outside.repository.pinned(tag.commit) if tag else None
        if pinned is None:
            continue  # named by others
        try:
            newest = record is records[-1]
            yield from _check_objects(data, record, pinned, objects, (sound, told), outside, newest=newest)
        except UNREADABLE as error:
            yield Finding(record.round, "S3", f"the objects of {PINS} cannot be read: {one_line(error)}")


def _check_objects(
    data: Path,
    record: Record,
    pinned: Pinned,
    objects: Mapping[str, tuple[int, str]],
    known: tuple[dict[str, str | None], dict[tuple[str, str], str | None]],
    outside: Outside,
    *,
    newest: bool,
) -> Iterator[Finding]:
    """`known` is what was found of objects, and of files here, by then."""
    assert outside.bucket is not None  # noqa: S101 -- asked before
    sound, told = known
    name = outside.repository.object_name(pinned.digest)
    if name not in objects:
        yield Finding(record.round, "S3", f"the bucket lacks {name}, the listing of {PINS}")
        return
    listing = outside.repository.read_listing(outside.bucket.read(name), pinned.digest)
    if listing is None:
        yield Finding(record.round, "S3", f"{name} holds other bytes than {PINS} names")
        return
    total = 0
    for file, md5 in sorted(listing.items()):
        wanted = outside.repository.object_name(md5)
        total += objects.get(wanted, (0, ""))[0]
        if md5 not in sound:
            local = data / file if (newest or file not in TABLE_FILES.values()) and (data / file).is_file() else None
            if file in outside.earlier:
                sound[md5] = None if wanted in objects else "missing in the bucket"
            else:
                sound[md5] = _object_problem(wanted, md5, objects, local, outside)
        if sound[md5] is not None:
            yield Finding(record.round, "S3", f"{wanted} ({file}): {sound[md5]}")
        elif _is_another_table(record, file, md5, outside, newest=newest):
            yield Finding(record.round, "S3", f"{wanted} is another {file} than the manifest names")
    if total != pinned.size and all(sound[md5] is None for md5 in listing.values()):
        yield Finding(record.round, "S3", f"the objects have {total} bytes together, {PINS} says {pinned.size}")
    if outside.repository.listing(pinned.digest) is None:
        yield from _compare(data, record, listing, outside, told, newest=newest)


def _is_another_table(record: Record, file: str, md5: str, outside: Outside, *, newest: bool) -> bool:
    """A past round's table, of which only the bucket has the bytes, against the manifest."""
    if (
        outside.bucket is None
        or file not in TABLE_FILES.values()
        or newest
        or outside.repository.cached(md5) is not None
    ):
        return False
    return sha256(outside.bucket.read(outside.repository.object_name(md5))) != record.tables.get(file)


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
