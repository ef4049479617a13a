"""What each stage's key is made of: exactly this, and every ingredient of a real round changes it."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.small_backbones import small_backbone
from tests.support.small_rounds import first_round
from vabal import pools
from vabal.rounds import OpenRound, steps
from vabal.rounds.context import RoundContext
from vabal.rounds.stage_store import STAGES, StageKey
from vabal.rounds.steps import keys
from vabal.rounds.steps.train import with_places

SETTINGS = {
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "pool.shard_rows": 40,
    "selection.budget": 6,
    "selection.strategy": "vabal",
    "probabilities.members": 2,
    "compute.threads": 1,
    "compute.device": "cpu",
}
ARITHMETIC = {"device", "threads"}
# What each stage's key holds: settings and inputs.
MADE_OF = {
    "intake": ({"consensus", "asks"}, {"parent", "round", "inbox"}),
    "train-classifier": (
        {"classifier", "backbone", "finetune", "images", "classes", "cross_fit", "precision", *ARITHMETIC},
        {"labeled", "seed"},
    ),
    "train-committee": ({"dropout", "passes", "members", "auxiliary_loss"}, {"classifier", "seed"}),
    "train-member": ({"dropout", "passes", "members", "auxiliary_loss"}, {"classifier", "seed", "network"}),
    "evaluate": ({"classes", "batch_size"}, {"classifier", "holdout"}),
    "extract-features": ({"images", "batch_size"}, {"classifier", "shard"}),
    "extract-committee": ({"images", "batch_size"}, {"committee", "shard"}),
    "train-vae": ({"vae", *ARITHMETIC}, {"features", "roles", "seed"}),
    "class-terms": ({"probabilities", "products"}, {"vae", "classifier", "features", "labeled", "unlabeled", "seed"}),
    "estimate-probabilities": ({"probabilities", "products"}, {"vae", "features", "seed"}),
    "select-batch": (
        {"selection", "probabilities", "classes", "needs", "frozen", "again", *ARITHMETIC},
        {"features", "committee", "estimated", "unlabeled", "seed", "control", "compared", "opinions"},
    ),
}
SEEDED = {
    *("train-classifier", "train-committee", "train-member", "train-vae", "class-terms", "estimate-probabilities"),
    "select-batch",
}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RoundContext]:
    """The first round of a workspace of 60 images in two shards."""
    with first_round(tmp_path_factory.mktemp("keys"), 60, SETTINGS) as begun:
        yield begun


def ref(stage: str, number: int = 0) -> dict[str, str]:
    """An output of that stage; which one, the number tells."""
    return {"stage": stage, "key": f"{stage}-{number}"}


REFS: Mapping[str, Any] = {
    "classifier": ref("train-classifier"),
    "committee": "the committee",
    "features": ref("extract-features") | {"committee": "its columns"},
    "vae": ref("train-vae"),
    "terms": ref("class-terms"),
    "likelihoods": ref("estimate-probabilities"),
}


def all_keys(context: RoundContext, refs: Mapping[str, Any] = REFS) -> dict[str, StageKey]:
    """The key of every stage that follows intake, of these outputs of the stages before it."""
    classifier, features, encoded = refs["classifier"], [refs["features"]], refs["vae"]
    holdout = with_places(context, "holdout")
    shard = steps.shard_names(context)[0]
    made = [
        keys.classifier_key(context, with_places(context, "labeled")),
        keys.committee_key(context, classifier),
        keys.member_key(context, classifier, "member1"),
        keys.evaluation_key(context, classifier, holdout[holdout["label"].notna()]),
        keys.features_key(context, classifier, shard),
        keys.committee_columns_key(context, refs["committee"], shard),
        keys.vae_key(context, features),
        keys.class_terms_key(context, classifier, features, encoded),
        keys.likelihood_key(context, features[0], encoded),
        keys.selection_key(context, features, {"terms": refs["terms"], "shards": [refs["likelihoods"]]}),
    ]
    return {key.stage: key for key in made}


def changed(context: RoundContext, other: RoundContext, refs: Mapping[str, Any] = REFS) -> set[str]:
    """The stages whose keys are other ones."""
    before, after = all_keys(context), all_keys(other, refs)
    return {stage for stage, key in before.items() if after[stage].digest != key.digest}


def with_settings(context: RoundContext, **settings: Any) -> RoundContext:
    chosen = {name.replace("__", "."): value for name, value in settings.items()}
    return replace(context, params=context.workspace.params(chosen))


def with_pools(context: RoundContext, change: Callable[[pools.Pools], pools.Pools]) -> RoundContext:
    """The same round, had its intake come to these pools."""
    after = change(pools.load(context.view))
    return replace(context, intake_key=steps.intake_again(context.workspace, context.round, after))


def test_there_is_a_row_for_every_stage() -> None:
    assert set(MADE_OF) == set(STAGES)


@pytest.mark.parametrize("stage", MADE_OF)
def test_a_key_is_made_of_these_settings_and_inputs(context: RoundContext, stage: str) -> None:
    found = all_keys(context) | {"intake": keys.intake_key(context.round, context.round.inbox)}
    assert (set(found[stage].settings), set(found[stage].inputs)) == MADE_OF[stage]


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({"classifier__epochs": 7}, {"train-classifier"}),
        ({"classifier__width": 8}, {"train-classifier"}),
        ({"finetune__min_steps": 7}, set()),  # of another learner
        ({"backbone__sizes": [32]}, set()),
        ({"images__bit_depth": 16}, {"train-classifier", "extract-features", "extract-committee"}),
        ({"images__size": 6}, {"train-classifier", "extract-features", "extract-committee"}),
        ({"compute__precision": "bfloat16"}, {"train-classifier"}),
        ({"compute__threads": 2}, {"train-classifier", "train-vae", "select-batch"}),
        ({"features__batch_size": 17}, {"evaluate", "extract-features", "extract-committee"}),
        ({"vae__learning_rate": 0.5}, {"train-vae"}),
        ({"probabilities__draws": 77}, {"class-terms", "estimate-probabilities", "select-batch"}),
        (
            {"probabilities__members": 3},
            {"train-committee", "train-member", "class-terms", "estimate-probabilities", "select-batch"},
        ),
        (
            {"probabilities__precision_from": "cross_fitted"},
            {"train-classifier", "class-terms", "estimate-probabilities", "select-batch"},
        ),
        ({"selection__budget": 5}, {"select-batch"}),
        ({"selection__beta": 0.5}, {"select-batch"}),
        ({"labelling__ask_again": 0.1}, {"select-batch"}),
        ({"labelling__consensus": "majority"}, set()),  # intake's
        ({"labelling__consensus": "crowdlab"}, {"select-batch"}),  # which records what the next night's intake needs
        ({"seed": 6}, SEEDED),
        (
            {"selection__strategy": "margin"},
            {"train-committee", "train-member", "select-batch"},
        ),  # all else is shared by strategies
        ({"storage__bucket": "another"}, set()),
        ({"promotion__min_gain": 0.5}, set()),
    ],
)
def test_a_setting_changes_the_keys_of_what_it_decides(
    context: RoundContext, settings: dict[str, Any], stages: set[str]
) -> None:
    assert changed(context, with_settings(context, **settings)) == stages


def test_fine_tuning_depends_on_its_own_settings_and_on_the_weights_that_it_begins_with(
    context: RoundContext, tmp_path: Path
) -> None:
    own, other = small_backbone(tmp_path), small_backbone(tmp_path, seed=1)
    chosen = {f"backbone__{name}": value for name, value in own.items()} | {"classifier__learner": "finetune"}
    one = with_settings(context, **chosen)
    assert changed(one, with_settings(context, **chosen, finetune__min_steps=7)) == {"train-classifier"}
    assert changed(one, with_settings(context, **{**chosen, "backbone__weights": other["weights"]})) == {
        "train-classifier"
    }
    assert changed(one, with_settings(context, **{**chosen, "backbone__sizes": [48]})) == {"train-classifier"}
    shutil.copy(tmp_path / "small-0.safetensors", tmp_path / "same.safetensors")
    moved = {**chosen, "backbone__weights": f"file:{tmp_path}/same.safetensors"}
    assert changed(one, with_settings(context, **moved)) == set()  # the file's content counts, not its name


def _corrected(after: pools.Pools, pool: str) -> pools.Pools:
    """One label of that pool is another one; there are as many as before."""
    sample_id, label = getattr(after, pool).loc[0, ["sample_id", "label"]]
    events = after.label_events
    corrected = (
        events[events["sample_id"] == sample_id]
        .tail(1)[pools.EVENTS.names]
        .assign(
            label=next(name for name in after.classes if name != label), source="later", imported_at=datetime.now(UTC)
        )
    )
    changed, _ = pools.apply_labels(after, corrected, 1)
    assert len(changed.labeled) == len(after.labeled)
    return changed


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        (lambda after: _corrected(after, "labeled"), {"train-classifier", "class-terms"}),
        (lambda after: _corrected(after, "holdout"), {"evaluate"}),
        (
            lambda after: pools.mark_requested(after, [after.unlabeled["sample_id"].iloc[0]], 1),
            {"train-vae", "class-terms", "select-batch"},
        ),
        (
            lambda after: replace(after, classes=(*after.classes, "another")),
            {"train-classifier", "evaluate", "select-batch"},
        ),
    ],
    ids=["a label", "a label of the holdout", "a role", "a class"],
)
def test_what_came_in_changes_the_keys_of_what_sees_it(
    context: RoundContext, change: Callable[[pools.Pools], pools.Pools], stages: set[str]
) -> None:
    assert changed(context, with_pools(context, change)) == stages


def test_other_bytes_of_an_image_change_the_keys_of_what_sees_them(context: RoundContext) -> None:
    other = replace(context)
    shards = dict.fromkeys(context.report["shards"], "0" * 64)
    other.__dict__["report"] = context.report | {"shards": shards}
    assert changed(context, other) == {"extract-features", "extract-committee"}

    def exchanged(after: pools.Pools) -> pools.Pools:
        catalog = after.catalog.copy()
        catalog.loc[catalog["sample_id"] == after.labeled["sample_id"].iloc[0], "sha256"] = "1" * 64
        return replace(after, catalog=catalog)

    assert changed(context, with_pools(context, exchanged)) == {"train-classifier"}


def test_every_round_has_seeds_of_its_own(context: RoundContext) -> None:
    assert changed(context, replace(context, round=replace(context.round, round=2))) == SEEDED


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("classifier", {"train-committee", "train-member", "evaluate", "extract-features", "class-terms"}),
        ("committee", {"extract-committee"}),
        ("features", {"train-vae", "class-terms", "estimate-probabilities", "select-batch"}),
        ("vae", {"class-terms", "estimate-probabilities"}),
        ("terms", {"select-batch"}),
        ("likelihoods", {"select-batch"}),
    ],
)
def test_another_output_of_an_earlier_stage_changes_the_keys_of_what_takes_it(
    context: RoundContext, name: str, stages: set[str]
) -> None:
    other = "another" if name == "committee" else REFS[name] | {"key": "another"}
    assert changed(context, context, {**REFS, name: other}) == stages


def test_the_committees_columns_and_the_order_of_shards_are_inputs_of_the_selection(context: RoundContext) -> None:
    one, two = REFS["features"], ref("extract-features", 2)
    estimated = {"terms": REFS["terms"], "shards": [REFS["likelihoods"]]}
    made = [
        keys.selection_key(context, [one, two], estimated),
        keys.selection_key(context, [two, one], estimated),
        keys.selection_key(context, [one | {"committee": "others"}, two], estimated),
        keys.selection_key(context, [one, two], None),
    ]
    assert len({key.digest for key in made}) == 4


def test_class_terms_without_a_vae_are_made_of_labels_and_the_classifier_alone(context: RoundContext) -> None:
    made = keys.class_terms_key(context, REFS["classifier"], [REFS["features"]], None)
    assert (set(made.settings), set(made.inputs)) == ({"probabilities"}, {"classifier", "labeled"})


def test_each_shard_has_an_output_of_its_own(context: RoundContext) -> None:
    shards = steps.shard_names(context)
    assert len({keys.features_key(context, REFS["classifier"], shard).digest for shard in shards}) == len(shards) == 2
    assert len({keys.committee_columns_key(context, "c", shard).digest for shard in shards}) == 2


@pytest.mark.parametrize("needs", [{"members": 3}, {"dropout": 0.5}, {"passes": 7}, {"auxiliary_loss": "some"}])
def test_scoring_networks_are_those_that_the_strategy_needs(context: RoundContext, needs: dict[str, Any]) -> None:
    other = replace(context)
    other.learner.__dict__["needs"] = replace(context.needs, **needs)
    assert changed(context, other) == {"train-committee", "train-member", "select-batch"}


def test_intake_depends_on_the_parent_the_round_the_entries_of_the_inbox_and_the_consensus() -> None:
    begun = OpenRound(3, "parent", ("one", "two"), "2026-01-01T00:00:00+00:00")
    made = [
        keys.intake_key(begun, begun.inbox),
        keys.intake_key(begun, ("one",)),
        keys.intake_key(replace(begun, round=4), begun.inbox),
        keys.intake_key(replace(begun, parent="other"), begun.inbox),
        keys.intake_key(begun, begun.inbox, "majority"),
        keys.intake_key(begun, begun.inbox, asks=False),
    ]
    assert len({key.digest for key in made}) == 6
    later = replace(begun, started="2026-01-02T00:00:00+00:00")
    assert keys.intake_key(later, later.inbox).digest == made[0].digest


def test_what_is_asked_again_depends_on_opinions_and_labels(context: RoundContext) -> None:
    asking = with_settings(context, labelling__ask_again=0.2)
    for pool in ("labeled", "holdout"):
        assert "select-batch" in changed(asking, with_pools(asking, partial(_corrected, pool=pool)))
    assert "select-batch" in changed(asking, with_settings(context, labelling__ask_again=0.2, classifier__penalty=2.0))
