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


def shard_names(night: RoundContext) -> list[str]:
    return list(night.shards.names())


def extract_features(night: RoundContext, trained: StageReference, shard: str) -> StageReference:
    """Features and logits of every image of one shard, and what the scoring networks say; from disk to disk."""
    inputs = {"classifier": trained["key"], "shard": night.report["shards"][shard]}
    settings = {"images": night.params.images.model_dump(), "batch_size": night.params.features.batch_size}
    key = stage_key("extract-features", settings, inputs)
    if night.stages.get("extract-features", key) is None:
        rows = night.shards.rows(shard)
        network = load_classifier(night, trained)
        with night.stages.produce("extract-features", key) as folder:
            batches = reported(night.shards.batches(shard, night.params.features.batch_size), rows)
            features.extract(network, batches, rows, folder, night.device)
    ref = {"stage": "extract-features", "key": key, "shard": shard}
    return ref | {"committee": _committee_columns(night, trained, shard)} if "committee" in trained else ref


def _committee_columns(night: RoundContext, trained: StageReference, shard: str) -> str:
    """What the scoring networks say of every image of one shard, a file a column; the key."""
    inputs = {"committee": trained["committee"], "shard": night.report["shards"][shard]}
    settings = {"images": night.params.images.model_dump(), "batch_size": night.params.features.batch_size}
    key = stage_key("extract-committee", settings, inputs)
    if night.stages.get("extract-committee", key) is None:
        rows, ids, classes = night.shards.rows(shard), night.shards.sample_ids(shard), len(night.classes)
        there = stage_output(night, "train-committee", trained["committee"])
        networks = committee.load(there, load_classifier(night, trained), night.device)
        batches = night.shards.batches(shard, night.params.features.batch_size)
        with night.stages.produce("extract-committee", key) as folder, ExitStack() as files:
            writers = {
                name: files.enter_context(
                    features.RowWriter(folder / f"{name}.npy", rows, classes if name.endswith("_C") else None, kind)
                )
                for name, kind in committee.column_types(night.needs).items()
            }
            for start, batch in reported(batches, rows, "extract-committee"):
                said = networks.columns(batch, device=night.device, sample_ids=ids[start : start + len(batch)])
                for name, values in said.items():
                    writers[name].append(values)
    return key


def reported(
    batches: Iterator[tuple[int, np.ndarray]], rows: int, stage: str = "extract-features"
) -> Iterator[tuple[int, np.ndarray]]:
    for start, batch in batches:
        yield start, batch
        advance(stage, start + len(batch), rows)


def weights(night: RoundContext, trained: StageReference) -> Path:
    return output_of(night, trained) / "weights.safetensors"
