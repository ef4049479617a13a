import json
import time
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vabal.errors import UserError
from vabal.learning.metrics import FEWEST_IMAGES
from vabal.promotion.decision import Decision, best, decide, holdout_digest
from vabal.promotion.paired import gain_lower_bound, spent_on
from vabal.promotion.pairs import CannotJudge, labels_of
from vabal.settings.models import PromotionSettings

SETTINGS = PromotionSettings()


def table(labels: Sequence[str | None], predicted: list[str], first: int = 0) -> pd.DataFrame:
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
    return table(labels, predicted)


def test_a_better_challenger_is_promoted_with_the_numbers_computed_by_hand() -> None:
    challenger = predictions({"a": (95, 100), "b": (38, 40)})
    champion = predictions({"a": (90, 100), "b": (30, 40)})
    decision = decide(challenger, champion, SETTINGS, classes=["a", "b"])
    assert decision.promoted
    assert decision.gain == pytest.approx((0.05 + 0.2) / 2)
    assert decision.challenger["balanced_accuracy"] == pytest.approx((0.95 + 0.95) / 2)
    assert decision.champion is not None
    assert decision.champion["recall/b"] == pytest.approx(0.75)
    assert decision.challenger["accuracy"] == pytest.approx(133 / 140)
    assert (decision.compared, decision.left_out, decision.relabelled) == (140, 0, 0)
    # The gain is the mean of two shares over their class, 5 of 100 and 8 of 40, so its deviation is nearly known.
    deviation = 0.5 * np.sqrt(0.05 * 0.95 / 100 + 0.2 * 0.8 / 40)
    assert decision.gain_lower == pytest.approx(0.125 - 2.394 * deviation, abs=0.015)  # 2.394: 99.17 %, the first use
    assert decision.gain_lower == float(gain_lower_bound([[5, 0, 95], [8, 0, 32]], spent_on(1, 0.05)))
    assert [check.name for check in decision.reasons] == ["gain_lower_bound", "recall_drop/a", "recall_drop/b"]
    assert decision.failed == ()
    assert decision.words == decision.reasons[0].text  # the recalls are well
    assert decision.use == 1
    assert decision.level == pytest.approx(1 - 0.05 / 6)


def test_an_equal_challenger_is_refused_for_its_gain_is_not_shown() -> None:
    same = predictions({"a": (9, 10), "b": (5, 10)})
    decision = decide(same, same, SETTINGS, classes=["a", "b"])
    assert not decision.promoted
    assert [check.name for check in decision.failed] == ["gain_lower_bound"]
    assert decision.words.startswith("balanced accuracy gained +0.0000, its lower bound -0.")
    assert "at 99.17 % (the holdout was used for 1 decision), must be above +0.0000" in decision.words


def test_a_gain_must_be_shown_to_be_above_min_gain() -> None:
    challenger, champion = (
        predictions({"a": (100, 100), "b": (100, 100)}),
        predictions({"a": (100, 100), "b": (80, 100)}),
    )
    lower = decide(challenger, champion, SETTINGS, classes=["a", "b"]).gain_lower
    assert lower is not None
    assert 0.03 < lower < 0.1
    for min_gain, promoted in ((lower - 1e-6, True), (lower, False), (0.1, False)):
        settings = PromotionSettings(min_gain=min_gain)
        assert decide(challenger, champion, settings, classes=["a", "b"]).promoted == promoted


def test_the_models_of_three_good_nights_are_each_promoted_over_the_one_before() -> None:
    """360 images of ten classes, as the digits have: 0.75, 0.90, 0.96; a third of the champion's errors in common."""
    digits = [str(digit) for digit in range(10)]
    generator = np.random.default_rng(0)
    labels = np.repeat(digits, 36)

    def night(accuracy: float, before: np.ndarray) -> np.ndarray:
        wrong = np.zeros(360, dtype=bool)
        errors, common = round(360 * (1 - accuracy)), min(int(before.sum()), round(360 * (1 - accuracy))) // 3
        wrong[generator.choice(np.flatnonzero(before), common, replace=False) if common else []] = True
        wrong[generator.choice(np.flatnonzero(~before), errors - common, replace=False)] = True
        return wrong

    errors = [np.zeros(360, dtype=bool)]
    for accuracy in (0.75, 0.90, 0.96):
        errors.append(night(accuracy, errors[-1]))
    tables = [
        table(labels.tolist(), [str((int(name) + bool(no)) % 10) for name, no in zip(labels, wrong, strict=True)])
        for wrong in errors[1:]
    ]
    assert decide(tables[0], None, SETTINGS, classes=digits, use=1).promoted
    assert decide(tables[1], tables[0], SETTINGS, classes=digits, use=2).promoted
    assert decide(tables[2], tables[1], SETTINGS, classes=digits, use=3).promoted


# -- what a class may lose ------------------------------------------------------------------------------------------


def better_but_for(before: int, after: int, images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A challenger that is much better in a and b, and in c right for `after` of `images` instead of `before`."""
    challenger = predictions({"a": (300, 300), "b": (300, 300), "c": (after, images)})
    return challenger, predictions({"a": (150, 300), "b": (150, 300), "c": (before, images)})


def test_one_class_that_is_shown_to_lose_too_much_recall_stops_a_challenger_that_is_better_on_average() -> None:
    decision = decide(*better_but_for(90, 78, 100), SETTINGS, classes=["a", "b", "c"])
    assert not decision.promoted
    (failed,) = decision.failed
    assert (failed.name, failed.bound) == ("recall_drop/c", 0.05)
    assert failed.value == pytest.approx(float(gain_lower_bound([[12, 0, 88]], 0.05, continuity=False)))
    assert decision.words.startswith("recall of c 0.9000 -> 0.7800 on 100 images, a drop of at least +0.07")
    assert "gained" not in decision.words


@pytest.mark.parametrize(("lost", "promoted"), [(0, True), (1, True), (3, True), (4, False), (10, False)])
def test_of_ten_images_one_error_decides_nothing_and_four_do(lost: int, promoted: bool) -> None:
    decision = decide(*better_but_for(10, 10 - lost, 10), SETTINGS, classes=["a", "b", "c"])
    assert decision.promoted == promoted
    assert decision.not_judged == {}
    # A class that fell by more than may be is named all the same.
    assert decision.unsure == (("c",) if promoted and lost else ())
    if promoted and lost:
        assert f"recall of c 1.0000 -> {1 - lost / 10:.4f} on 10 images" in decision.words
        assert "(it did, which may be chance)" in decision.words


def test_a_class_is_not_ruined_in_silence_whatever_its_size() -> None:
    for images in range(FEWEST_IMAGES, 200):
        half_way = int(np.ceil(images * (1 + SETTINGS.max_recall_drop) / 2))
        lost = gain_lower_bound([[half_way, 0, images - half_way]], 0.05, continuity=False)
        assert lost > SETTINGS.max_recall_drop
    images = FEWEST_IMAGES - 1  # where FEWEST_IMAGES comes from: with one fewer it could not be shown
    assert not gain_lower_bound([[3, 0, images - 3]], 0.05, continuity=False) > SETTINGS.max_recall_drop


def test_a_class_with_too_few_images_is_named_as_not_judged_and_counts_for_nothing() -> None:
    challenger = predictions({"a": (95, 100), "b": (38, 40), "c": (0, 5)})
    champion = predictions({"a": (90, 100), "b": (30, 40), "c": (5, 5)})
    decision = decide(challenger, champion, SETTINGS, classes=["a", "b", "c", "d"])
    assert decision.promoted
    assert decision.gain == pytest.approx((0.05 + 0.2) / 2)
    assert decision.not_judged == {"c": 5, "d": 0}
    assert "not judged, for fewer than 6 holdout images: c (5 holdout images), d (0 holdout images)" in decision.words
    assert json.loads(json.dumps(decision.to_dict()))["not_judged"] == {"c": 5, "d": 0}


def test_the_interval_of_a_class_does_not_widen_with_the_use_of_the_holdout() -> None:
    pair = better_but_for(90, 78, 100)
    assert not decide(*pair, SETTINGS, classes=["a", "b", "c"], use=100).promoted


# -- the first champion ---------------------------------------------------------------------------------------------


def test_a_first_champion_must_be_shown_to_beat_always_answering_the_majority_class() -> None:
    majority = table(["a"] * 90 + ["b"] * 10, ["a"] * 100)
    decision = decide(majority, None, SETTINGS, classes=["a", "b", "c"])
    assert not decision.promoted
    (check,) = decision.failed
    assert (check.name, check.bound) == ("beats_majority_class", 0.5)  # c does not occur in the holdout
    assert "balanced accuracy 0.5000" in check.text
    one_more = table(["a"] * 90 + ["b"] * 10, ["a"] * 99 + ["b"])
    assert not decide(one_more, None, SETTINGS, classes=["a", "b", "c"]).promoted  # which may be luck
    better = table(["a"] * 90 + ["b"] * 10, ["a"] * 93 + ["b"] * 7)
    decision = decide(better, None, SETTINGS, classes=["a", "b", "c"])
    assert decision.promoted
    assert decision.champion is None
    assert decision.gain is None


def test_the_best_candidate_is_that_of_the_highest_balanced_accuracy_and_of_equals_the_last() -> None:
    tables = {str(n): predictions({"a": (n, 100), "b": (right, 20)}) for n, right in ((80, 12), (70, 18), (90, 11))}
    assert best(tables, classes=["a", "b"]) == "70"  # 0.80 against 0.70 and 0.725; plain accuracy prefers the others
    same = predictions({"a": (80, 100), "b": (16, 20)})
    assert best({"1": same, "2": same, "3": same}, classes=["a", "b"]) == "3"


def test_a_candidate_that_saw_little_of_the_holdout_is_not_the_best_by_luck() -> None:
    few = predictions({"a": (10, 10), "b": (10, 10)})
    many = predictions({"a": (90, 100), "b": (90, 100)})
    many["sample_id"] = [f"m{index}" for index in range(180)] + list(few["sample_id"])
    many["label"] = many["label"].where(many.index < 180, [*["a"] * 190, *["b"] * 10])
    many["predicted_class"] = many["label"].where(many.index % 10 != 0, "a")
    assert best({"1": few, "2": many}, classes=["a", "b"]) == "2"


def test_a_named_candidate_may_be_worse_than_the_best_by_the_tolerance_as_far_as_can_be_shown() -> None:
    named, rival = predictions({"a": (80, 100), "b": (80, 100)}), predictions({"a": (90, 100), "b": (90, 100)})
    decision = decide(named, None, SETTINGS, classes=["a", "b"], rivals={"7": rival})
    (failed,) = decision.failed
    assert failed.name == "best_candidate"
    assert "version 7 is better by +0.1000, at least +0.0" in failed.text
    lax = PromotionSettings(tolerance=0.2)
    assert decide(named, None, lax, classes=["a", "b"], rivals={"7": rival}).promoted
    assert decide(rival, None, SETTINGS, classes=["a", "b"], rivals={"6": named}).promoted


def test_a_first_champion_is_called_the_best_only_among_others_and_under_the_labels_of_today() -> None:
    labels, other = ["a"] * 50 + ["b"] * 50, ["b"] * 50 + ["a"] * 50
    named, rival = table(labels, other), table(labels, labels)
    today = {f"s{index:04d}": label for index, label in enumerate(other)}
    decision = decide(named, None, SETTINGS, classes=["a", "b"], labels=today, rivals={"7": rival})
    assert decision.promoted
    assert "balanced accuracy 1.0000, the best of 2 candidates, its lower bound 0.9" in decision.words
    assert "balanced accuracy 1.0000, its lower bound" in decide(rival, None, SETTINGS, classes=["a", "b"]).words
    refused = decide(named, None, SETTINGS, classes=["a", "b"], rivals={"7": rival})
    assert "balanced accuracy 0.0000, its lower bound" in refused.words
    assert [check.text for check in refused.failed] == refused.words.split("; ")
    assert [check.name for check in refused.failed] == ["beats_majority_class", "best_candidate"]


def test_no_candidate_at_all_is_told() -> None:
    with pytest.raises(CannotJudge, match="no version's round recorded what it predicted"):
        best({}, classes=["a", "b"])


# -- what is compared -----------------------------------------------------------------------------------------------


def test_only_samples_that_both_predicted_are_compared_and_the_rest_is_counted() -> None:
    champion = table(["a", "b"] * 10, ["a", "a"] * 10, first=0)  # s0000 to s0019
    challenger = table(["a", "b"] * 10, ["a", "b"] * 10, first=4)  # s0004 to s0023
    decision = decide(challenger, champion, SETTINGS, classes=["a", "b"])
    assert (decision.compared, decision.left_out) == (16, 8)
    assert decision.champion is not None
    assert decision.champion["accuracy"] == pytest.approx(0.5)
    assert decision.challenger["accuracy"] == 1


def test_corrected_labels_count_for_both_models() -> None:
    champion = table(["a"] * 10 + ["b"] * 10, ["a"] * 10 + ["b"] * 10)
    challenger = table(["a"] * 9 + ["b"] * 11, ["a"] * 9 + ["b"] * 11)
    decision = decide(challenger, champion, SETTINGS, classes=["a", "b"])
    assert decision.relabelled == 1
    assert decision.champion is not None
    assert decision.champion["balanced_accuracy"] == pytest.approx((1 + 10 / 11) / 2)
    today = {f"s{index:04d}": "a" if index < 10 else "b" for index in range(20)}
    decision = decide(challenger, champion, SETTINGS, classes=["a", "b"], labels=today)
    assert decision.relabelled == 0
    assert decision.holdout == holdout_digest(today) != holdout_digest(labels_of(challenger))
    assert decision.champion is not None
    assert decision.champion["balanced_accuracy"] == 1


def test_a_sample_without_a_label_is_left_out() -> None:
    labels: list[str | None] = ["a", "b"] * 6
    champion = challenger = table([*labels, None], ["a", "b"] * 6 + ["b"])
    decision = decide(challenger, champion, SETTINGS, classes=["a", "b"])
    assert (decision.compared, decision.left_out) == (12, 1)
    today = {f"s{index:04d}": str(labels[index]) for index in range(12)}
    decision = decide(challenger, None, SETTINGS, classes=["a", "b"], labels=today)
    assert (decision.compared, decision.left_out) == (12, 1)


@pytest.mark.parametrize(
    ("challenger", "champion", "missing"),
    [
        (table(["a", "b"], ["a", "b"]), table(["a", "b"], ["a", "b"], first=5), "no labelled one"),
        (table([None] * 20, ["a"] * 20), None, "no labelled one"),
        (table([], []), None, "no labelled one"),
        (pd.DataFrame({"sample_id": [], "label": [], "predicted_class": []}), table(["a"], ["a"]), "no labelled one"),
        (table(["a"] * 50, ["a"] * 50), None, "a 50"),
        (table(["a"] * 50 + ["b"] * 5, ["a"] * 55), table(["a"] * 50 + ["b"] * 5, ["b"] * 55), "a 50, b 5"),
    ],
    ids=["nothing in common", "no label", "empty", "untyped", "one class", "one class with enough images"],
)
def test_a_holdout_that_cannot_judge_is_said_in_one_line(
    challenger: pd.DataFrame, champion: pd.DataFrame | None, missing: str
) -> None:
    with pytest.raises(CannotJudge, match="two classes with 6 labelled holdout images each are needed") as waiting:
        decide(challenger, champion, SETTINGS, classes=["a", "b"])
    assert f"predicted {missing}: " in str(waiting.value)
    assert "\n" not in str(waiting.value)


def test_a_label_outside_the_classes_is_a_users_error_and_a_wrong_table_is_a_bug() -> None:
    with pytest.raises(UserError, match="'z' is not in the list of classes"):
        decide(table(["z"], ["a"]), None, SETTINGS, classes=["a"])
    with pytest.raises(ValueError, match="predicted class 'z'"):
        decide(table(["a"], ["z"]), None, SETTINGS, classes=["a"])
    with pytest.raises(ValueError, match="a sample twice"):
        decide(pd.concat([table(["a"], ["a"])] * 2), None, SETTINGS, classes=["a"])
    with pytest.raises(ValueError, match="lack the columns"):
        decide(table(["a"], ["a"]).drop(columns="label"), None, SETTINGS, classes=["a"])


def test_the_decision_does_not_depend_on_the_order_of_samples() -> None:
    challenger, champion = predictions({"a": (90, 100), "b": (30, 40)}), predictions({"a": (88, 100), "b": (28, 40)})
    one = decide(challenger, champion, SETTINGS, classes=["a", "b"])
    assert decide(challenger[::-1], champion.sample(frac=1, random_state=0), SETTINGS, classes=["a", "b"]) == one


def test_a_decision_is_json() -> None:
    same = predictions({"a": (9, 10), "b": (5, 10)})
    written = json.loads(json.dumps(decide(same, same, SETTINGS, classes=["a", "b"]).to_dict()))
    assert set(written) == {field.name for field in fields(Decision)}
    assert written["promoted"] is False
    assert written["reasons"][0]["name"] == "gain_lower_bound"


def test_the_comparison_is_paired_so_models_that_err_alike_are_told_apart_by_less() -> None:
    labels = ["a", "b"] * 100
    other = {"a": "b", "b": "a"}

    def wrong_at(places: range) -> pd.DataFrame:
        return table(labels, [other[label] if index in places else label for index, label in enumerate(labels)])

    alike = decide(wrong_at(range(0, 50)), wrong_at(range(0, 70)), SETTINGS, classes=["a", "b"])
    apart = decide(wrong_at(range(0, 50)), wrong_at(range(50, 120)), SETTINGS, classes=["a", "b"])
    assert alike.gain == apart.gain == pytest.approx(0.1)
    assert alike.promoted
    assert not apart.promoted


def test_ten_thousand_samples_in_a_hundred_classes_take_under_two_seconds() -> None:
    generator = np.random.default_rng(0)
    classes = [f"c{index}" for index in range(100)]
    labels = generator.choice(classes, 10_000).tolist()
    mine = [label if generator.random() < 0.8 else "c0" for label in labels]
    theirs = [label if generator.random() < 0.75 else "c1" for label in labels]
    started = time.process_time()
    decide(table(labels, mine), table(labels, theirs), SETTINGS, classes=classes)
    assert time.process_time() - started < 2


@hypothesis_settings(max_examples=30)
@given(
    seed=st.integers(0, 2**31 - 1),
    sizes=st.lists(st.integers(0, 30), min_size=2, max_size=4).filter(lambda sizes: sorted(sizes)[-2] >= 6),
)
def test_promotion_means_that_every_check_holds_and_swapping_the_models_turns_the_gain_round(
    seed: int, sizes: list[int]
) -> None:
    generator = np.random.default_rng(seed)
    classes = [f"c{index}" for index in range(len(sizes))]
    labels = [name for name, size in zip(classes, sizes, strict=True) for _ in range(size)]
    mine, theirs = (table(labels, generator.choice(classes, len(labels)).tolist()) for _ in range(2))
    forth = decide(mine, theirs, SETTINGS, classes=classes)
    back = decide(theirs, mine, SETTINGS, classes=classes)
    assert forth.promoted == (not forth.failed)
    assert forth.gain is not None
    assert back.gain == pytest.approx(-forth.gain)
    assert not (forth.promoted and back.promoted)
