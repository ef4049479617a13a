"""Do the record, git, its remote and the registry say the same? Asked before an alias moves."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vabal import rounds
from vabal.errors import BRING_BACK, UserError
from vabal.promotion import record
from vabal.promotion.record import RECORD, Entry, GitWitness
from vabal.promotion.registry import History, PromotionContext
from vabal.workspace import Workspace


def witness_of(history: History, *, of_head: bool = False) -> GitWitness:
    """What git knows of the record; `of_head`: only the tags in HEAD's past, as a checkout of an older round needs."""
    tags = record.ours(history.tag_messages(record.TAGS, of_head=of_head))
    names = ["HEAD", *history.tag_messages(of_head=of_head), *tags]
    past = history.commits_of(RECORD) if not tags else []
    copies = history.copies(RECORD, [*names, *past])
    return GitWitness(tags, {name: copies[name] for name in names}, {name: copies[name] for name in past})


def witness_here(data: Path, history: History) -> GitWitness:
    """What git knows of the record as it stands here: in a checkout of an older round, of that round's past alone."""
    numbers = rounds.manifest_numbers(data)
    newest = rounds.newest_tag(history.tags())
    older = newest is not None and (not numbers or newest > numbers[-1])
    return witness_of(history, of_head=older or history.branch() is None)


def anchored(root: Path, history: History) -> dict[str, Any] | None:
    """The record's head for a manifest: the last entry whose decision is not still on its way.

    Raises UserError if git or the manifests disagree with the record: a manifest would vouch for a wrong one.
    """
    entries, _ = checked(root, history)
    if entries and entries[-1].digest() == record.deciding(Workspace(root).state):
        entries = entries[:-1]
    return record.anchor(entries)


def checked(root: Path, history: History) -> tuple[tuple[Entry, ...], GitWitness]:
    content = record.read_bytes(root)
    entries = record.parse(content, root / RECORD)
    witness = witness_of(history)
    deciding = record.deciding(Workspace(root).state)
    refuse(root, witness, record.git_disagreements(content, entries, witness, deciding=deciding))
    refuse(root, witness, record.manifest_disagreements(entries, _anchors(root / "data")))
    _require_tagged_manifests(root / "data", history)
    return entries, witness


def _require_tagged_manifests(data: Path, history: History) -> None:
    """The manifests say what a version is made of and what it predicted: their digests are those in the rounds' tags.

    Where git has no tag of a round at all there is nothing to compare. Raises UserError, with the way out.
    """
    tags = history.tag_messages()
    for number in rounds.manifest_numbers(data) if any(map(rounds.number_of, tags)) else []:
        name, place = rounds.tag_name(number), rounds.round_folder(data, number) / "manifest.json"
        if name not in tags:
            if rounds.pending_publication(Workspace(data.parent)) is None:
                raise UserError(f"git has no tag {name}, which vouches for {place}: `git fetch --tags` brings tags")
        elif f"manifest sha256:{rounds.read_manifest(data, number).digest}" not in tags[name]:
            raise UserError(f"{place} is not the one that git tag {name} names: {BRING_BACK}")


def refuse(root: Path, witness: GitWitness, disagreements: Iterator[str]) -> None:
    found = list(disagreements)
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    newest, missing = witness.newest(), re.search(r"has no git tag (\S+)", found[0])
    lacking = re.search(r"in MLflow lacks the tag (\S+) of entry (\d+)", found[0])
    if missing and newest and missing[1] < newest:
        digest = record.read_record(root)[int(missing[1].rpartition("/")[2]) - 1].digest()
        after = min(name for name in witness.tags if name > missing[1])
        again = f"`git tag -a -m 'record sha256:{digest}' {missing[1]} {after}^{{}}`"
        way = f"`git fetch --tags` brings tags; if none has it, {again}"
    elif lacking:
        digest = record.read_record(root)[int(lacking[2]) - 1].digest()
        way = f"if MLflow was set back, set that tag in MLflow again, to {digest}"
    elif newest:
        way = f"`git checkout {newest} -- {RECORD}`, then `git commit -m restored {RECORD}` bring back what was tagged"
    else:
        way = f"see `git log -p {RECORD}`, and bring the right one back with `git checkout`"
    raise UserError(f"{root / RECORD} {found[0]}{more}: {way}")


def _anchors(data: Path) -> dict[int, dict[str, Any] | None]:
    return {number: rounds.read_manifest(data, number).promotions for number in rounds.manifest_numbers(data)}


def agree_with_remote(office: PromotionContext, entries: tuple[Entry, ...]) -> dict[str, str]:
    """The promotion tags of the git remote. Raises UserError if it is ahead, or has decided otherwise.

    A decision that was begun here and has lost a race with another machine is taken back.
    """
    remote, branch = str(office.git_remote), office.history.branch()
    pull = f"`git pull --tags {remote} {branch}`"
    theirs = office.history.remote_tags(remote, record.TAGS)
    own = {name: office.history.commit_of(name) for name in office.history.tags(record.TAGS)}
    if entries and entries[-1].digest() == record.deciding(state(office)):
        name = record.tag_name(entries[-1].sequence)
        if name in theirs and theirs[name] != own.get(name):
            office.history.take_back(RECORD, _lines(entries[:-1]), name)
            record.finish(state(office))
            raise UserError(
                f"another machine made decision {entries[-1].sequence} first; the one of this machine was taken back: "
                f"{pull}, then run this again"
            )
    for what in record.remote_disagreements(entries, own, theirs):
        raise UserError(f"{office.root / RECORD} {what}: {pull} brings it, or the record here was rewritten")
    ahead = office.history.remote_branch(remote)
    if ahead is not None and not office.history.contains("HEAD", ahead):
        raise UserError(f"git remote {remote} has commits that are not here: {pull}, then run this again")
    return theirs


def _lines(entries: tuple[Entry, ...]) -> bytes:
    return b"".join(entry.line() + b"\n" for entry in entries)


def state(office: PromotionContext) -> Path:
    return Workspace(office.root).state
