"""Is the new classifier better than the one in production, and for no class much worse? A pure decision.

Both predicted the same holdout, so they are compared in pairs, sample by sample, in balanced accuracy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal.errors import UserError
from vabal.metrics import balanced_accuracy, confusion_matrix, macro_f1, recalls_by_name
from vabal.params import PromotionSettings

LOWER_QUANTILE = 0.05  # of the resampled gains: a one-sided lower bound with 95 % confidence
_ROUNDING = 1e-9  # a drop of 0.95 - 0.90 is no more than 0.05, whatever floating point says
_COLUMNS = ("sample_id", "label", "predicted_class")


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
    """Whether the challenger may become champion, every check with its numbers, and both models' figures."""

    promoted: bool
    reasons: tuple[Check, ...]
    challenger: dict[str, float]
    champion: dict[str, float] | None
    gain: float | None
    gain_lower: float | None
    compared: int
    left_out: int
    relabelled: int

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that speak against promotion."""
        return tuple(check for check in self.reasons if not check.ok)

    def to_dict(self) -> dict[str, Any]:
        """The decision as JSON values."""
        return {**asdict(self), "reasons": [asdict(check) for check in self.reasons]}


def decide(
    challenger: pd.DataFrame,
    champion: pd.DataFrame | None,
    settings: PromotionSettings,
    *,
    seed: int,
    classes: Sequence[str],
    labels: Mapping[str, str] | None = None,
) -> Decision:
    """Compares holdout predictions (columns sample_id, label, predicted_class; class names).

    With a champion, three things must hold: the balanced accuracy gained lies above `min_gain`; its lower 95 % bound
    from a paired bootstrap lies above -`tolerance`; no class loses more recall than `max_recall_drop`. Without one, the
    challenger must beat the model that always answers the majority class, whose balanced accuracy is 1 over the number
    of classes that occur.

    The holdout may have changed between the two: the samples that both predicted are compared, under `labels` (the
    holdout's present labels by sample_id) or, if not given, under the challenger's. Samples without a label are left
    out. The decision does not depend on the tables' order.

    Raises UserError if no sample can be compared, ValueError for tables that are no such predictions.
    """
    _check_table(challenger, classes)
    if champion is None:
        return _decide_first(_labelled(challenger, labels, classes), len(challenger), classes)
    _check_table(champion, classes)
    both = challenger.merge(champion, on="sample_id", suffixes=("", "_champion"), validate="one_to_one")
    common = _labelled(both, labels, classes)
    seen = len(challenger) + len(champion) - len(both)
    relabelled = int((common["label"] != common["label_champion"]).sum())
    return _decide_against(
        common, settings, seed=seed, classes=classes, left_out=seen - len(common), relabelled=relabelled
    )


def resampled_gains(
    counts_C_4: NDArray[np.integer], *, resamples: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """The gain in balanced accuracy in each bootstrap resample of the pairs, drawn within each class.

    `counts_C_4` holds, for each class, how many pairs were right in both models, in the challenger alone, in the
    champion alone, and in neither. Samples are drawn with replacement inside their class: the holdout is stratified,
    and an unstratified resample could lose a rare class, whose recall would then be undefined. A class's recall depends
    on its samples only through these four counts, and drawing n of n pairs with replacement draws the counts from a
    multinomial distribution, so this is exactly the bootstrap over samples, at a cost that does not grow with them.
    """
    gains = np.zeros(resamples)
    occurring = counts_C_4[counts_C_4.sum(axis=1) > 0]
    for counts_4 in occurring:
        total = int(counts_4.sum())
        drawn_R_4 = generator.multinomial(total, counts_4 / total, size=resamples)
        gains += (drawn_R_4[:, 1] - drawn_R_4[:, 2]) / total
    return gains / len(occurring)


def _decide_first(table: pd.DataFrame, seen: int, classes: Sequence[str]) -> Decision:
    labels_N, predicted_N = _indices(table["label"], classes), _indices(table["predicted_class"], classes)
    figures = _figures(labels_N, predicted_N, classes)
    value, bound = figures["balanced_accuracy"], 1 / len(np.unique(labels_N))
    check = Check(
        "beats_majority_class",
        value,
        bound,
        value > bound + _ROUNDING,
        f"balanced accuracy {value:.4f}, must be above {bound:.4f}, that of always answering the majority class",
    )
    return Decision(check.ok, (check,), figures, None, None, None, len(table), seen - len(table), 0)


def _decide_against(
    common: pd.DataFrame,
    settings: PromotionSettings,
    *,
    seed: int,
    classes: Sequence[str],
    left_out: int,
    relabelled: int,
) -> Decision:
    labels_N = _indices(common["label"], classes)
    challenger_N = _indices(common["predicted_class"], classes)
    champion_N = _indices(common["predicted_class_champion"], classes)
    figures, champion_figures = _figures(labels_N, challenger_N, classes), _figures(labels_N, champion_N, classes)
    gain = figures["balanced_accuracy"] - champion_figures["balanced_accuracy"]
    counts_C_4 = _paired_counts(labels_N, challenger_N == labels_N, champion_N == labels_N, len(classes))
    gains = resampled_gains(counts_C_4, resamples=settings.resamples, generator=np.random.default_rng(seed))
    lower = float(np.quantile(gains, LOWER_QUANTILE))
    reasons = (
        Check(
            "gain",
            gain,
            settings.min_gain,
            gain > settings.min_gain + _ROUNDING,
            f"balanced accuracy gained {gain:+.4f}, must be above {settings.min_gain:+.4f}",
        ),
        Check(
            "gain_lower_bound",
            lower,
            -settings.tolerance,
            lower > -settings.tolerance + _ROUNDING,
            f"lower 95 % bound of the gain {lower:+.4f}, must be above {-settings.tolerance:+.4f}",
        ),
        *_recall_checks(figures, champion_figures, classes, settings.max_recall_drop),
    )
    promoted = all(check.ok for check in reasons)
    return Decision(promoted, reasons, figures, champion_figures, gain, lower, len(common), left_out, relabelled)


def _recall_checks(
    challenger: dict[str, float], champion: dict[str, float], classes: Sequence[str], most: float
) -> list[Check]:
    checks = []
    for name in classes:
        key = f"recall/{name}"
        if key not in challenger:
            continue
        drop = champion[key] - challenger[key]
        text = f"recall of {name} {champion[key]:.4f} -> {challenger[key]:.4f}, may drop by {most:.4f} at most"
        checks.append(Check(f"recall_drop/{name}", drop, most, drop <= most + _ROUNDING, text))
    return checks


def _paired_counts(
    labels_N: NDArray[np.int64],
    challenger_right_N: NDArray[np.bool_],
    champion_right_N: NDArray[np.bool_],
    classes: int,
) -> NDArray[np.int64]:
    outcome_N = 2 * ~challenger_right_N + ~champion_right_N
    return np.bincount(labels_N * 4 + outcome_N, minlength=classes * 4).reshape(classes, 4)


def _figures(labels_N: NDArray[np.int64], predicted_N: NDArray[np.int64], classes: Sequence[str]) -> dict[str, float]:
    counts_C_C = confusion_matrix(labels_N, predicted_N, len(classes))
    figures = {
        "accuracy": float(np.trace(counts_C_C) / counts_C_C.sum()),
        "balanced_accuracy": balanced_accuracy(counts_C_C),
        "macro_f1": macro_f1(counts_C_C),
    }
    return figures | recalls_by_name(counts_C_C, classes)


def _labelled(table: pd.DataFrame, labels: Mapping[str, str] | None, classes: Sequence[str]) -> pd.DataFrame:
    """The rows that have a label today, under that label."""
    if labels is not None:
        table = table.assign(label=table["sample_id"].map(dict(labels)))
    table = table[table["label"].notna()]
    if table.empty:
        raise UserError(
            "promotion: no labelled holdout sample was predicted by the models to compare: "
            "label the holdout, or run a round so that the challenger predicts it"
        )
    unknown = sorted(set(table["label"]) - set(classes))
    if unknown:
        raise UserError(f"promotion: the holdout's label {unknown[0]!r} is not in the list of classes")
    return table


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
