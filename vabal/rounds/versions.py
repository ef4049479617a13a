"""What rounds ask of version control, whichever it is."""

from dataclasses import dataclass
from typing import Protocol

from vabal.errors import UserError

# -- which round is the newest --------------------------------------------------------------------------------------


class Tags(Protocol):
    """What is needed of `adapters.versioning` to know the newest round."""

    def branch(self) -> str | None: ...
    def branches_with(self, name: str) -> list[str]: ...
    def tags(self) -> list[str]: ...
    def remote_tags(self, remote: str) -> dict[str, str]: ...
    def commit_of(self, name: str) -> str | None: ...
    def contains(self, name: str, commit: str) -> bool: ...
    def committed(self, path: str, at: str = ...) -> bytes | None: ...


# -- publishing ---------------------------------------------------------------------------------------------------


class Versions(Protocol):
    """What publishing needs of `adapters.versioning`."""

    def add(self) -> None: ...
    def push(self) -> None: ...
    def defer_push(self) -> None: ...
    def bring_back(self) -> None: ...
    def commit(self, paths: list[str], message: str) -> bool: ...
    def tag(self, name: str, message: str) -> None: ...
    def undo(self, name: str, message: str) -> None: ...
    def commit_of(self, name: str) -> str | None: ...
    def remote_tags(self, remote: str) -> dict[str, str]: ...
    def push_git(self, remote: str, names: list[str]) -> None: ...
    def follow(self, remote: str) -> None: ...


class Overtaken(UserError):  # noqa: N818 -- an answer, as much as an error
    """Another machine has published this round at the git remote: this one's gives way (`vabal.rounds.withdrawal`)."""


@dataclass(frozen=True)
class Pinned:
    """What a commit pins `data/` to: the digest of the folder's listing, its bytes and its files."""

    digest: str
    size: int
    files: int


@dataclass(frozen=True)
class Tag:
    """A git tag: its own object, the commit that it stands at, and whether it is annotated (not a tag of a tag)."""

    object: str
    commit: str
    annotated: bool = True
