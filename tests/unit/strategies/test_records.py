"""What strategies say of their record, and what a selection without candidates or with given features holds."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.support.small_shards import Settings, context, in_parts, labeled, rows_of, shard
from vabal import strategies
from vabal.settings.models import SelectionSettings
from vabal.strategies import BaseStrategy, Candidates, Needs, badge, no_picks, record_of
from vabal.strategies.base import Listed

SPREAD = {"batch": "spread"}


def a_plug_in(**attributes: Any) -> Any:
    """A strategy of somebody else's, that is no BaseStrategy."""
    return SimpleNamespace(name="theirs", needs=Needs(), select=None, rescore=None, **attributes)


# -- the record ---------------------------------------------------------------------------------------------------


def test_a_strategy_of_ours_is_its_own_record() -> None:
    own: Any = strategies.get("entropy")
    assert record_of(own) is own


def test_a_plug_in_that_says_nothing_of_its_record_has_one_from_which_nothing_follows() -> None:
    record = record_of(a_plug_in())
    assert isinstance(record, BaseStrategy)
    assert (record.inputs, record.labeled_inputs, record.derivable) == ((), False, False)
    assert record.batch(Settings()) is None
    assert record.scores_are(5, 3) is None
    assert record.scores_follow([], Settings()) is True


def test_what_a_plug_in_says_of_its_record_is_taken_over() -> None:
    scores_N = np.array([2.0, 1.0])
    record = record_of(
        a_plug_in(inputs=("logits_N_C",), labeled_inputs=True, derivable=True, scores_are=lambda *_: scores_N)
    )
    assert (record.inputs, record.labeled_inputs, record.derivable) == (("logits_N_C",), True, True)
    assert record.scores_are(2, 2) is scores_N
    assert record.batch(Settings()) == ("topk", 1.0)


def test_a_plug_in_is_asked_whether_its_scores_follow() -> None:
    record = record_of(a_plug_in(scores_follow=lambda columns, _: "theirs" in columns))
    assert record.scores_follow(["theirs"], Settings()) is True
    assert record.scores_follow(["score"], Settings()) is False


def test_a_plug_in_is_asked_for_its_scores() -> None:
    plug_in, scores_N = a_plug_in(), np.array([2.0])
    plug_in.rescore = lambda *_, **__: scores_N
    nothing = Candidates(np.array(["a"]), scores_N)
    assert record_of(plug_in).rescore(nothing, class_terms=None, settings=None, seed=0) is scores_N


def test_a_plug_in_s_rule_and_beta_follow_the_settings() -> None:
    record = record_of(a_plug_in(rule=lambda of: of.selection.batch, beta=lambda of: of.selection.beta))
    assert record.batch(Settings(selection=SelectionSettings(batch="gumbel", beta=2.5))) == ("gumbel", 2.5)
    assert record_of(a_plug_in(rule="gumbel", beta=lambda _: 2.0)).batch(Settings()) is None
    assert record_of(a_plug_in(rule=lambda _: "gumbel")).batch(Settings()) is None


@pytest.mark.parametrize("budget", [1, 7, 30])
@pytest.mark.parametrize(
    "name", ["badge", "coreset", "typiclust", "galaxy", "direct", "balanced:entropy", "stochastic:entropy", "entropy"]
)
def test_a_strategy_whose_scores_are_places_tells_them_beforehand(name: str, budget: int) -> None:
    whole = shard(20)
    known = replace(
        labeled([0, 1, 2, 2], logits_N_C=np.eye(4, 3)), features_N_D=np.random.default_rng(1).normal(size=(4, 4))
    )
    written: list[Candidates] = []
    strategy = strategies.get(name)
    strategy.select(context(*in_parts(whole, 3), labeled=known, write=written.append), budget)
    told = record_of(strategy).scores_are(20, budget)
    if name == "entropy":
        assert told is None
        return
    if told is None:
        pytest.skip(f"{name} says nothing")
    assert np.sort(np.concatenate([part.score_N for part in written]))[::-1].tolist() == told.tolist()


# -- selections ---------------------------------------------------------------------------------------------------


def test_a_selection_of_no_candidates_holds_what_was_asked() -> None:
    found = no_picks("entropy", 4, 9)
    assert (found.strategy, found.budget, found.rule, found.beta, found.seed) == ("entropy", 4, "topk", 1.0, 9)
    assert (found.candidates, found.sample_ids) == (0, [])
    assert found.picks.score_N.shape == (0,)
    assert found.picks.sample_ids.dtype == object


@pytest.mark.parametrize("chosen", [{}, SPREAD])
def test_a_round_without_candidates_says_by_whom_and_for_how_many(chosen: dict[str, Any]) -> None:
    found = strategies.get("vabal").select(context(rows_of(shard(), []), selection=chosen, seed=9), 4)
    assert (found.strategy, found.budget, found.seed, len(found.picks)) == ("vabal", 4, 9, 0)


def test_a_spread_batch_takes_the_features_of_its_shortlist_from_who_has_them() -> None:
    whole, seen = shard(), []

    def listed(sample_ids: Any) -> Listed:
        seen.append([str(sample_id) for sample_id in sample_ids])
        assert whole.features_N_D is not None
        return Listed(whole.features_N_D[[list(whole.sample_ids).index(sample_id) for sample_id in sample_ids]])

    gathered = strategies.get("vabal").select(context(whole, selection=SPREAD), 5)
    given = strategies.get("vabal").select(
        context(replace(whole, features_N_D=None), selection=SPREAD, listed=listed), 5
    )
    assert given.sample_ids == gathered.sample_ids
    assert given.shortlist is not None
    assert gathered.shortlist is not None
    assert seen == [[str(sample_id) for sample_id in gathered.shortlist.sample_ids]]
    assert np.array_equal(given.shortlist.features_N_D, gathered.shortlist.features_N_D)
    assert given.shortlist.per_pick == gathered.shortlist.per_pick == 50


def test_a_shortlist_s_features_are_its_own_in_its_order_from_whatever_shards() -> None:
    whole = shard(200)
    selection = strategies.get("vabal").select(context(*in_parts(whole, 4), selection=SPREAD), 2)
    assert selection.shortlist is not None
    assert whole.features_N_D is not None
    rows = [list(whole.sample_ids).index(sample_id) for sample_id in selection.shortlist.sample_ids]
    assert len(rows) == 100  # of 200: shards hold candidates that are not on it
    assert selection.shortlist.features_N_D.dtype == np.float32
    assert np.array_equal(selection.shortlist.features_N_D, whole.features_N_D[rows])


def test_the_last_stage_s_features_stand_at_the_end() -> None:
    features_N_D = np.arange(12.0).reshape(2, 6)
    assert context(feature_dims=(1, 2, 3)).deep(features_N_D).tolist() == [[3, 4, 5], [9, 10, 11]]
    assert context().deep(features_N_D) is features_N_D


# -- BADGE --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("uniform", "row"), [(0.0, 1), (0.33, 1), (1 / 3, 3), (0.99, 3), (1.0, 3)])
def test_a_draw_is_the_row_whose_share_holds_the_number_and_never_one_without_mass(uniform: float, row: int) -> None:
    mass_N = np.cumsum([0.0, 1.0, 0.0, 2.0, 0.0])
    assert badge._draw(mass_N, uniform) == row


def test_residuals_are_posteriors_less_the_predicted_class_in_whatever_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shard(8)
    assert whole.logits_N_C is not None
    exponents_N_C = np.exp(whole.logits_N_C.astype(np.float64))
    expected_N_C = exponents_N_C / exponents_N_C.sum(axis=1, keepdims=True)
    expected_N_C -= np.eye(3)[whole.logits_N_C.argmax(axis=1)]
    for rows in (3, 4, 100):
        monkeypatch.setattr(badge, "_BLOCK_ROWS", rows)
        found_N_C = badge._residuals(whole, np.dtype(np.float32))
        assert found_N_C.dtype == np.float32
        assert found_N_C == pytest.approx(expected_N_C, abs=1e-6)
