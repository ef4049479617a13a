"""Files that cannot be read: set aside, with the reason."""

import csv
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from vabal.files import sha256, sync_folder, write_bytes

__all__ = ["note_left_out", "quarantine", "safe_name"]

# --- files that cannot be read ----------------------------------------------------------------------------------------


def quarantine(folder: Path, path: str, data: bytes | None, reason: str, when: datetime) -> None:
    """Copy an unreadable file into `folder` and note it in quarantine.csv; the same file is noted once.

    `data` is None where the file cannot or should not be copied (too large, no permission, in S3): it stays where it
    is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied = ""
    if data is not None:
        copied = safe_name(Path(path).stem, sha256(data)) + Path(path).suffix[:10].lower()
        if not (folder / copied).exists():
            write_bytes(folder / copied, data)
    row = {"path": path, "reason": reason, "when": when.isoformat(timespec="seconds"), "copy": copied}
    _note(folder / "quarantine.csv", [row], ("copy",) if copied else ("path", "reason"))


def note_left_out(folder: Path, left_out: Sequence[tuple[str, str]], when: datetime) -> None:
    """Note what was left out though it can be read, (name, reason) each, once, in `folder/left_out.csv`."""
    if left_out:
        folder.mkdir(parents=True, exist_ok=True)
        at = when.isoformat(timespec="seconds")
        rows = [{"name": name, "reason": reason, "when": at} for name, reason in left_out]
        _note(folder / "left_out.csv", rows, ("name", "reason"))


def _note(listing: Path, rows: list[dict[str, str]], key: tuple[str, ...]) -> None:
    """Append the rows that do not stand there by `key`: whoever was killed behind this notes the same once more."""
    there = set()
    if listing.exists():
        with listing.open(encoding="utf-8", newline="") as file:
            there = {tuple(row.get(name) for name in key) for row in csv.DictReader(file)}
    fresh = [row for row in rows if tuple(row[name] for name in key) not in there]
    if not fresh:
        return
    with listing.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(fresh[0]))
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(fresh)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(listing.parent)


def safe_name(text: str, digest: str = "") -> str:
    """`text` as a file name that any system takes, with the first eight digits of `digest` behind it, if given."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80] or "sample"
    return f"{name}-{digest[:8]}" if digest else name
