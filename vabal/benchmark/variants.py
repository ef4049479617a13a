"""How a benchmark's strategies are written: by name, and with settings of their own.

`no-prior=vabal[method.preset=paper;probabilities.use_prior=false]` is the strategy `vabal` under the label `no-prior`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from vabal import strategies
from vabal.errors import UserError
from vabal.settings import params

LABEL_LENGTH = 80
_SPEC = re.compile(r"(?:(?P<label>[^\[\]=]*)=)?(?P<strategy>[^\[\]=]*)(?:\[(?P<settings>[^\[\]]*)\])?")
# What a simulated run reads. `images` is not among them: a source is decoded once, for all strategies.
_SECTIONS = ("classifier", "features", "method", "vae", "probabilities", "selection", "compute")
_FIXED = ("selection.strategy", "selection.budget")


@dataclass(frozen=True)
class Variant:
    """A strategy as a benchmark runs it. `label` is what results call it; `settings` are dotted, its own alone."""

    label: str
    strategy: str
    settings: Mapping[str, Any]


def parse_variant(spec: str) -> Variant:
    """From `name`, `name[section.key=value;...]` or `label=name[...]`; values are YAML, as with `vabal init --set`.

    Without a label, the whole text is it. Raises UserError for a text that is not so, an unknown strategy, or a setting
    that does not exist or does not fit.
    """
    text = spec.strip()
    found = _SPEC.fullmatch(text)
    if not found or not found["strategy"].strip():
        raise UserError(f"strategy {text!r}: write it as name, name[section.key=value;...] or label=name[...]")
    label = text if found["label"] is None else found["label"].strip()
    _check_label(label, text)
    strategy = found["strategy"].strip()
    strategies.get(strategy)
    settings = {} if found["settings"] is None else _settings(found["settings"], text)
    params.parse(params.override({}, settings), where=f"strategy {text!r}")
    return Variant(label, strategy, settings)


def parse_variants(specs: Sequence[str]) -> list[Variant]:
    """One each, in their order. Raises UserError for a spec that cannot be read, and for a label that stands twice."""
    parsed = [parse_variant(spec) for spec in specs]
    twice = [label for label, count in Counter(variant.label for variant in parsed).items() if count > 1]
    if twice:
        raise UserError(
            f"strategy {twice[0]!r} stands there twice: leave one out, or give it a label (label=name[...])"
        )
    return parsed


def split_specs(text: str) -> list[str]:
    """Splits `a,b[x.y=1;z.w=2],c` at the commas outside brackets. Raises UserError for brackets that do not pair."""
    specs, depth = [""], 0
    for sign in text:
        depth += (sign == "[") - (sign == "]")
        if depth not in (0, 1):
            raise UserError(f"strategies {text!r}: brackets must pair, and not lie in each other")
        if sign == "," and depth == 0:
            specs.append("")
        else:
            specs[-1] += sign
    if depth:
        raise UserError(f"strategies {text!r}: a bracket is not closed")
    specs = [spec.strip() for spec in specs]
    if not all(specs):
        raise UserError(f"strategies {text!r}: a name is missing; write them as random,coreset,vabal")
    return specs


def _check_label(label: str, spec: str) -> None:
    if not label or not label.isprintable() or "/" in label:
        raise UserError(f"strategy {spec!r}: the label must be printable characters, without a /")
    if len(label) > LABEL_LENGTH:
        raise UserError(
            f"strategy {spec!r}: a label has at most {LABEL_LENGTH} characters; put one in front (label=name[...])"
        )


def _settings(text: str, spec: str) -> dict[str, Any]:
    """The dotted settings between the brackets; what they may be is for `params` to say."""
    settings: dict[str, Any] = {}
    for pair in text.split(";"):
        path, separator, value = (part.strip() for part in pair.partition("="))
        section, dot, key = path.partition(".")
        if not (separator and value and section and dot and key):
            raise UserError(f"strategy {spec!r}: {pair.strip()!r} is no setting; write it as section.key=value")
        if section not in _SECTIONS or path in _FIXED:
            raise UserError(
                f"strategy {spec!r}: {path} is no setting that a strategy has for itself; those are in the sections "
                f"{', '.join(_SECTIONS)}, without {' and '.join(_FIXED)}"
            )
        if path in settings:
            raise UserError(f"strategy {spec!r}: {path} stands there twice")
        settings[path] = _value(value, path, spec)
    return settings


def _value(text: str, path: str, spec: str) -> Any:
    try:
        return params.read_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"strategy {spec!r}: {path}: {text!r} is no value in YAML") from None
