import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_shards import context, rows_of, shard
from vabal import strategies
from vabal.errors import UserError
from vabal.probabilities import ClassTerms
from vabal.strategies import Candidates, Shard
from vabal.strategies.noise import hash_ids
from vabal.strategies.quotas import allot

NAMES = ("cat", "dog", "eel")


# -- finding them -----------------------------------------------------------------------------------------------


def test_the_strategies_that_are_built_in_are_found_by_name() -> None:
    assert strategies.names()[:3] == ["vabal", "random", "entropy"]
    for name in ("vabal", "random", "entropy"):
        assert strategies.get(name).name == name


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="no strategy 'vabl'; installed are vabal, random, entropy"):
        strategies.get("vabl")


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution on the path, as pip installs one."""
    (tmp_path / "oldest_first.py").write_text(
        "import numpy as np\n"
        "from vabal.strategies import Candidates, Needs, ScoringStrategy\n"
        "class OldestFirst(ScoringStrategy):\n"
        "    name = 'oldest'\n"
        "    needs = Needs(posteriors=True)\n"
        "    def score(self, shard, context):\n"
        "        return Candidates(shard.sample_ids, -np.arange(len(shard.sample_ids), dtype=float))\n"
        "nothing = object()\n"
    )
    folder = tmp_path / "oldest_first-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: oldest-first\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[vabal.strategies]\n"
        "oldest = oldest_first:OldestFirst\n"
        "broken = oldest_first:Missing\n"
        "nothing = oldest_first:nothing\n"
        "random = oldest_first:OldestFirst\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("oldest_first", None)


def test_somebody_else_s_strategy_is_found_by_its_entry_point_and_picks(plug_in: Path) -> None:
    assert "oldest" in strategies.names()
    selection = strategies.get("oldest").select(context(shard()), 3)
    assert selection.sample_ids == ["s0-0", "s0-1", "s0-2"]
    assert selection.strategy == "oldest"


def test_a_plug_in_that_is_installed_meanwhile_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert "late" not in strategies.names()
    folder = tmp_path / "late-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: late\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[vabal.strategies]\nlate = late:Late\n")
    assert "late" in strategies.names()


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "cannot be loaded"), ("nothing", "is none"), ("random", "more than one strategy is named 'random'")],
)
def test_a_plug_in_that_does_not_fit_is_refused_in_one_line(plug_in: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        strategies.get(name)


# -- scores -----------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    logits = np.log([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1]])
    certain = np.array([[0.0, -2000.0, -2000.0]])
    given = Shard(np.array(["a", "b", "c", "d"]), logits_N_C=np.vstack([logits, certain]))
    written: list[Candidates] = []
    selection = strategies.get("entropy").select(context(given, write=written.append), 4)
    assert selection.sample_ids == ["b", "a", "c", "d"]
    assert written[0].score_N.tolist() == pytest.approx([1.5 * np.log(2), np.log(3), 0.639032, 0], abs=1e-6)
    assert written[0].margin_N is not None
    assert written[0].margin_N.tolist() == pytest.approx([0.25, 0, 0.7, 1])


def test_the_paper_s_strategy_ranks_by_equation_6() -> None:
    given = Shard(
        np.array(["a", "b"]),
        logits_N_C=np.zeros((2, 3)),
        log_likelihood_N_C=np.log([[0.5, 0.2, 0.1], [0.1, 0.2, 0.5]]),
        vae_class_N=np.array([0, 2]),
    )
    written: list[Candidates] = []
    selection = strategies.get("vabal").select(context(given, write=written.append), 1)
    expected = -np.log([0.5 * 0.63 + 0.2 * 0.1 + 0.1 * 0.04, 0.1 * 0.63 + 0.2 * 0.1 + 0.5 * 0.04])
    assert written[0].score_N.tolist() == pytest.approx(expected, abs=1e-6)
    assert selection.sample_ids == ["b"]
    assert written[0].prior_N is not None
    assert written[0].prior_N.tolist() == pytest.approx([0.7, 0.1])
    assert written[0].log_likelihood_N is not None
    assert written[0].log_likelihood_N.tolist() == pytest.approx(np.log([0.5, 0.5]), abs=1e-6)


def test_an_ensemble_s_mean_posterior_stands_for_the_classifier_s() -> None:
    given = Shard(
        np.array(["a", "b"]),
        logits_N_C=np.log([[0.5, 0.5, 1e-9], [1, 1e-9, 1e-9]]),
        log_likelihood_N_C=np.zeros((2, 3)),
        vae_class_N=np.array([0, 2]),
        predictive_N_C=np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]]),
    )
    chosen = {"members": 5, "classes": "posterior", "margin_weight": 1.0}
    written: list[Candidates] = []
    strategies.get("vabal").select(context(given, probabilities=chosen, write=written.append), 1)
    term = np.array([0.63, 0.1, 0.04])  # prior times precision
    inverse = [0.9 / term[0] + 0.1 / term[1], 0.2 / term[0] + 0.5 / term[1] + 0.3 / term[2]]
    assert written[0].score_N.tolist() == pytest.approx(np.log(inverse) + np.log([0.2, 0.8]), abs=1e-6)
    assert written[0].predicted_class_N is not None
    assert written[0].predicted_class_N.tolist() == [0, 1]
    assert written[0].margin_N is not None
    assert written[0].margin_N.tolist() == pytest.approx([0.8, 0.2])


@pytest.mark.parametrize("name", ["vabal", "balanced:vabal"])
def test_an_ensemble_is_needed_where_the_settings_ask_for_one(name: str) -> None:
    strategy = strategies.get(name)
    assert strategies.needs_of(strategy, context(probabilities={"members": 1}).settings) == strategy.needs
    needs = strategies.needs_of(strategy, context(probabilities={"members": 5}).settings)
    assert needs == replace(strategy.needs, members=5)
    assert strategies.needs_of(strategies.get("margin"), context().settings) == strategies.get("margin").needs


OFF = {"likelihood_weight": 0.0, "use_prior": False, "use_precision": False, "classes": "posterior"}


@pytest.mark.parametrize(
    ("changed", "vae", "terms"),
    [
        ({}, False, False),
        ({"classes": "classifier"}, False, False),
        ({"use_prior": True, "prior_pool": "labels"}, False, True),
        ({"use_precision": True, "precision_from": "cross_fitted"}, False, True),
        ({"likelihood_weight": 0.1}, True, False),
        ({"guard": 0.1}, True, False),
        ({"classes": "predicted"}, True, False),
        ({"use_prior": True}, True, True),
        ({"use_prior": True, "prior_pool": "unlabeled"}, True, True),
        ({"use_precision": True, "prior_pool": "labels"}, True, True),
    ],
)
@pytest.mark.parametrize("name", ["vabal", "stochastic:vabal"])
def test_a_vae_is_needed_where_a_part_of_the_score_takes_it(
    name: str, changed: dict[str, Any], vae: bool, terms: bool
) -> None:
    needs = strategies.needs_of(strategies.get(name), context(probabilities={**OFF, **changed}).settings)
    assert (needs.vae, needs.class_terms, needs.estimated) == (vae, terms, vae or terms)


def test_an_ensemble_that_was_not_asked_is_missed() -> None:
    with pytest.raises(ValueError, match="the ensemble's posteriors are missing"):
        strategies.get("vabal").select(context(shard(), probabilities={"members": 2}), 1)


@pytest.mark.parametrize("reduction", ["standardised", "contrast"])
def test_moments_of_the_candidates_are_completed_and_handed_back(reduction: str) -> None:
    shards = [shard(30, 1), shard(0, 2), shard(20, 3)]
    given = context(*shards, probabilities={"likelihood_reduction": reduction})
    selection = strategies.get("vabal").select(given, 5)
    assert selection.class_terms is not None
    assert selection.class_terms.moments is not None
    together = np.concatenate([part.log_likelihood_N_C for part in shards])
    assert selection.class_terms.moments.mean == pytest.approx(together.astype(float).mean(axis=0), rel=1e-8)


@pytest.mark.parametrize("name", ["vabal", "random", "entropy"])
def test_every_candidate_is_written_once_in_the_shards_order(name: str) -> None:
    written: list[Candidates] = []
    shards = [shard(7, 1), shard(0, 2), shard(5, 3)]
    strategies.get(name).select(context(*shards, write=written.append), 4)
    assert [len(part) for part in written] == [7, 0, 5]
    assert [i for part in written for i in part.sample_ids] == [i for part in shards for i in part.sample_ids]


@pytest.mark.parametrize("name", ["vabal", "random", "entropy"])
def test_a_budget_larger_than_what_is_left_picks_all_and_says_so(name: str) -> None:
    selection = strategies.get(name).select(context(shard(6)), 10)
    assert sorted(selection.sample_ids) == sorted(shard(6).sample_ids)
    assert selection.notes == ("10 asked for, 6 left to pick from: all of them are picked",)


@pytest.mark.parametrize("name", ["vabal", "random", "entropy"])
def test_nothing_left_gives_an_empty_selection(name: str) -> None:
    for shards in ([], [shard(0)]):
        selection = strategies.get(name).select(context(*shards, probabilities={"likelihood_reduction": "contrast"}), 2)
        assert selection.sample_ids == []
        assert "0 left" in selection.notes[0]


def test_scores_that_are_not_finite_are_refused_by_the_samples_names() -> None:
    given = shard(5)
    assert given.log_likelihood_N_C is not None
    given.log_likelihood_N_C[3, 1] = np.nan
    with pytest.raises(UserError, match="s0-3"):
        strategies.get("vabal").select(context(given), 2)
    broken = Candidates(np.array(["x", "y"]), np.array([1.0, np.inf]))
    with pytest.raises(UserError, match="not finite for y"):
        strategies.pick(broken, 1)


def test_what_a_strategy_needs_and_the_context_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="class terms are missing"):
        strategies.get("vabal").select(replace(context(shard()), class_terms=None), 2)
    with pytest.raises(ValueError, match="without logits"):
        strategies.get("entropy").select(context(Shard(np.array(["a"]))), 1)


# -- the tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["topk", "gumbel", "quota"])
@pytest.mark.parametrize("name", ["vabal", "random", "entropy"])
@pytest.mark.parametrize(("reduction", "classes"), [("sum", "predicted"), ("standardised", "posterior")])
def test_scores_and_picks_are_derived_again_from_the_candidates_file(
    name: str, batch: str, reduction: str, classes: str, tmp_path: Path
) -> None:
    settings = {"likelihood_reduction": reduction, "margin_weight": 0.5, "classes": classes}
    with pq.ParquetWriter(tmp_path / "candidates.parquet", strategies.schema(3), store_schema=False) as writer:
        given = context(
            shard(40, 1),
            shard(25, 2),
            probabilities=settings,
            selection={"batch": batch, "beta": 0.7},
            write=lambda part: writer.write_table(part.to_table(NAMES)),
        )
        selection = strategies.get(name).select(given, 12)
    parts = [
        Candidates.from_table(batch_of_rows, NAMES)
        for batch_of_rows in pq.ParquetFile(tmp_path / "candidates.parquet").iter_batches(batch_size=17)
    ]
    assert selection.class_terms is not None
    terms = ClassTerms.from_json(selection.class_terms.to_json())
    for part in parts:
        again = strategies.get(name).rescore(part, class_terms=terms, settings=given.settings, seed=3)
        assert (again is None) == (name == "entropy")
        assert again is None or np.array_equal(again, part.score_N)
    picks = strategies.pick(iter(parts), selection.budget, selection.rule, selection.beta, selection.seed)
    assert list(picks.sample_ids) == selection.sample_ids


def test_the_candidates_table_holds_class_names_and_comes_back_bit_for_bit() -> None:
    written: list[Candidates] = []
    strategies.get("vabal").select(context(shard(9), write=written.append), 2)
    table = written[0].to_table(NAMES)
    assert table.schema.equals(strategies.schema(3))
    assert set(table.column("vae_class").to_pylist()) <= set(NAMES)
    back = Candidates.from_table(table, NAMES)
    for name in ("score_N", "predicted_class_N", "vae_class_N", "log_likelihood_N_C", "prior_N", "margin_N"):
        assert np.array_equal(getattr(back, name), getattr(written[0], name))


def test_what_a_strategy_has_no_numbers_for_is_null() -> None:
    table = Candidates(np.array(["a", "b"]), np.array([1.0, 2.0])).to_table(NAMES)
    for name in table.column_names[2:]:
        assert table.column(name).null_count == 2
    back = Candidates.from_table(table, NAMES)
    assert back.vae_class_N is None
    assert back.log_likelihood_N_C is None


def test_a_class_outside_the_list_is_refused_when_a_table_is_read() -> None:
    table = Candidates(np.array(["a"]), np.array([1.0]), np.array([2], dtype=np.int32)).to_table(NAMES)
    with pytest.raises(ValueError, match="'eel'"):
        Candidates.from_table(table, NAMES[:2])


def test_the_selection_s_table_has_the_columns_that_the_design_names() -> None:
    selection = strategies.get("vabal").select(context(shard()), 4)
    table = strategies.selection_table(selection.picks, NAMES, selection.strategy)
    terms = ["score", "predicted_class", "vae_class", "log_likelihood", "prior", "precision"]
    assert table.column_names == ["rank", "sample_id", *terms, "strategy"]
    assert table.column("rank").to_pylist() == [1, 2, 3, 4]
    assert table.column("sample_id").to_pylist() == selection.sample_ids
    assert table.column("score").to_pylist() == sorted(table.column("score").to_pylist(), reverse=True)
    assert isinstance(table, pa.Table)


# -- batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "weights", "available", "expected"),
    [
        (10, {0: 0.52, 1: 0.29, 2: 0.19}, {0: 99, 1: 99, 2: 99}, {0: 5, 1: 3, 2: 2}),
        (10, {0: 1, 1: 1, 2: 1}, {0: 99, 1: 99, 2: 99}, {0: 4, 1: 3, 2: 3}),
        (10, {0: 8, 1: 1, 2: 1}, {0: 2, 1: 99, 2: 99}, {0: 2, 1: 4, 2: 4}),
        (10, {0: 8, 1: 1, 2: 1}, {0: 2, 1: 3, 2: 99}, {0: 2, 1: 3, 2: 5}),
        (10, {0: 1, 1: 1}, {0: 2, 1: 3}, {0: 2, 1: 3}),
        (1, {0: 0.4, 1: 0.6}, {0: 5, 1: 5}, {0: 0, 1: 1}),
    ],
)
def test_quotas_by_hand(
    budget: int, weights: dict[int, float], available: dict[int, int], expected: dict[int, int]
) -> None:
    assert allot(budget, weights, available) == expected


def test_quotas_follow_the_inverse_of_prior_times_precision() -> None:
    rows = 200
    classes = np.arange(rows, dtype=np.int32) % 2
    candidates = Candidates(
        np.array([f"{row}" for row in range(rows)]),
        np.arange(rows, dtype=float),
        vae_class_N=classes,
        prior_N=np.array([0.75, 0.25])[classes],
        precision_N=np.array([0.5, 0.5])[classes],
    )
    picks = strategies.pick(candidates, 40, "quota", 1.0)
    assert picks.vae_class_N is not None
    assert np.bincount(picks.vae_class_N).tolist() == [10, 30]
    even = strategies.pick(candidates, 40, "quota", 1e-9)
    assert even.vae_class_N is not None
    assert np.bincount(even.vae_class_N).tolist() == [20, 20]
    assert picks.score_N.tolist() == sorted(picks.score_N, reverse=True)


@pytest.mark.parametrize("classes", ["predicted", "classifier", "posterior", "all"])
def test_quotas_depend_on_neither_the_pool_s_order_nor_its_shards(classes: str) -> None:
    """A candidate's group is the class whose prior and precision stand in its row, so that all of a group agree."""
    whole = shard(300, 5)
    order = np.random.default_rng(0).permutation(300)
    turned = [rows_of(whole, order)]
    cut = [rows_of(whole, rows) for rows in (order[:7], order[7:120], order[120:])]
    picked = [
        strategies.get("vabal").select(
            context(*shards, probabilities={"classes": classes}, selection={"batch": "quota"}), 40
        )
        for shards in ([whole], turned, cut)
    ]
    assert len(set(map(tuple, (selection.sample_ids for selection in picked)))) == 1


def test_quotas_of_candidates_without_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="quotas need the classes"):
        strategies.pick(Candidates(np.array(["a"]), np.zeros(1)), 1, "quota")


@pytest.mark.parametrize(("budget", "rule"), [(0, "topk"), (1, "best")])
def test_a_budget_below_one_and_an_unknown_rule_are_refused(budget: int, rule: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        strategies.pick(Candidates(np.array(["a"]), np.zeros(1)), budget, rule)


def test_a_sample_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="more than once: a"):
        strategies.pick([Candidates(np.array(["a"]), np.zeros(1))] * 2, 5)


def test_hashes_are_what_they_were_when_the_first_round_was_recorded() -> None:
    """An audit reads old rounds: these numbers, computed by hand in whole numbers, may never change."""
    assert [int(value) for value in hash_ids(["a", "digits/0001.png", "größe", ""], 7)] == [
        11506085510242532331,
        1899863950103272940,
        15868352427858991222,
        3230232431694195895,
    ]


def test_an_id_s_hash_does_not_depend_on_the_ids_beside_it() -> None:
    assert hash_ids(["a"], 1)[0] == hash_ids(["a", "a much longer id"], 1)[0]
    assert hash_ids(["a"], 1)[0] != hash_ids(["a"], 2)[0]
