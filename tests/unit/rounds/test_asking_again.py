"""A night asks again: from the labels that came to what it publishes, which the audit derives again."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.support.small_backbones import small_backbone
from tests.support.small_pools import WHEN
from tests.support.small_rounds import first_round, learned
from vabal import audit, pools
from vabal.adapters.label_studio.syncing import guesses_of
from vabal.audit.replay import replay
from vabal.labels import again, answers, arrivals
from vabal.labels.again import choose
from vabal.labels.export import export_requests
from vabal.rounds import OpenRound, record, requests, steps, tables
from vabal.rounds.believed import believed
from vabal.rounds.context import RoundContext, own_store
from vabal.workspace import Workspace

MODEL = {"name": "vabal-classifier", "version": "1", "sha256": "0" * 64, "files": {}}


@pytest.fixture(scope="module", params=["probe", "scratch"])
def context(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    """Sixty labelled images of three greys; ann gives three another label, and eve contradicts her on one of these."""
    tmp_path = tmp_path_factory.mktemp("asking")
    labels = np.arange(90) % 3
    noise = np.random.default_rng(0).integers(0, 30, (90, 8, 8))
    grey = (labels[:, None, None] * 80 + noise).astype(np.uint8)
    settings = {f"backbone.{name}": value for name, value in small_backbone(tmp_path).items()} | {
        "classifier.learner": request.param,
        "classifier.network": "resnet10",
        "classifier.width": 4,
        "classifier.epochs": 2,
        "selection.strategy": "margin",
        "selection.budget": 8,
        "selection.control_share": 0.1,
        "labelling.ask_again": 0.5,
    }
    with first_round(tmp_path, 90, settings, arrays={"images": grey, "labels": labels}, initial=60) as begun:
        place = begun.workspace
        made = pools.load(place.data)
        wrong = {
            name: str((int(label) + 1) % 3)
            for name, label in made.labeled.iloc[::20][["sample_id", "label"]].to_numpy()
        }
        file = tmp_path / "labels.csv"
        first = next(iter(wrong))
        lines = [
            *(f"{name},{label},ann" for name, label in wrong.items()),
            f"{first},{(int(wrong[first]) + 1) % 3},eve",
        ]
        file.write_text("\n".join(lines))
        answers.import_labels(place.inbox, made, file, WHEN)
        night = replace(begun.round, inbox=tuple(arrivals.pending(place.inbox)))
        yield replace(begun, round=night, intake_key=steps.intake(place, night))


@pytest.fixture(scope="module")
def after(context: RoundContext) -> pools.Pools:
    """The pools of its round, which lies in `data/` as it is published: for tests that change nothing there."""
    refs = learned(context)
    now = datetime(2026, 1, 1, 3, tzinfo=UTC)
    _, contents = record.assemble(context, refs, MODEL, mlflow_run="0" * 32, flow_run=None, promotions=None, now=now)
    for name, content in contents.items():
        path = context.workspace.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        shutil.copyfile(content, path)
    arrivals.remove(context.workspace.inbox, context.round.inbox)
    said = steps.selection_in_words(context, refs["selected"])
    assert said.startswith("4 picked by margin and 1 drawn uniformly, 3 asked about again")
    return pools.load(context.workspace.data)


def test_a_night_asks_again_and_the_audit_derives_what(
    context: RoundContext, after: pools.Pools, tmp_path: Path
) -> None:
    place = context.workspace
    wrong = after.label_events.loc[after.label_events["annotator"] == "ann", "sample_id"].tolist()
    assert after.asked_again["reason"].tolist() == ["disputed", "suspected", "suspected"]
    assert after.asked_again["sample_id"].tolist()[0] == wrong[0]
    assert set(after.asked_again["sample_id"]) == set(wrong)
    report = audit.verify(place.data, images=False)
    assert report.ok, report.findings
    assert len(requests.picked_ids(place).ids) == 8
    assert requests.answers(place).share == 0
    assert export_requests(after, place.data, tmp_path / "out", place.inbox).again == 3
    asked = pools.open_requests(after)
    guesses = guesses_of(place.data, asked, after)
    assert set(asked["sample_id"]) <= set(guesses)  # none stands out among those that people see
    assert {guess.model for guess in guesses.values()} == {"vabal-classifier version 1"}
    assert all(1 / 3 <= guess.score <= 1 for guess in guesses.values() if guess.score is not None)


@pytest.mark.usefixtures("after")
@pytest.mark.parametrize("context", ["probe"], indirect=True)
def test_a_replay_asks_the_same_again_and_tells_where_it_does_not(
    context: RoundContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = Workspace(tmp_path / "scratch")
    shutil.copytree(context.workspace.data, scratch.data)
    found = replay(scratch, 1, context.workspace.root)
    assert "3 asked about again: the same, in the same order, for the same reasons" in found.lines()
    assert (found.same_picks, found.same_again, found.other_files) == (True, True, ())
    shutil.rmtree(scratch.state)
    monkeypatch.setattr(again, "choose", lambda *told: choose(*told).iloc[:2])
    monkeypatch.setattr(tables, "write_held_out", lambda _ids, _posteriors, path: path.write_bytes(b"another"))
    found = replay(scratch, 1, context.workspace.root)
    assert "3 asked about again: 2 of them the same" in found.lines()
    assert "held_out.parquet: other bytes" in found.lines()
    assert (found.same_again, found.other_files) == (False, ("control.parquet", "held_out.parquet"))  # ranks move


@pytest.mark.parametrize("context", ["probe"], indirect=True)
def test_the_next_night_weighs_people_by_what_the_round_recorded(
    context: RoundContext, after: pools.Pools, tmp_path: Path
) -> None:
    place, classes = Workspace(tmp_path / "next"), pools.Classes.of(after)
    shutil.copytree(context.workspace.root, place.root, symlinks=True)
    found = believed(place.data, 1, classes)
    assert found is not None
    asked = set(after.unlabeled.loc[after.unlabeled["status"] == pools.REQUESTED, "sample_id"])
    assert set(found.sample_ids) == asked | set(after.labeled["sample_id"])
    pick = sorted(asked)[0]
    likely = str(found.posterior_N_C[list(found.sample_ids).index(pick)].argmax())
    other = str((int(likely) + 1) % 3)
    both = after.labeled[~after.labeled["sample_id"].isin(after.asked_again["sample_id"])].head(12)
    agreed = [
        f"{name},{label},{who}" for name, label in both[["sample_id", "label"]].to_numpy() for who in ("ann", "bob")
    ]
    file = place.root / "more.csv"
    file.write_text("\n".join([*agreed, f"{pick},{likely},ann", f"{pick},{other},bob"]))
    answers.import_labels(place.inbox, after, file, WHEN)
    night = OpenRound(2, "0" * 64, tuple(arrivals.pending(place.inbox)), "2026-01-02T00:00:00+00:00")
    for rule, label in (("majority", other), ("crowdlab", likely)):
        view = own_store(place).get("intake", steps.intake(place, night, rule))
        assert view is not None
        assert pools.load(view).labeled.set_index("sample_id")["label"][pick] == label
