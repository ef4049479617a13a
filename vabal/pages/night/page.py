"""One round's page, put together from its sections. Equal records, equal bytes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vabal import pools
from vabal.audit.control import arms
from vabal.audit.drift import drifts
from vabal.errors import UserError
from vabal.files import write_bytes
from vabal.labels.agreement import agreement
from vabal.pages.blocks import Block, Commands, Section, Text
from vabal.pages.headline import counted
from vabal.pages.night import again, changes, control, gallery, judged, people, reasons
from vabal.pages.night.looks import NONE, Looks, looks
from vabal.pages.night.record import Night, read
from vabal.pages.pictures import Picture, pictures
from vabal.pages.rendering import render
from vabal.pages.tables import Cell, Row, Table
from vabal.settings.models import Params
from vabal.settings.params import recorded
from vabal.workspace import Workspace

Seconds = Mapping[str, float]
_MADE = (
    "Made from the record, but for the seconds of steps, which are Prefect's. The first of these commands makes it "
    "again, the second checks the record, the third brings the round's pools back."
)


def write(place: Workspace, number: int, seconds: Seconds | None = None) -> Path:
    """Write the page of a published round; the file's path.

    `seconds` are those of the round's steps by name, where somebody knows them: the record tells the whole alone.
    Raises UserError if there is no such round, or its record is damaged; ModuleNotFoundError without matplotlib.
    """
    path = place.report(number)
    content = page(place, number, seconds).encode()
    path.parent.mkdir(exist_ok=True)
    ignored = path.parent / ".gitignore"
    if not ignored.exists():
        write_bytes(ignored, b"*\n")  # pages are made again from the record at any time
    write_bytes(path, content)
    return path


def page(place: Workspace, number: int, seconds: Seconds | None = None) -> str:
    """The page's HTML."""
    made = _Page(place, read(place.data, number), seconds)
    return render(
        "night.html.j2",
        script="night.js",
        title=made.title(),
        headline=made.headline(),
        notes=[*made.night.lacking, *made.notes],
        about=made.about(),
        sections=made.sections(),
    )


class _Page:
    def __init__(self, place: Workspace, night: Night, seconds: Seconds | None) -> None:
        self.place, self.night, self.seconds = place, night, seconds
        self.notes: list[str] = []
        self.params = self._params()
        self.label_of: dict[str, str] = {str(key): str(value) for key, value in night.pools.labeled.items()}
        counts = pd.Series(self.label_of, dtype=object).value_counts()
        self.labels = {name: int(counts.get(name, 0)) for name in night.classes}
        self.looks = self._looks()
        self.came, self.duel, self.curve = changes.came(night), judged.duel(night), judged.curve(night)
        self.asked = again.asked(night)
        self.pictures = self._pictures()

    def _params(self) -> Params:
        try:
            return recorded(self.night.manifest.settings)
        except UserError:
            self.notes.append(
                "The settings of this round, of an earlier version, are not known here: today's stand in."
            )
            return self.place.params()

    def _rows(self, samples: Any) -> pd.DataFrame:
        catalog = self.night.pools.catalog
        return catalog.loc[[sample for sample in samples if sample in catalog.index]]

    def _looks(self) -> Looks:
        shown = self.night.picks["sample_id"].iloc[: gallery.MOST_SHOWN]
        try:
            return looks(self.place, self.params, self._rows(shown), self._rows(self.label_of))
        except UserError as error:
            self.notes.append(f"Pictures were not compared: {error}.")
            return NONE

    def _pictures(self) -> dict[str, Picture]:
        uses: dict[str, int] = {}
        beside = (nearest.sample for nearest in self.looks.labeled.values())
        picks = self.night.picks["sample_id"].iloc[: gallery.MOST_SHOWN]
        repeated = self.asked["sample_id"].iloc[: again.MOST_SHOWN]
        for sample in (*picks, *beside, *repeated, *changes.shown(self.came), *judged.samples(self.duel)):
            uses[sample] = uses.get(sample, 0) + 1
        return pictures(self.place.data, self._rows(uses), uses, self.params.images.bit_depth)

    # -- the head -------------------------------------------------------------------------------------------------

    def title(self) -> str:
        name = self.params.workspace.name
        return f"Round {self.night.number}" + (f" of {name}" if name != "default" else "")

    def headline(self) -> str:
        manifest = self.night.manifest
        drawn = int(self.night.picks["probability"].notna().sum())
        asked = f"{counted(len(self.night.picks) - drawn, 'image')} picked by {manifest.strategy}"
        asked += f" and {drawn} drawn uniformly beside them" if drawn else ""
        asked += f", and {len(self.asked)} asked about again" if len(self.asked) else ""
        here = [point for point in self.curve if point.round == self.night.number]
        if not here:
            return f"{asked}. Nothing was measured: the holdout has no labels, or no predictions of it are recorded."
        found = here[0].balanced
        interval = f"95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}"
        return (
            f"{asked}. The classifier that learned from {counted(manifest.counts['labeled'], 'label')} reaches "
            f"{100 * found.value:.1f} % balanced accuracy ({interval}) on {counted(here[0].images, 'holdout image')}."
        )

    def about(self) -> dict[str, Any]:
        manifest = self.night.manifest
        counts = {name.replace("_", " "): value for name, value in sorted(manifest.counts.items())}
        model = manifest.model
        about: dict[str, Any] = {
            "pools": counts,
            "learner": self.params.classifier.learner,
            "strategy": manifest.strategy,
            "model version": model.version if model else None,
            "began, ended": [manifest.times.started, manifest.times.finished] if manifest.times else None,
            "code": manifest.code,
            "manifest": manifest.digest,
        }
        return {name: value for name, value in about.items() if value is not None}

    # -- the sections ---------------------------------------------------------------------------------------------

    def sections(self) -> list[Section]:
        """One without blocks is left out: a section whose figures a round lacks has no heading either."""
        makers: list[tuple[str, str, Callable[[], list[Block]]]] = [
            ("picks", "What is asked about, and why", self._gallery),
            ("again", "What is asked about again", self._again),
            ("changes", "What changed", self._changes),
            ("people", "How far people agree", self._people),
            ("curve", "Learning curve of the real rounds", self._curve),
            ("control", "What the control arm tells", self._control),
            ("drift", "Are the new images like those before?", self._drift),
            ("champion", "Champion and challenger", self._champion),
            ("seconds", "Seconds by step", self._seconds),
            ("method", "How this page was made", self._method),
        ]
        made = [Section(anchor, heading, make()) for anchor, heading, make in makers]
        return [section for section in made if section.blocks]

    def _gallery(self) -> list[Block]:
        known = gallery.Known(self.pictures, self.looks, self.labels, self.label_of, self._answers())
        return gallery.blocks(self.night, known)

    def _answers(self) -> dict[str, str | None]:
        """What is known of the picks by now, in later rounds too."""
        events = pools.read_one(self.place.data, "label_events")
        picked = events[events["sample_id"].isin(self.night.picks["sample_id"])]
        last = pools.named(pools.standing(picked), pools.read_classes(self.place.data))
        pairs = zip(last["sample_id"], last["label"], strict=True)
        return {str(sample): None if pd.isna(label) else str(label) for sample, label in pairs}

    def _changes(self) -> list[Block]:
        return changes.blocks(self.night, self.came, self.labels, self.pictures)

    def _again(self) -> list[Block]:
        return again.blocks(self.night, self.asked, self.pictures)

    def _people(self) -> list[Block]:
        return people.blocks(agreement(self.night.pools.events))

    def _curve(self) -> list[Block]:
        return judged.curve_blocks(self.curve, self.params.selection.budget)

    def _control(self) -> list[Block]:
        return control.blocks(arms(self.place.data, self.night.number))

    def _drift(self) -> list[Block]:
        return control.drift_blocks(drifts(self.place.data, self.night.number))

    def _champion(self) -> list[Block]:
        return judged.duel_blocks(self.night, self.duel, self.pictures)

    def _seconds(self) -> list[Block]:
        times = self.night.manifest.times
        whole = []
        if times:
            took = (pd.Timestamp(times.finished) - pd.Timestamp(times.started)).total_seconds()
            whole = [f"From the beginning to publication the round took {took:.0f} s."]
        if not self.seconds:
            said = "The seconds of its steps are Prefect's, which was not asked or does not know them any more."
            return [Text([*whole, said])] if whole else []
        longest = max(self.seconds.values()) or 1.0
        rows = [Row(name, [Cell(f"{value:.1f}", share=value / longest)]) for name, value in self.seconds.items()]
        table = Table("Seconds of each step in the run that published the round.", ["step", "seconds"], rows)
        return [Text(whole), table] if whole else [table]

    def _method(self) -> list[Block]:
        number = self.night.number
        return [
            Text([_MADE]),
            Commands([f"vabal report {number}", "vabal audit --verify", f"vabal checkout {number}"]),
            Text([*reasons.rules(), judged.HOW], listed=True),
        ]
