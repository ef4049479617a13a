"""One whole round without a server: the digits, tiny settings, and the numbers that it gave when it was recorded.

`python tests/golden/test_golden_round.py` records them again, after a change that is meant to move them.
"""

import json
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from vabal import audit, rounds
from vabal.adapters.versioning import Versioning
from vabal.rounds import record, steps, tables
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.initial import initialise
from vabal.strategies.coverage import departures
from vabal.workspace import Workspace

GOLDEN = Path(__file__).with_name("round.json")
SETTINGS = {
    "classifier.width": 4,
    "classifier.epochs": 12,
    "classifier.batch_size": 32,
    "classifier.learning_rate": 0.02,  # gentle: rounding must not grow into other predictions
    "vae.epochs": 2,
    "vae.min_steps": 60,
    "probabilities.draws": 10,
    "selection.budget": 20,
    "selection.control_share": 0.0,  # recorded before there was an arm, by all digits
    "selection.record": "full",
    "compute.threads": 1,
    "compute.device": "cpu",
}


def run_round(root: Path) -> dict[str, Any]:
    """Round 0 and round 1 in `root`; what is worth comparing."""
    versions = Versioning(root)
    initialise(
        root,
        source="digits",
        imbalance="dominant:0:0.3",
        initial=60,
        holdout=0.2,
        seed=None,
        classes=None,
        name=None,
        settings=SETTINGS,
        versions=versions,
        prepare=lambda _storage: None,
    )
    place = Workspace(root)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    begun = rounds.open_round(place, [], now)
    params = place.params()
    context = RoundContext(place, params, begun, own_store(place), steps.intake(place, begun))
    trained = steps.train_classifier(context)
    evaluated = steps.evaluate(context, trained)
    extracted = [steps.extract_features(context, trained, shard) for shard in steps.shard_names(context)]
    encoded = steps.train_vae(context, extracted)
    terms = steps.estimate_class_terms(context, trained, extracted, encoded)
    estimated = {"terms": terms, "shards": [steps.estimate_likelihood(context, ref, encoded) for ref in extracted]}
    selected = steps.select_batch(context, extracted, estimated)
    refs = {"evaluated": evaluated, "estimated": estimated, "selected": selected}
    model = {"name": "none", "version": "1", "sha256": "0" * 64, "files": {"MLmodel": "0" * 64}}
    plan, contents = record.assemble(context, refs, model, mlflow_run="0" * 32, flow_run=None, promotions=None, now=now)
    rounds.stage(place, plan, contents)
    rounds.carry_out(place, versions, push=False)

    at_random = replace(context, params=place.params({"selection.strategy": "random"}))
    drawn = steps.selection_folder(at_random, steps.select_batch(at_random, extracted, None))
    picks = tables.read_selection(rounds.round_folder(place.data, 1) / "selection.parquet")
    return {
        "metrics": {metric.name: metric.value for metric in steps.evaluation(context, evaluated)},
        "prior": steps.class_terms(context, terms).prior_C.tolist(),
        "precision": steps.class_terms(context, terms).precision_C.tolist(),
        "picks": picks["sample_id"].tolist(),
        "departures": _departures(place, picks),
        "picks_at_random": tables.read_selection(drawn / "selection.parquet")["sample_id"].tolist(),
    }


def _departures(place: Workspace, picks: pd.DataFrame) -> list[int]:
    """Where the picks leave the order in which the search among the shortlist takes them."""
    folder = rounds.round_folder(place.data, 1)
    ids, features_N_D, distance_N = tables.read_shortlist(folder / "shortlist.parquet")
    scores = pd.read_parquet(folder / "candidates.parquet").set_index("sample_id")["score"]
    assert scores[ids].is_monotonic_decreasing
    picked = pd.Index(ids).get_indexer(pd.Index(picks["sample_id"]))
    return departures(scores[ids].to_numpy(), features_N_D, picked, labeled_distance_N=distance_N)


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("golden")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
            patch.delenv(name, raising=False)
        return root, run_round(root)


def test_a_round_gives_the_recorded_numbers(golden: tuple[Path, dict[str, Any]]) -> None:
    _, found = golden
    expected = json.loads(GOLDEN.read_text())
    # Other processors add in another order, and training makes much of it: two threads instead of one moved these by up
    # to 0.006, 0.034 and 0.037, and most of the picks. What no training decides must be the same everywhere.
    assert found["metrics"]["holdout/accuracy"] == pytest.approx(expected["metrics"]["holdout/accuracy"], abs=0.06)
    assert found["prior"] == pytest.approx(expected["prior"], abs=0.08)
    assert found["precision"] == pytest.approx(expected["precision"], abs=0.1)
    assert len(set(found["picks"])) == len(expected["picks"]) == SETTINGS["selection.budget"]
    assert found["departures"] == []
    assert found["picks_at_random"] == expected["picks_at_random"]


def test_the_recorded_round_is_intact_by_its_own_audit(golden: tuple[Path, dict[str, Any]]) -> None:
    root, _ = golden
    versions = Versioning(root)
    tags = {name: versions.tag_message(name) for name in versions.tags()}
    report = audit.verify(root / "data", tags)
    assert report.ok, report.findings
    assert sorted(tags) == ["round/0000", "round/0001"]


def test_the_same_round_elsewhere_has_the_same_bits(golden: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    _, found = golden
    assert run_round(tmp_path) == found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        GOLDEN.write_text(json.dumps(run_round(Path(folder)), indent=1) + "\n")
