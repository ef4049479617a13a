"""The step select-batch."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vabal import pools, strategies
from vabal.errors import UserError
from vabal.files import canonical_json, write_bytes
from vabal.images.rows import read_rows, row_batches
from vabal.labels import again
from vabal.learning import committee, features
from vabal.rounds import tables
from vabal.rounds.context import (
    CANDIDATE,
    LABELED,
    RoundContext,
    StageReference,
    file_of,
    output_of,
    path_of,
    read_json,
    stage,
    stage_output,
)
from vabal.rounds.steps.compare import write_compared
from vabal.rounds.steps.estimate import LOG_LIKELIHOOD, VAE_CLASS, class_terms, labeled_rows, load_feature_dims
from vabal.rounds.steps.held_out import Probed, probed
from vabal.rounds.steps.keys import selection_key
from vabal.strategies import compact, control
from vabal.strategies.candidates import concatenate

_SCORED = "scored.parquet"  # the candidates before they have ranks
_SCORED_CONTROL = "scored_control.parquet"


def select_batch(
    context: RoundContext, extracted: Sequence[StageReference], estimated: Mapping[str, Any] | None
) -> StageReference:
    """The picks of the round and the table of all candidates; `estimated` has class terms and likelihoods, if any."""
    key = selection_key(context, extracted, estimated)
    return stage(context.local, key, partial(_select_batch, context, extracted, estimated))


def _select_batch(
    context: RoundContext, extracted: Sequence[StageReference], estimated: Mapping[str, Any] | None, folder: Path
) -> None:
    labeled, candidates = _labeled(context, extracted), context.report["candidates"]
    drawn = context.learner.control(_ids(context, extracted), candidates)
    doubts = probed(context) if context.learner.doubting else None
    asked = _ask_again(context, len(drawn), doubts)
    with tables.ScoredWriter(folder / _SCORED, strategies.schema(len(context.classes))) as writer:
        selection = context.learner.select(
            lambda: _candidates(context, extracted, estimated, without=drawn),
            candidates=candidates - len(drawn),
            labeled=labeled,
            class_terms=class_terms(context, estimated["terms"]) if estimated else None,
            feature_dims=_feature_dims(context, extracted),
            write=lambda part: writer.write(part.to_table(context.classes)),
            drawn=len(drawn) + len(asked),
            features=partial(_features_of, context, extracted) if _few_features(context) else None,
        )
    arm = _write_control(context, extracted, drawn, len(selection.picks), folder) if drawn else None
    _write_selection(context, selection, folder, arm, asked)
    write_compared(context, extracted, folder)
    if doubts is not None:
        _write_held_out(context, doubts, [*selection.sample_ids, *drawn], folder)
    if strategies.record_of(context.strategy).labeled_inputs:
        _write_labeled(labeled, folder / "labeled.parquet")


def _ask_again(context: RoundContext, drawn: int, doubts: Probed | None) -> pd.DataFrame:
    """The images that the request asks about once more: sample_id and reason. None where it asks for nothing else."""
    most = again.size(context.params.labelling.ask_again, context.params.selection.budget, drawn)
    if most < 1 or not context.report["candidates"]:
        return pd.DataFrame({"sample_id": [], "reason": []}, dtype="str")
    return again.choose(pools.read(context.view), doubts.held_out if doubts else None, most)


def _write_held_out(context: RoundContext, doubts: Probed, asked: Sequence[str], folder: Path) -> None:
    """Of the labelled pool, and of all images whose labels are out after this request."""
    unlabeled = pools.read_one(context.view, "unlabeled")
    waiting = unlabeled.loc[unlabeled["status"] == pools.REQUESTED, "sample_id"]
    known = doubts.with_requested([*waiting, *asked])
    tables.write_held_out(known.sample_ids, known.posterior_L_C, folder / tables.HELD_OUT_FILE)


def _ids(context: RoundContext, extracted: Sequence[StageReference]) -> Iterator[NDArray[Any]]:
    """Of the candidates, shard by shard."""
    for ref in extracted:
        role, _ = context.roles(ref["shard"])
        yield context.shards.sample_ids(ref["shard"])[role == CANDIDATE]


def _write_control(
    context: RoundContext, extracted: Sequence[StageReference], drawn: Sequence[str], picks: int, folder: Path
) -> pd.DataFrame:
    """What the classifier says of the control arm, in a table like the candidates'; its rows of the selection, whose
    ranks come behind those of the picks, with their probability of being drawn."""
    shards = _candidates(context, extracted, None, only=drawn)
    arm = concatenate([control.as_candidates(shard) for shard in shards if len(shard)])
    row_of = {str(sample_id): row for row, sample_id in enumerate(arm.sample_ids)}
    arm, name = arm.take(np.array([row_of[sample_id] for sample_id in drawn])), context.params.selection.strategy
    with tables.ScoredWriter(folder / _SCORED_CONTROL, strategies.schema(len(context.classes))) as writer:
        writer.write(arm.to_table(context.classes))
    ranks = {sample_id: rank for rank, sample_id in enumerate(drawn, start=picks + 1)}
    short = compact.asked_for(context.params)
    tables.write_candidates(folder / _SCORED_CONTROL, folder / tables.CONTROL_FILE, ranks, name, compact=short)
    (folder / _SCORED_CONTROL).unlink()
    table: pd.DataFrame = strategies.selection_table(arm, context.classes, name).to_pandas()
    return table.assign(rank=table["rank"] + picks, probability=len(drawn) / context.report["candidates"])


def _write_selection(
    context: RoundContext,
    selection: strategies.Selection,
    folder: Path,
    arm: pd.DataFrame | None,
    asked: pd.DataFrame,
) -> None:
    """The picks and the control arm, all candidates with their ranks, and how the picks follow from these."""
    name = context.params.selection.strategy
    picks = strategies.selection_table(selection.picks, context.classes, name).to_pandas()
    both = picks if arm is None else pd.concat([picks.astype(object), arm.astype(object)], ignore_index=True)
    tables.write_selection(both, folder / "selection.parquet")
    ranks = {sample_id: rank for rank, sample_id in enumerate(selection.sample_ids, start=1)}
    short = compact.asked_for(context.params)
    tables.write_candidates(folder / _SCORED, folder / "candidates.parquet", ranks, name, compact=short)
    (folder / _SCORED).unlink()
    listed, terms = selection.shortlist, selection.class_terms
    if listed is not None:
        path = folder / "shortlist.parquet"
        tables.write_shortlist(listed.sample_ids, listed.features_N_D, path, listed.labeled_distance_N)
    document = {
        "rule": selection.rule,
        "beta": selection.beta,
        "budget": selection.budget,
        "seed": selection.seed,
        "shortlist": None if listed is None else listed.per_pick,
        "notes": list(selection.notes),
        "class_terms": None if terms is None else terms.to_json(),
        "again": asked.to_numpy().tolist(),
    }
    write_bytes(folder / "selection.json", canonical_json(document))


def _few_features(context: RoundContext) -> bool:
    """Whether a shortlist's features are all that the strategy asks for, which lie in the classifier's files."""
    return strategies.record_of(context.strategy).only_searches_features and context.frozen is None


def _features_of(
    context: RoundContext, extracted: Sequence[StageReference], sample_ids: NDArray[Any]
) -> NDArray[np.float32]:
    """features_N_D of these candidates, in their order."""
    place_of = pd.Index(sample_ids)
    parts, places = [], []
    for ref in extracted:
        place_N = place_of.get_indexer(pd.Index(context.shards.sample_ids(ref["shard"])))
        rows = np.flatnonzero(place_N >= 0)
        if len(rows):
            parts.append(read_rows(file_of(context, ref, features.FEATURES), rows))
            places.append(place_N[rows])
    gathered: NDArray[np.float32] = np.concatenate(parts)[np.argsort(np.concatenate(places))]
    return gathered


def _feature_dims(context: RoundContext, extracted: Sequence[StageReference]) -> tuple[int, ...]:
    if context.frozen is None:
        return load_feature_dims(context, extracted)
    return context.frozen.embedder.embedded.feature_dims


def _write_labeled(labeled: strategies.Labeled | None, path: Path) -> None:
    """What the strategy saw of the labelled pool, without which its search cannot be made again."""
    if labeled is None or labeled.sample_ids is None or labeled.logits_N_C is None:
        raise ValueError("a strategy that records the labelled pool must declare Needs(posteriors=True)")
    tables.write_labeled(labeled.sample_ids, labeled.logits_N_C.astype(np.float32, copy=False), path)


def _labeled(context: RoundContext, extracted: Sequence[StageReference]) -> strategies.Labeled | None:
    """The labelled pool as the strategy's needs have it; None where it needs nothing of the pool."""
    needs = context.needs
    if not needs.labeled_pool:
        return None
    features_N_D, labels_N = labeled_rows(context, extracted, features.FEATURES)
    ids, places = [], []
    for ref in extracted:
        rows = np.flatnonzero(context.roles(ref["shard"])[0] == LABELED)
        ids.append(context.shards.sample_ids(ref["shard"])[rows])
        places.append(pd.DataFrame({"shard": ref["shard"], "row": rows}))
    where = pd.concat(places, ignore_index=True)
    return strategies.Labeled(
        features_N_D if context.frozen is None else context.frozen.gather(where),
        labels_N,
        sample_ids=np.concatenate(ids),
        logits_N_C=labeled_rows(context, extracted, features.LOGITS)[0],
        images_N_H_W_K=context.shards.gather(where) if needs.images else None,
    )


def _candidates(
    context: RoundContext,
    extracted: Sequence[StageReference],
    estimated: Mapping[str, Any] | None,
    *,
    without: Sequence[str] = (),
    only: Sequence[str] | None = None,
) -> Iterator[strategies.Shard]:
    """The candidates, in chunks of the shards' rows: without some, or only those."""
    told = estimated["shards"] if estimated else []
    likelihoods = told or [None] * len(extracted)
    for ref, likelihood in zip(extracted, likelihoods, strict=True):
        role, _ = context.roles(ref["shard"])
        files = _columns(context, ref, likelihood)
        columns: dict[str, Any] = {name: partial(row_batches, path) for name, path in files.items()}
        if context.frozen is not None:
            columns["features_N_D"] = partial(context.frozen.batches, ref["shard"])
        if context.needs.images:
            columns["images_N_H_W_K"] = partial(context.shards.batches, ref["shard"])
        ids = context.shards.sample_ids(ref["shard"])
        named_N = pools.among(pd.Series(ids), without if only is None else only).to_numpy()
        wanted_N = (role == CANDIDATE) & (~named_N if only is None else named_N)
        yield from context.learner.shards(columns, ids, wanted_N)


def _columns(context: RoundContext, ref: StageReference, likelihood: StageReference | None) -> dict[str, Path]:
    """Where the columns of a shard lie that the strategy needs."""
    files = {"logits_N_C": path_of(context, ref, features.LOGITS)}
    if context.needs.features and not _few_features(context):
        files["features_N_D"] = path_of(context, ref, features.FEATURES)
    if "committee" in ref:
        said = stage_output(context, "extract-committee", ref["committee"])
        files |= {name: said / f"{name}.npy" for name in committee.column_types(context.needs)}
    if likelihood is not None:
        there = output_of(context, likelihood)
        files |= {"log_likelihood_N_C": there / LOG_LIKELIHOOD, "vae_class_N": there / VAE_CLASS}
    return files


def selection_folder(context: RoundContext, selected: StageReference) -> Path:
    place = context.local.get(selected["stage"], selected["key"])
    if place is None:
        raise UserError(f"stage {selected['stage']} ({selected['key']}) is gone from the stage store: run it again")
    return place


def selection_document(context: RoundContext, selected: StageReference) -> dict[str, Any]:
    """How the picks follow from the candidates (rule, beta, budget, seed, class terms), and notes for people."""
    document: dict[str, Any] = read_json(selection_folder(context, selected), "selection.json")
    return document


def asked_again(context: RoundContext, selected: StageReference) -> pd.DataFrame:
    """The images that the request asks about once more, in order: sample_id and reason."""
    return pd.DataFrame(selection_document(context, selected)["again"], columns=["sample_id", "reason"], dtype="str")


def selection_in_words(context: RoundContext, selected: StageReference) -> str:
    """How many were picked, and as which classes they are predicted."""
    picks = tables.read_selection(selection_folder(context, selected) / "selection.parquet")
    counts = picks["predicted_class"].value_counts()
    classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    drawn = int(picks["probability"].notna().sum())
    beside = f" and {drawn} drawn uniformly" if drawn else ""
    if repeated := len(asked_again(context, selected)):
        beside += f", {repeated} asked about again"
    return f"{len(picks) - drawn} picked by {context.params.selection.strategy}{beside}" + (
        f" (predicted: {classes})" if classes else ""
    )
