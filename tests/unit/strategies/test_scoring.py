"""What the strategies' bases promise: posteriors, margins, selections, searches, and what goes around a strategy."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.small_shards import Settings, context, in_parts, labeled, names, shard
from vabal import strategies
from vabal.errors import UserError
from vabal.settings.models import ProbabilitySettings, SelectionSettings
from vabal.strategies import (
    Candidates,
    Context,
    Labeled,
    Needs,
    Rule,
    ScoringStrategy,
    Selection,
    SequentialStrategy,
    Shard,
)
from vabal.strategies.balanced import Balanced
from vabal.strategies.base import recording, shortfall
from vabal.strategies.noise import hash_ids
from vabal.strategies.sequential import gather, places
from vabal.strategies.wrapped import Ranked, Wrapper


class ByNumber(ScoringStrategy):
    """The score is the number in the id."""

    name: ClassVar[str] = "by-number"
    needs: ClassVar[Needs] = Needs(features=True)
    inputs: tuple[str, ...] = ("logits_N_C",)

    def score(self, shard: Shard, context: Context) -> Candidates:
        return Candidates(shard.sample_ids, np.array([float(name[1:]) for name in shard.sample_ids]))


def numbered(rows: int, classes: int = 3) -> Shard:
    numbers = np.random.default_rng(rows)
    return Shard(
        names("s", rows),
        logits_N_C=numbers.normal(size=(rows, classes)).astype(np.float32),
        features_N_D=numbers.normal(size=(rows, 2)).astype(np.float32),
    )


def scores_of(parts: list[Candidates]) -> list[float]:
    return [float(score) for part in parts for score in part.score_N]


# -- numbers of a shard -------------------------------------------------------------------------------------------


def test_posteriors_are_in_float64_and_there_for_an_empty_shard() -> None:
    found = strategies.posteriors(Shard(names("s", 2), logits_N_C=np.array([[0, 1], [2, 2]], dtype=np.float32)))
    assert found.dtype == np.float64
    assert found[0].tolist() == pytest.approx([1 / (1 + np.e), np.e / (1 + np.e)], abs=1e-15)
    assert found[1].tolist() == [0.5, 0.5]
    empty = strategies.posteriors(Shard(names("s", 0), logits_N_C=np.zeros((0, 3), dtype=np.float32)))
    assert empty.shape == (0, 3)
    assert empty.dtype == np.float64


def test_margins_are_those_of_the_two_best_and_1_where_there_is_one_class() -> None:
    assert strategies.margin(np.array([[0.9, 0.1], [0.4, 0.6]])).tolist() == pytest.approx([0.8, 0.2])
    assert strategies.margin(np.array([[0.1, 0.3, 0.05, 0.55]])).tolist() == pytest.approx([0.25])
    assert strategies.margin(np.ones((2, 1))).tolist() == [1, 1]
    assert strategies.margin(np.zeros((0, 3))).shape == (0,)


def test_candidates_with_their_prediction_hold_class_and_margin() -> None:
    given = Shard(names("s", 2), logits_N_C=np.log([[0.2, 0.7, 0.1], [0.6, 0.3, 0.1]]))
    found = strategies.with_prediction(given, np.array([5.0, 6.0]))
    assert found.score_N.tolist() == [5, 6]
    assert found.predicted_class_N is not None
    assert found.predicted_class_N.tolist() == [1, 0]
    assert found.predicted_class_N.dtype == np.int32
    assert found.margin_N is not None
    assert found.margin_N.tolist() == pytest.approx([0.5, 0.3])
    empty = strategies.with_prediction(Shard(names("s", 0), logits_N_C=np.zeros((0, 3))), np.zeros(0))
    assert empty.predicted_class_N is not None
    assert len(empty) == 0
    assert empty.predicted_class_N.dtype == np.int32


def test_what_the_shard_carries_is_recorded_beside_the_score() -> None:
    given = numbered(2)
    found = recording(Candidates(given.sample_ids, np.zeros(2)), given, ("logits_N_C", "votes_N_C"))
    assert found.logits_N_C is given.logits_N_C
    assert found.votes_N_C is None
    assert found.predictive_N_C is None


@pytest.mark.parametrize(("left", "notes"), [(3, 0), (4, 0), (2, 1)])
def test_a_note_is_made_only_where_less_is_left_than_was_asked(left: int, notes: int) -> None:
    assert len(shortfall(3, left)) == notes


# -- selections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["topk", "gumbel"])
def test_a_selection_says_all_that_its_picks_follow_from(rule: Rule) -> None:
    class Chosen(ByNumber):
        def rule(self, settings: Any) -> Rule:
            return rule

    written: list[Candidates] = []
    found = context(*in_parts(numbered(9), 2), seed=8, selection={"beta": 0.25}, write=written.append)
    selection = Chosen().select(found, 4)
    assert (selection.strategy, selection.budget, selection.rule) == ("by-number", 4, rule)
    assert (selection.beta, selection.seed, selection.candidates, selection.notes) == (0.25, 8, 9, ())
    assert selection.class_terms is found.class_terms
    assert selection.shortlist is None
    assert selection.sample_ids == list(strategies.pick(written, 4, rule, 0.25, 8).sample_ids)
    logits_N_C: Any = numbered(9).logits_N_C
    assert np.array_equal(np.concatenate([part.logits_N_C for part in written]), logits_N_C)


def test_a_strategy_that_defines_nothing_is_refused_by_its_name() -> None:
    class Unfinished(ScoringStrategy):
        name: ClassVar[str] = "unfinished"

    class Orderless(SequentialStrategy):
        name: ClassVar[str] = "orderless"

    class Around(Wrapper):
        kind: ClassVar[str] = "around"

    for strategy, told in ((Unfinished(), "Unfinished"), (Orderless(), "Orderless"), (Around(ByNumber()), "Around")):
        with pytest.raises(NotImplementedError, match=f"^{told} does not define"):
            strategy.select(context(numbered(3)), 1)


def test_a_search_without_features_and_one_with_features_that_are_none_are_refused() -> None:
    chosen: dict[str, Any] = {"selection": {"batch": "spread"}}
    with pytest.raises(ValueError, match="without features"):
        strategies.get("vabal").select(context(replace(shard(9), features_N_D=None), **chosen), 2)
    broken = shard(9)
    assert broken.features_N_D is not None
    broken.features_N_D[4, 1] = np.inf
    with pytest.raises(UserError, match="features_N_D is not finite for s0-4"):
        strategies.get("vabal").select(context(broken, **chosen), 2)


def test_a_shortlist_holds_the_last_stage_s_features_alone() -> None:
    whole = shard(30)
    assert whole.features_N_D is not None
    selection = strategies.get("vabal").select(context(whole, selection={"batch": "spread"}, feature_dims=(3, 1)), 2)
    assert selection.shortlist is not None
    rows = [list(whole.sample_ids).index(sample_id) for sample_id in selection.shortlist.sample_ids]
    assert np.array_equal(selection.shortlist.features_N_D, whole.features_N_D[rows, 3:])


# -- the paper's strategy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "posterior", "logits"),
    [({}, False, True), ({"classes": "posterior"}, True, True), ({"members": 2}, True, False)],
)
def test_either_logits_or_posteriors_are_recorded(changed: dict[str, Any], posterior: bool, logits: bool) -> None:
    given = shard(6)
    mean_N_C = np.random.default_rng(1).dirichlet(np.ones(3), 6)
    written: list[Candidates] = []
    found = context(replace(given, predictive_N_C=mean_N_C), probabilities=changed, write=written.append)
    strategies.get("vabal").select(found, 2)
    [part] = written
    expected = mean_N_C if "members" in changed else strategies.posteriors(given)
    assert (part.posterior_N_C is not None, part.logits_N_C is not None) == (posterior, logits)
    if part.posterior_N_C is not None:
        assert part.posterior_N_C.dtype == np.float32
        assert np.array_equal(part.posterior_N_C, expected.astype(np.float32))
    if part.logits_N_C is not None:
        assert np.array_equal(part.logits_N_C, given.logits_N_C)  # type: ignore[arg-type]
    for column, kind in (("vae_class_N", np.int32), ("predicted_class_N", np.int32), ("own_class_N", np.int32)):
        assert getattr(part, column).dtype == kind
    assert part.log_likelihood_N_C is not None
    assert part.log_likelihood_N_C.dtype == np.float32


@pytest.mark.parametrize("classes", ["predicted", "classifier", "posterior", "all"])
def test_prior_and_precision_are_those_of_the_class_that_the_setting_chooses(classes: str) -> None:
    written: list[Candidates] = []
    found = context(shard(12), probabilities={"classes": classes}, write=written.append)
    strategies.get("vabal").select(found, 2)
    [part] = written
    own_N = part.predicted_class_N if classes in ("classifier", "posterior") else part.vae_class_N
    assert own_N is not None
    assert part.own_class_N is not None
    assert part.own_class_N.tolist() == own_N.tolist()
    assert part.prior_N == pytest.approx(np.array([0.7, 0.2, 0.1])[own_N])
    assert part.precision_N == pytest.approx(np.array([0.9, 0.5, 0.4])[own_N])


@pytest.mark.parametrize(
    ("batch", "classes", "follows"),
    [("topk", "predicted", True), ("spread", "predicted", False), ("topk", "posterior", False)],
)
def test_tables_without_posteriors_are_followed_only_where_none_were_needed(
    batch: Any, classes: Any, follows: bool
) -> None:
    settings = Settings(ProbabilitySettings(classes=classes), SelectionSettings(batch=batch))
    record = strategies.record_of(strategies.get("vabal"))
    assert record.scores_follow(["score"], settings) is follows
    assert record.scores_follow(["score", "posteriors"], settings) is True


def test_no_candidates_are_scored_again_to_no_scores() -> None:
    empty = Candidates(names("s", 0), np.zeros(0))
    found = strategies.get("vabal").rescore(empty, class_terms=None, settings=Settings(), seed=0)
    assert found is not None
    assert found.shape == (0,)


# -- all candidates at once ---------------------------------------------------------------------------------------


def test_gathered_candidates_stand_by_their_hashes_and_know_where_they_came_from() -> None:
    whole = numbered(11)
    found = gather(context(*in_parts(whole, 3), seed=6, feature_dims=(1, 1)), "features_N_D", "logits_N_C")
    hash_N = hash_ids(whole.sample_ids, 6).tolist()
    order = sorted(range(11), key=lambda row: hash_N[row])
    assert list(found.pool.sample_ids) == [f"s{row}" for row in order]
    assert [order[place] for place in found.place_N] == list(range(11))
    assert found.lengths == (4, 4, 3)
    assert whole.features_N_D is not None
    assert whole.logits_N_C is not None
    assert found.pool.features_N_D is not None
    assert found.pool.features_N_D.dtype == np.float32
    assert np.array_equal(found.pool.features_N_D, whole.features_N_D[order, 1:])
    assert np.array_equal(found.pool.logits_N_C, whole.logits_N_C[order])  # type: ignore[arg-type]
    assert found.pool.images_N_H_W_K is None


def test_what_cannot_be_gathered_is_refused() -> None:
    one = numbered(2)
    with pytest.raises(ValueError, match="a sample came more than once"):
        gather(context(one, one))
    with pytest.raises(ValueError, match="without votes_N_C"):
        gather(context(one), "votes_N_C")
    nothing = gather(context(), "logits_N_C")
    assert (len(nothing.pool), nothing.lengths, nothing.place_N.shape) == (0, (), (0,))
    assert nothing.pool.sample_ids.dtype == object
    assert gather(context(one)).pool.logits_N_C is None


class First(SequentialStrategy):
    """Picks what stands first in the pool's order; the key is the number in the id."""

    name: ClassVar[str] = "first"
    picked: ClassVar[Callable[[int], list[int]]] = lambda budget: list(range(budget))
    keyed: ClassVar[bool] = True

    def order(self, pool: Shard, context: Context, budget: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        key_N = np.array([float(name[1:]) // 2 for name in pool.sample_ids])
        return np.array(type(self).picked(budget)), key_N if self.keyed else None


def test_places_are_scores_and_the_rest_ranks_by_the_key_and_then_by_the_pool_s_order() -> None:
    written: list[Candidates] = []
    found = context(*in_parts(numbered(7), 2), seed=1, write=written.append)
    pool = [str(name) for name in gather(found).pool.sample_ids]
    selection = First().select(found, 3)
    assert selection.sample_ids == pool[:3]
    rest = sorted(pool[3:], key=lambda name: (-(int(name[1:]) // 2), pool.index(name)))
    expected = {name: 3.0 - place for place, name in enumerate(pool[:3])}
    expected |= {name: -1.0 - place for place, name in enumerate(rest)}
    assert scores_of(written) == [expected[f"s{row}"] for row in range(7)]
    assert selection.picks.score_N.tolist() == [3, 2, 1]
    assert (selection.strategy, selection.budget, selection.rule, selection.beta) == ("first", 3, "topk", 1.0)
    assert (selection.seed, selection.candidates, selection.notes) == (1, 7, ())
    assert selection.class_terms is found.class_terms
    assert selection.picks.logits_N_C is not None
    assert selection.picks.predicted_class_N is not None


def test_without_a_key_the_rest_scores_0() -> None:
    class Keyless(First):
        keyed: ClassVar[bool] = False

    written: list[Candidates] = []
    Keyless().select(context(numbered(5), write=written.append), 2)
    assert sorted(scores_of(written)) == [0, 0, 0, 1, 2]


def test_without_logits_the_candidates_have_scores_and_no_class() -> None:
    class Blind(First):
        columns: ClassVar[tuple[str, ...]] = ("features_N_D",)

    written: list[Candidates] = []
    Blind().select(context(replace(numbered(4), logits_N_C=None), write=written.append), 2)
    assert sorted(scores_of(written)) == [-2, -1, 1, 2]
    assert written[0].predicted_class_N is None


def test_an_order_that_is_none_is_refused_with_the_numbers() -> None:
    class Twice(First):
        picked: ClassVar[Callable[[int], list[int]]] = lambda budget: [0] * budget

    with pytest.raises(ValueError, match="strategy first picked 1 of 3 samples"):
        Twice().select(context(numbered(5)), 3)
    with pytest.raises(ValueError, match="strategy first picked 1 of 5 samples"):
        Twice().select(context(numbered(5)), 9)


def test_labelled_features_that_are_not_finite_name_the_sample_by_id_or_place() -> None:
    features_N_D = np.array([[0.0], [np.nan]])
    for ids, told in ((names("k", 2), "k1"), (None, "1")):
        known = Labeled(features_N_D, np.array([0, 1]), sample_ids=ids)
        with pytest.raises(UserError, match=f"features_N_D of the labelled pool is not finite for {told}"):
            First().select(context(numbered(3), labeled=known), 1)


@pytest.mark.parametrize(
    ("candidates", "budget", "ranks_all", "expected"),
    [
        (5, 2, True, [2, 1, -1, -2, -3]),
        (5, 2, False, [2, 1, 0, 0, 0]),
        (2, 5, True, [5, 4]),
        (2, 2, True, [2, 1]),
        (0, 3, True, []),
    ],
)
def test_places_by_hand(candidates: int, budget: int, ranks_all: bool, expected: list[float]) -> None:
    assert places(candidates, budget, ranks_all=ranks_all).tolist() == expected
    if ranks_all:
        assert places(candidates, budget).tolist() == expected


# -- around another strategy --------------------------------------------------------------------------------------


class Seen(ByNumber):
    """Keeps the context that it is given."""

    def __init__(self) -> None:
        self.contexts: list[Context] = []

    def select(self, context: Context, budget: int) -> Selection:
        self.contexts.append(context)
        return super().select(context, budget)


def test_the_inner_strategy_s_seed_is_derived_from_the_round_s() -> None:
    inner = Seen()
    Balanced(inner).select(context(numbered(4), seed=12, labeled=labeled([0])), 2)
    [seen] = inner.contexts
    assert seen.seed == int(hash_ids(["inner"], 12, 2)[0]) >> 33
    assert 0 <= seen.seed < 2**31


def test_a_wrapped_selection_says_all_that_its_picks_follow_from() -> None:
    found = context(*in_parts(numbered(9), 2), seed=8, labeled=labeled([0, 1]), selection={"beta": 0.25})
    rules: dict[str, Rule] = {"stochastic": "gumbel", "balanced": "topk"}
    for name, rule in rules.items():
        written: list[Candidates] = []
        strategy: Any = strategies.get(f"{name}:entropy")
        selection = strategy.select(replace(found, write=written.append), 4)
        assert (selection.strategy, selection.budget, selection.candidates) == (f"{name}:entropy", 4, 9)
        assert (selection.rule, selection.beta, selection.seed, selection.notes) == (rule, 1.0, 8, ())
        assert strategy.batch(found.settings) == (rule, 1.0)
        assert selection.sample_ids == list(strategies.pick(written, 4, rule, 1.0, 8).sample_ids)
        assert all(part.predicted_class_N is not None for part in written)
        assert (strategy.derivable, strategy.inputs, strategy.labeled_inputs) == (True, ("logits_N_C",), False)


@pytest.mark.parametrize("name", ["balanced", "stochastic"])
def test_around_a_strategy_without_candidates_nothing_is_picked(name: str) -> None:
    for shards in ([], [numbered(0)]):
        found = context(*shards, seed=8, labeled=labeled([0]))
        selection = strategies.get(f"{name}:entropy").select(found, 4)
        assert (selection.strategy, selection.budget, selection.seed) == (f"{name}:entropy", 4, 8)
        assert (selection.candidates, selection.sample_ids) == (0, [])


class Merging(ByNumber):
    """Hands on its candidates in other pieces than the shards'."""

    def __init__(self, first: int) -> None:
        self.first = first

    def select(self, context: Context, budget: int) -> Selection:
        whole = numbered(6)
        assert context.write is not None
        selection = super().select(replace(context, write=None), budget)
        for rows in (np.arange(self.first), np.arange(self.first, 6)):
            context.write(self.score(whole, context).take(rows))
        return selection


def test_a_strategy_that_writes_other_pieces_than_the_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="strategy by-number wrote 2 candidates for a shard of 3"):
        Balanced(Merging(2)).select(context(*in_parts(numbered(6), 2), labeled=labeled([0])), 2)
    with pytest.raises(ValueError, match="shorter"):  # the second piece, which is empty, has no shard
        Balanced(Merging(6)).select(context(numbered(6), labeled=labeled([0])), 2)


def test_a_ranking_without_parts_has_no_classes_and_rescores_nothing() -> None:
    nothing = Ranked(strategies.no_picks("x", 1, 0), (), np.zeros(0, dtype=np.int64))
    assert (len(nothing), nothing.predicted_class_N.shape) == (0, (0,))
    assert nothing.predicted_class_N.dtype == np.int32
    assert list(nothing.rescored(np.zeros(0))) == []


@pytest.mark.parametrize("seed", range(12))
def test_balanced_picks_are_those_of_a_slow_search(seed: int) -> None:
    """Pick by pick: the class with the fewest labels and picks that has candidates left, and of it the inner best."""
    numbers = np.random.default_rng(seed)
    rows, budget = int(numbers.integers(1, 20)), int(numbers.integers(1, 25))
    whole, labels = numbered(rows, 4), numbers.integers(0, 6, int(numbers.integers(0, 8)))
    written: list[Candidates] = []
    found = context(*in_parts(whole, 3), labeled=labeled(labels), write=written.append)
    selection = Balanced(ByNumber()).select(found, budget)
    assert whole.logits_N_C is not None
    class_of = dict(enumerate(whole.logits_N_C.argmax(axis=1).tolist()))
    counts, left, expected = Counter(labels.tolist()), list(range(rows))[::-1], list[int]()
    while left and len(expected) < budget:
        fewest = min({class_of[row] for row in left}, key=lambda k: (counts[k], k))
        expected.append(next(row for row in left if class_of[row] == fewest))
        left.remove(expected[-1])
        counts[fewest] += 1
    assert selection.sample_ids == [f"s{row}" for row in expected]
    scores = {row: float(budget - place) for place, row in enumerate(expected)}
    scores |= {row: -1.0 - place for place, row in enumerate(left)}
    assert scores_of(written) == [scores[row] for row in range(rows)]
