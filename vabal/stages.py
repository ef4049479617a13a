"""The stages of a round: each loads what it needs, calls the core, and saves into the stage store.

A `Night` says what a round works on; a stage's output is named by its key, so calling a finished stage again costs a
look-up. Nothing here knows Prefect, MLflow or DVC: `flows` wires these functions, and so can a script.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from vabal import (
    classifier,
    committee,
    features,
    figures,
    images,
    inbox,
    metrics,
    pools,
    probabilities,
    round_tables,
    strategies,
    vae,
)
from vabal.errors import UserError
from vabal.metrics import Metric
from vabal.network import ResNetClassifier
from vabal.params import Params
from vabal.progress import report
from vabal.rounds import OpenRound, derive_seed, head
from vabal.store import Stages, StageStore, canonical_json, file_sha256, stage_key, write_bytes
from vabal.workspace import Workspace

NONE, LABELED, CANDIDATE, ASKED, HOLDOUT, REJECTED = range(6)  # the roles of a shard's rows


@dataclass(frozen=True)
class Night:
    """One round at work: the workspace, its settings, what the round was begun with, and where stages go."""

    workspace: Workspace
    params: Params
    round: OpenRound
    stages: Stages  # the learning stages; on S3 where several machines share them
    intake_key: str

    @cached_property
    def local(self) -> StageStore:
        """Intake's view of the pools and the selection belong to the workspace, wherever the learning runs."""
        return own_store(self.workspace)

    @cached_property
    def view(self) -> Path:
        """A folder laid out like `data/` with the pools as they are after intake."""
        place = self.local.get("intake", self.intake_key)
        if place is None:
            raise UserError(f"the intake of round {self.round.round} is gone from {self.local.folder}: run it again")
        return place

    @cached_property
    def report(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.view / "intake.json").read_text(encoding="utf-8"))
        return document

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.report["classes"])

    @cached_property
    def strategy(self) -> strategies.Strategy:
        return strategies.get(self.params.selection.strategy)

    @cached_property
    def needs(self) -> strategies.Needs:
        return strategies.needs_of(self.strategy, self.params)

    @cached_property
    def device(self) -> torch.device:
        return device_of(self.params)

    @cached_property
    def shards(self) -> images.DecodedShards:
        settings = self.params.images
        return images.DecodedShards(
            self.view, self.workspace.decoded, settings.size, settings.channels, bit_depth=settings.bit_depth
        )

    def roles(self, shard: str) -> tuple[np.ndarray, np.ndarray]:
        """Role and label index (-1: unknown) of each row of a shard."""
        with np.load(self.view / "roles" / f"{shard}.npz") as arrays:
            return arrays["role"], arrays["label"]

    def seed(self, purpose: str) -> int:
        """A seed for one purpose in this round, derived from the setting `seed`."""
        return derive_seed(self.params.seed, self.round.round, purpose)


def device_of(params: Params) -> torch.device:
    """Raises UserError if a GPU is asked for and there is none."""
    if params.compute.threads:
        torch.set_num_threads(params.compute.threads)
    name = params.compute.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"compute.device is {name!r}, but this machine has no usable GPU: set it to auto or cpu")
    return torch.device(name)


# {"stage": ..., "key": ...}: what passes between tasks; "committee" is the key of the scoring networks', where needed.
Ref = dict[str, str]


def _finished(night: Night, ref: Ref) -> Path:
    return _place(night, ref["stage"], ref["key"])


def _place(night: Night, stage: str, key: str) -> Path:
    place = night.stages.get(stage, key)
    if place is None:
        raise UserError(f"stage {stage} ({key}) is gone from the stage store: run the round again")
    return place


def read_json(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def _train(stage: str, iterator: Iterator[Metric], epochs: int) -> list[Metric]:
    """Runs a training to its end, telling how far it is; its metrics."""
    collected: list[Metric] = []
    for metric in iterator:
        collected.append(metric)
        report(stage, min(metric.step, epochs), epochs)
    return collected


def metrics_of(night: Night, ref: Ref) -> list[Metric]:
    """What a training stage measured, to be logged."""
    places = [_finished(night, ref)]
    if "committee" in ref:
        places.append(_place(night, "train-committee", ref["committee"]))
    return [Metric(*item) for place in places for item in read_json(place, "training.json")]


def own_store(workspace: Workspace) -> StageStore:
    """The store below `.vabal/`. The workspace made that folder, so it is ours with or without a mark."""
    folder = workspace.state / "stages"
    return StageStore(folder, workspace.identity, adopt=not folder.is_symlink())


# -- intake -------------------------------------------------------------------------------------------------------


def intake(workspace: Workspace, begun: OpenRound) -> str:
    """Pools after the inbox's labels and images came in, as a view laid out like `data/`; the key of that view."""
    store = own_store(workspace)
    inputs: dict[str, str | int] = {"parent": begun.parent, "round": begun.round, "inbox": "\n".join(begun.inbox)}
    key = stage_key("intake", {}, inputs)
    if store.get("intake", key) is None:
        with store.produce("intake", key) as folder:
            _take_in(workspace, begun, folder)
    return key


def _take_in(workspace: Workspace, begun: OpenRound, folder: Path) -> None:
    before = pools.load(workspace.data)
    events, arrivals = inbox.read(workspace.inbox, list(begun.inbox))
    after, counts, said = before, Counter[str](), []
    _refuse_unreadable(arrivals)
    for arrival in arrivals:
        after, came = pools.apply_images(after, arrival.catalog, begun.round)
        counts.update(_counts(came))
        said += [f"{name}: left out, the pool has it already" for name in came.duplicates]
    taken = pools.among(events["source"], before.label_events["source"])  # the very same file, by another machine
    said += [f"{name}: taken in by an earlier round already" for name in events.loc[taken, "source"].unique()]
    after, came = pools.apply_labels(after, events[~taken].reset_index(drop=True), begun.round)
    counts.update(_counts(came))
    said += [f"{name}: a label for an image that no round took in" for name in came.unknown]
    written = pools.save(after, folder, before)
    for name in [*(f"{table}.parquet" for table in pools.SCHEMAS), "classes.json"]:
        if name not in written:
            (folder / name).hardlink_to(workspace.data / name)
    (folder / "images").mkdir()
    for source in [*(workspace.data / "images").glob("*.parquet"), *_arrived_shards(after, arrivals, before)]:
        (folder / "images" / source.name).hardlink_to(source)
    _write_report(workspace, begun.round, after, folder, counts, said, written)


def intake_again(workspace: Workspace, begun: OpenRound, after: pools.Pools) -> str:
    """The view of a past round's intake, from the pools that are known to have come of it; the key of that view.

    `workspace` has that round's `data/`: its shards are those that the round saw.
    """
    store = own_store(workspace)
    key = stage_key("intake", {}, {"parent": begun.parent, "round": begun.round, "inbox": "again"})
    if store.get("intake", key) is None:
        with store.produce("intake", key) as folder:
            written = pools.save(after, folder)
            (folder / "images").mkdir()
            for source in (workspace.data / "images").glob("*.parquet"):
                (folder / "images" / source.name).hardlink_to(source)
            _write_report(workspace, begun.round, after, folder, Counter(), [], written)
    return key


def _write_report(
    workspace: Workspace,
    round_number: int,
    after: pools.Pools,
    folder: Path,
    counts: Counter[str],
    said: list[str],
    written: list[str],
) -> None:
    """`roles/` and `intake.json`, behind the view's tables and images."""
    candidates = _write_roles(after, folder)
    missing = sorted(set(after.classes) - set(after.labeled["label"]))
    if missing and len(after.labeled):
        said.append(f"no labelled sample yet of {', '.join(missing)}: the classifier cannot know them")
    document = {
        "round": round_number,
        "classes": list(after.classes),
        "digests": pools.digests(after),
        "shards": _shard_digests(workspace, folder, after),
        "intake": dict(counts),
        "candidates": candidates,
        "changed": sorted(written),
        "said": said,
    }
    write_bytes(folder / "intake.json", canonical_json(document))


def _counts(came: pools.IntakeReport) -> dict[str, int]:
    return {key: len(value) if isinstance(value, list) else value for key, value in came.to_dict().items()}


def _arrived_shards(after: pools.Pools, arrivals: Sequence[inbox.Arrival], before: pools.Pools) -> list[Path]:
    """New shards of which at least one image was taken in.

    Their names tell their content: one that the pool has (another machine took in the same images) is there already.
    """
    used = set(after.catalog["shard"].unique()) - set(before.catalog["shard"].unique())
    found = (path for arrival in arrivals for path in sorted(arrival.shards.glob("*.parquet")) if path.stem in used)
    return list({path.name: path for path in found}.values())


def _refuse_unreadable(arrivals: Sequence[inbox.Arrival]) -> None:
    """Raises UserError naming the entry of the inbox whose shards are not those of its catalog, with the way out."""
    for arrival in arrivals:
        expected = dict(zip(arrival.catalog["sample_id"], arrival.catalog["sha256"], strict=True))
        try:
            read = images.encoded_many(arrival.shards.parent, arrival.catalog)
            found = {name: hashlib.sha256(content).hexdigest() for name, content in read}
        except (UserError, pa.ArrowException, OSError):
            found = {}
        if found != expected:
            raise UserError(f"inbox/{arrival.name}: its images are damaged; {inbox.MEND}")


def _shard_digests(workspace: Workspace, folder: Path, after: pools.Pools) -> dict[str, str]:
    """The sha256 of every shard. Shards never change, so those of the parent's manifest are not read again."""
    known = head(workspace.data).manifest["shards"]
    names = [str(name) for name in after.catalog["shard"].unique()]
    return {name: known.get(name) or file_sha256(folder / "images" / f"{name}.parquet") for name in names}


def _write_roles(after: pools.Pools, folder: Path) -> int:
    """What each row of each shard is for, so that no learning stage has to hold the catalog. Returns the candidates."""
    place_N = pools.places(after)
    status = after.unlabeled["status"]
    role_N = np.full(len(after.catalog), NONE, dtype=np.uint8)
    label_N = np.full(len(after.catalog), -1, dtype=np.int32)
    role_N[place_N["labeled"]] = LABELED
    label_N[place_N["labeled"]] = pd.Index(after.classes).get_indexer(pd.Index(after.labeled["label"].astype(object)))
    role_N[place_N["holdout"]] = HOLDOUT
    for name, role in ((pools.AVAILABLE, CANDIDATE), (pools.REQUESTED, ASKED), (pools.REJECTED, REJECTED)):
        role_N[place_N["unlabeled"][(status == name).to_numpy(dtype=bool)]] = role
    (folder / "roles").mkdir()
    table = after.catalog[["shard", "row"]].assign(role=role_N, label=label_N)
    for shard, rows in table.groupby("shard", sort=False):
        total = pq.ParquetFile(folder / "images" / f"{shard}.parquet").metadata.num_rows
        roles, labels = np.full(total, NONE, np.uint8), np.full(total, -1, np.int32)
        roles[rows["row"]] = rows["role"]
        labels[rows["row"]] = rows["label"]
        np.savez(folder / "roles" / f"{shard}.npz", role=roles, label=labels)
    return int((role_N == CANDIDATE).sum())


def refuse_unserved(strategy: strategies.Strategy, settings: Params) -> None:
    """Raises UserError for a strategy that asks of training what no stage gives, before anything is trained."""
    try:
        committee.check(strategies.needs_of(strategy, settings))
    except UserError as error:
        raise UserError(f"strategy {strategy.name!r}: {error}") from None


# -- train-classifier ---------------------------------------------------------------------------------------------


def train_classifier(night: Night) -> Ref:
    """Trains the classifier on the labelled pool, and the scoring networks that the strategy needs beside it.

    The classifier is the same for every strategy, and shared: its key knows nothing of the scoring networks.
    """
    labeled = _with_places(night, "labeled")
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


def _cross_fit_folds(night: Night) -> int:
    probabilities = night.params.probabilities
    wanted = night.needs.cross_fit or (night.needs.vae and probabilities.precision_from == "cross_fitted")
    return probabilities.folds if wanted else 0


def _train_classifier(night: Night, labeled: pd.DataFrame, folder: Path, *, seed: int) -> None:
    pixels, labels = _training_set(night, labeled)
    mean, std = classifier.channel_statistics(pixels)
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
    collected = _train("train-classifier", training, epochs)
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
            report=lambda metric: report("cross-fit", metric.step, epochs),
        )
        np.savez(folder / "cross_fit.npz", labels=labels, predicted=fitted.predicted_N, fold=fitted.fold_N)
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def _training_set(night: Night, labeled: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array([night.classes.index(label) for label in labeled["label"]], dtype=np.int64)
    return night.shards.gather(labeled), labels


def _committee(night: Night, trained: Ref, labeled: pd.DataFrame) -> str:
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
            collected = _train("train-committee", training, epochs)
            networks.save(folder)
            write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))
    return key


def _with_places(night: Night, name: str) -> pd.DataFrame:
    """A pool's rows with shard, row and sha256 of their images, ordered by sample_id."""
    table = pools.read_table(night.view / f"{name}.parquet", pools.SCHEMAS[name])
    filters = pc.field("sample_id").isin(pa.array(table["sample_id"].to_numpy(dtype=object), pa.string()))
    columns = ["sample_id", "shard", "row", "sha256"]
    places = pq.read_table(night.view / "catalog.parquet", columns=columns, filters=filters).to_pandas()
    return table[["sample_id", "label"]].merge(places, on="sample_id").sort_values("sample_id", ignore_index=True)


def load_classifier(night: Night, trained: Ref) -> ResNetClassifier:
    return classifier.load(_finished(night, trained) / "weights.safetensors", night.device)


# -- evaluate -----------------------------------------------------------------------------------------------------


def evaluate(night: Night, trained: Ref) -> Ref:
    """Predicts the labelled part of the holdout and measures; figures beside it."""
    holdout = _with_places(night, "holdout")
    holdout = holdout[holdout["label"].notna()].reset_index(drop=True)
    inputs = {"classifier": trained["key"], "holdout": pools.table_digest(holdout, ["sample_id"])}
    key = stage_key("evaluate", {"classes": list(night.classes)}, inputs)
    if night.stages.get("evaluate", key) is None:
        with night.stages.produce("evaluate", key) as folder:
            _evaluate(night, load_classifier(night, trained), holdout, folder)
    return {"stage": "evaluate", "key": key}


def _evaluate(night: Night, network: ResNetClassifier, holdout: pd.DataFrame, folder: Path) -> None:
    step = night.params.features.batch_size
    batches = (night.shards.gather(holdout.iloc[start : start + step]) for start in range(0, len(holdout), step))
    probabilities_N_C = classifier.predict(network, batches, night.device)
    predicted_N = probabilities_N_C.argmax(axis=1)
    labels_N = np.array([night.classes.index(label) for label in holdout["label"]], dtype=np.int64)
    measured = metrics.classification_metrics(labels_N, probabilities_N_C, night.classes)
    counts_C_C = metrics.confusion_matrix(labels_N, predicted_N, len(night.classes))
    table = pd.DataFrame(
        {
            "sample_id": holdout["sample_id"],
            "label": holdout["label"],
            "predicted_class": np.asarray(night.classes, dtype=object)[predicted_N],
            "probabilities": list(probabilities_N_C),
        }
    )
    round_tables.write_predictions(table, folder / "holdout_predictions.parquet")
    write_bytes(folder / "metrics.json", canonical_json(measured))
    if len(holdout):
        figures.confusion_figure(counts_C_C, night.classes, folder / "confusion.png")
        figures.recall_figure(counts_C_C, night.classes, folder / "recall.png")


# -- extract-features ---------------------------------------------------------------------------------------------


def shard_names(night: Night) -> list[str]:
    return list(night.shards.names())


def extract_features(night: Night, trained: Ref, shard: str) -> Ref:
    """Features and logits of every image of one shard, and what the scoring networks say; from disk to disk."""
    inputs = {"classifier": trained["key"], "shard": night.report["shards"][shard]}
    settings = {"images": night.params.images.model_dump(), "batch_size": night.params.features.batch_size}
    key = stage_key("extract-features", settings, inputs)
    if night.stages.get("extract-features", key) is None:
        rows = night.shards.rows(shard)
        network = load_classifier(night, trained)
        with night.stages.produce("extract-features", key) as folder:
            batches = _reported(night.shards.batches(shard, night.params.features.batch_size), rows)
            features.extract(network, batches, rows, folder, night.device)
    ref = {"stage": "extract-features", "key": key, "shard": shard}
    return ref | {"committee": _committee_columns(night, trained, shard)} if "committee" in trained else ref


def _committee_columns(night: Night, trained: Ref, shard: str) -> str:
    """What the scoring networks say of every image of one shard, a file a column; the key."""
    inputs = {"committee": trained["committee"], "shard": night.report["shards"][shard]}
    settings = {"images": night.params.images.model_dump(), "batch_size": night.params.features.batch_size}
    key = stage_key("extract-committee", settings, inputs)
    if night.stages.get("extract-committee", key) is None:
        rows, ids, classes = night.shards.rows(shard), night.shards.sample_ids(shard), len(night.classes)
        there = _place(night, "train-committee", trained["committee"])
        networks = committee.load(there, load_classifier(night, trained), night.device)
        batches = night.shards.batches(shard, night.params.features.batch_size)
        with night.stages.produce("extract-committee", key) as folder, ExitStack() as files:
            writers = {
                name: files.enter_context(
                    features.RowWriter(folder / f"{name}.npy", rows, classes if name.endswith("_C") else None, kind)
                )
                for name, kind in committee.column_types(night.needs).items()
            }
            for start, batch in _reported(batches, rows, "extract-committee"):
                said = networks.columns(batch, device=night.device, sample_ids=ids[start : start + len(batch)])
                for name, values in said.items():
                    writers[name].append(values)
    return key


def _reported(
    batches: Iterator[tuple[int, np.ndarray]], rows: int, stage: str = "extract-features"
) -> Iterator[tuple[int, np.ndarray]]:
    for start, batch in batches:
        yield start, batch
        report(stage, start + len(batch), rows)


def weights(night: Night, trained: Ref) -> Path:
    return _finished(night, trained) / "weights.safetensors"


def evaluation_folder(night: Night, evaluated: Ref) -> Path:
    return _finished(night, evaluated)


def evaluation(night: Night, evaluated: Ref) -> list[Metric]:
    """What was measured on the holdout, as `holdout/<name>` at the round's number."""
    measured: dict[str, float] = read_json(_finished(night, evaluated), "metrics.json")
    return [Metric(f"holdout/{name}", value, night.round.round) for name, value in measured.items()]


def evaluation_files(night: Night, evaluated: Ref) -> list[Path]:
    """Predictions and figures, to be kept beside the round's run."""
    return sorted(path for path in _finished(night, evaluated).iterdir() if path.name != "metrics.json")


# -- train-vae ----------------------------------------------------------------------------------------------------

POOL_ROLES = (CANDIDATE, ASKED, REJECTED)  # P_U: everything that is neither labelled nor held out


def train_vae(night: Night, extracted: Sequence[Ref]) -> Ref:
    """Trains the VAE on this round's unlabelled pool, told what the classifier predicts there."""
    seed = night.seed("vae")
    inputs: dict[str, str | int] = {
        "features": ",".join(ref["key"] for ref in extracted),
        "roles": night.report["digests"]["unlabeled"],
        "seed": seed,
    }
    settings = {
        "vae": night.params.vae.model_dump(),
        "device": night.device.type,
        "threads": night.params.compute.threads,
    }
    key = stage_key("train-vae", settings, inputs)
    if night.stages.get("train-vae", key) is None:
        with night.stages.produce("train-vae", key) as folder:
            _train_vae(night, extracted, folder, seed=seed)
    return {"stage": "train-vae", "key": key}


def _train_vae(night: Night, extracted: Sequence[Ref], folder: Path, *, seed: int) -> None:
    shards, predicted = [], []
    for ref in extracted:
        role, _ = night.roles(ref["shard"])
        rows = np.flatnonzero(np.isin(role, POOL_ROLES))
        if not len(rows):
            continue
        place = _finished(night, ref)
        values = np.load(place / features.FEATURES, mmap_mode="r")
        shards.append((values.__getitem__, rows))
        predicted.append(np.load(place / features.LOGITS, mmap_mode="r")[rows].argmax(axis=1))
    pool = vae.PoolFeatures(shards)
    dims = load_feature_dims(night, extracted)
    network = vae.build(dims, len(night.classes), night.params.vae, seed=seed)
    training = vae.fit(network, pool, np.concatenate(predicted), seed=seed, device=night.device)
    steps = max(1, -(-len(pool) // night.params.vae.batch_size))
    epochs = max(night.params.vae.epochs, -(-night.params.vae.min_steps // steps))
    with one_thread(night.device):
        collected = _train("train-vae", training, epochs)
    vae.save(network, folder / "vae.safetensors")
    write_bytes(folder / "training.json", canonical_json([list(metric) for metric in collected]))


def load_feature_dims(night: Night, extracted: Sequence[Ref]) -> tuple[int, ...]:
    """Features of each of the four stages: w, 2w, 4w and 8w channels of a network of width w."""
    width = night.params.classifier.width
    dims = (width, 2 * width, 4 * width, 8 * width)
    found = features.shape_of(_finished(night, extracted[0]) / features.FEATURES)[1]
    if sum(dims) != found:
        raise ValueError(f"{found} features, expected {sum(dims)} of a network of width {width}")
    return dims


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Small layers gain nothing from more threads, and wait for each other where the cores are busy."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- estimate-probabilities ---------------------------------------------------------------------------------------


def estimate_class_terms(night: Night, trained: Ref, extracted: Sequence[Ref], encoded: Ref) -> Ref:
    """Prior and precision of every class (Eqs. 12 and 11)."""
    settings = {"probabilities": night.params.probabilities.model_dump()}
    inputs: dict[str, str | int] = {
        "vae": encoded["key"],
        "classifier": trained["key"],
        "features": ",".join(ref["key"] for ref in extracted),
        "labeled": night.report["digests"]["labeled"],
        "unlabeled": night.report["digests"]["unlabeled"],
        "seed": night.seed("draws"),
    }
    key = stage_key("class-terms", settings, inputs)
    if night.stages.get("class-terms", key) is None:
        terms = probabilities.estimate_class_terms(
            vae.load(_finished(night, encoded) / "vae.safetensors", night.device),
            *_labeled_rows(night, extracted, features.FEATURES),
            generator=night.seed("draws"),
            settings=night.params.probabilities,
            unlabeled_features=_unlabeled_features(night, extracted),
            cross_fitted=_cross_fitted(night, trained),
        )
        with night.stages.produce("class-terms", key) as folder:
            write_bytes(folder / "class_terms.json", canonical_json(terms.to_json()))
    return {"stage": "class-terms", "key": key}


def _labeled_rows(night: Night, extracted: Sequence[Ref], file: str) -> tuple[np.ndarray, np.ndarray]:
    """What `file` holds of the labelled samples, and their labels, in the shards' order."""
    found, known = [], []
    for ref in extracted:
        role, label = night.roles(ref["shard"])
        rows = np.flatnonzero(role == LABELED)
        found.append(features.read_rows(_finished(night, ref) / file, rows))
        known.append(label[rows])
    return np.concatenate(found), np.concatenate(known)


def _unlabeled_features(night: Night, extracted: Sequence[Ref]) -> Iterator[np.ndarray]:
    for ref in extracted:
        role, _ = night.roles(ref["shard"])
        wanted = np.isin(role, POOL_ROLES)
        for start, rows in features.row_batches(_finished(night, ref) / features.FEATURES, CHUNK_ROWS):
            yield rows[wanted[start : start + len(rows)]]


def _cross_fitted(night: Night, trained: Ref) -> tuple[np.ndarray, np.ndarray] | None:
    path = _finished(night, trained) / "cross_fit.npz"
    if not path.exists():
        return None
    with np.load(path) as arrays:
        return arrays["labels"], arrays["predicted"]


CHUNK_ROWS = 4096  # rows of a shard in memory at once, where they carry no images


def estimate_likelihood(night: Night, extracted: Ref, encoded: Ref) -> Ref:
    """log p(x | y^_n) of every image of one shard, streamed from disk to disk (Eq. 9)."""
    settings = {"probabilities": night.params.probabilities.model_dump()}
    inputs: dict[str, str | int] = {"vae": encoded["key"], "features": extracted["key"], "seed": night.seed("draws")}
    key = stage_key("estimate-probabilities", settings, inputs)
    if night.stages.get("estimate-probabilities", key) is None:
        path = _finished(night, extracted) / features.FEATURES
        network = vae.load(_finished(night, encoded) / "vae.safetensors", night.device)
        total = features.shape_of(path)[0]
        with (
            night.stages.produce("estimate-probabilities", key) as folder,
            features.RowWriter(folder / LOG_LIKELIHOOD, total, len(night.classes)) as likelihood,
            features.RowWriter(folder / VAE_CLASS, total, None, "<i4") as vae_class,
        ):
            chunks = (rows for _, rows in _reported(features.row_batches(path, CHUNK_ROWS), total, "estimate"))
            for values_N_C, class_N in probabilities.estimate_likelihood(
                network, chunks, generator=night.seed("draws"), settings=night.params.probabilities
            ):
                likelihood.append(values_N_C)
                vae_class.append(class_N)
    return {"stage": "estimate-probabilities", "key": key, "shard": extracted["shard"]}


LOG_LIKELIHOOD = "log_likelihood.npy"
VAE_CLASS = "vae_class.npy"


def class_terms(night: Night, terms: Ref) -> probabilities.ClassTerms:
    return probabilities.ClassTerms.from_json(read_json(_finished(night, terms), "class_terms.json"))


# -- select-batch -------------------------------------------------------------------------------------------------


def select_batch(night: Night, extracted: Sequence[Ref], estimated: Mapping[str, Any] | None) -> Ref:
    """The picks of the round and the table of all candidates; `estimated` has class terms and likelihoods, if any."""
    chosen = night.params.selection
    settings = {
        "selection": chosen.model_dump(),
        "probabilities": night.params.probabilities.model_dump(),
        "classes": list(night.classes),
        "needs": asdict(night.needs),
        "device": night.device.type,
        "threads": night.params.compute.threads,
    }
    inputs: dict[str, str | int] = {
        "features": ",".join(ref["key"] for ref in extracted),
        "committee": ",".join(ref.get("committee", "") for ref in extracted),
        "estimated": ",".join(ref["key"] for ref in [estimated["terms"], *estimated["shards"]]) if estimated else "",
        "unlabeled": night.report["digests"]["unlabeled"],
        "seed": night.seed("selection"),
    }
    key = stage_key("select-batch", settings, inputs)
    if night.local.get("select-batch", key) is None:
        with night.local.produce("select-batch", key) as folder:
            _select_batch(night, extracted, estimated, folder)
    return {"stage": "select-batch", "key": key}


def _select_batch(night: Night, extracted: Sequence[Ref], estimated: Mapping[str, Any] | None, folder: Path) -> None:
    strategy, name = night.strategy, night.params.selection.strategy
    scored = folder / "scored.parquet"
    with round_tables.ScoredWriter(scored, strategies.schema(len(night.classes))) as writer:
        context = strategies.Context(
            shards=lambda: _candidates(night, extracted, estimated),
            settings=night.params,
            seed=night.seed("selection"),
            class_terms=class_terms(night, estimated["terms"]) if estimated else None,
            labeled=_labeled(night, extracted),
            write=lambda part: writer.write(part.to_table(night.classes)),
            feature_dims=load_feature_dims(night, extracted),
            device=str(night.device),
        )
        budget = night.params.selection.budget
        if night.report["candidates"]:
            selection = strategy.select(context, budget)
        else:
            selection = strategies.no_picks(name, budget, night.seed("selection"))
    picks = strategies.selection_table(selection.picks, night.classes, name)
    round_tables.write_selection(picks.to_pandas(), folder / "selection.parquet")
    ranks = {sample_id: rank for rank, sample_id in enumerate(selection.sample_ids, start=1)}
    round_tables.write_candidates(scored, folder / "candidates.parquet", ranks, name)
    scored.unlink()
    if selection.shortlist is not None:
        listed = selection.shortlist
        round_tables.write_shortlist(listed.sample_ids, listed.features_N_D, folder / "shortlist.parquet")
    if getattr(strategy, "labeled_inputs", False):
        _write_labeled(context.labeled, folder / "labeled.parquet")
    terms = selection.class_terms
    document = {
        "rule": selection.rule,
        "beta": selection.beta,
        "budget": selection.budget,
        "seed": selection.seed,
        "shortlist": None if selection.shortlist is None else selection.shortlist.per_pick,
        "notes": list(selection.notes),
        "class_terms": None if terms is None else terms.to_json(),
    }
    write_bytes(folder / "selection.json", canonical_json(document))


def _write_labeled(labeled: strategies.Labeled | None, path: Path) -> None:
    """What the strategy saw of the labelled pool, without which its search cannot be made again."""
    if labeled is None or labeled.sample_ids is None or labeled.logits_N_C is None:
        raise ValueError("a strategy that records the labelled pool must declare Needs(posteriors=True)")
    round_tables.write_labeled(labeled.sample_ids, labeled.logits_N_C.astype(np.float32, copy=False), path)


def _labeled(night: Night, extracted: Sequence[Ref]) -> strategies.Labeled | None:
    """The labelled pool as the strategy's needs have it; None where it needs nothing of the pool."""
    needs = night.needs
    if not (needs.features or needs.posteriors or needs.images):
        return None
    features_N_D, labels_N = _labeled_rows(night, extracted, features.FEATURES)
    ids, places = [], []
    for ref in extracted:
        rows = np.flatnonzero(night.roles(ref["shard"])[0] == LABELED)
        ids.append(night.shards.sample_ids(ref["shard"])[rows])
        places.append(pd.DataFrame({"shard": ref["shard"], "row": rows}))
    return strategies.Labeled(
        features_N_D,
        labels_N,
        sample_ids=np.concatenate(ids),
        logits_N_C=_labeled_rows(night, extracted, features.LOGITS)[0],
        images_N_H_W_K=night.shards.gather(pd.concat(places, ignore_index=True)) if needs.images else None,
    )


def _candidates(
    night: Night, extracted: Sequence[Ref], estimated: Mapping[str, Any] | None
) -> Iterator[strategies.Shard]:
    """The candidates, in chunks of the shards' rows."""
    needs = night.needs
    chunk = night.params.features.batch_size if needs.images else CHUNK_ROWS
    likelihoods = estimated["shards"] if estimated else [None] * len(extracted)
    for ref, likelihood in zip(extracted, likelihoods, strict=True):
        role, _ = night.roles(ref["shard"])
        wanted, ids = role == CANDIDATE, night.shards.sample_ids(ref["shard"])
        place = _finished(night, ref)
        files = {"logits_N_C": place / features.LOGITS}
        if needs.features:
            files["features_N_D"] = place / features.FEATURES
        if "committee" in ref:
            said = _place(night, "extract-committee", ref["committee"])
            files |= {name: said / f"{name}.npy" for name in committee.column_types(needs)}
        if likelihood is not None:
            there = _finished(night, likelihood)
            files |= {"log_likelihood_N_C": there / LOG_LIKELIHOOD, "vae_class_N": there / VAE_CLASS}
        columns = {name: features.row_batches(path, chunk) for name, path in files.items()}
        if needs.images:
            columns["images_N_H_W_K"] = night.shards.batches(ref["shard"], chunk)
        for parts in zip(*columns.values(), strict=True):
            start, count = parts[0][0], len(parts[0][1])
            keep = np.flatnonzero(wanted[start : start + count])
            values = {name: part[keep] for name, (_, part) in zip(columns, parts, strict=True)}
            yield strategies.Shard(ids[start + keep], **values)


def selection_folder(night: Night, selected: Ref) -> Path:
    place = night.local.get(selected["stage"], selected["key"])
    if place is None:
        raise UserError(f"stage {selected['stage']} ({selected['key']}) is gone from the stage store: run it again")
    return place


def selection_document(night: Night, selected: Ref) -> dict[str, Any]:
    """How the picks follow from the candidates (rule, beta, budget, seed, class terms), and notes for people."""
    document: dict[str, Any] = read_json(selection_folder(night, selected), "selection.json")
    return document


def selection_in_words(night: Night, selected: Ref) -> str:
    """How many were picked, and as which classes they are predicted."""
    picks = round_tables.read_selection(selection_folder(night, selected) / "selection.parquet")
    counts = picks["predicted_class"].value_counts()
    classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{len(picks)} picked by {night.params.selection.strategy}" + (f" (predicted: {classes})" if classes else "")
