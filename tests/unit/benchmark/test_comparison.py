import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.small_cells import cell, grid
from vabal import statistics
from vabal.benchmark import comparison
from vabal.benchmark.summary import Summary
from vabal.errors import UserError

numbers = st.lists(st.floats(-10, 10, allow_nan=False), min_size=1, max_size=8)


def summarise(cells: Iterable[dict[str, Any]], baseline: str = "random") -> dict[str, Any]:
    return comparison.summarise(cells, baseline).to_json()


def strategy_of(summary: dict[str, Any], name: str, place: int = 0) -> dict[str, Any]:
    return next(item for item in summary["settings"][place]["strategies"] if item["strategy"] == name)


def pooled_of(summary: dict[str, Any], name: str) -> dict[str, Any]:
    return next(item for item in summary["pooled"]["strategies"] if item["strategy"] == name)


# -- statistics -----------------------------------------------------------------------------------------------------


def test_the_interval_of_1_2_3_is_that_of_students_t_with_two_degrees_of_freedom() -> None:
    found = statistics.estimate([1, 2, 3])
    assert (found.n, found.mean, found.sd) == (3, 2, 1)
    assert found.low is not None
    assert found.high is not None
    assert found.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert 2 - found.low == pytest.approx(found.high - 2)


def test_one_value_has_no_spread_and_none_has_no_mean() -> None:
    assert statistics.estimate([0.5]) == statistics.Estimate(1, 0.5, None, None, None)
    with pytest.raises(ValueError, match="no values"):
        statistics.estimate([])


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),
        ([-1, -2, -3, -4, -5], 2 / 32),
        ([4, 2, -1], 4 / 8),  # |sum| 5 and 7, each with both signs
        ([1, 1, -1], 1),
        ([0, 0, 0], 1),
        ([0.3], 1),
        ([0.1, 0.2, -0.3], 1),  # 0 on paper
    ],
)
def test_sign_flips_are_counted_by_hand(differences: list[float], p: float) -> None:
    assert statistics.sign_flip_p(differences) == p


@given(numbers)
def test_sign_flips_agree_with_trying_each(differences: list[float]) -> None:
    observed, scale = abs(sum(differences)), sum(map(abs, differences))
    flips = [
        abs(sum(sign * value for sign, value in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    least = sum(value >= observed + 1e-9 * scale for value in flips) / len(flips)
    most = sum(value >= observed - 1e-9 * scale for value in flips) / len(flips)
    assert least <= statistics.sign_flip_p(differences) <= most


def test_beyond_fifteen_pairs_random_flips_are_near_the_exact_p_and_never_zero() -> None:
    assert 0 < statistics.sign_flip_p([1.0] * 40) <= 2 / statistics.RANDOM_FLIPS
    sixteen = [1.0] * 11 + [-1.0] * 5  # |sum| at least 6: at most 5 or at least 11 of 16 coins
    exact = 2 * sum(len(list(itertools.combinations(range(16), k))) for k in range(6)) / 2**16
    assert statistics.sign_flip_p(sixteen) == pytest.approx(exact, abs=0.01)
    assert statistics.sign_flip_p(sixteen) == statistics.sign_flip_p(sixteen)


def test_wilcoxons_p_leaves_out_zeros_and_is_exact_for_few() -> None:
    assert statistics.wilcoxon_p([1, 2, 3, 4, 5]) == pytest.approx(2 / 32)
    assert statistics.wilcoxon_p([0, 1, 2, 3, 4, 5]) == pytest.approx(2 / 32)
    assert statistics.wilcoxon_p([0, 0]) is None


def test_the_bootstrap_needs_five_values_stays_within_them_and_repeats_itself() -> None:
    assert statistics.bootstrap_interval([1, 2, 3, 4]) is None
    assert statistics.bootstrap_interval([2, 2, 2, 2, 2]) == (2, 2)
    low, high = statistics.bootstrap_interval([1, 2, 3, 4, 5]) or (0, 0)
    assert 1 < low < 2.2 and 3.8 < high < 5
    assert statistics.bootstrap_interval([1, 2, 3, 4, 5]) == (low, high)


def test_holm_multiplies_the_smallest_most_and_never_goes_down() -> None:
    assert statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert statistics.holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert statistics.holm({}) == {}


def test_the_area_is_that_of_the_trapezoids_over_the_range_of_labels() -> None:
    assert statistics.area_under_curve([20, 40, 80], [0, 1, 1]) == pytest.approx((10 + 40) / 60)
    assert statistics.area_under_curve([20], [0.7]) == 0.7


@pytest.mark.parametrize(("target", "labels"), [(0.75, 50), (0.7, 40), (0.4, 20), (0.8, 60), (0.9, None)])
def test_labels_are_interpolated_to_where_the_curve_first_reaches_the_target(
    target: float, labels: float | None
) -> None:
    assert statistics.labels_to_reach([20, 40, 60, 80], [0.5, 0.7, 0.8, 0.6], target) == pytest.approx(labels)


def test_spearmans_correlation_of_one_swap_in_four_is_0_8_and_unknown_pairs_are_left_out() -> None:
    assert statistics.rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert statistics.rank_correlation([1, 2, None, 3, 4], [10, 30, 7, 20, 40]) == pytest.approx(0.8)
    assert statistics.rank_correlation([1, 1, 1], [1, 2, 3]) is None
    assert statistics.rank_correlation([1, 2], [1, 2]) is None


def test_students_paired_test_of_1_2_3_has_a_t_of_3_46_and_two_degrees_of_freedom() -> None:
    assert statistics.student_p([1, 2, 3]) == pytest.approx(0.0741799)
    assert statistics.student_p([-1, -2, -3]) == pytest.approx(0.0741799)
    assert statistics.student_p([0.1]) is None
    assert statistics.student_p([0, 0, 0]) == 1
    assert statistics.student_p([0.1, 0.1, 0.1]) is None  # without a spread there is no test


def test_intervals_do_not_leave_what_is_possible() -> None:
    shares = statistics.estimate([0.7, 0.99, 1.0], statistics.SHARE)
    assert [shares.high, shares.low] == [1, pytest.approx(0.47339, abs=1e-5)]
    gains = statistics.difference([-0.2, 0.9, 0.9], statistics.GAIN)
    assert [gains.low, gains.high] == [-1, 1]


def test_labels_apart_are_those_between_the_two_mean_curves_and_open_where_a_curve_does_not_get_there() -> None:
    labeled, theirs, mine = [20, 40, 60], [[0.5, 0.6, 0.7]] * 5, [[0.5, 0.7, 0.8]] * 5
    apart: Any = statistics.labels_apart
    assert apart(labeled, mine, theirs) == (pytest.approx(20), (pytest.approx(20), pytest.approx(20)))
    assert apart(labeled, mine[:4], theirs[:4]) == (pytest.approx(20), None)
    assert apart(labeled, theirs, mine) == (None, (None, None))
    sometimes = [[0.5, 0.7, 0.8], [0.5, 0.7, 0.8], [0.5, 0.65, 0.8], [0.5, 0.55, 0.6], [0.5, 0.55, 0.6]]
    saved, (low, high) = apart(labeled, sometimes, theirs)
    assert saved == pytest.approx(60 - (40 + 20 * 0.07 / 0.09))
    assert low is None  # among the worst resamples are some that never reach it
    assert saved < high <= 20


def test_ties_share_their_ranks() -> None:
    assert statistics.mean_ranks([[0.9, 0.9, 0.5], [0.1, 0.2, 0.3]]).tolist() == [2.25, 1.75, 2.0]


# -- a summary ------------------------------------------------------------------------------------------------------


def five_pairs() -> list[dict[str, Any]]:
    """Over random by 0.01 to 0.05 on the average, by twice that at the end."""
    return [
        item
        for seed in range(5)
        for item in (
            cell([0.5, 0.6, 0.7 + seed / 10], seed=seed),
            cell([0.5, 0.6 + (seed + 1) / 100, 0.7 + seed / 10 + (seed + 1) / 50], strategy="vabal", seed=seed),
        )
    ]


def test_a_strategy_is_compared_with_the_baseline_of_the_same_seed() -> None:
    found = strategy_of(summarise(five_pairs()), "vabal")["metrics"]["accuracy"]
    average, final = found["difference"]["average"], found["difference"]["final"]
    assert (average["n"], final["n"]) == (5, 5)
    assert average["mean"] == pytest.approx(0.03)  # the mean of (0.01 + 0.02) / 3 ... (0.05 + 0.1) / 3
    assert final["mean"] == pytest.approx(0.06)
    half = 2.776445 * np.std([0.01, 0.02, 0.03, 0.04, 0.05], ddof=1) / 5**0.5
    assert average["high"] - average["low"] == pytest.approx(2 * half, rel=1e-6)
    assert average["p"] == average["holm_p"] == 2 / 32
    assert average["wilcoxon_p"] == pytest.approx(2 / 32)
    assert average["low"] < average["bootstrap_low"] < 0.03 < average["bootstrap_high"] < average["high"]


def test_means_per_round_average_final_and_area_are_by_seed() -> None:
    found = strategy_of(summarise(five_pairs()), "random")["metrics"]
    assert [item["labeled"] for item in found["accuracy"]["per_round"]] == [20, 40, 60]
    assert found["accuracy"]["per_round"][2]["mean"] == pytest.approx(0.9)
    assert found["accuracy"]["per_round"][0]["sd"] == 0
    assert found["accuracy"]["average"]["per_seed"] == pytest.approx([(1.8 + seed / 10) / 3 for seed in range(5)])
    assert found["accuracy"]["final"]["mean"] == pytest.approx(0.9)
    assert found["accuracy"]["area"]["per_seed"][0] == pytest.approx((0.55 + 0.65) / 2)
    assert found["balanced_accuracy"]["final"]["mean"] == pytest.approx(0.8)
    assert found["macro_f1"]["final"]["mean"] == pytest.approx(0.7)
    assert found["accuracy"]["difference"] is None


def test_holm_corrects_over_the_strategies_of_one_setting_alone() -> None:
    more = [cell([0.5, 0.9, 0.9], strategy="margin", seed=seed) for seed in range(5)]
    other = [{**item, "imbalance": "dominant:0"} for item in five_pairs()]
    summary = summarise([*five_pairs(), *more, *other])
    settings = {item["imbalance"]: item for item in summary["settings"]}
    by_name = {item["strategy"]: item for item in settings["natural"]["strategies"]}
    assert by_name["vabal"]["metrics"]["accuracy"]["difference"]["average"]["holm_p"] == 4 / 32
    alone = next(item for item in settings["dominant:0"]["strategies"] if item["strategy"] == "vabal")
    assert alone["metrics"]["accuracy"]["difference"]["average"]["holm_p"] == 2 / 32


def test_labels_saved_are_those_before_the_baselines_curve_reaches_its_end() -> None:
    cells = [cell([0.5, 0.6, 0.8]), cell([0.5, 0.9, 0.9], strategy="vabal"), cell([0.5, 0.6, 0.7], strategy="bad")]
    summary = summarise(cells)
    labels = strategy_of(summary, "vabal")["labels"]
    assert labels["needed"] == pytest.approx(35)  # 20 + 0.3 / 0.4 of 20
    assert labels["saved"] == pytest.approx(25)
    assert labels["saved_share"] == pytest.approx(25 / 60)
    missed = strategy_of(summary, "bad")["labels"]
    assert (missed["reached"], missed["needed"], missed["saved"], missed["saved_share"]) == (False, None, None, None)
    assert strategy_of(summary, "random")["labels"]["needed"] == 60


def test_a_baseline_that_falls_at_the_end_does_not_make_others_look_thriftier() -> None:
    labels = strategy_of(summarise([cell([0.5, 0.9, 0.8]), cell([0.5, 0.8, 0.8], strategy="vabal")]), "vabal")["labels"]
    assert labels["baseline_needed"] == pytest.approx(35)
    assert labels["saved"] == pytest.approx(-5)


def test_the_share_of_rare_classes_is_of_all_labels_so_far() -> None:
    picked = [[15, 5], [5, 15], [10, 10]]
    summary = summarise([cell([0.5, 0.6, 0.7], picked=picked)])
    assert summary["settings"][0]["rare_classes"] == ["b"]
    assert [item["mean"] for item in strategy_of(summary, "random")["rare_share"]] == [0.25, 0.5, 0.5]


def test_where_no_class_is_below_half_the_largest_there_is_no_rare_share() -> None:
    summary = summarise([cell([0.5, 0.6], pool=(100, 50))])
    assert summary["settings"][0]["rare_classes"] == []
    assert strategy_of(summary, "random")["rare_share"] is None


def test_dominant_classes_hold_more_than_twice_the_median_class() -> None:
    def setting_of(*pool: int) -> dict[str, Any]:
        summary = summarise([cell([0.5], pool=pool, recall=(1, 1, 1), classes=("a", "b", "c"))])
        found: dict[str, Any] = summary["settings"][0]
        return found

    assert setting_of(100, 10, 10)["dominant_classes"] == ["a"]
    rare = setting_of(100, 10, 100)
    assert (rare["dominant_classes"], rare["rare_classes"]) == ([], ["b"])


def test_class_accuracy_is_set_against_the_labels_of_the_class() -> None:
    kinds: dict[str, Any] = {"classes": ("a", "b", "c", "d"), "pool": (9, 9, 9, 9)}
    one = cell([0.5, 0.6], picked=[[1, 2, 3, 4], [0, 1, 0, 0]], recall=[0.1, 0.2, 0.3, None], **kinds)
    two = cell([0.5, 0.6], picked=[[1, 2, 3, 4], [0, 1, 0, 0]], recall=[0.3, 0.4, None, None], seed=1, **kinds)
    found = strategy_of(summarise([one, two]), "random")["classes"]
    assert found["labeled"] == [1, 3, 3, 4]
    assert found["recall"] == [pytest.approx(0.2), pytest.approx(0.3), 0.3, None]
    assert found["rank_correlation"] == pytest.approx(0.75**0.5)  # ranks 1, 2.5, 2.5 and 1, 2, 3


def test_seconds_are_means_over_the_rounds_that_have_the_part() -> None:
    found = strategy_of(summarise([cell([0.5, 0.6, 0.7])]), "random")["seconds"]
    assert found["mean"] == {"train": 2.0, "select": 0.5}
    assert found["per_round"][2] == {"round": 3, "train": 2.0}


def test_top_picks_are_of_the_lowest_seed_and_their_images_stay_in_the_cells() -> None:
    cells = grid(strategies=["random"], settings=[("digits", "natural")], seeds=2, rounds=2)
    found = strategy_of(summarise(reversed(cells)), "random")["top_picks"]
    assert found["seed"] == 0
    assert found["picks"][0] == {name: cells[0]["top_picks"][0][name] for name in ("sample_id", "label", "predicted_class")}  # fmt: skip  # noqa: E501
    assert strategy_of(summarise([cell([0.5])]), "random")["top_picks"] is None


def test_over_all_settings_pairs_are_counted_and_ranked() -> None:
    cells = [
        *five_pairs(),
        cell([0.5, 0.6], imbalance="rare:1"),
        cell([0.5, 0.5], strategy="vabal", imbalance="rare:1"),
        cell([0.5, 0.6], imbalance="rare:1", seed=1),
        cell([0.5, 0.6], strategy="vabal", imbalance="rare:1", seed=1),
    ]
    found = summarise(cells)
    ours, theirs = pooled_of(found, "vabal"), pooled_of(found, "random")
    assert (ours["pairs"], ours["wins"], ours["ties"], ours["losses"]) == (7, 5, 1, 1)
    assert ours["difference"]["accuracy"]["mean"] == pytest.approx((0.15 - 0.05) / 7)
    assert ours["by_seed"]["accuracy"]["n"] == 2  # seeds 0 and 1 are in both settings
    assert ours["by_seed"]["accuracy"]["mean"] == pytest.approx(((0.01 - 0.05) / 2 + 0.02 / 2) / 2)
    assert (ours["settings"], ours["settings_above"], ours["settings_below"]) == (2, 1, 0)
    assert found["pooled"]["blocks"] == 7
    assert ours["mean_rank"] == pytest.approx((5 * 1 + 1.5 + 2) / 7)
    assert theirs["mean_rank"] == pytest.approx((5 * 2 + 1.5 + 1) / 7)


def test_an_unfinished_grid_is_compared_by_the_pairs_that_are_there() -> None:
    cells = [item for item in five_pairs() if item["strategy"] == "random" or item["seed"] in (1, 3)]
    cells.append(cell([0.5, 0.6, 0.7], strategy="late", seed=9))
    summary = summarise(cells)
    ours, late = strategy_of(summary, "vabal"), strategy_of(summary, "late")
    assert (ours["pairs"], ours["missing_seeds"]) == (2, [0, 2, 4, 9])
    assert ours["metrics"]["accuracy"]["difference"]["average"]["mean"] == pytest.approx(0.03)
    assert ours["labels"]["target"] == pytest.approx(0.8)  # of seeds 1 and 3
    assert (late["pairs"], late["metrics"]["accuracy"]["difference"], late["labels"]) == (0, None, None)
    assert summary["pooled"]["blocks"] == 0
    assert pooled_of(summary, "vabal")["mean_rank"] is None
    json.dumps(summary, allow_nan=False)


def test_one_seed_has_no_intervals_and_the_summary_is_strict_json() -> None:
    summary = summarise([cell([0.5, 0.6]), cell([0.5, 0.7], strategy="vabal")])
    found = strategy_of(summary, "vabal")["metrics"]["accuracy"]["difference"]["average"]
    assert (found["mean"], found["low"], found["high"], found["sd"], found["bootstrap_low"], found["p"]) == (
        pytest.approx(0.05), None, None, None, None, 1.0,
    )  # fmt: skip
    assert json.loads(json.dumps(summary, allow_nan=False, sort_keys=True)) == summary


def test_without_the_baseline_there_are_means_but_no_differences() -> None:
    summary = summarise([cell([0.5, 0.6], strategy="vabal")])
    assert strategy_of(summary, "vabal")["metrics"]["accuracy"]["difference"] is None
    assert pooled_of(summary, "vabal")["difference"] is None
    assert strategy_of(summarise([cell([0.5]), cell([0.6], strategy="b")], baseline="b"), "random")["pairs"] == 1


def test_the_order_of_the_cells_does_not_matter() -> None:
    cells = grid(strategies=["vabal", "random", "margin"], seeds=4, rounds=3)
    shuffled = [cells[place] for place in np.random.default_rng(3).permutation(len(cells))]
    assert json.dumps(summarise(shuffled)) == json.dumps(summarise(cells))


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([], "no cells"),
        ([cell([0.5]), cell([0.5])], "twice"),
        ([cell([0.5]), cell([0.5], seed=1, classes=("a", "c"))], "other classes"),
        ([cell([0.5]), cell([0.5, 0.6], seed=1)], "other labels a round"),
        ([cell([0.5]), cell([float("nan")], seed=1)], "random, seed 1 has a round whose balanced_accuracy"),
        ([cell([])], "no rounds"),
    ],
)
def test_cells_that_cannot_be_compared_are_refused_by_name(cells: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        summarise(cells)


# -- learners, and the reference ------------------------------------------------------------------------------------


def learned(learner: str, gain: float, **more: Any) -> list[dict[str, Any]]:
    """Random and margin picks of one learner; margin is above random by `gain` and 0.01 to 0.05 on the average."""
    return [
        item
        for seed in range(5)
        for item in (
            cell([0.5, 0.5], seed=seed, learner=learner, **more),
            cell([0.5, 0.5 + 2 * gain + (seed + 1) / 50], strategy="margin", seed=seed, learner=learner, **more),
        )
    ]


def test_a_row_is_compared_with_random_picks_of_the_same_learner() -> None:
    shifted = [{**item, "rounds": [{**each, "balanced_accuracy": each["balanced_accuracy"] + 0.2} for each in item["rounds"]]} for item in learned("svm", 0.05)]  # fmt: skip  # noqa: E501
    found = summarise([*learned("probe", 0.0), *shifted])
    gaps = {
        name: strategy_of(found, name)["metrics"]["balanced_accuracy"]["difference"]
        for name in ("probe/margin", "svm/margin", "probe/random", "svm/random")
    }
    assert gaps["probe/margin"]["average"]["mean"] == pytest.approx(0.03)
    assert gaps["svm/margin"]["average"]["mean"] == pytest.approx(0.08)
    assert gaps["probe/random"] is gaps["svm/random"] is None
    assert [item["strategy"] for item in found["settings"][0]["strategies"]] == [
        "svm/margin", "svm/random", "probe/margin", "probe/random",
    ]  # fmt: skip
    assert (strategy_of(found, "svm/margin")["learner"], strategy_of(found, "svm/margin")["picks"]) == ("svm", "margin")
    assert strategy_of(found, "svm/margin")["cost"] == {"trained": 6.0, "cpu_seconds": 6.0}


def test_the_reference_is_tested_against_every_row_and_holm_corrects_for_their_number() -> None:
    more = [cell([0.5, 0.502 + 0.004 * seed * (-1) ** seed], strategy="entropy", seed=seed, learner="probe") for seed in range(5)]  # fmt: skip  # noqa: E501
    found = summarise([*learned("probe", 0.0), *more])
    assert found["reference"] == "probe/entropy"
    found = comparison.summarise([*learned("probe", 0.0), *more], reference="probe/margin").to_json()
    rivals = {item["strategy"]: item for item in found["settings"][0]["rivals"]}
    against = rivals["probe/random"]
    assert against["difference"]["mean"] == pytest.approx(0.03)
    assert against["difference"]["t_p"] == pytest.approx(0.0132357, rel=1e-4)  # t of 4.243, four degrees of freedom
    other = rivals["probe/entropy"]["difference"]["t_p"]
    smaller, larger = sorted((against["difference"]["t_p"], other))
    assert sorted(item["holm_t_p"] for item in rivals.values()) == pytest.approx(
        [2 * smaller, max(2 * smaller, larger)]
    )
    assert {item["verdict"] for item in rivals.values()} == {"ahead"}
    turned = comparison.summarise([*learned("probe", 0.0), *more], reference="probe/random").to_json()
    verdicts = {item["strategy"]: item["verdict"] for item in turned["settings"][0]["rivals"]}
    assert verdicts == {"probe/margin": "behind", "probe/entropy": "not distinguishable"}


def test_over_settings_rivals_are_compared_by_the_mean_of_each_seed_that_is_whole() -> None:
    cells = [*learned("probe", 0.0), *learned("probe", 0.1, imbalance="rare:1")]
    cells = [item for item in cells if (item["imbalance"], item["seed"]) != ("rare:1", 4)]
    (rival,) = comparison.summarise(cells, reference="probe/margin").to_json()["pooled"]["rivals"]
    assert rival["difference"]["n"] == 4
    assert rival["difference"]["mean"] == pytest.approx(0.05 + 0.025)  # half of 0.1, and 0.01 to 0.04


def test_what_must_stand_beside_every_result_stands_in_the_setting() -> None:
    assert summarise([cell([0.5], caveat="optimistic")])["settings"][0]["caveat"] == "optimistic"


def test_labels_saved_have_an_interval_and_what_random_needs_for_the_end_is_told() -> None:
    cells = [
        cell(curve, strategy=name, seed=seed)
        for seed in range(5)
        for name, curve in (("random", [0.5, 0.6, 0.8]), ("vabal", [0.5, 0.9, 0.9]), ("weak", [0.5, 0.55, 0.7]))
    ]
    summary = summarise(cells)
    labels = strategy_of(summary, "vabal")["labels"]
    assert (labels["saved_low"], labels["saved_high"]) == (pytest.approx(25), pytest.approx(25))
    assert labels["matched"] is None  # more than the 60 there were
    assert strategy_of(summary, "weak")["labels"]["matched"] == pytest.approx(50)
    assert strategy_of(summary, "weak")["labels"]["saved_low"] is None


# -- summary.json -----------------------------------------------------------------------------------------------------


def test_a_summary_says_the_same_once_it_was_written_and_read() -> None:
    summary = comparison.summarise(grid(strategies=("vabal", "random", "margin"), seeds=2, rounds=2))
    content = summary.content()
    assert content == json.dumps(summary.to_json(), indent=1, sort_keys=True, allow_nan=False).encode()
    again = Summary.model_validate_json(content)
    assert again == summary
    assert again.content() == content


def test_the_keys_of_a_summary_are_those_that_others_read() -> None:
    keys = {".".join(path) for path in paths_of(summarise([*five_pairs()]))}
    assert keys == set((Path(__file__).parents[2] / "golden" / "summary_keys.txt").read_text().split())


def paths_of(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where each number or text stands; a list's items at the list's own place."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from paths_of(item, (*at, str(name)))
    elif isinstance(value, list):
        for item in value:
            yield from paths_of(item, at)
    else:
        yield at


def test_a_summary_of_another_version_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summarise([cell([0.5])]) | {"version": 1}))
    with pytest.raises(UserError, match="another version of vabal wrote it; the same `vabal bench` line makes it anew"):
        Summary.read(tmp_path / "summary.json")


def test_a_summary_with_a_key_that_none_should_have_is_refused() -> None:
    with pytest.raises(ValueError, match="extra"):
        Summary.model_validate(summarise([cell([0.5])]) | {"more": 1})
