"""Are there enough labels? The rules of `labelling.stop_rule`, from what the rounds before recorded.

Each comes to one number of points, which falls as there is less to gain; it is enough once that is below
`labelling.stop_below`. `python -m benchmarks.stopping` compares them, with others (docs/evidence.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from vabal import pools
from vabal.audit.findings import UNREADABLE, Record
from vabal.audit.forecast import Point, gain, points
from vabal.audit.settled import Settled, settled
from vabal.errors import BRING_BACK
from vabal.pools.reading import readable
from vabal.rounds import manifest_numbers, read_manifest, round_folder, tables
from vabal.settings.models import Params
from vabal.settings.params import recorded

FEWEST: Final = 3  # rounds, below which no rule speaks
WINDOW: Final = 3  # changes from round to round that are averaged


def forecast_points(known: Sequence[Point], ahead: int) -> float | None:
    """The upper end of the 90 % interval of what `ahead` more labels add to balanced accuracy (`vabal forecast`)."""
    return 100 * gain(known, ahead).high if len(known) >= FEWEST else None


def disagreement(known: Sequence[Settled]) -> float | None:
    """By how much kappa between one model and the next is short of 1, on average over the last three changes."""
    return 100 * (1 - float(np.mean([change.kappa for change in known[-WINDOW:]]))) if len(known) >= WINDOW else None


@dataclass(frozen=True)
class Verdict:
    """What the rule of a workspace came to: `points`, None where too few rounds were recorded."""

    rule: str
    points: float | None
    below: float
    ahead: int

    @property
    def reached(self) -> bool:
        return self.points is not None and self.points < self.below

    def __str__(self) -> str:
        if self.points is None:
            return f"too few rounds for the rule {self.rule} to say anything"
        said = _SAID[self.rule].format(ahead=self.ahead, points=self.points, below=self.below)
        return f"enough labels: {said}" if self.reached else said


_SAID: Final[Mapping[str, str]] = {
    "forecast": "the next {ahead} would add at most {points:.1f} points (labelling.stop_below: {below:g})",
    "agreement": "one model and the next differ by {points:.1f} points of kappa (labelling.stop_below: {below:g})",
}


def verdict(data: Path, params: Params, before: int | None = None) -> Verdict | None:
    """What the rule says by the rounds so far (or those before `before`); None where no rule is set.

    Raises UserError if a manifest or a table is missing or damaged.
    """
    rule, ahead = params.labelling.stop_rule, params.selection.budget
    if rule == "never":
        return None
    numbers = [number for number in manifest_numbers(data) if number and (before is None or number < before)]
    return Verdict(rule, _POINTS[rule](data, numbers, ahead), params.labelling.stop_below, ahead)


def reason(data: Path, params: Params) -> str | None:
    """Why the next round asks for no labels; None where it does. Raises what `verdict` raises."""
    found = verdict(data, params)
    return str(found) if found is not None and found.reached else None


def asked(data: Path, record: Record) -> bool:
    """Whether a round was to ask for labels, by its settings and the rounds before it. What cannot be read is named
    elsewhere."""
    try:
        found = verdict(data, recorded(record.settings), record.round)
    except UNREADABLE:
        return True
    return found is None or not found.reached


def _by_forecast(data: Path, numbers: Sequence[int], ahead: int) -> float | None:
    return forecast_points(points(data, numbers[-1] if numbers else 0), ahead)


def _by_agreement(data: Path, numbers: Sequence[int], _ahead: int) -> float | None:
    """Of the newest rounds that had candidates: one that asked for nothing has none."""
    said: list[pd.Series] = []
    for number in reversed(numbers):
        found = _predicted(data, number)
        if len(found):
            said.insert(0, found)
        if len(said) > WINDOW:
            break
    known: list[Settled] = []
    for pair in pairwise(said):
        change = _change(*pair)
        known = [] if change is None else [*known, change]
    return disagreement(known)


def _predicted(data: Path, number: int) -> "pd.Series[str]":
    """The predicted class of each candidate, by today's name."""
    path = round_folder(data, number) / tables.CANDIDATES_FILE
    if tables.CANDIDATES_FILE not in read_manifest(data, number).files:
        return pd.Series(dtype=object)
    with readable(path, BRING_BACK):
        table = pq.ParquetFile(path).read(columns=["sample_id", "predicted_class"]).to_pandas().dropna()
    meaning = dict(pools.read_classes(data).meaning)
    named: pd.Series[str] = table.set_index("sample_id")["predicted_class"].astype(object).replace(meaning)
    return named


def _change(before: "pd.Series[str]", now: "pd.Series[str]") -> Settled | None:
    """None where no image could be picked in both: all of the earlier ones were, and others came."""
    both = pd.concat([before.rename("before"), now.rename("now")], axis=1, join="inner")
    if both.empty:
        return None
    names, codes = np.unique(both.to_numpy(dtype=str).T, return_inverse=True)
    before_N, now_N = codes.reshape(2, -1)
    return settled(before_N, now_N, len(names), None)


_POINTS: Final[Mapping[str, Callable[[Path, Sequence[int], int], float | None]]] = {
    "forecast": _by_forecast,
    "agreement": _by_agreement,
}
