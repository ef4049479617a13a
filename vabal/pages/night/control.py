"""What the control arm tells of the pool and of the picks, and the test for drift, on a round's page."""

from collections.abc import Sequence

from vabal.audit.control import Arm, Difference, Share, by_class
from vabal.audit.drift import Drift
from vabal.pages.blocks import Block, Text
from vabal.pages.tables import NONE, Cell, Row, Table, signed


def blocks(arms: Sequence[Arm]) -> list[Block]:
    """Nothing without an arm; before its labels came, that they are awaited."""
    if not arms:
        return []
    if not any(arm.answered for arm in arms):
        return [Text([f"{arms[-1].drawn} images were drawn uniformly; none of their labels has come yet."])]
    rows = [Row(arm.name, [Cell(f"{arm.answered} of {arm.drawn}"), _cell(arm.accuracy)]) for arm in arms]
    rounds = Table(
        "Drawn uniformly from what could be picked each night, and labelled: the share that the night's model gets "
        "right, per cent, with 95 % intervals. Over several rounds, the mean of their pools.",
        ["round", "labels", "model right"],
        rows,
    )
    told = by_class(arms)
    shares = [Row(name, [_cell(arm.classes[name]) for arm in told.values()]) for name in arms[-1].classes]
    caption = "Each class's share of what could be picked, per cent, with 95 % intervals."
    return [Text(in_words(arms[-1])), rounds, Table(caption, ["class", *told], shares)]


def drift_blocks(compared: Sequence[Drift]) -> list[Block]:
    """Nothing where the nights so far took in too few images."""
    if not compared:
        return []
    told = [(str(one.new), str(one.earlier), f"{one.distance:.3f}", f"{one.p_value:.3f}") for one in compared]
    rows = [Row(str(one.round), [Cell(said) for said in cells]) for one, cells in zip(compared, told, strict=True)]
    caption = (
        "A night's new images against those before: how far they lie apart in the network's features beyond chance "
        "(energy distance, 0 to 1), and how often chance brings them as far. Of twenty nights without any change one "
        "has a p of 0.05 or less; it is not corrected for the number of nights."
    )
    table = Table(caption, ["round", "new\nimages", "earlier\nimages", "distance", "p"], rows)
    found = [f"{str(night)[0].upper()}{str(night)[1:]}." for night in compared if night.found]
    none = "No night's new images can be told from those before."
    return [Text(found or [none], listed=len(found) > 1), table]


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
        f"{100 * (picks.value or 0):.1f} % of {picks.of} picks and {100 * (drawn.value or 0):.1f} % of {drawn.of} "
        f"drawn images, a difference of {signed(100 * more.value, 1)} points ({ends}){clear}"
    )


def _cell(share: Share) -> Cell:
    if share.value is None or share.low is None or share.high is None:
        return Cell(NONE)
    return Cell(f"{100 * share.value:.1f}", f"[{100 * share.low:.0f}, {100 * share.high:.0f}]")
