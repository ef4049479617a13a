"""Strategies: which unlabelled samples to ask labels for.

`get(name)` finds one by name: `vabal`, `random` and `entropy` are built in, others register theirs through the
entry-point group `vabal.strategies`. docs/strategies.md tells how to write one.
"""

from importlib.metadata import EntryPoint, entry_points

from vabal.errors import UserError
from vabal.strategies.batch import Picker, Rule, pick
from vabal.strategies.candidates import Candidates, schema, selection_table
from vabal.strategies.entropy import EntropyStrategy
from vabal.strategies.random import RandomStrategy
from vabal.strategies.seam import Context, Labeled, Needs, ScoringStrategy, Selection, Shard, Strategy, no_picks
from vabal.strategies.vabal import VabalStrategy

__all__ = [
    "Candidates",
    "Context",
    "Labeled",
    "Needs",
    "Picker",
    "Rule",
    "ScoringStrategy",
    "Selection",
    "Shard",
    "Strategy",
    "get",
    "names",
    "no_picks",
    "pick",
    "schema",
    "selection_table",
]

GROUP = "vabal.strategies"
_BUILT_IN: dict[str, type[ScoringStrategy]] = {
    strategy.name: strategy for strategy in (VabalStrategy, RandomStrategy, EntropyStrategy)
}


def names() -> list[str]:
    """The strategies that are there: built in first, then installed plug-ins."""
    return [*_BUILT_IN, *sorted({point.name for point in entry_points(group=GROUP)} - set(_BUILT_IN))]


def get(name: str) -> Strategy:
    """The strategy of that name. Raises UserError if there is none, or more than one, or a plug-in does not load."""
    plugged = {point.value: point for point in entry_points(group=GROUP, name=name)}
    if len(plugged) + (name in _BUILT_IN) > 1:
        raise UserError(
            f"more than one strategy is named {name!r} ({', '.join(plugged)}): uninstall one of the packages"
        )
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    if not plugged:
        raise UserError(f"selection.strategy: there is no strategy {name!r}; installed are {', '.join(names())}")
    return _load(next(iter(plugged.values())))


def _load(point: EntryPoint) -> Strategy:
    """An entry point names a class without arguments, or a strategy itself."""
    try:
        loaded = point.load()
    except (ImportError, AttributeError) as error:
        raise UserError(f"strategy {point.name!r} cannot be loaded from {point.value}: {error}") from error
    strategy = loaded() if isinstance(loaded, type) else loaded
    if not isinstance(strategy, Strategy):
        raise UserError(
            f"strategy {point.name!r} from {point.value} is none: it lacks name, needs, select or rescore "
            "(docs/strategies.md tells what they are)"
        )
    return strategy
