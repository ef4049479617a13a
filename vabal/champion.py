"""Who is champion: decisions, written to the record (`promotion_record`) before the registry's alias follows.

The alias is what other people load, but it has no history and no compare-and-swap, so the record is the truth. An entry
is written first, then committed and tagged in git, pushed, then tagged on the versions; the alias moves last. Whatever
was cut short in between is finished by the next promotion or rollback (`settle`), which goes no further where the
record and what vouches for it disagree.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from vabal import promotion_record, rounds
from vabal.errors import BRING_BACK, Unavailable, UserError
from vabal.params import PromotionSettings
from vabal.promotion import CannotJudge, Decision, best, decide, holdout_digest
from vabal.promotion_record import RECORD, Copy, Entry, GitWitness, Reign, champions, read_record
from vabal.registered import Registered, recorded_model, require_recorded_bytes
from vabal.store import canonical_json, file_sha256
from vabal.workspace import Workspace

__all__ = ["RECORD", "Entry", "Reign", "champions", "read_record"]  # the record's, and more below

CHAMPION, CHALLENGER = "champion", "challenger"
PREDICTIONS = "holdout_predictions.parquet"
STATUS_TAG = "vabal.promotion.status"


class NotPromoted(UserError):  # noqa: N818  # an answer, as much as an error
    """The gate does not hold: the message names the numbers that failed. The refusal stands in the record.

    Or it cannot be asked yet: the message says what the holdout lacks, and nothing is recorded.
    """


class Version(Registered, Protocol):
    """What a registered version tells of itself, with MLflow's tags."""

    @property
    def tags(self) -> Mapping[str, str]: ...


class Registry(Protocol):
    """What is needed of `adapters.tracking`."""

    def version(self, version: str) -> Version: ...
    def version_by_alias(self, alias: str) -> Version | None: ...
    def all_tags(self) -> Mapping[str, Mapping[str, str]]: ...
    def files(self, version: str) -> Mapping[str, str]: ...
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None: ...
    def set_alias(self, alias: str, version: str) -> None: ...


class History(Protocol):
    """What is needed of `adapters.versioning`."""

    def commit(self, paths: list[str], message: str) -> bool: ...
    def tag(self, name: str, message: str) -> None: ...
    def push_git(self, remote: str, names: list[str]) -> None: ...
    def branch(self) -> str | None: ...
    def branches_with(self, name: str) -> list[str]: ...
    def tags(self, pattern: str = ...) -> list[str]: ...
    def tag_messages(self, pattern: str = ..., *, of_head: bool = ...) -> dict[str, str]: ...
    def commit_of(self, name: str) -> str | None: ...
    def contains(self, name: str, commit: str) -> bool: ...
    def committed(self, path: str, at: str = ...) -> bytes | None: ...
    def copies(self, path: str, at: Iterable[str]) -> dict[str, Copy | None]: ...
    def commits_of(self, path: str) -> list[str]: ...
    def remote_tags(self, remote: str, pattern: str = ...) -> dict[str, str]: ...
    def remote_branch(self, remote: str) -> str | None: ...
    def take_back(self, path: str, content: bytes, tag: str) -> None: ...


class Anchor(Protocol):
    """Where the last decision's digest is written elsewhere, by its tag's name: `adapters.storage.Anchor`."""

    def known(self, name: str) -> str | None: ...
    def write(self, name: str, head: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a promotion or a rollback came to, and what it had to mend first."""

    action: Literal["promoted", "unchanged", "rolled back"]
    message: str
    entry: Entry | None
    mended: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [*self.mended, self.message]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Office:
    """Where promotions happen: the workspace's root, the registry, git, and who asks. Hold the workspace's lock."""

    root: Path
    registry: Registry
    history: History
    who: str
    git_remote: str | None = None
    anchor: Anchor | None = None


def _withdrawn(entries: tuple[Entry, ...]) -> set[str]:
    """Versions that were rolled back and not promoted again since."""
    versions: set[str] = set()
    for entry in entries:
        if entry.action == "promote":
            versions.discard(entry.version)
        elif entry.action == "rollback" and entry.previous_version is not None:
            versions.add(entry.previous_version)
    return versions


# -- promotion and rollback ---------------------------------------------------------------------------------------


def promote(
    office: Office, data: Path, settings: PromotionSettings, *, now: datetime, version: str | None = None
) -> Outcome:
    """Make `version` (default: the challenger) champion, if it holds the gate against the present one.

    Where there is no champion yet, the default is the best of all candidates (`_candidates`).

    Raises NotPromoted if the gate does not hold: recorded, the alias unmoved; or if the holdout does not allow a
    comparison yet. Asking again without anything having changed adds nothing to the record, and is no further use of
    the holdout. A version that was rolled back returns only if it is named. Raises UserError without any version.
    """
    entries, mended = settle(office, alias=False)
    try:
        outcome = _promote(office, data, settings, now, version, entries, mended)
    except CannotJudge as missing:
        mended = (*mended, *_seat(office, entries))
        raise NotPromoted("; ".join([f"promotion waits: {missing}", *mended])) from None
    if outcome.action == "unchanged":
        return replace(outcome, mended=(*mended, *_seat(office, entries)))
    return outcome


def _promote(
    office: Office,
    data: Path,
    settings: PromotionSettings,
    now: datetime,
    version: str | None,
    entries: tuple[Entry, ...],
    mended: tuple[str, ...],
) -> Outcome:
    present = champions(entries)[-1] if champions(entries) else None
    candidates: dict[str, pd.DataFrame] = {}
    if present is None:
        candidates, left_out = _candidates(data, office.registry, _withdrawn(entries))
        mended = (*mended, *left_out)
    if present is None and version is None and candidates:
        holdout = _Holdout.read(data)
        version = best(candidates, classes=holdout.classes, labels=holdout.labels)
    challenger = _challenger(office.registry, version)
    if present is not None and present.version == challenger.version:
        message = f"version {challenger.version} (round {challenger.round}) is champion already"
        return Outcome("unchanged", message, None, mended)
    if version is None and challenger.version in _withdrawn(entries):
        message = f"version {challenger.version} was rolled back and is promoted again only by name (--version)"
        return Outcome("unchanged", message, None, mended)
    rivals = {name: table for name, table in candidates.items() if name != challenger.version}
    decision = _decide(data, office.registry, (challenger, present), settings, entries, rivals)
    entry = Entry(
        sequence=len(entries) + 1,
        when=_text(now),
        who=office.who,
        action="promote" if decision.promoted else "refuse",
        version=challenger.version,
        round=challenger.round,
        previous_version=present.version if present else None,
        previous_round=present.round if present else None,
        why=decision.words,
        decision=json.loads(canonical_json(decision.to_dict())),
        parent=entries[-1].digest() if entries else None,
    )
    if _says_the_same(entry, entries):
        mended = (*mended, *_seat(office, entries))
    else:
        mended = (*mended, *_carry_out(office, entry))
    if not decision.promoted:
        raise NotPromoted("; ".join([f"{_headline(entry)}: {entry.why}", *mended]))
    return Outcome("promoted", f"{_headline(entry)}: {entry.why}", entry, mended)


def rollback(office: Office, *, now: datetime) -> Outcome:
    """Put the champion before the present one back. Twice goes back twice (see `champions`).

    A rollback that was cut short is finished, and no second one begun. Raises UserError if there is none to go back to.
    """
    begun = promotion_record.deciding(_state(office))
    entries, mended = settle(office, alias=False)
    if entries and entries[-1].action == "rollback" and entries[-1].digest() == begun:
        return Outcome("rolled back", _headline(entries[-1]), entries[-1], (*mended, *_seat(office, entries)))
    stack = champions(entries)
    if len(stack) < 2:
        present = f"version {stack[-1].version} is the first champion" if stack else "nothing was promoted yet"
        raise UserError(f"no previous champion to roll back to: {present} (`vabal promote` makes one)")
    restored, withdrawn = stack[-2], stack[-1]
    entry = Entry(
        sequence=len(entries) + 1,
        when=_text(now),
        who=office.who,
        action="rollback",
        version=restored.version,
        round=restored.round,
        previous_version=withdrawn.version,
        previous_round=withdrawn.round,
        why=f"asked for by {office.who}",
        decision=None,
        parent=entries[-1].digest(),
    )
    mended = (*mended, *_carry_out(office, entry))
    return Outcome("rolled back", _headline(entry), entry, mended)


def settle(office: Office, *, alias: bool = True) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Bring git and the registry in line with the record. Returns its entries, and a line for all that was mended.

    Without `alias` the alias stays where it is: the decision that follows moves it, maybe off a version whose bytes
    were exchanged.

    Raises UserError, having changed nothing, where the record disagrees with anything that vouches for it, and where
    this is not the newest round. Only an entry whose decision was begun on this machine is finished.
    """
    rounds.require_newest(Workspace(office.root), office.history, office.git_remote)
    entries, witness = _checked(office.root, office.history)
    theirs = _agree_with_remote(office, entries) if office.git_remote else {}
    told, deciding = office.registry.all_tags(), promotion_record.deciding(_state(office))
    _refuse(office.root, witness, promotion_record.registry_disagreements(entries, told, deciding=deciding))
    if not entries:
        stray = office.registry.version_by_alias(CHAMPION)
        if stray is not None:
            raise UserError(
                f"the registry calls version {stray.version} champion, but {office.root / RECORD} knows of no "
                "promotion: bring the file back with `git checkout`, or delete the alias in MLflow"
            )
        return (), ()
    mended = list(_publish(office, entries, witness.tags, theirs))
    last = entries[-1]
    if promotion_record.registry_tag(last.sequence) not in office.registry.version(last.version).tags:
        _tag(office.registry, last)
        mended.append(f"the tags of version {last.version} were missing: set")
    if alias:
        mended += _seat(office, entries)
    return entries, tuple(mended)


def witness_of(history: History, *, of_head: bool = False) -> GitWitness:
    """What git knows of the record; `of_head`: only the tags in HEAD's past, as a checkout of an older round needs."""
    tags = promotion_record.ours(history.tag_messages(promotion_record.TAGS, of_head=of_head))
    names = ["HEAD", *history.tag_messages(of_head=of_head), *tags]
    past = history.copies(RECORD, history.commits_of(RECORD)) if not tags else {}
    return GitWitness(tags, history.copies(RECORD, names), past)


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
    entries, _ = _checked(root, history)
    if entries and entries[-1].digest() == promotion_record.deciding(Workspace(root).state):
        entries = entries[:-1]
    return promotion_record.anchor(entries)


def _checked(root: Path, history: History) -> tuple[tuple[Entry, ...], GitWitness]:
    content = promotion_record.read_bytes(root)
    entries = promotion_record.parse(content, root / RECORD)
    witness = witness_of(history)
    deciding = promotion_record.deciding(Workspace(root).state)
    _refuse(root, witness, promotion_record.git_disagreements(content, entries, witness, deciding=deciding))
    _refuse(root, witness, promotion_record.manifest_disagreements(entries, _anchors(root / "data")))
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


def _refuse(root: Path, witness: GitWitness, disagreements: Iterator[str]) -> None:
    found = list(disagreements)
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    newest, missing = witness.newest(), re.search(r"has no git tag (\S+)", found[0])
    lacking = re.search(r"in MLflow lacks the tag (\S+) of entry (\d+)", found[0])
    if missing and newest and missing[1] < newest:
        digest = promotion_record.read_record(root)[int(missing[1].rpartition("/")[2]) - 1].digest()
        after = min(name for name in witness.tags if name > missing[1])
        again = f"`git tag -a -m 'record sha256:{digest}' {missing[1]} {after}^{{}}`"
        way = f"`git fetch --tags` brings tags; if none has it, {again}"
    elif lacking:
        digest = promotion_record.read_record(root)[int(lacking[2]) - 1].digest()
        way = f"if MLflow was set back, set that tag in MLflow again, to {digest}"
    elif newest:
        way = f"`git checkout {newest} -- {RECORD}`, then `git commit -m restored {RECORD}` bring back what was tagged"
    else:
        way = f"see `git log -p {RECORD}`, and bring the right one back with `git checkout`"
    raise UserError(f"{root / RECORD} {found[0]}{more}: {way}")


def _anchors(data: Path) -> dict[int, dict[str, Any] | None]:
    manifests = {number: rounds.read_manifest(data, number).manifest for number in rounds.manifest_numbers(data)}
    return {number: manifest.get("promotions") for number, manifest in manifests.items()}


def _agree_with_remote(office: Office, entries: tuple[Entry, ...]) -> dict[str, str]:
    """The promotion tags of the git remote. Raises UserError if it is ahead, or has decided otherwise.

    A decision that was begun here and has lost a race with another machine is taken back.
    """
    remote, branch = str(office.git_remote), office.history.branch()
    pull = f"`git pull --tags {remote} {branch}`"
    theirs = office.history.remote_tags(remote, promotion_record.TAGS)
    own = {name: office.history.commit_of(name) for name in office.history.tags(promotion_record.TAGS)}
    if entries and entries[-1].digest() == promotion_record.deciding(_state(office)):
        name = promotion_record.tag_name(entries[-1].sequence)
        if name in theirs and theirs[name] != own.get(name):
            office.history.take_back(RECORD, _lines(entries[:-1]), name)
            promotion_record.finish(_state(office))
            raise UserError(
                f"another machine made decision {entries[-1].sequence} first; the one of this machine was taken back: "
                f"{pull}, then run this again"
            )
    for what in promotion_record.remote_disagreements(entries, own, theirs):
        raise UserError(f"{office.root / RECORD} {what}: {pull} brings it, or the record here was rewritten")
    ahead = office.history.remote_branch(remote)
    if ahead is not None and not office.history.contains("HEAD", ahead):
        raise UserError(f"git remote {remote} has commits that are not here: {pull}, then run this again")
    return theirs


def _lines(entries: tuple[Entry, ...]) -> bytes:
    return b"".join(entry.line() + b"\n" for entry in entries)


def _state(office: Office) -> Path:
    return Workspace(office.root).state


def _carry_out(office: Office, entry: Entry) -> tuple[str, ...]:
    """The record first, the alias last: whatever is cut short in between, `settle` finishes. Returns what is to tell.

    Raises UserError, having written nothing, if the new champion's bytes are not those that its round recorded.
    """
    if entry.action != "refuse":
        require_recorded_bytes(office.root / "data", office.registry, office.registry.version(entry.version))
    name = promotion_record.tag_name(entry.sequence)
    if office.anchor and office.anchor.known(name) is not None:
        raise UserError(
            f"{name} was anchored already, and the record here has no such entry: it was cut, or another workspace "
            "anchors to the same audit.anchor (each needs a prefix of its own)"
        )
    promotion_record.begin(_state(office), entry)
    promotion_record.append(office.root, entry)
    entries, tags = read_record(office.root), office.history.tag_messages(promotion_record.TAGS)
    list(_publish(office, entries, tags, {}))
    _tag(office.registry, entry)
    told = _seat(office, entries)
    return told if entry.action == "refuse" else told[:-1]  # the last one tells of the move, as the headline does


def _publish(
    office: Office, entries: tuple[Entry, ...], tags: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[str]:
    """Commit the record, tag every entry that has no tag, push. Yields a line for all that was missing."""
    if office.history.commit([RECORD], _headline(entries[-1])):
        yield f"{RECORD} had an entry that was not committed: committed"
    missing = [entry for entry in entries if promotion_record.tag_name(entry.sequence) not in tags]
    for entry in missing:
        name = promotion_record.tag_name(entry.sequence)
        office.history.tag(name, promotion_record.tag_message(entry, _headline(entry)))
    if missing:
        first, last = (promotion_record.tag_name(entry.sequence) for entry in (missing[0], missing[-1]))
        yield f"git had no tag {first}: set" if first == last else f"git had no tags {first} to {last}: set"
    if office.git_remote:
        names = [promotion_record.tag_name(entry.sequence) for entry in entries]
        office.history.push_git(office.git_remote, [name for name in names if name not in theirs])
    if office.anchor:
        office.anchor.write(promotion_record.tag_name(entries[-1].sequence), f"record sha256:{entries[-1].digest()}")


def _seat(office: Office, entries: tuple[Entry, ...]) -> tuple[str, ...]:
    """Point the alias at the present champion, if its bytes are its round's. Returns what is to tell, the move last.

    With this a decision is at its end.
    """
    told: tuple[str, ...] = ()
    stack = champions(entries)
    found = office.registry.version_by_alias(CHAMPION) if stack else None
    if stack and (found is None or found.version != stack[-1].version):
        version = stack[-1].version
        told = require_recorded_bytes(office.root / "data", office.registry, office.registry.version(version))
        office.registry.set_alias(CHAMPION, version)
        where = f"at version {found.version}" if found else "nowhere"
        told += (f"the alias {CHAMPION} pointed {where}: moved to version {version}, as {RECORD} says",)
    promotion_record.finish(_state(office))
    return told


def _tag(registry: Registry, entry: Entry) -> None:
    """Who, when, why and both versions' figures, on both; the entry's own version last, where `settle` looks."""
    decision = entry.decision or {}
    told = {key: value for key, value in asdict(entry).items() if key not in ("decision", "parent")}
    told |= {"challenger": decision.get("challenger"), "champion": decision.get("champion"), "record": entry.digest()}
    tag = {promotion_record.registry_tag(entry.sequence): canonical_json(told).decode("utf-8")}
    if entry.previous_version is not None:
        status = {"promote": "former champion", "refuse": "champion", "rollback": "rolled back"}[entry.action]
        registry.tag_version(entry.previous_version, {STATUS_TAG: status} | tag)
    status = "refused" if entry.action == "refuse" else "champion"
    registry.tag_version(entry.version, {STATUS_TAG: status} | tag)


# -- the comparison -----------------------------------------------------------------------------------------------


def _challenger(registry: Registry, version: str | None) -> Version:
    if version is not None:
        named = registry.version(version)
        if what := named.tags.get("vabal.status"):
            raise UserError(f"version {version} does not count: its round was not published here ({what})")
        return named
    found = registry.version_by_alias(CHALLENGER)
    if found is None:
        raise UserError("no version is challenger yet: run a round (`vabal round`), or name one with --version")
    return found


@dataclass(frozen=True)
class _Holdout:
    """The holdout's labels as they are today, by sample."""

    classes: list[str]
    labels: dict[str, str]

    @staticmethod
    def read(data: Path) -> "_Holdout":
        """Raises UserError if the tables are not those that the newest round published."""
        published = rounds.head(data).manifest.get("tables", {})
        for name in ("holdout.parquet", "classes.json"):
            if name in published and file_sha256(data / name) != published[name]:
                raise UserError(f"{data / name} was changed: {BRING_BACK}")
        table = pd.read_parquet(data / "holdout.parquet", columns=["sample_id", "label"]).dropna()
        classes = json.loads((data / "classes.json").read_text(encoding="utf-8"))
        return _Holdout(classes, dict(zip(table["sample_id"], table["label"], strict=True)))


def _decide(
    data: Path,
    registry: Registry,
    pair: tuple[Version, Reign | None],
    settings: PromotionSettings,
    entries: tuple[Entry, ...],
    rivals: Mapping[str, pd.DataFrame],
) -> Decision:
    challenger, present = pair
    holdout = _Holdout.read(data)
    return decide(
        _predictions(data, challenger),
        _predictions(data, registry.version(present.version)) if present else None,
        settings,
        classes=holdout.classes,
        labels=holdout.labels,
        use=_use(data, entries, (challenger.version, present.version if present else None), holdout.labels),
        rivals=rivals,
    )


def _use(data: Path, entries: tuple[Entry, ...], pair: tuple[str, str | None], labels: Mapping[str, str]) -> int:
    """Which use of the holdout this comparison is, from 1: every decision that the record has of it was one.

    A comparison that was made before, of the same versions under the same labels, keeps its number. A decision counts
    as long as half of today's labelled holdout was there for it: a holdout that grows is not a new one each night.
    """
    decided = [entry for entry in entries if entry.decision is not None]
    same = {number: _saw_half(data, number, labels) for number in {entry.round for entry in decided}}
    asked = [_comparison(entry) for entry in decided if same[entry.round]]
    own = (*pair, holdout_digest(labels))
    known = list(dict.fromkeys(asked))
    return (known.index(own) if own in known else len(known)) + 1


def _comparison(entry: Entry) -> tuple[str, str | None, str | None]:
    """The versions and the labels; entries of earlier versions of this program do not name the labels."""
    return entry.version, entry.previous_version, (entry.decision or {}).get("holdout")


def _saw_half(data: Path, number: int, labels: Mapping[str, str]) -> bool:
    path = rounds.round_folder(data, number) / PREDICTIONS
    if not path.is_file():
        return True
    seen = pd.read_parquet(path, columns=["sample_id"])["sample_id"]
    return 2 * int(seen.isin(labels.keys()).sum()) >= len(labels)


def _candidates(data: Path, registry: Registry, withdrawn: set[str]) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """The holdout predictions of every version that a round made, by version, oldest first; a line for each left out.

    Raises UserError if there are versions, and none can be compared.
    """
    tables: dict[str, pd.DataFrame] = {}
    left_out: list[str] = []
    for number in rounds.manifest_numbers(data):
        version = (rounds.read_manifest(data, number).manifest["model"] or {}).get("version")
        if version is None or version in withdrawn:
            continue
        try:
            tables[version] = _predictions(data, registry.version(version))
        except Unavailable:
            raise
        except UserError as error:
            left_out.append(f"version {version} (round {number}) is no candidate: {error}")
    if left_out and not tables:
        raise UserError(left_out[-1])
    return tables, tuple(left_out)


def _predictions(data: Path, version: Version) -> pd.DataFrame:
    """What the version predicted for the holdout, as its round recorded it.

    The registry says which round; that round's manifest must name the same weights, and the file must be the one
    recorded there.
    """
    recorded_model(data, version)
    manifest = rounds.read_manifest(data, version.round).manifest
    path = rounds.round_folder(data, version.round) / PREDICTIONS
    if PREDICTIONS not in manifest["files"]:
        raise CannotJudge(f"round {version.round} recorded no predictions for the holdout: run another round")
    if not path.is_file() or file_sha256(path) != manifest["files"][PREDICTIONS]:
        raise UserError(f"{path} is missing or was changed: {BRING_BACK}")
    return pd.read_parquet(path, columns=["sample_id", "label", "predicted_class"])


# -- words --------------------------------------------------------------------------------------------------------


def _says_the_same(entry: Entry, entries: tuple[Entry, ...]) -> bool:
    """Whether the last entry is this refusal already."""
    if entry.action != "refuse" or not entries:
        return False
    own, last = asdict(entry), asdict(entries[-1])
    return all(own[key] == last[key] for key in ("action", "who", "version", "previous_version", "decision"))


def _headline(entry: Entry) -> str:
    who = f"version {entry.version} (round {entry.round})"
    before = f"version {entry.previous_version} (round {entry.previous_round})"
    if entry.action == "rollback":
        return f"{who} is champion again, {before} was rolled back"
    if entry.action == "refuse":
        return f"{who} was not promoted" + (f", {before} stays champion" if entry.previous_version else "")
    return f"{who} is champion" + (f", {before} was before" if entry.previous_version else ", the first one")


def _text(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="seconds")
