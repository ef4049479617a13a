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

    `data` is None where the file cannot or should not be copied (too large, no permission): it stays where it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "quarantine.csv"
    copied = ""
    if data is not None:
        copied = safe_name(Path(path).stem, sha256(data)) + Path(path).suffix[:10].lower()
        if (folder / copied).exists() and _is_listed(listing, copied):
            return
        write_bytes(folder / copied, data)
    _append(listing, ["path", "reason", "when", "copy"], [[path, reason, when.isoformat(timespec="seconds"), copied]])


def note_left_out(folder: Path, left_out: Sequence[tuple[str, str]], when: datetime) -> None:
    """Note what was left out though it can be read, (name, reason) each, in `folder/left_out.csv`."""
    if left_out:
        folder.mkdir(parents=True, exist_ok=True)
        rows = [[name, reason, when.isoformat(timespec="seconds")] for name, reason in left_out]
        _append(folder / "left_out.csv", ["name", "reason", "when"], rows)


def _append(listing: Path, header: list[str], rows: list[list[str]]) -> None:
    new = not listing.exists()
    with listing.open("a", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(header)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(listing.parent)


def _is_listed(listing: Path, copied: str) -> bool:
    """Whether a copy has its line: one that was cut short after copying gets it the next time."""
    if not listing.exists():
        return False
    with listing.open(encoding="utf-8", newline="") as file:
        return any(row[-1:] == [copied] for row in csv.reader(file))


def safe_name(text: str, digest: str = "") -> str:
    """`text` as a file name that any system takes, with the first eight digits of `digest` behind it, if given."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:80] or "sample"
    return f"{name}-{digest[:8]}" if digest else name
