"""Nights whose settings take nothing of the VAE train none: over a workspace's files and a simulated run's arrays."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.small_rounds import first_round, learned, simulated
from vabal.benchmark import simulation
from vabal.rounds import steps
from vabal.rounds.context import RoundContext
from vabal.rounds.steps.plan import learn
from vabal.settings.presets import PRESETS

SETTINGS = {
    "method.preset": "without_vae",
    "classifier.learner": "probe",
    "backbone.sizes": [16],
    "pool.shard_rows": 40,
    "selection.budget": 6,
    "selection.record": "full",
    "selection.strategy": "vabal",
    "vae.epochs": 1,
    "vae.min_steps": 0,
    "compute.device": "cpu",
    "compute.threads": 1,
}
OF_THE_VAE = ["vae_class", "log_likelihood", "log_likelihoods"]
TERMS = ["prior", "precision", "own_class"]
COUNTED = {
    "probabilities.use_prior": True,
    "probabilities.prior_pool": "labels",
    "probabilities.use_precision": True,
    "probabilities.precision_from": "cross_fitted",
}
SHARED = simulation.Shared()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    with first_round(tmp_path_factory.mktemp("without"), 90, SETTINGS) as begun:
        yield begun


def under(context: RoundContext, settings: dict[str, Any]) -> RoundContext:
    return replace(context, params=context.workspace.params(settings))


def folder_of(context: RoundContext, refs: dict[str, Any]) -> Path:
    return steps.selection_folder(context, refs["selected"])


def candidates(context: RoundContext, refs: dict[str, Any]) -> pd.DataFrame:
    return pd.read_parquet(folder_of(context, refs) / "candidates.parquet")


def trained_vaes(context: RoundContext) -> int:
    place = context.stages.folder / "train-vae"  # type: ignore[attr-defined]
    return len(list(place.iterdir())) if place.exists() else 0


@pytest.mark.parametrize(("settings", "networks"), [({}, 1), (COUNTED, 1 + 3)], ids=["the preset", "counted terms"])
def test_a_night_trains_no_vae_and_picks_what_a_simulated_run_picks(
    context: RoundContext, settings: dict[str, Any], networks: int
) -> None:
    chosen, before = under(context, settings), trained_vaes(context)
    refs = learned(chosen)
    table = candidates(chosen, refs)
    assert trained_vaes(context) == before
    assert table[OF_THE_VAE].isna().all(axis=None)
    assert table[TERMS].notna().all(axis=None) == bool(settings)
    assert table["score"].nunique() > 6
    assert (steps.selection_document(chosen, refs["selected"])["class_terms"] is not None) == bool(settings)
    first = next(iter(simulation.run(simulated(chosen), chosen.params, rounds=2, shared=SHARED, shared_key="one")))
    ids = simulated(chosen).sample_ids
    picks = pd.read_parquet(folder_of(chosen, refs) / "selection.parquet")
    assert [str(ids[pick.row]) for pick in first.picks] == list(picks.sort_values("rank")["sample_id"])
    assert first.trained == networks


@pytest.mark.parametrize("settings", [{}, COUNTED], ids=["the preset", "counted terms"])
def test_a_vae_beside_it_changes_no_score_and_no_pick(context: RoundContext, settings: dict[str, Any]) -> None:
    off = {"use_prior": False, "use_precision": False, "likelihood_weight": 0.0, "guard": 0.0, "members": 1}
    full = {"method.preset": "vabal", **{f"probabilities.{name}": value for name, value in off.items()}, **settings}
    plain, beside = under(context, settings), under(context, full)
    without = candidates(plain, learned(plain))
    refs = learn(steps, beside, steps.shard_names(beside), needs_vae=True, needs_embeddings=True)
    whole = candidates(beside, refs)
    assert whole[OF_THE_VAE].notna().all(axis=None)
    for column in ("sample_id", "rank", "score"):
        pd.testing.assert_series_equal(whole[column], without[column])


def test_a_setting_that_takes_the_vae_brings_it_back(context: RoundContext) -> None:
    assert learned(context)["estimated"] is None
    again = under(context, {"probabilities.likelihood_weight": 0.1})
    refs = learned(again)
    assert len(refs["estimated"]["shards"]) == len(steps.shard_names(again))
    table = candidates(again, refs)
    assert trained_vaes(context) > 0
    assert table[OF_THE_VAE].notna().all(axis=None)


def test_the_preset_is_the_default_without_its_guard() -> None:
    ours, plain = PRESETS["vabal"]["probabilities"], PRESETS["without_vae"]["probabilities"]
    assert plain == {name: value for name, value in ours.items() if name not in ("draws", "sampling", "guard")}
    assert PRESETS["without_vae"]["selection"] == PRESETS["vabal"]["selection"]
