"""One cell's curve, and the numbers that are made of it. A cell is the document of one run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vabal import statistics

METRICS = ("balanced_accuracy", "accuracy", "macro_f1")

Runs = dict[int, Mapping[str, Any]]  # one strategy's cells by seed


def picks_of(row: str) -> str:
    """The strategy of a row, whatever it learns with: a row is called `learner/strategy` where learners were named."""
    return row.rpartition("/")[2]


def baseline_of(row: str, baseline: str) -> str:
    """The row that this one is compared with: the baseline's picks with the same learner."""
    learner, slash, _ = row.rpartition("/")
    return f"{learner}{slash}{baseline}"


def labeled(cell: Mapping[str, Any]) -> list[int]:
    return [int(item["labeled"]) for item in cell["rounds"]]


def curve(cell: Mapping[str, Any], metric: str) -> list[Any]:
    return [item[metric] for item in cell["rounds"]]


def quantity_of(cell: Mapping[str, Any], metric: str, quantity: str) -> float:
    curve_R = curve(cell, metric)
    if quantity == "average":
        return float(np.mean(curve_R))
    return float(curve_R[-1]) if quantity == "final" else statistics.area_under_curve(labeled(cell), curve_R)
