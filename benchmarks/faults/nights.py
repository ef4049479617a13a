"""Two nights in a folder, step by step; a copy of it before every step; and what must be so after each.

The bucket is a folder (DVC's local remote) and MLflow a database file, both beside the workspace, so that a copy of
the folder holds everything.
"""

import csv
import json
import os
import shutil
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from PIL import Image

from benchmarks.faults import children
from benchmarks.faults.children import Ended
from vabal import pools, rounds
from vabal.files import file_sha256
from vabal.labels.oracle import answer
from vabal.workspace import Workspace

SETTINGS = {
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 15,
    "vae.epochs": 1,
    "vae.min_steps": 5,
    "probabilities.draws": 2,
    "probabilities.members": 1,
    "selection.budget": 4,
    "compute.threads": 1,
    "classifier.learner": "scratch",
    "compute.device": "cpu",
    "pretrain.network": "timm:test_resnet",
    "pretrain.epochs": 2,
    "pretrain.batch_size": 16,
    "pretrain.size": 32,
    "promotion.min_gain": -1,
    "promotion.confidence": 0.5,
    "promotion.max_recall_drop": 1,
}
STRATEGIES = ("vabal", "margin", "random")
# The steps of two nights: a name, and the command.
STEPS: dict[str, tuple[str, ...]] = {
    "init": ("init", "--source", "npz:../some.npz", "--initial", "9", "--holdout", "0.4", "--seed", "5"),
    "pretrain": ("pretrain",),
    "round": ("round",),
    "import": ("labels", "import", "../answers/requests.csv"),
    "ingest": ("ingest", "../camera"),
    "classes": ("classes", "merge", "1", "2", "bright"),
    "second round": ("round",),
    "promote": ("promote", "--version", "1"),
    "second promote": ("promote", "--version", "2"),
    "rollback": ("rollback",),
}
# The same sources where images stay in S3.
IN_BUCKET = {"npz:../some.npz": "s3://photos/some", "../camera": "s3://photos/camera"}


@dataclass
class Nights:
    """`folder/work` is the workspace; `bases` has a copy of `folder` before each step, `facts` what was so after it."""

    folder: Path
    strategy: str
    photos: Mapping[str, str] = field(default_factory=dict)  # the environment where images stay in S3
    bases: dict[str, Path] = field(default_factory=dict)
    facts: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.folder / "work"

    @property
    def environment(self) -> dict[str, str]:
        return {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db", **self.photos}

    def words(self, step: str) -> list[str]:
        words = list(STEPS[step])
        if self.photos:
            words = [IN_BUCKET.get(word, word) for word in words]
        if step == "init":
            chosen = {**SETTINGS, "selection.strategy": self.strategy}
            words += [word for name, value in chosen.items() for word in ("--set", f"{name}={value}")]
        return words

    def run(self, step: str, **options: Any) -> Ended:
        return children.run(self.root, *self.words(step), environment=self.environment, **options)

    def vabal(self, *words: str, **options: Any) -> Ended:
        return children.run(self.root, *words, environment=self.environment, **options)

    def run_well(self, step: str, first: Callable[[], object]) -> None:
        """The step undisturbed, after `first`. Raises RuntimeError if it fails."""
        first()
        _done(self.run(step))

    def restore(self, step: str) -> None:
        """As it was before the step."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.bases[step], self.folder, symlinks=True, copy_function=_copy)

    def prepare(self, store: Path) -> None:
        """Live through all steps undisturbed, keeping a copy before each. Raises RuntimeError if one fails."""
        _empty(self.folder)
        address = self.environment["MLFLOW_TRACKING_URI"]
        children.do(lambda: MlflowClient(tracking_uri=address, registry_uri=address).search_registered_models())
        for step in STEPS:
            if step == "import":
                _done(self.vabal("labels", "export", "../answers"))
                answer(self.folder / "answers" / "requests.csv", Workspace(self.root))
            self.bases[step] = store / step.replace(" ", "-")
            shutil.copytree(self.folder, self.bases[step], symlinks=True)
            ended = _done(self.run(step))
            self.calls[step], self.seconds[step] = ended.calls, ended.seconds
            self.facts[step] = facts(self.folder)


def _copy(source: str, target: str) -> None:
    shutil.copy2(source, target)


def _done(ended: Ended) -> Ended:
    if ended.code != 0:
        raise RuntimeError(f"the undisturbed run failed ({ended.code}): {ended.said}")
    return ended


def _empty(folder: Path) -> None:
    """An empty workspace folder beside a source of 60 images, and a camera's folder of three."""
    root = folder / "work"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text(
        f"[core]\n    remote = vabal\n['remote \"vabal\"']\n    url = {folder / 'pools'}\n"
    )
    save_images(folder / "some.npz")
    save_camera(folder / "camera")


def save_images(path: Path) -> None:
    """Sixty images of three classes: a class is a brightness."""
    labels = np.arange(60) % 3
    pixels = np.random.default_rng(0).integers(0, 60, (60, 8, 8)) + 90 * labels[:, None, None]
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)


def save_camera(folder: Path) -> None:
    """Three images, and one that is cut."""
    generator = np.random.default_rng(1)
    folder.mkdir()
    for name in "abc":
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{name}.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:60])


# -- what is so ---------------------------------------------------------------------------------------------------


def facts(folder: Path, registry: Sequence[str] | None = None) -> dict[str, Counter[str]]:
    """What a user counts on, as bags of words: equal after a fault that was got over, and after none.

    A word too many is something doubled, one too few is something lost. `registry`: what an MLflow server tells.
    """
    root = folder / "work"
    data = root / "data"
    bags: dict[str, Counter[str]] = {}
    bags["picks"] = Counter(
        f"{number} {file_sha256(path)}"
        for number in rounds.manifest_numbers(data)
        if (path := rounds.round_folder(data, number) / "selection.parquet").exists()
    )
    now = pools.load(data)
    events = now.label_events[["sample_id", "label", "annotator"]].astype(str)
    bags["labels"] = Counter(" ".join(row) for row in events.itertuples(index=False))
    bags["images"] = Counter(now.catalog["sample_id"])
    bags["classes"] = Counter([*now.classes, *map(str, pools.changes_of(now.class_events))])
    bags["tags"] = Counter(_git(root, "tag"))
    bags["commits"] = Counter(_git(root, "log", "--format=%s"))
    bags["changed"] = Counter(_git(root, "status", "--porcelain"))
    bags["inbox"] = Counter(path.parent.name for path in (root / "inbox").glob("*/[0-9]*"))
    bags["quarantine"] = Counter(_rows(root / "quarantine" / "quarantine.csv"))
    bags["backbones"] = Counter(_backbones(root / ".vabal" / "pretrained"))
    bags["decisions"] = Counter(_decisions(root))
    bags["left"] = Counter(
        path.name.split(".")[0] for pattern in ("publish*", "init.*") for path in (root / ".vabal").glob(pattern)
    )
    bags["mlflow"] = Counter(_registry(folder / "mlflow.db") if registry is None else registry)
    return bags


def _rows(path: Path) -> list[str]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        return [row[1] for row in list(csv.reader(stream))[1:]]


def _backbones(folder: Path) -> list[str]:
    """What pretraining left, each file with its content: an unfinished state, or half a file, is one too many."""
    files = [path for path in folder.glob("*") if path.name != ".lock"]
    return [f"{path.name} {file_sha256(path)}" for path in files]


def _decisions(root: Path) -> list[str]:
    path = root / "promotions.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [f"{entry['action']} {entry['version']}" for entry in entries]


def _registry(path: Path) -> list[str]:
    """MLflow's runs, versions and aliases, without versions that are marked as not counting."""
    if not path.exists():
        return []
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master")}
        if "runs" not in tables:
            return []
        runs = database.execute("select name, status from runs where lifecycle_stage = 'active'").fetchall()
        versions = database.execute(
            "select version from model_versions where current_stage != 'Deleted_Internal' and version not in "
            "(select version from model_version_tags where key = 'vabal.status')"
        ).fetchall()
        aliases = database.execute("select alias, version from registered_model_aliases").fetchall()
    return in_order(runs, [version for (version,) in versions], aliases)


def in_order(runs: Iterable[tuple[str, str]], versions: Iterable[int], aliases: Iterable[tuple[str, int]]) -> list[str]:
    """What counts in MLflow; a version by its place among those that count, for others may have taken numbers."""
    places = {version: place for place, version in enumerate(sorted(versions), start=1)}
    return [
        *(f"{name} {status}" for name, status in runs),
        *(f"version {place}" for place in places.values()),
        *(f"{alias} is {places.get(version, 'none that counts')}" for alias, version in aliases),
    ]


def _git(root: Path, *arguments: str) -> list[str]:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(["git", *arguments], cwd=root, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.splitlines()
