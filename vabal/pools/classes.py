"""Classes over time: an event a change, and what every name that was ever used means.

A name belongs to one class for good: a class that is renamed or merged takes its earlier names along, and no other
class may have them. So a label means the same whenever it was given and whenever it comes in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import numpy as np
import pandas as pd

from vabal.errors import UserError, shown, some
from vabal.pools.columns import among, stack
from vabal.pools.tables import CLASS_CHANGES, FROM_SOURCE, SCHEMAS, Pools

ADD: Final = "add"
RENAME: Final = "rename"
MERGE: Final = "merge"


@dataclass(frozen=True)
class Classes:
    """The class names in index order, and for every name that was ever used that of today."""

    names: tuple[str, ...]
    meaning: Mapping[str, str]

    @classmethod
    def of(cls, pools: Pools) -> "Classes":
        return classes_at(pools.class_events, pools.classes)

    def after(self, action: str, name: str, into: str | None) -> "Classes":
        """The classes after a change: `add` a class `name` at the end, `rename` `name` to `into`, or `merge` `name`
        into the class `into`.

        Raises UserError if there is no such class, the new name is none or is taken, or one class would be left.
        """
        if action not in _ACTIONS:
            raise UserError(f"{action!r} is no change of classes: {', '.join(_ACTIONS)}")
        return _ACTIONS[action](self, name, into)

    def earlier(self, name: str) -> list[str]:
        """Other names that labels of the class were given under."""
        return [old for old, now in self.meaning.items() if now == name != old]

    def _add(self, name: str, _into: str | None) -> "Classes":
        self._refuse_taken(name, None)
        return Classes((*self.names, name), MappingProxyType({**self.meaning, name: name}))

    def _rename(self, name: str, into: str | None) -> "Classes":
        self._require(name)
        if name == into:
            raise UserError(f"the class is called {name!r} already")
        if into in self.names:
            raise UserError(f"there is a class {into!r} already: `vabal classes merge` makes one of the two")
        self._refuse_taken(str(into), name)
        names = tuple(str(into) if each == name else each for each in self.names)
        return Classes(names, self._meaning(name, str(into)))

    def _merge(self, name: str, into: str | None) -> "Classes":
        self._require(name)
        self._require(str(into))
        if name == into:
            raise UserError(f"class {name!r} cannot be merged with itself: name two classes")
        if len(self.names) <= 2:
            raise UserError(f"{' and '.join(self.names)} are the last two classes: merged, nothing is told apart")
        names = tuple(each for each in self.names if each != name)
        return Classes(names, self._meaning(name, str(into)))

    def _meaning(self, name: str, into: str) -> Mapping[str, str]:
        now = {old: into if means == name else means for old, means in self.meaning.items()}
        return MappingProxyType({**now, into: into})

    def _require(self, name: str) -> None:
        if name in self.names:
            return
        now = self.meaning.get(name)
        known = f"it is called {now!r} now" if now else f"classes: {some(self.names, 12)}"
        raise UserError(f"no class {shown(name)!r} ({known})")

    def _refuse_taken(self, name: str, by: str | None) -> None:
        """Raises UserError unless a class, that of today's name `by` or a new one, may be called so."""
        if not is_name(name):
            raise UserError(f"{shown(name)!r} is no class name (empty, spaces around it, or control characters)")
        if name in self.names:
            raise UserError(f"there is a class {name!r} already")
        now = self.meaning.get(name, by)
        if now != by:
            raise UserError(f"{name!r} is an earlier name of {now!r}, and its labels count there: choose another name")


_ACTIONS: Final[dict[str, Callable[[Classes, str, str | None], Classes]]] = {
    ADD: Classes._add,
    RENAME: Classes._rename,
    MERGE: Classes._merge,
}


def is_name(name: str) -> bool:
    """Whether a class may be called so: not empty, no spaces around it, no control characters."""
    return bool(name) and name == name.strip() and shown(name) == name


def classes_at(events: pd.DataFrame, names: tuple[str, ...], round_number: int | None = None) -> Classes:
    """The classes that a round worked with, by the events (columns of `class_events`) of it and the rounds before it.

    None: those of all events. Where there is no event, the classes are `names` and always were. Raises UserError if
    the events contradict each other.
    """
    if events.empty:
        return Classes(names, MappingProxyType({name: name for name in names}))
    taken = events if round_number is None else events[events["round"] <= round_number]
    classes = Classes((), MappingProxyType({}))
    for action, name, into in changes_of(taken):
        classes = classes.after(action, name, into)
    return classes


def apply_classes(pools: Pools, changes: pd.DataFrame, round_number: int) -> tuple[Pools, tuple[str, ...]]:
    """Pools after the classes changed (`changes` in order, columns of `CLASS_CHANGES`), and what to tell of it.

    Labels of the labelled pool and the holdout get today's names; label events stay as they were said. A change that
    was taken before is passed over; one that is none any more (another machine was faster) is left out and told.
    """
    if changes.empty:
        return pools, ()
    classes, taken, said = Classes.of(pools), np.zeros(len(changes), dtype=bool), list[str]()
    known = pd.concat([pools.class_events[CLASS_CHANGES.names], changes]).duplicated().to_numpy()[-len(changes) :]
    for place, change in enumerate(changes_of(changes)):
        if known[place]:
            continue
        try:
            classes = classes.after(*change)
        except UserError as error:
            said.append(f"{in_words(*change)}: left out, {error}")
        else:
            taken[place] = True
            said.append(f"{in_words(*change)} from round {round_number} on")
    if not taken.any():
        return pools, tuple(said)
    history = pools.class_events if len(pools.class_events) else _of_the_source(pools.classes)
    events = stack([history, changes[taken].assign(round=np.int32(round_number))], SCHEMAS["class_events"])
    both = {name: named(getattr(pools, name), classes) for name in ("labeled", "holdout")}
    return replace(pools, **both, classes=classes.names, class_events=events), tuple(said)


def merging(first: str, second: str, into: str | None) -> list[tuple[str, str, str | None]]:
    """The changes that make one class, called `into` (None: as the second), of two."""
    if into == first != second:
        first, second = second, first
    renamed = [] if into in (None, second) else [(RENAME, second, into)]
    return [(MERGE, first, second), *renamed]


def in_words(action: str, name: str, into: str | None) -> str:
    """A change in one line."""
    if action == ADD:
        return f"class {name} is added"
    return f"class {name} is called {into}" if action == RENAME else f"class {name} counts as {into}"


def named(table: pd.DataFrame, classes: Classes) -> pd.DataFrame:
    """The table with the labels that came under earlier names under today's; the very same where there are none."""
    now = {old: name for old, name in classes.meaning.items() if old != name}
    if not now:
        return table
    stale = among(table["label"], now)
    if not stale.any():
        return table
    renamed = table.copy()
    renamed.loc[stale, "label"] = table.loc[stale, "label"].map(now)
    return renamed


def _of_the_source(names: tuple[str, ...]) -> pd.DataFrame:
    """The classes of round 0 as events."""
    rows = pd.DataFrame({"name": list(names)})
    return rows.assign(action=ADD, into=None, author=FROM_SOURCE, reason=None, at=None, round=np.int32(0))


def changes_of(table: pd.DataFrame) -> list[tuple[str, str, str | None]]:
    """Action, name and into of each row."""
    into = [text if isinstance(text, str) else None for text in table["into"]]
    return list(zip(table["action"], table["name"], into, strict=True))
