"""What a round works on, and where its stages' outputs are found."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vabal import images, strategies
from vabal.errors import UserError
from vabal.files import Remote, Shared
from vabal.learning.metrics import Metric
from vabal.progress import advance, measured, which
from vabal.rounds.opened import OpenRound
from vabal.rounds.stage_store import LocalStageStore, StageKey, StageStore
from vabal.settings.models import Params
from vabal.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from vabal.learning.embeddings import EmbeddedShards, Embedder
    from vabal.rounds.learner import Learner

NONE, LABELED, CANDIDATE, ASKED, HOLDOUT, REJECTED = range(6)  # the roles of a shard's rows


@dataclass(frozen=True)
class RoundContext:
    """One round at work: the workspace, its settings, what the round was begun with, and where stages go."""

    workspace: Workspace
    params: Params
    round: OpenRound
    stages: StageStore  # the learning stages; on S3 where several machines share them
    intake_key: str
    home: Path | None = None  # where files of the settings are; None: in the workspace

    @property
    def shared(self) -> Shared | None:
        """What machines that have nothing else in common share; None where they have a file system."""
        return self.stages.shared

    @cached_property
    def local(self) -> StageStore:
        """Intake's view of the pools and the selection belong to the workspace, where others can see it."""
        return own_store(self.workspace) if self.shared is None else self.stages

    @cached_property
    def view(self) -> Path:
        """A folder laid out like `data/` with the pools as they are after intake; elsewhere without images."""
        place = self.local.get("intake", self.intake_key)
        if place is None:
            raise UserError(f"the intake of round {self.round.round} is gone from the stage store: run it again")
        return place

    def _of_intake(self, name: str) -> Path:
        """One file of the view, without the others."""
        place = self.local.file("intake", self.intake_key, name)
        if place is None:
            raise UserError(f"the intake of round {self.round.round} is gone from the stage store: run it again")
        return whole(place)

    @cached_property
    def report(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._of_intake("intake.json").read_text(encoding="utf-8"))
        return document

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.report["classes"])

    @cached_property
    def strategy(self) -> strategies.Strategy:
        return strategies.get(self.params.selection.strategy)

    @cached_property
    def learner(self) -> "Learner":
        """What is computed from the stages' outputs."""
        from vabal.rounds.learner import Learner  # noqa: PLC0415 -- torch takes two seconds to import

        return Learner(self.params.below(self.home or self.workspace.root), self.round.round, self.strategy)

    @property
    def needs(self) -> strategies.Needs:
        return self.learner.needs

    @property
    def device(self) -> "torch.device":
        return self.learner.device

    @cached_property
    def shards(self) -> images.DecodedShards:
        settings, shared = self.params.images, self.shared
        files: Path | images.SharedShards = self.view if shared is None else self._shared_shards(shared)
        return images.DecodedShards(
            files,
            self.workspace.decoded,
            settings.size,
            settings.channels,
            bit_depth=settings.bit_depth,
            shared=shared,
        )

    def _shared_shards(self, shared: Shared) -> images.SharedShards:
        own = own_store(self.workspace).get("intake", self.intake_key)  # with images where the intake ran
        sha256s = {name: self.report["shards"][name] for name in self.report["order"]}
        return images.SharedShards(shared, sha256s, self.workspace.shards, own)

    @cached_property
    def embedded(self) -> "EmbeddedShards | None":
        """The embeddings of the pool's images, where the classifier is a probe."""
        return self._by(self.learner.embedder(self.workspace.embeddings, self.shared))

    @cached_property
    def frozen(self) -> "EmbeddedShards | None":
        """The features of the pool's images, where the strategy asks for a frozen network's."""
        return self._by(self.learner.frozen(self.workspace.embeddings, self.shared))

    def _by(self, embedder: "Embedder | None") -> "EmbeddedShards | None":
        from vabal.learning.embeddings import EmbeddedShards  # noqa: PLC0415 -- torch

        return EmbeddedShards(self.shards, embedder, self.params.features.batch_size) if embedder else None

    def forget_embeddings(self, before: float) -> int:
        """Remove what nothing has asked for since that time (seconds since 1970). Returns how many files."""
        from vabal.learning import embeddings  # noqa: PLC0415 -- torch

        return embeddings.forget(self.workspace.embeddings, before)

    @property
    def inputs(self) -> "images.DecodedShards | EmbeddedShards":
        """What the classifier sees of the pool: images, or their embeddings."""
        return self.embedded or self.shards

    def roles(self, shard: str) -> tuple[np.ndarray, np.ndarray]:
        """Role and label index (-1: unknown) of each row of a shard."""
        with np.load(self._of_intake(f"roles-{shard}.npz")) as arrays:
            return arrays["role"], arrays["label"]

    def seed(self, purpose: str) -> int:
        """A seed for one purpose in this round, derived from the setting `seed`."""
        return self.learner.seed(purpose)


# {"stage": ..., "key": ...}: what passes between tasks; "committee" is the key of the scoring networks', where needed.
StageReference = dict[str, str]


def stage(store: StageStore, key: StageKey, produce: Callable[[Path], None]) -> StageReference:
    """The stage's output: looked up, or else produced. `produce` fills the folder that it is given."""
    digest = key.digest
    if not store.has(key.stage, digest):
        with store.produce(key.stage, digest) as folder:
            produce(folder)
    return {"stage": key.stage, "key": digest}


def output_of(context: RoundContext, ref: StageReference) -> Path:
    """The folder of an output, all of it."""
    return stage_output(context, ref["stage"], ref["key"])


def file_of(context: RoundContext, ref: StageReference, name: str) -> Path | Remote:
    """One file of an output: here, or where it lies, for who reads some of its rows."""
    place = context.stages.file(ref["stage"], ref["key"], name)
    if place is None:
        raise UserError(f"stage {ref['stage']} ({ref['key']}) is gone from the stage store: run the round again")
    return place


def path_of(context: RoundContext, ref: StageReference, name: str) -> Path:
    """One file of an output, here, without the others."""
    return whole(file_of(context, ref, name))


def whole(place: Path | Remote) -> Path:
    """The file, brought here where it lies elsewhere."""
    return place if isinstance(place, Path) else place.here()


def stage_output(context: RoundContext, stage: str, key: str) -> Path:
    place = context.stages.get(stage, key)
    if place is None:
        raise UserError(f"stage {stage} ({key}) is gone from the stage store: run the round again")
    return place


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def run_training(stage: str, iterator: Iterator[Metric], epochs: int, networks: int = 1) -> list[Metric]:
    """Runs a training to its end, telling how far it is and what it measures; its metrics.

    Of several `networks` the first is the classifier, and the others are trained here, one after the other: their
    metrics are named `committee/<network>-<name>`.
    """
    collected: list[Metric] = []
    begun: set[str] = set()
    advance(which(stage, "network", min(2, networks), networks), 0, epochs)
    for metric in iterator:
        collected.append(metric)
        begun.add(metric.name.rpartition("-")[0])
        measured(*metric)
        advance(which(stage, "network", len(begun) + 1, networks), min(metric.step, epochs), epochs)
    return collected


def metrics_of(context: RoundContext, ref: StageReference) -> list[Metric]:
    """What a training stage measured, to be logged."""
    places = [output_of(context, ref)]
    if "committee" in ref:
        places.append(stage_output(context, "train-committee", ref["committee"]))
    return [Metric(*item) for place in places for item in read_json(place, "training.json")]


def own_store(workspace: Workspace) -> LocalStageStore:
    """The store below `.vabal/`. The workspace made that folder, so it is ours with or without a mark."""
    folder = workspace.state / "stages"
    return LocalStageStore(folder, workspace.identity, adopt=not folder.is_symlink())
