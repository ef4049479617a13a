"""Strategies: which unlabelled samples to ask labels for.

`get(name)` finds one by name: `names()` lists those built in, others register theirs through the entry-point group
`vabal.strategies`. `balanced:NAME` and `stochastic:NAME` go around any of them. docs/strategies.md tells how to write
one.
"""

import sys
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from vabal.errors import UserError
from vabal.learning.needs import Needs
from vabal.strategies.base import (
    BaseStrategy,
    Context,
    Labeled,
    ScoringStrategy,
    Selection,
    Shard,
    Shortlist,
    Strategy,
    needs_of,
    no_picks,
    posteriors,
    record_of,
    with_prediction,
)
from vabal.strategies.batch import Picker, pick
from vabal.strategies.candidates import Candidates, margin, schema, selection_table
from vabal.strategies.rules import BatchRule, Rule, rule_named
from vabal.strategies.sequential import SequentialStrategy

__all__ = [
    "BaseStrategy",
    "BatchRule",
    "Candidates",
    "Context",
    "Labeled",
    "Needs",
    "Picker",
    "Rule",
    "ScoringStrategy",
    "Selection",
    "SequentialStrategy",
    "Shard",
    "Shortlist",
    "Strategy",
    "get",
    "margin",
    "names",
    "needs_of",
    "no_picks",
    "pick",
    "posteriors",
    "record_of",
    "rule_named",
    "schema",
    "selection_table",
    "with_prediction",
]

GROUP = "vabal.strategies"
# Imported when asked for: some of them bring SciPy or torch along.
_BUILT_IN = {
    "vabal": "vabal.strategies.vabal:VabalStrategy",
    "random": "vabal.strategies.random:RandomStrategy",
    "entropy": "vabal.strategies.entropy:EntropyStrategy",
    "margin": "vabal.strategies.smallest_margin:MarginStrategy",
    "bald": "vabal.strategies.bald:BaldStrategy",
    "power_bald": "vabal.strategies.power_bald:PowerBaldStrategy",
    "ensemble": "vabal.strategies.ensemble:EnsembleStrategy",
    "learning_loss": "vabal.strategies.learning_loss:LearningLossStrategy",
    "coreset": "vabal.strategies.coreset:CoresetStrategy",
    "vaal": "vabal.strategies.vaal:VaalStrategy",
    "badge": "vabal.strategies.badge:BadgeStrategy",
    "typiclust": "vabal.strategies.typiclust:TypiclustStrategy",
    "galaxy": "vabal.strategies.galaxy:GalaxyStrategy",
    "direct": "vabal.strategies.direct:DirectStrategy",
}
_WRAPPERS = {
    "balanced": "vabal.strategies.balanced:Balanced",
    "stochastic": "vabal.strategies.stochastic:Stochastic",
}


def names() -> list[str]:
    """The strategies that are there: built in first, then installed plug-ins."""
    return [*_BUILT_IN, *sorted({point.name for point in _installed(_folders())} - set(_BUILT_IN))]


def get(name: str) -> Strategy:
    """The strategy of that name; `balanced:NAME` and `stochastic:NAME` are wrapped ones.

    Raises UserError if there is none, or more than one, or a plug-in does not load.
    """
    wrapper, colon, inner = name.partition(":")
    if colon and wrapper in _WRAPPERS:
        wrapped: Strategy = _named(_WRAPPERS[wrapper])(get(inner))
        return wrapped
    plugged = {point.value: point for point in _installed(_folders()) if point.name == name}
    if len(plugged) + (name in _BUILT_IN) > 1:
        raise UserError(
            f"more than one strategy is named {name!r} ({', '.join(plugged)}): uninstall one of the packages"
        )
    if name in _BUILT_IN:
        strategy: Strategy = _named(_BUILT_IN[name])()
        return strategy
    if not plugged:
        around = ", ".join(f"{wrapper}:NAME" for wrapper in _WRAPPERS)
        raise UserError(
            f"selection.strategy: there is no strategy {name!r}; installed are {', '.join(names())}, and {around} "
            "around any of them"
        )
    return _load(next(iter(plugged.values())))


@lru_cache(maxsize=1)
def _installed(_where: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Plug-ins. To look takes a seventh of a second, and an audit of many rounds asks often."""
    return tuple(entry_points(group=GROUP))


def _folders() -> tuple[tuple[str, int], ...]:
    """Where packages are, and when each of these changed last: what is installed meanwhile is found."""
    return tuple((name, path.stat().st_mtime_ns) for name in sys.path if (path := Path(name)).exists())


def _named(place: str) -> Callable[..., Strategy]:
    module, _, name = place.partition(":")
    built: Callable[..., Strategy] = getattr(import_module(module), name)
    return built


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
