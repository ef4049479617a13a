"""What came and no round has taken yet: numbered arrivals, durable."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import pandas as pd

from vabal.files import locked, make_folder, sha256, sync_folder
from vabal.pools import CLASS_CHANGES, EVENTS, INCOMING, read_table, stack

_NAME: Final = re.compile(r"\d{6,}-[0-9a-f]{8}(\.parquet)?")
HALF: Final = re.compile(r"\.[0-9a-f]{32}\.tmp")  # an ingestion that is being written
_KINDS: Final = ("labels", "images", "classes")
MEND: Final = "move this entry out of inbox/, and import or ingest again what it came from"


@dataclass(frozen=True)
class Arrival:
    """Images of one ingestion: their catalog rows (columns of `pools.INCOMING`) and the folder of their shards."""

    name: str
    catalog: pd.DataFrame
    shards: Path


def pending(inbox: Path) -> list[str]:
    """What no round has taken yet, in the order it came: names relative to the inbox."""
    found = [
        f"{kind}/{path.name}" for kind in _KINDS for path in (inbox / kind).glob("*") if _NAME.fullmatch(path.name)
    ]
    return _in_order(found)


def _number(name: str) -> int:
    return int(PurePosixPath(name).name.partition("-")[0])


def read(inbox: Path, names: Sequence[str]) -> tuple[pd.DataFrame, list[Arrival]]:
    """Label events (columns of `pools.EVENTS`) and images behind these names, in order.

    Raises UserError if something of it is gone or damaged.
    """
    ordered = _in_order(names)
    events = [read_table(inbox / name, EVENTS, MEND) for name in ordered if name.startswith("labels/")]
    arrivals = [
        Arrival(name, read_table(inbox / name / "catalog.parquet", INCOMING, MEND), inbox / name / "images")
        for name in ordered
        if name.startswith("images/")
    ]
    return stack(events, EVENTS), arrivals


def read_changes(inbox: Path, names: Sequence[str]) -> pd.DataFrame:
    """The changes of classes (columns of `pools.CLASS_CHANGES`) behind these names, in order. Raises as `read` does."""
    wanted = [name for name in _in_order(names) if name.startswith("classes/")]
    return stack([read_table(inbox / name, CLASS_CHANGES, MEND) for name in wanted], CLASS_CHANGES)


def _in_order(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (_number(name), name))


def remove(inbox: Path, names: Sequence[str]) -> None:
    """Take these names out of the inbox; those that are gone already are no error."""
    for name in names:
        path = inbox / name
        if path.parent.parent != inbox or path.parent.name not in _KINDS or not _NAME.fullmatch(path.name):
            continue  # no name that the inbox gave
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_folder(path.parent)


@contextmanager
def one_at_a_time(inbox: Path) -> Iterator[None]:
    """Imports and ingestions wait for each other, so that each sees what came before it. Ends with the process."""
    make_folder(inbox)
    with locked(inbox / ".lock"):
        yield


def next_name(inbox: Path, digest: str) -> str:
    return f"{max(map(_number, pending(inbox)), default=0) + 1:06d}-{digest[:8]}"


def some_of(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def content_digest(catalog: pd.DataFrame) -> str:
    told = [f"\0{group}" if isinstance(group, str) else "" for group in catalog["group"]]
    rows = zip(catalog["sample_id"], catalog["sha256"], told, strict=True)
    return sha256("".join(f"{sample_id}\0{content}{group}\n" for sample_id, content, group in rows).encode())
