from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import small_shards
from vabal import strategies
from vabal.strategies import Context, Labeled, Shard
from vabal.strategies.direct import MOST_NARROWING, DirectStrategy, between, interval, nearest, separation
from vabal.strategies.galaxy import confidence

INFINITY = float("inf")


def context(candidates: Any, known: Any, labels: Any, seed: int = 0, *, narrowing: bool = False) -> Context:
    """Candidates c0, c1, ... and labelled samples, given by their probabilities."""
    candidates, known = np.asarray(candidates, dtype=float), np.asarray(known, dtype=float)
    shard = Shard(small_shards.names("c", len(candidates)), logits_N_C=np.log(candidates).astype(np.float32))
    known = np.log(known.reshape(-1, candidates.shape[1])).astype(np.float32)
    known = small_shards.labeled(labels, logits_N_C=known)
    return small_shards.context(shard, seed=seed, labeled=known, selection={"narrowing": narrowing})


def two_classes(*first: float) -> list[list[float]]:
    return [[p, 1 - p] for p in first]


def picks(found: Context, budget: int) -> list[str]:
    return strategies.get("direct").select(found, budget).sample_ids


# -- the threshold ----------------------------------------------------------------------------------------------


def test_the_threshold_of_labels_that_separate_is_half_way_between_them() -> None:
    assert separation(np.array([0.1, 0.9, 0.7, 0.3]), np.array([False, True, True, False])) == pytest.approx(0.5)


def test_a_wrong_label_far_from_the_others_does_not_move_the_threshold() -> None:
    labels = np.array([True, True, True, False, False, False, True])
    assert separation(np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.05]), labels) == pytest.approx(0.5)


def test_equal_confidences_are_not_separated() -> None:
    # 1 error wherever the threshold lies: above both (the class is missed) or below both (the other is taken in)
    assert separation(np.array([0.5, 0.5]), np.array([True, False])) == INFINITY


@pytest.mark.parametrize(
    ("labels", "threshold"),
    [([], INFINITY), ([False, False], INFINITY), ([True, True], -INFINITY)],
)
def test_a_class_that_has_no_labels_or_all_of_them_is_separated_beyond_the_ends(
    labels: list[bool], threshold: float
) -> None:
    confidence = np.linspace(1, 0, len(labels))
    assert separation(confidence, np.array(labels, dtype=bool)) == threshold


@pytest.mark.parametrize("seed", range(40))
def test_the_threshold_has_as_few_errors_as_brute_force_finds(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    count = int(numbers.integers(1, 12))
    confidence = numbers.integers(0, 8, count) / 8  # some are equal
    positive = numbers.random(count) < 0.5

    def errors(threshold: float) -> int:
        return int(((confidence >= threshold) != positive).sum())

    tried = [-INFINITY, *np.unique(confidence), INFINITY]
    fewest = min(errors(threshold) for threshold in tried)
    found = separation(confidence, positive)
    assert errors(found) == fewest
    assert not any(
        errors(threshold) == fewest
        for threshold in tried
        if threshold > confidence[confidence >= found].min(initial=INFINITY)
    )


def test_neighbours_in_floating_point_are_told_apart() -> None:
    upper = 0.5
    lower = float(np.nextafter(upper, 0))
    assert separation(np.array([lower, upper]), np.array([False, True])) == upper


# -- where the threshold can lie ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "ends"),
    [
        ([True, True, False, False], (0.7, 0.3)),
        ([True, False, True, False], (0.9, 0.1)),
        ([False, True, False, False], (INFINITY, 0.3)),
        ([True, False, False, True], (0.9, -INFINITY)),
        ([True, True, True, True], (0.1, -INFINITY)),
        ([False, False, False, False], (INFINITY, 0.9)),
        ([], (INFINITY, -INFINITY)),
    ],
)
def test_the_interval_reaches_from_the_last_sure_sample_to_the_first_sure_other(
    labels: list[bool], ends: tuple[float, float]
) -> None:
    assert interval(np.array([0.9, 0.7, 0.3, 0.1])[: len(labels)], np.array(labels, dtype=bool)) == ends


@pytest.mark.parametrize("seed", range(40))
def test_the_interval_holds_what_stands_between_the_ends_of_a_line_that_is_walked(seed: int) -> None:
    """As LabelBench walks it: known and unknown samples on one line, once from the top and once from the bottom."""
    numbers = np.random.default_rng(seed)
    values = numbers.permutation(20) / 20
    known, positive = numbers.random(20) < 0.4, numbers.random(20) < 0.5
    line = [int(node) for node in np.argsort(-values)]
    first = last = 0
    for place, node in enumerate(line):
        if known[node]:
            if not positive[node]:
                break
            first = place
    for place, node in enumerate(line[::-1]):
        if known[node]:
            if positive[node]:
                break
            last = place
    walked = [node for node in line[first : len(line) - last] if not known[node]]
    unknown = np.flatnonzero(~known)
    found = between(values[unknown], interval(values[known], positive[known]))
    assert sorted(unknown[found]) == sorted(walked)


# -- the picks --------------------------------------------------------------------------------------------------


def test_the_nearest_are_taken_in_turn_above_and_below() -> None:
    confidence = np.array([0.9, 0.8, 0.6, 0.55, 0.4, 0.1])
    assert nearest(confidence, 0.5, 4).tolist() == [3, 4, 2, 5]
    assert nearest(confidence, 0.5, 6).tolist() == [3, 4, 2, 5, 1, 0]
    assert nearest(confidence, INFINITY, 2).tolist() == [0, 1]
    assert nearest(confidence, -INFINITY, 2).tolist() == [5, 4]


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_are_those_of_one_sorted_list(seed: int) -> None:
    """With many equal values, on both sides of the threshold and at it."""
    numbers = np.random.default_rng(seed)
    confidence, count = numbers.integers(0, 8, 40) / 10, int(numbers.integers(1, 45))
    threshold = float(numbers.choice([-1.0, 0.0, 0.3, 0.35, 0.7, 2.0]))
    falling = np.argsort(-confidence, kind="stable")
    split = int((confidence >= threshold).sum())
    above, below = list(falling[:split][::-1]), list(falling[split:])
    expected = []
    while above or below:
        expected += [side.pop(0) for side in (above, below) if side]
    assert nearest(confidence, threshold, count).tolist() == expected[:count]


def test_two_classes_take_turns_at_their_thresholds_as_by_hand() -> None:
    # Confidence of class 0, its probability where that is larger, else p - (1 - p): labels 1 and -0.8, so the
    # threshold is half way between 0.95 and -0.9, at 0.025: c0 and c1 lie above it, c2 and c3 below. Class 1 likewise.
    found = context(two_classes(0.8, 0.6, 0.45, 0.3), two_classes(0.95, 0.05), [0, 1])
    by_class = {0: ["c1", "c2", "c0", "c3"], 1: ["c2", "c1", "c3", "c0"]}
    first, second = (int(k) for k in np.random.default_rng([0, 2]).permutation(2))
    expected = [by_class[first][0]]
    expected += [next(name for name in by_class[second] if name not in expected)]
    assert picks(found, 2) == expected
    assert set(picks(found, 2)) == {"c1", "c2"}
    assert set(picks(found, 4)) == {"c0", "c1", "c2", "c3"}


def test_a_class_without_a_label_gets_its_most_likely_candidates() -> None:
    candidates = [[0.8, 0.1, 0.1], [0.3, 0.25, 0.45], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.55, 0.4, 0.05]]
    found = context(candidates, [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]], [0, 1])
    assert "c2" in picks(found, 3)


def test_every_class_has_its_share_of_the_budget() -> None:
    # 3 000 candidates of a common class, 30 of a rare one, and a classifier that tells them apart well
    numbers = np.random.default_rng(0)
    common, rare = numbers.uniform(0.7, 0.99, 3000), numbers.uniform(0.01, 0.3, 30)
    found = context(two_classes(*common, *rare), two_classes(0.99, 0.98, 0.02, 0.01), [0, 0, 1, 1])
    chosen = [int(name[1:]) for name in picks(found, 20)]
    assert sum(row >= 3000 for row in chosen) == 10


def test_half_of_each_class_s_share_is_drawn_from_where_its_threshold_can_lie() -> None:
    # 40 candidates of even steps, labels in the outer quarters: between them lie c10 to c29, for either class
    candidates = two_classes(*np.linspace(0.99, 0.01, 40))
    known, labels = two_classes(0.99, 0.755, 0.245, 0.01), [0, 0, 1, 1]
    seen: set[str] = set()
    for seed in range(30):
        chosen = picks(context(candidates, known, labels, seed, narrowing=True), 12)
        assert {int(name[1:]) for name in chosen[:6]} <= set(range(10, 30))
        assert {"c19", "c20"} <= set(chosen)  # next to the threshold, drawn or not
        seen |= set(chosen[:6])
    assert len(seen) == 20  # all of the interval, sooner or later
    assert picks(context(candidates, known, labels), 2) == picks(context(candidates, known, labels, narrowing=True), 2)


def test_the_first_phase_has_a_most_and_asks_for_no_candidate_twice() -> None:
    candidates, known = two_classes(*np.linspace(0.99, 0.01, 400)), two_classes(0.99, 0.01)
    picked, _ = DirectStrategy().order(*whole(context(candidates, known, [0, 1], narrowing=True)), 300)
    assert len(set(picked.tolist())) == 300
    assert set(picked[: 2 * MOST_NARROWING].tolist()) != set(range(140, 260))  # drawn, not the nearest ...
    assert set(range(120, 280)) <= set(picked.tolist())  # ... which the rest of the budget takes


def whole(found: Context) -> tuple[Shard, Context]:
    [shard] = found.shards()
    return shard, found


def test_nothing_labelled_or_one_class_only_is_no_obstacle() -> None:
    assert len(set(picks(context(two_classes(0.3, 0.9, 0.6), np.zeros((0, 2)), []), 3))) == 3
    assert len(set(picks(context(np.ones((5, 1)), np.ones((2, 1)), [0, 0]), 3))) == 3


def test_a_context_without_labelled_logits_is_refused() -> None:
    complete = context(two_classes(0.3), two_classes(0.9), [0])
    with pytest.raises(ValueError, match="direct: the context must carry the labelled pool with its logits"):
        strategies.get("direct").select(small_shards.context(*complete.shards()), 1)


@pytest.mark.parametrize("narrowing", [True, False])
def test_picks_depend_on_neither_the_order_nor_the_shards_of_either_pool(narrowing: bool) -> None:
    numbers = np.random.default_rng(4)
    shard_logits = numbers.normal(size=(60, 4)).round(1).astype(np.float32)  # rounded: some are equal
    known_logits, labels = numbers.normal(size=(9, 4)).astype(np.float32), numbers.integers(0, 4, 9)
    ids = np.array([f"s{row}" for row in range(60)], dtype=object)

    def chosen(order: NDArray[Any], known: NDArray[Any], parts: int) -> list[str]:
        shards = [Shard(ids[rows], logits_N_C=shard_logits[rows]) for rows in np.array_split(order, parts)]
        labeled = Labeled(np.zeros((9, 1)), labels[known], logits_N_C=known_logits[known])
        return picks(small_shards.context(*shards, seed=5, labeled=labeled, selection={"narrowing": narrowing}), 25)

    straight = chosen(np.arange(60), np.arange(9), 1)
    assert len(set(straight)) == 25
    assert chosen(numbers.permutation(60), numbers.permutation(9), 4) == straight


def test_the_picks_can_be_derived_from_the_table_again() -> None:
    numbers = np.random.default_rng(1)
    probabilities = torch.softmax(torch.from_numpy(numbers.normal(size=(40, 3))), 1).numpy()
    found = context(probabilities[:30], probabilities[30:], np.arange(10) % 3)
    written: list[strategies.Candidates] = []
    writing = Context(found.shards, found.settings, found.seed, labeled=found.labeled, write=written.append)
    selection = strategies.get("direct").select(writing, 7)
    again = strategies.pick(written, 7, selection.rule, selection.beta, selection.seed)
    assert list(again.sample_ids) == selection.sample_ids


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (4, 3), (5, -1)])
def test_classes_take_turns_in_an_order_that_the_seed_draws(classes: int, seed: int) -> None:
    numbers = np.random.default_rng(seed % 100)
    logits_N_C, known_M_C = numbers.normal(size=(40, classes)), numbers.normal(size=(12, classes))
    labels_M = numbers.integers(0, classes, 12)
    shard = Shard(small_shards.names("c", 40), logits_N_C=logits_N_C)
    known = small_shards.labeled(labels_M, logits_N_C=known_M_C)
    found = small_shards.context(shard, seed=seed, labeled=known, selection={"narrowing": False})
    picked, key_N = DirectStrategy().order(shard, found, 30)
    candidates_N_C, known_M_C = (torch.softmax(torch.from_numpy(x), 1).numpy() for x in (logits_N_C, known_M_C))
    turns = np.random.default_rng([seed % 2**64, classes]).permutation(classes)
    expected: list[int] = []
    for place in range(30):
        k = int(turns[place % classes])
        threshold = separation(confidence(known_M_C, k), labels_M == k)
        queue = nearest(confidence(candidates_N_C, k), threshold, 40)
        expected.append(next(int(row) for row in queue if row not in expected))
    assert picked.tolist() == expected
    assert picked.dtype == np.int64
    best_two_N = np.sort(candidates_N_C, axis=1)[:, -2:]
    assert key_N == pytest.approx(best_two_N[:, 0] - best_two_N[:, 1])  # the least certain of the rest first


@pytest.mark.parametrize("lower", [1.0, float(np.nextafter(1, 2))])
def test_between_neighbours_in_floating_point_the_upper_is_the_threshold(lower: float) -> None:
    upper = float(np.nextafter(lower, 2))  # half way between is rounded to the one or the other
    assert separation(np.array([lower, upper]), np.array([False, True])) == upper


def test_the_rest_is_scored_by_the_margin_the_least_certain_first() -> None:
    written: list[strategies.Candidates] = []
    found = context(two_classes(0.9, 0.55, 0.7, 0.8), two_classes(0.95, 0.05), [0, 1])
    strategies.get("direct").select(replace(found, write=written.append), 1)
    assert written[0].score_N.tolist() == [-3, 1, -1, -2]
