"""How a benchmark's strategies and learners are written: by name, and with settings of their own.

`no-prior=vabal[method.preset=paper;probabilities.use_prior=false]` is the strategy `vabal` under the label `no-prior`;
`last=probe[classifier.layers=last]` is the learner `probe` under the label `last`. Together they are `last/no-prior`.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar, get_args

import yaml

from vabal import strategies
from vabal.benchmark import shallow
from vabal.errors import UserError
from vabal.settings import params
from vabal.settings.learners import ClassifierSettings

LABEL_LENGTH = 80
_SPEC = re.compile(r"(?:(?P<label>[^\[\]=]*)=)?(?P<name>[^\[\]=]*)(?:\[(?P<settings>[^\[\]]*)\])?")
# What a simulated run reads. `images` is not among them: a source is decoded once, for all strategies.
_SECTIONS = {
    "strategy": ("classifier", "features", "method", "vae", "probabilities", "selection", "compute"),
    "learner": ("classifier", "backbone", "finetune", "features", "compute"),
}
_FIXED = {"strategy": ("selection.strategy", "selection.budget"), "learner": ("classifier.learner",)}
LEARNERS: tuple[str, ...] = get_args(ClassifierSettings.model_fields["learner"].annotation)  # of the product


@dataclass(frozen=True)
class Variant:
    """A strategy as a benchmark runs it, on a learner. `label` is what results call it; `settings` are dotted, its own
    alone. `learner` is the label of one that was named, and `baseline` the shallow one that this is, if it is one."""

    label: str
    strategy: str
    settings: Mapping[str, Any]
    learner: str = ""
    baseline: str | None = None


@dataclass(frozen=True)
class LearnerVariant:
    """A learner as a benchmark runs it: one of the product's, or a shallow baseline."""

    label: str
    learner: str
    settings: Mapping[str, Any]

    def under(self, variant: Variant) -> Variant:
        """The strategy on this learner. A strategy's own settings count before the learner's."""
        own = {} if self.learner in shallow.KINDS else {"classifier.learner": self.learner}
        baseline = self.learner if self.learner in shallow.KINDS else None
        settings = {**own, **self.settings, **variant.settings}
        return Variant(f"{self.label}/{variant.label}", variant.strategy, settings, self.label, baseline)


def parse_variant(spec: str) -> Variant:
    """From `name`, `name[section.key=value;...]` or `label=name[...]`; values are YAML, as with `vabal init --set`.

    Without a label, the whole text is it. Raises UserError for a text that is not so, an unknown strategy, or a setting
    that does not exist or does not fit.
    """
    label, name, settings = _parsed(spec, "strategy", strategies.get)
    return Variant(label, name, settings)


def parse_learner(spec: str) -> LearnerVariant:
    """As `parse_variant` does, of a learner's name."""
    return LearnerVariant(*_parsed(spec, "learner", _known_learner))


def _known_learner(name: str) -> None:
    known = [*LEARNERS, *shallow.KINDS]
    if name not in known:
        raise UserError(f"--learners: there is no learner {name!r}; known are {', '.join(known)}")


class _Parsed(NamedTuple):
    label: str
    name: str
    settings: dict[str, Any]


def _parsed(spec: str, what: str, known: Callable[[str], object]) -> _Parsed:
    """What a spec says; `known` refuses a name."""
    text = spec.strip()
    found = _SPEC.fullmatch(text)
    if not found or not found["name"].strip():
        raise UserError(f"{what} {text!r}: write it as name, name[section.key=value;...] or label=name[...]")
    label = text if found["label"] is None else found["label"].strip()
    _check_label(label, text, what)
    name = found["name"].strip()
    known(name)
    settings = {} if found["settings"] is None else _settings(found["settings"], text, what)
    params.parse(params.override({}, settings), where=f"{what} {text!r}")
    return _Parsed(label, name, settings)


_Labelled = TypeVar("_Labelled", Variant, LearnerVariant)


def parse_variants(specs: Sequence[str]) -> list[Variant]:
    """One each, in their order. Raises UserError for a spec that cannot be read, and for a label that stands twice."""
    return _unlike([parse_variant(spec) for spec in specs], "strategy")


def parse_learners(specs: Sequence[str]) -> list[LearnerVariant]:
    """As `parse_variants` does, of learners."""
    return _unlike([parse_learner(spec) for spec in specs], "learner")


def _unlike(parsed: list[_Labelled], what: str) -> list[_Labelled]:
    twice = [label for label, count in Counter(item.label for item in parsed).items() if count > 1]
    if twice:
        raise UserError(f"{what} {twice[0]!r} stands there twice: leave one out, or give it a label (label=name[...])")
    return parsed


def split_specs(text: str, what: str = "strategies") -> list[str]:
    """Splits `a,b[x.y=1;z.w=2],c` at the commas outside brackets. Raises UserError for brackets that do not pair."""
    specs, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if depth not in (0, 1):
            raise UserError(f"{what} {text!r}: brackets must pair, and not lie in each other")
        if sign == "," and depth == 0:
            specs.append("")
        else:
            specs[-1] += sign
    if depth:
        raise UserError(f"{what} {text!r}: a bracket is not closed")
    specs = [spec.strip() for spec in specs]
    if not all(specs):
        example = "random,coreset,vabal" if what == "strategies" else "scratch,probe,svm-hog"
        raise UserError(f"{what} {text!r}: a name is missing; write them as {example}")
    return specs


def _check_label(label: str, spec: str, what: str) -> None:
    if not label or not label.isprintable() or "/" in label:
        raise UserError(f"{what} {spec!r}: the label must be printable characters, without a /")
    if len(label) > LABEL_LENGTH:
        raise UserError(
            f"{what} {spec!r}: a label has at most {LABEL_LENGTH} characters; put one in front (label=name[...])"
        )


def _settings(text: str, spec: str, what: str) -> dict[str, Any]:
    """The dotted settings between the brackets; what they may be is for `params` to say."""
    settings: dict[str, Any] = {}
    for pair in text.split(";"):
        path, separator, value = (part.strip() for part in pair.partition("="))
        section, dot, key = path.partition(".")
        if not (separator and value and section and dot and key):
            raise UserError(f"{what} {spec!r}: {pair.strip()!r} is no setting; write it as section.key=value")
        if section not in _SECTIONS[what] or path in _FIXED[what]:
            raise UserError(
                f"{what} {spec!r}: {path} is no setting that a {what} has for itself; those are in the sections "
                f"{', '.join(_SECTIONS[what])}, without {' and '.join(_FIXED[what])}"
            )
        if path in settings:
            raise UserError(f"{what} {spec!r}: {path} stands there twice")
        settings[path] = _value(value, path, f"{what} {spec!r}")
    return settings


def _value(text: str, path: str, where: str) -> Any:
    try:
        return params.read_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"{where}: {path}: {text!r} is no value in YAML") from None
