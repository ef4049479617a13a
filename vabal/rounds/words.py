"""A round in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vabal.learning.metrics import Metric
from vabal.rounds import tables
from vabal.rounds.manifests import round_folder

UNMEASURED = "no image of the holdout has a label, so nothing was measured"
HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "calibration_error")


def in_words(measured: Sequence[Metric]) -> str:
    """The headline numbers in a line."""
    values = {metric.name.removeprefix("holdout/"): metric.value for metric in measured}
    found = [f"{name.replace('_', ' ')} {values[name]:.3f}" for name in HEADLINES if name in values]
    return "holdout: " + ", ".join(found) if found else UNMEASURED


def picks_in_markdown(data: Path, round_number: int, links: Mapping[str, str]) -> str:
    """The round's picks as a Markdown table, with links; for a Prefect artifact."""
    picks = tables.read_selection(round_folder(data, round_number) / tables.SELECTION_FILE)
    lines = [f"[{name}]({address})" for name, address in links.items()]
    lines += ["", "| rank | sample | score | predicted | prior | precision |", "|--:|---|--:|---|--:|--:|"]
    lines += [
        f"| {row.rank} | `{row.sample_id}` | {_score(row)} | {row.predicted_class} | {_number(row.prior)} "
        f"| {_number(row.precision)} |"
        for row in picks.itertuples()
    ]
    return "\n".join(lines)


def _score(row: Any) -> str:
    return f"{row.score:.4g}" if pd.isna(row.probability) else "drawn"


def _number(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.3f}"
