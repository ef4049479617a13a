"""What a strategy asks of training."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vabal.errors import UserError


@dataclass(frozen=True)
class Needs:
    """What a strategy asks of training (the first four) and of the pool.

    `dropout`, `members` and `auxiliary_loss` ask for networks beside the classifier, which itself stays the same for
    every strategy: one with dropout before each stage, an ensemble of `members`, or one with an auxiliary loss.
    `passes` is how often the network with dropout is asked. With `embeddings` the features are those of the frozen
    network of the settings' section `backbone` instead of the classifier's. `class_terms` are prior and precision of
    each class, as they are counted without a VAE; with `vae` they come anyway.
    """

    dropout: float = 0.0
    passes: int = 1
    members: int = 1
    auxiliary_loss: str | None = None
    features: bool = False
    embeddings: bool = False
    posteriors: bool = False
    images: bool = False
    vae: bool = False
    class_terms: bool = False

    @property
    def labeled_pool(self) -> bool:
        """Whether the strategy is handed the labelled pool beside the candidates."""
        return self.features or self.posteriors or self.images

    @property
    def estimated(self) -> bool:
        """Whether class terms are estimated, by a VAE or without one."""
        return self.vae or self.class_terms


def check_finite(what: str, values: Any, sample_ids: Any, cause: str = "the training") -> None:
    """Raises UserError naming the samples of which a number is not finite (their rows, where `sample_ids` is None), and
    what to look at beside them. In blocks: no copy of the whole."""
    if values is None or np.asarray(values).dtype.kind != "f":
        return
    for start in range(0, len(values), _BLOCK_ROWS):
        block = np.asarray(values[start : start + _BLOCK_ROWS])
        wrong = np.flatnonzero(~np.isfinite(block.reshape(len(block), -1)).all(axis=1)) + start
        if len(wrong):
            named = ", ".join(f"row {row}" if sample_ids is None else str(sample_ids[row]) for row in wrong[:5])
            more = f" and {len(wrong) - 5} more of these rows" if len(wrong) > 5 else ""
            raise UserError(f"{what} is not finite for {named}{more}: look at these images, and at {cause}")


_BLOCK_ROWS = 2**16
