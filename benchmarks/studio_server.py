"""A real Label Studio of its own for `benchmarks.studio`, and the S3 server that it reads images from."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

from vabal.adapters import processes
from vabal.adapters.label_studio import client

START_S = 900.0
ACCESS_S = 10  # that an access token, which a personal token buys, is good for: five minutes as it comes
# What is no setting of Label Studio's is put into Django's before they are read.
_START = f"""
import datetime, django.conf
real = django.conf.Settings.__init__
def short(self, module):
    real(self, module)
    self.SIMPLE_JWT = {{"ACCESS_TOKEN_LIFETIME": datetime.timedelta(seconds={ACCESS_S})}}
django.conf.Settings.__init__ = short
from label_studio.server import main
main()
"""
KEYS = ("studio-test", secrets.token_hex(20))


class Person:
    """Somebody who labels, with a login and a token of their own."""

    def __init__(self, server: str, token: str) -> None:
        self._server, self.token = server, token

    def call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Token {self.token}"}
        answer = httpx.request(method, f"{self._server}/api/{path}", headers=headers, timeout=120.0, **options)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def says(self, task: int, label: str) -> dict[str, Any]:
        value = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
        said: dict[str, Any] = self.call("POST", f"tasks/{task}/annotations/", json={"result": [value]})
        return said

    def sees(self, address: str) -> bytes:
        """The file of a task's image, as a browser gets it."""
        headers = {"Authorization": f"Token {self.token}"}
        first = httpx.get(f"{self._server}{address}", headers=headers, timeout=60.0)
        if first.is_redirect:  # a presigned address, which takes no token of Label Studio's
            first = httpx.get(first.headers["location"], timeout=60.0)
        first.raise_for_status()
        return first.content

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """All of them, whole, with images as a browser asks for them."""
        found: list[dict[str, Any]] = self.call(
            "GET", "tasks", params={"project": project, "fields": "all", "page_size": 500}
        )["tasks"]
        return found

    def personal_token(self) -> str:
        """A new one; there can be one at a time."""
        return str(self.call("POST", "token/", json={})["token"])


def second_person(server: str) -> Person:
    """Somebody else, who signs up as people do."""
    name = secrets.token_hex(6)
    with httpx.Client(base_url=server, timeout=120.0, follow_redirects=True) as browser:
        browser.get("/user/signup/")
        form = {"email": f"{name}@example.org", "password": secrets.token_hex(10), "allow_newsletters": "false"}
        form["csrfmiddlewaretoken"] = browser.cookies["csrftoken"]
        browser.post("/user/signup/", data=form, headers={"Referer": f"{server}/user/signup/"}).raise_for_status()
        return Person(server, browser.get("/api/current-user/token").raise_for_status().json()["token"])


@contextmanager
def label_studio(environment: Path, folder: Path) -> Iterator[str]:
    """A server of its own, with a user and a token; its address. Access tokens live for ACCESS_S seconds there."""
    port = _free_port()
    os.environ[client.TOKEN] = secrets.token_hex(20)
    data = folder / "label-studio"
    data.mkdir()
    command: list[str | Path] = [
        *(environment.absolute() / "venv" / "bin" / "python", "-c", _START, "start", "--no-browser"),
        *("--port", str(port), "--internal-host", "127.0.0.1", "--data-dir", data, "--enable-legacy-api-token"),
        *("--username", "people@example.org", "--password", secrets.token_hex(10), "--log-level", "ERROR"),
        *("--user-token", os.environ[client.TOKEN]),
    ]
    quiet = {"COLLECT_ANALYTICS": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "LATEST_VERSION_CHECK": "false"}
    quiet["SSRF_PROTECTION_ENABLED"] = "false"  # S3 is on this machine
    kept = {**os.environ, **quiet, "LABEL_STUDIO_BASE_DATA_DIR": str(data)}
    kept.pop("PYTHONPATH", None)
    with _running(command, kept, data, folder / "label-studio.log") as process:
        _wait(f"http://127.0.0.1:{port}", process, folder / "label-studio.log")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def s3(folder: Path) -> Iterator[str]:
    """The S3 server of the local stack, over a folder; its address and keys stand in the environment meanwhile."""
    port = _free_port()
    (folder / "s3").mkdir()
    command: list[str | Path] = [Path(sys.executable).parent / "rclone", "serve", "s3", folder / "s3"]
    command += ["--addr", f"127.0.0.1:{port}"]
    kept = {**os.environ, "RCLONE_AUTH_KEY": f'"{",".join(KEYS)}"', "RCLONE_CONFIG": str(folder / "rclone.conf")}
    address = f"http://127.0.0.1:{port}"
    ours = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    names = (*ours, "LABEL_STUDIO_S3_ACCESS_KEY_ID", "LABEL_STUDIO_S3_SECRET_ACCESS_KEY")
    with _running(command, kept, folder, folder / "s3.log"):
        os.environ.update(zip(names, (address, *KEYS, *KEYS), strict=True))
        try:
            yield address
        finally:
            for name in names:
                del os.environ[name]


@contextmanager
def _running(
    command: list[str | Path], environment: dict[str, str], folder: Path, log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)
        try:
            yield process
        finally:
            processes.end(psutil.Process(process.pid), grace=10.0)
            process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait(server: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < START_S and process.poll() is None:
        try:
            if httpx.get(f"{server}/health", timeout=10.0).is_success:
                print(f"Label Studio answers after {time.monotonic() - begun:.0f} s", flush=True)
                return
        except httpx.HTTPError:
            time.sleep(1.0)
    raise SystemExit(f"Label Studio did not start: {processes.last_lines(log)}")
