"""The places outside `data/` that vouch for the record, as the audit asks them."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vabal.audit.shared import Each
from vabal.objects import Store
from vabal.promotion import registered
from vabal.rounds.versions import Pinned, Tag

DECISION = re.compile(r"promotion/(\d{4,})")


class Repository(Protocol):
    """What is needed of `adapters.versioning`."""

    def tag_objects(self) -> dict[str, Tag]: ...
    def remote_tag_objects(self, remote: str) -> dict[str, Tag]: ...
    def commit_of(self, name: str) -> str | None: ...
    def branch(self) -> str | None: ...
    def is_on_a_branch(self, commit: str) -> bool: ...
    def precedes(self, commit: str, later: str) -> bool: ...
    def changed_in(self, commit: str, path: str) -> bool: ...
    def pinned(self, at: str | None) -> Pinned | None: ...
    def is_shallow(self) -> bool: ...
    def damage(self) -> str | None: ...
    def listing(self, digest: str) -> dict[str, str] | None: ...
    def cached(self, md5: str) -> Path | None: ...
    def read_listing(self, content: bytes, digest: str) -> dict[str, str] | None: ...
    def listing_digest(self, listing: Mapping[str, str]) -> str: ...
    def object_name(self, md5: str) -> str: ...
    def signature_problem(self, tag: str) -> str | None: ...


class Bucket(Protocol):
    """What is needed of S3: `adapters.storage.Bucket` below the pools' prefix."""

    def objects(self) -> dict[str, tuple[int, str]]: ...
    def read(self, name: str) -> bytes: ...


class Anchor(Protocol):
    """Where heads are written once: `adapters.storage.Anchor`."""

    def read(self) -> dict[str, str]: ...


class Registry(Protocol):
    """What is needed of `adapters.tracking`."""

    def version(self, version: str) -> registered.Registered: ...
    def files(self, version: str) -> Mapping[str, str]: ...


@dataclass
class Outside:
    """What the checks may ask, and the notes of what they could not look at."""

    repository: Repository
    sign: bool = False
    anchor: Anchor | None = None
    bucket: Bucket | None = None  # with --remote alone
    objects: Store | None = None  # images that stay in S3: with --remote alone
    git_remote: str | None = None  # with --remote alone
    registry: Registry | None = None  # with --remote alone
    pending: int | None = None  # the round whose publication was cut short: git may not know it yet
    notes: list[str] = field(default_factory=list)
    since: int = 0  # the first round that is checked in full
    earlier: frozenset[str] = frozenset()  # files below `data/` of rounds before it: their bytes are not read
    each: Each = map
    _md5: dict[Path, str] = field(default_factory=dict)

    def md5(self, path: Path) -> str:
        if path not in self._md5:
            self._md5[path] = _md5(path)
        return self._md5[path]

    def read_ahead(self, paths: Sequence[Path]) -> None:
        """Shares the reading of what `md5` will be asked for."""
        self._md5 |= zip(paths, self.each(_md5, paths), strict=True)


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
