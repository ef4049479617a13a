"""The S3 client for the environment's address and keys, its errors in one line, and whether a bucket is open to us."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.session import get_session

from vabal.adapters import limits
from vabal.errors import Unavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PROBE = ".vabal-preflight"
CONNECT_TIMEOUT_S = 10.0  # a refused connection is told at once; this is for an address that swallows it
WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
MISSING = ("404", "NoSuchBucket", "NoSuchKey", "NotFound")
DENIED = ("403", "AccessDenied", "Forbidden", "AllAccessDisabled")


def client(*, attempts: int = 2, connections: int = 10) -> "S3Client":
    """An S3 client for the address and keys of the environment (AWS_ENDPOINT_URL and the usual variables).

    `connections` are kept open for threads that use it at once.
    """
    settings = Config(
        connect_timeout=min(CONNECT_TIMEOUT_S, limits.silence()),
        read_timeout=limits.silence(),
        max_pool_connections=connections,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        s3={"addressing_style": "path"} if os.environ.get("AWS_ENDPOINT_URL") else {},
        proxies={} if _is_here() else None,
        # Servers other than Amazon's do not all know the newer checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # Some clouds need no region, boto3 does.
    region = os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
    # A session of its own: boto3's default one keeps the first keys it has seen.
    session = get_session()
    session.register_component("data_loader", _descriptions())
    s3: S3Client = boto3.Session(botocore_session=session).client("s3", region_name=region, config=settings)
    return s3


@cache
def _descriptions() -> Any:
    """What botocore reads of services and their addresses, none of it secret: a tenth of a second, once a process."""
    return get_session().get_component("data_loader")


def _is_here() -> bool:
    host = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).hostname or ""
    return host == "localhost" or host.startswith("127.")


def preflight(bucket: str, prefix: str = "") -> None:
    """Make the bucket if it is missing, then write and read the small object `.vabal-preflight` below `prefix`.

    It is written over the next time and never deleted: rounds need no such permission.
    Raises Unavailable with one line: S3 is down, the keys are wrong, the bucket is someone else's, what is forbidden.
    """
    s3 = client()
    make_bucket(s3, bucket)
    key = "/".join(filter(None, [prefix.strip("/"), PROBE]))
    with explained(bucket, "write to"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"vabal")
    with explained(bucket, "read from"):
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    if content != b"vabal":
        raise Unavailable(f"S3 at {_address()} gave back other bytes than were written to bucket `{bucket}`")


def make_bucket(s3: "S3Client", bucket: str) -> None:
    """Make the bucket if it is missing. Raises Unavailable in one line."""
    with explained(bucket, "reach"):
        exists = _bucket_exists(s3, bucket)
    if not exists:
        with explained(bucket, "create"):
            _create_bucket(s3, bucket)


def _bucket_exists(s3: "S3Client", bucket: str) -> bool:
    # A list, not HeadBucket: an answer to HEAD has no body, so wrong keys and a foreign bucket would look the same.
    try:
        s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        if error_code(error) in MISSING:
            return False
        raise
    return True


def _create_bucket(s3: "S3Client", bucket: str) -> None:
    region = s3.meta.region_name
    try:
        if region == "us-east-1" or os.environ.get("AWS_ENDPOINT_URL"):
            s3.create_bucket(Bucket=bucket)
        else:
            place: Any = {"LocationConstraint": region}
            s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)
    except ClientError as error:
        if error_code(error) != "BucketAlreadyOwnedByYou":
            raise


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _address() -> str:
    return os.environ.get("AWS_ENDPOINT_URL", "Amazon S3")


@contextmanager
def explained(bucket: str, deed: str) -> Iterator[None]:
    """Turn boto3's errors into one line: what, where, how to mend it."""
    try:
        yield
    except NoCredentialsError:
        raise Unavailable(
            "no S3 keys: start the stack with `vabal up`, or set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    except ClientError as error:
        raise Unavailable(_explanation(error_code(error), bucket, deed)) from None
    except EndpointConnectionError:
        raise Unavailable(
            f"no S3 server at {_address()}: start the stack with `vabal up`, or set AWS_ENDPOINT_URL"
        ) from None
    except ReadTimeoutError:
        raise Unavailable(
            f"S3 at {_address()} is there, but did not answer in {limits.silence():g} s when asked to {deed} bucket "
            f"`{bucket}`: try again when it is less busy, or give it longer ({limits.SILENCE})"
        ) from None
    except (BotoCoreError, Boto3Error, ValueError) as error:
        detail = " ".join(str(error).split())
        raise Unavailable(f"S3 at {_address()} cannot be used to {deed} bucket `{bucket}`: {detail}") from None


def _explanation(code: str, bucket: str, deed: str) -> str:
    if code in WRONG_KEYS:
        return f"S3 at {_address()} refuses the keys ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code == "BucketAlreadyExists":
        named = "storage.bucket, or of pictures for people who label labelling.studio.bucket"
        return f"bucket `{bucket}` at {_address()} belongs to someone else: name another one in params.yaml ({named})"
    if code in DENIED:
        return f"not allowed to {deed} bucket `{bucket}` at {_address()} ({code}): the keys need that permission"
    return f"S3 at {_address()} answered {code or 'an error'} when asked to {deed} bucket `{bucket}`"
