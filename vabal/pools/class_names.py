"""Classes by their names: what a change of them comes to, and what every name that was ever used means.

A name belongs to one class for good: a class that is renamed or merged takes its earlier names along, and no other
class may have them. So a label means the same whenever it was given and whenever it comes in.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from vabal.errors import UserError, shown, some

if TYPE_CHECKING:
    from vabal.pools.tables import Pools

ADD: Final = "add"
RENAME: Final = "rename"
MERGE: Final = "merge"


@dataclass(frozen=True)
class Classes:
    """The class names in index order, and for every name that was ever used that of today."""

    names: tuple[str, ...]
    meaning: Mapping[str, str]

    @classmethod
    def of(cls, pools: "Pools") -> "Classes":
        """Those of now."""
        events = pools.class_events
        changes = zip(events["action"], events["name"], events["into"], strict=True)
        told = [(action, name, into if isinstance(into, str) else None) for action, name, into in changes]
        return classes_after(told, None if told else pools.classes)

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


def classes_after(changes: Iterable[tuple[str, str, str | None]], names: tuple[str, ...] | None) -> Classes:
    """The classes after these changes of none; with `names`, those instead. Raises UserError if the changes contradict
    each other."""
    if names is not None:
        return Classes(names, MappingProxyType({name: name for name in names}))
    classes = Classes((), MappingProxyType({}))
    for action, name, into in changes:
        classes = classes.after(action, name, into)
    return classes


def in_words(action: str, name: str, into: str | None) -> str:
    """A change in one line."""
    if action == ADD:
        return f"class {name} is added"
    return f"class {name} is called {into}" if action == RENAME else f"class {name} counts as {into}"
