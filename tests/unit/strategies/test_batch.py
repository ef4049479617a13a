"""From scores to a batch: hashes, noise, quotas, and picks held against sorting everything at once."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.small_shards import names
from vabal.errors import UserError
from vabal.strategies import Candidates, Picker, Rule, batch, noise, pick, rule_named
from vabal.strategies.noise import gumbel_noise, hash_ids, uniform_noise
from vabal.strategies.quotas import allot, groups, log_quota_weights

IDS = ["a", "", "größe", "digits/0001.png", "an id that is longer than the others"]


# -- hashes and noise ---------------------------------------------------------------------------------------------


def hash_of(sample_id: str, seed: int, purpose: int) -> int:
    """FNV-1a over the bytes, then splitmix64, in whole numbers."""
    value = 0xCBF29CE484222325
    for byte in sample_id.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return mixed(value ^ mixed((seed % 2**64 * 2 + purpose) % 2**64))


def mixed(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 + 5, 2**64 + 3])
@pytest.mark.parametrize("purpose", [0, 1, 2])
def test_hashes_are_those_of_whole_numbers_whatever_is_hashed_at_once(
    seed: int, purpose: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [hash_of(sample_id, seed, purpose) for sample_id in IDS]
    for rows in (1, 2, 5, 100):
        monkeypatch.setattr(noise, "_HASH_ROWS", rows)
        found = hash_ids(IDS, seed, purpose)
        assert found.dtype == np.uint64
        assert found.tolist() == expected


def test_a_hash_is_for_ties_where_nothing_else_is_said_and_ids_may_be_numbers() -> None:
    assert hash_ids([12, 7], 5).tolist() == [hash_of("12", 5, 0), hash_of("7", 5, 0)]
    assert hash_ids([], 5).shape == (0,)


def test_noise_comes_from_the_upper_bits_of_a_hash_of_its_own() -> None:
    uniform = [((hash_of(sample_id, 7, 1) >> 11) + 0.5) / 2**53 for sample_id in IDS]
    assert uniform_noise(IDS, 7).tolist() == uniform
    assert gumbel_noise(IDS, 7).tolist() == pytest.approx([-math.log(-math.log(u)) for u in uniform], rel=1e-12)


# -- quotas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "weights", "available", "expected"),
    [
        (1, {5: 1, 2: 1}, {2: 9, 5: 9}, {2: 1, 5: 0}),  # a tie goes to the lower class, in whatever order
        (5, {0: 1, 1: 1, 2: 2}, {0: 9, 1: 9, 2: 9}, {0: 1, 1: 1, 2: 3}),  # 1.25, 1.25, 2.5
        (4, {0: 1, 1: 1}, {0: 2, 1: 9}, {0: 2, 1: 2}),
        (6, {0: 2, 1: 1, 2: 1}, {0: 1, 1: 9, 2: 9}, {0: 1, 1: 3, 2: 2}),  # 5 left for two
        (9, {0: 4, 1: 4, 2: 1}, {0: 1, 1: 2, 2: 9}, {0: 1, 1: 2, 2: 6}),
        (9, {0: 1, 1: 1}, {0: 0, 1: 4}, {0: 0, 1: 4}),
        (3, {1: 1}, {0: 8, 1: 2}, {1: 2}),  # a class without a weight has no share
        (0, {0: 1, 1: 1}, {0: 3, 1: 3}, {0: 0, 1: 0}),
    ],
)
def test_shares_by_hand(
    budget: int, weights: dict[int, float], available: dict[int, int], expected: dict[int, int]
) -> None:
    assert allot(budget, weights, available) == expected


def test_the_group_is_the_class_whose_terms_stand_in_the_row_then_the_vae_s_then_the_classifier_s() -> None:
    own_N, vae_N, predicted_N = (np.array([k], dtype=np.int32) for k in (0, 1, 2))
    whole = Candidates(np.array(["a"]), np.zeros(1), predicted_N, vae_N, own_class_N=own_N)
    assert groups(whole).tolist() == [0]
    assert groups(replace(whole, own_class_N=None)).tolist() == [1]
    assert groups(replace(whole, own_class_N=None, vae_class_N=None)).tolist() == [2]


def test_quota_weights_are_minus_beta_times_the_logarithm_of_prior_times_precision() -> None:
    two = names("s", 2), np.zeros(2)
    prior_N, precision_N = np.array([0.5, 0.1]), np.array([0.5, 0.2])
    whole = Candidates(*two, prior_N=prior_N, precision_N=precision_N)
    assert log_quota_weights(whole, 3.0).tolist() == pytest.approx([3 * math.log(4), 3 * math.log(50)])
    assert rule_named("quota").log_weights(whole, 1.0).tolist() == pytest.approx([math.log(4), math.log(50)])
    for lacking in (Candidates(*two, prior_N=prior_N), Candidates(*two, precision_N=precision_N), Candidates(*two)):
        assert log_quota_weights(lacking, 3.0).tolist() == [0, 0]
    for name in ("topk", "gumbel", "spread"):
        assert rule_named(name).log_weights(whole, 3.0).tolist() == [0, 0]


# -- rules --------------------------------------------------------------------------------------------------------


def test_keys_are_the_scores_and_of_gumbel_beta_times_these_and_noise() -> None:
    three = Candidates(names("s", 3), np.array([1.0, -2.0, 0.5]))
    for name in ("topk", "quota", "spread"):
        assert rule_named(name).key(three, 4.0, 9).tolist() == [1, -2, 0.5]
    noise_N = gumbel_noise(three.sample_ids, 9)
    assert rule_named("gumbel").key(three, 4.0, 9).tolist() == [4 + noise_N[0], -8 + noise_N[1], 2 + noise_N[2]]


@pytest.mark.parametrize("name", ["topk", "gumbel", "quota"])
def test_only_a_rule_that_searches_takes_more_candidates_than_it_picks(name: Rule) -> None:
    assert (rule_named(name).searches, rule_named(name).per_pick) == (False, None)
    assert (rule_named("spread").searches, rule_named("spread").per_pick) == (True, 50)


def test_the_rows_of_a_batch_are_the_first_and_no_more_than_there_are() -> None:
    three = Candidates(names("s", 3), np.zeros(3))
    assert rule_named("topk").order(three, None, 2, 1.0).tolist() == [0, 1]
    assert rule_named("topk").order(three, None, 5, 1.0).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="needs the features of its shortlist"):
        rule_named("spread").order(three, None, 2, 1.0)
    assert sorted(rule_named("spread").order(three, np.eye(3), 5, 1.0).tolist()) == [0, 1, 2]


# -- picks --------------------------------------------------------------------------------------------------------


def pool(rows: int, seed: int = 0) -> Candidates:
    """Scores of which many are equal, and three classes whose shares differ."""
    numbers = np.random.default_rng(seed)
    own_N = numbers.integers(0, 3, rows).astype(np.int32)
    return Candidates(
        names("s", rows),
        numbers.integers(0, 6, rows).astype(float),
        own_class_N=own_N,
        prior_N=np.array([0.6, 0.3, 0.1])[own_N],
        precision_N=np.array([0.9, 0.7, 0.5])[own_N],
    )


def sorted_picks(whole: Candidates, budget: int, rule: Rule, beta: float, seed: int) -> list[str]:
    """All at once: sorted by key, hash and id; of quotas the first of each class, then sorted again."""
    key_N = rule_named(rule).key(whole, beta, seed)
    order = sorted(range(len(whole)), key=lambda row: (-key_N[row], hash_of(str(whole.sample_ids[row]), seed, 0)))
    own_N, terms_C = whole.own_class_N, [0.54, 0.21, 0.05]
    if rule == "quota" and own_N is not None:
        available = {k: int((own_N == k).sum()) for k in range(3)}
        shares = allot(budget, {k: term**-beta for k, term in enumerate(terms_C)}, available)
        first = {row for k in range(3) for row in [row for row in order if own_N[row] == k][: shares[k]]}
        order = [row for row in order if row in first]
    return [str(whole.sample_ids[row]) for row in order[:budget]]


@pytest.mark.parametrize("rule", ["topk", "gumbel", "quota"])
@pytest.mark.parametrize("budget", [1, 7, 30, 99, 100])
@pytest.mark.parametrize("parts", [1, 4, 100])
def test_picks_are_those_of_sorting_all_candidates(rule: Rule, budget: int, parts: int) -> None:
    whole = pool(100)
    shards = [whole.take(rows) for rows in np.array_split(np.arange(100), parts)]
    found = pick(shards, budget, rule, 0.7, 5)
    assert [str(sample_id) for sample_id in found.sample_ids] == sorted_picks(whole, budget, rule, 0.7, 5)
    rows = [list(whole.sample_ids).index(sample_id) for sample_id in found.sample_ids]
    assert found.score_N.tolist() == whole.score_N[rows].tolist()


def test_what_is_left_out_is_the_rule_topk_a_beta_of_one_and_the_seed_0() -> None:
    whole = pool(60)
    for rule in ("topk", "gumbel", "quota"):
        assert list(pick(whole, 9, rule).sample_ids) == list(pick(whole, 9, rule, 1.0, 0).sample_ids)
        assert list(pick(whole, 9, rule).sample_ids) == sorted_picks(whole, 9, rule, 1.0, 0)
    picker = Picker(9)
    assert (picker.budget, picker.rule, picker.beta, picker.seed, picker.candidates) == (9, "topk", 1.0, 0, 0)


def test_of_equal_keys_and_hashes_the_id_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "hash_ids", lambda ids, *_: np.zeros(len(ids), dtype=np.uint64))
    ids = np.array(["b", "d", "a", "c"], dtype=object)
    assert list(pick(Candidates(ids, np.zeros(4)), 4).sample_ids) == ["a", "b", "c", "d"]


def test_a_picker_among_keeps_the_best_of_a_search_and_the_picks_of_any_other_rule() -> None:
    whole = pool(200)
    searched = Picker.among(rule_named("spread"), 3, 0.7, 5, 20)
    searched.add(whole)
    assert [str(name) for name in searched.picks().sample_ids] == sorted_picks(whole, 60, "topk", 1.0, 5)
    drawn = Picker.among(rule_named("gumbel"), 3, 0.7, 5, None)
    drawn.add(whole)
    assert [str(name) for name in drawn.picks().sample_ids] == sorted_picks(whole, 3, "gumbel", 0.7, 5)
    with pytest.raises(ValueError, match="not said among how many"):
        Picker.among(rule_named("spread"), 3, 0.7, 5, None)


def test_candidates_are_counted_and_empty_shards_are_borne() -> None:
    whole = pool(10)
    picker = Picker(4)
    with pytest.raises(ValueError, match="no candidates were added"):
        picker.picks()
    for rows in ([], [0, 1, 2], [], [3, 4]):
        picker.add(whole.take(np.array(rows, dtype=np.int64)))
    assert picker.candidates == 5
    assert len(picker.picks()) == 4
    empty = Picker(4)
    empty.add(whole.take(np.zeros(0, dtype=np.int64)))
    assert (len(empty.picks()), empty.candidates) == (0, 0)
    assert empty.picks().prior_N is not None  # the columns are there, without rows


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (1, "not finite for s0: look"),
        (5, "for s0, s1, s2, s3, s4: look"),
        (6, "for s0, s1, s2, s3, s4 and 1 more: look"),
        (8, "for s0, s1, s2, s3, s4 and 3 more: look"),
    ],
)
def test_scores_that_are_not_finite_name_five_samples_and_count_the_others(broken: int, told: str) -> None:
    score_N = np.zeros(9)
    score_N[:broken] = np.nan
    with pytest.raises(UserError, match=told):
        pick(Candidates(names("s", 9), score_N), 1)


def test_samples_that_came_twice_are_named_up_to_five() -> None:
    def told(ids: Sequence[Any]) -> str:
        one = Candidates(np.array(ids, dtype=object), np.zeros(len(ids)))
        with pytest.raises(ValueError, match="more than once") as caught:
            pick([one, one.take(np.arange(len(ids) - 1))], 99)
        return str(caught.value).partition(": ")[2]

    assert told(["a", "b"]) == "a"
    assert len(told(list("abcdefg")).split(", ")) == 5
