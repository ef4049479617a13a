"""A night of every learner: it goes on where it was killed, its record verifies, and computed again it is the same."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from small_nights import begin, make, night, without_servers

from tests.support.small_backbones import small_backbone
from vabal import audit, rounds
from vabal.adapters.versioning import Versioning
from vabal.audit.replay import replay
from vabal.files import file_sha256
from vabal.learning import classifier, finetune, probe
from vabal.promotion import agreement
from vabal.rounds import record, steps
from vabal.rounds.steps.plan import learn
from vabal.settings.params import dump
from vabal.settings.presets import PRESETS
from vabal.strategies.vabal import VabalStrategy
from vabal.workspace import Workspace


def published(place: Workspace, refs: dict[str, Any]) -> None:
    context = begin(place)
    versions = Versioning(place.root)
    plan, contents = record.assemble(
        context,
        refs,
        {"name": "none", "version": "1", "sha256": file_sha256(steps.weights(context, refs["trained"]))},
        mlflow_run="0" * 32,
        flow_run=None,
        now=datetime.now(UTC),
        promotions=agreement.anchored(place.root, versions),
    )
    rounds.stage(place, plan, contents)
    assert rounds.carry_out(place, versions) is not None


@pytest.mark.parametrize("learner", ["scratch", "probe", "finetune"])
def test_a_night_goes_on_after_a_kill_verifies_and_comes_out_the_same_again(
    learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_servers(monkeypatch)
    own = tmp_path / "work" / "own"  # git does not know it
    own.mkdir(parents=True)
    backbone = {f"backbone.{name}": value for name, value in small_backbone(own).items()}
    chosen = {"classifier.learner": learner, "finetune.epochs": 1, "finetune.min_steps": 2, "probabilities.members": 2}
    place = make(tmp_path, settings={**backbone, **chosen, "selection.strategy": "vabal"})

    assert place.params().backbone.weights.startswith("file:own/")

    def all_steps() -> dict[str, Any]:
        context = begin(place)
        shards = steps.shard_names(context)
        return learn(steps, context, shards, needs_vae=True, needs_embeddings=learner == "probe")

    refs = all_steps()
    with monkeypatch.context() as killed:
        for module, name in ((classifier, "fit"), (probe, "fit"), (finetune, "train")):
            killed.delattr(module, name)  # nothing is learned twice
        assert all_steps() == refs
    published(place, refs)
    versions = Versioning(place.root)
    report = audit.verify(place.data, {name: versions.tag_message(name) for name in versions.tags()})
    assert report.ok, report.findings
    shutil.rmtree(place.state / "stages")
    scratch = place.state / "replay" / "again"
    versions.clone_at(scratch, "round/0001").bring_back()
    again = replay(Workspace(scratch), 1, place.root)
    assert again.identical, again.lines()


@pytest.mark.parametrize("learner", ["scratch", "probe", "finetune"])
def test_nights_of_every_preset_verify_and_come_out_the_same_again_with_every_learner(
    learner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_servers(monkeypatch)
    own = tmp_path / "work" / "own"
    own.mkdir(parents=True)
    backbone = {f"backbone.{name}": value for name, value in small_backbone(own).items()}
    chosen = {"classifier.learner": learner, "finetune.epochs": 1, "finetune.min_steps": 2}
    place = make(tmp_path, settings={**backbone, **chosen, "selection.strategy": "vabal", "probabilities.members": 1})
    for number, preset in enumerate(PRESETS, start=1):
        (place.root / "params.yaml").write_text(dump(place.params({"method.preset": preset})), encoding="utf-8")
        night(place)
        assert rounds.read_manifest(place.data, number).settings["method"]["preset"] == preset
        again = replay(place, number)
        assert (again.same_predictions, again.same_scores, again.same_picks) == (True, True, True), preset
    versions = Versioning(place.root)
    report = audit.verify(place.data, {name: versions.tag_message(name) for name in versions.tags()})
    assert report.ok, report.findings


def test_nights_with_and_without_a_vae_follow_each_other_and_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_servers(monkeypatch)
    chosen = {"method.preset": "without_vae", "selection.strategy": "vabal", "probabilities.members": 1}
    place = make(tmp_path, settings=chosen)
    with monkeypatch.context() as earlier:  # a VAE under all settings, as versions before 0.2.0 had it
        earlier.setattr(VabalStrategy, "needs_under", lambda self, _settings: self.needs)
        night(place)
    night(place)
    asked = place.params({"probabilities.likelihood_weight": 0.5})
    kept = [rounds.read_manifest(place.data, number) for number in (1, 2)]
    assert [manifest.class_terms is not None for manifest in kept] == [True, False]
    shown = audit.picks(place.data, 2)
    assert len(shown) == 4
    assert shown[["vae_class", "log_likelihood", "prior", "precision"]].isna().all(axis=None)
    again = replay(place, 2)
    assert (again.same_predictions, again.same_scores, again.same_picks) == (True, True, True)
    (place.root / "params.yaml").write_text(dump(asked), encoding="utf-8")
    night(place)
    assert audit.picks(place.data, 3)["vae_class"].notna().all()
    versions = Versioning(place.root)
    report = audit.verify(place.data, {name: versions.tag_message(name) for name in versions.tags()})
    assert report.ok, report.findings
