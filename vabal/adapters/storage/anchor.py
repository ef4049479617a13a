"""The record's heads in a bucket that others keep, so that a history that was rewritten is found out."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from vabal.adapters.storage.bucket import Bucket
from vabal.adapters.storage.client import MISSING, error_code, explained
from vabal.errors import UserError


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
        with explained(self._bucket.bucket, "read from"):
            try:
                answer = self._bucket.s3.get_object(Bucket=self._bucket.bucket, Key=self._bucket.prefix + name)
            except ClientError as error:
                if error_code(error) in MISSING:
                    return None
                raise
            return str(answer["Body"].read().decode("utf-8", "replace"))

    def _put(self, name: str, head: str) -> str:
        """Writes the head; returns what stands there then, where somebody else was first."""
        place: Any = {"Bucket": self._bucket.bucket, "Key": self._bucket.prefix + name}
        with explained(self._bucket.bucket, "write to"):
            try:
                self._bucket.s3.put_object(**place, Body=head.encode(), IfNoneMatch="*", **self._lock())
            except ClientError as error:
                if error_code(error) not in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
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
