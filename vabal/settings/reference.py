"""The page of settings, `docs/settings.md`, written from the models: `python -m vabal.settings.reference [FILE]`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard, get_args

from vabal.settings.base import Section
from vabal.settings.models import Params
from vabal.settings.presets import PRESETS

HEAD = """\
# Settings

Every setting of `params.yaml`. This page is written from the models in `vabal/settings/` by
`python -m vabal.settings.reference`.

- What is left out has its default. An unknown key, a key that stands twice, or a value out of range is refused, named
  by its path (`vae.epochs`).
- `method.preset` fills in the settings of [the presets](#presets) that are left out; a setting in the file wins.
- Addresses and keys of S3, MLflow and Prefect come from the environment and never stand here.
- Editors complete and check the file with its JSON schema: `vabal settings schema > .vabal/params.schema.json`, and
  `# yaml-language-server: $schema=.vabal/params.schema.json` as the first line of `params.yaml`. What a schema has no
  words for (a cron expression, a time zone, the names of installed strategies) `vabal` alone checks.
"""

SECTIONS = {
    "workspace": "The workspace's name.",
    "images": "How images are read.",
    "pool": "How the pool's images are stored.",
    "storage": "Where DVC keeps the pools' versions.",
    "labelling": "What a round does about labels that are still out, and where people label.",
    "classifier": "The classifier and its training (paper, Section 4.2).",
    "features": "Feature extraction.",
    "method": "Which reading of the paper.",
    "selection": "How the batch is picked.",
    "promotion": "The gate that a challenger must pass.",
    "audit": "What vouches for the record outside `data/` (docs/audit.md).",
    "schedule": "The nightly round.",
    "compute": "Where stages run.",
}


def page() -> str:
    """The whole page, as Markdown."""
    top = {name: field for name, field in Params.model_fields.items() if name not in _sections()}
    parts = [HEAD, "## Top level\n", _table(_rows(Params, top, {}))]
    for name, model in _sections().items():
        text = SECTIONS.get(name) or " ".join((model.__doc__ or "").split())
        rows = _rows(model, model.model_fields, PRESETS["vabal"].get(name, {}))
        parts += [f"## `{name}`\n", f"{text}\n", _table(rows)]
    parts += ["## Presets\n", _presets()]
    return "\n".join(parts)


def _sections() -> dict[str, type[Section]]:
    """The sections' models, in the order of `params.yaml`."""
    annotations = {name: field.annotation for name, field in Params.model_fields.items()}
    return {name: kind for name, kind in annotations.items() if _is_section(kind)}


def _rows(model: type[Section], fields: Mapping[str, Any], preset: Mapping[str, Any]) -> list[tuple[str, ...]]:
    schema = model.model_json_schema()["properties"]
    rows: list[tuple[str, ...]] = []
    for key, field in fields.items():
        default = "none" if field.is_required() else _value(preset.get(key, field.default))
        rows.append((f"`{key}`", _allowed(schema[key]), f"`{default}`", field.description or ""))
        for inner in (kind for kind in get_args(field.annotation) if _is_section(kind)):
            within = _rows(inner, inner.model_fields, {})
            rows += [(f"`{key}.{name.strip('`')}`", *rest) for name, *rest in within]
    return rows


def _is_section(kind: Any) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = ["| setting | values | default | what it does |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _presets() -> str:
    names = list(PRESETS)
    rows = ["| setting | " + " | ".join(f"`{name}`" for name in names) + " |", "|---|" + "---|" * len(names)]
    for section, model in _sections().items():
        named = {key for preset in PRESETS.values() for key in preset.get(section, {})}
        for key in (key for key in model.model_fields if key in named):
            default = model.model_fields[key].default
            cells = [f"`{_value(PRESETS[name].get(section, {}).get(key, default))}`" for name in names]
            rows.append(f"| `{section}.{key}` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _allowed(schema: dict[str, Any]) -> str:
    """What the JSON schema of a setting allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        return "the settings below"
    if "enum" in schema:
        return ", ".join(f"`{_value(choice)}`" for choice in schema["enum"])
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "true or false",
        "string": "text",
        "null": "null",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {_value(schema[key])}" for key, sign in bounds.items() if key in schema]
    text = " ".join([words.get(schema["type"], schema["type"]), " and ".join(limits)]).strip()
    return f"{text} like `{schema['pattern']}`" if "pattern" in schema else text


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else f"{value:.12g}" if isinstance(value, float) else str(value)


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/settings.md")
    target.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
