"""The stage store: what decides whether a stage is done.

A stage's output is a folder named by a key of the stage, the code, its settings and its inputs' digests. It is written
under a temporary name and renamed, so a folder that exists is complete.

A store marks its folder as its own when it makes it, and removes nothing but what bears a name that it gave.
"""

import hashlib
import importlib.metadata
import json
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

import vabal
from vabal.errors import UserError
from vabal.files import (
    Remote,
    Shared,
    canonical_json,
    private_folder,
    remove,
    sha256,
    sync_folder,
    sync_tree,
    touched,
    write_once,
)
from vabal.workspace import VERSIONING

MARK: Final = ".vabal-stages"
# The names that a stage's folder may have: nothing else in a store's folder is ever removed.
STAGES: Final = (
    *("intake", "train-classifier", "train-committee", "train-member", "evaluate"),
    *("extract-features", "extract-committee", "train-vae", "class-terms", "estimate-probabilities", "select-batch"),
)
# Beside the stages: files that outlast a night, in S3, and on this machine single files of outputs that lie in S3.
SHARED: Final = ("decoded", "embeddings", "shards", "weights")
PARTS: Final = "parts"
_KEY: Final = re.compile(r"[0-9a-f]{16}")
_OURS: Final = re.compile(r"[0-9a-f]{16}|\.[0-9a-f]{16}\.[0-9a-f]{32}")  # an output, or one that is being written
# Folders of a workspace that hold something else: `.vabal` has the store's own place, `.vabal/stages`.
_TAKEN: Final = ("data", "inbox", "quarantine", "mlruns", ".git", VERSIONING)

# What can change a stage's output: these modules of the package, and the libraries that compute it. A test walks the
# imports from `rounds/steps/` and compares (tests/unit/rounds/test_code_version.py).
STAGE_CODE: Final = (
    *("files.py", "images/__init__.py", "images/decoded.py", "images/decoding.py", "images/rows.py"),
    *("images/shard_files.py", "images/shards.py"),
    *("labels/again.py", "labels/arrivals.py", "labels/consensus.py", "labels/crowdlab.py", "labels/suspicion.py"),
    *(
        "learning/",
        "pools/",
        "probabilities/",
        "rounds/believed.py",
        "rounds/context.py",
        "rounds/drift.py",
        "rounds/figures.py",
        "rounds/learner.py",
    ),
    *("rounds/steps/", "rounds/tables.py", "strategies/", "vae/"),
)
_OF_NO_STAGE: Final = ("learning/pretraining/",)  # what it makes, a round reads as a file of weights
STAGE_LIBRARIES: Final = ("torch", "torchvision", "timm", "pillow", "simplejpeg", "numpy", "scipy")


class StageStore(Protocol):
    """Where stages put their outputs: a folder (`LocalStageStore`), or S3 where stages run on several machines."""

    def claim(self) -> None: ...

    @property
    def shared(self) -> Shared | None: ...

    def get(self, stage: str, key: str) -> Path | None: ...

    def has(self, stage: str, key: str) -> bool: ...

    def file(self, stage: str, key: str, name: str) -> Path | Remote | None: ...

    def publish(self, stage: str, key: str) -> None: ...

    def produce(self, stage: str, key: str) -> Any: ...

    def forget(self, before: float) -> int: ...


@cache
def code_version() -> str:
    """What the stages' outputs depend on besides settings and inputs: the code of stages and the libraries below it.

    Twelve hex digits behind the package's version, as `0.1.0+3f2a...`.
    """
    digest = hashlib.sha256()
    package = Path(vabal.__file__).parent
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if decides_outputs(name):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    for library in STAGE_LIBRARIES:
        digest.update(f"{library} {importlib.metadata.version(library)}".encode())
    return f"{vabal.__version__}+{digest.hexdigest()[:12]}"


def decides_outputs(name: str) -> bool:
    """Whether a module, named by its path in the package, can change a stage's output."""
    return name.startswith(STAGE_CODE) and not name.startswith(_OF_NO_STAGE)


@dataclass(frozen=True)
class StageKey:
    """What a stage's output is made of, besides the code: the same settings and inputs make the same output."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str | int]

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change whenever the stage's output could."""
        document: dict[str, Any] = {"stage": self.stage, "code": code_version()}
        document |= {"settings": dict(self.settings), "inputs": dict(self.inputs)}
        return sha256(canonical_json(document))[:16]


def stage_folder(root: Path, setting: str) -> Path:
    """The folder that the setting `stages` names in the workspace at `root`.

    Raises UserError for one that holds something else: the workspace itself or a folder above it, its data, inbox, git.
    """
    folder, home = (root / setting).resolve(), root.resolve()
    inside = folder.relative_to(home).parts if folder.is_relative_to(home) else None
    state = inside is not None and inside[:1] == (".vabal",)
    if (
        home.is_relative_to(folder)
        or (inside and inside[0] in _TAKEN)
        or (state and not (inside and len(inside) == 2 and inside[1].startswith("stages")))
    ):
        raise UserError(
            f"stages: `{setting}` cannot be the stage store's folder: name a new or empty one outside the workspace, "
            "by its whole path, or `.vabal/stages`"
        )
    return folder


class LocalStageStore:
    """Stage outputs as folders below `folder`, which is this store's own."""

    shared: Shared | None = None

    def __init__(self, folder: Path, owner: str = "", *, adopt: bool = False) -> None:
        """`owner` names the workspace in the folder's mark. `adopt`: a folder without a mark becomes ours.

        Nothing is made or looked at yet.
        """
        self.folder = folder
        self.owner = owner
        self._adopt = adopt
        self._claimed = False

    def claim(self) -> None:
        """Make the folder and mark it as this store's.

        Raises UserError if it is not empty and has no mark, or another workspace's: then it holds other people's work.
        """
        if self._claimed:
            return
        private_folder(self.folder)
        if self._owner() is None:
            half = f"{MARK.strip('.')}."  # what a kill left of an earlier marking
            foreign = [path.name for path in self.folder.iterdir() if not path.name.lstrip(".").startswith(half)]
            if foreign and not self._adopt:
                raise UserError(
                    f"stages: {self.folder} is not empty and no stage store made it (it holds {min(foreign)}): "
                    "name a new or empty folder"
                )
            write_once(self.folder / MARK, canonical_json({"stages": 1, "workspace": self.owner}))
        if self._owner() != self.owner:
            raise UserError(
                f"stages: {self.folder} is the stage store of another workspace, which clears it by its own rounds: "
                "name a new or empty folder"
            )
        self._claimed = True

    def _owner(self) -> str | None:
        """Whom the folder's mark names; None where there is no mark. A mark that is none names nobody we know."""
        path = self.folder / MARK
        if not path.is_file() or path.is_symlink():
            return None
        try:
            return str(json.loads(path.read_bytes())["workspace"])
        except (ValueError, KeyError, TypeError):
            return "unknown"

    def get(self, stage: str, key: str) -> Path | None:
        """The finished output, or None."""
        place = self.folder / stage / key
        return place if place.is_dir() and touched(place) else None

    def has(self, stage: str, key: str) -> bool:
        """Whether the output is finished."""
        return self.get(stage, key) is not None

    def file(self, stage: str, key: str, name: str) -> Path | None:
        """One file of a finished output, or None."""
        place = self.get(stage, key)
        return None if place is None else place / name

    def publish(self, stage: str, key: str) -> None:
        """Nothing: who uses this store sees its folder."""

    @contextmanager
    def produce(self, stage: str, key: str) -> Iterator[Path]:
        """A temporary folder to fill; it becomes the stage's output when the block ends without an error.

        Raises UserError if the store's folder is somebody else's.
        """
        if stage not in STAGES or not _KEY.fullmatch(key):
            raise ValueError(f"{stage}/{key} is no name that a stage store gives (vabal.rounds.stage_store.STAGES)")
        place = self.folder / stage / key
        self.claim()
        temporary = private_folder(place.parent) / f".{key}.{uuid.uuid4().hex}"
        temporary.mkdir(mode=0o700)
        try:
            yield temporary
            sync_tree(temporary)
            try:
                temporary.rename(place)
            except OSError:
                if not place.is_dir():  # else: another run finished the same stage first, with the same output
                    raise
            sync_folder(place.parent)
            sync_folder(self.folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def forget(self, before: float) -> int:
        """Remove outputs, finished or half-written, from before that time (seconds since 1970). Returns how many.

        Only folders with names that a store gives, in a folder with this store's mark; a link is left alone.
        """
        if self._owner() != self.owner:
            return 0
        old = [place for place in self.outputs() if place.lstat().st_mtime < before]
        for place in old:
            remove(place)
        return len(old)

    def outputs(self) -> Iterator[Path]:
        """Every output that lies here, finished or half-written, and every file of one that was fetched alone."""
        if _is_folder(self.folder / PARTS):
            yield from sorted((self.folder / PARTS).iterdir())
        for stage in STAGES:
            if not _is_folder(self.folder / stage):
                continue
            for place in sorted((self.folder / stage).iterdir()):
                if _OURS.fullmatch(place.name) and _is_folder(place):
                    yield place


def _is_folder(path: Path) -> bool:
    """A folder itself, not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False
