"""The step train-classifier."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vabal import pools
from vabal.files import canonical_json, write_bytes
from vabal.learning import classifier, committee, recipe
from vabal.learning.network import ResNetClassifier
from vabal.progress import advance
from vabal.rounds.context import RoundContext, StageReference, output_of, run_training
from vabal.rounds.stage_store import stage_key

# -- train-classifier ---------------------------------------------------------------------------------------------


def train_classifier(context: RoundContext) -> StageReference:
    """Trains the classifier on the labelled pool, and the scoring networks that the strategy needs beside it.

    The classifier is the same for every strategy, and shared: its key knows nothing of the scoring networks.
    """
    labeled = with_places(context, "labeled")
    settings = {
        "classifier": context.params.classifier.model_dump(),
        "images": context.params.images.model_dump(),
        "device": context.device.type,
        "threads": context.params.compute.threads,
        "cross_fit": _cross_fit_folds(context),
    }
    seed = context.seed("classifier")
    inputs: dict[str, str | int] = {"labeled": pools.table_digest(labeled, ["sample_id"]), "seed": seed}
    key = stage_key("train-classifier", settings, inputs)
    if context.stages.get("train-classifier", key) is None:
        with context.stages.produce("train-classifier", key) as folder:
            _train_classifier(context, labeled, folder, seed=seed)
    ref = {"stage": "train-classifier", "key": key}
    return ref | {"committee": _committee(context, ref, labeled)} if committee.is_needed(context.needs) else ref


def _cross_fit_folds(context: RoundContext) -> int:
    probabilities = context.params.probabilities
    wanted = context.needs.cross_fit or (context.needs.vae and probabilities.precision_from == "cross_fitted")
    return probabilities.folds if wanted else 0


def _train_classifier(context: RoundContext, labeled: pd.DataFrame, folder: Path, *, seed: int) -> None:
    pixels, labels = _training_set(context, labeled)
    mean, std = recipe.channel_statistics(pixels)
    network = classifier.build(
        context.params.classifier,
        num_classes=len(context.classes),
        image_size=context.params.images.size,
        channels=context.params.images.channels,
        mean=mean,
        std=std,
        seed=seed,
    )
    epochs = context.params.classifier.epochs
    training = classifier.fit(network, pixels, labels, context.params.classifier, seed=seed, device=context.device)
    collected = run_training("train-classifier", training, epochs)
    classifier.save(network, folder / "weights.safetensors")
    if folds := _cross_fit_folds(context):
        fitted = classifier.cross_fit(
            network.config,
            pixels,
            labels,
            list(labeled["sample_id"]),
            context.params.classifier,
            folds=folds,
            seed=seed,
            device=context.device,
            report=lambda metric: advance("cross-fit", metric.step, epochs),
        )
        np.savez(folder / "cross_fit.npz", labels=labels, predicted=fitted.predicted_N, fold=fitted.fold_N)
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def _training_set(context: RoundContext, labeled: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([context.classes.index(label) for label in labeled["label"]], dtype=np.int64)
    return context.shards.gather(labeled), labels


def _committee(context: RoundContext, trained: StageReference, labeled: pd.DataFrame) -> str:
    """Trains the scoring networks that stand beside the classifier; their key."""
    needs = context.needs
    seed = context.seed("classifier")
    settings = {name: getattr(needs, name) for name in ("dropout", "passes", "members", "auxiliary_loss")}
    key = stage_key("train-committee", settings, {"classifier": trained["key"], "seed": seed})
    if context.stages.get("train-committee", key) is None:
        first = load_classifier(context, trained)
        networks = committee.build(needs, first.config, first=first, seed=seed)
        epochs = context.params.classifier.epochs
        with context.stages.produce("train-committee", key) as folder:
            training = networks.fit(*_training_set(context, labeled), context.params.classifier, device=context.device)
            collected = run_training("train-committee", training, epochs)
            networks.save(folder)
            write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))
    return key


def with_places(context: RoundContext, name: str) -> pd.DataFrame:
    """A pool's rows with shard, row and sha256 of their images, ordered by sample_id."""
    table = pools.read_table(context.view / f"{name}.parquet", pools.SCHEMAS[name])
    filters = pc.field("sample_id").isin(pa.array(table["sample_id"].to_numpy(dtype=object), pa.string()))
    columns = ["sample_id", "shard", "row", "sha256"]
    places = pq.read_table(context.view / "catalog.parquet", columns=columns, filters=filters).to_pandas()
    return table[["sample_id", "label"]].merge(places, on="sample_id").sort_values("sample_id", ignore_index=True)


def load_classifier(context: RoundContext, trained: StageReference) -> ResNetClassifier:
    return classifier.load(output_of(context, trained) / "weights.safetensors", context.device)
