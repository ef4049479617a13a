from collections.abc import Mapping
from typing import Any

import pytest

from vabal.benchmark.grids import BenchmarkOptions, Grid
from vabal.benchmark.variants import LEARNERS, LearnerVariant, parse_learner
from vabal.errors import UserError


def grid(**options: Any) -> Grid:
    return BenchmarkOptions(sources=["digits"], **options).grid()


def labels_of(made: Grid) -> list[str]:
    return [variant.label for variant in made.variants]


def test_each_learner_is_run_with_each_strategy() -> None:
    made = grid(learners="probe,svm-hog", strategies="random,margin")
    assert labels_of(made) == ["probe/random", "probe/margin", "svm-hog/random", "svm-hog/margin"]
    cells = [cell for cell in made.cells() if cell.seed == 0]
    assert [cell.params(8, 1).classifier.learner for cell in cells[:2]] == ["probe", "probe"]
    assert [(cell.learner, cell.baseline) for cell in cells] == [("probe", None)] * 2 + [("svm-hog", "svm-hog")] * 2
    assert len({cell.key for cell in cells}) == 4


@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_of_the_settings_can_be_named(name: str) -> None:
    made = grid(learners=name, strategies="random")
    assert made.cells()[0].params(8, 1).classifier.learner == name


def test_without_learners_rows_are_called_as_their_strategies_and_keep_their_keys() -> None:
    made = grid(strategies="random,margin")
    assert labels_of(made) == ["random", "margin"]
    assert "learner" not in {name for cell in made.cells() for name in cell.settings}


def test_a_learner_has_settings_and_a_label_of_its_own_and_a_strategys_come_before_them() -> None:
    assert parse_learner("last=probe[classifier.layers=last]") == LearnerVariant("last", "probe", {"classifier.layers": "last"})  # fmt: skip  # noqa: E501
    made = grid(learners="last=probe[classifier.layers=last]", strategies="random,all=random[classifier.layers=all]")
    assert labels_of(made) == ["last/random", "last/all"]
    assert [cell.params(8, 1).classifier.layers for cell in made.cells()[:2]] == ["last", "all"]


def test_what_a_baseline_cannot_do_is_left_out_and_said_in_one_line() -> None:
    made = grid(learners="svm-hog", strategies="random,vabal,ensemble,plain=vabal[method.preset=without_vae]")
    assert labels_of(made) == ["svm-hog/random", "svm-hog/plain"]
    why = "a shallow baseline has no networks to ask, no VAE and no class terms"
    assert f"left out: svm-hog/vabal, svm-hog/ensemble ({why})" in made.told


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        ({"learners": "probe,svm-hog"}, 20),
        ({"learners": "probe,scratch"}, 5),
        ({"settings": {"classifier.learner": "probe"}}, 20),
        ({}, 5),
        ({"learners": "probe", "seeds": 3}, 3),
    ],
)
def test_seeds_are_twenty_where_a_run_takes_seconds_and_five_where_networks_are_trained(
    options: Mapping[str, Any], seeds: int
) -> None:
    made = grid(strategies="random", **options)
    assert len(made.seeds) == seeds
    assert any(line.startswith(f"{seeds} seeds, for ") for line in made.told) is ("seeds" not in options)


def test_the_reference_is_vabal_on_the_first_learner_or_what_is_named() -> None:
    rows: dict[str, Any] = {"learners": "probe,svm-hog", "strategies": "random,margin,vabal"}
    assert grid(**rows).reference == "probe/vabal"
    assert grid(**rows, reference="svm-hog/margin").reference == "svm-hog/margin"
    assert grid(strategies="random,margin").reference == "margin"
    assert grid(strategies="random").reference is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learners": "svm"}, "there is no learner 'svm'; known are scratch, probe"),
        ({"learners": "probe,,"}, "a name is missing; write them as scratch,probe,svm-hog"),
        ({"learners": "probe,probe"}, "learner 'probe' stands there twice"),
        ({"learners": "probe[classifier.learner=scratch]"}, "without classifier.learner"),
        ({"learners": "probe[vae.epochs=1]"}, "no setting that a learner has for itself"),
        ({"learners": "svm-hog", "strategies": "vabal"}, "none of the strategies can pick for one of them: add random"),
        ({"reference": "nobody", "strategies": "random,margin"}, "--reference 'nobody': there is no such row; they are random, margin"),  # noqa: E501
    ],
)  # fmt: skip
def test_learners_that_cannot_be_run_are_refused_in_one_line(options: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        grid(**options)
    assert "\n" not in str(caught.value)
