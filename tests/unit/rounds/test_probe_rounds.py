"""Rounds whose classifier stands on a pretrained backbone, frozen (a probe) or fine-tuned: every strategy, over a
workspace's files and over a simulated run's arrays."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.small_backbones import small_backbone
from tests.support.small_rounds import first_round, learned, simulated
from vabal import strategies
from vabal.benchmark import simulation
from vabal.learning import backbones
from vabal.learning.network import FineTuned, LinearProbe
from vabal.rounds import steps
from vabal.rounds.context import RoundContext, output_of
from vabal.rounds.steps import keys
from vabal.strategies.typiclust import TypiclustStrategy

SETTINGS = {
    "classifier.learner": "probe",
    "backbone.sizes": [16],
    "pool.shard_rows": 40,
    "selection.budget": 6,
    "vae.epochs": 1,
    "vae.min_steps": 0,
    "probabilities.members": 2,
    "compute.device": "cpu",
    "compute.threads": 1,
}


SHARED = simulation.Shared()  # the classifier, which is the same for every strategy


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    with first_round(tmp_path_factory.mktemp("probe"), 90, SETTINGS) as begun:
        yield begun


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    """A round whose classifier is a fine-tuned backbone."""
    folder = tmp_path_factory.mktemp("finetune")
    own = {f"backbone.{name}": value for name, value in small_backbone(folder).items()}
    settings = {**SETTINGS, **own, "classifier.learner": "finetune", "finetune.epochs": 1, "finetune.min_steps": 3}
    with first_round(folder, 90, settings) as begun:
        yield begun


@pytest.fixture(scope="module")
def from_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    """A round whose classifier learns from scratch, and whose strategy looks at a frozen backbone's features."""
    folder = tmp_path_factory.mktemp("scratch")
    own = {f"backbone.{name}": value for name, value in small_backbone(folder).items()}
    small = {"classifier.network": "resnet10", "classifier.width": 4, "classifier.epochs": 1}
    chosen = {"selection.features": "backbone", "selection.strategy": "typiclust", "classifier.learner": "scratch"}
    with first_round(folder, 90, {**SETTINGS, **own, **small, **chosen}) as begun:
        yield begun


def by(context: RoundContext, strategy: str) -> RoundContext:
    return replace(context, params=context.workspace.params({"selection.strategy": strategy}))


@pytest.mark.parametrize("strategy", strategies.names())
@pytest.mark.parametrize("learner", ["context", "tuned"])
def test_a_round_of_every_strategy_picks_what_a_simulated_run_picks(
    learner: str, strategy: str, request: pytest.FixtureRequest
) -> None:
    chosen = by(request.getfixturevalue(learner), strategy)
    picked = pd.read_parquet(
        steps.selection_folder(chosen, learned(chosen)["selected"]) / "selection.parquet"
    ).sort_values("rank")
    pool = simulated(chosen)
    first = next(iter(simulation.run(pool, chosen.params, rounds=2, shared=SHARED, shared_key=learner)))
    assert [str(pool.sample_ids[pick.row]) for pick in first.picks] == list(picked["sample_id"])
    assert len(picked) == 6


def test_typiclust_clusters_a_frozen_backbone_s_features_beside_a_classifier_from_scratch(
    from_scratch: RoundContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    order = TypiclustStrategy.order

    def watched(self: Any, pool: Any, context: Any, budget: int) -> Any:
        assert context.labeled is not None
        seen.append((pool.features_N_D, pool.sample_ids, context.deep(context.labeled.features_N_D)))
        return order(self, pool, context, budget)

    monkeypatch.setattr(TypiclustStrategy, "order", watched)
    refs = learned(from_scratch)
    picks = pd.read_parquet(steps.selection_folder(from_scratch, refs["selected"]) / "selection.parquet")
    pool = simulated(from_scratch)
    first = next(iter(simulation.run(pool, from_scratch.params, rounds=2)))
    assert [str(pool.sample_ids[pick.row]) for pick in first.picks] == list(picks.sort_values("rank")["sample_id"])
    backbone = backbones.load(from_scratch.params.backbone)
    rows = pd.Index(pool.sample_ids).get_indexer(pd.Index(seen[0][1]))
    with torch.inference_mode():
        images = torch.from_numpy(pool.images_N_H_W_K[rows]).permute(0, 3, 1, 2)
        last_N_D = backbone(images).numpy()[:, -backbone.layers[-1].width :]
    for features_N_D, _, labeled_L_D in seen:  # the night's, then the simulated run's
        assert np.allclose(features_N_D, last_N_D, atol=1e-5)
        assert labeled_L_D.shape == (len(pool.initial_L), last_N_D.shape[1])


def test_the_backbone_is_part_of_a_selections_key_where_its_features_are_asked_for(
    from_scratch: RoundContext,
) -> None:
    keys_of = [
        keys.selection_key(replace(from_scratch, params=from_scratch.workspace.params(changed)), [], None).digest
        for changed in ({}, {"backbone.sizes": [16]})
    ]
    ignored = [
        keys.selection_key(replace(from_scratch, params=from_scratch.workspace.params(changed)), [], None).digest
        for changed in (
            {"selection.features": "classifier"},
            {"selection.features": "classifier", "backbone.sizes": [16]},
        )
    ]
    assert keys_of[0] != keys_of[1]
    assert ignored[0] == ignored[1]


def test_features_are_what_the_probe_sees_and_weights_are_its_head_alone(context: RoundContext) -> None:
    chosen = by(context, "margin")
    refs = learned(chosen)
    weights = steps.weights(chosen, refs["trained"])
    network = steps.load_classifier(chosen, refs["trained"])
    assert isinstance(network, LinearProbe)
    assert weights.stat().st_size < 200_000
    extracted = steps.extract_features(chosen, refs["trained"], steps.shard_names(chosen)[0])
    features_N_D = np.load(output_of(chosen, extracted) / "features.npy")
    assert features_N_D.shape[1] == sum(network.feature_dims)
    assert network.config["backbone"]["sha256"] == backbones.weights_sha256(chosen.params.backbone)


def test_a_fine_tuned_networks_features_are_those_of_its_backbone_and_its_columns_too(tuned: RoundContext) -> None:
    chosen = by(tuned, "vabal")
    refs = learned(chosen)
    network = steps.load_classifier(chosen, refs["trained"])
    assert isinstance(network, FineTuned)
    extracted = steps.extract_features(chosen, refs["trained"], steps.shard_names(chosen)[0])
    features_N_D = np.load(output_of(chosen, extracted) / "features.npy")
    assert features_N_D.shape[1] == sum(network.feature_dims)
    assert network.config["backbone"]["sha256"] == backbones.weights_sha256(chosen.params.backbone)
    assert not (chosen.workspace.embeddings).exists()  # they change with every training: none are kept


def test_a_later_round_embeds_no_image_again(context: RoundContext, monkeypatch: pytest.MonkeyPatch) -> None:
    learned(by(context, "random"))
    later = replace(by(context, "random"), round=replace(context.round, round=2))
    assert later.embedded is not None

    def never(*_: object) -> None:
        raise AssertionError("an image was embedded again")

    monkeypatch.setattr(type(later.embedded.embedder), "embed", never)
    for shard in steps.shard_names(later):
        steps.embed_images(later, shard)
    assert steps.train_classifier(later)["key"] != steps.train_classifier(by(context, "random"))["key"]
