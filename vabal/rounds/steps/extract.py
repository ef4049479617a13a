"""The step extract-features: what the networks say of every image, a shard at a time."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from vabal.images.rows import RowWriter
from vabal.learning import committee, features, finetune_committee, head_committee
from vabal.learning.embeddings import Embedder
from vabal.learning.network import FineTuned, LinearProbe, Network, ResNetClassifier
from vabal.progress import advance, which
from vabal.rounds.context import RoundContext, StageReference, output_of, stage, stage_output
from vabal.rounds.learner import ScoringNetworks
from vabal.rounds.steps.keys import committee_columns_key, features_key
from vabal.rounds.steps.train import load_classifier


def shard_names(context: RoundContext) -> list[str]:
    return list(context.report["order"])


def embed_images(context: RoundContext, shard: str) -> dict[str, str]:
    """What the frozen backbone says of every image of one shard, where the classifier is a probe; made once."""
    if context.embedded is not None and not context.embedded.has(shard):
        rows = context.shards.rows(shard)
        told = of_shard(context, "embed-images", shard)
        context.embedded.embed(shard, lambda batches: reported(batches, rows, told))
    return {"shard": shard}


def extract_features(context: RoundContext, trained: StageReference, shard: str) -> StageReference:
    """Features and logits of every image of one shard, and what the scoring networks say; from disk to disk."""
    produce = partial(_extract_features, context, trained, shard)
    ref = stage(context.stages, features_key(context, trained, shard), produce) | {"shard": shard}
    if "committee" not in trained:
        return ref
    key = committee_columns_key(context, trained["committee"], shard)
    return ref | {"committee": stage(context.stages, key, partial(_committee_columns, context, trained, shard))["key"]}


def _extract_features(context: RoundContext, trained: StageReference, shard: str, folder: Path) -> None:
    ids = context.shards.sample_ids(shard)
    batches = context.inputs.batches(shard, context.params.features.batch_size)
    batches = reported(batches, len(ids), of_shard(context, "extract-features", shard))
    with context.learner.multiplying():
        features.extract(load_classifier(context, trained), batches, len(ids), folder, context.device, ids)


def _committee_columns(context: RoundContext, trained: StageReference, shard: str, folder: Path) -> None:
    """What the scoring networks say of every image of one shard, a file a column."""
    rows, ids, classes = context.shards.rows(shard), context.shards.sample_ids(shard), len(context.classes)
    there = stage_output(context, "train-committee", trained["committee"])
    networks = _load_networks(there, load_classifier(context, trained), context)
    batches = context.inputs.batches(shard, context.params.features.batch_size)
    batches = reported(batches, rows, of_shard(context, "extract-committee", shard))
    with ExitStack() as files:
        writers = {
            name: files.enter_context(
                RowWriter(folder / f"{name}.npy", rows, classes if name.endswith("_C") else None, kind)
            )
            for name, kind in committee.column_types(context.needs).items()
        }
        for said in context.learner.committee_columns(networks, batches, ids):
            for name, values in said.items():
                writers[name].append(values)


def _load_networks(folder: Path, first: Network, context: RoundContext) -> ScoringNetworks:
    if isinstance(first, LinearProbe):
        return head_committee.load(folder, first)
    if isinstance(first, FineTuned):
        return finetune_committee.load(folder, first, context.device)
    return committee.load(folder, first, context.device)


def of_shard(context: RoundContext, stage: str, shard: str) -> str:
    """The stage's name, and which of several shards it works on."""
    names = shard_names(context)
    return which(stage, "shard", names.index(shard) + 1, len(names))


def reported(batches: Iterable[tuple[int, np.ndarray]], rows: int, stage: str) -> Iterator[tuple[int, np.ndarray]]:
    for start, batch in batches:
        yield start, batch
        advance(stage, start + len(batch), rows)


def weights(context: RoundContext, trained: StageReference) -> Path:
    return output_of(context, trained) / "weights.safetensors"


def programs(context: RoundContext, trained: StageReference) -> list[Path]:
    """The backbone as programs, one a size, of which the registered version is made beside its weights."""
    network = load_classifier(context, trained)
    if isinstance(network, ResNetClassifier):
        return []
    sizes = {"sizes": network.config["backbone"]["sizes"]}
    settings = context.learner.params.backbone.model_copy(update=sizes)
    return Embedder(settings, context.device, context.workspace.embeddings, context.shared).programs()
