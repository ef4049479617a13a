"""What is to be run: sources, imbalances, strategies, seeds, and the cells that they make."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vabal.benchmark import protocols, variants
from vabal.benchmark.variants import Variant
from vabal.errors import UserError
from vabal.files import canonical_json, sha256
from vabal.settings import params
from vabal.settings.models import Params

VERSION = 1
NATURAL = "natural"  # as it is: what the column `imbalance` says where a source is not thinned
TOP_PICKS = 10  # images of the first batch that a cell keeps for the report (paper, Fig. 5)
CELL = re.compile(r"-[0-9a-f]{16}\.json$")  # the end of a cell's file name
HALF = re.compile(r"\..*\.[0-9a-f]{32}\.tmp")  # a file that is being written
COLUMNS = (
    "source",
    "imbalance",
    "strategy",
    "seed",
    "round",
    "labeled",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "seconds",
    "picked_per_class",
)


@dataclass(frozen=True)
class Grid:
    """What is compared. Round r trains on `initial` + (r - 1) x `budget` labels; `settings` are dotted ones."""

    sources: tuple[str, ...]
    imbalances: tuple[str | None, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    rounds: int
    budget: int
    initial: int
    holdout: float
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, value in (("--rounds", self.rounds), ("--budget", self.budget), ("--initial", self.initial)):
            if value < 1:
                raise UserError(f"{name} {value}: must be at least 1")
        if not self.seeds:
            raise UserError("--seeds: at least one is needed")

    def common(self) -> dict[str, Any]:
        """What all cells of a folder share: results of other budgets are not comparable, nor of other recipes."""
        return {
            "rounds": self.rounds,
            "budget": self.budget,
            "initial": self.initial,
            "holdout": self.holdout,
            "settings": dict(self.settings),
        }

    def cells(self) -> list["Cell"]:
        """Seeds outermost, so that an unfinished grid has whole matched comparisons; strategies innermost."""
        return [
            Cell(
                source,
                imbalance or NATURAL,
                variant.label,
                variant.strategy,
                dict(variant.settings),
                seed,
                self.common(),
            )
            for seed in self.seeds
            for source in self.sources
            for imbalance in self.imbalances
            for variant in self.variants
        ]


@dataclass(frozen=True)
class BenchmarkOptions:
    """A command's arguments; what is None comes from the protocol, or else from `_DEFAULTS`."""

    protocol: str | None = None
    root: Path | None = None
    sources: Sequence[str] = ()
    imbalances: Sequence[str] = ()
    strategies: str | None = None
    seeds: int | None = None
    first_seed: int = 0
    rounds: int | None = None
    budget: int | None = None
    initial: int | None = None
    holdout: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def grid(self) -> Grid:
        """What to compare. Raises UserError for arguments that are missing or do not fit."""
        base = protocols.get(self.protocol) if self.protocol else None
        if base is None and not self.sources:
            raise UserError("name what to compare on: --source S, or --protocol NAME")
        if base is None and self.root is not None:
            raise UserError("--root: says where a protocol's data lies; without --protocol the source says it")
        if base is None:
            given, specs = tuple(self.sources), ["random", "vabal"]
        else:
            given, specs = tuple(self.sources) or base.sources_in(self.root), list(base.strategies)
        named = tuple(None if name == NATURAL else name for name in self.imbalances)
        if self.strategies is not None:
            specs = variants.split_specs(self.strategies)

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return value if value is not None else getattr(base, name) if base else _DEFAULTS[name]

        return Grid(
            sources=given,
            imbalances=named or (base.imbalances if base else (None,)),
            variants=tuple(variants.parse_variants(specs)),
            seeds=tuple(range(self.first_seed, self.first_seed + chosen("seeds"))),
            rounds=chosen("rounds"),
            budget=chosen("budget"),
            initial=chosen("initial"),
            holdout=chosen("holdout"),
            settings={**(base.settings if base else {}), **self.settings},
        )


_DEFAULTS = {"seeds": 3, "rounds": 5, "budget": 100, "initial": 100, "holdout": 0.2}


@dataclass(frozen=True)
class Cell:
    """One run. `label` is what results call the strategy; `settings` are the strategy's own."""

    source: str
    imbalance: str
    label: str
    strategy: str
    settings: Mapping[str, Any]
    seed: int
    common: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str, int]:
        return self.source, self.imbalance, self.label, self.seed

    @property
    def key(self) -> str:
        """Of all settings, those left out as they are by default: another default is another run."""
        about = asdict(self) | {"resolved": self.params(8, 1).model_dump(mode="json")}
        return sha256(canonical_json(about))[:16]

    @property
    def file_name(self) -> str:
        readable = "-".join([self.source, self.imbalance, self.label, str(self.seed)])
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)[:100]}-{self.key}.json"

    def params(self, size: int, channels: int) -> Params:
        """The settings of the run. Raises UserError for one that does not exist or does not fit."""
        raw: dict[str, Any] = {"seed": self.seed, "images": {"size": size, "channels": channels}}
        chosen = {**self.common["settings"], **self.settings, "selection.strategy": self.strategy}
        return params.parse(params.override(raw, {**chosen, "selection.budget": self.common["budget"]}), where="bench")
