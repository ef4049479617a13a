"""How good the classifiers are on the holdout: round by round, and champion against challenger."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import NDArray

from vabal import rounds
from vabal.audit import forecast
from vabal.audit.curve import DEVIATIONS, of_recalls, wilson
from vabal.errors import UserError
from vabal.pages.blocks import Block, Figure, Panel, Pictured, Pictures, Text
from vabal.pages.headline import counted
from vabal.pages.night.record import Night, predictions
from vabal.pages.pictures import Picture
from vabal.pages.tables import MINUS, NONE, Cell, Row, Table, percent, signed
from vabal.promotion.paired import gain_lower_bound
from vabal.promotion.record import Entry, champions
from vabal.rounds import tables

MOST_SHOWN: Final = 24  # images of a kind
_ERROR: Final = 0.025  # on each side: intervals of 95 %
HOW: Final = (
    "Intervals have 95 % and come from the holdout: of balanced accuracy and accuracy those of `vabal curve`, of a "
    "class's recall Wilson's, of champion and challenger Tango's for a matched difference, over classes of equal "
    "weight. Holdout images are taken as independent of each other."
)


# -- intervals ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """A share with its interval."""

    value: float
    low: float
    high: float

    def cell(self) -> Cell:
        return Cell(percent(self.value), f"[{percent(self.low)}, {percent(self.high)}]")


def share(right_C: Sequence[int], images_C: Sequence[int]) -> Share:
    """The mean over classes (or the one share) of right answers; classes without images are left out.

    Raises ValueError if there are no images.
    """
    counts_C_2 = np.asarray([(right, of - right) for right, of in zip(right_C, images_C, strict=True) if of])
    if not len(counts_C_2):
        raise ValueError("a share of no images")
    value = float((counts_C_2[:, 0] / counts_C_2.sum(axis=1)).mean())
    return Share(
        value, *(float((1 + gain) / 2) for gain in _ends(counts_C_2[:, 0], counts_C_2[:, 1], 0 * counts_C_2[:, 0]))
    )


def _ends(won_C: NDArray[np.int64], lost_C: NDArray[np.int64], tied_C: NDArray[np.int64]) -> tuple[float, float]:
    """Both ends of the gain's interval: the upper one is the lower of the loss."""
    low = gain_lower_bound(np.stack([won_C, lost_C, tied_C], axis=1), _ERROR, continuity=False)
    high = -gain_lower_bound(np.stack([lost_C, won_C, tied_C], axis=1), _ERROR, continuity=False)
    return float(low), float(high)


# -- the learning curve -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    round: int
    labels: int
    images: int
    classes: int
    balanced: Share
    accuracy: Share


def curve(night: Night) -> list[Point]:
    """A point for each round up to this one whose predictions for the holdout are recorded, under its labels then."""
    points = []
    for number in rounds.manifest_numbers(night.data):
        path = rounds.round_folder(night.data, number) / tables.PREDICTIONS_FILE
        if not 0 < number <= night.number or not path.is_file():
            continue
        try:
            counts, (_, counts_C_C) = rounds.read_manifest(night.data, number).counts, tables.read_confusions(path)
        except UserError:  # `vabal audit --verify` says what is wrong with it
            continue
        occurring_C, total = counts_C_C.sum(axis=1) > 0, int(counts_C_C.sum())
        if not total:
            continue
        right_C, images_C = np.diag(counts_C_C)[occurring_C], counts_C_C.sum(axis=1)[occurring_C]
        balanced = Share(float((right_C / images_C).mean()), *of_recalls(right_C, images_C))
        accuracy = Share(float(right_C.sum() / total), *map(float, wilson(right_C.sum(), total)))
        points.append(Point(number, counts["labeled"], total, len(images_C), balanced, accuracy))
    return points


def curve_blocks(points: Sequence[Point], budget: int) -> list[Block]:
    """The curve up to this round, and what `budget` more labels would add to it."""
    if not points:
        return []
    rows = [
        Row(
            str(point.round),
            [Cell(str(point.labels)), Cell(str(point.images)), point.balanced.cell(), point.accuracy.cell()],
        )
        for point in points
    ]
    heads = ["round", "labels", "holdout\nimages", "balanced accuracy, %", "accuracy, %"]
    table = Table("The rounds so far, each under the holdout's labels of its night, with 95 % intervals.", heads, rows)
    if len(points) == 1:
        return [table, _coming(points, budget)]
    caption = "Share of the holdout that is answered right; bands: 95 % intervals."
    return [Figure([Panel("", _drawing(points))], caption), table, _coming(points, budget)]


def _coming(points: Sequence[Point], budget: int) -> Block:
    known = [
        forecast.Point(
            point.labels,
            point.balanced.value,
            (point.balanced.high - point.balanced.low) / DEVIATIONS,
            point.classes,
            point.images,
        )
        for point in points
    ]
    told = "; ".join(str(each).replace("-", MINUS) for each in forecast.of_curve(known, budget))
    return Text([f"Expected of {told}. That is balanced accuracy: the curve continued, with 90 % intervals."])


def _drawing(points: Sequence[Point]) -> Markup:
    from vabal.pages import figures  # noqa: PLC0415 -- matplotlib is no part of the core

    drawn = [
        figures.Curve(
            name,
            [point.labels for point in points],
            [100 * found.value for found in shares],
            [100 * found.low for found in shares],
            [100 * found.high for found in shares],
        )
        for name, shares in (
            ("balanced accuracy", [point.balanced for point in points]),
            ("accuracy", [point.accuracy for point in points]),
        )
    ]
    style = {
        "balanced accuracy": figures.SeriesStyle("own-0", "#050005", "o", (), strong=True),
        "accuracy": figures.SeriesStyle("other-0", "#060006", "s", (4, 1.5), strong=True),
    }
    said = figures.describe(
        [
            (f"{name} with {point.labels} labels", 100 * found.value)
            for point in points
            for name, found in (("balanced accuracy", point.balanced), ("accuracy", point.accuracy))
        ]
    )
    return figures.curves(
        drawn,
        style,
        ylabel="share of the holdout answered right, %",
        label=f"Learning curve. Per cent: {said}",
        prefix="curve",
        shares=True,
    )


# -- champion and challenger --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Duel:
    """This round's classifier and the champion of its night on the images that both answered, under the challenger's
    labels: columns sample_id, label, challenger, champion."""

    champion: int  # the round that made it
    version: str
    table: pd.DataFrame


def decision(night: Night) -> Entry | None:
    """The last decision about this round's version."""
    about = [e for e in night.promotions if e.round == night.number and e.action in ("promote", "refuse")]
    return about[-1] if about else None


def duel(night: Night) -> Duel | str:
    """Or why there is none."""
    against = _champion(night)
    if isinstance(against, str):
        return against
    number, version = against
    mine = predictions(night.data, night.number)
    theirs = predictions(night.data, number, night.number) if number in rounds.manifest_numbers(night.data) else None
    if mine is None or theirs is None:
        which = night.number if mine is None else number
        return f"Round {which} recorded no predictions for the holdout, so the two cannot be compared."
    both = mine.merge(theirs[["sample_id", "predicted_class"]], on="sample_id", suffixes=("", "_champion"))
    if not len(both):
        return "The two were never asked about the same labelled holdout images."
    renamed = both.rename(columns={"predicted_class": "challenger", "predicted_class_champion": "champion"})
    return Duel(number, version, renamed)


def _champion(night: Night) -> tuple[int, str] | str:
    entry = decision(night)
    if entry is not None:
        if entry.previous_round is None or entry.previous_version is None:
            return "There was no champion yet when this round's version was judged."
        return entry.previous_round, entry.previous_version
    manifest = night.manifest
    if "promotions" not in manifest.model_fields_set:
        return "The record of this round, of an earlier version, does not tell who was champion then."
    head = (manifest.promotions or {}).get("sequence", 0)
    periods = champions(night.promotions[:head])
    return (periods[-1].round, periods[-1].version) if periods else "There was no champion yet."


def samples(found: Duel | str) -> list[str]:
    """Those that need pictures."""
    if isinstance(found, str):
        return []
    return [str(sample) for _, rows in _apart(found) for sample in rows["sample_id"].head(MOST_SHOWN)]


def _apart(found: Duel) -> list[tuple[str, pd.DataFrame]]:
    table = found.table
    mine, theirs = table["challenger"] == table["label"], table["champion"] == table["label"]
    return [
        ("that the challenger answers right and the champion wrong", table[mine & ~theirs]),
        ("that the challenger answers wrong and the champion right", table[~mine & theirs]),
    ]


def duel_blocks(night: Night, found: Duel | str, pictures: Mapping[str, Picture]) -> list[Block]:
    entry = decision(night)
    said = [_decided(entry)]
    if isinstance(found, str):
        return [Text([*said, found])]
    made: list[Block] = [Text([*said, _gained(found)]), _recalls(night, found)]
    for what, rows in _apart(found):
        if not len(rows):
            continue
        shown = rows.head(MOST_SHOWN)
        items = [_answered({str(k): v for k, v in row.items()}, pictures) for row in shown.to_dict("records")]
        some = f"; {len(shown)} of them are shown" if len(shown) < len(rows) else ""
        made.append(
            Pictures(
                items,
                f"{counted(len(rows), 'holdout image')} {what}{some}. In bold the label, then champion → challenger.",
            )
        )
    return made


def _decided(entry: Entry | None) -> str:
    if entry is None:
        return "Nothing is decided about this round's version yet: `vabal promote` does."
    verb = "was made champion" if entry.action == "promote" else "was refused"
    return f"Version {entry.version} {verb} on {entry.when[:16].replace('T', ' ')} UTC by {entry.who}: {entry.why}"


def _gained(found: Duel) -> str:
    outcomes = [_outcomes(rows) for _, rows in found.table.groupby("label", sort=True)]
    won_C, lost_C, tied_C = (np.asarray(column) for column in zip(*outcomes, strict=True))
    gain = float(((won_C - lost_C) / (won_C + lost_C + tied_C)).mean())
    low, high = _ends(won_C, lost_C, tied_C)
    told = (
        f"{signed(100 * gain)} points of balanced accuracy, 95 % interval [{signed(100 * low)}, {signed(100 * high)}]"
    )
    verdict = "so the two are not distinguishable" if low <= 0 <= high else "so they differ"
    return (
        f"Against the champion, version {found.version} of round {found.champion}, on "
        f"{counted(len(found.table), 'holdout image')} that both answered: {told}, {verdict} by this "
        "interval alone. Whether it is promoted, `vabal promote` decides more strictly, for the same holdout is asked "
        "every night."
    )


def _outcomes(rows: pd.DataFrame) -> tuple[int, int, int]:
    mine, theirs = rows["challenger"] == rows["label"], rows["champion"] == rows["label"]
    won, lost = int((mine & ~theirs).sum()), int((~mine & theirs).sum())
    return won, lost, len(rows) - won - lost


def _recalls(night: Night, found: Duel) -> Table:
    rows = []
    for name in night.classes:
        of_class = found.table[found.table["label"] == name]
        if not len(of_class):
            rows.append(Row(name, [Cell("0"), Cell(NONE), Cell(NONE), Cell(NONE)]))
            continue
        theirs, mine = (
            share([int((of_class[who] == name).sum())], [len(of_class)]) for who in ("champion", "challenger")
        )
        won, lost, tied = _outcomes(of_class)
        low, high = _ends(*(np.asarray([count]) for count in (won, lost, tied)))
        gap = Cell(signed(100 * (won - lost) / len(of_class)), f"[{signed(100 * low)}, {signed(100 * high)}]")
        rows.append(Row(name, [Cell(str(len(of_class))), theirs.cell(), mine.cell(), gap]))
    heads = [
        "class",
        "holdout\nimages",
        f"champion\n(round {found.champion}), %",
        f"challenger\n(round {night.number}), %",
        "difference,\npoints",
    ]
    return Table("Recall of each class on the holdout, with 95 % intervals.", heads, rows)


def _answered(row: Mapping[str, object], pictures: Mapping[str, Picture]) -> Pictured:
    lines = [str(row["label"]), f"{row['champion']} → {row['challenger']}"]
    picture = pictures.get(str(row["sample_id"]), Picture("no picture"))
    return Pictured(picture.saying(f"{row['sample_id']}, labelled {lines[0]}: {lines[1]}"), lines)
