"""What the estimates refuse, by which names; how their work is divided; moments worked out by hand."""

import math
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vabal.errors import UserError
from vabal.probabilities import (
    ClassTerms,
    blocks,
    estimate_class_terms,
    estimate_likelihood,
    mistake_score,
    pool_moments,
)
from vabal.settings.models import ProbabilitySettings
from vabal.vae import FeatureVAE, build

SUM: dict[str, Any] = {"likelihood_reduction": "sum", "sampling": "independent"}
LOGS = np.log([[0.2, 0.5]])
TERMS = ClassTerms(torch.tensor([0.75, 0.25]).double().log(), torch.tensor([0.8, 0.4]).double().log())


def network() -> FeatureVAE:
    small = {"head_width": 2, "hidden_width": 2, "latent_per_class": 1, "hidden_layers": 1}
    return build((2,), 2, small, seed=0).double().eval()


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "told"), [(5, "s4:"), (6, "s4 and 1 more:"), (8, "s4 and 3 more:")])
def test_of_many_samples_that_are_wrong_five_are_named_and_the_others_counted(wrong: int, told: str) -> None:
    log_likelihood_N_C = np.zeros((9, 2))
    log_likelihood_N_C[:wrong] = np.nan
    with pytest.raises(UserError, match=f"^the log likelihood is not finite for s0, s1, s2, s3, {told}"):
        mistake_score(log_likelihood_N_C, TERMS, SUM, sample_ids=[f"s{row}" for row in range(9)])


def test_a_margin_or_a_score_that_is_not_finite_is_refused_by_what_it_is_and_the_sample_s_name() -> None:
    logs_N_C, names = np.repeat(LOGS, 2, axis=0), ["a", "b"]
    margin_N = np.array([0.5, np.nan])
    with pytest.raises(UserError, match=r"^the classifier's margin is not finite for b:"):
        mistake_score(logs_N_C, TERMS, {**SUM, "margin_weight": 1.0}, margin_N=margin_N, sample_ids=names)
    endless = ClassTerms(torch.tensor([-math.inf, -math.inf]).double(), TERMS.log_precision_C)
    with pytest.raises(UserError, match=r"^the score is not finite for a, b:"), np.errstate(all="ignore"):
        mistake_score(logs_N_C, endless, SUM, sample_ids=names)


def test_a_likelihood_that_overflows_is_refused_by_its_shard() -> None:
    vae = network()
    with torch.no_grad():
        vae.log_var.bias.fill_(2000)
    with pytest.raises(UserError, match=r"^the log likelihood of shard 1 is not finite for row 0"):
        list(estimate_likelihood(vae, [np.zeros((0, 2)), np.ones((1, 2))], generator=0, settings=SUM))


def test_features_that_are_not_finite_are_told_by_their_pool_and_shard() -> None:
    fine, wrong = np.zeros((2, 2)), np.array([[0.0, 0.0], [0.0, np.nan]])
    with pytest.raises(UserError, match=r"^the labelled pool, shard 0: the features of rows 1 "):
        estimate_class_terms(network(), wrong, [0, 1], generator=0)
    with pytest.raises(UserError, match=r"^the unlabelled pool, shard 1: the features of rows 1 "):
        estimate_class_terms(
            network(),
            fine,
            [0, 1],
            generator=0,
            settings={"prior_pool": "unlabeled"},
            unlabeled_features=[fine, wrong],
        )


@pytest.mark.parametrize(
    ("labels", "cross_fitted", "told"),
    [
        ([0, 2], ([0], [0]), "^labels: expected 0 to 1, found 0 to 2"),
        ([0, 1], ([0, 3], [0, 1]), "^cross-fitted labels: expected 0 to 1, found 0 to 3"),
        ([0, 1], ([0, 1], [-1, 1]), "^cross-fitted predictions: expected 0 to 1, found -1 to 1"),
        ([0, 1], ([0, 1], [0]), "^cross-fitted: 2 labels, 1 predictions"),
    ],
)
def test_classes_that_do_not_fit_are_told_by_where_they_come_from(labels: Any, cross_fitted: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        estimate_class_terms(
            network(),
            np.zeros((2, 2)),
            labels,
            generator=0,
            settings={"precision_from": "cross_fitted"},
            cross_fitted=cross_fitted,
        )


def test_a_list_in_the_place_of_an_array_is_refused() -> None:
    with pytest.raises(ValueError, match="shard 0: expected features N x D, found shape none"):
        list(estimate_likelihood(network(), [[[0.0, 0.0]]], generator=0, settings=SUM))


@pytest.mark.parametrize("posterior_N_C", [np.full((1, 3), 1 / 3), np.full((2, 2), 0.5)])
def test_a_posterior_of_other_samples_or_classes_is_refused(posterior_N_C: np.ndarray) -> None:
    with pytest.raises(ValueError, match="posterior_N_C"):
        mistake_score(LOGS, TERMS, {**SUM, "classes": "posterior"}, posterior_N_C=posterior_N_C)


# -- counts, moments and scores -----------------------------------------------------------------------------------


def test_a_class_that_no_cross_fitted_prediction_names_has_the_precision_of_one_over_the_classes() -> None:
    found = estimate_class_terms(
        network(),
        np.zeros((1, 2)),
        [0],
        generator=0,
        settings={"precision_from": "cross_fitted", "smoothing": 1.0},
        cross_fitted=([0, 0, 0], [0, 0, 0]),
    )
    assert found.precision_C.tolist() == pytest.approx([(3 + 1) / (3 + 2), 1 / 2])


def test_moments_by_hand() -> None:
    moments = pool_moments([np.array([[0.0, 4.0]]), np.array([[10.0, 2.0]])])  # levels 2, 6; contrasts 2, 4
    assert (moments.mean, moments.deviation) == ((5, 3), (5, 1))
    assert (moments.level_mean, moments.level_deviation) == (4, 2)
    assert moments.contrast_deviation == pytest.approx(((4 + 16) / 2) ** 0.5)


def test_moments_of_candidates_that_are_all_alike_scale_nothing() -> None:
    moments = pool_moments([np.full((3, 2), -7.0)])
    assert (moments.deviation, moments.level_deviation, moments.contrast_deviation) == ((1, 1), 1, 1)


def test_contrasts_are_divided_by_their_deviation_and_levels_by_theirs() -> None:
    log_likelihood_N_C = np.array([[0.0, 4.0], [10.0, 2.0]])
    known = TERMS.with_moments(pool_moments([log_likelihood_N_C]))
    settings = {"likelihood_reduction": "contrast", "classes": "predicted"}
    score_N = mistake_score(log_likelihood_N_C, known, settings, vae_class_N=[0, 1])
    expected = [-(-2 / 10**0.5 - 1 + math.log(0.6)), -(-4 / 10**0.5 + 1 + math.log(0.1))]
    assert score_N.tolist() == pytest.approx(expected)


def test_likelihoods_that_are_means_already_are_scored_as_they_are_without_moments() -> None:
    mean = mistake_score(LOGS, TERMS, {**SUM, "likelihood_reduction": "mean"})
    assert mean.tolist() == mistake_score(LOGS, TERMS, SUM).tolist()


def test_a_section_of_the_settings_and_its_keys_say_the_same() -> None:
    section = ProbabilitySettings(**SUM, exponent=0.5)
    assert mistake_score(LOGS, TERMS, section).tolist() == mistake_score(LOGS, TERMS, section.model_dump()).tolist()


def test_log_likelihoods_that_carry_a_gradient_are_scored() -> None:
    scored = mistake_score(torch.tensor(LOGS, requires_grad=True), TERMS, SUM)
    assert scored.tolist() == mistake_score(LOGS, TERMS, SUM).tolist()


def test_class_terms_without_moments_survive_json() -> None:
    back = ClassTerms.from_json(TERMS.to_json())
    assert back.moments is None
    assert torch.equal(back.log_prior_C, TERMS.log_prior_C)


# -- blocks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_items_are_worked_on_by_as_many_threads_as_torch_has_each_with_one_of_its_own() -> None:
    here, most = 0, 0
    lock = threading.Lock()

    def work(item: int) -> tuple[int, int, int]:
        nonlocal here, most
        with lock:
            here += 1
            most = max(most, here)
        time.sleep(0.01)
        with lock:
            here -= 1
        return item, torch.get_num_threads(), threading.get_ident()

    done = list(blocks.side_by_side(work, range(12), torch.device("cpu")))
    assert [(item, threads) for item, threads, _ in done] == [(item, 1) for item in range(12)]
    assert most <= 2
    assert threading.get_ident() not in {thread for *_, thread in done}


def test_with_one_thread_the_work_is_done_in_the_caller_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    told = blocks.side_by_side(lambda _: threading.get_ident(), range(3), torch.device("cpu"))
    assert list(told) == [threading.get_ident()] * 3


def test_on_a_gpu_too_for_blocks_side_by_side_would_want_its_memory_side_by_side() -> None:
    told = blocks.side_by_side(lambda _: threading.get_ident(), range(3), torch.device("cuda"))
    assert list(told) == [threading.get_ident()] * 3


@pytest.mark.parametrize(
    ("elements", "rows", "expected"), [(2**22, 3, [3, 3, 1]), (20, 1024, [2, 2, 2, 1]), (1, 9, [1] * 7)]
)
def test_blocks_are_as_long_as_rows_and_latents_allow_but_never_empty(
    elements: int, rows: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_LATENT_ELEMENTS", elements)
    monkeypatch.setattr(blocks, "_BLOCK_ROWS", rows)
    features_N_D = np.arange(14.0).reshape(7, 2)
    found = list(blocks.blocks_of(features_N_D, network(), 5, "here"))  # 5 draws of 2 latents
    assert [len(block_N_D) for _, block_N_D in found] == expected
    assert np.concatenate([features_N_D[rows] for rows, _ in found]).tolist() == features_N_D.tolist()
    assert torch.cat([block_N_D for _, block_N_D in found]).tolist() == features_N_D.tolist()
