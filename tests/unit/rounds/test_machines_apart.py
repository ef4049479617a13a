"""Machines that share nothing but S3: what one makes the others find, and all of them make the same."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.small_backbones import small_backbone
from tests.support.small_buckets import s3_server, use_s3
from tests.support.small_rounds import first_round, learned
from vabal.adapters import storage
from vabal.adapters.storage import S3StageStore
from vabal.errors import UserError
from vabal.rounds import steps
from vabal.rounds.context import RoundContext, own_store, stage_output
from vabal.workspace import Workspace

SETTINGS = {
    "pool.shard_rows": 20,
    "selection.budget": 6,
    "selection.control_share": 0.2,
    "vae.epochs": 1,
    "vae.min_steps": 0,
    "vae.rows": 30,
    "probabilities.members": 2,
    "compute.device": "cpu",
    "compute.threads": 1,
}
LEARNERS = ("probe", "scratch", "finetune")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as address:
        yield address


@dataclass(frozen=True)
class Apart:
    """The same round: on its own machine with a store of its own, and with one on S3; a prefix of the latter."""

    alone: RoundContext
    driver: RoundContext
    address: str
    weights: str | None

    def worker(self, scratch: Path) -> RoundContext:
        """The round as a machine sees it that has a scratch folder alone."""
        scratch.mkdir()
        place = Workspace(scratch)
        stages = S3StageStore(self.address, own_store(place))
        params = steps.with_weights(self.driver.params, self.weights, place, stages)
        return RoundContext(place, params, self.driver.round, stages, self.driver.intake_key)


@pytest.fixture(scope="module", params=LEARNERS)
def apart(request: pytest.FixtureRequest, s3: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apart]:
    folder = tmp_path_factory.mktemp(request.param)
    own = {f"backbone.{name}": value for name, value in small_backbone(folder).items()}
    quick = {"classifier.learner": request.param, "classifier.width": 4, "classifier.epochs": 1}
    quick |= {"finetune.epochs": 1, "finetune.min_steps": 3}
    address = f"s3://{request.param}/nights"
    with first_round(folder, 90, {**SETTINGS, **own, **quick}) as alone, pytest.MonkeyPatch.context() as patch:
        use_s3(patch, s3)
        stages = S3StageStore(address, own_store(alone.workspace))
        stages.claim()
        driver = replace(alone, stages=stages)
        yield Apart(alone, driver, address, steps.share(driver))


def _all_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_workers_with_a_scratch_folder_alone_select_what_one_machine_selects(apart: Apart, tmp_path: Path) -> None:
    expected = _all_of(stage_output(apart.alone, **learned(apart.alone)["selected"]))
    trained = steps.train_classifier(apart.worker(tmp_path / "trainer"))
    shutil.rmtree(tmp_path / "trainer")  # what it made lies in S3
    refs = learned(apart.worker(tmp_path / "worker"))
    assert refs["trained"] == trained
    assert _all_of(stage_output(apart.driver, **refs["selected"])) == expected


def test_a_worker_that_reads_features_again_fetches_no_image(apart: Apart, tmp_path: Path) -> None:
    first = apart.worker(tmp_path / "first")
    learned(first)
    late = apart.worker(tmp_path / "late")
    for shard in steps.shard_names(late):
        late.shards.keep(shard)
    assert not list(late.workspace.shards.glob("*.parquet"))
    kept = {path.name for path in late.workspace.decoded.glob("*.npy")}
    assert kept == {f"{first.shards.content(shard)}.npy" for shard in steps.shard_names(first)}


def test_what_is_shared_already_is_not_put_there_again(apart: Apart) -> None:
    before = _written(apart.address)
    assert steps.share(apart.driver) == apart.weights
    assert _written(apart.address) == before
    assert (apart.weights is None) == (apart.driver.params.classifier.learner == "scratch")


def test_weights_that_are_gone_are_told_in_one_line(apart: Apart, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    stages = S3StageStore(apart.address, own_store(place))
    with pytest.raises(UserError, match=r"^the backbone's weights \(weights/none\.safetensors\) are gone[^\n]*$"):
        steps.with_weights(apart.driver.params, "none.safetensors", place, stages)


@pytest.mark.parametrize("apart", ["probe"], indirect=True)
def test_other_strategies_select_the_same_on_a_worker(apart: Apart, tmp_path: Path) -> None:
    worker = apart.worker(tmp_path / "worker")
    for name in ("margin", "badge", "coreset", "entropy"):
        chosen = {"selection": apart.alone.params.selection.model_copy(update={"strategy": name})}
        here, there = (
            replace(context, params=context.params.model_copy(update=chosen)) for context in (apart.alone, worker)
        )
        assert _picks(here, learned(here)) == _picks(there, learned(there))


def _picks(context: RoundContext, refs: dict[str, Any]) -> dict[str, bytes]:
    return _all_of(stage_output(context, **refs["selected"]))


def _written(address: str) -> dict[str, str]:
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    found = storage.client().list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {item["Key"]: item["LastModified"].isoformat() for item in found["Contents"]}


def test_ranges_of_a_file_in_s3_come_in_the_order_asked_for(apart: Apart, tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "file").write_bytes(content)
    files = S3StageStore(apart.address, own_store(Workspace(tmp_path))).shared
    files.publish("decoded/file", tmp_path / "file")
    found = files.find("decoded/file", tmp_path / "fetched")
    assert found is not None
    ranges = [(299_990, 10), (0, 3), (150_000, 5), (2, 4), (150_003, 1), (7, 0)]
    assert found.read(ranges) == [content[first : first + size] for first, size in ranges]
    assert not (tmp_path / "fetched").exists()
    assert found.here().read_bytes() == content
    assert files.find("decoded/other", tmp_path / "other") is None
