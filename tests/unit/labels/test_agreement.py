"""How far people agree, against figures computed by others."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.support.small_pools import WHEN
from vabal import pools
from vabal.labels.agreement import agreement, cohens_kappa, fleiss_kappa


def events(*said: tuple[str, str | None, str]) -> pd.DataFrame:
    """Sample, label, annotator; each a minute after the one before."""
    table = pd.DataFrame(list(said), columns=["sample_id", "label", "annotator"], dtype=object)
    when = pd.date_range(WHEN, periods=len(table), freq="min")
    return pools.typed(table.assign(labeled_at=when, source="x.csv"), pools.EVENTS)


def test_fleiss_kappa_is_that_of_the_example_in_his_article() -> None:
    # Fleiss (1971), as Wikipedia tells it: ten subjects, fourteen raters, five categories; kappa 0.210
    rows = ["0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1", "7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2"]
    counts = np.array([row.split() for row in [*rows, "6 5 2 1 0", "0 2 2 3 7"]], dtype=np.int64)
    assert fleiss_kappa(counts) == pytest.approx(0.20993, abs=1e-5)


def test_images_with_one_opinion_say_nothing_of_agreement() -> None:
    assert fleiss_kappa(np.array([[2, 0], [0, 2], [1, 1], [1, 0]])) == fleiss_kappa(np.array([[2, 0], [0, 2], [1, 1]]))
    assert fleiss_kappa(np.array([[1, 0], [0, 1]])) is None
    assert fleiss_kappa(np.array([[2, 0], [3, 0]])) is None  # one thing is said always: chance would do as well


def test_cohens_kappa_is_scikit_learns() -> None:
    draws = np.random.default_rng(0)
    first = draws.integers(0, 4, 60)
    second = np.where(draws.random(60) < 0.6, first, draws.integers(0, 4, 60))
    assert cohens_kappa(first, second, 4) == pytest.approx(cohen_kappa_score(first, second))
    assert cohens_kappa(first[:0], second[:0], 4) is None


def test_a_persons_last_word_counts_and_the_sources_labels_are_nobodys() -> None:
    said = [("a", "cat", "source"), ("a", "dog", "ann"), ("b", "cat", "ann"), ("b", "dog", "ann"), ("b", "dog", "bob")]
    found = agreement(events(*said))
    assert (found.images, found.several, found.disputed) == (2, 1, ())
    assert [(person.name, person.labels) for person in found.people] == [("ann", 2), ("bob", 1)]


def test_people_are_measured_against_what_most_say_and_of_a_tie_what_stands() -> None:
    found = agreement(
        events(
            *(("a", "cat", name) for name in ("ann", "bob")),
            ("a", "dog", "eve"),
            *[("b", "cat", "ann"), ("b", "dog", "bob")],  # the newer opinion stands
            *[("c", None, "ann"), ("c", None, "eve")],
            ("d", "cat", "eve"),
        )
    )
    assert {person.name: (person.shared, person.accuracy) for person in found.people} == {
        "ann": (3, pytest.approx(2 / 3)),
        "bob": (2, 1.0),
        "eve": (2, 0.5),
    }
    assert {person.name: (person.labels, person.rejections) for person in found.people}["eve"] == (2, 1)
    assert found.disputed == ("b", "a")  # the most divided first
    assert [(pair.first, pair.second, pair.images) for pair in found.pairs] == [
        *[("ann", "bob", 2), ("ann", "eve", 2), ("bob", "eve", 1)]
    ]
    assert dict(found.metrics())["labels/disputed"] == 2
    assert dict(found.metrics())["annotator_accuracy/bob"] == 1.0
    assert json.loads(json.dumps(found.to_json()))["several"] == 3
    assert "2 images are disputed: b, a" in found.lines()


def test_without_several_opinions_nothing_is_logged_and_without_people_that_is_said() -> None:
    assert list(agreement(events(("a", "cat", "ann"))).metrics()) == []
    assert agreement(events(("a", "cat", "source"))).lines() == [
        "nobody has labelled yet: labels of the source are nobody's opinion"
    ]
