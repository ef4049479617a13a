"""The steps of a round: each loads what it needs, calls the core, and saves into the stage store."""

from typing import TYPE_CHECKING

from vabal._lazy import members

if TYPE_CHECKING:
    from vabal.rounds.steps.estimate import (
        class_terms,
        estimate_class_terms,
        estimate_likelihood,
        train_vae,
    )
    from vabal.rounds.steps.extract import embed_images, extract_features, programs, shard_names, weights
    from vabal.rounds.steps.measure import evaluate, evaluation, evaluation_files, evaluation_folder
    from vabal.rounds.steps.select import (
        asked_again,
        select_batch,
        selection_document,
        selection_folder,
        selection_in_words,
    )
    from vabal.rounds.steps.sharing import share, with_weights
    from vabal.rounds.steps.take_in import intake, intake_again, refuse_unserved
    from vabal.rounds.steps.train import load_classifier, train_classifier, train_first, train_member

__all__ = [
    "asked_again",
    "class_terms",
    "embed_images",
    "estimate_class_terms",
    "estimate_likelihood",
    "evaluate",
    "evaluation",
    "evaluation_files",
    "evaluation_folder",
    "extract_features",
    "intake",
    "intake_again",
    "load_classifier",
    "programs",
    "refuse_unserved",
    "select_batch",
    "selection_document",
    "selection_folder",
    "selection_in_words",
    "shard_names",
    "share",
    "train_classifier",
    "train_first",
    "train_member",
    "train_vae",
    "weights",
    "with_weights",
]

__getattr__ = members(
    __name__,
    {
        "estimate": (
            "class_terms",
            "estimate_class_terms",
            "estimate_likelihood",
            "train_vae",
        ),
        "extract": (
            "embed_images",
            "extract_features",
            "programs",
            "shard_names",
            "weights",
        ),
        "measure": (
            "evaluate",
            "evaluation",
            "evaluation_files",
            "evaluation_folder",
        ),
        "select": (
            "asked_again",
            "select_batch",
            "selection_document",
            "selection_folder",
            "selection_in_words",
        ),
        "sharing": (
            "share",
            "with_weights",
        ),
        "take_in": (
            "intake",
            "intake_again",
            "refuse_unserved",
        ),
        "train": (
            "load_classifier",
            "train_classifier",
            "train_first",
            "train_member",
        ),
    },
)
