"""What the fixture `stack` gives to a test."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunningStack:
    """The stack's workspace folder; `.vabal/env` below it holds addresses and keys."""

    root: Path

    @property
    def is_known(self) -> bool:
        return (self.root / ".vabal" / "env").is_file()

    @property
    def environment(self) -> dict[str, str]:
        lines = (self.root / ".vabal" / "env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)
