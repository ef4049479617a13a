"""Round 0: what it publishes, that it can be made again to the byte, and that nothing is left of one that failed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.folders import contents
from tests.support.forking import Nursery
from tests.support.repositories import git
from tests.support.small_backbones import NAME, small_backbone
from vabal import audit, pools, rounds
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.flows.context import check_backbone
from vabal.learning import backbones
from vabal.rounds.context import RoundContext, own_store
from vabal.rounds.initial import initialise
from vabal.settings.models import StorageSettings
from vabal.settings.params import load
from vabal.workspace import Workspace


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


def test_a_backbone_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path, source: str) -> None:
    for settings, said in (
        (
            {"classifier.learner": "probe", "backbone.weights": "file:none.pth"},
            "there is no file /.*/none.pth: put it there",
        ),
        ({"classifier.learner": "finetune", "backbone.name": "timm:no_such_network"}, "timm has no network"),
    ):
        with pytest.raises(UserError, match=said):
            make(tmp_path / "made", source, settings=settings)
        assert not (tmp_path / "made" / "params.yaml").exists()
        assert not (tmp_path / "made" / "data").exists()


@pytest.mark.parametrize("inside", [True, False])
def test_a_file_of_weights_is_found_from_any_folder(
    tmp_path: Path, source: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file below the workspace is named from there on, for a clone lies elsewhere; another one from the top."""
    root = tmp_path / "made"
    folder = root / "own" if inside else tmp_path / "elsewhere"
    folder.mkdir(parents=True)
    name = Path(str(small_backbone(folder)["weights"]).removeprefix("file:")).name
    monkeypatch.chdir(folder)
    own = {"classifier.learner": "probe", "backbone.name": NAME, "backbone.weights": f"file:{name}"}
    make(root, source, settings=own)
    said = f"file:own/{name}" if inside else f"file:{folder / name}"
    assert load(root / "params.yaml").backbone.weights == said
    monkeypatch.chdir(tmp_path)
    place = Workspace(root)
    check_backbone(place, place.params())
    begun = rounds.open_round(place, [], datetime(2026, 1, 1, tzinfo=UTC))
    context = RoundContext(place, place.params(), begun, own_store(place), "none")
    assert context.learner.backbone == backbones.identity(context.learner.params.backbone)
    assert context.params.backbone.weights == said  # what a manifest is told
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"backbone.weights: there is no file {folder / name}: put it there"):
        check_backbone(place, place.params({"backbone.sizes": [48]}))


def _unasked(_: StorageSettings) -> None:
    raise AssertionError("no storage is configured")


def test_round_0_is_published_under_a_tag_that_names_its_manifest(tmp_path: Path, source: str) -> None:
    root = tmp_path / "made"
    said = make(root, source, name="wafers", settings={"selection.budget": 7})
    assert said[0] == "60 images from npz, 3 classes: labelled 9, unlabelled 39, holdout 12"
    assert said[-1].startswith("git tag round/0000; S3 is not up")
    head = rounds.head(root / "data")
    assert (head.round, head.parent, head.seed) == (0, None, 5)
    assert head.counts["labeled"] == 9
    assert f"manifest sha256:{head.digest}" in git(root, "tag", "--list", "--format=%(contents)", "round/0000")
    settings = load(root / "params.yaml")
    assert (settings.workspace.name, settings.seed, settings.selection.budget) == ("wafers", 5, 7)
    assert (settings.images.size, settings.images.channels) == (8, 1)
    assert git(root, "status", "--porcelain") == ""
    versions = Versioning(root)
    assert audit.verify(root / "data", {name: versions.tag_message(name) for name in versions.tags()}).ok
    assert len((root / ".vabal" / "oracle.csv").read_text().splitlines()) == 1 + 39
    assert sorted(path.name for path in (root / ".vabal").iterdir()) == [
        *("data-unchanged", "data.lock", "dvc", "lock", "oracle.csv", "push-deferred")
    ]


def test_a_learner_is_asked_for_where_neither_the_user_nor_a_file_names_one(tmp_path: Path, source: str) -> None:
    asked: list[tuple[Any, ...]] = []

    def choose(*made: Any) -> dict[str, Any]:
        asked.append(made)
        return {"classifier.learner": "probe", "backbone.sizes": [48], "images.size": 48}

    make(tmp_path / "chosen", source, choose=choose, settings={"selection.budget": 7})
    (_, folder, built, chosen, given) = asked.pop()
    assert (given, chosen.selection.budget) == ({"selection.budget": 7}, 7)
    assert (folder.name[:5], len(built.pools.labeled)) == ("init.", 9)
    settings = load(tmp_path / "chosen" / "params.yaml")
    assert (settings.classifier.learner, settings.backbone.sizes) == ("probe", [48])
    assert (settings.images.size, settings.selection.budget) == (48, 7)
    assert "  learner: probe  # scratch: the network below" in (tmp_path / "chosen" / "params.yaml").read_text()

    make(tmp_path / "named", source, choose=choose, settings={"classifier.learner": "scratch"})
    make(tmp_path / "whole", source, choose=choose, settings={"classifier": {"learner": "scratch"}})
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "params.yaml").write_text("seed: 5\n")
    make(tmp_path / "there", source, choose=choose, seed=None)
    assert asked == []
    assert load(tmp_path / "there" / "params.yaml").classifier.learner == "scratch"
    # what lies below data/ knows nothing of the learner
    assert contents(tmp_path / "chosen" / "data") == contents(tmp_path / "named" / "data")


def test_the_same_arguments_make_the_same_bytes_and_another_seed_others(tmp_path: Path, source: str) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, source)
    assert contents(tmp_path / "one" / "data") == contents(tmp_path / "two" / "data")
    assert (tmp_path / "one" / "data.dvc").read_bytes() == (tmp_path / "two" / "data.dvc").read_bytes()
    make(tmp_path / "three", source, seed=6)
    assert contents(tmp_path / "three" / "data") != contents(tmp_path / "one" / "data")


def test_a_clone_without_its_pools_makes_them_again_or_stays_as_it_was(tmp_path: Path, source: str) -> None:
    make(tmp_path / "made", source)
    git(tmp_path, "clone", "--quiet", "made", "clone")
    clone = tmp_path / "clone"
    with pytest.raises(UserError, match=r"that makes other pools than data\.dvc pins"):
        make(clone, source, seed=None, initial=10)
    assert not (clone / "data").exists()
    assert git(clone, "status", "--porcelain") == ""
    assert make(clone, source, seed=None)[-1] == "data/ is what data.dvc pins"
    assert contents(clone / "data") == contents(tmp_path / "made" / "data")
    assert git(clone, "status", "--porcelain") == ""


def test_a_clone_of_pools_that_knew_no_groups_makes_them_without(tmp_path: Path, source: str) -> None:
    make(tmp_path / "made", source)
    git(tmp_path, "clone", "--quiet", "--no-tags", "made", "clone")
    with np.load(tmp_path / "some.npz") as arrays:  # groups that change no draw
        np.savez(tmp_path / "some.npz", groups=[f"some-{row:04d}" for row in range(60)], **arrays)
    assert make(tmp_path / "clone", source, seed=None)[-1] == "data/ is what data.dvc pins"
    head = rounds.head(tmp_path / "clone" / "data")
    assert f"manifest sha256:{head.digest}" in git(
        tmp_path / "clone", "tag", "--list", "--format=%(contents)", "round/0000"
    )


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
    assert set(contents(tmp_path / "made")) <= {".vabal/lock"}


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


# -- calls that are cut short, or refused ------------------------------------------------------------------------------

STEPS = (
    *("built", "begun", "repository", "workspace committed", "staged", "moved", "added", "pushed", "committed"),
    *("tagged", "finished", "emptied"),
)


Calls = Callable[..., list[str]]


@pytest.fixture
def calls() -> Iterator[Calls]:
    """What a row of calls (root, source, seed, dies after) ends in: its words, or `exit -9` for one that was killed."""
    nursery = Nursery("dying-init")

    def call(line: tuple[Path, str, int, str]) -> str:
        code, out, errors = nursery.run(["dying-init", *map(str, line)], folder=line[0], environment=os.environ)
        return out.splitlines()[-1] if code == 0 else f"exit {code}{errors}"

    yield lambda *lines: [call(line) for line in lines]
    nursery.close()


def test_a_call_killed_at_any_step_is_finished_by_the_same_call_and_gives_way_to_another(
    tmp_path: Path, source: str, calls: Calls
) -> None:
    whole = tmp_path / "whole"
    other = tmp_path / "other"
    for root, seed in ((whole, 5), (other, 6)):
        root.mkdir()
        calls((root, source, seed, ""))
    same_calls = {step: tmp_path / f"{step}-5" for step in STEPS}
    for root in same_calls.values():
        root.mkdir()
    assert calls(*((root, source, 5, step) for step, root in same_calls.items())) == ["exit -9"] * len(STEPS)
    other_calls = {step: tmp_path / f"{step}-6" for step in STEPS}
    for step, root in other_calls.items():
        shutil.copytree(same_calls[step], root, symlinks=True)
    finished = calls(*((root, source, 5, "") for root in same_calls.values()))
    given_way = calls(*((root, source, 6, "") for root in other_calls.values()))
    for step, went_on, replaced in zip(STEPS, finished, given_way, strict=True):
        same, another = same_calls[step], other_calls[step]
        assert contents(same / "data") == contents(whole / "data"), step
        assert git(same, "tag") == "round/0000"
        assert git(same, "status", "--porcelain") == ""
        assert went_on.startswith("60 images from npz, 3 classes: labelled 9"), step
        published = step in ("tagged", "finished", "emptied")
        assert replaced.startswith("refused: " if published else "60 images from npz"), step
        assert contents(another / "data") == contents((whole if published else other) / "data"), step
        assert (another / "params.yaml").read_bytes() == ((whole if published else other) / "params.yaml").read_bytes()
        for root in (same, another):
            assert not [path.name for path in (root / ".vabal").iterdir() if path.name.startswith(("init", "publish"))]


def refusals(home: Path) -> dict[str, str]:
    """Git configurations of users, by what git refuses because of them; empty where it must refuse nothing."""
    hooks = home / "hooks"
    hooks.mkdir()
    (hooks / "prepare-commit-msg").write_text("#!/bin/sh\necho 'no ticket number' >&2\nexit 1\n")
    (hooks / "prepare-commit-msg").chmod(0o755)
    (home / "excludes").write_text("*.dvc\n.dvc\nparams.yaml\n.git*\n")
    return {
        f"[commit]\n gpgsign = true\n[gpg]\n program = {home}/missing\n": "gpg",
        f"[core]\n hooksPath = {hooks}\n": "no ticket number",
        "[core]\n autocrlf = true\n safecrlf = true\n": "",
        f"[core]\n excludesFile = {home}/excludes\n": "",
        "[user]\n useConfigOnly = true\n": "",
        "[init]\n defaultBranch = trunk\n": "",
        "[tag]\n forceSignAnnotated = true\n[user]\n signingKey = nobody\n[gpg]\n program = false\n": "",
    }


def test_what_git_refuses_is_told_whole_and_the_same_call_goes_on_once_it_is_mended(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, (configuration, reason) in enumerate(refusals(tmp_path).items()):
        root = tmp_path / str(index)
        (tmp_path / "gitconfig").write_text(configuration)
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
        if reason:
            with pytest.raises(UserError, match=f"git commit failed in .*{reason}"):
                make(root, source, settings={"selection.budget": 7})
            monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        make(root, source, settings={"selection.budget": 7})
        assert git(root, "tag") == "round/0000", configuration
        assert git(root, "status", "--porcelain") == "", configuration
        assert {"data.dvc", "params.yaml", ".gitattributes"} <= set(git(root, "ls-files").split()), configuration
