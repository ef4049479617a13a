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

from vabal.files import canonical_json, sha256
from vabal.learning.metrics import FEWEST_IMAGES, balanced_accuracy, confusion_matrix, macro_f1, recalls_by_name
from vabal.promotion.paired import spent_on
from vabal.promotion.pairs import CLASS_ERROR, CannotJudge, Pair, labelled, labels_of
from vabal.settings.models import PromotionSettings

_ROUNDING = 1e-9  # 0.95 - 0.90 is no more than 0.05, whatever floating point says


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
    later: Mapping[str, str] | None = None,
) -> Decision:
    """Compares holdout predictions (columns sample_id, label, predicted_class; class names).

    With a champion, two things must hold: the lower bound of the balanced accuracy gained lies above `min_gain`, at the
    level that the `use`-th use of this holdout asks for; no class is shown, with 95 % confidence, to lose more recall
    than `max_recall_drop`. Without one, the lower bound of the challenger's balanced accuracy must lie above that of
    the model that always answers the majority class, and it must not be shown to be worse than the best of the
    `rivals` (the other candidates by name) by more than `tolerance`.

    Classes with fewer than FEWEST_IMAGES labelled images are not judged. The holdout may have changed between the two:
    the samples that both predicted are compared, under `labels` (the holdout's present labels by sample_id) or, if not
    given, under the challenger's. A class that one of them cannot answer, because it is older (`later` has a word for
    each), is judged as any other: what it answers there is wrong. Samples without a label are left out. Nothing depends
    on the tables' order.

    Raises CannotJudge if fewer than two classes can be compared, UserError for a label that is no class, ValueError for
    tables that are no such predictions.
    """
    if champion is None:
        return _decide_first(challenger, settings, classes=classes, labels=labels, use=use, rivals=rivals or {})
    pair = Pair.of(challenger, champion, classes, labels)
    error = spent_on(use, 1 - settings.confidence)
    gain, lower = pair.gain(), pair.gain_lower(error)
    check = _gain_check(gain, lower, settings.min_gain, _at(error, use))
    recall_checks, unsure = _recall_checks(pair, classes, settings.max_recall_drop, later or {})
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
        holdout_digest(labels_of(challenger) if labels is None else labels),
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
    known = {name: len(labelled(table, labels, classes)) for name, table in candidates.items()}
    most = max(known.values(), default=0)
    middle = next((name for name in reversed(list(candidates)) if known[name] == most), None)
    if middle is None:
        raise CannotJudge("no version's round recorded what it predicted for the holdout")
    gains: dict[str, float] = {}
    for name, table in candidates.items():
        if 2 * known[name] < most:
            continue
        try:
            gains[name] = Pair.of(table, candidates[middle], classes, labels).gain()
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
    pair = Pair.of(table, table, classes, labels)
    figures = _figures(pair.labels_N, pair.challenger_N, classes)
    error = spent_on(use, 1 - settings.confidence) / (1 + len(rivals))  # the best of many: Bonferroni
    lower, bound = pair.level_lower(error), 1 / len(pair.judged_C)
    better = best({**rivals, "": table}, classes=classes, labels=labels)
    among = f", the best of {1 + len(rivals)} candidates" if rivals and not better else ""
    said = f"balanced accuracy {pair.level():.4f}{among}, its lower bound {lower:.4f} {_at(error, use)}"
    must = f"must be above {bound:.4f}, that of always answering the majority class"
    reasons = [Check("beats_majority_class", lower, bound, lower > bound + _ROUNDING, f"{said}, {must}")]
    if better:
        reasons.append(_rival_check(better, Pair.of(rivals[better], table, classes, labels), settings.tolerance))
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
        holdout_digest(labels_of(table) if labels is None else labels),
        _not_judged(pair.images_C, classes),
    )


def _gain_check(gain: float, lower: float, least: float, at: str) -> Check:
    said = f"balanced accuracy gained {gain:+.4f}, its lower bound {lower:+.4f} {at}, must be above {least:+.4f}"
    return Check("gain_lower_bound", lower, least, lower > least + _ROUNDING, said)


def _rival_check(name: str, pair: Pair, tolerance: float) -> Check:
    better = pair.gain_lower(CLASS_ERROR)
    ok = better <= tolerance + _ROUNDING
    text = f"version {name} is better by {pair.gain():+.4f}, at least {better:+.4f} {_SURE}, may be by {tolerance:+.4f}"
    advice = "" if ok else ": promote that one, or raise promotion.tolerance"
    return Check("best_candidate", better, tolerance, ok, text + advice)


def _recall_checks(
    pair: Pair, classes: Sequence[str], most: float, later: Mapping[str, str]
) -> tuple[list[Check], tuple[str, ...]]:
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
        text += f", may drop by {most:.4f} at most" + (f" ({later[name]})" if name in later else "")
        if ok and before - after > most + _ROUNDING:
            unsure.append(name)
            text += " (it did, which may be chance)"
        checks.append(Check(f"recall_drop/{name}", lower, most, ok, text))
    return checks, tuple(unsure)


def _not_judged(images_C: NDArray[np.int64], classes: Sequence[str]) -> dict[str, int]:
    return {classes[index]: int(images_C[index]) for index in np.flatnonzero(images_C < FEWEST_IMAGES).tolist()}


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
