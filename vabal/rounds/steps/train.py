"""The step train-classifier: the classifier, and the scoring networks that stand beside it."""

import shutil
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vabal import pools
from vabal.files import canonical_json, write_bytes
from vabal.learning import classifier, committee
from vabal.learning.metrics import Metric
from vabal.learning.network import Network
from vabal.progress import advance, which
from vabal.rounds.context import RoundContext, StageReference, output_of, read_json, run_training, stage, stage_output
from vabal.rounds.learner import TrainingSet
from vabal.rounds.stage_store import StageKey
from vabal.rounds.steps.keys import classifier_key, committee_key, member_key

_METRICS: Final = "training.json"


def train_classifier(context: RoundContext) -> StageReference:
    """Trains the classifier on the labelled pool, and the scoring networks that the strategy needs beside it.

    The classifier is the same for every strategy, and shared: its key knows nothing of the scoring networks.
    """
    labeled = with_places(context, "labeled")
    ref = _classifier(context, labeled)
    if not committee.is_needed(context.needs):
        return ref
    produce = partial(_train_committee, context, ref, labeled)
    return ref | {"committee": stage(context.stages, committee_key(context, ref), produce)["key"]}


def train_first(context: RoundContext) -> StageReference:
    """The classifier alone, for `train_member`."""
    return _classifier(context, with_places(context, "labeled"))


def train_member(context: RoundContext, first: StageReference, name: str) -> StageReference:
    """One of the scoring networks beside the classifier, where they are trained side by side.

    `train_classifier` behind it takes them as they are.
    """
    produce = partial(_train_member, context, first, name)
    return stage(context.stages, member_key(context, first, name), produce)


def _classifier(context: RoundContext, labeled: pd.DataFrame) -> StageReference:
    return stage(context.stages, classifier_key(context, labeled), partial(_train_classifier, context, labeled))


def _train_classifier(context: RoundContext, labeled: pd.DataFrame, folder: Path) -> None:
    known = _training_set(context, labeled)
    epochs = context.learner.epochs(len(labeled))
    network, training = context.learner.classifier(known, len(context.classes))
    collected = run_training("train-classifier", training, epochs)
    classifier.save(network, folder / "weights.safetensors")
    if context.learner.folds:

        def report(metric: Metric) -> None:
            fold = int(metric.name.partition("/")[0].removeprefix("fold"))
            advance(which("cross-fit", "fold", fold + 1, context.learner.folds), metric.step, epochs)

        fitted = context.learner.cross_fit(network, known, report)
        np.savez(folder / "cross_fit.npz", labels=known.labels_L, predicted=fitted.predicted_N, fold=fitted.fold_N)
    _write_metrics(collected, folder)


def _train_committee(context: RoundContext, trained: StageReference, labeled: pd.DataFrame, folder: Path) -> None:
    ready = [member_key(context, trained, name) for name in context.learner.members]
    if ready and all(context.stages.has(key.stage, key.digest) for key in ready):
        _put_together(context, ready, folder)
        return
    first = load_classifier(context, trained)
    networks, training = context.learner.committee(first, _training_set(context, labeled))
    count = 1 + committee.count(context.needs)
    collected = run_training("train-committee", training, context.learner.epochs(len(labeled)), count)
    networks.save(folder)
    _write_metrics(collected, folder)


def _train_member(context: RoundContext, trained: StageReference, name: str, folder: Path) -> None:
    labeled, names = with_places(context, "labeled"), context.learner.members
    first = load_classifier(context, trained)
    network, training = context.learner.committee(first, _training_set(context, labeled), name)
    told = which("train-committee", "network", names.index(name) + 2, len(names) + 1)
    collected = run_training(told, training, context.learner.epochs(len(labeled)))
    network.save(folder)
    _write_metrics(collected, folder)


def _put_together(context: RoundContext, members: list[StageKey], folder: Path) -> None:
    """The files and metrics of networks that were trained by themselves."""
    places = [stage_output(context, key.stage, key.digest) for key in members]
    for path in (path for place in places for path in place.iterdir() if path.name != _METRICS):
        shutil.copyfile(path, folder / path.name)
    measured = [metric for place in places for metric in read_json(place, _METRICS)]
    write_bytes(folder / _METRICS, canonical_json(measured))


def _write_metrics(collected: list[Metric], folder: Path) -> None:
    write_bytes(folder / _METRICS, canonical_json([list(metric) for metric in collected]))


def _training_set(context: RoundContext, labeled: pd.DataFrame) -> TrainingSet:
    labels = np.array([context.classes.index(label) for label in labeled["label"]], dtype=np.int64)
    embedded = context.embedded.embedder.embedded if context.embedded else None
    return TrainingSet(
        context.inputs.gather(labeled), labels, list(labeled["sample_id"]), embedded, pools.groups_of(labeled)
    )


def with_places(context: RoundContext, name: str) -> pd.DataFrame:
    """A pool's rows with shard, row and sha256 of their images, ordered by sample_id; `group`, where there are any."""
    table = pools.read_table(context.view / f"{name}.parquet", pools.SCHEMAS[name])
    filters = pc.field("sample_id").isin(pa.array(table["sample_id"].to_numpy(dtype=object), pa.string()))
    path = context.view / "catalog.parquet"
    columns = ["sample_id", "shard", "row", "sha256", *({"group"} & set(pq.read_schema(path).names))]
    places = pq.read_table(path, columns=columns, filters=filters).to_pandas()
    return table[["sample_id", "label"]].merge(places, on="sample_id").sort_values("sample_id", ignore_index=True)


def load_classifier(context: RoundContext, trained: StageReference) -> Network:
    return classifier.load(output_of(context, trained) / "weights.safetensors", context.device)
