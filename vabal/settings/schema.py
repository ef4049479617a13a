"""The JSON schema of `params.yaml`, for editors, made from the models: `python -m vabal.settings.schema`."""

import json
import sys
from typing import Any

from vabal.settings.models import Params

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def document() -> dict[str, Any]:
    """The schema. Beyond it, `vabal` checks what JSON schema has no words for: a cron expression, a time zone."""
    return {"$schema": DIALECT, "title": "params.yaml of VaB-AL", **_plain(Params.model_json_schema())}


def _plain(schema: Any) -> Any:
    """Without the names that pydantic makes up from Python's: an editor would show them as headings."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if not (key == "title" and isinstance(value, str))}
    return [_plain(item) for item in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    sys.stdout.write(json.dumps(document(), indent=2, ensure_ascii=False) + "\n")
