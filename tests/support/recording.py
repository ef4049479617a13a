"""In the place of version control: what was asked of it."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from vabal.errors import Unavailable


class Recording:
    """In the place of DVC and git: notes what is asked for; fails where it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails_at = fails_at

    def _note(self, name: str, *arguments: Any) -> None:
        if name == self.fails_at:
            raise Unavailable(f"{name} is away")
        self.calls.append((name, *arguments))

    def in_one_process(self) -> AbstractContextManager[None]:
        return nullcontext()

    def add(self) -> None:
        self._note("add")

    def push(self) -> None:
        self._note("push")

    def defer_push(self) -> None:
        self._note("defer_push")

    def commit(self, paths: list[str], message: str) -> bool:
        self._note("commit", tuple(paths), message)
        return True

    def tag(self, name: str, message: str) -> None:
        self._note("tag", name, message)

    def bring_back(self) -> None:
        self._note("bring_back")

    def undo(self, name: str, message: str) -> None:
        self._note("undo", name, message)

    def follow(self, remote: str) -> None:
        self._note("follow", remote)

    def commit_of(self, name: str) -> str | None:
        return name

    def remote_tags(self, remote: str) -> dict[str, str]:
        self._note("remote_tags", remote)
        return {}

    def push_git(self, remote: str, names: list[str]) -> None:
        self._note("push_git", remote, tuple(names))
