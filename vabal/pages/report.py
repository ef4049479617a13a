"""A benchmark's report: one HTML file with its figures, tables and images inside, that needs no network and no script.

Everything shown derives from the cells and their summary (`vabal.benchmark.summary`): equal cells, equal bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vabal.benchmark.summary import Summary
from vabal.files import write_bytes
from vabal.pages.headline import headline, unfinished
from vabal.pages.rendering import render


def write(
    cells: Sequence[Mapping[str, Any]],
    summary: Summary,
    path: Path,
    *,
    title: str,
    about: Mapping[str, Any],
) -> None:
    """Writes the report of `cells`, whose summary is `summary`, to `path`.

    `about` says what was run (command, settings, versions, a date): text, lists and mappings, in the order shown.
    Raises ModuleNotFoundError where matplotlib is not installed.
    """
    write_bytes(path, page(cells, summary, title=title, about=about).encode())


def page(cells: Sequence[Mapping[str, Any]], summary: Summary, *, title: str, about: Mapping[str, Any]) -> str:
    """The report's HTML."""
    from vabal.pages.sections import Sections  # noqa: PLC0415 -- matplotlib is no part of the core

    made = Sections(cells, summary)
    return render(
        "report.html.j2",
        title=title,
        headline=headline(summary),
        unfinished=unfinished(summary),
        caveats={setting.source: setting.caveat for setting in summary.settings if setting.caveat},
        about=about,
        setup=made.setup(),
        sections=made.all(),
    )
