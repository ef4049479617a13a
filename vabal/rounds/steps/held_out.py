"""What a probe says of each labelled image that it has not learned from: by that labels are suspected."""

import numpy as np

from vabal import pools
from vabal.labels.again import HeldOut
from vabal.labels.suspicion import FOLDS, can_be_doubted
from vabal.learning import probe
from vabal.learning.embeddings import Embedder
from vabal.learning.probe import LabelledEmbeddings
from vabal.rounds.context import RoundContext
from vabal.rounds.steps.train import with_places


def held_out(context: RoundContext) -> HeldOut | None:
    """Of the labelled pool after intake, as `vabal labels suspects` has it; None where there are too few labels."""
    labeled = with_places(context, "labeled")
    if not can_be_doubted(labeled["label"]):
        return None
    ids = list(labeled["sample_id"])
    if context.embedded is not None:
        embedder, embeddings_L_E = context.embedded.embedder, context.embedded.gather(labeled)
    else:  # the labelled images alone: another learner has no embeddings of the pool
        embedder = Embedder(context.learner.params.backbone, context.device, context.workspace.embeddings)
        embeddings_L_E = embedder.embed(context.shards.gather(labeled), ids)
    labels_L = np.array([context.classes.index(label) for label in labeled["label"]], dtype=np.int64)
    known = LabelledEmbeddings(embeddings_L_E, labels_L, ids, pools.groups_of(labeled))
    posterior_L_C = probe.held_out(
        known, embedder.embedded, len(context.classes), context.learner.probing, folds=FOLDS, seed=context.params.seed
    )
    return HeldOut(ids, posterior_L_C)
