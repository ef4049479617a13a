"""What a folder holds."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its path in the folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
