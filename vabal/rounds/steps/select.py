"""The step select-batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vabal import strategies
from vabal.errors import UserError
from vabal.files import canonical_json, write_bytes
from vabal.learning import committee, features
from vabal.rounds import tables
from vabal.rounds.context import CANDIDATE, LABELED, RoundContext, StageReference, output_of, read_json, stage_output
from vabal.rounds.stage_store import stage_key
from vabal.rounds.steps.estimate import (
    CHUNK_ROWS,
    LOG_LIKELIHOOD,
    VAE_CLASS,
    class_terms,
    labeled_rows,
    load_feature_dims,
)

# -- select-batch -------------------------------------------------------------------------------------------------


def select_batch(
    context: RoundContext, extracted: Sequence[StageReference], estimated: Mapping[str, Any] | None
) -> StageReference:
    """The picks of the round and the table of all candidates; `estimated` has class terms and likelihoods, if any."""
    chosen = context.params.selection
    settings = {
        "selection": chosen.model_dump(),
        "probabilities": context.params.probabilities.model_dump(),
        "classes": list(context.classes),
        "needs": asdict(context.needs),
        "device": context.device.type,
        "threads": context.params.compute.threads,
    }
    inputs: dict[str, str | int] = {
        "features": ",".join(ref["key"] for ref in extracted),
        "committee": ",".join(ref.get("committee", "") for ref in extracted),
        "estimated": ",".join(ref["key"] for ref in [estimated["terms"], *estimated["shards"]]) if estimated else "",
        "unlabeled": context.report["digests"]["unlabeled"],
        "seed": context.seed("selection"),
    }
    key = stage_key("select-batch", settings, inputs)
    if context.local.get("select-batch", key) is None:
        with context.local.produce("select-batch", key) as folder:
            _select_batch(context, extracted, estimated, folder)
    return {"stage": "select-batch", "key": key}


def _select_batch(
    context: RoundContext, extracted: Sequence[StageReference], estimated: Mapping[str, Any] | None, folder: Path
) -> None:
    strategy, name = context.strategy, context.params.selection.strategy
    scored = folder / "scored.parquet"
    with tables.ScoredWriter(scored, strategies.schema(len(context.classes))) as writer:
        offered = strategies.Context(
            shards=lambda: _candidates(context, extracted, estimated),
            settings=context.params,
            seed=context.seed("selection"),
            class_terms=class_terms(context, estimated["terms"]) if estimated else None,
            labeled=_labeled(context, extracted),
            write=lambda part: writer.write(part.to_table(context.classes)),
            feature_dims=load_feature_dims(context, extracted),
            device=str(context.device),
        )
        budget = context.params.selection.budget
        if context.report["candidates"]:
            selection = strategy.select(offered, budget)
        else:
            selection = strategies.no_picks(name, budget, context.seed("selection"))
    picks = strategies.selection_table(selection.picks, context.classes, name)
    tables.write_selection(picks.to_pandas(), folder / "selection.parquet")
    ranks = {sample_id: rank for rank, sample_id in enumerate(selection.sample_ids, start=1)}
    tables.write_candidates(scored, folder / "candidates.parquet", ranks, name)
    scored.unlink()
    if selection.shortlist is not None:
        listed = selection.shortlist
        tables.write_shortlist(listed.sample_ids, listed.features_N_D, folder / "shortlist.parquet")
    if getattr(strategy, "labeled_inputs", False):
        _write_labeled(offered.labeled, folder / "labeled.parquet")
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
    tables.write_labeled(labeled.sample_ids, labeled.logits_N_C.astype(np.float32, copy=False), path)


def _labeled(context: RoundContext, extracted: Sequence[StageReference]) -> strategies.Labeled | None:
    """The labelled pool as the strategy's needs have it; None where it needs nothing of the pool."""
    needs = context.needs
    if not (needs.features or needs.posteriors or needs.images):
        return None
    features_N_D, labels_N = labeled_rows(context, extracted, features.FEATURES)
    ids, places = [], []
    for ref in extracted:
        rows = np.flatnonzero(context.roles(ref["shard"])[0] == LABELED)
        ids.append(context.shards.sample_ids(ref["shard"])[rows])
        places.append(pd.DataFrame({"shard": ref["shard"], "row": rows}))
    return strategies.Labeled(
        features_N_D,
        labels_N,
        sample_ids=np.concatenate(ids),
        logits_N_C=labeled_rows(context, extracted, features.LOGITS)[0],
        images_N_H_W_K=context.shards.gather(pd.concat(places, ignore_index=True)) if needs.images else None,
    )


def _candidates(
    context: RoundContext, extracted: Sequence[StageReference], estimated: Mapping[str, Any] | None
) -> Iterator[strategies.Shard]:
    """The candidates, in chunks of the shards' rows."""
    needs = context.needs
    chunk = context.params.features.batch_size if needs.images else CHUNK_ROWS
    likelihoods = estimated["shards"] if estimated else [None] * len(extracted)
    for ref, likelihood in zip(extracted, likelihoods, strict=True):
        role, _ = context.roles(ref["shard"])
        wanted, ids = role == CANDIDATE, context.shards.sample_ids(ref["shard"])
        place = output_of(context, ref)
        files = {"logits_N_C": place / features.LOGITS}
        if needs.features:
            files["features_N_D"] = place / features.FEATURES
        if "committee" in ref:
            said = stage_output(context, "extract-committee", ref["committee"])
            files |= {name: said / f"{name}.npy" for name in committee.column_types(needs)}
        if likelihood is not None:
            there = output_of(context, likelihood)
            files |= {"log_likelihood_N_C": there / LOG_LIKELIHOOD, "vae_class_N": there / VAE_CLASS}
        columns = {name: features.row_batches(path, chunk) for name, path in files.items()}
        if needs.images:
            columns["images_N_H_W_K"] = context.shards.batches(ref["shard"], chunk)
        for parts in zip(*columns.values(), strict=True):
            start, count = parts[0][0], len(parts[0][1])
            keep = np.flatnonzero(wanted[start : start + count])
            values = {name: part[keep] for name, (_, part) in zip(columns, parts, strict=True)}
            yield strategies.Shard(ids[start + keep], **values)


def selection_folder(context: RoundContext, selected: StageReference) -> Path:
    place = context.local.get(selected["stage"], selected["key"])
    if place is None:
        raise UserError(f"stage {selected['stage']} ({selected['key']}) is gone from the stage store: run it again")
    return place


def selection_document(context: RoundContext, selected: StageReference) -> dict[str, Any]:
    """How the picks follow from the candidates (rule, beta, budget, seed, class terms), and notes for people."""
    document: dict[str, Any] = read_json(selection_folder(context, selected), "selection.json")
    return document


def selection_in_words(context: RoundContext, selected: StageReference) -> str:
    """How many were picked, and as which classes they are predicted."""
    picks = tables.read_selection(selection_folder(context, selected) / "selection.parquet")
    counts = picks["predicted_class"].value_counts()
    classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{len(picks)} picked by {context.params.selection.strategy}" + (
        f" (predicted: {classes})" if classes else ""
    )
