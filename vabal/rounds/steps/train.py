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


def train_classifier(night: RoundContext) -> StageReference:
    """Trains the classifier on the labelled pool, and the scoring networks that the strategy needs beside it.

    The classifier is the same for every strategy, and shared: its key knows nothing of the scoring networks.
    """
    labeled = with_places(night, "labeled")
    settings = {
        "classifier": night.params.classifier.model_dump(),
        "images": night.params.images.model_dump(),
        "device": night.device.type,
        "threads": night.params.compute.threads,
        "cross_fit": _cross_fit_folds(night),
    }
    seed = night.seed("classifier")
    inputs: dict[str, str | int] = {"labeled": pools.table_digest(labeled, ["sample_id"]), "seed": seed}
    key = stage_key("train-classifier", settings, inputs)
    if night.stages.get("train-classifier", key) is None:
        with night.stages.produce("train-classifier", key) as folder:
            _train_classifier(night, labeled, folder, seed=seed)
    ref = {"stage": "train-classifier", "key": key}
    return ref | {"committee": _committee(night, ref, labeled)} if committee.is_needed(night.needs) else ref


def _cross_fit_folds(night: RoundContext) -> int:
    probabilities = night.params.probabilities
    wanted = night.needs.cross_fit or (night.needs.vae and probabilities.precision_from == "cross_fitted")
    return probabilities.folds if wanted else 0


def _train_classifier(night: RoundContext, labeled: pd.DataFrame, folder: Path, *, seed: int) -> None:
    pixels, labels = _training_set(night, labeled)
    mean, std = recipe.channel_statistics(pixels)
    network = classifier.build(
        night.params.classifier,
        num_classes=len(night.classes),
        image_size=night.params.images.size,
        channels=night.params.images.channels,
        mean=mean,
        std=std,
        seed=seed,
    )
    epochs = night.params.classifier.epochs
    training = classifier.fit(network, pixels, labels, night.params.classifier, seed=seed, device=night.device)
    collected = run_training("train-classifier", training, epochs)
    classifier.save(network, folder / "weights.safetensors")
    if folds := _cross_fit_folds(night):
        fitted = classifier.cross_fit(
            network.config,
            pixels,
            labels,
            list(labeled["sample_id"]),
            night.params.classifier,
            folds=folds,
            seed=seed,
            device=night.device,
            report=lambda metric: advance("cross-fit", metric.step, epochs),
        )
        np.savez(folder / "cross_fit.npz", labels=labels, predicted=fitted.predicted_N, fold=fitted.fold_N)
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def _training_set(night: RoundContext, labeled: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([night.classes.index(label) for label in labeled["label"]], dtype=np.int64)
    return night.shards.gather(labeled), labels


def _committee(night: RoundContext, trained: StageReference, labeled: pd.DataFrame) -> str:
    """Trains the scoring networks that stand beside the classifier; their key."""
    needs = night.needs
    seed = night.seed("classifier")
    settings = {name: getattr(needs, name) for name in ("dropout", "passes", "members", "auxiliary_loss")}
    key = stage_key("train-committee", settings, {"classifier": trained["key"], "seed": seed})
    if night.stages.get("train-committee", key) is None:
        first = load_classifier(night, trained)
        networks = committee.build(needs, first.config, first=first, seed=seed)
        epochs = night.params.classifier.epochs
        with night.stages.produce("train-committee", key) as folder:
            training = networks.fit(*_training_set(night, labeled), night.params.classifier, device=night.device)
            collected = run_training("train-committee", training, epochs)
            networks.save(folder)
            write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))
    return key


def with_places(night: RoundContext, name: str) -> pd.DataFrame:
    """A pool's rows with shard, row and sha256 of their images, ordered by sample_id."""
    table = pools.read_table(night.view / f"{name}.parquet", pools.SCHEMAS[name])
    filters = pc.field("sample_id").isin(pa.array(table["sample_id"].to_numpy(dtype=object), pa.string()))
    columns = ["sample_id", "shard", "row", "sha256"]
    places = pq.read_table(night.view / "catalog.parquet", columns=columns, filters=filters).to_pandas()
    return table[["sample_id", "label"]].merge(places, on="sample_id").sort_values("sample_id", ignore_index=True)


def load_classifier(night: RoundContext, trained: StageReference) -> ResNetClassifier:
    return classifier.load(output_of(night, trained) / "weights.safetensors", night.device)
