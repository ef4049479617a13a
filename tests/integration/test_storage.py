"""The bucket's preflight and the shared stage store, against rclone's S3 server and moto's."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from running import RunningStack

from tests.support.small_buckets import s3_server, use_s3
from vabal.adapters import storage
from vabal.adapters.storage import S3StageStore
from vabal.adapters.storage.client import explained
from vabal.errors import Unavailable, UserError
from vabal.rounds.stage_store import LocalStageStore

OLD, NEW = "0" * 16, "f" * 16


def _keys(bucket: str) -> list[str]:
    return [item["Key"] for item in storage.client().list_objects_v2(Bucket=bucket).get("Contents", [])]


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as address:
        use_s3(monkeypatch, address)
        yield address


def test_a_missing_bucket_is_made_and_one_small_object_stays_in_it(stack: RunningStack) -> None:
    storage.preflight("made-by-preflight", "some/where")
    storage.preflight("made-by-preflight", "some/where")
    assert _keys("made-by-preflight") == ["some/where/.vabal-preflight"]


def test_a_server_that_is_down_is_told_in_one_line_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        use_s3(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"^no S3 server at http://127\.0\.0\.1:\d+: .*vabal up[^\n]*$"):
        storage.preflight("vabal")
    assert time.monotonic() - started < 45  # and not after a minute of silence


@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_are_told_from_a_server_that_is_down(
    stack: RunningStack, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv(wrong, "not-the-one-that-was-made")
    with pytest.raises(Unavailable, match=r"^S3 at http://127\.0\.0\.1:\d+ refuses the keys [^\n]*$"):
        storage.preflight("vabal")


def test_missing_keys_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_s3(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="AWS_ACCESS_KEY_ID"):
        storage.preflight("vabal")


def test_a_forbidden_write_is_named_as_such(moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.preflight("locked")
    policy = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Deny","Principal":"*","Action":"s3:PutObject",'
        '"Resource":"arn:aws:s3:::locked/*"}]}'
    )
    storage.client().put_bucket_policy(Bucket="locked", Policy=policy)
    with pytest.raises(Unavailable, match=r"^not allowed to write to bucket `locked` at [^\n]*permission$"):
        storage.preflight("locked")


def test_a_bucket_name_taken_by_someone_else_is_named_as_such() -> None:
    answer = {"Error": {"Code": "BucketAlreadyExists", "Message": ""}}
    with (
        pytest.raises(Unavailable, match=r"bucket `team` .*someone else.*storage\.bucket"),
        explained("team", "create"),
    ):
        raise ClientError(answer, "CreateBucket")  # type: ignore[arg-type]


def test_the_preflight_passes_on_another_maker_s_server(moto: str) -> None:
    storage.preflight("vabal", "dvc")


def _fill(folder: Path) -> None:
    (folder / "features.npy").write_bytes(b"1234")
    (folder / "report.json").write_text("{}")


def test_a_stage_made_on_one_machine_is_done_on_another(stack: RunningStack, tmp_path: Path) -> None:
    storage.preflight("stages")
    here = S3StageStore("s3://stages/team", LocalStageStore(tmp_path / "here"))
    there = S3StageStore("s3://stages/team", LocalStageStore(tmp_path / "there"))
    assert there.get("extract-features", "1111111111111111") is None
    with here.produce("extract-features", "1111111111111111") as folder:
        _fill(folder)
    found = there.get("extract-features", "1111111111111111")
    assert found is not None
    assert {path.name: path.read_bytes() for path in found.iterdir()} == {
        "features.npy": b"1234",
        "report.json": b"{}",
    }
    assert here.get("extract-features", "1" * 16) == tmp_path / "here" / "extract-features" / ("1" * 16)
    assert there.get("extract-features", "0" * 16) is None


def test_a_stage_that_failed_counts_as_not_done_anywhere(stack: RunningStack, tmp_path: Path) -> None:
    storage.preflight("stages")
    store = S3StageStore("s3://stages/failed", LocalStageStore(tmp_path))
    with pytest.raises(RuntimeError, match="out of memory"), store.produce("train-vae", "2222222222222222") as folder:
        _fill(folder)
        raise RuntimeError("out of memory")
    assert store.get("train-vae", "2222222222222222") is None
    assert list((tmp_path / "train-vae").iterdir()) == []


def test_an_upload_cut_off_before_its_marker_counts_as_not_done(stack: RunningStack, tmp_path: Path) -> None:
    storage.preflight("stages")
    store = S3StageStore("s3://stages/cut", LocalStageStore(tmp_path))
    storage.client().put_object(Bucket="stages", Key="cut/train-vae/3333333333333333/vae.safetensors", Body=b"half")
    assert store.get("train-vae", "3333333333333333") is None
    with store.produce("train-vae", "3333333333333333") as folder:
        (folder / "vae.safetensors").write_bytes(b"whole")
    other = S3StageStore("s3://stages/cut", LocalStageStore(tmp_path / "other")).get("train-vae", "3333333333333333")
    assert other is not None
    assert (other / "vae.safetensors").read_bytes() == b"whole"


def test_forgetting_old_outputs_clears_the_cache_and_not_the_bucket(stack: RunningStack, tmp_path: Path) -> None:
    storage.preflight("stages")
    store = S3StageStore("s3://stages/kept", LocalStageStore(tmp_path))
    for key in (OLD, NEW):
        with store.produce("train-vae", key) as folder:
            _fill(folder)
    os.utime(tmp_path / "train-vae" / OLD, (1000, 1000))
    assert store.forget(before=2000) == 1
    assert (tmp_path / "train-vae" / NEW).exists()
    assert not (tmp_path / "train-vae" / OLD).exists()
    assert store.get("train-vae", OLD) is not None


def test_an_address_that_is_no_bucket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        S3StageStore("s3:///only-a-prefix", LocalStageStore(tmp_path))


# -- only what is its own -----------------------------------------------------------------------------------------


def test_a_prefix_is_marked_once_and_used_again_with_its_mark(moto: str, tmp_path: Path) -> None:
    storage.preflight("stages", "dvc")
    for name in ("here", "there"):
        store = S3StageStore("s3://stages/team", LocalStageStore(tmp_path / name))
        store.claim()
        with store.produce("train-vae", NEW) as folder:
            _fill(folder)
    assert {name for name in _keys("stages") if not name.startswith("dvc/")} == {
        "team/.vabal-stages",
        *(f"team/train-vae/{NEW}/{name}" for name in ("_complete", "features.npy", "report.json")),
    }


@pytest.mark.parametrize("prefix", ["/dvc", "/thesis", ""])
def test_a_prefix_with_other_things_below_it_is_refused(moto: str, tmp_path: Path, prefix: str) -> None:
    storage.preflight("mixed", "dvc")
    storage.client().put_object(Bucket="mixed", Key="thesis/chapter1.tex", Body=b"")
    before = _keys("mixed")
    with pytest.raises(UserError, match=r"^stages: s3://mixed/[^\n]*holds other things [^\n]*another prefix$"):
        S3StageStore(f"s3://mixed{prefix}", LocalStageStore(tmp_path)).claim()
    assert _keys("mixed") == before


def test_a_prefix_from_before_there_were_marks_is_taken_over(moto: str, tmp_path: Path) -> None:
    storage.preflight("older", "dvc")
    storage.client().put_object(Bucket="older", Key=f"team/train-vae/{OLD}/_complete", Body=b"")
    store = S3StageStore("s3://older/team", LocalStageStore(tmp_path))
    store.claim()
    assert store.get("train-vae", OLD) is not None


@pytest.mark.parametrize("name", ["../../../stolen", "a/b", ""])
def test_an_object_whose_name_leads_out_of_the_output_is_refused(moto: str, tmp_path: Path, name: str) -> None:
    storage.preflight("hostile")
    for item in ("_complete", name):
        storage.client().put_object(Bucket="hostile", Key=f"team/train-vae/{OLD}/{item}", Body=b"x")
    with pytest.raises(UserError, match=r"^stages: s3://hostile/team/[^\n]* which no stage put there[^\n]*$"):
        S3StageStore("s3://hostile/team", LocalStageStore(tmp_path / "cache")).get("train-vae", OLD)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".vabal-stages"]
