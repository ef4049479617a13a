"""S3 through boto3: is the bucket there and open to us, and a stage store that several machines share."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

from vabal.errors import Unavailable, UserError
from vabal.store import forget

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MARKER = "_complete"
PROBE = ".vabal-preflight"
CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
MISSING = ("404", "NoSuchBucket", "NoSuchKey", "NotFound")
DENIED = ("403", "AccessDenied", "Forbidden", "AllAccessDisabled")


def client(*, attempts: int = 1, read_timeout: float = READ_TIMEOUT_S) -> "S3Client":
    """An S3 client for the address and keys of the environment (AWS_ENDPOINT_URL and the usual variables)."""
    settings = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=read_timeout,
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
    s3: S3Client = boto3.Session().client("s3", region_name=region, config=settings)
    return s3


def _is_here() -> bool:
    host = urlsplit(os.environ.get("AWS_ENDPOINT_URL", "")).hostname or ""
    return host == "localhost" or host.startswith("127.")


def preflight(bucket: str, prefix: str = "") -> None:
    """Make the bucket if it is missing, then write, read and delete a small object below `prefix`.

    Raises Unavailable with one line: S3 is down, the keys are wrong, the bucket is someone else's, what is forbidden.
    """
    s3 = client()
    with _explained(bucket, "reach"):
        exists = _bucket_exists(s3, bucket)
    if not exists:
        with _explained(bucket, "create"):
            _create_bucket(s3, bucket)
    key = "/".join(filter(None, [prefix.strip("/"), f"{PROBE}-{uuid.uuid4().hex}"]))
    with _explained(bucket, "write to"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"vabal")
    with _explained(bucket, "read from"):
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    with _explained(bucket, "delete from"):
        s3.delete_object(Bucket=bucket, Key=key)
    if content != b"vabal":
        raise Unavailable(f"S3 at {_address()} gave back other bytes than were written to bucket `{bucket}`")


def _bucket_exists(s3: "S3Client", bucket: str) -> bool:
    # A list, not HeadBucket: an answer to HEAD has no body, so wrong keys and a foreign bucket would look the same.
    try:
        s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
    except ClientError as error:
        if _code(error) in MISSING:
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
        if _code(error) != "BucketAlreadyOwnedByYou":
            raise


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _address() -> str:
    return os.environ.get("AWS_ENDPOINT_URL", "Amazon S3")


@contextmanager
def _explained(bucket: str, deed: str) -> Iterator[None]:
    """Turn boto3's errors into one line: what, where, how to mend it."""
    try:
        yield
    except NoCredentialsError:
        raise Unavailable(
            "no S3 keys: start the stack with `vabal up`, or set AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from None
    except ClientError as error:
        raise Unavailable(_explanation(_code(error), bucket, deed)) from None
    except EndpointConnectionError:
        raise Unavailable(
            f"no S3 server at {_address()}: start the stack with `vabal up`, or set AWS_ENDPOINT_URL"
        ) from None
    except (BotoCoreError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise Unavailable(f"S3 at {_address()} cannot be used to {deed} bucket `{bucket}`: {detail}") from None


def _explanation(code: str, bucket: str, deed: str) -> str:
    if code in WRONG_KEYS:
        return f"S3 at {_address()} refuses the keys ({code}): check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if code == "BucketAlreadyExists":
        return f"bucket `{bucket}` at {_address()} belongs to someone else: set another `storage.bucket` in params.yaml"
    if code in DENIED:
        return f"not allowed to {deed} bucket `{bucket}` at {_address()} ({code}): the keys need that permission"
    return f"S3 at {_address()} answered {code or 'an error'} when asked to {deed} bucket `{bucket}`"


class S3StageStore:
    """Stage outputs below an `s3://bucket/prefix`, with a folder of this machine as cache.

    The same interface as `vabal.store.StageStore`. S3 has no rename, so an output counts as finished once its marker
    object is there, which is written last. Two machines that finish the same stage write the same bytes.
    """

    def __init__(self, address: str, cache: Path) -> None:
        """`address` is `s3://bucket/prefix`; downloaded and produced outputs are kept below `cache`.

        Raises UserError if `address` is no such address.
        """
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.netloc:
            raise UserError(f"stages: `{address}` is no s3://bucket/prefix")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        self.cache = cache
        self._s3 = client(attempts=4, read_timeout=60.0)

    def get(self, stage: str, key: str) -> Path | None:
        """The finished output as a local folder, downloaded if need be, or None. Raises Unavailable if S3 is."""
        place = self.cache / stage / key
        if place.is_dir():
            return place
        with _explained(self.bucket, "read stages from"):
            names = self._names(stage, key)
            if MARKER not in names:
                return None
            temporary = self._temporary(stage, key)
            try:
                for name in names - {MARKER}:
                    self._s3.download_file(self.bucket, self._object(stage, key, name), str(temporary / name))
                _rename(temporary, place)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return place

    @contextmanager
    def produce(self, stage: str, key: str) -> Iterator[Path]:
        """A temporary folder to fill; when the block ends without an error its files are uploaded, the marker last.

        Raises Unavailable if S3 cannot be written to; then the stage counts as not done, here as well.
        """
        place = self.cache / stage / key
        temporary = self._temporary(stage, key)
        try:
            yield temporary
            with _explained(self.bucket, "write stages to"):
                for path in sorted(temporary.iterdir()):
                    self._s3.upload_file(str(path), self.bucket, self._object(stage, key, path.name))
                self._s3.put_object(Bucket=self.bucket, Key=self._object(stage, key, MARKER), Body=b"")
            _rename(temporary, place)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def forget(self, before: float) -> int:
        """Remove outputs from before that time (seconds since 1970) from this machine's cache; S3 keeps everything.

        Other machines may still need an output, so the bucket is cleaned by a lifecycle rule of its own.
        """
        return forget(self.cache, before)

    def _object(self, stage: str, key: str, name: str) -> str:
        return "/".join(filter(None, [self.prefix, stage, key, name]))

    def _names(self, stage: str, key: str) -> set[str]:
        prefix = self._object(stage, key, "")
        prefix = prefix if prefix.endswith("/") else prefix + "/"
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])}

    def _temporary(self, stage: str, key: str) -> Path:
        folder = self.cache / stage / f".{key}.{uuid.uuid4().hex}"
        folder.mkdir(parents=True)
        return folder


def _rename(temporary: Path, place: Path) -> None:
    try:
        temporary.rename(place)
    except OSError:
        if not place.is_dir():  # else: another process finished the same stage first, with the same output
            raise
