"""Two models' predictions for the same holdout, sample by sample."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.learning.metrics import FEWEST_IMAGES
from vabal.promotion.paired import gain_lower_bound

CLASS_ERROR = 0.05  # of a class's interval, and of "clearly worse": they hold back, so they do not widen with use
_COLUMNS = ("sample_id", "label", "predicted_class")


class CannotJudge(UserError):  # noqa: N818  # an answer, as much as an error
    """The holdout does not allow a comparison yet: the message says what is missing."""


@dataclass(frozen=True)
class Pair:
    """Two models on the labelled samples that both predicted. C classes; those with enough images are judged."""

    labels_N: NDArray[np.int64]
    challenger_N: NDArray[np.int64]
    champion_N: NDArray[np.int64]
    images_C: NDArray[np.int64]
    counts_C_3: NDArray[np.int64]  # images that the challenger won, that it lost, and the others
    seen: int
    relabelled: int

    @staticmethod
    def of(
        challenger: pd.DataFrame, champion: pd.DataFrame, classes: Sequence[str], labels: Mapping[str, str] | None
    ) -> "Pair":
        """Raises CannotJudge if fewer than two classes can be judged."""
        for table in (challenger, champion):
            _check_table(table, classes)
        # A round that could measure nothing recorded columns without a type.
        sides = [table[list(_COLUMNS)].astype({"sample_id": object}) for table in (challenger, champion)]
        both = sides[0].merge(sides[1], on="sample_id", suffixes=("", "_champion"), validate="one_to_one")
        common = labelled(both, labels, classes)
        labels_N = _indices(common["label"], classes)
        challenger_N = _indices(common["predicted_class"], classes)
        champion_N = _indices(common["predicted_class_champion"], classes)
        images_C = np.bincount(labels_N, minlength=len(classes))
        _require_two_classes(images_C, classes)
        outcome_N = np.where(
            challenger_N == champion_N, 2, np.where(challenger_N == labels_N, 0, np.where(champion_N == labels_N, 1, 2))
        )
        counts_C_3 = np.bincount(labels_N * 3 + outcome_N, minlength=len(classes) * 3).reshape(-1, 3)
        relabelled = int((common["label"] != common["label_champion"]).sum())
        seen = len(challenger) + len(champion) - len(both)
        return Pair(labels_N, challenger_N, champion_N, images_C, counts_C_3, seen, relabelled)

    @property
    def judged_C(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.images_C >= FEWEST_IMAGES)

    def gain(self) -> float:
        won, lost, tied = self.counts_C_3[self.judged_C].T
        return float(((won - lost) / (won + lost + tied)).mean())

    def gain_lower(self, error: float) -> float:
        return float(gain_lower_bound(self.counts_C_3[self.judged_C], error))

    def drop_lower(self, index: int) -> float:
        """By how much the challenger's recall of a class dropped at least."""
        won, lost, tied = self.counts_C_3[index]
        return float(gain_lower_bound([[lost, won, tied]], CLASS_ERROR, continuity=False))

    def level(self) -> float:
        """The challenger's balanced accuracy over the judged classes."""
        return float((self._right_C()[self.judged_C] / self.images_C[self.judged_C]).mean())

    def level_lower(self, error: float) -> float:
        """Its lower bound. An answer is won or lost, so the gain runs from -1 to 1 where the accuracy does from 0."""
        right_C = self._right_C()
        counts_C_3 = np.stack([right_C, self.images_C - right_C, np.zeros_like(right_C)], axis=1)
        return (1 + float(gain_lower_bound(counts_C_3[self.judged_C], error))) / 2

    def _right_C(self) -> NDArray[np.int64]:
        return np.bincount(self.labels_N[self.challenger_N == self.labels_N], minlength=len(self.images_C))


def _require_two_classes(images_C: NDArray[np.int64], classes: Sequence[str]) -> None:
    if (images_C >= FEWEST_IMAGES).sum() >= 2:
        return
    has = ", ".join(f"{name} {images}" for name, images in zip(classes, images_C.tolist(), strict=True) if images)
    raise CannotJudge(
        f"two classes with {FEWEST_IMAGES} labelled holdout images each are needed, and the models to compare "
        f"predicted {has or 'no labelled one'}: {_MORE_LABELS}"
    )


def labels_of(table: pd.DataFrame) -> dict[str, str]:
    named = table[table["label"].notna()]
    return dict(zip(named["sample_id"], named["label"], strict=True))


def labelled(table: pd.DataFrame, labels: Mapping[str, str] | None, classes: Sequence[str]) -> pd.DataFrame:
    """The rows that have a label today, under that label."""
    if labels is not None:
        table = table.assign(label=table["sample_id"].map(dict(labels)))
    table = table[table["label"].notna()]
    unknown = sorted(set(table["label"]) - set(classes))
    if unknown:
        raise UserError(f"promotion: the holdout's label {unknown[0]!r} is not in the list of classes")
    return table


_MORE_LABELS = (
    "`vabal labels export` asks for those of the holdout without a label, and the next round predicts them; "
    "how large the holdout is, `vabal init --holdout` decides"
)


def _check_table(table: pd.DataFrame, classes: Sequence[str]) -> None:
    missing = [name for name in _COLUMNS if name not in table.columns]
    if missing:
        raise ValueError(f"holdout predictions lack the columns {missing}")
    if table["sample_id"].duplicated().any():
        raise ValueError("holdout predictions hold a sample twice")
    unknown = sorted(set(table["predicted_class"]) - set(classes))
    if unknown:
        raise ValueError(f"predicted class {unknown[0]!r} is not in the list of classes")


def _indices(names: "pd.Series[str]", classes: Sequence[str]) -> NDArray[np.int64]:
    index = {name: position for position, name in enumerate(classes)}
    return np.fromiter((index[name] for name in names), dtype=np.int64, count=len(names))
