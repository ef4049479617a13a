"""Do a night's new images look like those before? A test of two samples, from what the round recorded of both.

Two statistics, each in units of its own spread over permutations, and the larger of them counts: the energy distance
(Székely and Rizzo 2013), which sees that all of them moved, and how many nearest neighbours come from the same side
(Schilling 1986), which sees the few of a new kind. By permutations that is exact for any number of images and any
features, and there is no width to choose. A night whose images are like the earlier ones has a p of at most 0.05 in one
of twenty; nights are not corrected for each other. Axes: N images, Z numbers of each, P permutations.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal import pools
from vabal.audit.findings import UNREADABLE, Finding, Record, one_line
from vabal.rounds import derive_seed, drift, manifest_numbers, read_manifest, round_folder, tables
from vabal.settings.params import recorded

LEVEL: Final = 0.05
PERMUTATIONS: Final = 999
NEAREST: Final = 5  # neighbours of each


@dataclass(frozen=True)
class Drift:
    """Of a round: how many images were compared, how far they lie apart beyond chance (0: not at all, 1: nothing in
    common), and how often chance alone brings them as far."""

    round: int
    new: int
    earlier: int
    distance: float
    p_value: float

    @property
    def found(self) -> bool:
        return self.p_value <= LEVEL

    def __str__(self) -> str:
        said = "are not like those before" if self.found else "cannot be told from those before"
        return f"round {self.round}'s new images {said}: p {self.p_value:.3f}, distance {self.distance:.2f}"

    def metrics(self) -> list[tuple[str, float]]:
        return [("drift/p_value", self.p_value), ("drift/distance", self.distance)]


def drifts(data: Path, up_to: int | None = None, *, last: bool = False) -> list[Drift]:
    """Of each round that compared any, in order; `last`: of the newest alone.

    Raises UserError if a manifest or table is missing or damaged.
    """
    numbers = [number for number in manifest_numbers(data) if number and (up_to is None or number <= up_to)]
    paths = {number: round_folder(data, number) / tables.DRIFT_FILE for number in (numbers[-1:] if last else numbers)}
    paths = {number: path for number, path in paths.items() if path.exists()}
    if not paths:
        return []
    added = pools.read_one(data, "catalog").set_index("sample_id")["added_round"]
    found = []
    for number, path in paths.items():
        table = tables.read_drift(path)
        new_N = added.reindex(table.sample_ids).to_numpy() == number
        seed = derive_seed(read_manifest(data, number).seed or 0, number, "drift")
        distance, p_value = two_samples(table.features_N_D, new_N, seed)
        found.append(Drift(number, int(new_N.sum()), int((~new_N).sum()), distance, p_value))
    return found


def two_samples(values_N_Z: NDArray[np.floating], new_N: NDArray[np.bool_], seed: int) -> tuple[float, float]:
    """Distance and p of the new ones against the others.

    The distance is the energy coefficient less what it is by chance, at least 0. Raises ValueError without images on
    either side.
    """
    total, new = len(new_N), int(new_N.sum())
    if not 0 < new < total:
        raise ValueError("a test of two samples needs images of both")
    apart_N_N = _distances(values_N_Z.astype(np.float64))
    order_P_N = np.random.default_rng(seed).random((PERMUTATIONS, total))
    new_P_N = np.zeros((PERMUTATIONS + 1, total))
    new_P_N[0] = new_N
    np.put_along_axis(new_P_N[1:], np.argpartition(order_P_N, new - 1, axis=1)[:, :new], 1.0, axis=1)
    within_P, touched_P = _sums(apart_N_N, new_P_N)
    between_P = (touched_P - within_P) / (new * (total - new))
    others_P = (apart_N_N.sum() - 2 * touched_P + within_P) / (total - new) ** 2
    energy_P = 2 * between_P - within_P / new**2 - others_P
    within_P, touched_P = _sums(_neighbours(apart_N_N), new_P_N)
    farther_P = np.maximum(_standard(energy_P), _standard(2 * within_P - touched_P))
    as_far = int((farther_P[1:] >= farther_P[0] - 1e-9).sum())  # equal on paper, sums differ in their last bits
    beyond = (energy_P[0] - energy_P[1:].mean()) / (2 * between_P[0]) if between_P[0] else 0.0
    return max(0.0, float(beyond)), (as_far + 1) / (PERMUTATIONS + 1)


def _sums(square_N_N: NDArray[np.float64], new_P_N: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of a symmetric table, for each permutation: what stands between two new ones, and in the rows of new ones."""
    return np.einsum("pn,pn->p", new_P_N @ square_N_N, new_P_N), new_P_N @ square_N_N.sum(axis=1)


def _standard(values_P: NDArray[np.float64]) -> NDArray[np.float64]:
    spread = values_P.std()
    return np.zeros_like(values_P) if spread <= 1e-12 else np.asarray((values_P - values_P.mean()) / spread)


def _neighbours(apart_N_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """How often (0, 1 or 2 times) one is among the nearest of the other."""
    count = min(NEAREST, len(apart_N_N) - 1)
    others_N_N = apart_N_N.copy()
    np.fill_diagonal(others_N_N, np.inf)
    near_N_N = np.zeros_like(apart_N_N)
    np.put_along_axis(near_N_N, np.argsort(others_N_N, axis=1, kind="stable")[:, :count], 1.0, axis=1)
    return near_N_N + near_N_N.T


def _distances(values_N_Z: NDArray[np.float64]) -> NDArray[np.float64]:
    square_N = np.einsum("nz,nz->n", values_N_Z, values_N_Z)
    squared_N_N = square_N[:, None] + square_N - 2 * values_N_Z @ values_N_Z.T
    distance_N_N = np.sqrt(np.maximum(squared_N_N, 0.0))
    np.fill_diagonal(distance_N_N, 0.0)
    return np.asarray(distance_N_N)


def check_drift(data: Path, record: Record, catalog: pd.DataFrame, holdout: "pd.Series[str]") -> Iterator[Finding]:
    """The images that the round compared are those that follow from catalog, settings and seed."""
    try:
        chosen = recorded(record.settings)
        seed = derive_seed(chosen.seed, record.round, "drift")
        expected = drift.compared(catalog, holdout, record.round, chosen, seed).sample_ids
    except UNREADABLE:  # `check_round` names it
        return
    there = tables.DRIFT_FILE in record.files
    if bool(expected) != there:
        yield Finding(record.round, record.file, f"names {'a' if there else 'no'} {tables.DRIFT_FILE}")
    path = data / record.folder / tables.DRIFT_FILE
    if not there or not path.is_file():  # `check_files` names it
        return
    file = f"{record.folder}/{tables.DRIFT_FILE}"
    try:
        found = tables.read_shortlist(path)
    except UNREADABLE as error:
        yield Finding(record.round, file, one_line(error))
        return
    if expected and found.sample_ids != expected:
        yield Finding(record.round, file, "its images are not those that follow from the catalog and the seed")
