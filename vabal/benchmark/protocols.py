"""`vabal bench --protocol NAME`: the paper's set-ups and ablations by name.

A protocol is what a benchmark compares, on what, for how long: the numbers of the paper's Section 4 where it states
them, and our choice where it does not; docs/protocols.md tells which is which.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vabal.errors import UserError

ROOT = "ROOT"


@dataclass(frozen=True)
class Protocol:
    """What a named benchmark compares. Round r trains on `initial` + (r - 1) x `budget` labels.

    `sources` hold the placeholder ROOT where the user's folder goes; an imbalance of None leaves the source as it is;
    `strategies` are specs for `variants.parse_variant`; `settings` are dotted, common to all; `holdout` is the share
    held out of a source that brings no test split of its own.
    """

    name: str
    about: str
    sources: tuple[str, ...]
    imbalances: tuple[str | None, ...]
    strategies: tuple[str, ...]
    seeds: int
    rounds: int
    budget: int
    initial: int
    settings: Mapping[str, Any]
    holdout: float = 0.2

    @property
    def labeled(self) -> int:
        """Labels that the last round trains on."""
        return self.initial + (self.rounds - 1) * self.budget

    @property
    def cells(self) -> int:
        """Runs: sources x imbalances x strategies x seeds."""
        return len(self.sources) * len(self.imbalances) * len(self.strategies) * self.seeds

    @property
    def needs_root(self) -> bool:
        return any(source.endswith(f":{ROOT}") for source in self.sources)

    def sources_in(self, root: Path | str | None) -> tuple[str, ...]:
        """The sources with `--root` filled in. Raises UserError if it is missing, or not asked for."""
        if self.needs_root and root is None:
            raise UserError(f"--protocol {self.name}: needs --root DIR, where {self.sources[0].split(':')[0]} lies")
        if root is not None and not self.needs_root:
            raise UserError(f"--protocol {self.name}: takes no --root, {' and '.join(self.sources)} lies nowhere")
        ending = f":{ROOT}"
        return tuple(
            source.removesuffix(ROOT) + str(root) if source.endswith(ending) else source for source in self.sources
        )


def get(name: str) -> Protocol:
    """The protocol of that name. Raises UserError, which lists the known ones."""
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name!r}: there is none of that name; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


# The paper's recipe (Section 4.2). It does not speak of augmentation: that is its published code's.
_RECIPE: Mapping[str, Any] = {
    "classifier.network": "resnet18",
    "classifier.width": 64,
    "classifier.epochs": 200,
    "classifier.batch_size": 128,
    "classifier.learning_rate": 0.1,
    "classifier.decay_at": 0.8,
    "classifier.decay_factor": 0.1,
    "classifier.momentum": 0.9,
    "classifier.weight_decay": 5e-4,
    "classifier.crop_padding": 4,
    "classifier.horizontal_flip": True,
}
_PAPER = "paper=vabal[method.preset=paper]"
_PUBLISHED_CODE = "published_code=vabal[method.preset=published_code]"
_RIVALS = ("random", "vaal", "bald", "coreset", _PAPER, _PUBLISHED_CODE, "vabal")

_DOMINANT = ("dominant:0:0.1", "dominant:4:0.1", "dominant:9:0.1")
_RARE = ("rare:0:0.1", "rare:4:0.1", "rare:9:0.1")
_CIFAR10_LABELS = 3000  # at the end of every run on CIFAR-10: six times 500


def _cifar10(
    name: str,
    about: str,
    imbalances: tuple[str | None, ...],
    specs: tuple[str, ...] = _RIVALS,
    *,
    budget: int = 500,
    **changed: Any,
) -> Protocol:
    """Trainings on one budget, two budgets, ... up to 3 000 labels; `changed` are settings of the classifier."""
    settings = {**_RECIPE, **{f"classifier.{key}": value for key, value in changed.items()}}
    rounds = _CIFAR10_LABELS // budget
    return Protocol(name, about, (f"cifar10:{ROOT}",), imbalances, specs, 3, rounds, budget, budget, settings)


def _cifar100(name: str, about: str, imbalance: str | None) -> Protocol:
    return Protocol(name, about, (f"cifar100:{ROOT}",), (imbalance,), _RIVALS, 3, 5, 1000, 1000, _RECIPE)


# Tables 1 and 2 and Fig. 7(b) are about Eq. 7's class, which a summed loss does not learn at these lambdas.
_AVERAGED = "method.preset=paper;vae.loss_reduction=mean"


def _terms(settings: str) -> tuple[str, ...]:
    """Table 1's four rows: prior and precision in and out."""
    rows = (("neither", False, False), ("prior", True, False), ("precision", False, True), ("both", True, True))
    return tuple(
        f"{label}=vabal[{settings};probabilities.use_prior={str(prior).lower()};"
        f"probabilities.use_precision={str(precision).lower()}]"
        for label, prior, precision in rows
    )


def _energies(settings: str) -> tuple[str, ...]:
    """Table 2's three rows."""
    return tuple(f"{energy}=vabal[{settings};vae.energy={energy}]" for energy in ("sigmoid", "absolute", "square"))


_LAMBDAS = tuple(
    f"lambda-{value}=vabal[{_AVERAGED};vae.class_weight={value}]" for value in ("0", "0.0005", "0.005", "0.05", "0.5")
)

_OF_THE_PAPER = (
    _cifar10("cifar10", "Fig. 4(b), 22: CIFAR-10 as it is", (None,)),
    _cifar10("cifar10-dominant", "Fig. 3(b), 12, 15-17; 5, 6 and 9: CIFAR-10 with one dominant class", _DOMINANT),
    _cifar10("cifar10-rare", "Fig. 4(a), 13, 19-21: CIFAR-10 with one rare class", _RARE),
    _cifar100("cifar100", "Fig. 4(c): CIFAR-100 as it is", None),
    _cifar100("cifar100-dominant", "Fig. 3(c), 18: CIFAR-100 with eleven dominant classes", "dominant:44-54:0.6"),
    Protocol(
        "neu",
        "Fig. 3(a), 14: NEU surface defects",
        (f"neu:{ROOT}",),
        (None,),
        _RIVALS,
        seeds=3,
        rounds=5,
        budget=250,
        initial=250,
        settings=_RECIPE,
    ),
    _cifar10(
        "table1", "Table 1: with and without prior and precision", (None, _DOMINANT[0]), ("random", *_terms(_AVERAGED))
    ),
    _cifar10("table2", "Table 2: the form of w in Eq. 7", _DOMINANT, ("random", *_energies(_AVERAGED))),
    _cifar10("lambda", "Fig. 7(b), 11: lambda of Eq. 10", _DOMINANT, ("random", *_LAMBDAS)),
    *(
        _cifar10(f"budget-{budget}", f"Fig. 7(a), 10: {budget} labels a round", _DOMINANT, budget=budget)
        for budget in (250, 500, 1000)
    ),
    _cifar10("resnet34", "Fig. 8: ResNet-34 as the classifier", _DOMINANT[:1], network="resnet34"),
)

# For machines without the paper's data, and without a GPU.
_SMALL: Mapping[str, Any] = {
    "classifier.network": "resnet10",
    "classifier.width": 16,
    "classifier.epochs": 30,
    "classifier.batch_size": 16,
    "classifier.learning_rate": 0.05,
}
_EVERY_STRATEGY = (
    "random",
    "entropy",
    "margin",
    "bald",
    "power_bald",
    "ensemble",
    "learning_loss",
    "coreset",
    "vaal",
    "badge",
    "typiclust",
    "galaxy",
    "direct",
    "balanced:margin",
    "stochastic:margin",
    "vabal",
)
# Eq. 6 by itself: the presets, with as many steps as so small a pool needs, and readings on the default's VAE.
_ALONE = (
    "probabilities.members=1;probabilities.exponent=1.0;probabilities.likelihood_weight=1.0;"
    "probabilities.margin_weight=0.0"
)
_READINGS = (
    "paper=vabal[method.preset=paper;vae.min_steps=2000]",
    "published_code=vabal[method.preset=published_code;vae.min_steps=2000]",
    f"all-summed=vabal[{_ALONE};probabilities.classes=all;probabilities.likelihood_reduction=sum;selection.batch=topk]",
    f"all-contrast=vabal[{_ALONE};probabilities.classes=all;probabilities.likelihood_reduction=contrast;selection.batch=topk]",
    f"own-topk=vabal[{_ALONE};probabilities.classes=predicted;selection.batch=topk]",
    f"own-gumbel=vabal[{_ALONE};probabilities.classes=predicted;selection.batch=gumbel]",
    f"own-spread=vabal[{_ALONE};probabilities.classes=predicted;selection.batch=spread]",
    "cross-fitted=vabal[probabilities.precision_from=cross_fitted]",
    "no-class-terms=vabal[probabilities.use_prior=false;probabilities.use_precision=false]",
    "no-likelihood=vabal[probabilities.likelihood_weight=0.0]",
    "no-margin=vabal[probabilities.margin_weight=0.0]",
    "one-network=vabal[probabilities.members=1]",
    "topk=vabal[selection.batch=topk]",
)


def _digits(name: str, about: str, imbalances: tuple[str | None, ...], specs: tuple[str, ...]) -> Protocol:
    return Protocol(
        name, about, ("digits",), imbalances, specs, seeds=10, rounds=4, budget=25, initial=25, settings=_SMALL
    )


_FOR_TWO_CORES = (
    _digits(
        "digits",
        "Fig. 3 and 4 on scikit-learn's digits: natural, 10:1 and 50:1",
        (None, "dominant:0:0.1", "dominant:0:0.02", "rare:0:0.1", "rare:0:0.02"),
        _EVERY_STRATEGY,
    ),
    _digits(
        "digits-table1",
        "Table 1 on digits, of the default",
        (None, "dominant:0:0.1"),
        ("random", *_terms("method.preset=vabal")),
    ),
    _digits(
        "digits-table2",
        "Table 2 on digits, of the default",
        _DOMINANT,
        ("random", *_energies("method.preset=vabal")),
    ),
    _digits(
        "digits-readings",
        "readings of Eq. 6, and the default without one of its parts",
        (None, "dominant:0:0.1", "rare:0:0.1"),
        ("random", "vabal", *_READINGS),
    ),
    Protocol(
        "elpv",
        "Fig. 3 and 4 on ELPV's solar cells: natural, 10:1 and 50:1",
        ("elpv",),
        (None, "dominant:4:0.1", "dominant:4:0.02", "rare:7:0.1", "rare:7:0.02"),
        _EVERY_STRATEGY,
        seeds=5,
        rounds=4,
        budget=50,
        initial=50,
        settings={
            **_SMALL,
            "images.size": 64,
            "classifier.stem": "imagenet",
            "classifier.width": 8,
            "classifier.epochs": 20,
            "classifier.horizontal_flip": True,
        },
    ),
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (*_OF_THE_PAPER, *_FOR_TWO_CORES)}
