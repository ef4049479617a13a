"""Who is champion: decisions, written to the record (`promotion_record`) before the registry's alias follows.

The alias is what other people load, but it has no history and no compare-and-swap, so the record is the truth. An entry
is written first, then committed and tagged in git, pushed, then tagged on the versions; the alias moves last. Whatever
was cut short in between is finished by the next promotion or rollback (`settle`), which goes no further where the
record and what vouches for it disagree.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from vabal import rounds
from vabal.errors import UserError
from vabal.files import canonical_json
from vabal.promotion import record
from vabal.promotion.agreement import agree_with_remote, checked, refuse, state
from vabal.promotion.comparison import Holdout, candidate_versions, challenger_version, decide_on_holdout
from vabal.promotion.decision import best
from vabal.promotion.pairs import CannotJudge
from vabal.promotion.record import RECORD, ChampionPeriod, Entry, champions, read_record
from vabal.promotion.registered import require_recorded_bytes
from vabal.promotion.registry import CHAMPION, STATUS_TAG, NotPromoted, Outcome, PromotionContext, Registry
from vabal.settings.models import PromotionSettings
from vabal.workspace import Workspace

__all__ = ["RECORD", "ChampionPeriod", "Entry", "champions", "read_record"]


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
    office: PromotionContext, data: Path, settings: PromotionSettings, *, now: datetime, version: str | None = None
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
    office: PromotionContext,
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
        candidates, left_out = candidate_versions(data, office.registry, _withdrawn(entries))
        mended = (*mended, *left_out)
    if present is None and version is None and candidates:
        holdout = Holdout.read(data)
        version = best(candidates, classes=holdout.classes, labels=holdout.labels)
    challenger = challenger_version(office.registry, version)
    if present is not None and present.version == challenger.version:
        message = f"version {challenger.version} (round {challenger.round}) is champion already"
        return Outcome("unchanged", message, None, mended)
    if version is None and challenger.version in _withdrawn(entries):
        message = f"version {challenger.version} was rolled back and is promoted again only by name (--version)"
        return Outcome("unchanged", message, None, mended)
    rivals = {name: table for name, table in candidates.items() if name != challenger.version}
    decision = decide_on_holdout(data, office.registry, (challenger, present), settings, entries, rivals)
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


def rollback(office: PromotionContext, *, now: datetime, reason: str | None = None) -> Outcome:
    """Put the champion before the present one back, and record why. Twice goes back twice (see `champions`).

    A rollback that was cut short is finished, with the reason that it began with, and no second one begun. Raises
    UserError if there is none to go back to, or for a reason that is empty or too long.
    """
    why = record.asked_for(office.who) if reason is None else _reason(reason)
    begun = record.deciding(state(office))
    entries, mended = settle(office, alias=False)
    if entries and entries[-1].action == "rollback" and entries[-1].digest() == begun:
        return Outcome("rolled back", _headline(entries[-1]), entries[-1], (*mended, *_seat(office, entries)))
    stack = champions(entries)
    if len(stack) < 2:
        none = "nothing was promoted yet (`vabal promote` makes a champion)"
        present = f"version {stack[-1].version} is the first champion, and serves" if stack else none
        raise UserError(f"no previous champion to roll back to: {present}")
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
        why=why,
        decision=None,
        parent=entries[-1].digest(),
    )
    mended = (*mended, *_carry_out(office, entry))
    return Outcome("rolled back", _headline(entry), entry, mended)


def _reason(text: str) -> str:
    """The reason as the one line that is recorded."""
    line = " ".join(text.split())
    if not line:
        raise UserError("--reason is empty: say why, or leave it out")
    if len(line) > _LONGEST_REASON:
        raise UserError(f"--reason has {len(line)} characters: say it in {_LONGEST_REASON}, and link to the rest")
    return line


_LONGEST_REASON = 500  # MLflow's tags have it as well, beside the figures


def settle(office: PromotionContext, *, alias: bool = True) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Bring git and the registry in line with the record. Returns its entries, and a line for all that was mended.

    Without `alias` the alias stays where it is: the decision that follows moves it, maybe off a version whose bytes
    were exchanged.

    Raises UserError, having changed nothing, where the record disagrees with anything that vouches for it, and where
    this is not the newest round. Only an entry whose decision was begun on this machine is finished.
    """
    rounds.require_newest(Workspace(office.root), office.history, office.git_remote)
    entries, witness = checked(office.root, office.history)
    theirs = agree_with_remote(office, entries) if office.git_remote else {}
    told, deciding = office.registry.all_tags(), record.deciding(state(office))
    refuse(office.root, witness, record.registry_disagreements(entries, told, deciding=deciding))
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
    if record.registry_tag(last.sequence) not in office.registry.version(last.version).tags:
        _tag(office.registry, last)
        mended.append(f"the tags of version {last.version} were missing: set")
    if alias:
        mended += _seat(office, entries)
    return entries, tuple(mended)


def _carry_out(office: PromotionContext, entry: Entry) -> tuple[str, ...]:
    """The record first, the alias last: whatever is cut short in between, `settle` finishes. Returns what is to tell.

    Raises UserError, having written nothing, if the new champion's bytes are not those that its round recorded.
    """
    if entry.action != "refuse":
        require_recorded_bytes(office.root / "data", office.registry, office.registry.version(entry.version))
    name = record.tag_name(entry.sequence)
    if office.anchor and office.anchor.known(name) is not None:
        raise UserError(
            f"{name} was anchored already, and the record here has no such entry: it was cut, or another workspace "
            "anchors to the same audit.anchor (each needs a prefix of its own)"
        )
    record.begin(state(office), entry)
    record.append(office.root, entry)
    entries, tags = read_record(office.root), office.history.tag_messages(record.TAGS)
    list(_publish(office, entries, tags, {}))
    _tag(office.registry, entry)
    told = _seat(office, entries)
    return told if entry.action == "refuse" else told[:-1]  # the last one tells of the move, as the headline does


def _publish(
    office: PromotionContext, entries: tuple[Entry, ...], tags: Mapping[str, str], theirs: Mapping[str, str]
) -> Iterator[str]:
    """Commit the record, tag every entry that has no tag, push. Yields a line for all that was missing."""
    if office.history.commit([RECORD], _headline(entries[-1])):
        yield f"{RECORD} had an entry that was not committed: committed"
    missing = [entry for entry in entries if record.tag_name(entry.sequence) not in tags]
    for entry in missing:
        name = record.tag_name(entry.sequence)
        office.history.tag(name, record.tag_message(entry, _headline(entry)))
    if missing:
        first, last = (record.tag_name(entry.sequence) for entry in (missing[0], missing[-1]))
        yield f"git had no tag {first}: set" if first == last else f"git had no tags {first} to {last}: set"
    if office.git_remote:
        names = [record.tag_name(entry.sequence) for entry in entries]
        office.history.push_git(office.git_remote, [name for name in names if name not in theirs])
    if office.anchor:
        office.anchor.write(record.tag_name(entries[-1].sequence), f"record sha256:{entries[-1].digest()}")


def _seat(office: PromotionContext, entries: tuple[Entry, ...]) -> tuple[str, ...]:
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
    record.finish(state(office))
    return told


def _tag(registry: Registry, entry: Entry) -> None:
    """Who, when, why and both versions' figures, on both; the entry's own version last, where `settle` looks."""
    decision = entry.decision or {}
    told = {key: value for key, value in asdict(entry).items() if key not in ("decision", "parent")}
    told |= {"challenger": decision.get("challenger"), "champion": decision.get("champion"), "record": entry.digest()}
    tag = {record.registry_tag(entry.sequence): canonical_json(told).decode("utf-8")}
    if entry.previous_version is not None:
        status = {"promote": "former champion", "refuse": "champion", "rollback": "rolled back"}[entry.action]
        registry.tag_version(entry.previous_version, {STATUS_TAG: status} | tag)
    status = "refused" if entry.action == "refuse" else "champion"
    registry.tag_version(entry.version, {STATUS_TAG: status} | tag)


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
