"""Images that stay in S3: listed, looked at and read one by one, from several threads."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from vabal.adapters.storage.client import MISSING, client, error_code, explained
from vabal.errors import shown
from vabal.objects import AT_ONCE, Content, Gone, Listed, parts_of

_GONE: Final = (*(code for code in MISSING if code != "NoSuchBucket"), "NoSuchVersion")
_TRIES: Final = 3  # of a body that breaks off: boto3 asks again only for what did not begin


class Objects:
    """`vabal.objects.Store` with the address and keys of the environment."""

    def __init__(self) -> None:
        self._s3 = client(attempts=5, connections=AT_ONCE)

    def below(self, uri: str) -> Iterator[Listed]:
        """Every object below a prefix, page by page; else the one with this address. Raises Unavailable."""
        bucket, key = parts_of(uri)
        prefix = f"{key.rstrip('/')}/" if key.strip("/") else ""
        found = False
        with explained(bucket, "list"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            for page in pages:
                for item in page.get("Contents", []):
                    found = True
                    yield Listed(f"s3://{bucket}/{item['Key']}", int(item["Size"]), _tag(item))
        one = None if found or not prefix or key.endswith("/") else self.look(uri)
        if one is not None:
            yield one

    def read(self, uri: str, version: str | None = None, most: int | None = None) -> Content:
        bucket, key = parts_of(uri)
        which: dict[str, Any] = {"VersionId": version} if version else {}
        with explained(bucket, "read from"):
            for left in reversed(range(_TRIES)):
                try:
                    answer = self._s3.get_object(Bucket=bucket, Key=key, **which)
                    with closing(answer["Body"]) as body:
                        size = int(answer["ContentLength"])
                        data = None if most is not None and size > most else body.read()
                    return Content(size, _tag(answer), _version(answer), data)
                except ClientError as error:
                    if error_code(error) in _GONE:
                        raise Gone(f"{shown(uri)} is gone") from None
                    raise
                except BotoCoreError:
                    if not left:
                        raise
        raise AssertionError("the last try returns or raises")

    def look(self, uri: str, version: str | None = None) -> Listed | None:
        bucket, key = parts_of(uri)
        which: dict[str, Any] = {"VersionId": version} if version else {}
        with explained(bucket, "read from"):
            try:
                answer = self._s3.head_object(Bucket=bucket, Key=key, **which)
            except ClientError as error:
                if error_code(error) in _GONE:
                    return None
                raise
        return Listed(uri, int(answer["ContentLength"]), _tag(answer))


def _tag(answer: Any) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _version(answer: Any) -> str | None:
    """`null` is the version of what came before a bucket kept any: it can be written over."""
    version = answer.get("VersionId")
    return None if version in (None, "", "null") else str(version)
