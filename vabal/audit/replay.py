"""A past round computed again, from its pinned pools, settings and seed: does the same come out?

The same packages on the same kind of machine give the same bits. Elsewhere the last bits of sums differ, and training
carries them on; then picks are compared by overlap and scores by the correlation of their ranks.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pyarrow.parquet as pq

from vabal import pools, rounds
from vabal.audit import chain, replayed
from vabal.audit import selections as audit_selections
from vabal.audit.enough import verdict
from vabal.errors import UserError
from vabal.files import file_sha256
from vabal.pools import Pools
from vabal.rounds import Manifest, OpenRound, record, round_folder, steps, tables
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.stage_store import code_version
from vabal.rounds.steps.plan import learn
from vabal.settings import params
from vabal.settings.models import Params
from vabal.workspace import Workspace


@dataclass(frozen=True)
class ReplayResult:
    """What came out, beside what the round recorded."""

    round: int
    versions: tuple[str, ...]  # of code and libraries, where the installed ones are others than the recorded
    same_weights: bool
    same_predictions: bool
    candidates: int
    same_scores: bool
    largest_difference: float
    rank_correlation: float
    picks: int
    picks_in_common: int
    same_picks: bool
    again: int  # images that it asked about again
    again_in_common: int
    same_again: bool  # reasons and order too
    other_files: tuple[str, ...]  # of the rest of its folder, those whose bytes are others

    @property
    def identical(self) -> bool:
        """Whether weights, predictions, scores, picks and what else the round recorded are the same, bit for bit."""
        same = (self.same_weights, self.same_predictions, self.same_scores, self.same_picks, self.same_again)
        return all(same) and not self.other_files

    def lines(self) -> list[str]:
        """For people; another version first, for it may be why."""
        scores = "the same, bit for bit"
        if not self.same_scores:
            scores = f"rank correlation {self.rank_correlation:.4f}, largest difference {self.largest_difference:.3g}"
        picks = "the same, in the same order"
        if not self.same_picks:
            picks = f"{self.picks_in_common} of {self.picks} the same"
        again = "the same, in the same order, for the same reasons"
        if not self.same_again:
            again = f"{self.again_in_common} of them the same"
        return [
            *(f"another version: {line}" for line in self.versions),
            f"weights of the classifier: {'the same bytes' if self.same_weights else 'other bytes'}",
            f"predictions for the holdout: {'the same bytes' if self.same_predictions else 'others'}",
            f"scores of {self.candidates} candidates: {scores}",
            f"{self.picks} picks: {picks}",
            *([f"{self.again} asked about again: {again}"] if self.again or not self.same_again else []),
            *(f"{name}: other bytes" for name in self.other_files),
            f"round {self.round} again: " + ("identical" if self.identical else "not identical"),
        ]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"identical": self.identical}


def replay(workspace: Workspace, round_number: int, home: Path | None = None) -> ReplayResult:
    """Compute the round again in `workspace`, a scratch one whose `data/` is as that round left it, and compare.

    Files that the settings name, and that git did not bring along, are looked for in `home`.

    Raises UserError for round 0, which computed nothing, or where its pools cannot be made again from the record.
    """
    if round_number == 0:
        raise UserError("round 0 computed nothing: `vabal init` with the same arguments makes it again")
    manifest = rounds.read_manifest(workspace.data, round_number)
    context = _context(workspace, manifest, _taken_in(workspace.data, round_number), home)
    needs, left = context.needs, context.report["candidates"] > 0
    refs = learn(
        steps,
        context,
        steps.shard_names(context),
        needs_vae=needs.vae and left,
        needs_class_terms=needs.class_terms and left,
    )
    recorded = round_folder(workspace.data, round_number)
    made = steps.selection_folder(context, refs["selected"])
    scores = pd.concat([_scores(made).rename("made"), _scores(recorded).rename("recorded")], axis=1)
    difference = (scores["made"] - scores["recorded"]).abs()
    picks, before = (
        list(tables.read_selection(place / tables.SELECTION_FILE)["sample_id"]) for place in (made, recorded)
    )
    again, asked = steps.asked_again(context, refs["selected"]), _asked_again(workspace.data, round_number)
    predictions = tables.PREDICTIONS_FILE
    recorded_sha256 = manifest.model.sha256 if manifest.model else None
    return ReplayResult(
        round=round_number,
        versions=tuple(_other_versions(manifest, context.params)),
        same_weights=file_sha256(steps.weights(context, refs["trained"])) == recorded_sha256,
        same_predictions=_same_file(
            steps.evaluation_folder(context, refs["evaluated"]) / predictions, recorded / predictions
        ),
        candidates=len(scores),
        same_scores=bool((difference == 0).all()),
        largest_difference=float(difference.max()) if len(scores) else 0.0,
        rank_correlation=_correlation(scores),
        picks=len(before),
        picks_in_common=len(set(picks) & set(before)),
        same_picks=picks == before,
        again=len(asked),
        again_in_common=len(set(again["sample_id"]) & set(asked["sample_id"])),
        same_again=again.to_numpy().tolist() == asked.to_numpy().tolist(),
        other_files=tuple(
            name
            for name, digest in sorted(manifest.files.items())
            if name not in _COMPARED and not ((made / name).is_file() and file_sha256(made / name) == digest)
        ),
    )


_COMPARED: Final = (tables.SELECTION_FILE, tables.CANDIDATES_FILE, tables.PREDICTIONS_FILE)  # by what they say


def _asked_again(data: Path, round_number: int) -> pd.DataFrame:
    """Sample and reason of each image that the round asked about again, in its order."""
    table = pools.read_one(data, "asked_again")
    return table.loc[table["round"] == round_number, ["sample_id", "reason"]]


def _taken_in(data: Path, round_number: int) -> Pools:
    """The pools as the round's training saw them: made again from images, label events and picks, then compared."""
    records, findings = chain.read_records(data)
    current, unread = replayed.read_pools(data, records)
    selections, more = audit_selections.read_selections(data, records)
    problems = [*findings, *unread, *more]
    if current is None or not records or records[-1].round != round_number:
        what = (
            f"{problems[0].file}: {problems[0].what}" if problems else f"{data} is not as round {round_number} left it"
        )
        raise UserError(f"round {round_number} cannot be made again: {what}")
    *_, last = replayed.replay(current, records, selections)
    if pools.digests(last.after) != records[-1].pools_after:
        raise UserError(f"round {round_number} cannot be made again: its pools do not follow from the record")
    return last.taken_in


def _context(workspace: Workspace, manifest: Manifest, taken_in: Pools, home: Path | None) -> RoundContext:
    settings = params.recorded(manifest.settings)
    begun = OpenRound(manifest.round, str(manifest.parent), (), manifest.times.started if manifest.times else "")
    found = verdict(workspace.data, settings, manifest.round)
    key = steps.intake_again(workspace, begun, taken_in, asks=found is None or not found.reached)
    weights = settings.backbone.below(workspace.root).file
    brought = weights is not None and weights.is_file()
    return RoundContext(workspace, settings, begun, own_store(workspace), key, None if brought else home)


def _scores(folder: Path) -> "pd.Series[float]":
    table = pq.ParquetFile(folder / tables.CANDIDATES_FILE).read(columns=["sample_id", "score"])
    scores: pd.Series[float] = table.to_pandas().set_index("sample_id")["score"]
    return scores


def _correlation(scores: pd.DataFrame) -> float:
    """Spearman's, of the scores that both have; 1 where there is nothing to order."""
    ranks = scores.dropna().rank()
    if len(ranks) < 2 or (ranks.nunique() == 1).any():
        return 1.0
    return float(ranks.corr().to_numpy()[0, 1])


def _same_file(one: Path, other: Path) -> bool:
    return one.is_file() == other.is_file() and (not one.is_file() or file_sha256(one) == file_sha256(other))


def _other_versions(manifest: Manifest, settings: Params) -> list[str]:
    recorded = {"code": manifest.code, **(manifest.environment or {})}
    here: dict[str, Any] = {"code": code_version(), **record.environment(settings)}
    return [
        f"{name} is {here[name]} here, the round had {value}"
        for name, value in recorded.items()
        if name in here and here[name] != value
    ]
