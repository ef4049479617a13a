"""What the commands' options have in common: how a set of them is declared, and how their values are read."""

import csv
import inspect
import json
import shlex
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from vabal.errors import UserError

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def taking(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """A command of many options takes them as one value: each field of the dataclass `options` is declared as typer's
    arguments are, and the function is given the dataclass."""

    def declare(command: Callable[[T], None]) -> Callable[..., None]:
        def run(**values: Any) -> None:
            command(options(**values))

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__annotations__ = get_type_hints(options, include_extras=True)
        run.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]
        return run

    return declare


def assignments(pairs: list[str]) -> dict[str, Any]:
    """The settings of `--set`: dotted keys, values as YAML reads them. Raises UserError for what is none."""
    import yaml

    from vabal.settings.params import read_yaml

    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"--set {pair}: write it as section.key=value")
        try:
            values[key] = read_yaml(value)
        except yaml.YAMLError:
            quoted = shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")
            raise UserError(f"--set {pair}: {value!r} is no value in YAML; as text: --set {quoted}") from None
    return values


def by_commas(text: str | None) -> list[str] | None:
    """Names between commas; a name with a comma in it stands in double quotes."""
    return None if text is None else [item.strip() for item in next(csv.reader([text], skipinitialspace=True), [])]
