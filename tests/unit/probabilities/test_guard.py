"""The likelihood as a guard against junk, and a prior of the labels themselves."""

import json
from typing import Any

import numpy as np
import pytest

from tests.support import small_shards
from vabal import strategies
from vabal.probabilities import (
    ClassTerms,
    count_class_terms,
    estimate_class_terms,
    labeled_floor,
    mistake_score,
    pool_moments,
)
from vabal.probabilities.score import GUARDED
from vabal.rounds.learner import Learner
from vabal.settings.params import parse
from vabal.strategies import Candidates
from vabal.vae import build

LIKELIHOODS = np.array([[-1.0, -3.0], [-9.0, -1.0], [-3.0, -3.0], [-4.0, -2.0]])  # levels -2, -5, -3, -3


@pytest.mark.parametrize(("guard", "last"), [(0.0, []), (0.2, []), (0.25, [1]), (0.75, [1, 2, 3]), (1.0, [1, 2, 3])])
def test_the_share_of_the_least_level_comes_last_and_keeps_its_order(guard: float, last: list[int]) -> None:
    moments = pool_moments([LIKELIHOODS[:1], LIKELIHOODS[1:]], guard)
    assert moments.floor == {0.0: None, 0.2: -5.0, 0.25: -3.0, 0.75: -2.0, 1.0: -2.0}[guard]
    terms = small_shards.TERMS
    terms = ClassTerms(terms.log_prior_C[:2], terms.log_precision_C[:2], moments)
    settings = {"likelihood_reduction": "sum", "guard": guard}
    plain_N = mistake_score(LIKELIHOODS, terms, {"likelihood_reduction": "sum"})
    taken_N = plain_N - mistake_score(LIKELIHOODS, terms, settings)
    assert taken_N.tolist() == pytest.approx([GUARDED * (row in last) for row in range(4)])


@pytest.mark.parametrize(
    ("labeled", "floor", "last"),
    [
        ([-4.0] * 10, -4.0, [1]),  # what is as likely as the labelled samples are is asked about ...
        ([-6.0] + [-2.5] * 60, -2.5, [1, 2, 3]),  # ... one of them in fifty may be odd ...
        ([-6.0] + [-2.5] * 48, -6.0, []),
        ([10.0] * 3, -2.0, [1, 2, 3]),  # ... and it is never more than the guard's share
        ([], -2.0, [1, 2, 3]),
    ],
)
def test_what_is_as_likely_as_labelled_samples_is_no_junk(labeled: list[float], floor: float, last: list[int]) -> None:
    level = labeled_floor(np.column_stack([np.array(labeled) - 1, np.array(labeled) + 1]))
    moments = pool_moments([LIKELIHOODS], 0.75, level)
    assert moments.floor == floor
    assert [row for row in range(4) if LIKELIHOODS[row].mean() < floor] == last


def test_a_guard_without_the_pool_s_floor_is_refused() -> None:
    terms = small_shards.TERMS
    terms = ClassTerms(terms.log_prior_C[:2], terms.log_precision_C[:2], pool_moments([LIKELIHOODS]))
    with pytest.raises(ValueError, match="guard"):
        mistake_score(LIKELIHOODS, terms, {"likelihood_reduction": "sum", "guard": 0.1})


@pytest.mark.parametrize("guard", [0.0, 0.1])
def test_class_terms_tell_how_likely_labelled_samples_are_where_the_guard_asks(guard: float) -> None:
    learner = Learner(parse({"probabilities": {"guard": guard}}), 1, strategies.get("vabal"))
    vae = build((3, 4), 3, {"head_width": 5, "hidden_width": 6, "latent_per_class": 2, "hidden_layers": 2}, seed=1)
    features_L_D = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    terms = learner.class_terms(vae, (features_L_D, np.array([0, 0, 1, 1, 2, 2])), [features_L_D], None)
    [(log_likelihood_L_C, _)] = learner.likelihood(vae, [features_L_D])
    assert terms.labeled_floor == (float(log_likelihood_L_C.astype(float).mean(axis=1).min()) if guard else None)
    assert ClassTerms.from_json(json.loads(json.dumps(terms.to_json()))).labeled_floor == terms.labeled_floor


@pytest.mark.parametrize("batch", ["topk", "gumbel", "spread"])
def test_junk_is_picked_when_nothing_else_is_left_and_its_scores_follow_from_the_record(batch: str) -> None:
    shard = small_shards.shard(40)
    assert shard.log_likelihood_N_C is not None
    junk = set(shard.sample_ids[np.argsort(shard.log_likelihood_N_C.astype(np.float64).mean(axis=1))[:10]].tolist())
    written: list[Candidates] = []
    asked: dict[str, Any] = {"probabilities": {"guard": 0.25}, "selection": {"batch": batch}}
    found = small_shards.context(*small_shards.in_parts(shard, 3), write=written.append, **asked)
    selection = strategies.get("vabal").select(found, 32)
    assert not junk & set(selection.sample_ids[:30])
    assert set(selection.sample_ids[30:]) <= junk
    assert selection.class_terms is not None
    terms = ClassTerms.from_json(selection.class_terms.to_json())
    for part in written:
        again = strategies.get("vabal").rescore(part, class_terms=terms, settings=found.settings, seed=3)
        assert again is not None
        assert again.tolist() == part.score_N.tolist()


def test_the_prior_of_the_labels_is_their_smoothed_share() -> None:
    vae = build((3, 4), 3, {"head_width": 5, "hidden_width": 6, "latent_per_class": 2, "hidden_layers": 2}, seed=1)
    features_N_D = np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32)
    labels_N = np.array([0, 0, 0, 1, 1, 0])
    by_labels, by_vae = (
        estimate_class_terms(vae, features_N_D, labels_N, generator=0, settings={"prior_pool": pool})
        for pool in ("labels", "labeled")
    )
    assert by_labels.prior_C.tolist() == pytest.approx([5 / 9, 3 / 9, 1 / 9])
    assert by_labels.precision_C.tolist() == by_vae.precision_C.tolist()
    alone = {"prior_pool": "labels", "use_precision": False}
    counted = count_class_terms(labels_N, 3, settings=alone)
    assert counted.log_prior_C.tolist() == by_labels.log_prior_C.tolist()
    assert counted.precision_C.tolist() == [1.0] * 3  # off


def test_precision_alone_is_counted_of_out_of_fold_predictions_and_takes_no_vae() -> None:
    labels_N, predicted_N = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    chosen = {"use_prior": False, "precision_from": "cross_fitted"}
    counted = count_class_terms(labels_N, 3, settings=chosen, cross_fitted=(labels_N, predicted_N))
    assert counted.prior_C.tolist() == [1.0] * 3
    assert counted.precision_C.tolist() == pytest.approx([2 / 4, 3 / 6, 1 / 3])


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"use_precision": False}, "prior_pool is labeled: it takes a VAE"),
        ({"prior_pool": "labels"}, "without a VAE it takes precision_from: cross_fitted"),
        ({"prior_pool": "labels", "precision_from": "cross_fitted"}, "and cross_fitted"),
    ],
)
def test_terms_that_take_a_vae_are_not_counted_without_one(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        count_class_terms([0, 1], 2, settings=settings)


def test_with_all_terms_off_the_score_is_the_margin_s_doubt() -> None:
    chosen = {"use_prior": False, "use_precision": False, "likelihood_weight": 0.0, "margin_weight": 1.0}
    margins_N = np.array([0.25, 0.5])
    settings = {**chosen, "classes": "classifier", "likelihood_reduction": "standardised"}
    score_N = mistake_score(np.zeros((2, 3)), None, settings, margin_N=margins_N, predicted_class_N=[0, 1])
    assert np.asarray(score_N).tolist() == pytest.approx(np.log(1 - margins_N).tolist())
    with pytest.raises(ValueError, match="pass class_terms"):
        mistake_score(np.zeros((2, 3)), None, {**settings, "use_prior": True}, margin_N=margins_N)
