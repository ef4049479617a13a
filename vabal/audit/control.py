"""What the control arm tells of pool and model, and whether the picks beat chance: from the record and the labels.

A round's arm is a simple random sample of what could be picked that night, and its prediction is that of the round's
own model, which learned none of it: so shares of classes and of right answers are those of that pool, without bias.
Over rounds, each with its own pool and model, what is told is their mean, weighted by the arms' answers. Wilson's
intervals; Newcombe's for the difference of two shares. Those that were rejected or not answered count in neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from vabal import pools
from vabal.audit.curve import wilson
from vabal.rounds import manifest_numbers, round_folder, tables

RARE: Final = 0.5  # of the share that a class would have if all had the same


@dataclass(frozen=True)
class Share:
    """`count` of `of`, with its 95 % interval; nothing is known of none."""

    count: int
    of: int
    value: float | None = None
    low: float | None = None
    high: float | None = None

    @classmethod
    def counted(cls, count: int, of: int) -> "Share":
        if not of:
            return cls(count, of)
        low, high = wilson(count, of)
        return cls(count, of, count / of, float(low), float(high))


@dataclass(frozen=True)
class Difference:
    """One share less another, with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def between(cls, one: Share, other: Share) -> "Difference | None":
        """Newcombe's hybrid score interval (1998, method 10)."""
        if one.value is None or other.value is None or one.low is None or other.low is None:
            return None
        if one.high is None or other.high is None:
            return None
        value = one.value - other.value
        below = np.hypot(one.value - one.low, other.high - other.value)
        above = np.hypot(one.high - one.value, other.value - other.low)
        return cls(value, float(value - below), float(value + above))


@dataclass(frozen=True)
class Arm:
    """What is known by now of the arms of some rounds, and of the picks beside them.

    `wrong` and `rare` are shares of the answered picks and of the arm: how often the round's model was wrong, and how
    many are of the classes that were rare among the first labels.
    """

    rounds: tuple[int, ...]
    drawn: int
    answered: int
    rejected: int
    accuracy: Share
    classes: dict[str, Share]
    wrong: tuple[Share, Share]
    wrong_more: Difference | None
    rare_classes: tuple[str, ...] = ()
    rare: tuple[Share, Share] = field(default=(Share(0, 0), Share(0, 0)))
    rare_more: Difference | None = None

    @property
    def name(self) -> str:
        """As `3`, or `1 to 4`."""
        first, last = self.rounds[0], self.rounds[-1]
        return str(first) if first == last else f"{first} to {last}"

    def metrics(self) -> list[tuple[str, float]]:
        """Name and value of each estimate that there is."""
        told = {"control/accuracy": self.accuracy}
        told |= {f"control/share/{name}": share for name, share in self.classes.items()}
        named = [
            (f"{name}{end}", value)
            for name, share in told.items()
            for end, value in (("", share.value), ("/low", share.low), ("/high", share.high))
            if value is not None
        ]
        for name, more in (("wrong", self.wrong_more), ("rare", self.rare_more)):
            if more is not None:
                named += [
                    (f"control/picks_{name}_more", more.value),
                    (f"control/picks_{name}_more/low", more.low),
                    (f"control/picks_{name}_more/high", more.high),
                ]
        return named


def arms(data: Path, up_to: int | None = None) -> list[Arm]:
    """Of each round with an arm, in order, and, where there is more than one, of all of them together at the end.
    Classes go by today's names.

    Raises UserError if a table is missing or damaged.
    """
    classes = pools.read_classes(data)
    events = pools.named(pools.read_table(data / "label_events.parquet", pools.SCHEMAS["label_events"]), classes)
    names, numbers = classes.names, [number for number in manifest_numbers(data) if not up_to or number <= up_to]
    first = {classes.meaning[name] for name in pools.read_classes(data, 0).names}
    rare = _rare(events, [name for name in names if name in first])
    with_arm = [
        table for _, table in _asked(data, numbers, events, classes.meaning).groupby("round") if table["drawn"].any()
    ]
    each = [_arm(table, names, rare) for table in with_arm]
    return each if len(each) < 2 else [*each, _arm(pd.concat(with_arm), names, rare)]


def by_class(arms: Sequence[Arm]) -> dict[str, Arm]:
    """Whose class shares are told, by name: those of the newest round with answers, and of all of them together."""
    answered = [arm for arm in arms if arm.answered]
    single = [arm for arm in answered if len(arm.rounds) == 1]
    chosen = [*single[-1:], *(answered[-1:] if len(single) > 1 else [])]
    return {f"round{'s' * (len(arm.rounds) > 1)} {arm.name}": arm for arm in chosen}


def _asked(data: Path, numbers: Sequence[int], events: pd.DataFrame, now: Mapping[str, str]) -> pd.DataFrame:
    """What these rounds asked about: round, drawn, predicted_class, and by now answered and label."""
    asked = [tables.unscored([], "none").assign(round=0)]
    for number in numbers:
        path = round_folder(data, number) / tables.SELECTION_FILE
        if number and path.exists():
            asked.append(tables.read_selection(path).assign(round=number))
    columns = ["round", "sample_id", "probability", "predicted_class"]
    table = pd.concat([part[columns].astype(object) for part in asked], ignore_index=True)
    # Of all labels, which may be the pool's, only theirs.
    told = pools.standing(events[pools.among(events["sample_id"], table["sample_id"])])
    label_of = told.set_index("sample_id")["label"]
    return pd.DataFrame(
        {
            "round": table["round"].astype("int64"),
            "drawn": table["probability"].notna(),
            "predicted": table["predicted_class"].replace(dict(now)),
            "answered": table["sample_id"].isin(label_of.index),
            "label": label_of.reindex(table["sample_id"]).to_numpy(dtype=object),
        }
    )


def _arm(table: pd.DataFrame, classes: Sequence[str], rare: Sequence[str]) -> Arm:
    known = table[table["label"].notna()]
    arm, picks = known[known["drawn"]], known[~known["drawn"]]
    said = [part[part["predicted"].notna()] for part in (picks, arm)]
    wrong = [Share.counted(int((part["label"] != part["predicted"]).sum()), len(part)) for part in said]
    of_rare = [Share.counted(int(part["label"].isin(rare).sum()), len(part)) for part in (picks, arm)]
    drawn = table[table["drawn"]]
    return Arm(
        rounds=tuple(int(number) for number in table["round"].unique()),
        drawn=len(drawn),
        answered=len(arm),
        rejected=int((drawn["answered"] & drawn["label"].isna()).sum()),
        accuracy=Share.counted(wrong[1].of - wrong[1].count, wrong[1].of),
        classes={name: Share.counted(int((arm["label"] == name).sum()), len(arm)) for name in classes},
        wrong=(wrong[0], wrong[1]),
        wrong_more=Difference.between(wrong[0], wrong[1]),
        rare_classes=tuple(rare),
        rare=(of_rare[0], of_rare[1]),
        rare_more=Difference.between(of_rare[0], of_rare[1]) if rare else None,
    )


def _rare(events: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Rare among the labels that came with the source: what is drawn later has no say in it."""
    first = events.loc[(events["annotator"] == pools.FROM_SOURCE) & (events["round"] == 0), "label"].value_counts()
    fewest = RARE * first.sum() / max(len(classes), 1)
    return [name for name in classes if first.get(name, 0) < fewest]
