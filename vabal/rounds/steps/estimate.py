"""The steps train-vae and estimate-probabilities."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vabal import probabilities, vae
from vabal.files import canonical_json, write_bytes
from vabal.learning import features
from vabal.learning.device import one_thread
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
)
from vabal.rounds.stage_store import stage_key
from vabal.rounds.steps.extract import reported

# -- train-vae ----------------------------------------------------------------------------------------------------

POOL_ROLES = (CANDIDATE, ASKED, REJECTED)  # P_U: everything that is neither labelled nor held out


def train_vae(context: RoundContext, extracted: Sequence[StageReference]) -> StageReference:
    """Trains the VAE on this round's unlabelled pool, told what the classifier predicts there."""
    seed = context.seed("vae")
    inputs: dict[str, str | int] = {
        "features": ",".join(ref["key"] for ref in extracted),
        "roles": context.report["digests"]["unlabeled"],
        "seed": seed,
    }
    settings = {
        "vae": context.params.vae.model_dump(),
        "device": context.device.type,
        "threads": context.params.compute.threads,
    }
    key = stage_key("train-vae", settings, inputs)
    if context.stages.get("train-vae", key) is None:
        with context.stages.produce("train-vae", key) as folder:
            _train_vae(context, extracted, folder, seed=seed)
    return {"stage": "train-vae", "key": key}


def _train_vae(context: RoundContext, extracted: Sequence[StageReference], folder: Path, *, seed: int) -> None:
    shards, predicted = [], []
    for ref in extracted:
        role, _ = context.roles(ref["shard"])
        rows = np.flatnonzero(np.isin(role, POOL_ROLES))
        if not len(rows):
            continue
        place = output_of(context, ref)
        values = np.load(place / features.FEATURES, mmap_mode="r")
        shards.append((values.__getitem__, rows))
        predicted.append(np.load(place / features.LOGITS, mmap_mode="r")[rows].argmax(axis=1))
    pool = vae.PoolFeatures(shards)
    dims = load_feature_dims(context, extracted)
    network = vae.build(dims, len(context.classes), context.params.vae, seed=seed)
    training = vae.fit(network, pool, np.concatenate(predicted), seed=seed, device=context.device)
    steps = max(1, -(-len(pool) // context.params.vae.batch_size))
    epochs = max(context.params.vae.epochs, -(-context.params.vae.min_steps // steps))
    with one_thread(context.device):
        collected = run_training("train-vae", training, epochs)
    vae.save(network, folder / "vae.safetensors")
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def load_feature_dims(context: RoundContext, extracted: Sequence[StageReference]) -> tuple[int, ...]:
    """Features of each of the four stages: w, 2w, 4w and 8w channels of a network of width w."""
    width = context.params.classifier.width
    dims = (width, 2 * width, 4 * width, 8 * width)
    found = features.shape_of(output_of(context, extracted[0]) / features.FEATURES)[1]
    if sum(dims) != found:
        raise ValueError(f"{found} features, expected {sum(dims)} of a network of width {width}")
    return dims


# -- estimate-probabilities ---------------------------------------------------------------------------------------


def estimate_class_terms(
    context: RoundContext, trained: StageReference, extracted: Sequence[StageReference], encoded: StageReference
) -> StageReference:
    """Prior and precision of every class (Eqs. 12 and 11)."""
    settings = {"probabilities": context.params.probabilities.model_dump()}
    inputs: dict[str, str | int] = {
        "vae": encoded["key"],
        "classifier": trained["key"],
        "features": ",".join(ref["key"] for ref in extracted),
        "labeled": context.report["digests"]["labeled"],
        "unlabeled": context.report["digests"]["unlabeled"],
        "seed": context.seed("draws"),
    }
    key = stage_key("class-terms", settings, inputs)
    if context.stages.get("class-terms", key) is None:
        terms = probabilities.estimate_class_terms(
            vae.load(output_of(context, encoded) / "vae.safetensors", context.device),
            *labeled_rows(context, extracted, features.FEATURES),
            generator=context.seed("draws"),
            settings=context.params.probabilities,
            unlabeled_features=_unlabeled_features(context, extracted),
            cross_fitted=_cross_fitted(context, trained),
        )
        with context.stages.produce("class-terms", key) as folder:
            write_bytes(folder / "class_terms.json", canonical_json(terms.to_json()))
    return {"stage": "class-terms", "key": key}


def labeled_rows(
    context: RoundContext, extracted: Sequence[StageReference], file: str
) -> tuple[np.ndarray, np.ndarray]:
    """What `file` holds of the labelled samples, and their labels, in the shards' order."""
    found, known = [], []
    for ref in extracted:
        role, label = context.roles(ref["shard"])
        rows = np.flatnonzero(role == LABELED)
        found.append(features.read_rows(output_of(context, ref) / file, rows))
        known.append(label[rows])
    return np.concatenate(found), np.concatenate(known)


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


CHUNK_ROWS = 4096  # rows of a shard in memory at once, where they carry no images


def estimate_likelihood(context: RoundContext, extracted: StageReference, encoded: StageReference) -> StageReference:
    """log p(x | y^_n) of every image of one shard, streamed from disk to disk (Eq. 9)."""
    settings = {"probabilities": context.params.probabilities.model_dump()}
    inputs: dict[str, str | int] = {"vae": encoded["key"], "features": extracted["key"], "seed": context.seed("draws")}
    key = stage_key("estimate-probabilities", settings, inputs)
    if context.stages.get("estimate-probabilities", key) is None:
        path = output_of(context, extracted) / features.FEATURES
        network = vae.load(output_of(context, encoded) / "vae.safetensors", context.device)
        total = features.shape_of(path)[0]
        with (
            context.stages.produce("estimate-probabilities", key) as folder,
            features.RowWriter(folder / LOG_LIKELIHOOD, total, len(context.classes)) as likelihood,
            features.RowWriter(folder / VAE_CLASS, total, None, "<i4") as vae_class,
        ):
            chunks = (rows for _, rows in reported(features.row_batches(path, CHUNK_ROWS), total, "estimate"))
            for values_N_C, class_N in probabilities.estimate_likelihood(
                network, chunks, generator=context.seed("draws"), settings=context.params.probabilities
            ):
                likelihood.append(values_N_C)
                vae_class.append(class_N)
    return {"stage": "estimate-probabilities", "key": key, "shard": extracted["shard"]}


LOG_LIKELIHOOD = "log_likelihood.npy"
VAE_CLASS = "vae_class.npy"


def class_terms(context: RoundContext, terms: StageReference) -> probabilities.ClassTerms:
    return probabilities.ClassTerms.from_json(read_json(output_of(context, terms), "class_terms.json"))
