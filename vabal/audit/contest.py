"""What decided between candidates of a round whose batch follows from their keys, by the rule that it recorded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vabal.audit.findings import Record
from vabal.rounds import tables
from vabal.strategies import Candidates, rule_named

_OF_KEYS = ("sample_id", "rank", "score", "predicted_class", "vae_class", "own_class", "prior", "precision")


class Contest:
    """The candidates of a round by score and key, and its picks in their order; a row is a candidate.

    Where the rule searches, keys are those of the list that it searched. Memory: ids and a few numbers a candidate.
    Raises ValueError where the manifest does not say how it picked.
    """

    def __init__(self, folder: Path, record: Record, classes: Sequence[str]) -> None:
        if record.selection is None:
            raise ValueError("the manifest does not say by which rule its picks were made")
        said = record.selection
        self.folder, self.classes = folder, list(classes)
        self.rule, self.beta, self.budget = rule_named(said["rule"]), float(said["beta"]), int(said["budget"])
        file = pq.ParquetFile(folder / tables.CANDIDATES_FILE)
        self.columns = file.schema_arrow.names
        table = file.read(columns=[name for name in _OF_KEYS if name in self.columns])
        self.keyed = Candidates.from_table(table, classes)
        self.ids = [str(sample_id) for sample_id in self.keyed.sample_ids]
        self.rows = {sample_id: row for row, sample_id in enumerate(self.ids)}
        by = rule_named(self.rule.listed_by) if self.rule.searches else self.rule
        self.key_N, self._group_N = by.key(self.keyed, self.beta, int(said["seed"])), by.groups(self.keyed)
        ranks = table.column("rank").to_pylist()
        self.picked = [row for _, row in sorted((rank, row) for row, rank in enumerate(ranks) if rank is not None)]

    @property
    def score_N(self) -> NDArray[np.float64]:
        return self.keyed.score_N

    def candidate(self, sample_id: str) -> tuple[Candidates, pa.Table]:
        """One candidate with all that was recorded of it, and its row of the table."""
        table = pq.read_table(self.folder / tables.CANDIDATES_FILE, filters=[("sample_id", "==", sample_id)])
        return Candidates.from_table(table, self.classes), table

    def place(self, row: int) -> int:
        """By score, 1 the highest."""
        return int((self.score_N > self.score_N[row]).sum()) + 1

    def noise(self, row: int) -> float | None:
        """What was drawn for it and added to beta x score, where the rule draws."""
        return float(self.key_N[row] - self.beta * self.score_N[row]) if self.rule.draws else None

    def answer(self, rows: Sequence[int]) -> Iterator[str]:
        """What decided: of each row how far it is from being picked, or left out, and which of two stands before."""
        for row in rows:
            yield self.against_the_last(row, self.picked, "picked")
        if len(rows) == 2 and self._group(rows[0]) == self._group(rows[1]):
            first, second = sorted(rows, key=lambda row: -self.key_N[row])
            gap = self.key_N[first] - self.key_N[second]
            yield f"{self.ids[first]} stands before {self.ids[second]}: its {self._what} is {gap:.4g} higher"

    def against_the_last(self, row: int, chosen: Sequence[int], become: str) -> str:
        """How much higher its key had to be for the row to become one of the chosen, or lower to be none of them."""
        group, name = self._group(row), self.ids[row]
        rivals = [each for each in chosen if self._group(each) == group]
        of_class = "" if self._group_N is None else f" for the class {self.classes[group]}"
        if row in rivals:
            left = self._best_left(chosen, group)
            if left is None:
                return f"{name} was {become} as every candidate was{of_class}"
            gap = self.key_N[row] - self.key_N[left]
            lower = f"with a {self._what} {gap:.4g} lower, below {self.ids[left]}"
            return f"{name} would not have been {become}{of_class} {lower}"
        if not rivals:
            return f"{name} could not be {become}: the class {self.classes[group]} had no place"
        last = min(rivals, key=lambda each: float(self.key_N[each]))
        gap = self.key_N[last] - self.key_N[row]
        return f"{name} would have been {become}{of_class} with a {self._what} {gap:.4g} higher, above {self.ids[last]}"

    @property
    def _what(self) -> str:
        return "key (beta x score + noise)" if self.rule.draws else "score"

    def _best_left(self, chosen: Sequence[int], group: int) -> int | None:
        key_N = np.array(self.key_N, dtype=np.float64)
        key_N[list(chosen)] = -np.inf
        if self._group_N is not None:
            key_N[np.asarray(self._group_N) != group] = -np.inf
        best = int(key_N.argmax())
        return best if np.isfinite(key_N[best]) else None

    def _group(self, row: int) -> int:
        return 0 if self._group_N is None else int(self._group_N[row])
