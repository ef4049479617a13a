"""Servers that fall silent, break off or answer with errors: each client gives up in one line within its limit.

And a proxy in the environment is not asked for servers on this machine.
"""

import http.client
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_server import FAULTS, LATE_S, failing_once, faulty, refusing
from tests.support.small_buckets import s3_server
from vabal.adapters import limits, orchestration, processes, storage
from vabal.adapters.orchestration import Server
from vabal.adapters.storage import S3StageStore
from vabal.adapters.tracking import Tracking
from vabal.adapters.versioning import Versioning
from vabal.errors import Unavailable, UserError
from vabal.rounds.stage_store import LocalStageStore
from vabal.workspace import Workspace

KEY = "01" * 8
LIMIT_S = 45.0  # beyond what the client was allowed, on a busy machine; less than it is allowed by itself


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PREFECT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(limits.SILENCE, "0.6")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "test:test")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "test")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "test")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def _gives_up(call: Callable[[], object], within: float = LIMIT_S) -> str:
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        call()
    assert time.monotonic() - started < within
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    return said


@pytest.mark.parametrize("fault", FAULTS)
def test_s3_that_fails_is_given_up_in_one_line(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty(fault) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        store = S3StageStore("s3://stages/team", LocalStageStore(tmp_path))
        monkeypatch.setattr(store.shared, "s3", storage.client(attempts=1))
        _gives_up(lambda: storage.preflight("vabal"))
        _gives_up(store.claim)
        _gives_up(lambda: store.get("train-vae", KEY))

        def produce() -> None:
            with store.produce("train-vae", KEY) as folder:
                (folder / "vae.safetensors").write_bytes(b"weights")

        _gives_up(produce)
        assert store.cache.get("train-vae", KEY) is None


def test_an_output_that_breaks_off_while_it_is_fetched_is_given_up_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty("cut") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        store = S3StageStore("s3://stages/team", LocalStageStore(tmp_path))
        monkeypatch.setattr(store, "_names", lambda *_: {"_complete", "vae.safetensors"})
        _gives_up(lambda: store.get("train-vae", KEY))
        assert store.cache.get("train-vae", KEY) is None


@pytest.mark.parametrize("fault", FAULTS)
def test_mlflow_that_fails_is_given_up_in_one_line(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("artifact")
    with faulty(fault) as address:
        tracking = Tracking("default", address)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
        assert address in _gives_up(tracking.preflight)
        _gives_up(lambda: tracking.version_by_alias("champion"))
        _gives_up(lambda: tracking.open_round(1, "key", {"seed": 0}))
        _gives_up(lambda: tracking.log_artifacts("0" * 32, [tmp_path / "f"]))


@pytest.mark.parametrize("fault", FAULTS)
def test_prefect_that_fails_is_given_up_in_one_line(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty(fault) as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        said = _gives_up(orchestration.preflight)
    assert address in said
    assert "no Prefect server" not in said  # for it is there


# -- there, but late ----------------------------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.SILENCE, str(10 * LATE_S))


def test_prefect_that_answers_late_is_waited_for(patient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty("late") as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        orchestration.preflight()
        assert Server.from_environment().is_ready()


def test_mlflow_that_answers_late_is_waited_for(patient: None) -> None:
    with faulty("late") as address:
        Tracking("default", address).preflight()


def test_s3_that_answers_late_is_waited_for(patient: None, moto: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty("late", moto) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        storage.preflight("vabal")


def test_a_server_that_is_later_than_allowed_is_there_and_the_line_names_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty("late") as address:
        monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for preflight in (
            orchestration.preflight,
            Tracking("default", address).preflight,
            lambda: storage.preflight("vabal"),
        ):
            said = _gives_up(preflight)
            assert "is there, but did not answer" in said
            assert limits.SILENCE in said


@pytest.mark.parametrize("silence", ["0.6", "60"])
def test_where_nobody_listens_that_is_told_at_once_however_long_a_silence_may_be(
    silence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(limits.SILENCE, silence)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    monkeypatch.setenv("PREFECT_API_URL", f"{address}/api")
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    assert "no Prefect server at" in _gives_up(orchestration.preflight)
    assert "MLflow is down" in _gives_up(Tracking("default", address).preflight)
    assert "no S3 server at" in _gives_up(lambda: storage.preflight("vabal"))
    assert not Server.from_environment().is_ready()


def test_a_request_for_a_run_whose_answer_was_lost_is_sent_again_under_the_same_key(
    patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect answers the second with the run that the first one made."""
    asked: list[tuple[str, str, Any]] = []
    broken = {"create_flow_run"}

    def once(_server: Server, method: str, path: str, body: Any, _timeout: float) -> Any:
        asked.append((method, path, body))
        if path.rpartition("/")[2] in broken:
            broken.clear()
            raise http.client.RemoteDisconnected("no answer")
        return {"id": "found"}

    monkeypatch.setattr(Server, "_once", once)
    assert Server("http://nowhere/api").run_deployment("flow/nightly") == "found"
    first, second = (body["idempotency_key"] for method, _, body in asked if method == "POST")
    assert first == second


# -- git and DVC --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Versioning:
    versions = Versioning(tmp_path_factory.mktemp("network") / "work")
    (versions.root / "data").mkdir(parents=True)
    (versions.root / "data" / "f").write_text("content")
    versions.init("s3://vabal/dvc")
    versions.add()
    versions.commit(["data.dvc"], "first")
    return versions


@pytest.mark.parametrize("fault", FAULTS)
def test_a_git_remote_that_fails_is_given_up_in_one_line(fault: str, repository: Versioning) -> None:
    with faulty(fault) as address:
        assert "waits for it" in _gives_up(lambda: repository.push_git(f"{address}/team.git", []))
        _gives_up(lambda: repository.remote_tags(f"{address}/team.git"))


@pytest.mark.parametrize("scheme", ["ssh", "git"])
def test_a_git_remote_that_is_silent_in_another_protocol_is_given_up(
    scheme: str, repository: Versioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(limits.TRANSFER, "2")
    with faulty("silent") as address:
        _gives_up(lambda: repository.remote_tags(f"{scheme}{address.removeprefix('http')}/team.git"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_of_the_pools_to_s3_that_fails_is_given_up_in_one_line(
    fault: str, repository: Versioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "silent":
        monkeypatch.setenv(limits.TRANSFER, "4")
    with faulty(fault) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        said = _gives_up(repository.push, within=75)  # DVC itself gives up after 80 s
    assert "`dvc push` was ended after 4 s" in said if fault == "silent" else "S3" in said


@pytest.mark.parametrize("fault", ["500", "503"])
def test_a_push_that_s3_fails_once_is_sent_again(
    fault: str, repository: Versioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(limits.SILENCE)
    with s3_server() as target, failing_once(target, "PUT", fault) as (address, failed):
        monkeypatch.setenv("AWS_ENDPOINT_URL", target)
        storage.make_bucket(storage.client(), "vabal")
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        repository.push()
        pushed = [item["Key"] for item in storage.client().list_objects_v2(Bucket="vabal")["Contents"]]
        for key in pushed:  # the servers of a process keep one memory
            storage.client().delete_object(Bucket="vabal", Key=key)
    assert len(failed) == 1
    assert any(key.endswith(failed[0].rpartition("/")[2]) for key in pushed)


def test_a_process_that_runs_past_its_limit_is_ended_with_its_children(tmp_path: Path) -> None:
    child = f"import time; open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid())); time.sleep(600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        processes.run([sys.executable, "-c", code], folder=tmp_path, environment=os.environ, limit=1.5)
    assert time.monotonic() - started < 120
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.SILENCE, text)
    with pytest.raises(UserError, match=r"^VABAL_SILENCE_S=[^\n]*: give seconds, as VABAL_SILENCE_S=60$"):
        limits.silence()


# -- without a right to delete ------------------------------------------------------------------------------------


@pytest.fixture
def moto() -> Iterator[str]:
    with s3_server() as address:
        yield address


def test_where_nothing_may_be_deleted_the_bucket_is_checked_and_pools_and_stages_are_pushed(
    moto: str, repository: Versioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(limits.SILENCE, "120")
    with refusing(moto, "DELETE") as (address, refused):
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for _ in range(2):
            storage.preflight("vabal", "dvc")
        repository.push()
        store = S3StageStore("s3://vabal/stages", LocalStageStore(tmp_path / "cache"))
        store.claim()
        with store.produce("train-vae", KEY) as folder:
            (folder / "vae.safetensors").write_bytes(b"weights")
        store.forget(before=4e9)
        assert S3StageStore("s3://vabal/stages", LocalStageStore(tmp_path / "other")).get("train-vae", KEY) is not None
        storage.client().put_object(Bucket="vabal", Key="mine", Body=b"")
        with pytest.raises(Exception, match=r"AccessDenied|403"):
            storage.client().delete_object(Bucket="vabal", Key="mine")
    assert refused == ["/vabal/mine"]


# -- proxies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_a_proxy_is_not_asked_for_servers_on_this_machine(
    name: str, moto: str, repository: Versioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx
    import requests

    for other in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("no_proxy", "intra.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv(limits.SILENCE, "120")
    Workspace(tmp_path).environment()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "intra.example,127.0.0.1,localhost,::1"
    storage.preflight("vabal", "dvc")
    assert requests.get(moto, timeout=60).status_code < 500  # MLflow's client
    with httpx.Client() as client:  # Prefect's
        assert client.get(moto).status_code < 500
    if name == "HTTP_PROXY":
        repository.push()
    (tmp_path / ".git").mkdir()
    done = processes.run(
        [sys.executable, "-c", f"import urllib.request; urllib.request.urlopen({moto!r}, timeout=60)"],
        folder=tmp_path,
        environment=os.environ,
        limit=120,
    )
    assert b"Connection refused" not in done.stderr


def test_without_a_proxy_the_environment_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    Workspace(tmp_path).environment()
    assert "no_proxy" not in os.environ
