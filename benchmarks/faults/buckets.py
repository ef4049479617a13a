"""The images of the nights in an S3 server's bucket, where they stay."""

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
from PIL import Image

from benchmarks.faults import children

# moto's server ends with what it reads from: this process's end.
SERVER = """
from tests.support.small_buckets import s3_server
with s3_server() as address:
    print(address, flush=True)
    input()
"""


@contextmanager
def photos(some: Path, camera: Path) -> Iterator[dict[str, str]]:
    """The environment of who reads them: `some` (.npz) and the files of `camera`, while the server runs."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdin
        assert server.stdout
        environment = {
            "AWS_ENDPOINT_URL": server.stdout.readline().decode().strip(),
            "AWS_DEFAULT_REGION": "us-east-1",
        } | dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")  # it takes any
        children.do(lambda: _put(environment, some, camera))
        yield environment
        server.stdin.close()


def _put(environment: dict[str, str], some: Path, camera: Path) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    client.create_bucket(Bucket="photos")
    with np.load(some) as arrays:
        for number, (pixels, label) in enumerate(zip(arrays["images"], arrays["labels"], strict=True)):
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "png")
            client.put_object(Bucket="photos", Key=f"some/{label}/{number:02}.png", Body=stream.getvalue())
    for path in camera.iterdir():
        client.put_object(Bucket="photos", Key=f"camera/{path.name}", Body=path.read_bytes())
