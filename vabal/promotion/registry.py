"""What promotion asks of the registry and of git, and what it answers."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from vabal.errors import UserError
from vabal.promotion.record import Copy, Entry
from vabal.promotion.registered import Registered

CHAMPION, CHALLENGER = "champion", "challenger"
STATUS_TAG = "vabal.promotion.status"


class NotPromoted(UserError):  # noqa: N818  # an answer, as much as an error
    """The gate does not hold: the message names the numbers that failed. The refusal stands in the record.

    Or it cannot be asked yet: the message says what the holdout lacks, and nothing is recorded.
    """


class Version(Registered, Protocol):
    """What a registered version tells of itself, with MLflow's tags."""

    @property
    def tags(self) -> Mapping[str, str]: ...


class Registry(Protocol):
    """What is needed of `adapters.tracking`."""

    def version(self, version: str) -> Version: ...
    def version_by_alias(self, alias: str) -> Version | None: ...
    def all_tags(self) -> Mapping[str, Mapping[str, str]]: ...
    def files(self, version: str) -> Mapping[str, str]: ...
    def tag_version(self, version: str, tags: Mapping[str, str]) -> None: ...
    def set_alias(self, alias: str, version: str) -> None: ...


class History(Protocol):
    """What is needed of `adapters.versioning`."""

    def commit(self, paths: list[str], message: str) -> bool: ...
    def tag(self, name: str, message: str) -> None: ...
    def push_git(self, remote: str, names: list[str]) -> None: ...
    def branch(self) -> str | None: ...
    def branches_with(self, name: str) -> list[str]: ...
    def tags(self, pattern: str = ...) -> list[str]: ...
    def tag_messages(self, pattern: str = ..., *, of_head: bool = ...) -> dict[str, str]: ...
    def commit_of(self, name: str) -> str | None: ...
    def contains(self, name: str, commit: str) -> bool: ...
    def committed(self, path: str, at: str = ...) -> bytes | None: ...
    def copies(self, path: str, at: Iterable[str]) -> dict[str, Copy | None]: ...
    def commits_of(self, path: str) -> list[str]: ...
    def remote_tags(self, remote: str, pattern: str = ...) -> dict[str, str]: ...
    def remote_branch(self, remote: str) -> str | None: ...
    def take_back(self, path: str, content: bytes, tag: str) -> None: ...


class Anchor(Protocol):
    """Where the last decision's digest is written elsewhere, by its tag's name: `adapters.storage.Anchor`."""

    def known(self, name: str) -> str | None: ...
    def write(self, name: str, head: str) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What a promotion or a rollback came to, and what it had to mend first."""

    action: Literal["promoted", "unchanged", "rolled back"]
    message: str
    entry: Entry | None
    mended: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        return [*self.mended, self.message]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PromotionContext:
    """Where promotions happen: the workspace's root, the registry, git, and who asks. Hold the workspace's lock."""

    root: Path
    registry: Registry
    history: History
    who: str
    git_remote: str | None = None
    anchor: Anchor | None = None
