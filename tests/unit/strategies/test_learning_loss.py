import numpy as np
import pytest

from tests.support.small_shards import context
from vabal import strategies
from vabal.strategies import Needs, Shard
from vabal.strategies.learning_loss import LearningLossStrategy


def shard_of(*losses: float) -> Shard:
    return Shard(
        np.array([f"s{row}" for row in range(len(losses))], dtype=object),
        logits_N_C=np.tile([0.0, 1.0], (len(losses), 1)),
        predicted_loss_N=np.array(losses, dtype=np.float32),
    )


def test_the_largest_predicted_losses_are_picked_also_where_all_are_negative() -> None:
    shard = shard_of(-3.5, -1.25, -2.0, -9.0)
    selection = LearningLossStrategy().select(context(shard), 2)
    assert selection.sample_ids == ["s1", "s2"]
    assert selection.picks.score_N.tolist() == [-1.25, -2.0]
    assert selection.picks.predicted_class_N is not None
    assert selection.picks.predicted_class_N.tolist() == [1, 1]


def test_the_loss_prediction_module_is_asked_for() -> None:
    assert strategies.get("learning_loss").needs == Needs(auxiliary_loss="loss_prediction", posteriors=True)


def test_a_shard_without_predicted_losses_is_refused() -> None:
    shard = Shard(np.array(["a"], dtype=object), logits_N_C=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="without predicted losses"):
        LearningLossStrategy().score(shard, context(shard))
