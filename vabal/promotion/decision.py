"""Is the new classifier better than the one in production, and for no class much worse? A pure decision.

Both predicted the same holdout, so they are compared in pairs, sample by sample, in balanced accuracy. The same holdout
is asked night after night, so each use of it must show more than the one before (`paired.spent_on`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.files import canonical_json, sha256
from vabal.learning.metrics import FEWEST_IMAGES, balanced_accuracy, confusion_matrix, macro_f1, recalls_by_name
from vabal.promotion.paired import gain_lower_bound, spent_on
from vabal.settings.models import PromotionSettings

CLASS_ERROR = 0.05  # of a class's interval, and of "clearly worse": they hold back, so they do not widen with use
_ROUNDING = 1e-9  # 0.95 - 0.90 is no more than 0.05, whatever floating point says
_COLUMNS = ("sample_id", "label", "predicted_class")


class CannotJudge(UserError):  # noqa: N818  # an answer, as much as an error
    """The holdout does not allow a comparison yet: the message says what is missing."""


@dataclass(frozen=True)
class Check:
    """One condition of the gate: `value` held against `bound`."""

    name: str
    value: float
    bound: float
    ok: bool
    text: str


@dataclass(frozen=True)
class Decision:
    """Whether the challenger may become champion, every check with its numbers, and both models' figures.

    `use` counts the uses of this holdout, this one included, `level` is the confidence that it asks for. `gain` and
    `gain_lower` are over the judged classes. `not_judged` has the classes with too few images, and how many; `unsure`
    those that fell by more than may be, which may be chance.
    """

    promoted: bool
    reasons: tuple[Check, ...]
    challenger: dict[str, float]
    champion: dict[str, float] | None
    gain: float | None
    gain_lower: float | None
    compared: int
    left_out: int
    relabelled: int
    use: int
    level: float
    holdout: str
    not_judged: dict[str, int] = field(default_factory=dict)
    unsure: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that speak against promotion."""
        return tuple(check for check in self.reasons if not check.ok)

    @property
    def words(self) -> str:
        """One line: the checks that failed, or of a promotion all but the recalls that are well; what is not judged."""
        told = [check.text for check in self.failed]
        if self.promoted:
            named = {f"recall_drop/{name}" for name in self.unsure}
            told = [c.text for c in self.reasons if c.name in named or not c.name.startswith("recall_drop/")]
        if self.not_judged:
            few = ", ".join(f"{name} ({images} holdout images)" for name, images in self.not_judged.items())
            told.append(f"not judged, for fewer than {FEWEST_IMAGES} holdout images: {few}")
        return "; ".join(told)

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON values."""
        return {**asdict(self), "reasons": [asdict(check) for check in self.reasons], "unsure": list(self.unsure)}


def decide(
    challenger: pd.DataFrame,
    champion: pd.DataFrame | None,
    settings: PromotionSettings,
    *,
    classes: Sequence[str],
    labels: Mapping[str, str] | None = None,
    use: int = 1,
    rivals: Mapping[str, pd.DataFrame] | None = None,
) -> Decision:
    """Compares holdout predictions (columns sample_id, label, predicted_class; class names).

    With a champion, two things must hold: the lower bound of the balanced accuracy gained lies above `min_gain`, at the
    level that the `use`-th use of this holdout asks for; no class is shown, with 95 % confidence, to lose more recall
    than `max_recall_drop`. Without one, the lower bound of the challenger's balanced accuracy must lie above that of
    the model that always answers the majority class, and it must not be shown to be worse than the best of the
    `rivals` (the other candidates by name) by more than `tolerance`.

    Classes with fewer than FEWEST_IMAGES labelled images are not judged. The holdout may have changed between the two:
    the samples that both predicted are compared, under `labels` (the holdout's present labels by sample_id) or, if not
    given, under the challenger's. Samples without a label are left out. Nothing depends on the tables' order.

    Raises CannotJudge if fewer than two classes can be compared, UserError for a label that is no class, ValueError for
    tables that are no such predictions.
    """
    if champion is None:
        return _decide_first(challenger, settings, classes=classes, labels=labels, use=use, rivals=rivals or {})
    pair = _Pair.of(challenger, champion, classes, labels)
    error = spent_on(use, 1 - settings.confidence)
    gain, lower = pair.gain(), pair.gain_lower(error)
    check = Check(
        "gain_lower_bound",
        lower,
        settings.min_gain,
        lower > settings.min_gain + _ROUNDING,
        f"balanced accuracy gained {gain:+.4f}, its lower bound {lower:+.4f} {_at(error, use)}, "
        f"must be above {settings.min_gain:+.4f}",
    )
    recall_checks, unsure = _recall_checks(pair, classes, settings.max_recall_drop)
    reasons = (check, *recall_checks)
    return Decision(
        all(check.ok for check in reasons),
        reasons,
        _figures(pair.labels_N, pair.challenger_N, classes),
        _figures(pair.labels_N, pair.champion_N, classes),
        gain,
        lower,
        len(pair.labels_N),
        pair.seen - len(pair.labels_N),
        pair.relabelled,
        use,
        1 - error,
        holdout_digest(_labels(challenger) if labels is None else labels),
        _not_judged(pair.images_C, classes),
        unsure,
    )


def best(
    candidates: Mapping[str, pd.DataFrame], *, classes: Sequence[str], labels: Mapping[str, str] | None = None
) -> str:
    """The name of the candidate that gains the most, by the gate's own comparison; of equals the last one.

    `candidates` are holdout predictions by name, oldest first. Each is compared in pairs with the newest of those that
    predicted the most labelled samples; who predicted fewer than half as many is left out. Raises CannotJudge if none
    can be compared.
    """
    known = {name: len(_labelled(table, labels, classes)) for name, table in candidates.items()}
    most = max(known.values(), default=0)
    middle = next((name for name in reversed(list(candidates)) if known[name] == most), None)
    if middle is None:
        raise CannotJudge("no version's round recorded what it predicted for the holdout")
    gains: dict[str, float] = {}
    for name, table in candidates.items():
        if 2 * known[name] < most:
            continue
        try:
            gains[name] = _Pair.of(table, candidates[middle], classes, labels).gain()
        except CannotJudge:
            if name == middle:
                raise
    return max(reversed(list(gains)), key=lambda name: round(gains[name], 9))


def holdout_digest(labels: Mapping[str, str]) -> str:
    """The sha256 of the holdout's labels by sample_id: what makes a comparison another one."""
    return sha256(canonical_json(dict(labels)))


def _decide_first(
    table: pd.DataFrame,
    settings: PromotionSettings,
    *,
    classes: Sequence[str],
    labels: Mapping[str, str] | None,
    use: int,
    rivals: Mapping[str, pd.DataFrame],
) -> Decision:
    pair = _Pair.of(table, table, classes, labels)
    figures = _figures(pair.labels_N, pair.challenger_N, classes)
    error = spent_on(use, 1 - settings.confidence) / (1 + len(rivals))  # the best of many: Bonferroni
    lower, bound = pair.level_lower(error), 1 / len(pair.judged_C)
    better = best({**rivals, "": table}, classes=classes, labels=labels)
    among = f", the best of {1 + len(rivals)} candidates" if rivals and not better else ""
    check = Check(
        "beats_majority_class",
        lower,
        bound,
        lower > bound + _ROUNDING,
        f"balanced accuracy {pair.level():.4f}{among}, its lower bound {lower:.4f} {_at(error, use)}, "
        f"must be above {bound:.4f}, that of always answering the majority class",
    )
    reasons = [check]
    if better:
        reasons.append(_rival_check(better, _Pair.of(rivals[better], table, classes, labels), settings.tolerance))
    return Decision(
        all(check.ok for check in reasons),
        tuple(reasons),
        figures,
        None,
        None,
        None,
        len(pair.labels_N),
        pair.seen - len(pair.labels_N),
        0,
        use,
        1 - error,
        holdout_digest(_labels(table) if labels is None else labels),
        _not_judged(pair.images_C, classes),
    )


@dataclass(frozen=True)
class _Pair:
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
    ) -> "_Pair":
        """Raises CannotJudge if fewer than two classes can be judged."""
        for table in (challenger, champion):
            _check_table(table, classes)
        # A round that could measure nothing recorded columns without a type.
        sides = [table[list(_COLUMNS)].astype({"sample_id": object}) for table in (challenger, champion)]
        both = sides[0].merge(sides[1], on="sample_id", suffixes=("", "_champion"), validate="one_to_one")
        common = _labelled(both, labels, classes)
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
        return _Pair(labels_N, challenger_N, champion_N, images_C, counts_C_3, seen, relabelled)

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


def _rival_check(name: str, pair: _Pair, tolerance: float) -> Check:
    better = pair.gain_lower(CLASS_ERROR)
    ok = better <= tolerance + _ROUNDING
    text = f"version {name} is better by {pair.gain():+.4f}, at least {better:+.4f} {_SURE}, may be by {tolerance:+.4f}"
    advice = "" if ok else ": promote that one, or raise promotion.tolerance"
    return Check("best_candidate", better, tolerance, ok, text + advice)


def _recall_checks(pair: _Pair, classes: Sequence[str], most: float) -> tuple[list[Check], tuple[str, ...]]:
    """A check for each judged class, and the classes that fell by more than may be, but not surely."""
    checks, unsure = [], []
    for index in pair.judged_C.tolist():
        name, images = classes[index], int(pair.images_C[index])
        before, after = (
            float((predicted_N[pair.labels_N == index] == index).mean())
            for predicted_N in (pair.champion_N, pair.challenger_N)
        )
        lower = pair.drop_lower(index)
        ok = lower <= most + _ROUNDING
        text = (
            f"recall of {name} {before:.4f} -> {after:.4f} on {images} images, a drop of at least {lower:+.4f} {_SURE}"
        )
        text += f", may drop by {most:.4f} at most"
        if ok and before - after > most + _ROUNDING:
            unsure.append(name)
            text += " (it did, which may be chance)"
        checks.append(Check(f"recall_drop/{name}", lower, most, ok, text))
    return checks, tuple(unsure)


def _not_judged(images_C: NDArray[np.int64], classes: Sequence[str]) -> dict[str, int]:
    return {classes[index]: int(images_C[index]) for index in np.flatnonzero(images_C < FEWEST_IMAGES).tolist()}


def _require_two_classes(images_C: NDArray[np.int64], classes: Sequence[str]) -> None:
    if (images_C >= FEWEST_IMAGES).sum() >= 2:
        return
    has = ", ".join(f"{name} {images}" for name, images in zip(classes, images_C.tolist(), strict=True) if images)
    raise CannotJudge(
        f"two classes with {FEWEST_IMAGES} labelled holdout images each are needed, and the models to compare "
        f"predicted {has or 'no labelled one'}: {_MORE_LABELS}"
    )


def _at(error: float, use: int) -> str:
    return f"at {_percent(error)} % (the holdout was used for {use} decision{'s' if use > 1 else ''})"


def _percent(error: float) -> str:
    """The confidence in percent, with as many digits as tell it from all: 95, 99.17, 99.9977."""
    return f"{round(100 * (1 - error), 1 - math.floor(math.log10(100 * error))):.12g}"


_SURE = f"at {_percent(CLASS_ERROR)} %"


def _figures(labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    counts_C_C = confusion_matrix(labels_N, predicted_N, len(classes))
    figures = {
        "accuracy": float(np.trace(counts_C_C) / counts_C_C.sum()),
        "balanced_accuracy": balanced_accuracy(counts_C_C),
        "macro_f1": macro_f1(counts_C_C),
    }
    return figures | recalls_by_name(counts_C_C, classes)


def _labels(table: pd.DataFrame) -> dict[str, str]:
    named = table[table["label"].notna()]
    return dict(zip(named["sample_id"], named["label"], strict=True))


def _labelled(table: pd.DataFrame, labels: Mapping[str, str] | None, classes: Sequence[str]) -> pd.DataFrame:
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
