"""How far the people who label agree, on a round's page: what `vabal labels agreement` tells, as the round left it."""

from typing import Final

from vabal.labels.agreement import Agreement, Pair, Person
from vabal.pages.blocks import Block, Text
from vabal.pages.headline import counted
from vabal.pages.tables import NONE, Cell, Row, Table

_LISTED: Final = 30  # people, and pairs of them


def blocks(found: Agreement) -> list[Block]:
    """Nothing where fewer than two people have labelled."""
    if len(found.people) < 2:
        return []
    made: list[Block] = [Text([_said(found)]), _table(found)]
    if found.pairs:
        made.append(_pairs(found))
    left = max(len(found.people), len(found.pairs)) - _LISTED
    return [*made, Text(["The others are in `vabal labels agreement --json`."])] if left > 0 else made


def _said(found: Agreement) -> str:
    many = f"{len(found.people)} people have an opinion on {counted(found.images, 'image')}"
    if not found.several:
        return f"{many}, each of them on others: how far they agree is not known."
    kappa = "is not defined: everybody says the same one thing" if found.kappa is None else f"is {found.kappa:.2f}"
    return (
        f"{many}; of {counted(found.several, 'image')} with several opinions they disagree about "
        f"{len(found.disputed)}. Fleiss' kappa {kappa} (1: they always agree; 0: no more than chance would)."
    )


def _table(found: Agreement) -> Table:
    rows = [Row(person.name, [*_counts(person), _accuracy(person)]) for person in found.people[:_LISTED]]
    return Table(
        "What each person last said of each image; and, of images that others have an opinion on too, how much of it "
        "is what most say.",
        ["who", "labels", "rejections", "shared\nimages", "as most say"],
        rows,
    )


def _counts(person: Person) -> list[Cell]:
    return [Cell(str(count)) for count in (person.labels, person.rejections, person.shared)]


def _accuracy(person: Person) -> Cell:
    return Cell(NONE) if person.accuracy is None else Cell(f"{100 * person.accuracy:.0f} %", share=person.accuracy)


def _pairs(found: Agreement) -> Table:
    rows = [Row(f"{pair.first}, {pair.second}", _agreement(pair)) for pair in found.pairs[:_LISTED]]
    return Table(
        "Each two people, on the images that both have an opinion on.", ["who", "images", "Cohen's kappa"], rows
    )


def _agreement(pair: Pair) -> list[Cell]:
    return [Cell(str(pair.images)), Cell(NONE if pair.kappa is None else f"{pair.kappa:.2f}")]
