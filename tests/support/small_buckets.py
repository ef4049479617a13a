"""An S3 server in this process: it knows If-None-Match, versions and Object Lock."""

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from vabal import objects
from vabal.adapters import reading


@contextmanager
def s3_server() -> Iterator[str]:
    """Its address. It begins empty: what earlier servers of this process held is forgotten."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        _forget(f"http://{host}:{port}")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _forget(address: str) -> None:
    urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST"), timeout=60).close()  # noqa: S310


@contextmanager
def a_bucket(address: str, monkeypatch: pytest.MonkeyPatch, kept: Path | None = None) -> Iterator[Any]:
    """The bucket `photos` (boto3's resource), alone on that server, which this process reads images from.

    What was read is kept in `kept`.
    """
    with monkeypatch.context() as patch:
        use_s3(patch, address)
        _forget(address)
        patch.setattr(objects, "_open", None)
        patch.setattr(objects, "_opened", None)
        patch.setattr(objects, "_kept", None)
        reading.reach_objects()
        if kept is not None:
            objects.keep_in(kept, lambda: 1.0)
        bucket = boto3.resource("s3").Bucket("photos")
        bucket.create()
        yield bucket


def use_s3(patch: pytest.MonkeyPatch, address: str) -> None:
    """The environment of a client of that server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    patch.setenv("AWS_ENDPOINT_URL", address)
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
