"""The step evaluate: the classifier on the holdout."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vabal.files import canonical_json, write_bytes
from vabal.learning import classifier, metrics
from vabal.learning.metrics import Metric
from vabal.rounds import figures, tables
from vabal.rounds.context import RoundContext, StageReference, output_of, read_json, stage
from vabal.rounds.steps.keys import evaluation_key
from vabal.rounds.steps.train import load_classifier, with_places


def evaluate(context: RoundContext, trained: StageReference) -> StageReference:
    """Predicts the labelled part of the holdout and measures; figures beside it."""
    holdout = with_places(context, "holdout")
    holdout = holdout[holdout["label"].notna()].reset_index(drop=True)
    produce = partial(_evaluate, context, trained, holdout)
    return stage(context.stages, evaluation_key(context, trained, holdout), produce)


def _evaluate(context: RoundContext, trained: StageReference, holdout: pd.DataFrame, folder: Path) -> None:
    network = load_classifier(context, trained)
    step = context.params.features.batch_size
    batches = (context.inputs.gather(holdout.iloc[start : start + step]) for start in range(0, len(holdout), step))
    with context.learner.multiplying():
        probabilities_N_C = classifier.predict(network, batches, context.device)
    predicted_N = probabilities_N_C.argmax(axis=1)
    labels_N = np.array([context.classes.index(label) for label in holdout["label"]], dtype=np.int64)
    measured = metrics.classification_metrics(labels_N, probabilities_N_C, context.classes)
    counts_C_C = metrics.confusion_matrix(labels_N, predicted_N, len(context.classes))
    table = pd.DataFrame(
        {
            "sample_id": holdout["sample_id"],
            "label": holdout["label"],
            "predicted_class": np.asarray(context.classes, dtype=object)[predicted_N],
            "probabilities": list(probabilities_N_C),
        }
    )
    tables.write_predictions(table, folder / "holdout_predictions.parquet")
    write_bytes(folder / "metrics.json", canonical_json(measured))
    if len(holdout):
        figures.confusion_figure(counts_C_C, context.classes, folder / "confusion.png")
        figures.recall_figure(counts_C_C, context.classes, folder / "recall.png")


def evaluation_folder(context: RoundContext, evaluated: StageReference) -> Path:
    return output_of(context, evaluated)


def evaluation(context: RoundContext, evaluated: StageReference) -> list[Metric]:
    """What was measured on the holdout, as `holdout/<name>` at the round's number."""
    measured: dict[str, float] = read_json(output_of(context, evaluated), "metrics.json")
    return [Metric(f"holdout/{name}", value, context.round.round) for name, value in measured.items()]


def evaluation_files(context: RoundContext, evaluated: StageReference) -> list[Path]:
    """Predictions and figures, to be kept beside the round's run."""
    return sorted(path for path in output_of(context, evaluated).iterdir() if path.name != "metrics.json")
