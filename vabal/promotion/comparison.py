"""The challenger and the champion on one holdout, as the gate asks for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from vabal import rounds
from vabal.errors import BRING_BACK, Unavailable, UserError
from vabal.files import file_sha256
from vabal.pools import TABLE_FILES, read_classes
from vabal.promotion.decision import Decision, decide, holdout_digest
from vabal.promotion.pairs import CannotJudge
from vabal.promotion.record import ChampionPeriod, Entry
from vabal.promotion.registered import recorded_model
from vabal.promotion.registry import CHALLENGER, Registry, Version
from vabal.rounds import tables
from vabal.settings.models import PromotionSettings

PREDICTIONS = tables.PREDICTIONS_FILE


# -- the comparison -----------------------------------------------------------------------------------------------


def challenger_version(registry: Registry, version: str | None) -> Version:
    if version is not None:
        named = registry.version(version)
        if what := named.tags.get("vabal.status"):
            raise UserError(f"version {version} does not count: its round was not published here ({what})")
        return named
    found = registry.version_by_alias(CHALLENGER)
    if found is None:
        raise UserError("no version is challenger yet: run a round (`vabal round`), or name one with --version")
    return found


@dataclass(frozen=True)
class Holdout:
    """The holdout's labels as they are today, by sample."""

    classes: list[str]
    labels: dict[str, str]

    @staticmethod
    def read(data: Path) -> "Holdout":
        """Raises UserError if the tables are not those that the newest round published."""
        published = rounds.head(data).tables
        for name in (TABLE_FILES["holdout"], TABLE_FILES["classes"], TABLE_FILES["class_events"]):
            if name in published and file_sha256(data / name) != published[name]:
                raise UserError(f"{data / name} was changed: {BRING_BACK}")
        table = pd.read_parquet(data / TABLE_FILES["holdout"], columns=["sample_id", "label"]).dropna()
        return Holdout(list(read_classes(data).names), dict(zip(table["sample_id"], table["label"], strict=True)))


def decide_on_holdout(
    data: Path,
    registry: Registry,
    pair: tuple[Version, ChampionPeriod | None],
    settings: PromotionSettings,
    entries: tuple[Entry, ...],
    rivals: Mapping[str, pd.DataFrame],
) -> Decision:
    challenger, present = pair
    holdout = Holdout.read(data)
    return decide(
        _predictions(data, challenger),
        _predictions(data, registry.version(present.version)) if present else None,
        settings,
        classes=holdout.classes,
        labels=holdout.labels,
        use=_use(data, entries, (challenger.version, present.version if present else None), holdout.labels),
        rivals=rivals,
        later=_later_classes(data, {"challenger": challenger.round, "champion": present.round if present else None}),
    )


def _later_classes(data: Path, rounds_: Mapping[str, int | None]) -> dict[str, str]:
    """Of each class that was added after a version's round: which version cannot answer it."""
    now, found = read_classes(data), dict[str, str]()
    for who, number in rounds_.items():
        known = {now.meaning[name] for name in read_classes(data, number).names}
        found |= {name: f"the {who} is older than the class" for name in now.names if name not in known}
    return found


def _use(data: Path, entries: tuple[Entry, ...], pair: tuple[str, str | None], labels: Mapping[str, str]) -> int:
    """Which use of the holdout this comparison is, from 1: every decision that the record has of it was one.

    A comparison that was made before, of the same versions under the same labels, keeps its number. A decision counts
    as long as half of today's labelled holdout was there for it: a holdout that grows is not a new one each night.
    """
    decided = [entry for entry in entries if entry.decision is not None]
    same = {number: _saw_half(data, number, labels) for number in {entry.round for entry in decided}}
    asked = [_comparison(entry) for entry in decided if same[entry.round]]
    own = (*pair, holdout_digest(labels))
    known = list(dict.fromkeys(asked))
    return (known.index(own) if own in known else len(known)) + 1


def _comparison(entry: Entry) -> tuple[str, str | None, str | None]:
    """The versions and the labels; entries of earlier versions of this program do not name the labels."""
    return entry.version, entry.previous_version, (entry.decision or {}).get("holdout")


def _saw_half(data: Path, number: int, labels: Mapping[str, str]) -> bool:
    path = rounds.round_folder(data, number) / PREDICTIONS
    if not path.is_file():
        return True
    seen = pd.read_parquet(path, columns=["sample_id"])["sample_id"]
    return 2 * int(seen.isin(labels.keys()).sum()) >= len(labels)


def candidate_versions(
    data: Path, registry: Registry, withdrawn: set[str]
) -> tuple[dict[str, pd.DataFrame], tuple[str, ...]]:
    """The holdout predictions of every version that a round made, by version, oldest first; a line for each left out.

    Raises UserError if there are versions, and none can be compared.
    """
    tables: dict[str, pd.DataFrame] = {}
    left_out: list[str] = []
    for number in rounds.manifest_numbers(data):
        made = rounds.read_manifest(data, number).model
        version = made.version if made else None
        if version is None or version in withdrawn:
            continue
        try:
            tables[version] = _predictions(data, registry.version(version))
        except Unavailable:
            raise
        except UserError as error:
            left_out.append(f"version {version} (round {number}) is no candidate: {error}")
    if left_out and not tables:
        raise UserError(left_out[-1])
    return tables, tuple(left_out)


def _predictions(data: Path, version: Version) -> pd.DataFrame:
    """What the version predicted for the holdout, as its round recorded it.

    The registry says which round; that round's manifest must name the same weights, and the file must be the one
    recorded there. Classes have today's names: one that was merged is that which it became.
    """
    recorded_model(data, version)
    manifest = rounds.read_manifest(data, version.round)
    path = rounds.round_folder(data, version.round) / PREDICTIONS
    if PREDICTIONS not in manifest.files:
        raise CannotJudge(f"round {version.round} recorded no predictions for the holdout: run another round")
    if not path.is_file() or file_sha256(path) != manifest.files[PREDICTIONS]:
        raise UserError(f"{path} is missing or was changed: {BRING_BACK}")
    table, now = pd.read_parquet(path, columns=["sample_id", "label", "predicted_class"]), read_classes(data).meaning
    return table.assign(
        **{name: table[name].map(lambda old: now.get(old, old)) for name in ("label", "predicted_class")}
    )
