"""The step extract-features."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from vabal.learning import committee, features
from vabal.progress import advance
from vabal.rounds.context import RoundContext, StageReference, output_of, stage_output
from vabal.rounds.stage_store import stage_key
from vabal.rounds.steps.train import load_classifier

# -- extract-features ---------------------------------------------------------------------------------------------


def shard_names(context: RoundContext) -> list[str]:
    return list(context.shards.names())


def extract_features(context: RoundContext, trained: StageReference, shard: str) -> StageReference:
    """Features and logits of every image of one shard, and what the scoring networks say; from disk to disk."""
    inputs = {"classifier": trained["key"], "shard": context.report["shards"][shard]}
    settings = {"images": context.params.images.model_dump(), "batch_size": context.params.features.batch_size}
    key = stage_key("extract-features", settings, inputs)
    if context.stages.get("extract-features", key) is None:
        rows = context.shards.rows(shard)
        network = load_classifier(context, trained)
        with context.stages.produce("extract-features", key) as folder:
            batches = reported(context.shards.batches(shard, context.params.features.batch_size), rows)
            features.extract(network, batches, rows, folder, context.device)
    ref = {"stage": "extract-features", "key": key, "shard": shard}
    return ref | {"committee": _committee_columns(context, trained, shard)} if "committee" in trained else ref


def _committee_columns(context: RoundContext, trained: StageReference, shard: str) -> str:
    """What the scoring networks say of every image of one shard, a file a column; the key."""
    inputs = {"committee": trained["committee"], "shard": context.report["shards"][shard]}
    settings = {"images": context.params.images.model_dump(), "batch_size": context.params.features.batch_size}
    key = stage_key("extract-committee", settings, inputs)
    if context.stages.get("extract-committee", key) is None:
        rows, ids, classes = context.shards.rows(shard), context.shards.sample_ids(shard), len(context.classes)
        there = stage_output(context, "train-committee", trained["committee"])
        networks = committee.load(there, load_classifier(context, trained), context.device)
        batches = context.shards.batches(shard, context.params.features.batch_size)
        with context.stages.produce("extract-committee", key) as folder, ExitStack() as files:
            writers = {
                name: files.enter_context(
                    features.RowWriter(folder / f"{name}.npy", rows, classes if name.endswith("_C") else None, kind)
                )
                for name, kind in committee.column_types(context.needs).items()
            }
            for start, batch in reported(batches, rows, "extract-committee"):
                said = networks.columns(batch, device=context.device, sample_ids=ids[start : start + len(batch)])
                for name, values in said.items():
                    writers[name].append(values)
    return key


def reported(
    batches: Iterator[tuple[int, np.ndarray]], rows: int, stage: str = "extract-features"
) -> Iterator[tuple[int, np.ndarray]]:
    for start, batch in batches:
        yield start, batch
        advance(stage, start + len(batch), rows)


def weights(context: RoundContext, trained: StageReference) -> Path:
    return output_of(context, trained) / "weights.safetensors"
