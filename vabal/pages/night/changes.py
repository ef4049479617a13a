"""What changed in a round: labels that came, where people disagree, rejections; and which class has how much."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pandas as pd

from vabal import pools
from vabal.labels.consensus import CONSENSUS
from vabal.pages.blocks import Block, Pictured, Pictures, Text
from vabal.pages.headline import counted
from vabal.pages.night.record import Night
from vabal.pages.pictures import Picture
from vabal.pages.tables import NONE, Cell, Row, Table

MOST_SHOWN: Final = 24  # disputed images


@dataclass(frozen=True)
class Came:
    """What a round's labels did, by sample: label, or label before and after."""

    new: dict[str, str]
    corrected: dict[str, tuple[str, str]]
    rejected: list[str]
    confirmed: int
    disputed: dict[str, dict[str, str]]  # what each annotator last said, where they differ
    images: int
    rule: str = "latest"


_STANDS: Final = {
    "latest": "the newest opinion",
    "majority": "what most say, else the newest opinion,",
    "crowdlab": "what people and the classifier of the round before together make most probable",
}


def came(night: Night) -> Came:
    """The holdout's labels count too: corrections there move every measurement."""
    events = night.pools.events
    tonight = set(events.loc[events["round"] == night.number, "sample_id"])
    touched = events[events["sample_id"].isin(tonight)]
    before = _standing(touched[touched["round"] < night.number])
    after = _standing(touched)
    new, corrected, rejected = dict[str, str](), dict[str, tuple[str, str]](), list[str]()
    for sample, label in after.items():
        old = before.get(sample)
        if label is None:
            rejected += [sample] if sample not in before or old is not None else []
        elif old is None:
            new[sample] = label
        elif old != label:
            corrected[sample] = (old, label)
    confirmed = len(tonight) - len(new) - len(corrected) - len(rejected)
    fresh = int((night.pools.catalog["added_round"] == night.number).sum())
    labelling = night.manifest.settings.get("labelling")
    rule = str(labelling.get("consensus", "latest")) if isinstance(labelling, dict) else "latest"
    return Came(new, corrected, rejected, confirmed, _disputed(touched), fresh, rule)


def _standing(events: pd.DataFrame) -> dict[str, str | None]:
    last = pools.standing(events)
    return {
        str(s): None if pd.isna(label) else str(label)
        for s, label in zip(last["sample_id"], last["label"], strict=True)
    }


def _disputed(events: pd.DataFrame) -> dict[str, dict[str, str]]:
    people = pools.standing(events[events["annotator"] != CONSENSUS], by=("sample_id", "annotator"))
    found: dict[str, dict[str, str]] = {}
    for sample, said in people.groupby("sample_id", sort=True):
        opinions = {
            str(who): "rejected" if pd.isna(what) else str(what)
            for who, what in zip(said["annotator"], said["label"], strict=True)
        }
        if len(set(opinions.values())) > 1:
            found[str(sample)] = opinions
    return found


def shown(found: Came) -> list[str]:
    """The samples that need pictures."""
    return list(dict.fromkeys([*found.disputed, *found.corrected]))[:MOST_SHOWN]


def blocks(night: Night, found: Came, labels: Mapping[str, int], pictures: Mapping[str, Picture]) -> list[Block]:
    made: list[Block] = [Text([*_sentences(found), *(f"From this round on, {what}." for what in night.reclassed)])]
    items = [_pictured(sample, found, pictures) for sample in shown(found)]
    if items:
        more = len({*found.disputed, *found.corrected}) - len(items)
        left = f" {counted(more, 'other')} in `vabal audit --sample ID`." if more else ""
        made.append(Pictures(items, f"Images whose label changed, or about which people disagree.{left}"))
    return [*made, _balance(night, found, labels)]


def _sentences(found: Came) -> list[str]:
    parts = [
        f"{counted(len(found.new), 'new label')}, {counted(len(found.corrected), 'correction')}, "
        f"{counted(len(found.rejected), 'rejection')}, {counted(found.confirmed, 'label')} that changed nothing; "
        f"{counted(found.images, 'new image')}."
    ]
    if found.disputed:
        stands = _STANDS.get(found.rule, _STANDS["latest"])
        parts.append(f"People disagree about {counted(len(found.disputed), 'image')} of these: {stands} stands.")
    return parts


def _pictured(sample: str, found: Came, pictures: Mapping[str, Picture]) -> Pictured:
    lines = [sample]
    if sample in found.corrected:
        old, now = found.corrected[sample]
        lines.append(f"{old} → {now}")
    lines += [f"{who}: {what}" for who, what in found.disputed.get(sample, {}).items()]
    picture = pictures.get(sample, Picture("no picture"))
    return Pictured(picture.saying(", ".join(lines)), lines)


def _balance(night: Night, found: Came, labels: Mapping[str, int]) -> Table:
    """Labels, and what the classifier predicts for the pool, by class."""
    total, pool = sum(labels.values()), sum(night.predicted.values())
    picked = night.picks["predicted_class"].value_counts()
    held_N = pools.among(pd.Series(list(found.new), dtype="str"), night.pools.held).to_numpy()
    fresh = pd.Series(list(found.new.values()), dtype=object)[~held_N].value_counts()
    rows = []
    for name in night.classes:
        asked = int(picked.get(name, 0))
        rows.append(
            Row(
                name,
                [
                    _share(labels.get(name, 0), total),
                    Cell(f"+{int(fresh.get(name, 0))}" if fresh.get(name, 0) else "0"),
                    _share(night.predicted.get(name, 0), pool),
                    _share(asked, len(night.picks)) if len(night.picks) else Cell(NONE),
                ],
            )
        )
    heads = ["class", "labels", "new labels\ntonight", "candidates\npredicted", "picks\npredicted"]
    return Table(
        "The classes among the labels that the round learned from, and, as its classifier predicts them, among the "
        "candidates and the picks.",
        heads,
        rows,
    )


def _share(count: int, total: int) -> Cell:
    if not total:
        return Cell(NONE)
    return Cell(str(count), f"{100 * count / total:.0f} %", share=count / total)
