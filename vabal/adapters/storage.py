"""S3 through boto3: is the bucket there and open to us, and a stage store that several machines share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError, NoCredentialsError

from vabal.adapters import limits
from vabal.errors import Unavailable, UserError
from vabal.files import canonical_json
from vabal.rounds.stage_store import MARK, STAGES, LocalStageStore

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MARKER = "_complete"
PROBE = ".vabal-preflight"
CONNECT_TIMEOUT_S = 3.0
READ_TIMEOUT_S = 10.0
WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
MISSING = ("404", "NoSuchBucket", "NoSuchKey", "NotFound")
DENIED = ("403", "AccessDenied", "Forbidden", "AllAccessDisabled")


def client(*, attempts: int = 2, read_timeout: float = READ_TIMEOUT_S) -> "S3Client":
    """An S3 client for the address and keys of the environment (AWS_ENDPOINT_URL and the usual variables)."""
    settings = Config(
        connect_timeout=min(CONNECT_TIMEOUT_S, limits.silence()),
        read_timeout=min(read_timeout, limits.silence()),
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
    """Make the bucket if it is missing, then write and read the small object `.vabal-preflight` below `prefix`.

    It is written over the next time and never deleted: rounds need no such permission.
    Raises Unavailable with one line: S3 is down, the keys are wrong, the bucket is someone else's, what is forbidden.
    """
    s3 = client()
    with _explained(bucket, "reach"):
        exists = _bucket_exists(s3, bucket)
    if not exists:
        with _explained(bucket, "create"):
            _create_bucket(s3, bucket)
    key = "/".join(filter(None, [prefix.strip("/"), PROBE]))
    with _explained(bucket, "write to"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"vabal")
    with _explained(bucket, "read from"):
        content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
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
    except (BotoCoreError, Boto3Error, ValueError) as error:
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
    """Stage outputs below an `s3://bucket/prefix`, with this machine's store as cache.

    The same interface as `vabal.rounds.stage_store.LocalStageStore`. S3 has no rename, so an output counts as finished
    once its marker object is there, which is written last. Two machines that finish the same stage write the same
    bytes. Nothing is read or written but below the prefix, and nothing in S3 is ever deleted.
    """

    def __init__(self, address: str, cache: LocalStageStore) -> None:
        """`address` is `s3://bucket/prefix`; downloaded and produced outputs are kept in `cache`.

        Raises UserError if `address` is no such address.
        """
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.netloc:
            raise UserError(f"stages: `{address}` is no s3://bucket/prefix")
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/")
        self.cache = cache
        self._s3 = client(attempts=4, read_timeout=60.0)

    def claim(self) -> None:
        """Mark the prefix as a stage store's.

        Raises UserError if something else lies below it, Unavailable if S3 is away or the keys may not write there.
        """
        self.cache.claim()
        mark = self._object(MARK)
        with _explained(self.bucket, "write stages to"):
            if self._has(mark):
                return
            found = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=self._object(""))
            names = [item["Key"].removeprefix(self._object("")) for item in found.get("Contents", [])]
            foreign = [name for name in names if name.split("/")[0] not in STAGES]
            if foreign:
                where = f"s3://{self.bucket}/{self.prefix}"
                raise UserError(f"stages: {where} holds other things (as {foreign[0]}): name another prefix")
            self._s3.put_object(Bucket=self.bucket, Key=mark, Body=canonical_json({"stages": 1}))

    def _has(self, key: str) -> bool:
        try:
            self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()
        except ClientError as error:
            if _code(error) in MISSING:
                return False
            raise
        return True

    def get(self, stage: str, key: str) -> Path | None:
        """The finished output as a local folder, downloaded if need be, or None. Raises Unavailable if S3 is."""
        place = self.cache.get(stage, key)
        if place is not None:
            return place
        with _explained(self.bucket, "read stages from"):
            names = self._names(stage, key)
            if MARKER not in names:
                return None
            with self.cache.produce(stage, key) as temporary:
                for name in sorted(names - {MARKER}):
                    self._s3.download_file(self.bucket, self._object(stage, key, name), str(temporary / name))
        return self.cache.get(stage, key)

    @contextmanager
    def produce(self, stage: str, key: str) -> Iterator[Path]:
        """A temporary folder to fill; when the block ends without an error its files are uploaded, the marker last.

        Raises Unavailable if S3 cannot be written to; then the stage counts as not done, here as well.
        """
        with self.cache.produce(stage, key) as temporary:
            yield temporary
            with _explained(self.bucket, "write stages to"):
                for path in sorted(temporary.iterdir()):
                    self._s3.upload_file(str(path), self.bucket, self._object(stage, key, path.name))
                self._s3.put_object(Bucket=self.bucket, Key=self._object(stage, key, MARKER), Body=b"")

    def forget(self, before: float) -> int:
        """Remove outputs from before that time (seconds since 1970) from this machine's cache; S3 keeps everything.

        Other machines may still need an output, so the bucket is cleaned by a lifecycle rule of its own.
        """
        return self.cache.forget(before)

    def _object(self, *names: str) -> str:
        return "/".join([*([self.prefix] if self.prefix else []), *names])

    def _names(self, stage: str, key: str) -> set[str]:
        """The files of an output. Raises UserError for a name that no stage gives, which could lead elsewhere."""
        prefix = self._object(stage, key, "")
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        names = {item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])}
        strange = sorted(name for name in names if name != Path(name).name or name in ("", ".", ".."))
        if strange:
            raise UserError(
                f"stages: s3://{self.bucket}/{prefix} holds {strange[0]!r}, which no stage put there: remove it, or "
                "name another prefix"
            )
        return names


# -- what the audit asks -----------------------------------------------------------------------------------------------


class Bucket:
    """The objects below a prefix of a bucket, for reading."""

    def __init__(self, bucket: str, prefix: str = "") -> None:
        self.bucket = bucket
        self.prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self.s3 = client(attempts=4, read_timeout=60.0)

    def objects(self) -> dict[str, tuple[int, str]]:
        """Size and entity tag of every object, by its name below the prefix. Raises Unavailable if S3 is."""
        found: dict[str, tuple[int, str]] = {}
        with _explained(self.bucket, "list"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    name = item["Key"].removeprefix(self.prefix)
                    found[name] = (int(item["Size"]), item.get("ETag", "").strip('"'))
        return found

    def read(self, name: str) -> bytes:
        """An object's bytes. Raises Unavailable if S3 is, or lacks it."""
        with _explained(self.bucket, "read from"):
            return bytes(self.s3.get_object(Bucket=self.bucket, Key=self.prefix + name)["Body"].read())


class Anchor:
    """Heads of the record below an `s3://bucket/prefix`, each written once: `round/0003`, `promotion/0007`.

    A bucket with Object Lock keeps them for `years`, whoever holds the keys; a server that knows If-None-Match refuses
    a second writing. The content is compared in any case.
    """

    def __init__(self, address: str, years: int) -> None:
        """Raises UserError if `address` is no s3://bucket/prefix."""
        parts = urlsplit(address)
        if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
            raise UserError(f"audit.anchor: `{address}` is no s3://bucket/prefix")
        self._bucket = Bucket(parts.netloc, parts.path)
        self._years = years

    def read(self) -> dict[str, str]:
        """Every anchored head by its name. Raises Unavailable if S3 is."""
        return {name: self._bucket.read(name).decode("utf-8", "replace") for name in self._bucket.objects()}

    def write(self, name: str, head: str) -> None:
        """Anchor a head. Raises UserError if another one stands there, Unavailable if S3 is away."""
        known = self.known(name)
        if known is None:
            known = self._put(name, head)
        if known != head:
            raise UserError(
                f"{self._bucket.prefix}{name} in bucket `{self._bucket.bucket}` anchors another head ({known}): "
                "another clone or workspace writes there, or this history was rewritten (`vabal audit --verify`)"
            )

    def known(self, name: str) -> str | None:
        """The head that stands there; None if none does. Raises Unavailable if S3 is away."""
        with _explained(self._bucket.bucket, "read from"):
            try:
                answer = self._bucket.s3.get_object(Bucket=self._bucket.bucket, Key=self._bucket.prefix + name)
            except ClientError as error:
                if _code(error) in MISSING:
                    return None
                raise
            return str(answer["Body"].read().decode("utf-8", "replace"))

    def _put(self, name: str, head: str) -> str:
        """Writes the head; returns what stands there then, where somebody else was first."""
        place: Any = {"Bucket": self._bucket.bucket, "Key": self._bucket.prefix + name}
        with _explained(self._bucket.bucket, "write to"):
            try:
                self._bucket.s3.put_object(**place, Body=head.encode(), IfNoneMatch="*", **self._lock())
            except ClientError as error:
                if _code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                    raise
                return self.known(name) or ""
        return head

    def _lock(self) -> dict[str, Any]:
        """Retention, where the bucket has Object Lock and no rule of its own."""
        try:
            found = self._bucket.s3.get_object_lock_configuration(Bucket=self._bucket.bucket)
        except ClientError:  # a bucket, or a server, without it
            return {}
        configuration = found.get("ObjectLockConfiguration", {})
        if configuration.get("ObjectLockEnabled") != "Enabled" or configuration.get("Rule"):
            return {}
        until = datetime.now(UTC) + timedelta(days=365 * self._years)
        # S3 wants a checksum with a retention.
        return {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": until, "ChecksumAlgorithm": "SHA256"}
