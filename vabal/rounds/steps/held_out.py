"""What a probe says of images that it has not learned from: by that labels are suspected, and opinions weighed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from vabal import pools
from vabal.labels.again import HeldOut
from vabal.labels.suspicion import FOLDS, can_be_doubted
from vabal.learning import probe
from vabal.learning.embeddings import Embedder
from vabal.learning.network import LinearProbe
from vabal.learning.probe import LabelledEmbeddings
from vabal.rounds.context import RoundContext
from vabal.rounds.steps.train import with_places


@dataclass(frozen=True)
class Probed:
    """A probe of the labelled pool, and what its like say of each labelled image out of fold."""

    network: LinearProbe
    held_out: HeldOut
    context: RoundContext

    def with_requested(self, sample_ids: Sequence[str]) -> HeldOut:
        """Behind the labelled images those whose labels are out: the probe has learned from none of them."""
        catalog = pools.read_one(self.context.view, "catalog")
        rows = catalog[pools.among(catalog["sample_id"], sample_ids)].sort_values("sample_id", ignore_index=True)
        ids = list(rows["sample_id"])
        with torch.inference_mode():
            logits_N_C = self.network(torch.from_numpy(_embeddings(self.context, rows)[0]))
            posterior_N_C = logits_N_C.softmax(dim=1).float().numpy()
        both = np.concatenate([self.held_out.posterior_L_C, posterior_N_C])
        return HeldOut([*self.held_out.sample_ids, *ids], both)


def probed(context: RoundContext) -> Probed | None:
    """Of the labelled pool after intake, as `vabal labels suspects` has it; None where there are too few labels."""
    labeled = with_places(context, "labeled")
    if not can_be_doubted(labeled["label"]):
        return None
    embeddings_L_E, embedder = _embeddings(context, labeled)
    labels_L = np.array([context.classes.index(label) for label in labeled["label"]], dtype=np.int64)
    known = LabelledEmbeddings(embeddings_L_E, labels_L, list(labeled["sample_id"]), pools.groups_of(labeled))
    settings, seed = context.learner.probing, context.params.seed
    network, posterior_L_C = probe.held_out(
        known, embedder.embedded, len(context.classes), settings, folds=FOLDS, seed=seed
    )
    return Probed(network, HeldOut(known.sample_ids, posterior_L_C), context)


def _embeddings(context: RoundContext, rows: pd.DataFrame) -> tuple[NDArray[np.float32], Embedder]:
    """Of these catalog rows alone, where no learner has those of the pool."""
    if context.embedded is not None:
        return context.embedded.gather(rows), context.embedded.embedder
    embedder = Embedder(context.learner.params.backbone, context.device, context.workspace.embeddings, context.shared)
    return embedder.embed(context.shards.gather(rows), list(rows["sample_id"])), embedder
