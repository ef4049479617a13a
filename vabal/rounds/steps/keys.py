"""What the output of each stage is made of.

A stage's output is looked up by its key: two contexts with the same key share it. So a key names every setting and
every input that can change the output, and nothing else; what comes out of an earlier stage stands for all that went
into it. tests/unit/rounds/test_stage_keys.py compares these with a table, and changes each ingredient.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from vabal import pools, probabilities
from vabal.rounds.context import RoundContext, StageReference
from vabal.rounds.opened import OpenRound
from vabal.rounds.stage_store import StageKey
from vabal.rounds.steps.compare import compared_images

Inputs = dict[str, str | int]


def intake_key(begun: OpenRound, inbox: Sequence[str], consensus: str = "latest", *, asks: bool = True) -> StageKey:
    """`inbox` names what was taken in; names of entries tell their content. `asks`: whether labels are asked for."""
    inputs: Inputs = {"parent": begun.parent, "round": begun.round, "inbox": "\n".join(inbox)}
    return StageKey("intake", {"consensus": consensus, "asks": asks}, inputs)


def classifier_key(context: RoundContext, labeled: pd.DataFrame) -> StageKey:
    """`labeled` are the labelled samples with the digests of their images. Strategies share the classifier."""
    settings = {
        "classifier": context.params.classifier.model_dump(),
        "backbone": context.learner.backbone,
        "finetune": context.params.finetune.model_dump() if context.params.classifier.learner == "finetune" else None,
        "images": context.params.images.model_dump(),
        "classes": list(context.classes),
        "cross_fit": context.learner.folds,
        "precision": str(context.learner.precision),
        **_arithmetic(context),
    }
    inputs: Inputs = {"labeled": pools.table_digest(labeled, ["sample_id"]), "seed": context.seed("classifier")}
    return StageKey("train-classifier", settings, inputs)


def committee_key(context: RoundContext, trained: StageReference) -> StageKey:
    """The scoring networks have the classifier's recipe and labels, and it is one of them."""
    settings = {name: getattr(context.needs, name) for name in ("dropout", "passes", "members", "auxiliary_loss")}
    return StageKey("train-committee", settings, {"classifier": trained["key"], "seed": context.seed("classifier")})


def member_key(context: RoundContext, trained: StageReference, name: str) -> StageKey:
    """One of the scoring networks, trained by itself."""
    whole = committee_key(context, trained)
    return StageKey("train-member", whole.settings, {**whole.inputs, "network": name})


def evaluation_key(context: RoundContext, trained: StageReference, holdout: pd.DataFrame) -> StageKey:
    settings = {"classes": list(context.classes), "batch_size": context.params.features.batch_size}
    inputs = {"classifier": trained["key"], "holdout": pools.table_digest(holdout, ["sample_id"])}
    return StageKey("evaluate", settings, inputs)


def features_key(context: RoundContext, trained: StageReference, shard: str) -> StageKey:
    inputs = {"classifier": trained["key"], "shard": context.report["shards"][shard]}
    return StageKey("extract-features", _as_extracted(context), inputs)


def committee_columns_key(context: RoundContext, committee: str, shard: str) -> StageKey:
    """`committee` is the key of the scoring networks."""
    inputs = {"committee": committee, "shard": context.report["shards"][shard]}
    return StageKey("extract-committee", _as_extracted(context), inputs)


def vae_key(context: RoundContext, extracted: Sequence[StageReference]) -> StageKey:
    """Of the rows of `extracted` the VAE sees those that are neither labelled nor held out."""
    inputs: Inputs = {
        "features": _all_keys(extracted),
        "roles": context.report["digests"]["unlabeled"],
        "seed": context.seed("vae"),
    }
    return StageKey("train-vae", {"vae": context.params.vae.model_dump(), **_arithmetic(context)}, inputs)


def class_terms_key(
    context: RoundContext, trained: StageReference, extracted: Sequence[StageReference], encoded: StageReference | None
) -> StageKey:
    """Without a VAE labels and out-of-fold predictions are counted, which lie beside the classifier."""
    inputs: Inputs = {"classifier": trained["key"], "labeled": context.report["digests"]["labeled"]}
    settings: dict[str, Any] = {"probabilities": context.params.probabilities.model_dump()}
    if encoded is not None:
        settings["products"] = str(probabilities.products_of(context.params.probabilities.products, context.device))
        inputs |= {
            "vae": encoded["key"],
            "features": _all_keys(extracted),
            "unlabeled": context.report["digests"]["unlabeled"],
            "seed": context.seed("draws"),
        }
    return StageKey("class-terms", settings, inputs)


def likelihood_key(context: RoundContext, extracted: StageReference, encoded: StageReference) -> StageKey:
    inputs: Inputs = {"vae": encoded["key"], "features": extracted["key"], "seed": context.seed("draws")}
    chosen = context.params.probabilities
    products = str(probabilities.products_of(chosen.products, context.device))
    settings = {"probabilities": chosen.model_dump(), "products": products}
    return StageKey("estimate-probabilities", settings, inputs)


def selection_key(
    context: RoundContext, extracted: Sequence[StageReference], estimated: Mapping[str, Any] | None
) -> StageKey:
    again, digests = context.learner.doubting, context.report["digests"]
    settings = {
        "selection": context.params.selection.model_dump(),
        "again": again,
        "probabilities": context.params.probabilities.model_dump(),
        "classes": list(context.classes),
        "needs": asdict(context.needs),
        "frozen": dict(context.frozen.embedder.identity) if context.frozen else None,
        **_arithmetic(context),
    }
    inputs: Inputs = {
        "features": _all_keys(extracted),
        "committee": ",".join(ref.get("committee", "") for ref in extracted),
        "estimated": _all_keys([estimated["terms"], *estimated["shards"]]) if estimated else "",
        "unlabeled": digests["unlabeled"],
        "seed": context.seed("selection"),
        "control": context.seed("control"),
        "compared": "\n".join(compared_images(context).sample_ids),
        "opinions": "" if again is None else ",".join(digests.get(name, "") for name in _OPINIONS),
    }
    return StageKey("select-batch", settings, inputs)


_OPINIONS = ("catalog", "labeled", "label_events", "class_events", "asked_again", "holdout")  # what is asked again


def _arithmetic(context: RoundContext) -> dict[str, Any]:
    """What decides the last bits of sums."""
    return {"device": context.device.type, "threads": context.params.compute.threads}


def _as_extracted(context: RoundContext) -> dict[str, Any]:
    return {"images": context.params.images.model_dump(), "batch_size": context.params.features.batch_size}


def _all_keys(refs: Sequence[StageReference]) -> str:
    return ",".join(ref["key"] for ref in refs)
