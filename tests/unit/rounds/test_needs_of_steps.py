"""What a strategy's needs make the round's stages train, extract and hand over; on real stages, without servers."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.small_backbones import small_backbone
from tests.support.small_rounds import first_round
from vabal import strategies
from vabal.errors import UserError
from vabal.learning import committee, features
from vabal.learning.network import ResNetClassifier
from vabal.rounds import steps
from vabal.rounds.context import RoundContext, StageReference, metrics_of, output_of, stage_output
from vabal.rounds.stage_store import LocalStageStore
from vabal.strategies import Candidates, Context, Needs, ScoringStrategy, Shard

SETTINGS = {
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 2,
    "features.batch_size": 13,
    "pool.shard_rows": 40,
    "selection.budget": 6,
    "selection.control_share": 0.0,
    "compute.threads": 1,
    "compute.device": "cpu",
}
CANDIDATES = 96 - 20 - 18  # less the labelled and the holdout
NEEDY = ("bald", "power_bald", "ensemble", "learning_loss")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    """Of a workspace of 96 images in several shards, whose strategy is `random`."""
    threads = torch.get_num_threads()
    folder = tmp_path_factory.mktemp("needs")
    with first_round(folder, 96, SETTINGS, {"selection.strategy": "random"}) as begun:
        yield begun
    torch.set_num_threads(threads)


def with_strategy(context: RoundContext, strategy: Any) -> RoundContext:
    """The same round with another strategy: one that is built in, by name, or an object."""
    name = strategy if isinstance(strategy, str) else "random"
    params = context.workspace.params({"selection.strategy": name})
    other = replace(context, params=params)
    if not isinstance(strategy, str):
        other.__dict__["strategy"] = strategy  # in the place of what is looked up by name
    return other


def extract(context: RoundContext) -> tuple[StageReference, list[StageReference]]:
    trained = steps.train_classifier(context)
    return trained, [steps.extract_features(context, trained, shard) for shard in steps.shard_names(context)]


class Recording(ScoringStrategy):
    """Keeps what it is given."""

    name: ClassVar[str] = "recording"

    def __init__(self, needs: Needs) -> None:
        self.needs = needs  # type: ignore[misc]
        self.contexts: list[Context] = []
        self.shards: list[Shard] = []

    def prepare(self, context: Context) -> Context:
        self.contexts.append(context)
        return context

    def score(self, shard: Shard, context: Context) -> Candidates:
        self.shards.append(shard)
        return Candidates(shard.sample_ids, np.zeros(len(shard)))


def test_there_are_several_shards_and_candidates_in_them(context: RoundContext) -> None:
    assert len(steps.shard_names(context)) == 3
    assert context.report["candidates"] == CANDIDATES


@pytest.mark.parametrize("name", NEEDY)
def test_a_round_trains_extracts_and_picks_by_what_the_strategy_needs(context: RoundContext, name: str) -> None:
    chosen = with_strategy(context, name)
    steps.refuse_unserved(chosen.strategy, chosen.params)
    trained, extracted = extract(chosen)
    selected = steps.select_batch(chosen, extracted, None)
    table = pd.read_parquet(steps.selection_folder(chosen, selected) / "candidates.parquet")
    assert len(table) == CANDIDATES
    assert table["score"].nunique() > 1
    assert table["predicted_class"].notna().all()
    picks = pd.read_parquet(steps.selection_folder(chosen, selected) / "selection.parquet")
    assert len(set(picks["sample_id"])) == 6
    assert set(picks["strategy"]) == {name}
    measured = {metric.name for metric in metrics_of(chosen, trained)}
    assert {"train/loss", *(metric for metric in measured if metric.startswith("committee/"))} < measured


@pytest.mark.parametrize(
    "needs", [Needs(dropout=0.5, passes=3), Needs(members=2), strategies.get("learning_loss").needs]
)
def test_the_shards_carry_what_the_scoring_networks_say_of_each_candidate(context: RoundContext, needs: Needs) -> None:
    recording = Recording(needs)
    chosen = with_strategy(context, recording)
    trained, extracted = extract(chosen)
    steps.select_batch(chosen, extracted, None)
    first = steps.load_classifier(chosen, trained)
    folder = chosen.stages.get("train-committee", trained["committee"])
    assert folder is not None
    assert isinstance(first, ResNetClassifier)
    networks = committee.load(folder, first)
    catalog = pd.read_parquet(chosen.view / "catalog.parquet").set_index("sample_id")
    seen = 0
    for shard in recording.shards:
        images = chosen.shards.gather(catalog.loc[list(shard.sample_ids)].reset_index())
        for name, values in networks.columns(images).items():
            np.testing.assert_allclose(getattr(shard, name), values, rtol=1e-4, atol=1e-6)
        seen += len(shard)
    assert seen == CANDIDATES


@pytest.mark.parametrize("learner", ["scratch", "finetune"])
@pytest.mark.parametrize("name", ["ensemble", "learning_loss", "bald"])
def test_networks_that_were_trained_by_themselves_are_those_of_the_committee(
    context: RoundContext, name: str, learner: str, tmp_path: Path
) -> None:
    quick = {"finetune.epochs": 1, "finetune.min_steps": 2}
    backbone = {f"backbone.{key}": value for key, value in small_backbone(tmp_path).items()}
    chosen = {"selection.strategy": name, "classifier.learner": learner, **quick, **backbone}
    together, apart = (
        replace(context, params=context.workspace.params(chosen), stages=LocalStageStore(tmp_path / place))
        for place in ("together", "apart")
    )
    trained = steps.train_classifier(together)
    for member in reversed(apart.learner.members):
        steps.train_member(apart, steps.train_first(apart), member)
    assert steps.train_classifier(apart) == trained
    one, other = (stage_output(who, "train-committee", trained["committee"]) for who in (together, apart))
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {
        path.name: path.read_bytes() for path in other.iterdir()
    }
    assert len(list((tmp_path / "apart" / "train-member").iterdir())) == len(apart.learner.members) > 0


def test_the_classifier_is_one_for_all_strategies_and_its_features_are_shared(context: RoundContext) -> None:
    plain, extracted = extract(context)
    weights = steps.weights(context, plain).read_bytes()
    keys = set()
    for name in NEEDY:
        chosen = with_strategy(context, name)
        trained, described = extract(chosen)
        assert trained["key"] == plain["key"]
        assert steps.weights(chosen, trained).read_bytes() == weights
        assert [ref["key"] for ref in described] == [ref["key"] for ref in extracted]
        keys.add(trained["committee"])
    assert "committee" not in plain
    assert not any("committee" in ref for ref in extracted)
    assert len(keys) == 3  # of the two kinds of BALD, which need the same
    assert len(list((context.stages.folder / "train-classifier").iterdir())) == 1  # type: ignore[attr-defined]


def test_other_needs_give_other_keys(context: RoundContext) -> None:
    found = []
    for dropout in (0.5, 0.25):
        chosen = with_strategy(context, Recording(Needs(dropout=dropout, passes=2)))
        trained, extracted = extract(chosen)
        selected = steps.select_batch(chosen, extracted, None)
        found.append((trained["key"], trained["committee"], extracted[0]["committee"], selected["key"]))
    (classifier, *one), (again, *other) = found
    assert classifier == again
    assert not set(one) & set(other)


def test_what_is_finished_is_not_done_again(context: RoundContext, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = with_strategy(context, "ensemble")
    before = extract(chosen)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a finished stage was run again")

    monkeypatch.setattr(committee, "build", never)
    monkeypatch.setattr(committee, "load", never)
    assert extract(chosen) == before


def test_a_committee_that_is_gone_is_told_with_what_to_do(context: RoundContext) -> None:
    chosen = with_strategy(context, "ensemble")
    trained, _ = extract(chosen)
    with pytest.raises(UserError, match=r"train-committee \(0000\) is gone from the stage store: run the round again"):
        metrics_of(chosen, trained | {"committee": "0000"})


def test_images_and_the_labelled_pool_are_handed_over_where_needed(context: RoundContext) -> None:
    recording = Recording(Needs(images=True, features=True, posteriors=True))
    chosen = with_strategy(context, recording)
    _, extracted = extract(chosen)
    steps.select_batch(chosen, extracted, None)
    catalog = pd.read_parquet(chosen.view / "catalog.parquet").set_index("sample_id")

    def images_of(ids: Any) -> np.ndarray:
        return chosen.shards.gather(catalog.loc[list(ids)].reset_index())

    unlabeled = pd.read_parquet(chosen.view / "unlabeled.parquet")["sample_id"]
    assert sorted(np.concatenate([shard.sample_ids for shard in recording.shards])) == sorted(unlabeled)
    assert len(recording.shards) > 3  # in pieces of a batch of images
    for shard in recording.shards:
        assert shard.images_N_H_W_K is not None
        assert np.array_equal(shard.images_N_H_W_K, images_of(shard.sample_ids))
    (offered,) = recording.contexts
    assert (offered.feature_dims, offered.device) == ((4, 8, 16, 32), "cpu")
    labeled = offered.labeled
    assert labeled is not None
    assert labeled.sample_ids is not None
    assert labeled.images_N_H_W_K is not None
    assert np.array_equal(labeled.images_N_H_W_K, images_of(labeled.sample_ids))
    truth = pd.read_parquet(chosen.view / "labeled.parquet").set_index("sample_id")["label"]
    assert [chosen.classes[label] for label in labeled.labels_N] == list(truth[labeled.sample_ids])
    place = catalog.loc[list(labeled.sample_ids)]
    by_shard = {ref["shard"]: output_of(chosen, ref) for ref in extracted}
    for name, found in ((features.FEATURES, labeled.features_N_D), (features.LOGITS, labeled.logits_N_C)):
        assert found is not None
        expected = [np.load(by_shard[at] / name)[row] for at, row in zip(place["shard"], place["row"], strict=True)]
        assert np.array_equal(found, expected)


def test_what_is_not_needed_is_not_handed_over(context: RoundContext) -> None:
    recording = Recording(Needs())
    chosen = with_strategy(context, recording)
    steps.select_batch(chosen, extract(chosen)[1], None)
    assert recording.contexts[0].labeled is None
    shard = recording.shards[0]
    for column in (shard.images_N_H_W_K, shard.features_N_D, shard.votes_N_C, shard.predicted_loss_N):
        assert column is None


def test_the_default_strategy_s_ensemble_is_the_one_of_strategy_ensemble(context: RoundContext) -> None:
    alone = replace(
        context, params=context.workspace.params({"selection.strategy": "vabal", "probabilities.members": 1})
    )
    assert "committee" not in steps.train_classifier(alone)
    of_five = replace(
        context, params=context.workspace.params({"selection.strategy": "vabal", "probabilities.members": 5})
    )
    trained, extracted = extract(of_five)
    assert trained == steps.train_classifier(with_strategy(context, "ensemble"))
    assert trained["key"] == steps.train_classifier(alone)["key"]
    there = of_five.stages.get("extract-committee", extracted[0]["committee"])
    assert there is not None
    assert np.load(there / "predictive_N_C.npy").sum(axis=1) == pytest.approx(1.0)


def test_only_needs_that_nothing_can_serve_are_refused(context: RoundContext) -> None:
    served = Needs(images=True, members=5, auxiliary_loss="loss_prediction")
    steps.refuse_unserved(Recording(served), context.params)
    with pytest.raises(UserError, match=r"'recording': .* 'rotation'; known are: loss_prediction"):
        steps.refuse_unserved(Recording(Needs(auxiliary_loss="rotation")), context.params)
