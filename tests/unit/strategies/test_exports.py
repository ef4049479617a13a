"""What plug-in authors are handed, and that the audit treats no strategy and no rule of its own accord."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, get_args

import numpy as np
import pytest

import vabal
from tests.support.blocks import blocks
from tests.support.small_shards import context, shard
from vabal import strategies
from vabal.settings.models import Params
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


def python_blocks() -> list[str]:
    page = (PACKAGE.parent / "docs" / "strategies.md").read_text(encoding="utf-8")
    return [block.text for block in blocks("docs/strategies.md", page) if block.language == "python"]


def test_the_page_s_own_strategy_picks_what_is_least_confident() -> None:
    [_, example] = python_blocks()
    names: dict[str, Any] = {}
    exec(example, names)  # noqa: S102 -- as an installed package's module
    drawn = shard(20)
    selection = names["LeastConfident"]().select(context(drawn), 3)
    confidence = strategies.posteriors(drawn).max(axis=1)
    assert selection.sample_ids == list(drawn.sample_ids[np.argsort(confidence)[:3]])


def test_what_the_page_says_of_a_round_s_calls_runs() -> None:
    [calls, _] = python_blocks()
    names: dict[str, Any] = {"params": Params(), "context": context(shard(20)), "budget": 3}
    exec(calls.replace('"vabal"', '"margin"'), names)  # noqa: S102
    assert len(names["selection"].sample_ids) == 3


# -- rules --------------------------------------------------------------------------------------------------------


def test_every_rule_has_an_object_of_its_name() -> None:
    assert [rule_named(name).name for name in get_args(Rule)] == list(get_args(Rule))
    with pytest.raises(
        ValueError, match="one of the rules topk, gumbel, quota, spread, quota_spread, coverage, found 'best'"
    ):
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
