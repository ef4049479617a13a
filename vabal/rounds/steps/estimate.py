"""The steps train-vae and estimate-probabilities."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from vabal import probabilities, vae
from vabal.files import canonical_json, write_bytes
from vabal.learning import features
from vabal.rounds.context import (
    ASKED,
    CANDIDATE,
    LABELED,
    REJECTED,
    RoundContext,
    StageReference,
    output_of,
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
        for ref in extracted:
            role, _ = context.roles(ref["shard"])
            rows = np.flatnonzero(np.isin(role, POOL_ROLES))
            if not len(rows):
                continue
            place = output_of(context, ref)
            shards.append((files.enter_context(features.RowReader(place / features.FEATURES)), rows))
            logits = features.row_batches(place / features.LOGITS, CHUNK_ROWS)
            predicted.append(np.concatenate([logits_N_C.argmax(axis=1) for _, logits_N_C in logits])[rows])
        pool, dims = vae.PoolFeatures(shards), load_feature_dims(context, extracted)
        network, training = context.learner.vae(pool, np.concatenate(predicted), dims, len(context.classes))
        collected = run_training("train-vae", training, vae.epochs_of(len(pool), context.params.vae))
    vae.save(network, folder / "vae.safetensors")
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def load_feature_dims(context: RoundContext, extracted: Sequence[StageReference]) -> tuple[int, ...]:
    """How many features each of the classifier's stages, or each layer that a probe sees, has."""
    dims = tuple(read_json(output_of(context, extracted[0]), features.DIMS))
    found = features.shape_of(output_of(context, extracted[0]) / features.FEATURES)[1]
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
        found.append(features.read_rows(output_of(context, ref) / file, rows))
        known.append(labels)
    return np.concatenate(found), np.concatenate(known)


def _labels(context: RoundContext, extracted: StageReference) -> tuple[np.ndarray, np.ndarray]:
    """Which rows of a shard are labelled, and their labels."""
    role, label = context.roles(extracted["shard"])
    rows = np.flatnonzero(role == LABELED)
    return rows, label[rows]


def _unlabeled_features(context: RoundContext, extracted: Sequence[StageReference]) -> Iterator[np.ndarray]:
    for ref in extracted:
        role, _ = context.roles(ref["shard"])
        wanted = np.isin(role, POOL_ROLES)
        for start, rows in features.row_batches(output_of(context, ref) / features.FEATURES, CHUNK_ROWS):
            yield rows[wanted[start : start + len(rows)]]


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
    path = output_of(context, extracted) / features.FEATURES
    total = features.shape_of(path)[0]
    told = of_shard(context, "estimate-probabilities", extracted["shard"])
    chunks = (rows for _, rows in reported(features.row_batches(path, CHUNK_ROWS), total, told))
    with (
        features.RowWriter(folder / LOG_LIKELIHOOD, total, len(context.classes)) as likelihood,
        features.RowWriter(folder / VAE_CLASS, total, None, "<i4") as vae_class,
    ):
        for values_N_C, class_N in context.learner.likelihood(load_vae(context, encoded), chunks):
            likelihood.append(values_N_C)
            vae_class.append(class_N)
