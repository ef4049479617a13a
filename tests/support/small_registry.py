"""A workspace with a holdout and real git, and a registry in memory: what promotions need."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd

from tests.support.small_manifests import manifest as small_manifest
from vabal.adapters.versioning import Versioning
from vabal.errors import UserError
from vabal.files import canonical_json, file_sha256
from vabal.promotion import agreement, champion, comparison
from vabal.promotion import registry as promotion_registry
from vabal.promotion.champion import promote, read_record, rollback
from vabal.promotion.registry import PromotionContext
from vabal.settings.models import PromotionSettings

NOW = datetime(2026, 3, 4, 2, 0, tzinfo=UTC)
CLASSES = ["crack", "dust", "good"]
SETTINGS = PromotionSettings()
HOLDOUT = {f"h{index:03d}": CLASSES[index % 3] for index in range(300)}


@dataclass(frozen=True)
class Registered:
    version: str
    round: int
    weights_sha256: str
    tags: Mapping[str, str]
    files: Mapping[str, str] = field(default_factory=dict)


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@dataclass
class MemoryRegistry:
    """A registry's contract in memory. `steps` counts what it changed."""

    versions: dict[str, Registered] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    before_change: Callable[[], None] = lambda: None

    def version(self, version: str) -> Registered:
        if version not in self.versions:
            raise UserError(f"no version {version}")
        return self.versions[version]

    def version_by_alias(self, alias: str) -> Registered | None:
        return self.versions[self.aliases[alias]] if alias in self.aliases else None

    def all_tags(self) -> dict[str, Mapping[str, str]]:
        return {name: version.tags for name, version in self.versions.items()}

    def files(self, version: str) -> Mapping[str, str]:
        return self.versions[version].files

    def tag_version(self, version: str, tags: Mapping[str, str]) -> None:
        self.before_change()
        old = self.versions[version]
        self.versions[version] = replace(old, tags={**old.tags, **tags})

    def set_alias(self, alias: str, version: str) -> None:
        self.before_change()
        self.aliases[alias] = version


class CutHistory(Versioning):
    """The real git, with a place to be killed before and after a commit."""

    before_change: Callable[[], None] = staticmethod(lambda: None)

    def commit(self, paths: list[str], message: str) -> bool:
        self.before_change()
        done = super().commit(paths, message)
        self.before_change()
        return done

    def tag(self, name: str, message: str) -> None:
        super().tag(name, message)
        self.before_change()


@dataclass
class Place:
    office: PromotionContext
    registry: MemoryRegistry
    history: CutHistory

    @property
    def root(self) -> Path:
        return self.office.root

    @property
    def data(self) -> Path:
        return self.root / "data"

    def publish(self, number: int, right: Mapping[str, float]) -> str:
        """Round `number` as it would be published: its version is right for the given share of each class."""
        counters = dict.fromkeys(CLASSES, 0)
        rows = []
        for sample, label in sorted(HOLDOUT.items()):
            wrong = CLASSES[(CLASSES.index(label) + 1) % 3]
            rows.append((sample, label, label if counters[label] < round(100 * right[label]) else wrong))
            counters[label] += 1
        anchor = agreement.anchored(self.root, self.history)
        folder = self.data / "rounds" / f"{number:04d}"
        folder.mkdir(parents=True)
        table = pd.DataFrame(rows, columns=["sample_id", "label", "predicted_class"])
        table.to_parquet(folder / comparison.PREDICTIONS)
        weights = hashlib.sha256(str(number).encode()).hexdigest()
        files = {comparison.PREDICTIONS: file_sha256(folder / comparison.PREDICTIONS)}
        model = {"artifacts/weights.safetensors": weights, "serving.py": hashlib.sha256(b"serve").hexdigest()}
        said = {"version": str(number), "sha256": weights, "files": model}
        manifest = small_manifest(number, model=said, files=files, promotions=anchor)
        (folder / "manifest.json").write_bytes(canonical_json(manifest))
        self.registry.versions[str(number)] = Registered(str(number), number, weights, {}, model)
        self.registry.aliases["challenger"] = str(number)
        return str(number)

    def publish_challenger(self) -> str:
        """A round whose version is better than any, made without a look at the record."""
        number = max((int(path.name) for path in (self.data / "rounds").iterdir()), default=0) + 1
        with mock.patch.object(agreement, "anchored", return_value=None):
            return self.publish(number, even(1.0))

    def promote(self, version: str | None = None) -> promotion_registry.Outcome:
        return promote(self.office, self.data, SETTINGS, now=NOW, version=version)

    def rollback(self) -> promotion_registry.Outcome:
        return rollback(self.office, now=NOW)

    def actions(self) -> list[str]:
        return [entry.action for entry in read_record(self.root)]

    def git(self, *arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True).stdout

    def state(self) -> dict[str, Any]:
        """All that a promotion changes."""
        return {
            "record": (self.root / champion.RECORD).read_bytes(),
            "committed": self.git("show", f"HEAD:{champion.RECORD}").encode(),
            "aliases": dict(self.registry.aliases),
            "tags": {name: dict(version.tags) for name, version in self.registry.versions.items()},
            "git tags": self.history.tag_messages("promotion/*"),
            "begun": (self.root / ".vabal" / "deciding.json").exists(),
        }


def make_place(root: Path) -> Place:
    root.mkdir(exist_ok=True)
    for command in (["init", "-q"], ["config", "user.name", "Ada"], ["config", "user.email", "ada@example.org"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    (root / "params.yaml").write_text("{}\n")
    (root / ".gitignore").write_text("/data\n/.vabal\n")
    subprocess.run(["git", "add", "params.yaml", ".gitignore"], cwd=root, check=True)
    subprocess.run(["git", "commit", "-q", "-m", "start"], cwd=root, check=True)
    data = root / "data"
    data.mkdir()
    (data / "classes.json").write_text(json.dumps(CLASSES))
    pd.DataFrame({"sample_id": HOLDOUT.keys(), "label": HOLDOUT.values()}).to_parquet(data / "holdout.parquet")
    registry, history = MemoryRegistry(), CutHistory(root)
    return Place(PromotionContext(root, registry, history, history.identity()), registry, history)


def even(value: float) -> dict[str, float]:
    return dict.fromkeys(CLASSES, value)


def cut(place: Place, after: int) -> None:
    """Die at the change number `after` of all that come."""
    left = [after]

    def count() -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    place.registry.before_change = count
    place.history.before_change = count


def mend(place: Place) -> None:
    place.registry.before_change = lambda: None
    place.history.before_change = lambda: None
