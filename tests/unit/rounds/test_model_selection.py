"""Which sizes and views a probe takes: on embeddings made so that the answer is known."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vabal.learning.backbones import Layer
from vabal.rounds import model_selection
from vabal.rounds.model_selection import Candidate, Judged, Known, Offered, Part
from vabal.settings.learners import ClassifierSettings

SETTINGS = ClassifierSettings(learner="probe", layers="all", penalty=1.0)
SIZES = (32, 48, 64)
OFFERED = Offered(tuple(Candidate(((size, "plain"),)) for size in SIZES), SIZES, 0, ("mirrored", "turned"))


def known(signal: dict[Part, float], samples: int = 60, groups: int | None = None) -> Known:
    """Samples of three classes; a part's embeddings tell them as clearly as `signal` says."""
    draw = np.random.default_rng(0)
    labels_L = np.arange(samples) % 3
    centres = draw.normal(size=(3, 6))
    made: dict[Part, tuple[NDArray[np.float32], tuple[Layer, ...]]] = {}
    for part in itertools.product(SIZES, ("plain", "mirrored", "turned")):
        noise_L_E = draw.normal(size=(samples, 6))
        embeddings_L_E = (noise_L_E + signal.get(part, 0.0) * centres[labels_L]).astype(np.float32)
        made[part] = (embeddings_L_E, (Layer(part[0], 1, 3), Layer(part[0], 0, 3)))
    own_L_E = draw.normal(size=(samples, 6)) + signal.get((8, "pixels"), 0.0) * centres[labels_L]
    made[8, "pixels"] = (own_L_E.astype(np.float32), (Layer(8, -1, 6),))
    groups_L = None if groups is None else np.arange(samples) % groups
    return Known(labels_L, [f"s{row}" for row in range(samples)], groups_L, made.__getitem__, 3)


def taken(pool: Known, offered: Offered = OFFERED) -> Candidate:
    tried = list(model_selection.search(pool, offered, SETTINGS, seed=0))
    return model_selection.cheapest_of_the_best(tried, pool.groups_L).candidate


def test_the_size_is_taken_that_tells_the_classes_apart() -> None:
    assert taken(known({(48, "plain"): 3.0})) == Candidate(((48, "plain"),))


def test_two_sizes_are_taken_where_each_tells_what_the_other_does_not() -> None:
    pool = known({(32, "plain"): 0.7, (64, "plain"): 0.8})
    assert taken(pool).parts == ((32, "plain"), (64, "plain"))


def test_turned_views_are_taken_where_they_tell_more_and_left_where_they_tell_less() -> None:
    clear = {(48, "plain"): 1.0, (48, "mirrored"): 1.0}
    assert dict(taken(known(clear | {(48, "turned"): 4.0})).parts)[48] == "turned"
    assert dict(taken(known(clear | {(48, "turned"): 0.2})).parts)[48] == "plain"


def test_each_size_may_have_views_of_its_own() -> None:
    pool = known({(32, "plain"): 0.8, (64, "plain"): 0.9, (64, "turned"): 3.0})
    found = taken(pool)
    assert found.parts == ((32, "plain"), (64, "turned"))
    assert (found.sizes, found.views) == ([32, 64], ["plain", "turned"])
    assert str(found) == "32 px, plain and 64 px, turned"


@pytest.mark.parametrize(("signal", "expected"), [(4.0, 8), (0.0, 0)])
def test_the_image_s_own_pixels_are_taken_where_they_tell_more(signal: float, expected: int) -> None:
    pool = known({(32, "plain"): 0.8, (8, "pixels"): signal})
    settings = SETTINGS.model_copy(update={"layers": "auto"})
    tried = list(model_selection.search(pool, replace(OFFERED, pixels=8, views=()), settings, seed=0))
    assert model_selection.cheapest_of_the_best(tried).candidate.pixels == expected
    assert [judged.candidate.pixels for judged in tried].count(8) == 1


def test_the_same_labels_give_the_same_answer_to_the_last_digit() -> None:
    one, two = (list(model_selection.search(known({(32, "plain"): 1.0}), OFFERED, SETTINGS, seed=3)) for _ in range(2))
    assert [judged.candidate for judged in one] == [judged.candidate for judged in two]
    assert [judged.loss for judged in one] == [judged.loss for judged in two]


def test_only_what_is_offered_is_tried_and_each_once() -> None:
    pool = known({(32, "plain"): 1.0})
    settled = Offered((Candidate(((32, "mirrored"), (64, "mirrored"))),))
    tried = [judged.candidate for judged in model_selection.search(pool, settled, SETTINGS, seed=0)]
    assert tried == [Candidate(((32, "mirrored"), (64, "mirrored")))]
    tried = [judged.candidate for judged in model_selection.search(pool, OFFERED, SETTINGS, seed=0)]
    assert len(set(tried)) == len(tried)
    assert len(tried) in (3 + 2 + 2, 3 + 2 + 2 + 4)  # of two sizes, each alone in other views


def test_what_costs_more_pixels_than_allowed_is_not_tried_but_for_the_cheapest() -> None:
    pool = known({(64, "turned"): 4.0})
    for most, least in ((2 * 32**2, {32}), (10, {32}), (48**2, {32, 48})):
        limited = replace(OFFERED, most=most)
        tried = [judged.candidate for judged in model_selection.search(pool, limited, SETTINGS, seed=0)]
        assert {size for candidate in tried for size in candidate.sizes} == least
        assert all(candidate.cost <= most for candidate in tried[1:])


def test_pixels_count_every_size_in_every_pass() -> None:
    assert Candidate(((32, "plain"), (64, "plain"))).cost == 32**2 + 64**2
    assert Candidate(((32, "mirrored"),)).cost == 2 * 32**2
    assert Candidate(((64, "turned"),)).cost == 8 * 64**2


def judged(size: int, losses: list[float]) -> Judged:
    return Judged(Candidate(((size, "plain"),)), np.array(losses), 0.5)


def test_the_cheapest_is_taken_of_those_that_cannot_be_told_from_the_best() -> None:
    # less by 0.5 on average; differences -1, 0, 2, 1: sqrt(5) / 4 = 0.559 of standard error, half of it 0.28
    dear, cheap = judged(64, [1.0, 1.0, 1.0, 1.0]), judged(32, [0.0, 1.0, 3.0, 2.0])
    assert model_selection.cheapest_of_the_best([cheap, dear]) is dear
    # differences -1, 1, 2, -1: 0.25 on average, sqrt(6.75) / 4 = 0.65
    near = judged(32, [0.0, 2.0, 3.0, 0.0])
    assert model_selection.cheapest_of_the_best([near, dear]) is near


def test_samples_of_one_group_are_no_evidence_of_their_own() -> None:
    # differences 1, 1, -0.5, -0.5: mean 0.25, standard error 0.375; in two groups 0.75 / sqrt(2) = 0.53
    dear, cheap = judged(64, [1.0, 1.0, 1.0, 1.0]), judged(32, [2.0, 2.0, 0.5, 0.5])
    assert model_selection.cheapest_of_the_best([cheap, dear]) is dear
    assert model_selection.cheapest_of_the_best([cheap, dear], np.array(["a", "a", "b", "b"])) is cheap


def test_groups_are_judged_by_labels_of_other_groups_alone() -> None:
    """Embeddings that tell the group and nothing else look perfect where a group stands on both sides."""
    groups_L = np.repeat(np.arange(12), 5)
    labels_L = groups_L % 3
    embeddings_L_E = 5 * np.random.default_rng(0).normal(size=(12, 6))[groups_L].astype(np.float32)
    layers = (Layer(32, 1, 3), Layer(32, 0, 3))
    ids = [f"s{row}" for row in range(60)]
    losses = [
        Known(labels_L, ids, groups, lambda _: (embeddings_L_E, layers), 3)
        .judge(Candidate(((32, "plain"),)), SETTINGS, 0)
        .loss
        for groups in (None, groups_L)
    ]
    assert losses[0] < 0.2
    assert losses[1] > 0.5


@pytest.mark.parametrize(
    ("native", "expected"),
    [(8, (32, 48, 64, 96)), (32, (32, 48, 64, 96)), (64, (64, 96, 128, 192)), (300, (64, 96, 128, 192))],
)
def test_sizes_begin_at_the_images_own_within_bounds(native: int, expected: tuple[int, ...]) -> None:
    assert model_selection.sizes(native) == expected


def test_sizes_in_between_are_whole_sixteens() -> None:
    assert model_selection.sizes(50) == (48, 64, 96, 144)
