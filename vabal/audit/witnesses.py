"""Git's tags and commits, the anchor and the registry."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from vabal.audit.findings import UNREADABLE, Finding, Record, one_line
from vabal.audit.places import DECISION, Outside, Repository
from vabal.errors import Unavailable
from vabal.progress import track
from vabal.promotion import record as promotion_record
from vabal.promotion import registered
from vabal.rounds import number_of, round_folder, tag_name
from vabal.rounds.versions import Tag
from vabal.workspace import PINS

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
        name, file = tag_name(record.round), record.file
        tag = tags.get(name)
        if tag is None:
            continue  # `check_tags` names it
        if not tag.annotated:
            yield Finding(record.round, file, f"git tag {name} is no annotated tag")
        if not repository.changed_in(tag.commit, PINS):
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
        if problem is not None and asks_for_signature(record):
            yield _unsigned(tag_name(record.round), problem)
    if not outside.sign:
        return
    good = {name for name, problem in problems.items() if problem is None}
    asked = {tag_name(record.round) for record in records if asks_for_signature(record)}
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


def asks_for_signature(record: Record) -> bool:
    asked = record.settings.get("audit")
    return isinstance(asked, dict) and asked.get("sign") is True


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
        file = record.file
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
    records = [record for record in records if record.round >= outside.since]
    for record in track(records, "verify versions", len(records)):
        name = record.model.version if record.model else None
        if name is None:
            continue
        file = record.file
        try:
            told = registered.require_recorded_bytes(data, outside.registry, outside.registry.version(name))
            outside.notes.extend(told)
        except Unavailable as error:
            yield Finding(None, "MLflow", f"the registry was not looked at: {error}")
            return
        except UNREADABLE as error:
            yield Finding(record.round, file, one_line(error))
