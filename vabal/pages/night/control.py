"""What the control arm tells of the pool and of the picks, and the test for drift, on a round's page."""

from collections.abc import Sequence

from vabal.audit.control import Arm, Difference, Share
from vabal.audit.drift import Drift
from vabal.pages.blocks import Block, Text
from vabal.pages.tables import NONE, Cell, Row, Table, percent, signed


def blocks(arms: Sequence[Arm]) -> list[Block]:
    """Nothing without an arm; before its labels came, that they are awaited."""
    if not arms:
        return []
    if not any(arm.answered for arm in arms):
        return [Text([f"{arms[-1].drawn} images were drawn uniformly; none of their labels has come yet."])]
    names = list(arms[-1].classes)
    rows = [
        Row(
            _named(arm),
            [Cell(f"{arm.answered} of {arm.drawn}"), _cell(arm.accuracy), *map(_cell, arm.classes.values())],
        )
        for arm in arms
    ]
    caption = (
        "Drawn uniformly from what could be picked each night, and labelled: the share that the night's model gets "
        "right, and each class's share of that pool, with 95 % intervals. Over several rounds, the mean of their pools."
    )
    heads = ["round", "labels", "model right", *(f"share of\n{name}" for name in names)]
    return [Table(caption, heads, rows), Text(in_words(arms[-1]))]


def drift_blocks(compared: Sequence[Drift]) -> list[Block]:
    """Nothing where the nights so far took in too few images."""
    if not compared:
        return []
    rows = [
        Row(str(night.round), [Cell(str(night.new)), Cell(f"{night.distance:.3f}"), Cell(f"{night.p_value:.3f}")])
        for night in compared
    ]
    caption = (
        "A night's new images against those before: how far they lie apart in the network's features beyond chance "
        "(energy distance, 0 to 1), and how often chance brings them as far. Of twenty nights without any change one "
        "has a p of 0.05 or less; it is not corrected for the number of nights."
    )
    found = [f"{night}." for night in compared if night.found]
    table = Table(caption, ["round", "new images", "distance", "p"], rows)
    return [table, Text([said[0].upper() + said[1:] for said in found], listed=True)] if found else [table]


def in_words(arm: Arm) -> list[str]:
    """Whether the picks beat chance."""
    said = []
    if arm.wrong_more is not None:
        said.append(f"The model was wrong on {_against(*arm.wrong, arm.wrong_more)}.")
    if arm.rare_more is not None:
        said.append(f"Rare classes ({', '.join(arm.rare_classes)}) are {_against(*arm.rare, arm.rare_more)}.")
    return said


def _against(picks: Share, drawn: Share, more: Difference) -> str:
    ends = f"{signed(100 * more.low, 1)} to {signed(100 * more.high, 1)}"
    clear = "" if more.low > 0 or more.high < 0 else ": not distinguishable"
    return (
        f"{percent(picks.value or 0)} % of {picks.of} picks and {percent(drawn.value or 0)} % of {drawn.of} drawn "
        f"images, a difference of {signed(100 * more.value, 1)} points ({ends}){clear}"
    )


def _named(arm: Arm) -> str:
    first, last = arm.rounds[0], arm.rounds[-1]
    return str(first) if first == last else f"{first} to {last}"


def _cell(share: Share) -> Cell:
    if share.value is None or share.low is None or share.high is None:
        return Cell(NONE)
    return Cell(percent(share.value), f"[{percent(share.low)}, {percent(share.high)}]")
