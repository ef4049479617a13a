from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import small_shards
from vabal import strategies
from vabal.errors import UserError
from vabal.strategies import Context, Labeled, Shard
from vabal.strategies.galaxy import GalaxyStrategy, LinearGraph, confidence, labeled_posteriors


def logits(probabilities: Any) -> NDArray[np.float32]:
    return np.log(np.asarray(probabilities, dtype=np.float32))


def context(candidates: Any, known: Any, labels: Any, seed: int = 0, parts: int = 1) -> Context:
    """Candidates c0, c1, ... and labelled samples, given by their probabilities."""
    candidates = np.asarray(candidates, dtype=np.float32)
    whole = Shard(small_shards.names("c", len(candidates)), logits_N_C=logits(candidates))
    known = np.asarray(known, dtype=np.float32).reshape(-1, candidates.shape[1])
    labeled = small_shards.labeled(labels, logits_N_C=logits(known))
    return small_shards.context(*small_shards.in_parts(whole, parts), seed=seed, labeled=labeled)


def two_classes(*first: float) -> list[list[float]]:
    return [[p, 1 - p] for p in first]


def picks(found: Context, budget: int) -> list[str]:
    return strategies.get("galaxy").select(found, budget).sample_ids


# -- the paper's order ------------------------------------------------------------------------------------------


def test_the_most_probable_class_has_its_probability_and_any_other_the_margin_it_lacks() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.4, 0.4, 0.2]])
    assert confidence(probabilities, 0) == pytest.approx([0.5, -0.5, 0.4])
    assert confidence(probabilities, 2) == pytest.approx([-0.3, -0.3, -0.2])


# -- bisection, by hand -----------------------------------------------------------------------------------------


def test_bisection_of_eight_points_goes_as_by_hand() -> None:
    # On the line: + c0 c1 c2 c3 c4 c5 -, places 0 to 7. The path has places 1 to 6; its middle is (0 + 7) // 2 = 3, c2.
    # c2 is class 0 by the classifier (0.6), so the path left is places 4 to 6: the middle is (3 + 7) // 2 = 5, c4,
    # which is class 1. Between them lies place 4, c3: class 1 (0.45), so the cut is between c2 and c3.
    # Nearest to the cut: c1 at distance 1 above c2, c5 only at distance 2 below c3, for c4 is known. Then c0 is at
    # distance 2 as well: the one above wins the tie.
    found = context(two_classes(0.8, 0.7, 0.6, 0.45, 0.4, 0.3), two_classes(0.99, 0.01), [0, 1])
    assert picks(found, 6) == ["c2", "c4", "c3", "c1", "c0", "c5"]


def test_the_shortest_of_the_paths_is_bisected_first() -> None:
    # + c0 c1 c2 - c3 +: three unknown nodes on the first path, one on the second
    known = two_classes(0.9, 0.5, 0.2)
    found = context(two_classes(0.8, 0.7, 0.6, 0.3), known, [0, 1, 0])
    assert picks(found, 2) == ["c3", "c1"]


def test_only_cuts_from_the_class_to_the_rest_are_widened() -> None:
    # c0 - + c1 c2 + - c3: at the first border the order is reversed; around the second c3 is at distance 1, c2 too
    graph = LinearGraph(np.array([8.0, 7, 4, 3]), np.array([False, True, True, False]), np.array([9.0, 6, 5, 1]))
    assert graph.next() == 2
    graph.learn(np.array([2]), np.array([True]))
    assert graph.next() == 3


@pytest.mark.parametrize("seed", range(30))
def test_a_linear_graph_agrees_with_a_slow_search(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    known, unknown = int(numbers.integers(0, 8)), int(numbers.integers(1, 14))
    values = numbers.permutation(known + unknown).astype(float)
    positive = numbers.random(known) < 0.5
    graph = LinearGraph(values[:known], positive, values[known:])
    labels: dict[int, bool | None] = dict(enumerate(positive)) | {known + row: None for row in range(unknown)}
    line = [int(node) for node in np.argsort(-values)]
    for _ in range(unknown):
        expected = slow_next([labels[node] for node in line])
        found = graph.next()
        assert line[expected] == known + found
        labels[known + found] = bool(numbers.random() < 0.5)
        graph.learn(np.array([found]), np.array([labels[known + found]]))


def slow_next(line: list[bool | None]) -> int:
    """Every pair of neighbouring known nodes, one after the other."""
    known = [place for place, label in enumerate(line) if label is not None]
    paths = [(b - a, a, b) for a, b in pairwise(known) if b - a > 1 and line[a] != line[b]]
    if paths:
        _, a, b = min(paths)
        return (a + b) // 2
    unknown = [place for place, label in enumerate(line) if label is None]
    cuts = [a for a, b in pairwise(known) if b == a + 1 and line[a] and not line[b]]
    # (distance, above first, which cut, place): a node above is reached from the cut's upper end
    beside = [(a - place, 0, a, place) for a in cuts for place in [max((p for p in unknown if p < a), default=-1)]]
    beside += [(place - a - 1, 1, a, place) for a in cuts for place in [min((p for p in unknown if p > a), default=-1)]]
    beside = [found for found in beside if found[3] >= 0]
    if beside:
        return min(beside)[3]
    return unknown[-1] if known and all(line[place] for place in known) else unknown[0]


# -- pools that lack something ----------------------------------------------------------------------------------


def test_without_any_label_the_most_likely_of_a_class_is_picked_first() -> None:
    found = context(two_classes(0.3, 0.9, 0.6), np.zeros((0, 2)), [])
    assert picks(found, 1) == ["c1"]


def test_where_all_labels_are_of_the_class_the_least_likely_candidate_is_picked() -> None:
    found = context(two_classes(0.3, 0.9, 0.6), two_classes(0.99, 0.1), [0, 0])
    assert picks(found, 1) == ["c0"]


def test_a_class_without_a_label_is_asked_about_by_its_most_likely_candidate() -> None:
    candidates = [[0.8, 0.1, 0.1], [0.3, 0.3, 0.4], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1]]
    found = context(candidates, [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]], [0, 1])
    graph = LinearGraph(np.array([-0.85, -0.85]), np.array([False, False]), confidence(np.array(candidates), 2))
    assert graph.next() == 2
    assert len(set(picks(found, 4))) == 4


def test_one_class_only_is_no_obstacle() -> None:
    found = context(np.ones((5, 1)), np.ones((2, 1)), [0, 0])
    assert len(set(picks(found, 3))) == 3


def test_a_context_without_labelled_logits_is_refused() -> None:
    complete = context(two_classes(0.3), two_classes(0.9), [0])
    for labeled in (None, Labeled(np.zeros((1, 1)), np.array([0]))):
        with pytest.raises(ValueError, match="galaxy: the context must carry the labelled pool with its logits"):
            strategies.get("galaxy").select(small_shards.context(*complete.shards(), labeled=labeled), 1)


def test_labelled_logits_that_are_not_finite_are_refused_with_the_sample_named() -> None:
    complete = context(two_classes(0.3), two_classes(0.9), [0])
    ids = np.array(["bad"], dtype=object)
    broken = Labeled(np.zeros((1, 1)), np.array([0]), sample_ids=ids, logits_N_C=np.array([[np.nan, 0.0]]))
    with pytest.raises(UserError, match="bad"):
        strategies.get("galaxy").select(small_shards.context(*complete.shards(), labeled=broken), 1)


# -- what holds for every pool ----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 5])
def test_picks_depend_on_neither_the_order_nor_the_shards_of_either_pool(classes: int) -> None:
    numbers = np.random.default_rng(4)
    shard_logits = numbers.normal(size=(60, classes)).round(1).astype(np.float32)  # rounded: some are equal
    known_logits, labels = numbers.normal(size=(9, classes)).astype(np.float32), numbers.integers(0, classes, 9)
    ids = np.array([f"s{row}" for row in range(60)], dtype=object)

    def chosen(order: NDArray[Any], known: NDArray[Any], parts: int) -> list[str]:
        shards = [Shard(ids[rows], logits_N_C=shard_logits[rows]) for rows in np.array_split(order, parts)]
        labeled = Labeled(np.zeros((9, 1)), labels[known], logits_N_C=known_logits[known])
        return picks(small_shards.context(*shards, seed=5, labeled=labeled), 25)

    straight = chosen(np.arange(60), np.arange(9), 1)
    assert len(set(straight)) == 25
    assert chosen(numbers.permutation(60), numbers.permutation(9), 4) == straight


def test_another_seed_draws_the_classes_in_another_order() -> None:
    numbers = np.random.default_rng(0)
    probabilities = torch.softmax(torch.from_numpy(numbers.normal(size=(80, 6))), 1).numpy()
    found = [picks(context(probabilities[:60], probabilities[60:], np.arange(20) % 6, seed), 10) for seed in (0, 1, 0)]
    assert found[0] == found[2]
    assert found[0] != found[1]


def test_the_picks_can_be_derived_from_the_table_again() -> None:
    numbers = np.random.default_rng(1)
    probabilities = torch.softmax(torch.from_numpy(numbers.normal(size=(40, 3))), 1).numpy()
    found = context(probabilities[:30], probabilities[30:], np.arange(10) % 3, parts=3)
    written: list[strategies.Candidates] = []
    writing = Context(found.shards, found.settings, found.seed, labeled=found.labeled, write=written.append)
    selection = strategies.get("galaxy").select(writing, 7)
    again = strategies.pick(written, 7, selection.rule, selection.beta, selection.seed)
    assert list(again.sample_ids) == selection.sample_ids


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (4, 3), (4, -1)])
def test_picks_are_those_of_graphs_built_anew_for_every_pick(classes: int, seed: int) -> None:
    numbers = np.random.default_rng(seed % 100)
    logits_N_C, known_M_C = numbers.normal(size=(40, classes)), numbers.normal(size=(12, classes))
    labels_M = numbers.integers(0, classes, 12)
    shard = Shard(small_shards.names("c", 40), logits_N_C=logits_N_C)
    found = small_shards.context(shard, seed=seed, labeled=small_shards.labeled(labels_M, logits_N_C=known_M_C))
    picked, key_N = GalaxyStrategy().order(shard, found, 25)
    unknown_N_C, known_M_C = (torch.softmax(torch.from_numpy(x), 1).numpy() for x in (logits_N_C, known_M_C))
    drawn = np.random.default_rng([seed % 2**64, classes])
    expected: list[int] = []
    for _ in range(25):
        k = int(drawn.integers(classes)) if classes > 2 else 0
        graph = LinearGraph(confidence(known_M_C, k), labels_M == k, confidence(unknown_N_C, k))
        graph.learn(np.array(expected, dtype=int), unknown_N_C[expected].argmax(axis=1) == k)
        expected.append(graph.next())
    assert picked.tolist() == expected
    assert picked.dtype == np.int64
    best_two_N = np.sort(unknown_N_C, axis=1)[:, -2:]
    assert key_N == pytest.approx(best_two_N[:, 0] - best_two_N[:, 1])  # the least certain of the rest first


def test_the_labelled_pool_s_order_does_not_show_and_each_label_stays_with_its_logits() -> None:
    logits_M_C = np.array([[1.0, 0.0], [1.0, 2.0], [0.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
    labels_M = np.array([1, 0, 0, 0, 1])
    firsts_M = 1 / (1 + np.exp([-1, 1, 2, -1, -3]))
    rows = {(label, round(float(first), 6)) for label, first in zip(labels_M, firsts_M, strict=True)}
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 4, 1, 0, 2]):
        known = small_shards.labeled(labels_M[order], logits_N_C=logits_M_C[order])
        posterior_M_C, sorted_M = labeled_posteriors("galaxy", small_shards.context(labeled=known))
        assert sorted_M.tolist() == [0, 0, 0, 1, 1]
        assert posterior_M_C[:, 0].round(6).tolist() == [0.731059, 0.119203, 0.268941, 0.731059, 0.952574]
        assert {
            (label, round(float(first), 6)) for label, first in zip(sorted_M, posterior_M_C[:, 0], strict=True)
        } == rows


def test_labelled_logits_without_ids_are_named_by_their_place() -> None:
    known = small_shards.labeled([0, 1], logits_N_C=np.array([[0.0, 1.0], [np.inf, 0.0]]))
    with pytest.raises(UserError, match="labelled logits_N_C is not finite for 1"):
        labeled_posteriors("galaxy", small_shards.context(labeled=known))
