import json
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vabal.errors import UserError
from vabal.params import PromotionSettings
from vabal.promotion import decide, resampled_gains

SETTINGS = PromotionSettings()


def table(labels: list[str | None], predicted: list[str], first: int = 0) -> pd.DataFrame:
    ids = [f"s{first + index:04d}" for index in range(len(labels))]
    return pd.DataFrame({"sample_id": ids, "label": labels, "predicted_class": predicted})


def predictions(right: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """For each class (right answers, samples); wrong answers name the next class; the first samples are right."""
    names = list(right)
    labels, predicted = [], []
    for index, (name, (correct, total)) in enumerate(right.items()):
        wrong = names[(index + 1) % len(names)]
        labels += [name] * total
        predicted += [name] * correct + [wrong] * (total - correct)
    return table(labels, predicted)  # type: ignore[arg-type]


def test_a_better_challenger_is_promoted_with_the_numbers_computed_by_hand() -> None:
    challenger = predictions({"a": (95, 100), "b": (38, 40)})
    champion = predictions({"a": (90, 100), "b": (30, 40)})
    decision = decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b"])
    assert decision.promoted
    assert decision.gain == pytest.approx((0.05 + 0.2) / 2)
    assert decision.challenger["balanced_accuracy"] == pytest.approx((0.95 + 0.95) / 2)
    assert decision.champion is not None
    assert decision.champion["recall/b"] == pytest.approx(0.75)
    assert decision.challenger["accuracy"] == pytest.approx(133 / 140)
    assert (decision.compared, decision.left_out, decision.relabelled) == (140, 0, 0)
    # The gain is the mean of two binomial shares over their class, 5 of 100 and 8 of 40, so its deviation is known.
    deviation = 0.5 * np.sqrt(0.05 * 0.95 / 100 + 0.2 * 0.8 / 40)
    assert decision.gain_lower == pytest.approx(0.125 - 1.645 * deviation, abs=0.005)
    assert [check.name for check in decision.reasons] == [
        "gain",
        "gain_lower_bound",
        "recall_drop/a",
        "recall_drop/b",
    ]
    assert decision.failed == ()


def test_an_equal_challenger_is_refused_for_its_gain_is_not_above_nothing() -> None:
    same = predictions({"a": (9, 10), "b": (5, 10)})
    decision = decide(same, same, SETTINGS, seed=0, classes=["a", "b"])
    assert not decision.promoted
    assert [check.name for check in decision.failed] == ["gain"]
    assert "balanced accuracy gained +0.0000, must be above +0.0000" in decision.failed[0].text


def test_min_gain_itself_is_not_enough() -> None:
    challenger, champion = predictions({"a": (10, 10), "b": (10, 10)}), predictions({"a": (10, 10), "b": (8, 10)})
    settings = PromotionSettings(min_gain=0.1)
    failed = decide(challenger, champion, settings, seed=0, classes=["a", "b"]).failed
    assert [check.name for check in failed] == ["gain"]
    assert decide(challenger, champion, PromotionSettings(min_gain=0.09), seed=0, classes=["a", "b"]).promoted


def test_one_class_that_loses_too_much_recall_stops_a_challenger_that_is_better_on_average() -> None:
    challenger = predictions({"a": (100, 100), "b": (84, 100), "c": (100, 100)})
    champion = predictions({"a": (50, 100), "b": (90, 100), "c": (50, 100)})
    decision = decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b", "c"])
    assert not decision.promoted
    (failed,) = decision.failed
    assert (failed.name, failed.bound) == ("recall_drop/b", 0.05)
    assert failed.value == pytest.approx(0.06)


def test_a_drop_of_exactly_the_bound_is_allowed() -> None:
    challenger = predictions({"a": (100, 100), "b": (90, 100)})
    champion = predictions({"a": (50, 100), "b": (95, 100)})  # 0.95 - 0.90 > 0.05 in floating point
    assert decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b"]).promoted


def test_a_gain_that_could_be_chance_fails_the_lower_bound_alone() -> None:
    # 20 samples a class: the challenger wins 6 and loses 5 of each.
    labels = ["a"] * 20 + ["b"] * 20
    won, lost, other = range(6), range(6, 11), {"a": "b", "b": "a"}
    mine = [other[label] if index % 20 in lost else label for index, label in enumerate(labels)]
    theirs = [other[label] if index % 20 in won else label for index, label in enumerate(labels)]
    settings = PromotionSettings(max_recall_drop=1.0)
    decision = decide(table(labels, mine), table(labels, theirs), settings, seed=0, classes=["a", "b"])  # type: ignore[arg-type]
    assert decision.gain == pytest.approx(0.05)
    assert [check.name for check in decision.failed] == ["gain_lower_bound"]


def test_a_first_champion_must_beat_always_answering_the_majority_class() -> None:
    majority = table(["a"] * 90 + ["b"] * 10, ["a"] * 100)
    decision = decide(majority, None, SETTINGS, seed=0, classes=["a", "b", "c"])
    assert not decision.promoted
    (check,) = decision.failed
    assert (check.value, check.bound) == (0.5, 0.5)  # c does not occur in the holdout
    better = table(["a"] * 90 + ["b"] * 10, ["a"] * 99 + ["b"])
    decision = decide(better, None, SETTINGS, seed=0, classes=["a", "b", "c"])
    assert decision.promoted
    assert decision.champion is None
    assert decision.gain is None


def test_only_samples_that_both_predicted_are_compared_and_the_rest_is_counted() -> None:
    champion = table(["a", "a", "b", "b"], ["a", "b", "b", "a"], first=0)  # s0000 to s0003
    challenger = table(["a", "b", "b", "a", "b"], ["a", "b", "b", "b", "b"], first=1)  # s0001 to s0005
    decision = decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b"])
    assert (decision.compared, decision.left_out) == (3, 3)
    assert decision.champion is not None
    assert decision.champion["accuracy"] == pytest.approx(1 / 3)
    assert decision.challenger["accuracy"] == 1


def test_corrected_labels_count_for_both_models() -> None:
    champion = table(["a", "a", "b"], ["a", "a", "b"])
    challenger = table(["a", "b", "b"], ["a", "b", "b"])
    decision = decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b"])
    assert decision.relabelled == 1
    assert decision.champion is not None
    assert decision.champion["balanced_accuracy"] == pytest.approx(0.75)
    today = {"s0000": "a", "s0001": "a", "s0002": "b"}
    decision = decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b"], labels=today)
    assert decision.relabelled == 0
    assert decision.champion is not None
    assert decision.champion["balanced_accuracy"] == 1


def test_a_sample_without_a_label_is_left_out() -> None:
    champion = table(["a", "b", None], ["a", "b", "b"])
    challenger = table(["a", "b", None], ["a", "b", "b"])
    decision = decide(challenger, champion, SETTINGS, seed=0, classes=["a", "b"])
    assert (decision.compared, decision.left_out) == (2, 1)
    decision = decide(challenger, None, SETTINGS, seed=0, classes=["a", "b"], labels={"s0000": "a"})
    assert (decision.compared, decision.left_out) == (1, 2)


def test_models_with_no_sample_in_common_are_refused() -> None:
    champion, challenger = table(["a"], ["a"]), table(["a"], ["a"], first=5)
    with pytest.raises(UserError, match="no labelled holdout sample was predicted by the models"):
        decide(challenger, champion, SETTINGS, seed=0, classes=["a"])
    with pytest.raises(UserError, match="no labelled holdout sample"):
        decide(table([None], ["a"]), None, SETTINGS, seed=0, classes=["a"])


def test_a_label_outside_the_classes_is_a_users_error_and_a_wrong_table_is_a_bug() -> None:
    with pytest.raises(UserError, match="'z' is not in the list of classes"):
        decide(table(["z"], ["a"]), None, SETTINGS, seed=0, classes=["a"])
    with pytest.raises(ValueError, match="predicted class 'z'"):
        decide(table(["a"], ["z"]), None, SETTINGS, seed=0, classes=["a"])
    with pytest.raises(ValueError, match="a sample twice"):
        decide(pd.concat([table(["a"], ["a"])] * 2), None, SETTINGS, seed=0, classes=["a"])
    with pytest.raises(ValueError, match="lack the columns"):
        decide(table(["a"], ["a"]).drop(columns="label"), None, SETTINGS, seed=0, classes=["a"])


def test_the_decision_depends_on_neither_order_nor_anything_but_the_seed() -> None:
    challenger, champion = predictions({"a": (90, 100), "b": (30, 40)}), predictions({"a": (88, 100), "b": (28, 40)})
    one = decide(challenger, champion, SETTINGS, seed=7, classes=["a", "b"])
    assert (
        decide(challenger[::-1], champion.sample(frac=1, random_state=0), SETTINGS, seed=7, classes=["a", "b"]) == one
    )
    assert decide(challenger, champion, SETTINGS, seed=8, classes=["a", "b"]).gain == one.gain


def test_a_decision_is_json() -> None:
    same = predictions({"a": (9, 10), "b": (5, 10)})
    written = json.loads(json.dumps(decide(same, same, SETTINGS, seed=0, classes=["a", "b"]).to_dict()))
    assert written["promoted"] is False
    assert written["reasons"][0]["name"] == "gain"


def naive_gains(
    labels: np.ndarray, mine: np.ndarray, theirs: np.ndarray, resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """Redraws the samples themselves, class by class, and recomputes both recalls."""
    gains = []
    for _ in range(resamples):
        recalls = []
        for index in np.unique(labels):
            members = np.flatnonzero(labels == index)
            drawn = generator.choice(members, size=len(members), replace=True)
            recalls.append(mine[drawn].mean() - theirs[drawn].mean())
        gains.append(np.mean(recalls))
    return np.array(gains)


def test_the_fast_bootstrap_has_the_distribution_of_a_slow_one_over_samples() -> None:
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1, 2], [50, 20, 5])
    mine, theirs = generator.random(75) < 0.85, generator.random(75) < 0.7
    counts = np.array(
        [
            [np.sum((labels == index) & (mine == left) & (theirs == right)) for left, right in OUTCOMES]
            for index in range(3)
        ]
    )
    fast = resampled_gains(counts, resamples=20_000, generator=np.random.default_rng(2))
    slow = naive_gains(labels, mine, theirs, 4000, np.random.default_rng(3))
    assert fast.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() / np.sqrt(4000))
    assert fast.std() == pytest.approx(slow.std(), rel=0.06)
    np.testing.assert_allclose(np.quantile(fast, [0.05, 0.25, 0.75]), np.quantile(slow, [0.05, 0.25, 0.75]), atol=0.012)


OUTCOMES = [(True, True), (True, False), (False, True), (False, False)]


def test_the_bootstrap_is_paired_so_models_that_err_alike_differ_by_little() -> None:
    alike = resampled_gains(np.array([[50, 1, 0, 49]]), resamples=2000, generator=np.random.default_rng(0))
    apart = resampled_gains(np.array([[2, 49, 48, 1]]), resamples=2000, generator=np.random.default_rng(0))
    assert alike.mean() == pytest.approx(apart.mean(), abs=0.01)
    assert apart.std() > 5 * alike.std()


def test_ten_thousand_resamples_of_ten_thousand_samples_in_a_hundred_classes_take_under_two_seconds() -> None:
    generator = np.random.default_rng(0)
    classes = [f"c{index}" for index in range(100)]
    labels = generator.choice(classes, 10_000).tolist()
    mine = [label if generator.random() < 0.8 else "c0" for label in labels]
    theirs = [label if generator.random() < 0.75 else "c1" for label in labels]
    started = time.process_time()
    decide(table(labels, mine), table(labels, theirs), SETTINGS, seed=0, classes=classes)
    assert time.process_time() - started < 2


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    sizes=st.lists(st.integers(0, 8), min_size=2, max_size=4).filter(lambda sizes: sum(sizes) > 0),
)
def test_promotion_means_that_every_check_holds_and_swapping_the_models_turns_the_gain_round(
    seed: int, sizes: list[int]
) -> None:
    generator = np.random.default_rng(seed)
    classes = [f"c{index}" for index in range(len(sizes))]
    labels = [name for name, size in zip(classes, sizes, strict=True) for _ in range(size)]
    mine, theirs = (table(labels, generator.choice(classes, len(labels)).tolist()) for _ in range(2))  # type: ignore[arg-type]
    settings = PromotionSettings(resamples=200)
    forth = decide(mine, theirs, settings, seed=seed, classes=classes)
    back = decide(theirs, mine, settings, seed=seed, classes=classes)
    assert forth.promoted == (not forth.failed)
    assert forth.gain is not None
    assert back.gain == pytest.approx(-forth.gain)
    assert not (forth.promoted and back.promoted)
