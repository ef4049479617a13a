"""Classes over time: an event a change, and tables whose labels came under the names of then."""

from dataclasses import replace

import numpy as np
import pandas as pd

from vabal.errors import UserError
from vabal.pools.class_names import ADD, MERGE, RENAME, Classes, classes_after, in_words
from vabal.pools.columns import among, stack
from vabal.pools.tables import CLASS_CHANGES, FROM_SOURCE, SCHEMAS, Pools


def classes_at(events: pd.DataFrame, names: tuple[str, ...], round_number: int | None = None) -> Classes:
    """The classes that a round worked with, by the events (columns of `class_events`) of it and the rounds before it.

    None: those of all events. Where there is no event, the classes are `names` and always were. Raises UserError if
    the events contradict each other.
    """
    if events.empty:
        return classes_after((), names)
    taken = events if round_number is None else events[events["round"] <= round_number]
    return classes_after(changes_of(taken), None)


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
