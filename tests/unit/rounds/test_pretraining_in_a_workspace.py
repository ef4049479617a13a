"""`vabal pretrain` in a workspace: what it reads, when it goes on, what it leaves, and that a round uses it."""

import fcntl
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.small_rounds import first_round
from vabal import pools
from vabal.cli import app
from vabal.errors import UserError, missing_extra
from vabal.files import file_sha256
from vabal.images import DecodedShards
from vabal.learning.pretraining import training
from vabal.learning.pretraining.training import Checkpoint, Pretraining
from vabal.pools import Pools
from vabal.rounds import pretraining, steps
from vabal.rounds.context import RoundContext
from vabal.rounds.pretraining import Pretrained
from vabal.rounds.steps.plan import learn
from vabal.workspace import Workspace

SETTINGS = {
    "classifier.learner": "probe",
    "pretrain.network": "timm:test_resnet",
    "pretrain.epochs": 2,
    "pretrain.batch_size": 32,
    "pretrain.size": 32,
    "pool.shard_rows": 40,
    "selection.strategy": "margin",
    "selection.budget": 6,
    "compute.device": "cpu",
    "compute.threads": 1,
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    with first_round(tmp_path_factory.mktemp("pretrain"), 90, SETTINGS) as begun:
        yield begun


@pytest.fixture
def place(context: RoundContext) -> Iterator[Workspace]:
    """The workspace, and no pretraining left in it."""
    yield context.workspace
    shutil.rmtree(context.workspace.state / "pretrained", ignore_errors=True)


def pretrain(place: Workspace, known: Pools | None = None, **chosen: object) -> tuple[Pretrained, list[str]]:
    said: list[str] = []
    params = place.params({f"pretrain.{name}": value for name, value in chosen.items()})
    return pretraining.pretrain(place, known or pools.load(place.data), params, said.append), said


def killed(place: Workspace, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A pretraining that keeps every step and dies in one."""
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint.__init__, "__defaults__", (0.0,))
        whole, steps_done = Pretraining._step, []

        def until(self: Pretraining, images: np.ndarray, over: float) -> None:
            steps_done.append(over)
            if len(steps_done) == step:
                raise KeyboardInterrupt
            whole(self, images, over)

        patch.setattr(Pretraining, "_step", until)
        with pytest.raises(KeyboardInterrupt):
            pretrain(place)


def test_it_learns_from_labelled_and_unlabelled_images_and_never_reads_the_holdout_s(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: set[str] = set()
    gather = DecodedShards.gather

    def noting(self: DecodedShards, catalog_rows: pd.DataFrame) -> np.ndarray:
        read.update(catalog_rows["sample_id"])
        return gather(self, catalog_rows)

    monkeypatch.setattr(DecodedShards, "gather", noting)
    pretrain(place)
    known = pools.load(place.data)
    assert read == set(known.labeled["sample_id"]) | set(known.unlabeled["sample_id"])
    assert len(known.holdout) > 10
    assert not read & set(known.holdout["sample_id"])


def test_what_people_rejected_is_not_learnt_from(place: Workspace) -> None:
    known = pools.load(place.data)
    unlabeled = known.unlabeled.copy()
    unlabeled.loc[0, "status"] = pools.REJECTED
    left = pretraining.images_of(replace(known, unlabeled=unlabeled))
    assert len(left) == len(pretraining.images_of(known)) - 1
    assert unlabeled.loc[0, "sample_id"] not in set(left["sample_id"])


def test_killed_and_called_again_it_goes_on_and_makes_the_same_file(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, said = pretrain(place)
    assert [line.partition("]")[0] for line in said] == ["[1/2", "[2/2"]
    again, told = pretrain(place)
    assert (again.before, again.sha256, again.loss, told) == (True, whole.sha256, whole.loss, [])
    whole.weights.unlink()
    killed(place, monkeypatch, 5)
    unfinished = place.state / "pretrained" / "unfinished.pt"
    state = unfinished.read_bytes()
    resumed, said = pretrain(place)
    assert said[0] == "an unfinished pretraining goes on in epoch 2 of 2"
    assert (resumed.weights, resumed.sha256, resumed.before) == (whole.weights, whole.sha256, False)
    assert not list(resumed.weights.parent.glob("*.pt"))
    unfinished.write_bytes(state)  # as a kill between the last two writes leaves it, and one within a write
    unfinished.with_name(f".{unfinished.name}.{'0' * 32}.tmp").write_bytes(state[:99])
    assert pretrain(place)[0].before
    assert sorted(path.name for path in unfinished.parent.iterdir()) == [".lock", whole.weights.name]


def test_an_unfinished_one_goes_on_with_the_images_of_now(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    killed(place, monkeypatch, 3)
    known = pools.load(place.data)
    fewer = replace(known, catalog=known.catalog[known.catalog["sample_id"] != known.unlabeled["sample_id"][0]])
    _, said = pretrain(place, fewer)
    assert said[0] == "an unfinished pretraining goes on in epoch 1 of 2, with the images that are there now"


def test_other_settings_and_a_pool_that_changed_after_the_end_start_anew(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(place, monkeypatch, 3)
    first, said = pretrain(place, temperature=0.3)
    assert said[0] == "an unfinished pretraining had other settings: this one starts anew"
    known = pools.load(place.data)
    fewer = replace(known, catalog=known.catalog[known.catalog["sample_id"] != known.unlabeled["sample_id"][0]])
    second, said = pretrain(place, fewer, temperature=0.3)
    assert said[0].startswith("[1/2]")
    assert (second.images, second.before) == (first.images - 1, False)
    assert second.weights != first.weights
    assert first.weights.exists()


def test_a_state_that_fits_no_more_is_left_and_told(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = pretrain(place)
    first.weights.unlink()
    killed(place, monkeypatch, 3)
    path = place.state / "pretrained" / "unfinished.pt"
    kept = torch.load(path, weights_only=True)
    kept["state"]["encoder"].popitem()
    torch.save(kept, path)
    again, said = pretrain(place)
    assert said[0].endswith("cannot be taken up by the libraries of now: this one starts anew")
    assert again.sha256 == first.sha256


def test_a_label_that_came_changes_nothing(place: Workspace) -> None:
    first, _ = pretrain(place)
    known = pools.load(place.data)
    moved = replace(known, labeled=known.labeled[1:], unlabeled=known.unlabeled)
    assert pretrain(place, moved)[0].before
    assert first.before is False


def test_its_two_lines_make_the_next_round_learn_on_it(context: RoundContext, place: Workspace) -> None:
    made, _ = pretrain(place)
    settings = place.root / "params.yaml"
    before = settings.read_text(encoding="utf-8")
    try:
        said = pretraining.use(place, made)
        assert said == f"{settings} names it: the next round learns with it"
        after = settings.read_text(encoding="utf-8").splitlines()
        assert len(set(after) - set(before.splitlines())) == 2
        bare = [line.partition("  #")[0] for line in after]
        assert f"  name: {made.network}" in bare
        assert f"  weights: file:.vabal/pretrained/{made.weights.name}" in bare  # from the workspace on
        chosen = replace(context, params=place.params())
        refs = learn(steps, chosen, steps.shard_names(chosen), needs_vae=False, needs_embeddings=True)
        backbone = steps.load_classifier(chosen, refs["trained"]).config["backbone"]
        assert (backbone["sha256"], backbone["sizes"]) == (made.sha256, [32])
    finally:
        settings.write_text(before, encoding="utf-8")


def test_the_settings_stay_while_a_round_is_at_work(place: Workspace) -> None:
    made, _ = pretrain(place, epochs=1)
    before = (place.root / "params.yaml").read_bytes()
    with place.lock("vabal round"), pytest.raises(UserError, match="in use by vabal round"):
        pretraining.use(place, made)
    assert (place.root / "params.yaml").read_bytes() == before


def test_two_at_once_are_refused_while_a_round_may_run(place: Workspace) -> None:
    folder = place.state / "pretrained"
    folder.mkdir()
    with (folder / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another `vabal pretrain` is at work"):
            pretrain(place)
    with place.lock("vabal round"):
        assert pretrain(place, epochs=1)[0].images == 72


def test_collapsed_features_are_told(place: Workspace) -> None:
    made, _ = pretrain(place, epochs=1)
    assert not [line for line in made.lines() if "collapsed" in line]
    assert [line for line in replace(made, spread=training.COLLAPSED / 2).lines() if "collapsed" in line]


def test_without_the_extra_one_line_says_how_to_install_it(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    monkeypatch.delitem(sys.modules, "pytorch_metric_learning.losses", raising=False)
    with pytest.raises(ModuleNotFoundError) as error:
        pretrain(place)
    assert missing_extra(error.value) == (
        "this needs pytorch_metric_learning, which is not installed: `pip install 'vabal[pretrain]'`"
    )
    assert not list(Path(place.state / "pretrained").glob("[!.]*"))


def test_the_command_tells_each_epoch_and_the_lines_and_writes_them(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = place.root / "params.yaml"
    before = settings.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["vabal", "-C", str(place.root), "pretrain", "--use", "--json"])
    try:
        with pytest.raises(SystemExit) as end:
            app.main()
        assert not end.value.code
        said = capfd.readouterr()
        document = json.loads(said.out)
        assert document["sha256"] == file_sha256(Path(document["weights"]))
        assert place.params().backbone.weights == document["settings"]["backbone.weights"]
        assert [line.partition("]")[0] for line in said.err.splitlines()[:2]] == ["[1/2", "[2/2"]
        assert said.err.splitlines()[-1] == f"{settings} names it: the next round learns with it"
    finally:
        settings.write_text(before, encoding="utf-8")
