"""What a page's sections are made of; `templates/blocks.html.j2` says how each kind is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vabal.pages import tables
from vabal.pages.pictures import Picture


@dataclass(frozen=True)
class Heading:
    kind = "heading"
    text: str


@dataclass(frozen=True)
class Panel:
    """A drawing below its heading."""

    heading: str
    drawing: Markup
    note: str = ""  # beside the heading


@dataclass(frozen=True)
class Figure:
    """Drawings side by side where there is room; small ones with `minis`."""

    kind = "figure"
    panels: Sequence[Panel]
    caption: str
    layout: str = "panels"


@dataclass(frozen=True)
class Strip:
    """A strategy's first picks: each with label, predicted_class, png and frame."""

    strategy: str
    picks: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Picks:
    kind = "picks"
    strips: Sequence[Strip]
    caption: str


@dataclass(frozen=True)
class Tables:
    """Tables side by side."""

    kind = "tables"
    tables: Sequence[tables.Table]


@dataclass(frozen=True)
class Method:
    kind = "method"
    rules: Sequence[tuple[str, str]]
    cells: int


@dataclass(frozen=True)
class Text:
    """Paragraphs, or with `listed` the items of a list."""

    kind = "text"
    paragraphs: Sequence[str]
    listed: bool = False


@dataclass(frozen=True)
class Commands:
    """What somebody types, a line each."""

    kind = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Fact:
    """Something that is known of a pick, by name."""

    name: str
    said: str


@dataclass(frozen=True)
class Card:
    """A pick: its picture, why it was picked, and beside it the labelled image that is most like it.

    `order` has what cards are sorted by, by the name of the order; equal ones keep their places.
    """

    heading: str
    picture: Picture
    reason: str
    facts: Sequence[Fact]
    order: Mapping[str, float]
    beside: Picture | None = None
    beside_said: str = ""


@dataclass(frozen=True)
class Group:
    """Cards of one predicted class."""

    heading: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Gallery:
    """Picks in groups; `orders` are what they can be sorted by where scripts run, the first one as they stand."""

    kind = "gallery"
    groups: Sequence[Group]
    orders: Mapping[str, str]  # what a reader is told, by name


@dataclass(frozen=True)
class Pictured:
    """A picture with a few lines below it."""

    picture: Picture
    lines: Sequence[str]


@dataclass(frozen=True)
class Pictures:
    kind = "pictures"
    items: Sequence[Pictured]
    caption: str


Block = Heading | Figure | Picks | tables.Table | Tables | Method | Text | Commands | Gallery | Pictures


@dataclass(frozen=True)
class Section:
    anchor: str
    heading: str
    blocks: Sequence[Block]
