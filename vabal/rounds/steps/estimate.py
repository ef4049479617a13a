"""The steps train-vae and estimate-probabilities."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vabal import probabilities, vae
from vabal.files import Remote, canonical_json, write_bytes
from vabal.images.rows import RowReader, RowWriter, read_rows, row_batches, shape_of
from vabal.learning import features
from vabal.rounds.context import (
    ASKED,
    CANDIDATE,
    LABELED,
    REJECTED,
    RoundContext,
    StageReference,
    file_of,
    output_of,
    path_of,
    read_json,
    run_training,
    stage,
)
from vabal.rounds.learner import CHUNK_ROWS
from vabal.rounds.steps.extract import of_shard, reported
from vabal.rounds.steps.keys import class_terms_key, likelihood_key, vae_key

POOL_ROLES = (CANDIDATE, ASKED, REJECTED)  # P_U: everything that is neither labelled nor held out
LOG_LIKELIHOOD = "log_likelihood.npy"
VAE_CLASS = "vae_class.npy"

# -- train-vae ----------------------------------------------------------------------------------------------------


def train_vae(context: RoundContext, extracted: Sequence[StageReference]) -> StageReference:
    """Trains the VAE on this round's unlabelled pool, told what the classifier predicts there."""
    return stage(context.stages, vae_key(context, extracted), partial(_train_vae, context, extracted))


def _train_vae(context: RoundContext, extracted: Sequence[StageReference], folder: Path) -> None:
    shards, predicted = [], []
    with ExitStack() as files:
        for ref, rows in _drawn(context, extracted):
            shards.append(_readable(file_of(context, ref, features.FEATURES), rows, files))
            predicted.append(_predicted(file_of(context, ref, features.LOGITS), rows))
        pool, dims = vae.PoolFeatures(shards), load_feature_dims(context, extracted)
        network, training = context.learner.vae(pool, np.concatenate(predicted), dims, len(context.classes))
        collected = run_training("train-vae", training, vae.epochs_of(len(pool), context.params.vae))
    vae.save(network, folder / "vae.safetensors")
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def _drawn(
    context: RoundContext, extracted: Sequence[StageReference]
) -> Iterator[tuple[StageReference, NDArray[np.int64]]]:
    """The rows of each shard that stand for the unlabelled pool: all, or `vae.rows` of them, drawn uniformly."""
    rows_of = [np.flatnonzero(np.isin(context.roles(ref["shard"])[0], POOL_ROLES)) for ref in extracted]
    chosen = context.learner.stand_in(sum(map(len, rows_of)))
    first = 0
    for ref, rows in zip(extracted, rows_of, strict=True):
        kept = rows[chosen[first : first + len(rows)]]
        first += len(rows)
        if len(kept):
            yield ref, kept


def _readable(
    place: Path | Remote, rows: NDArray[np.int64], files: ExitStack
) -> tuple[Callable[[NDArray[np.int64]], NDArray[Any]], NDArray[np.int64]]:
    """A function that reads rows, and those rows: from a file, or from memory where a few of them lay elsewhere."""
    if isinstance(place, Path):
        return files.enter_context(RowReader(place)), rows
    held = read_rows(place, rows)
    return held.__getitem__, np.arange(len(rows))


def _predicted(place: Path | Remote, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the classifier predicts of these rows of a file of logits, a chunk at a time."""
    with RowReader(place) as read:
        parts = [read(rows[start : start + CHUNK_ROWS]).argmax(axis=1) for start in range(0, len(rows), CHUNK_ROWS)]
    return np.concatenate(parts)


def load_feature_dims(context: RoundContext, extracted: Sequence[StageReference]) -> tuple[int, ...]:
    """How many features each of the classifier's stages, or each layer that a probe sees, has."""
    dims = tuple(json.loads(path_of(context, extracted[0], features.DIMS).read_bytes()))
    found = shape_of(file_of(context, extracted[0], features.FEATURES))[1]
    if sum(dims) != found:
        raise ValueError(f"{found} features, expected {sum(dims)}")
    return dims


def load_vae(context: RoundContext, encoded: StageReference) -> vae.FeatureVAE:
    return vae.load(output_of(context, encoded) / "vae.safetensors", context.device)


# -- estimate-probabilities ---------------------------------------------------------------------------------------


def estimate_class_terms(
    context: RoundContext, trained: StageReference, extracted: Sequence[StageReference], encoded: StageReference | None
) -> StageReference:
    """Prior and precision of every class (Eqs. 12 and 11); without a VAE, as they are counted without one."""
    produce = partial(_estimate_class_terms, context, trained, extracted, encoded)
    return stage(context.stages, class_terms_key(context, trained, extracted, encoded), produce)


def _estimate_class_terms(
    context: RoundContext,
    trained: StageReference,
    extracted: Sequence[StageReference],
    encoded: StageReference | None,
    folder: Path,
) -> None:
    cross_fitted = _cross_fitted(context, trained)
    if encoded is None:
        labels = np.concatenate([_labels(context, ref)[1] for ref in extracted])
        terms = context.learner.counted_terms(labels, len(context.classes), cross_fitted)
    else:
        terms = context.learner.class_terms(
            load_vae(context, encoded),
            labeled_rows(context, extracted, features.FEATURES),
            _unlabeled_features(context, extracted),
            cross_fitted,
        )
    write_bytes(folder / "class_terms.json", canonical_json(terms.to_json()))


def labeled_rows(
    context: RoundContext, extracted: Sequence[StageReference], file: str
) -> tuple[np.ndarray, np.ndarray]:
    """What `file` holds of the labelled samples, and their labels, in the shards' order."""
    found, known = [], []
    for ref in extracted:
        rows, labels = _labels(context, ref)
        found.append(read_rows(file_of(context, ref, file), rows))
        known.append(labels)
    return np.concatenate(found), np.concatenate(known)


def _labels(context: RoundContext, extracted: StageReference) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a shard are labelled, and their labels."""
    role, label = context.roles(extracted["shard"])
    rows = np.flatnonzero(role == LABELED)
    return rows, label[rows]


def _unlabeled_features(context: RoundContext, extracted: Sequence[StageReference]) -> Iterator[np.ndarray]:
    for ref, rows in _drawn(context, extracted):
        with RowReader(file_of(context, ref, features.FEATURES)) as read:
            at_once = context.learner.estimated_rows
            for start in range(0, len(rows), at_once):
                yield read(rows[start : start + at_once])


def _cross_fitted(context: RoundContext, trained: StageReference) -> tuple[np.ndarray, np.ndarray] | None:
    path = output_of(context, trained) / "cross_fit.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return arrays["labels"], arrays["predicted"]


def class_terms(context: RoundContext, terms: StageReference) -> probabilities.ClassTerms:
    return probabilities.ClassTerms.from_json(read_json(output_of(context, terms), "class_terms.json"))


def estimate_likelihood(context: RoundContext, extracted: StageReference, encoded: StageReference) -> StageReference:
    """log p(x | y^_n) of every image of one shard, streamed from disk to disk (Eq. 9)."""
    produce = partial(_estimate_likelihood, context, extracted, encoded)
    return stage(context.stages, likelihood_key(context, extracted, encoded), produce) | {"shard": extracted["shard"]}


def _estimate_likelihood(
    context: RoundContext, extracted: StageReference, encoded: StageReference, folder: Path
) -> None:
    path = path_of(context, extracted, features.FEATURES)
    total = shape_of(path)[0]
    told = of_shard(context, "estimate-probabilities", extracted["shard"])
    chunks = (rows for _, rows in reported(row_batches(path, context.learner.estimated_rows), total, told))
    with (
        RowWriter(folder / LOG_LIKELIHOOD, total, len(context.classes)) as likelihood,
        RowWriter(folder / VAE_CLASS, total, None, "<i4") as vae_class,
    ):
        for values_N_C, class_N in context.learner.likelihood(load_vae(context, encoded), chunks):
            likelihood.append(values_N_C)
            vae_class.append(class_N)
