from typing import Any

import numpy as np
import pytest

from tests.support.small_shards import context
from vabal import strategies
from vabal.strategies import Needs, Shard
from vabal.strategies.ensemble import EnsembleStrategy


def shard_of(votes: Any, ids: Any = None) -> Shard:
    votes_N_C = np.asarray(votes, dtype=np.int32).reshape(-1, 3)
    names = [f"s{row}" for row in range(len(votes_N_C))] if ids is None else ids
    return Shard(np.array(names, dtype=object), logits_N_C=votes_N_C.astype(np.float32), votes_N_C=votes_N_C)


VOTES = [[5, 0, 0], [0, 4, 1], [1, 3, 1], [2, 2, 1], [1, 0, 4]]


def test_the_score_is_the_share_of_members_that_do_not_vote_with_the_most() -> None:
    scored = EnsembleStrategy().score(shard_of(VOTES), context())
    assert scored.score_N.tolist() == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.2])
    assert scored.predicted_class_N is not None
    assert scored.predicted_class_N.tolist() == [0, 1, 1, 0, 2]


def test_five_members_are_asked_for() -> None:
    assert strategies.get("ensemble").needs == Needs(members=5, posteriors=True)


def test_a_shard_without_votes_is_refused_and_an_empty_one_is_not() -> None:
    with pytest.raises(ValueError, match="without votes"):
        EnsembleStrategy().score(Shard(np.array(["a"], dtype=object), logits_N_C=np.zeros((1, 3))), context())
    assert len(EnsembleStrategy().score(shard_of([]), context())) == 0


def test_ties_are_broken_by_a_hash_of_seed_and_id_and_not_by_the_pools_order() -> None:
    votes = np.array(VOTES * 8)
    ids = np.array([f"x{row}" for row in range(40)], dtype=object)
    order = np.random.default_rng(0).permutation(40)
    strategy = EnsembleStrategy()
    whole = strategy.select(context(shard_of(votes, ids)), 20).sample_ids
    parts = [shard_of(votes[rows], ids[rows]) for rows in (order[:11], order[11:])]
    assert strategy.select(context(*parts), 20).sample_ids == whole
    assert len(set(whole)) == 20
    scores = {name: 1 - row.max() / 5 for name, row in zip(ids, votes, strict=True)}
    assert [scores[name] for name in whole] == pytest.approx([0.6] * 8 + [0.4] * 8 + [0.2] * 4)
    other = strategy.select(context(shard_of(votes, ids), seed=1), 20).sample_ids
    assert set(other[:16]) == set(whole[:16])
    assert set(other) != set(whole)
