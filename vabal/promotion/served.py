"""Which version was champion, from when to when, and why: read from the promotion record alone."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from vabal.errors import UserError
from vabal.promotion.record import Entry, asked_for


@dataclass(frozen=True)
class Served:
    """A version's time as champion. `began` is the promotion or rollback that it began with, `promoted` the promotion
    that stands behind it (the same, but for a rollback); `until` is None for the present champion."""

    version: str
    round: int
    began: Entry
    promoted: Entry
    until: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "version": self.version,
            "round": self.round,
            "since": self.began.when,
            "until": self.until,
            "began": _brief(self.began),
            "promoted": {**_brief(self.promoted), "decision": self.promoted.decision},
        }

    def lines(self) -> list[str]:
        """For people."""
        until = f" until {_minute(self.until)}" if self.until else ""
        said = [f"version {self.version} (round {self.round}): champion since {_minute(self.began.when)}{until}"]
        if self.began is not self.promoted:
            reason = "" if self.began.why == asked_for(self.began.who) else f": {self.began.why}"
            said.append(f"put back by {self.began.who}{reason}")
        when = "" if self.began is self.promoted else f" on {_minute(self.promoted.when)}"
        return [*said, f"promoted{when} by {self.promoted.who}: {self.promoted.why}"]


def _brief(entry: Entry) -> dict[str, Any]:
    told = asdict(entry)
    return {name: told[name] for name in ("sequence", "action", "when", "who", "why")}


def _minute(when: str) -> str:
    return f"{when[:16].replace('T', ' ')} UTC"


def served(entries: Sequence[Entry]) -> tuple[Served, ...]:
    """Every time as champion in the record, the first one first."""
    times: list[Served] = []
    promotions: list[Entry] = []  # of the champions that a rollback can reach
    for entry in entries:
        if entry.action == "refuse":
            continue
        if entry.action == "promote":
            promotions.append(entry)
        else:
            promotions.pop()
        if times:
            times[-1] = replace(times[-1], until=entry.when)
        times.append(Served(entry.version, entry.round, entry, promotions[-1]))
    return tuple(times)


@dataclass(frozen=True)
class Champions:
    """Who was champion at some time on a day (UTC), or is now (`on` is None)."""

    on: str | None
    times: tuple[Served, ...]
    first: Entry | None

    def lines(self) -> list[str]:
        if self.times:
            return [line for time in self.times for line in time.lines()]
        if self.first is None:
            return ["no version was promoted yet (`vabal promote` makes one champion)"]
        return [f"no version was champion on {self.on}: the first one was promoted on {_minute(self.first.when)}"]

    def to_json(self) -> dict[str, Any]:
        return {"on": self.on, "champions": [time.to_json() for time in self.times]}


def champions_on(entries: Sequence[Entry], day: str | None, *, now: datetime) -> Champions:
    """Who is champion, or was on a day. Raises UserError for a day that is none, or is yet to come."""
    times = served(entries)
    if day is None:
        return Champions(None, times[-1:], times[0].began if times else None)
    start = _start_of(day)
    if start > now:
        raise UserError(f"--on {day}: that day is yet to come (days are those of UTC)")
    end = start + timedelta(days=1)
    chosen = tuple(
        time
        for time in times
        if datetime.fromisoformat(time.began.when) < end
        and (time.until is None or datetime.fromisoformat(time.until) > start)
    )
    return Champions(day, chosen, times[0].began if times else None)


def _start_of(day: str) -> datetime:
    try:
        found = date.fromisoformat(day)
    except ValueError:
        raise UserError(f"--on {day}: write the day as YEAR-MONTH-DAY, like 2026-03-04") from None
    return datetime(found.year, found.month, found.day, tzinfo=UTC)
