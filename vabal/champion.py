"""Who is champion, since when and why: `promotions.jsonl`, an append-only chain of entries, versioned by git.

The registry's alias is what other people load, but it has no history and no compare-and-swap, so this record is the
truth and the alias follows it. An entry is written first, then committed, then tagged on the versions; the alias moves
last. Whatever was cut short in between is finished by the next promotion or rollback (`settle`).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import pandas as pd

from vabal import rounds
from vabal.errors import BRING_BACK, Unavailable, UserError
from vabal.params import PromotionSettings
from vabal.promotion import CannotJudge, Decision, best, decide, holdout_digest
from vabal.store import canonical_json, file_sha256, write_bytes

RECORD = "promotions.jsonl"
CHAMPION, CHALLENGER = "champion", "challenger"
PREDICTIONS = "holdout_predictions.parquet"
STATUS_TAG = "vabal.promotion.status"


class NotPromoted(UserError):  # noqa: N818  # an answer, as much as an error
    """The gate does not hold: the message names the numbers that failed. The refusal stands in the record.

    Or it cannot be asked yet: the message says what the holdout lacks, and nothing is recorded.
    """


class Version(Protocol):
    """What a registered version tells of itself."""

    @property
    def version(self) -> str: ...
    @property
    def round(self) -> int: ...
    @property
    def weights_sha256(self) -> str: ...
    @property
    def tags(self) -> Mapping[str, str]: ...


class Registry(Protocol):
    """What is needed of `adapters.tracking`."""

    def version(self, version: str) -> Version: ...
    def version_by_alias(self, alias: str) -> Version | None: ...
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None: ...
    def set_alias(self, alias: str, version: str) -> None: ...


class History(Protocol):
    """What is needed of `adapters.versioning`."""

    def commit(self, paths: list[str], message: str) -> bool: ...
    def push_git(self, remote: str, names: list[str]) -> None: ...


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
        return hashlib.sha256(self.line()).hexdigest()


@dataclass(frozen=True)
class Reign:
    """A champion: the version, and the round that made it."""

    version: str
    round: int


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


# -- the record -------------------------------------------------------------------------------------------------


def read_record(root: Path) -> tuple[Entry, ...]:
    """Every entry, oldest first; none if nothing was ever promoted. Raises UserError naming the line that is wrong."""
    path = root / RECORD
    if not path.exists():
        return ()
    entries: list[Entry] = []
    parent: str | None = None
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError):
            raise UserError(f"{path} line {number} is no entry of the record: {_MEND}") from None
        if entry.parent != parent or entry.sequence != number or entry.line() != line:
            raise UserError(f"{path} line {number} does not follow from line {number - 1}: one was edited: {_MEND}")
        entries.append(entry)
        parent = entry.digest()
    return tuple(entries)


def champions(entries: tuple[Entry, ...]) -> tuple[Reign, ...]:
    """The champions that a rollback can reach, oldest first; the last is the present one.

    A promotion goes on top, a rollback takes the top away: two rollbacks go back two promotions, and a promotion after
    a rollback builds on the champion that was put back.
    """
    stack: list[Reign] = []
    for entry in entries:
        if entry.action == "promote":
            stack.append(Reign(entry.version, entry.round))
        elif entry.action == "rollback":
            stack.pop()
    return tuple(stack)


def _withdrawn(entries: tuple[Entry, ...]) -> set[str]:
    """Versions that were rolled back and not promoted again since."""
    versions: set[str] = set()
    for entry in entries:
        if entry.action == "promote":
            versions.discard(entry.version)
        elif entry.action == "rollback" and entry.previous_version is not None:
            versions.add(entry.previous_version)
    return versions


def _append(root: Path, entry: Entry) -> None:
    path = root / RECORD
    before = path.read_bytes() if path.exists() else b""
    write_bytes(path, before + entry.line() + b"\n")


_MEND = f"see `git log -p {RECORD}`, and bring the right one back with `git checkout`"


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
    entries, mended = settle(office)
    try:
        return _promote(office, data, settings, now, version, entries, mended)
    except CannotJudge as missing:
        raise NotPromoted("; ".join([f"promotion waits: {missing}", *mended])) from None


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
    if not _says_the_same(entry, entries):
        _carry_out(office, entry)
    if not decision.promoted:
        raise NotPromoted("; ".join([f"{_headline(entry)}: {entry.why}", *mended]))
    return Outcome("promoted", f"{_headline(entry)}: {entry.why}", entry, mended)


def rollback(office: Office, *, now: datetime) -> Outcome:
    """Put the champion before the present one back. Twice goes back twice (see `champions`).

    A rollback that was cut short is finished, and no second one begun. Raises UserError if there is none to go back to.
    """
    entries, mended = settle(office)
    if mended and entries[-1].action == "rollback":
        return Outcome("rolled back", _headline(entries[-1]), entries[-1], mended)
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
    _carry_out(office, entry)
    return Outcome("rolled back", _headline(entry), entry, mended)


def settle(office: Office) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Bring git and the registry in line with the record. Returns its entries, and a line for all that was mended."""
    entries = read_record(office.root)
    if not entries:
        stray = office.registry.version_by_alias(CHAMPION)
        if stray is not None:
            raise UserError(
                f"the registry calls version {stray.version} champion, but {office.root / RECORD} knows of no "
                "promotion: bring the file back with `git checkout`, or delete the alias in MLflow"
            )
        return (), ()
    last = entries[-1]
    tag = office.registry.version(last.version).tags.get(_tag_of(last))
    if tag is not None and last.digest() not in tag:
        raise UserError(
            f"the last line of {office.root / RECORD} is not the one that version {last.version} was tagged with: "
            + _MEND
        )
    mended = []
    if _publish(office, last):
        mended.append(f"{RECORD} had an entry that was not committed: committed")
    if tag is None:
        _tag(office.registry, last)
        mended.append(f"the tags of version {last.version} were missing: set")
    if line := _move_alias(office.registry, champions(entries)):
        mended.append(line)
    return entries, tuple(mended)


def _carry_out(office: Office, entry: Entry) -> None:
    """The record first, the alias last: whatever is cut short in between, `settle` finishes."""
    _append(office.root, entry)
    _publish(office, entry)
    _tag(office.registry, entry)
    _move_alias(office.registry, champions(read_record(office.root)))


def _publish(office: Office, entry: Entry) -> bool:
    committed = office.history.commit([RECORD], _headline(entry))
    if office.git_remote:
        office.history.push_git(office.git_remote, [])
    return committed


def _move_alias(registry: Registry, stack: tuple[Reign, ...]) -> str | None:
    """Point the alias at the present champion. Returns what was wrong with it, None if nothing was."""
    if not stack:
        return None
    found = registry.version_by_alias(CHAMPION)
    if found is not None and found.version == stack[-1].version:
        return None
    registry.set_alias(CHAMPION, stack[-1].version)
    where = f"at version {found.version}" if found else "nowhere"
    return f"the alias {CHAMPION} pointed {where}: moved to version {stack[-1].version}, as {RECORD} says"


def _tag(registry: Registry, entry: Entry) -> None:
    """Who, when, why and both versions' figures, on both; the entry's own version last, where `settle` looks."""
    decision = entry.decision or {}
    told = {key: value for key, value in asdict(entry).items() if key not in ("decision", "parent")}
    told |= {"challenger": decision.get("challenger"), "champion": decision.get("champion"), "record": entry.digest()}
    tag = {_tag_of(entry): canonical_json(told).decode("utf-8")}
    if entry.previous_version is not None:
        status = {"promote": "former champion", "refuse": "champion", "rollback": "rolled back"}[entry.action]
        registry.tag_version(entry.previous_version, {STATUS_TAG: status} | tag)
    status = "refused" if entry.action == "refuse" else "champion"
    registry.tag_version(entry.version, {STATUS_TAG: status} | tag)


def _tag_of(entry: Entry) -> str:
    return f"vabal.promotion.{entry.sequence:04d}"


# -- the comparison -----------------------------------------------------------------------------------------------


def _challenger(registry: Registry, version: str | None) -> Version:
    if version is not None:
        return registry.version(version)
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
    manifest = rounds.read_manifest(data, version.round).manifest
    if (manifest["model"] or {}).get("sha256") != version.weights_sha256:
        raise UserError(
            f"version {version.version} says that round {version.round} made it, but the weights differ from those "
            "that the round's manifest names: another workspace's, or tampered with"
        )
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
