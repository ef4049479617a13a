"""CROWDLAB, against the paper's formulas written out image by image, and as the rule of a night."""

from math import sqrt

import numpy as np
import pandas as pd
import pytest

from tests.support.small_pools import WHEN
from vabal import pools
from vabal.labels.consensus import CONSENSUS, Believed, settle
from vabal.labels.crowdlab import crowdlab
from vabal.pools import EVENTS


def literally(said: list[dict[int, int]], model: list[list[float]]) -> list[list[float]]:
    """Sections 3 and 4 of the paper: `said` has each image's opinions by person."""
    classes, images = range(len(model[0])), range(len(said))
    several = [i for i in images if len(said[i]) > 1]

    def votes(i: int, k: int) -> int:
        return sum(label == k for label in said[i].values())

    most = [max(classes, key=lambda k: (votes(i, k), model[i][k])) for i in images]
    usual = max(classes, key=lambda k: sum(most[i] == k for i in several))
    accuracy_usual = sum(most[i] == usual for i in several) / len(several)
    accuracy_model = sum(max(classes, key=lambda k: model[i][k]) == most[i] for i in several) / len(several)
    likely = sum(votes(i, most[i]) / len(said[i]) for i in several) / len(several)
    weight = {}
    for person in {name for opinions in said for name in opinions}:
        mine = [i for i in images if person in said[i]]
        same = sum(said[i][person] == said[i][other] for i in mine for other in said[i] if other != person)
        agreement = same / sum(len(said[i]) - 1 for i in mine)
        weight[person] = 1 - (1 - agreement) / (1 - accuracy_usual)
    weight_model = (1 - (1 - accuracy_model) / (1 - accuracy_usual)) * sqrt(sum(map(len, said)) / len(said))
    found = []
    for i in images:
        total = weight_model + sum(weight[person] for person in said[i])
        row = []
        for k in classes:
            people = sum(
                weight[person] * (likely if label == k else (1 - likely) / (len(classes) - 1))
                for person, label in said[i].items()
            )
            row.append((weight_model * model[i][k] + people) / total)
        found.append(row)
    return found


def test_it_is_what_the_paper_says() -> None:
    draws = np.random.default_rng(3)
    truth = draws.integers(0, 3, 60)
    said_N_A = np.where(draws.random((60, 4)) < 0.85, truth[:, None], draws.integers(0, 3, (60, 4)))
    said_N_A[draws.random((60, 4)) < 0.4] = -1
    said_N_A[(said_N_A < 0).all(axis=1), 0] = 0
    model_N_C = draws.dirichlet([1, 1, 1], 60) * 0.5 + 0.5 * np.eye(3)[truth]
    opinions = [{person: int(label) for person, label in enumerate(row) if label >= 0} for row in said_N_A]
    found = crowdlab(said_N_A, model_N_C)
    np.testing.assert_allclose(found.posterior_N_C, literally(opinions, model_N_C.tolist()), rtol=1e-12)
    np.testing.assert_allclose(found.posterior_N_C.sum(axis=1), 1)


def test_by_hand() -> None:
    # two agree on three images of two classes, and differ on the last, where the classifier, always right, says 1
    said_N_A = np.array([[0, 0], [1, 1], [0, 0], [0, 1]])
    model_N_C = np.array([[0.8, 0.2], [0.1, 0.9], [0.7, 0.3], [0.4, 0.6]])
    found = crowdlab(said_N_A, model_N_C)
    assert found.weight_A.tolist() == [0.5, 0.5]  # 1 - (1 - 3/4) / (1 - 2/4)
    assert found.weight_model == pytest.approx(sqrt(2))
    assert found.posterior_N_C[3, 1] == pytest.approx((sqrt(2) * 0.6 + 0.5 * 0.875 + 0.5 * 0.125) / (sqrt(2) + 1))


def test_who_shares_no_image_weighs_as_the_others_do() -> None:
    model_N_C = np.full((4, 2), 0.5)
    said_N_A = np.array([[0, 0, -1], [1, 1, -1], [0, 1, -1], [-1, -1, 1]])
    found = crowdlab(said_N_A, model_N_C)
    assert found.weight_A[2] == pytest.approx(found.weight_A[:2].mean())
    everybody_the_same = crowdlab(np.zeros((3, 2), dtype=np.int64), np.full((3, 2), 0.5))
    assert np.isfinite(everybody_the_same.posterior_N_C).all()
    with pytest.raises(ValueError, match="no image has several opinions"):
        crowdlab(said_N_A[3:], model_N_C[3:])


# -- as a night's rule ------------------------------------------------------------------------------------------------

CLASSES = ("cat", "dog")
Said = tuple[str, str | None, str]


def events(*said: Said, start: int = 0) -> pd.DataFrame:
    table = pd.DataFrame(list(said), columns=["sample_id", "label", "annotator"], dtype=object)
    when = pd.date_range(WHEN, periods=start + len(table), freq="min")[start:]
    return pools.typed(table.assign(labeled_at=when, source="x.csv"), EVENTS)


AGREED: list[Said] = [
    (name, label, who) for name, label in (("a", "cat"), ("b", "dog"), ("c", "cat")) for who in ("ann", "bob", "eve")
]
BELIEVED = Believed(list("abcde"), np.array([[0.9, 0.1], [0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]), CLASSES)


def settled(*said: Said, believed: Believed | None = BELIEVED) -> dict[str, str | None]:
    found = settle(events(*AGREED), events(*said, start=len(AGREED)), "crowdlab", believed)
    assert set(found["annotator"]) <= {CONSENSUS}
    labels = found["label"].astype(object)
    return dict(zip(found["sample_id"], labels.where(labels.notna(), None), strict=True))


def test_a_classifier_that_does_well_decides_between_two_people() -> None:
    tie: tuple[Said, ...] = (("d", "dog", "ann"), ("d", "cat", "bob"))
    assert settled(*tie) == {"d": "dog"}
    assert settled(*tie, believed=None) == {}  # as by majority: of a tie the newest stands
    assert settled(("d", "cat", "bob"), ("d", "dog", "ann")) == {}  # it stands


def test_one_opinion_and_images_nobody_spoke_of_are_left_as_they_are() -> None:
    assert settled(("d", "cat", "ann")) == {}
    assert settled(("d", "dog", "ann"), ("d", "cat", "ann")) == {}


def test_rejections_and_images_without_a_posterior_are_settled_by_majority() -> None:
    assert settled(("d", None, "ann"), ("d", None, "bob"), ("d", "cat", "eve")) == {"d": None}
    assert settled(("z", "cat", "ann"), ("z", "cat", "bob"), ("z", "dog", "eve")) == {"z": "cat"}
