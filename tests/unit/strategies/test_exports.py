"""What plug-in authors are handed, and that the audit treats no strategy and no rule of its own accord."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, get_args

import numpy as np
import pytest

import vabal
from tests.support.small_shards import context
from vabal import strategies
from vabal.strategies import BatchRule, Candidates, Context, Needs, Rule, ScoringStrategy, Shard, rule_named
from vabal.strategies.spread import spread

PACKAGE = Path(vabal.__file__).parent


def test_the_page_shows_what_is_exported() -> None:
    page = (PACKAGE.parent / "docs" / "strategies.md").read_text(encoding="utf-8")
    table = page.partition("What `vabal.strategies` hands")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(strategies.__all__)


def test_no_strategys_module_takes_the_place_of_an_exported_name() -> None:
    """Importing `package.name` sets the package's attribute `name`."""
    for name in strategies.names():
        strategies.get(name)
    assert not [name for name in strategies.__all__ if isinstance(getattr(strategies, name), ModuleType)]
    modules = {path.stem for path in (PACKAGE / "strategies").glob("*.py")}
    assert not modules & set(strategies.__all__)


def named(source: str) -> set[str]:
    """Names of strategies and rules that stand in the source as such."""
    known = {*strategies.names(), *get_args(Rule), "balanced", "stochastic"}
    tree = ast.parse(source)
    return known & {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


@pytest.mark.parametrize("path", sorted((PACKAGE / "audit").glob("*.py")), ids=lambda path: path.name)
def test_the_audit_names_no_strategy_and_no_rule(path: Path) -> None:
    found = named(path.read_text(encoding="utf-8"))
    assert found - {"margin"} == set()  # which is a column as well


def test_a_rule_that_is_named_is_found() -> None:
    assert named("if rule == 'spread' or name == 'vabal': pass") == {"spread", "vabal"}


# -- rules --------------------------------------------------------------------------------------------------------


def test_every_rule_has_an_object_of_its_name() -> None:
    assert [rule_named(name).name for name in get_args(Rule)] == list(get_args(Rule))
    with pytest.raises(ValueError, match="one of the rules topk, gumbel, quota, spread, found 'best'"):
        rule_named("best")


def test_a_search_cannot_be_picked_from_scores_alone() -> None:
    with pytest.raises(ValueError, match="a search over features"):
        strategies.Picker(3, "spread")


FEATURES = np.array([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0], [-1.0, 0.0]], dtype=np.float32)


class Counting(ScoringStrategy):
    """Scores by row; spread out."""

    name: ClassVar[str] = "counting"
    needs: ClassVar[Needs] = Needs(features=True)

    def score(self, shard: Shard, context: Context) -> Candidates:
        return Candidates(shard.sample_ids, np.arange(len(shard)) / -10)

    def rule(self, settings: object) -> Rule:
        return "spread"


def test_any_scoring_strategy_can_have_its_batch_spread_out() -> None:
    shard = Shard(np.array(list("abcd"), dtype=object), features_N_D=FEATURES)
    selection = Counting().select(context(shard), 2)
    rows = spread(np.arange(4) / -10, FEATURES, 2)
    assert selection.sample_ids == [str(shard.sample_ids[row]) for row in rows] != ["a", "b"]
    assert selection.shortlist is not None
    assert list(selection.shortlist.sample_ids) == list("abcd")


def best(scores: Sequence[float]) -> Candidates:
    return Candidates(np.array(list("abcd")[: len(scores)], dtype=object), np.array(scores))


@pytest.mark.parametrize("name", ["topk", "gumbel", "quota"])
def test_what_follows_from_scores_alone_is_the_best_whatever_was_recorded(name: str) -> None:
    rule: BatchRule = rule_named(name)
    assert rule.follow(best([3.0, 2.0, 1.0]), None, ["b", "a"], 2, 1.0) == ["a", "b"]


def test_recorded_picks_of_a_search_stand_where_only_rounding_leads_to_others() -> None:
    rule, level = rule_named("spread"), best([1.0, 0.0, 0.0])
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1e-6, 1.0]], dtype=np.float32)
    assert rule.follow(level, features, ["a", "c"], 2, 1.0) == ["a", "c"]
    assert rule.follow(level, features, ["a", "b"], 2, 1.0) == ["a", "b"]
    followed = rule.follow(level, features, ["b", "c"], 2, 1.0)
    assert followed[0] == "a"
    assert rule.follow(level, features, ["a"], 2, 1.0) == rule.follow(level, features, ["a", "x"], 2, 1.0) != ["a"]
