"""Changes of the classes into the inbox: checked against the classes to come, stored; the next round takes them in."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pandas as pd

from vabal.errors import UserError
from vabal.files import canonical_json, make_folder, sha256
from vabal.labels.arrivals import next_name, one_at_a_time, pending, read_changes
from vabal.pools import CLASS_CHANGES, Classes, Pools, apply_classes, typed, write_table
from vabal.pools.class_names import in_words

LONGEST: Final = 100  # characters of a new name, which becomes part of names of metrics and columns
MOST: Final = 500  # of a reason
Change = tuple[str, str, str | None]  # action, name, into: `pools.Classes.after`


@dataclass(frozen=True)
class ChangeReport:
    """What is going to change. `name` is its place in the inbox, `classes` are those of the next round."""

    name: str
    changes: tuple[Change, ...]
    classes: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{in_words(*change)} from the next round on" for change in self.changes]
        return [*said, f"classes then: {', '.join(self.classes)}"]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "changes": _as_json(self.changes), "classes": list(self.classes)}


def change(
    inbox: Path, pools: Pools, changes: Sequence[Change], *, author: str, when: datetime, reason: str | None = None
) -> ChangeReport:
    """Put changes of the classes into the inbox, all or none; they are on disk, durable, when this returns.

    The next intake takes them in, before its labels. Labels and images that came before keep their place in the order.
    Raises UserError if a change is none, after those that wait in the inbox.
    """
    changes = [(action, _composed(name), None if into is None else _composed(into)) for action, name, into in changes]
    if reason is not None and not 0 < len(reason.strip()) <= MOST:
        raise UserError(f"--reason: 1 to {MOST} characters")
    with one_at_a_time(inbox):
        before = Classes.of(upcoming(inbox, pools))
        after = before
        for each in changes:
            after = after.after(*each)
        if long := [name for name in after.names if name not in before.names and len(name) > LONGEST]:
            raise UserError(f"class name {long[0][:20]!r}... is longer than {LONGEST} characters")
        table = pd.DataFrame(changes, columns=["action", "name", "into"])
        table = typed(table.assign(author=author, reason=reason, at=when), CLASS_CHANGES)
        name = f"classes/{next_name(inbox, _digest(changes, author, when))}.parquet"
        make_folder(inbox / "classes")
        write_table(table, inbox / name, CLASS_CHANGES)
    return ChangeReport(name, tuple(changes), after.names)


def _composed(name: str) -> str:
    """In one Unicode form, as `init` names classes."""
    return unicodedata.normalize("NFC", name)


def _digest(changes: Sequence[Change], author: str, when: datetime) -> str:
    return sha256(canonical_json([*map(list, changes), author, when.isoformat()]))


def upcoming(inbox: Path, pools: Pools) -> Pools:
    """The pools under the classes that the next round has, by what waits in the inbox."""
    changed, _ = apply_classes(pools, read_changes(inbox, pending(inbox)), 0)
    return changed


# -- the list -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassRow:
    """A class of now: labels in the labelled pool, and in the holdout; names that it had."""

    name: str
    labeled: int
    holdout: int
    earlier: tuple[str, ...]


@dataclass(frozen=True)
class ClassList:
    """The classes in index order, what changed them (columns of `class_events`, round 0's list left out), and what
    waits for the next round."""

    rows: tuple[ClassRow, ...]
    events: pd.DataFrame
    waiting: pd.DataFrame

    def lines(self) -> list[str]:
        """For people: what changed, and what is going to."""
        changed = [
            f"round {row['round']}: {in_words(row['action'], row['name'], row['into'])}{_by(row)}"
            for row in self.events.to_dict("records")
        ]
        return changed + [
            f"next round: {in_words(row['action'], row['name'], row['into'])}{_by(row)}"
            for row in self.waiting.to_dict("records")
        ]

    def to_json(self) -> dict[str, Any]:
        classes = [
            {"name": row.name, "labeled": row.labeled, "holdout": row.holdout, "earlier": list(row.earlier)}
            for row in self.rows
        ]
        tables = {"events": self.events, "waiting": self.waiting}
        plain = {name: table.astype(object).where(table.notna(), None) for name, table in tables.items()}
        return {"classes": classes, **plain}


def listed(inbox: Path, pools: Pools) -> ClassList:
    """The classes with their counts."""
    classes = Classes.of(pools)
    labeled, holdout = pools.labeled["label"].value_counts(), pools.holdout["label"].value_counts()
    rows = [
        ClassRow(name, int(labeled.get(name, 0)), int(holdout.get(name, 0)), tuple(classes.earlier(name)))
        for name in classes.names
    ]
    waiting = read_changes(inbox, pending(inbox))
    known = pd.concat([pools.class_events[CLASS_CHANGES.names], waiting]).duplicated().to_numpy()
    fresh = waiting[~known[len(pools.class_events) :]].reset_index(drop=True)
    events = pools.class_events[pools.class_events["round"] > 0].reset_index(drop=True)
    return ClassList(tuple(rows), events, fresh)


def _by(row: dict[Any, Any]) -> str:
    reason = f": {row['reason']}" if isinstance(row["reason"], str) else ""
    return f" ({row['author']}, {row['at']:%Y-%m-%d %H:%M} UTC{reason})"


def _as_json(changes: Sequence[Change]) -> list[dict[str, str | None]]:
    return [dict(zip(("action", "name", "into"), each, strict=True)) for each in changes]
