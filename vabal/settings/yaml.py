"""YAML as `params.yaml` is written: 1.2's numbers and booleans, no key twice, nothing executed."""

import re
from typing import Any

import yaml

from vabal.settings import bounds

# -- YAML -------------------------------------------------------------------------------------------------------
# PyYAML follows YAML 1.1, where 1e-4 and 0o17 are strings, 0100 is 64, 1:30 is 90, no is false, dates are no strings,
# and of two equal keys the first is dropped in silence.

_INT = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_TAG = "tag:yaml.org,2002:"


class Loader(yaml.SafeLoader):
    """YAML 1.2's core schema, with `<<` for merging; a key that stands twice is refused, and what aliases blow up."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        bounds.check_yaml(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key} stands twice in one section", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A whole number of base 10, 8 or 16, or another number."""
        text = str(self.construct_scalar(node))
        is_int = node.tag == f"{_TAG}int"
        if not (_INT if is_int else _FLOAT).match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no number", node.start_mark)
        try:
            if is_int:
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:  # of more digits than Python reads
            raise yaml.constructor.ConstructorError(None, None, "too many digits", node.start_mark) from None

    def truth(self, node: yaml.ScalarNode) -> bool:
        text = str(self.construct_scalar(node))
        if not _BOOL.match(text):
            raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not true or false", node.start_mark)
        return text.lower() == "true"


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (f"{_TAG}null", f"{_TAG}merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
Loader.add_implicit_resolver(f"{_TAG}bool", _BOOL, list("tTfF"))
Loader.add_constructor(f"{_TAG}int", Loader.number)
Loader.add_constructor(f"{_TAG}float", Loader.number)
Loader.add_constructor(f"{_TAG}bool", Loader.truth)


class Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as the text that it is."""


Dumper.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_TAG}float"]
    for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
# Whole numbers match the pattern of other numbers as well: their resolvers stand in front.
Dumper.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
