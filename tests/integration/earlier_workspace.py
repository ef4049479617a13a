"""A workspace of version 0.1.0, kept so that later code can show that it verifies there and goes on.

`python tests/integration/earlier_workspace.py` made it, from a checkout of that version with the packages of
requirements.lock: three rounds on the digits, with real git, DVC and MLflow (in a file of SQLite), and no server. It
refuses to make it again: what the code of today has just written would show nothing of an earlier one.

The archive is text (base64 of a tar.xz). It holds the workspace's folder as it was, but for what belongs to one machine
and for the images: scikit-learn has those, and `unpack` writes their shards again, byte for byte.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from small_nights import asked, begin, learn, without_servers
from workspaces import ask, call, done, oracle, write_labels

from tests.support.repositories import git
from vabal import images, rounds
from vabal.adapters.tracking import Tracking
from vabal.adapters.versioning import Versioning
from vabal.labels.oracle import answer
from vabal.promotion import agreement, champion, registry
from vabal.rounds import record, steps
from vabal.rounds.initial import initialise
from vabal.settings.models import PoolSettings
from vabal.sources.arrays import Digits
from vabal.workspace import Workspace

VERSION = "0.1.0"
KEPT = Path(__file__).parents[1] / "golden"
ARCHIVE, ANSWERS = KEPT / f"workspace-{VERSION}.txt", KEPT / f"workspace-{VERSION}.json"

SETTINGS = {
    "classifier.network": "resnet10",
    "classifier.width": 4,
    "classifier.epochs": 12,
    "classifier.batch_size": 32,
    "vae.epochs": 2,
    "vae.min_steps": 60,
    "probabilities.draws": 4,
    "selection.budget": 4,
    "compute.threads": 1,
    "compute.device": "cpu",
}
LATE = 8  # digits that the source's imbalance left out, and that come later

# Of one machine, or made again by whoever needs it. Of `.vabal` the two files stay that nothing makes again.
LEFT_OUT = (".dvc/tmp", ".dvc/config.local", ".git/hooks", ".git/logs", "data/images", "requests")
STATE = (".vabal/id", ".vabal/oracle.csv")


# -- making it ----------------------------------------------------------------------------------------------------


def make(folder: Path) -> Workspace:
    """Three rounds in `folder/work`, whose bucket is `folder/pools`; the third one's labels wait in the inbox."""
    place = _begin(folder)
    _night(place)
    _promote(place)
    first, *others = asked(place)
    truth = oracle(place.root)
    wrong = next(label for label in "0123456789" if label != truth[first])
    answers = [(name, truth[name], "ada") for name in others[1:]]
    _labels(place, ("first.csv", [(first, wrong, "ada"), (others[0], "", "ada"), *answers]))
    done(call(place.root, "ingest", str(_late_digits(place, folder / "camera"))))
    _night(place)
    _promote(place)
    _labels(place, ("second.csv", [(first, truth[first], "bob")]))
    _answer_all(place)
    _night(place)
    _answer_all(place)
    return place


def _begin(folder: Path) -> Workspace:
    root = folder / "work"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc" / "config").write_text("[core]\n    remote = vabal\n['remote \"vabal\"']\n    url = ../../pools\n")
    versions = Versioning(root)
    initialise(
        root,
        source="digits",
        imbalance="dominant:0:0.06",
        initial=120,
        holdout=0.06,
        seed=0,
        classes=None,
        name=None,
        settings=SETTINGS,
        versions=versions,
        prepare=lambda _storage: None,
    )
    versions.push()
    return Workspace(root)


def _night(place: Workspace) -> None:
    context, tracking, versions = begin(place), Tracking("default"), Versioning(place.root)
    number, parent = context.round.round, context.round.parent
    run = tracking.open_round(number, parent, context.params.model_dump(mode="json"), inputs=context.round.inbox)
    trained = steps.train_classifier(context)
    version = tracking.register(
        run,
        number,
        parent,
        weights=steps.weights(context, trained),
        classes=context.classes,
        image_size=context.params.images.size,
        channels=1,
    )
    files = tracking.files(version.version)
    model = {"name": tracking.model_name, "version": version.version, "sha256": version.weights_sha256, "files": files}
    promotions = agreement.anchored(place.root, versions)
    plan, contents = record.assemble(
        context, learn(context), model, mlflow_run=run, flow_run=None, promotions=promotions, now=datetime.now(UTC)
    )
    rounds.stage(place, plan, contents)
    rounds.carry_out(place, versions)
    tracking.set_alias(registry.CHALLENGER, version.version)


def _promote(place: Workspace) -> None:
    """Ask the gate, whose refusal is an entry of the record as well."""
    history = Versioning(place.root)
    office = registry.PromotionContext(place.root, Tracking("default"), history, history.identity())
    with contextlib.suppress(registry.NotPromoted):
        champion.promote(office, place.data, place.params().promotion, now=datetime.now(UTC))


def _labels(place: Workspace, *files: tuple[str, list[tuple[str, str, str]]]) -> None:
    for name, lines in files:
        done(call(place.root, "labels", "import", str(write_labels(place.root.parent / name, *lines))))


def _answer_all(place: Workspace) -> None:
    """The oracle answers what it knows of the open requests."""
    folder = f"requests/{rounds.head(place.data).round:04d}"
    done(call(place.root, "labels", "export", folder))
    answer(place.root / folder / "requests.csv", place)
    done(call(place.root, "labels", "import", f"{folder}/requests.csv"))


def _late_digits(place: Workspace, folder: Path) -> Path:
    known = set(pd.read_parquet(place.data / "catalog.parquet")["sample_id"])
    left = [(index, content) for index, content in enumerate(_drawn()) if f"digits-{index:04d}" not in known]
    folder.mkdir()
    for index, content in left[:LATE]:
        (folder / f"late-{index:04d}.png").write_bytes(content)
    return folder


def answers(root: Path) -> dict[str, Any]:
    """What the reading commands say of the workspace, by their arguments; no bare digests, which look like secrets."""
    events = pd.read_parquet(root / "data" / "label_events.parquet")
    given = events[events["round"] > 0]
    corrected = given["sample_id"][given["sample_id"].duplicated()].iloc[0]
    rejected = given["sample_id"][given["label"].isna()].iloc[0]
    catalog = pd.read_parquet(root / "data" / "catalog.parquet")
    late = catalog["sample_id"][catalog["added_round"] > 0].iloc[0]
    samples = [corrected, rejected, late]
    commands = [["audit"], ["audit", "1"], ["audit", "3"], *(["audit", "--sample", name] for name in samples)]
    said = {" ".join(command): ask(root, *command) for command in commands}
    told: dict[str, Any] = json.loads(json.dumps(said), object_hook=_without_digests)
    return told


def _without_digests(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in ("sha256", "mlflow_run")}


# -- keeping it ---------------------------------------------------------------------------------------------------


def pack(root: Path) -> str:
    """The workspace's folder as the text that is kept."""
    git(root, "gc", "--quiet", "--prune=now")
    shards = {_cached(root, path) for path in (root / "data" / "images").iterdir()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=9) as archive:
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root).as_posix()
            if path not in shards and _belongs(name):
                archive.add(path, name, recursive=False, filter=_nobodys)
    return base64.encodebytes(packed.getvalue()).decode("ascii")


def _belongs(name: str) -> bool:
    if name.startswith(".vabal/"):
        return name in STATE
    return not any(name == left or name.startswith(f"{left}/") for left in LEFT_OUT)


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def unpack(folder: Path) -> Path:
    """The workspace as its version left it, in `folder/work`. Fails where its images cannot be made as they were."""
    root = folder / "work"
    packed = base64.b64decode(ARCHIVE.read_text(encoding="ascii"))
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
        archive.extractall(root, filter="tar")
    _images_again(root)
    return root


def _images_again(root: Path) -> None:
    """The shards, in `data/` and in DVC's cache: the last four letters of an id are the digit's place in the source."""
    drawn, data = list(_drawn()), root / "data"
    catalog = pd.read_parquet(data / "catalog.parquet")
    for shard, rows in catalog.sort_values("row").groupby("shard"):
        items = [(name, drawn[int(name[-4:])]) for name in rows["sample_id"]]
        prefix = str(shard).removesuffix("-0000")
        images.write_shards(items, data / "images", settings=PoolSettings(), name_prefix=prefix)
    newest = max((data / "rounds").iterdir()) / "manifest.json"
    recorded = json.loads(newest.read_bytes())["shards"]
    made = {path.stem: path for path in (data / "images").iterdir()}
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in made.items()}
    assert found == recorded, "the digits' shards have other bytes than those of the workspace that is kept"
    for path in made.values():
        cached = _cached(root, path)
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_bytes(path.read_bytes())
        cached.chmod(0o444)


def _cached(root: Path, path: Path) -> Path:
    """Where DVC's cache has the file."""
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    return root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]


def _drawn() -> Iterator[bytes]:
    return (item.data for item in Digits().items())


if __name__ == "__main__":
    if ARCHIVE.exists():
        sys.exit(f"{ARCHIVE} stands for what {VERSION} made, and is not made again by other code")
    with (
        tempfile.TemporaryDirectory() as somewhere,
        contextlib.chdir(somewhere),
        pytest.MonkeyPatch.context() as patch,
    ):
        without_servers(patch)
        os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
        made = make(Path(somewhere)).root
        ANSWERS.write_text(json.dumps(answers(made), indent=1) + "\n", encoding="utf-8")
        ARCHIVE.write_text(pack(made), encoding="ascii")
