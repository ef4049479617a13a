"""How every page is made: one look, one file, nothing asked of a network, and no name that does anything.

Everything is escaped but what is `Markup`: drawings, and the style and scripts of this package. A policy in the page's
head has the browser refuse what would load, and every script but the page's own.
"""

import base64
import hashlib
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """The page that the template makes of `values`; `script` names the file of its script, if it has one."""
    code = _file(script) if script else ""
    figures, tables = count(1), count(1)
    return (
        _environment()
        .get_template(template)
        .render(
            style=_file("page.css"),
            script=code,
            allowed_script=_digest(code) if code else "'none'",
            next_figure=lambda: next(figures),
            next_table=lambda: next(tables),
            **values,
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _file(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))  # noqa: S704 -- a file of this package


def _digest(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
