"""Learning loss: the samples for which a module beside the classifier predicts the largest loss."""

from typing import ClassVar

import numpy as np

from vabal.learning.needs import Needs
from vabal.strategies.base import Context, ScoringStrategy, Shard, with_prediction
from vabal.strategies.candidates import Candidates


class LearningLossStrategy(ScoringStrategy):
    """The loss that the loss-prediction module expects (Yoo & Kweon, CVPR 2019; see `vabal.learning.loss_prediction`).

    Its scale means nothing, its order does. Costs one training and one forward pass a sample; the score is O(N), and
    memory does not grow with the pool.
    """

    name: ClassVar[str] = "learning_loss"
    needs: ClassVar[Needs] = Needs(auxiliary_loss="loss_prediction", posteriors=True)
    inputs: tuple[str, ...] = ("logits_N_C", "predicted_loss_N")
    derivable: bool = True

    def score(self, shard: Shard, context: Context) -> Candidates:  # noqa: ARG002 -- the base's
        if shard.predicted_loss_N is None:
            raise ValueError('the shard came without predicted losses: declare Needs(auxiliary_loss="loss_prediction")')
        return with_prediction(shard, np.asarray(shard.predicted_loss_N, dtype=np.float64))
