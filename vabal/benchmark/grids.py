"""What is to be run: sources, imbalances, strategies, seeds, and the cells that they make."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vabal import strategies
from vabal.benchmark import protocols, shallow, variants
from vabal.benchmark.variants import Variant
from vabal.errors import UserError
from vabal.files import canonical_json, sha256
from vabal.settings import params
from vabal.settings.learners import ClassifierSettings
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
    "learner",
    "cpu_seconds",
    "trained",
)


@dataclass(frozen=True)
class Grid:
    """What is compared. Round r trains on `initial` + (r - 1) x `budget` labels; `settings` are dotted ones.

    `reference` is the row that others are tested against; `told` are lines for people.
    """

    sources: tuple[str, ...]
    imbalances: tuple[str | None, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    rounds: int
    budget: int
    initial: int
    holdout: float
    settings: Mapping[str, Any]
    reference: str | None = None
    told: tuple[str, ...] = ()

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
                variant.learner,
                variant.baseline,
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
    learners: str | None = None
    reference: str | None = None
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
        settings = {**(base.settings if base else {}), **self.settings}
        rows = _Rows(variants.parse_variants(specs), self.learners, settings)

        def chosen(name: str) -> Any:
            value = getattr(self, name)
            return value if value is not None else getattr(base, name) if base else _DEFAULTS[name]

        seeds = self.seeds if self.seeds is not None else base.seeds if base else rows.seeds
        return Grid(
            sources=given,
            imbalances=named or (base.imbalances if base else (None,)),
            variants=rows.variants,
            seeds=tuple(range(self.first_seed, self.first_seed + seeds)),
            rounds=chosen("rounds"),
            budget=chosen("budget"),
            initial=chosen("initial"),
            holdout=chosen("holdout"),
            settings=settings,
            reference=rows.reference(self.reference),
            told=(*rows.left_out, *([] if self.seeds is not None or base else [rows.said_seeds])),
        )


_DEFAULTS = {"rounds": 5, "budget": 100, "initial": 100, "holdout": 0.2}
_SEEDS, _SEEDS_OF_NETWORKS = 20, 5  # where a run takes seconds, and where networks are trained for minutes
_QUICK = ("probe", *shallow.KINDS)


class _Rows:
    """Strategies on learners: what a benchmark compares."""

    def __init__(self, strategies_: Sequence[Variant], learners: str | None, settings: Mapping[str, Any]) -> None:
        """`learners` are specs by commas; None leaves the strategies on what the settings say.

        Raises UserError if there is none, or no strategy can pick for any of them.
        """
        self.left_out: list[str] = []
        if learners is None:
            self.variants = tuple(strategies_)
            used = {str(settings.get("classifier.learner", ClassifierSettings().learner))}
        else:
            named = variants.parse_learners(variants.split_specs(learners, "learners"))
            rows = [(learner, learner.under(variant)) for learner in named for variant in strategies_]
            fitting = [(learner, row) for learner, row in rows if _fits(row, settings)]
            self.variants = tuple(row for _, row in fitting)
            used = {learner.learner for learner, _ in fitting}
            lacking = [row.label for _, row in rows if row not in self.variants]
            if lacking:
                why = "a shallow baseline has no networks to ask, no VAE and no class terms"
                self.left_out = [f"left out: {', '.join(lacking)} ({why})"]
            if not fitting:
                raise UserError(f"--learners {learners}: none of the strategies can pick for one of them: add random")
        self._slow = sorted(used - set(_QUICK))
        self.seeds = _SEEDS_OF_NETWORKS if self._slow else _SEEDS

    @property
    def said_seeds(self) -> str:
        why = f"{' and '.join(self._slow)} trains for minutes" if self._slow else "a run takes seconds"
        return f"{self.seeds} seeds, for {why}; --seeds N takes another number"

    def reference(self, named: str | None) -> str | None:
        """The row of that name; without one `vabal` on the first learner, else the first that is not random."""
        labels = [variant.label for variant in self.variants]
        if named is not None and named not in labels:
            raise UserError(f"--reference {named!r}: there is no such row; they are {', '.join(labels)}")
        ours = [variant.label for variant in self.variants if variant.strategy == "vabal"]
        others = [variant.label for variant in self.variants if variant.strategy != "random"]
        return named or next(iter([*ours, *others]), None)


def _fits(row: Variant, settings: Mapping[str, Any]) -> bool:
    if row.baseline is None:
        return True
    chosen = params.parse(params.override({}, {**settings, **row.settings}), where="bench")
    return shallow.suits(strategies.needs_of(strategies.get(row.strategy), chosen))


@dataclass(frozen=True)
class Cell:
    """One run. `label` is what results call the row; `settings` are its own; `learner` and `baseline` are a
    `Variant`'s."""

    source: str
    imbalance: str
    label: str
    strategy: str
    settings: Mapping[str, Any]
    seed: int
    common: Mapping[str, Any]
    learner: str = ""
    baseline: str | None = None

    @property
    def identity(self) -> tuple[str, str, str, int]:
        return self.source, self.imbalance, self.label, self.seed

    @property
    def key(self) -> str:
        """Of all settings, those left out as they are by default: another default is another run."""
        named = {name: value for name, value in asdict(self).items() if value or name not in ("learner", "baseline")}
        about = named | {"resolved": self.params(8, 1).model_dump(mode="json")}
        return sha256(canonical_json(about))[:16]

    @property
    def file_name(self) -> str:
        readable = "-".join([self.source, self.imbalance, self.label, str(self.seed)])
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)[:100]}-{self.key}.json"

    def params(self, size: int, channels: int) -> Params:
        """The settings of the run: a preset's, but without its control arm, so that strategies are compared and nothing
        beside them. Raises UserError for one that does not exist or does not fit."""
        raw: dict[str, Any] = {"seed": self.seed, "images": {"size": size, "channels": channels}}
        raw["selection"] = {"control_share": 0.0}
        chosen = {**self.common["settings"], **self.settings, "selection.strategy": self.strategy}
        return params.parse(params.override(raw, {**chosen, "selection.budget": self.common["budget"]}), where="bench")
