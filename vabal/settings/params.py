"""`params.yaml` read, checked, overridden and written; what is wrong in it is told by its path."""

from pathlib import Path
from typing import Any, Final, get_args

import yaml
from pydantic import ValidationError

from vabal.errors import UserError
from vabal.settings import bounds
from vabal.settings.base import Section
from vabal.settings.models import MethodSettings, Params
from vabal.settings.presets import PRESETS
from vabal.settings.yaml import Dumper, Loader


def parse(raw: object, *, where: str = "params.yaml") -> Params:
    """Checked settings from the mapping that `params.yaml` holds, the preset's values filled in.

    Raises UserError with one line that names every wrong key by its path.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: expected sections and settings, found {type(raw).__name__}")
    return _checked(_with_preset(raw), where)


# What rounds did before these settings were there, where that is not their default.
_BEFORE: Final[dict[str, dict[str, Any]]] = {
    "compute": {"precision": "float32"},
    "pool": {"drift_images": 0},
    "selection": {"narrowing": False},
    "vae": {"max_steps": 0, "rows": 0},
    "probabilities": {"sampling": "anchored"},
}


def recorded(settings: dict[str, Any]) -> Params:
    """The settings that a round's manifest tells.

    A manifest tells all that there were, so no preset is asked: what it lacks came later, and stands for what rounds
    did before. Raises UserError as `parse` does.
    """
    told = dict(settings)
    for section, values in _BEFORE.items():
        if isinstance(told.get(section, {}), dict):
            told[section] = {**values, **told.get(section, {})}
    return _checked(told, "settings of the manifest")


def load(path: Path, overrides: dict[str, Any] | None = None) -> Params:
    """Settings of the file at `path`; `overrides` maps dotted paths (`selection.budget`) to values.

    Raises UserError if the file is missing, is no YAML, or holds a wrong setting.
    """
    try:
        raw = read_yaml(bounds.read_file(path, bounds.SETTINGS_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: restore it with `git checkout params.yaml`") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: not valid YAML: {_describe_yaml(error)}") from None
    if overrides and (raw is None or isinstance(raw, dict)):  # else `parse` says what is wrong
        raw = override(raw or {}, overrides)
    return parse(raw, where=str(path.name))


def read_yaml(text: str) -> Any:
    """What a text of YAML holds, by version 1.2: 1e-4 and 0100 (a hundred) are numbers. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, Loader=Loader)  # noqa: S506 -- a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # a date, or a number with more digits than Python reads
        raise yaml.YAMLError(" ".join(str(error).split())) from None


def override(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the mapping `raw` with dotted paths set to new values."""
    copy: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for path, value in changes.items():
        section, _, key = path.partition(".")
        if not key:
            copy[section] = value
        else:
            own = copy.get(section)
            copy[section] = {**(own if isinstance(own, dict) else {}), key: value}
    return copy


def changed(params: Params, changes: dict[str, Any]) -> Params:
    """The settings with other values at these dotted paths. Raises UserError for wrong ones."""
    return parse(override(params.model_dump(), changes))


def dump(params: Params) -> str:
    """The settings as the text of a `params.yaml`, sections in order, a comment a setting."""
    lines: list[str] = []
    preset = PRESETS[params.method.preset]
    for name, field in Params.model_fields.items():
        value = getattr(params, name)
        if not isinstance(value, Section):
            lines += [f"# {field.description}", f"{name}: {scalar(value)}"]
            continue
        written = {
            key: item
            for key, item in value.model_dump().items()
            if not _from_preset(name, key, item, preset, type(value))
        }
        if not written and name in ("vae", "probabilities"):
            lines += [f"{name}: {{}}  # all from method.preset; docs/settings.md lists what can be set here"]
            continue
        lines.append(f"{name}:")
        lines += [
            f"  {key}: {scalar(item)}  # {type(value).model_fields[key].description}" for key, item in written.items()
        ]
    return "\n".join(lines) + "\n"


def _checked(settings: dict[str, Any], where: str) -> Params:
    try:
        return Params.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(_describe(item) for item in error.errors())) from None


def _from_preset(section: str, key: str, item: Any, preset: dict[str, Any], model: type[Section]) -> bool:
    if section not in preset:
        return False
    if section == "selection" and key != "batch":
        return False
    return bool(item == preset[section].get(key, model.model_fields[key].default))


def scalar(value: Any) -> str:
    """A value as YAML, on one line."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def _with_preset(raw: dict[str, Any]) -> dict[str, Any]:
    method = raw.get("method")
    name = method.get("preset", "vabal") if isinstance(method, dict) else "vabal"
    if not isinstance(name, str) or name not in get_args(MethodSettings.model_fields["preset"].annotation):
        return raw  # the model says what is wrong with it
    filled = {key: {} if value is None and key in Params.model_fields else value for key, value in raw.items()}
    for section, values in PRESETS[name].items():
        own = filled.get(section, {})
        if isinstance(own, dict):
            filled[section] = {**values, **own}
    return filled


def _describe(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown setting (docs/settings.md lists the known ones)"
    message = item["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, found {bounds.shown(item['input'])}"


def _describe_yaml(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
