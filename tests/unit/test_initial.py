"""Round 0: what it publishes, that it can be made again to the byte, and that nothing is left of one that failed."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vabal import audit, pools, rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.initial import initialise
from vabal.params import StorageSettings, load


@pytest.fixture(autouse=True)
def without_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def source(tmp_path: Path) -> str:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "some.npz", images=generator.integers(0, 256, (60, 8, 8), dtype=np.uint8), labels=labels)
    return f"npz:{tmp_path / 'some.npz'}"


def make(root: Path, source: str, **changes: Any) -> list[str]:
    root.mkdir(exist_ok=True)
    arguments: dict[str, Any] = {
        **{"imbalance": None, "initial": 9, "holdout": 0.2, "seed": 5, "classes": None, "name": None, "settings": {}},
        **{"versions": Versioning(root), "prepare": _unasked},
    }
    return initialise(root, source=source, **(arguments | changes))


def _unasked(_: StorageSettings) -> None:
    raise AssertionError("no storage is configured")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def test_round_0_is_published_under_a_tag_that_names_its_manifest(tmp_path: Path, source: str) -> None:
    root = tmp_path / "made"
    said = make(root, source, name="wafers", settings={"selection.budget": 7})
    assert said[0] == "60 images from npz, 3 classes: labelled 9, unlabelled 39, holdout 12"
    assert said[-1].startswith("git tag round/0000; S3 is not up")
    head = rounds.head(root / "data")
    assert (head.round, head.manifest["parent"], head.manifest["seed"]) == (0, None, 5)
    assert head.manifest["counts"]["labeled"] == 9
    assert f"manifest sha256:{head.digest}" in git(root, "tag", "--list", "--format=%(contents)", "round/0000")
    settings = load(root / "params.yaml")
    assert (settings.workspace.name, settings.seed, settings.selection.budget) == ("wafers", 5, 7)
    assert (settings.images.size, settings.images.channels) == (8, 1)
    assert git(root, "status", "--porcelain") == ""
    versions = Versioning(root)
    assert audit.verify(root / "data", {name: versions.tag_message(name) for name in versions.tags()}).ok
    assert len((root / ".vabal" / "oracle.csv").read_text().splitlines()) == 1 + 39
    assert sorted(path.name for path in (root / ".vabal").iterdir()) == ["dvc", "lock", "oracle.csv", "push-deferred"]


def test_the_same_arguments_make_the_same_bytes_and_another_seed_others(tmp_path: Path, source: str) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, source)
    assert files(tmp_path / "one" / "data") == files(tmp_path / "two" / "data")
    assert (tmp_path / "one" / "data.dvc").read_bytes() == (tmp_path / "two" / "data.dvc").read_bytes()
    make(tmp_path / "three", source, seed=6)
    assert files(tmp_path / "three" / "data") != files(tmp_path / "one" / "data")


def test_a_clone_without_its_pools_makes_them_again_or_stays_as_it_was(tmp_path: Path, source: str) -> None:
    make(tmp_path / "made", source)
    git(tmp_path, "clone", "--quiet", "made", "clone")
    clone = tmp_path / "clone"
    with pytest.raises(UserError, match=r"that makes other pools than data\.dvc pins"):
        make(clone, source, seed=None, initial=10)
    assert not (clone / "data").exists()
    assert git(clone, "status", "--porcelain") == ""
    assert make(clone, source, seed=None)[-1] == "data/ is what data.dvc pins"
    assert files(clone / "data") == files(tmp_path / "made" / "data")
    assert git(clone, "status", "--porcelain") == ""


def test_settings_that_are_there_are_not_overridden(tmp_path: Path, source: str) -> None:
    root = tmp_path / "made"
    root.mkdir()
    (root / "params.yaml").write_text("seed: 5\nimages: {size: 8, channels: 1}\n")
    with pytest.raises(UserError, match="exists: change the settings there"):
        make(root, source)
    make(root, source, seed=None)
    assert (root / "params.yaml").read_text() == "seed: 5\nimages: {size: 8, channels: 1}\n"
    with pytest.raises(UserError, match="has pools already"):
        make(root, source, seed=None)


def test_storage_that_is_away_is_told_before_anything_is_made(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")

    def away(settings: StorageSettings) -> None:
        raise Unavailable(f"no bucket {settings.bucket}")

    with pytest.raises(Unavailable, match="no bucket vabal"):
        make(tmp_path / "made", source, prepare=away)
    assert files(tmp_path / "made") == {}


def test_a_source_without_labels_asks_for_the_first_sample_and_the_holdout(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8))
    root = tmp_path / "made"
    make(root, f"npz:{tmp_path / 'bare.npz'}", classes=["cat", "dog"])
    made = pools.load(root / "data")
    assert made.classes == ("cat", "dog")
    assert len(pools.open_requests(made)) == 9 + 6
    assert json.loads((root / "data" / "rounds" / "0000" / "manifest.json").read_text())["counts"]["picks"] == 9
    selection = audit.picks(root / "data", 0)
    assert list(selection["rank"]) == list(range(1, 10))
    assert set(selection["strategy"]) == {"initial"}
