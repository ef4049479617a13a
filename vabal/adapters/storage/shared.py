"""Files that several machines share: each is put below a prefix in S3 once, and fetched where it is needed."""

import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from botocore.exceptions import ClientError

from vabal.adapters.storage.client import MISSING, client, error_code, explained
from vabal.errors import Unavailable
from vabal.files import private_folder

_GAP: Final = 65_536  # bytes between two ranges that are cheaper to read than to ask again
_AT_ONCE: Final = 16  # requests


class S3Files:
    """What lies below a prefix of a bucket, by name; `vabal.files.Shared` of S3.

    An object appears whole or not at all, so a name that is there is complete. Nothing is ever deleted. Raises
    Unavailable, in one line, where S3 is away or refuses.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.s3 = client(attempts=4)

    def key(self, *names: str) -> str:
        """Of the object that has this name."""
        return "/".join([*([self.prefix] if self.prefix else []), *names])

    def has(self, name: str) -> bool:
        """Of a small file: it is read, for an answer to a question without a body does not say what is wrong."""
        with explained(self.bucket, "read stages from"):
            try:
                self.s3.get_object(Bucket=self.bucket, Key=self.key(name))["Body"].read()
            except ClientError as error:
                if error_code(error) in MISSING:
                    return False
                raise
        return True

    def find(self, name: str, path: Path) -> "S3File | None":
        """The file, if it is there; its `here` brings it to `path`."""
        size = self._size(name)
        return None if size is None else S3File(path.name, size, path, name, self)

    def publish(self, name: str, path: Path) -> None:
        """Put the file there. Another machine's of the same name has the same bytes."""
        with explained(self.bucket, "write stages to"):
            self.s3.upload_file(str(path), self.bucket, self.key(name))

    def write(self, name: str, content: bytes) -> None:
        with explained(self.bucket, "write stages to"):
            self.s3.put_object(Bucket=self.bucket, Key=self.key(name), Body=content)

    def names(self, folder: str) -> set[str]:
        """What is there below `folder`: names behind the slash, also such as lead further down."""
        prefix = self.key(folder, "")
        with explained(self.bucket, "read stages from"):
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return {item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])}

    def fetch(self, name: str, path: Path) -> None:
        """The whole file to `path`, which it has as soon as all of it is there."""
        temporary = private_folder(path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
        try:
            with explained(self.bucket, "read stages from"):
                self.s3.download_file(self.bucket, self.key(name), str(temporary))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str, first: int, size: int) -> bytes:
        """So many bytes of the file, from that one on."""
        if not size:
            return b""
        with explained(self.bucket, "read stages from"):
            found = self.s3.get_object(
                Bucket=self.bucket, Key=self.key(name), Range=f"bytes={first}-{first + size - 1}"
            )
            content = bytes(found["Body"].read())
        if len(content) != size:
            raise Unavailable(f"S3 gave {len(content)} bytes of {self.key(name)} in bucket `{self.bucket}`, not {size}")
        return content

    def _size(self, name: str) -> int | None:
        with explained(self.bucket, "read stages from"):
            try:
                return int(self.s3.head_object(Bucket=self.bucket, Key=self.key(name))["ContentLength"])
            except ClientError as error:
                if error_code(error) in MISSING:
                    return None
                raise


@dataclass
class S3File:
    """One of the files, of which parts can be read without fetching it; `vabal.files.Remote` of S3."""

    name: str
    size: int
    path: Path
    object: str
    files: S3Files

    def here(self) -> Path:
        """The file brought to this machine, and kept."""
        if not self.path.exists():
            self.files.fetch(self.object, self.path)
        return self.path

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range (offset, bytes), in the order given; neighbours are asked for together."""
        parts = list(_merged(ranges))
        with ThreadPoolExecutor(max_workers=min(_AT_ONCE, max(1, len(parts)))) as executor:
            contents = list(executor.map(lambda part: self.files.read(self.object, part[0], part[1]), parts))
        found: list[bytes] = [b""] * len(ranges)
        for (begin, _, members), content in zip(parts, contents, strict=True):
            for place in members:
                first, size = ranges[place]
                found[place] = content[first - begin : first - begin + size]
        return found


def _merged(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Ranges (offset, bytes) that cover those given, with the places of these in the sequence."""
    begin = end = -1
    members: list[int] = []
    for place in sorted(range(len(ranges)), key=ranges.__getitem__):
        first, size = ranges[place]
        if members and first > end + _GAP:
            yield begin, end - begin, members
            members = []
        if not members:
            begin = end = first
        end = max(end, first + size)
        members.append(place)
    if members:
        yield begin, end - begin, members
