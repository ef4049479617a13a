"""The stage store: what decides whether a stage is done.

A stage's output is a folder named by a key of the stage, the code, its settings and its inputs' digests. It is written
under a temporary name and renamed, so a folder that exists is complete.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import vabal

# Modules that no stage's output depends on.
BOOKKEEPING = (
    *("audit", "bench", "champion", "checkout", "cli", "comparison", "derivation", "findings", "initial", "manifests"),
    *("promotion", "protocols", "reference", "report", "simulation", "statistics", "tables", "verification"),
)


class Stages(Protocol):
    """Where stages put their outputs: a folder (`StageStore`), or S3 where stages run on several machines."""

    def get(self, stage: str, key: str) -> Path | None: ...

    def produce(self, stage: str, key: str) -> Any: ...

    def forget(self, before: float) -> int: ...


@cache
def code_version() -> str:
    """What the stages' outputs depend on besides settings and inputs: the package's own source and torch.

    Twelve hex digits behind the package's version, as `0.1.0+3f2a...`.
    """
    digest = hashlib.sha256()
    package = Path(vabal.__file__).parent
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if not name.startswith(("adapters/", *BOOKKEEPING)):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(importlib.metadata.version("torch").encode())
    return f"{vabal.__version__}+{digest.hexdigest()[:12]}"


def stage_key(stage: str, settings: Mapping[str, Any], inputs: Mapping[str, str | int]) -> str:
    """Sixteen hex digits that change whenever the stage's output could."""
    document = {"stage": stage, "code": code_version(), "settings": dict(settings), "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(document)).hexdigest()[:16]


def canonical_json(document: Any) -> bytes:
    """Sorted keys, no spaces, UTF-8, no NaN: equal documents have equal bytes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Durable and whole, or not at all: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: a rename alone may be lost in a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class StageStore:
    """Stage outputs as folders below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, stage: str, key: str) -> Path | None:
        """The finished output, or None."""
        place = self.folder / stage / key
        return place if place.is_dir() else None

    @contextmanager
    def produce(self, stage: str, key: str) -> Iterator[Path]:
        """A temporary folder to fill; it becomes the stage's output when the block ends without an error."""
        place = self.folder / stage / key
        temporary = self.folder / stage / f".{key}.{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for path in temporary.rglob("*"):
                if path.is_file():
                    with path.open("rb") as stream:
                        os.fsync(stream.fileno())
            try:
                temporary.rename(place)
            except OSError:
                if not place.is_dir():  # else: another run finished the same stage first, with the same output
                    raise
            sync_folder(place.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def forget(self, before: float) -> int:
        """Remove outputs, finished or half-written, from before that time (seconds since 1970). Returns how many."""
        return forget(self.folder, before)


def forget(folder: Path, before: float) -> int:
    """As `StageStore.forget`, for a folder of stages."""
    old = [place for place in folder.glob("*/*") if place.stat().st_mtime < before]
    for place in old:
        shutil.rmtree(place)
    return len(old)
