"""Nights without servers: sixty small images, one epoch, real git and DVC, a folder as the bucket. A second each."""

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.support.repositories import git
from vabal import pools, rounds
from vabal.adapters.versioning import Versioning
from vabal.labels import arrivals, inbox
from vabal.promotion import agreement
from vabal.rounds import Plan, record, requests, steps
from vabal.rounds.context import RoundContext, StageReference, own_store
from vabal.rounds.initial import initialise
from vabal.workspace import Workspace

SETTINGS = {
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 1,
    "vae.epochs": 1,
    "vae.min_steps": 5,
    "probabilities.draws": 2,
    "probabilities.members": 2,
    "selection.budget": 4,
    "selection.strategy": "random",
    "selection.control_share": 0.0,
    "compute.threads": 1,
    "compute.device": "cpu",
}
CLASSES = ("0", "1", "2")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def without_servers(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))]:
        patch.delenv(name)
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        patch.setenv(name, os.devnull)


def make(
    folder: Path, *, labelled: bool = True, holdout: float = 0.2, settings: dict[str, Any] | None = None
) -> Workspace:
    """Round 0 in `folder/work`, whose bucket is `folder/pools`."""
    root = folder / "work"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = vabal\n['remote \"vabal\"']\n    url = {folder / 'pools'}\n"
    )
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    if labelled:
        np.savez(folder / "some.npz", images=pixels, labels=np.arange(60) % 3)
    else:
        np.savez(folder / "some.npz", images=pixels)
    versions = Versioning(root)
    initialise(
        root,
        source=f"npz:{folder / 'some.npz'}",
        imbalance=None,
        initial=9,
        holdout=holdout,
        seed=5,
        classes=None if labelled else list(CLASSES),
        name=None,
        settings=SETTINGS | (settings or {}),
        versions=versions,
        prepare=lambda _storage: None,
    )
    versions.push()
    return Workspace(root)


def begin(place: Workspace, strategy: str | None = None) -> RoundContext:
    params = place.params({"selection.strategy": strategy} if strategy else None)
    begun = rounds.open_round(place, requests.pending(place), datetime.now(UTC))
    return RoundContext(place, params, begun, own_store(place), steps.intake(place, begun))


def learn(context: RoundContext) -> dict[str, Any]:
    """All learning stages; their outputs by name, as the record wants them."""
    trained = steps.train_classifier(context)
    evaluated = steps.evaluate(context, trained)
    extracted = [steps.extract_features(context, trained, shard) for shard in steps.shard_names(context)]
    estimated = _estimate(context, trained, extracted) if context.needs.estimated else None
    selected = steps.select_batch(context, extracted, estimated)
    return {"evaluated": evaluated, "estimated": estimated, "selected": selected}


def _estimate(context: RoundContext, trained: StageReference, extracted: Sequence[StageReference]) -> dict[str, Any]:
    encoded = steps.train_vae(context, extracted) if context.needs.vae else None
    terms = steps.estimate_class_terms(context, trained, extracted, encoded)
    shards = [steps.estimate_likelihood(context, ref, encoded) for ref in extracted if encoded]
    return {"terms": terms, "shards": shards}


def stage(place: Workspace, strategy: str | None = None, *, git_remote: str | None = None) -> Plan:
    """A night up to its staged publication."""
    context = begin(place, strategy)
    model = {"name": "none", "version": str(context.round.round), "sha256": "0" * 64}
    plan, contents = record.assemble(
        context,
        learn(context),
        model,
        mlflow_run="0" * 32,
        flow_run=None,
        now=datetime.now(UTC),
        promotions=agreement.anchored(place.root, Versioning(place.root)),
    )
    plan = replace(plan, git_remote=git_remote)
    rounds.stage(place, plan, contents)
    return plan


def night(place: Workspace, strategy: str | None = None, *, git_remote: str | None = None) -> Plan:
    """A whole night."""
    stage(place, strategy, git_remote=git_remote)
    done = rounds.carry_out(place, Versioning(place.root))
    assert done is not None
    return done


def pending(place: Workspace) -> list[str]:
    return arrivals.pending(place.inbox)


def is_published(repository: Path, tag: str) -> bool:
    return tag in git(repository, "tag").split()


def pictures(folder: Path) -> Path:
    """Three new images, the same ones each time."""
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(100 + number).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def take(place: Workspace, labels: dict[str, str], file: str = "labels.csv") -> str:
    """Labels into the inbox; the name they have there."""
    rows = [
        {"where": f"line {line}", "sample_id": name, "label": label, "annotator": "ada", "problem": None}
        for line, (name, label) in enumerate(labels.items(), start=2)
    ]
    report = inbox.take_labels(
        place.inbox,
        pools.load(place.data),
        pd.DataFrame(rows, dtype=object),
        file=file,
        content=repr(sorted(labels.items())).encode(),
        when=NOW,
    )
    assert report.name is not None
    return report.name


def asked(place: Workspace, purpose: str = "label") -> list[str]:
    table = pools.open_requests(pools.load(place.data))
    return list(table.loc[table["purpose"] == purpose, "sample_id"])
