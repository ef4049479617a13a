"""Uniform random sampling."""

import numpy as np

from tests.support.small_shards import Settings, context, names
from vabal import strategies
from vabal.strategies import Candidates, Shard
from vabal.strategies.noise import uniform_noise


def test_scores_are_drawn_from_seed_and_id_and_the_predicted_class_stands_beside_them() -> None:
    given = Shard(names("s", 2), logits_N_C=np.array([[0.0, 1.0], [2.0, 1.0]]))
    for shard, classes in ((given, [1, 0]), (Shard(names("s", 2)), None)):
        written: list[Candidates] = []
        strategies.get("random").select(context(shard, seed=4, write=written.append), 1)
        [part] = written
        assert part.score_N.tolist() == uniform_noise(given.sample_ids, 4).tolist()
        found = part.predicted_class_N
        assert (None if found is None else found.tolist()) == classes
        again = strategies.get("random").rescore(part, class_terms=None, settings=Settings(), seed=4)
        assert again is not None
        assert again.tolist() == part.score_N.tolist()
