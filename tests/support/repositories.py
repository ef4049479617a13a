"""Git as a person types it."""

import subprocess
from pathlib import Path

SOMEBODY = ("-c", "user.name=x", "-c", "user.email=x@y")


def git(root: Path, *arguments: str) -> str:
    """What it said, without the end of its last line."""
    said = subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout
    return said.removesuffix("\n")
