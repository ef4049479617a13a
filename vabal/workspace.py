"""A workspace: the git repository with `params.yaml` and the pins of its data that every command acts on."""

import fcntl
import json
import os
import re
import stat
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vabal import objects
from vabal.errors import UserError
from vabal.files import write_once

if TYPE_CHECKING:
    from vabal.settings.models import Params

# What `.vabal/env` may set; anything else there is passed over.
ENVIRONMENT = {
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_DEFAULT_REGION", "AWS_REGION", "AWS_CA_BUNDLE"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_API_KEY", "PREFECT_HOME"),
    # people's own, which the local stack did not make and keeps
    *(
        OWN := (
            *("LABEL_STUDIO_API_KEY", "LABEL_STUDIO_S3_ENDPOINT"),
            *("LABEL_STUDIO_S3_ACCESS_KEY_ID", "LABEL_STUDIO_S3_SECRET_ACCESS_KEY"),
            *("VABAL_NOTIFY_WEBHOOK", "VABAL_NOTIFY_SMTP", "VABAL_NOTIFY_COMMAND"),
        )
    ),
}

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# How `files.write_bytes` names a file of the workspace's top that is not whole yet.
_HALF_WRITTEN: Final = re.compile(
    r"\.(promotions\.jsonl|params\.yaml|data\.dvc|\.gitignore|\.gitattributes|\.dvcignore)\.[0-9a-f]{32}\.tmp"
)


#: What the program that versions `data/` keeps in a workspace (`vabal.adapters.dvc`): the file in git that pins what
#: `data/` holds, and the folder of its own.
PINS: Final = "data.dvc"
VERSIONING: Final = ".dvc"


@dataclass(frozen=True)
class Workspace:
    """The paths of a workspace. `data/` is versioned; the rest is ignored by git and belongs to one machine."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> "Workspace":
        """The workspace that `start` (default: the current folder) lies in. Raises UserError if there is none."""
        place = (start or Path.cwd()).absolute()
        if not place.exists():
            raise UserError(f"{place}: there is no such folder")
        for folder in (place, *place.parents):
            if folder.name == ".vabal":
                break  # what lies in a workspace's state (the demo's workspace) is not part of it
            if (folder / "params.yaml").is_file() and (folder / VERSIONING).is_dir():
                return cls(folder)
        raise UserError(
            f"{place} is no workspace (no params.yaml and {VERSIONING} here or above): "
            "make one with `vabal init --source ...` in an empty folder, or name it with --workspace"
        )

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def inbox(self) -> Path:
        """Labels and images that came and are not in `data/` yet."""
        return self.root / "inbox"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def state(self) -> Path:
        """`.vabal/`: credentials, the local stack's state, the stage store, caches. For its owner only."""
        folder = self.root / ".vabal"
        folder.mkdir(mode=0o700, exist_ok=True)
        _narrow(folder, 0o700)
        return folder

    @property
    def identity(self) -> str:
        """A name of this workspace on this machine, drawn at random when it is first asked for."""
        path = self.state / "id"
        if not path.exists():
            write_once(path, uuid.uuid4().hex.encode())
        return path.read_text(encoding="ascii").strip()

    @property
    def decoded(self) -> Path:
        return self.state / "decoded"

    @property
    def shards(self) -> Path:
        """Shards of images that were fetched from where several machines share them."""
        return self.state / "shards"

    @property
    def weights(self) -> Path:
        """Files of a backbone's weights that were fetched likewise."""
        return self.state / "weights"

    @property
    def indices(self) -> Path:
        """Where samples stand in the rounds' tables of candidates: made of these, and again where they are gone."""
        return self.state / "indices"

    @property
    def bench(self) -> Path:
        """Sources of a benchmark whose images came from the machine that runs it."""
        return self.state / "bench"

    @property
    def embeddings(self) -> Path:
        return self.state / "embeddings"

    @property
    def objects(self) -> Path:
        """What was read of images that stay where they are."""
        return self.root / ".vabal" / "objects"

    @property
    def fingerprints(self) -> Path:
        return self.state / "fingerprints"

    def report(self, number: int) -> Path:
        """The page of a round; git ignores its folder, for it can be made again."""
        return self.root / "reports" / f"{number:04d}.html"

    def params(self, overrides: dict[str, Any] | None = None) -> "Params":
        from vabal.settings.params import load as load_params  # noqa: PLC0415 -- most of what a command would import

        return load_params(self.root / "params.yaml", overrides)

    def environment(self) -> None:
        """Fill in addresses and keys of the local stack from `.vabal/env`; what is set already wins.

        And where this process keeps what it reads of images that stay where they are.
        """
        self._close_to_others()
        reach_loopback(os.environ)
        objects.keep_in(self.objects, self._objects_gigabytes)
        os.environ.setdefault("DVC_NO_ANALYTICS", "1")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "1")
        file = self.root / ".vabal" / "env"
        if not file.is_file():
            return
        if self._in_git(".vabal/env"):
            raise UserError(
                f"{file} is versioned by git, so it may be somebody else's: `git rm --cached .vabal/env`, look at it, "
                "and delete it unless it is yours (`vabal up` writes a new one)"
            )
        for line in file.read_text(encoding="utf-8").splitlines():
            key, separator, value = line.partition("=")
            if separator and key.strip() in ENVIRONMENT:
                os.environ.setdefault(key.strip(), value.strip())

    def _objects_gigabytes(self) -> float:
        """How much of them is kept: as `params.yaml` says, or, where there is none yet, by default."""
        from vabal.settings.models import ComputeSettings  # noqa: PLC0415 -- as in `params`

        there = (self.root / "params.yaml").is_file()
        return (self.params().compute if there else ComputeSettings()).objects_gigabytes

    def _close_to_others(self) -> None:
        """`.vabal`, its folders, and its files with keys are for their owner only, also where they once were not."""
        if not (self.root / ".vabal").is_dir():
            return
        for path in self.state.iterdir():
            if path.is_dir() and not path.is_symlink():
                _narrow(path, 0o700)
            elif path.name in ("env", "id", "stack.json"):
                _narrow(path, 0o600)

    def _in_git(self, name: str) -> bool:
        """Whether git knows the file. A clone's own history could bring keys and addresses of a stranger's servers."""
        if not (self.root / ".git").exists():
            return False
        command = ["git", "ls-files", "--", name]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        return bool(done.stdout.strip())

    def require_round_zero(self) -> None:
        """Raises UserError unless `data/` is here, with the way to get it."""
        half_published = (self.state / "publish" / "plan.json").is_file()  # what it needs is brought when it goes on
        if half_published or (self.data / "catalog.parquet").is_file():
            return
        if (self.root / PINS).is_file():
            raise UserError(f"{self.data} is missing: `vabal checkout` brings it (needs the S3 address and keys)")
        raise UserError(f"{self.root} has no pools yet: make round 0 with `vabal init --source ...`")

    @contextmanager
    def lock(
        self, purpose: str, *, wait: float = 0.0, unless: str = "", tell: Callable[[str], object] = str
    ) -> Iterator[None]:
        """Hold the workspace alone: one round, promotion or recovery at a time.

        An advisory lock of the kernel: it dies with its process, so nothing has to be cleaned up after a crash. Where
        there was no workspace before and what is done here fails, its file goes again.
        Raises UserError naming the holder if it is still taken after `wait` seconds; at once, if it is taken for the
        purpose `unless`. `tell` hears once for whom it waits.
        """
        path = self.state / "lock"
        descriptor = _hold(path, time.monotonic() + wait, unless, tell)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "purpose": purpose}).encode(), 0)
            self._clear_half_written()
            yield
        except BaseException:
            if not (self.root / "data").exists() and [*self.state.iterdir()] == [path]:
                path.unlink()
            raise
        finally:
            os.close(descriptor)

    def _clear_half_written(self) -> None:
        """What a kill left of a file at the top that is written under the lock only: git would show it for ever."""
        for path in self.root.glob(".*.tmp"):
            if _HALF_WRITTEN.fullmatch(path.name) and path.is_file():
                path.unlink()

    @contextmanager
    def data_lock(self, *, alone: bool, wait: float = 600.0) -> Iterator[None]:
        """Hold `data/` as it is: those who read it together, whoever changes files in it alone.

        Short, and taken by readers too, unlike `lock`. Raises UserError if it is still taken after `wait` seconds.
        """
        descriptor = os.open(self.state / "data.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            deadline = time.monotonic() + wait
            while True:
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise UserError(f"{self.data} is in use by another command: try again once it ended") from None
                    time.sleep(0.05)
            yield
        finally:
            os.close(descriptor)


def reach_loopback(environment: MutableMapping[str, str]) -> None:
    """Where a proxy is set, servers on this machine are asked without it, by this process and those it starts."""
    if not any(environment.get(name) or environment.get(name.upper()) for name in PROXIES):
        return
    known = ",".join(filter(None, [environment.get("no_proxy"), environment.get("NO_PROXY")])).split(",")
    names = dict.fromkeys([*(name.strip() for name in known if name.strip()), *LOOPBACK])
    environment["no_proxy"] = environment["NO_PROXY"] = ",".join(names)


def _narrow(path: Path, mode: int) -> None:
    """Take from a path's mode what is more than `mode`; one that is somebody else's stays as it is."""
    now = stat.S_IMODE(path.stat().st_mode)
    if now & ~mode:
        with suppress(PermissionError):
            path.chmod(now & mode)


def _hold(path: Path, deadline: float, unless: str, tell: Callable[[str], object]) -> int:
    """A descriptor that holds the lock of the file at `path`, which another command may take away meanwhile.

    Raises UserError naming the holder if it is still taken at `deadline`, or for the purpose `unless`.
    """
    looked = told = False  # who has just taken it may not have said yet what for
    while True:
        with ExitStack() as undo:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(path)
                who = "{purpose} (process {pid})".format_map(holder) if holder else "another command"
                if time.monotonic() >= deadline or (looked and unless and holder.get("purpose") == unless):
                    place = path.parent.parent
                    raise UserError(f"{place} is in use by {who}: wait for it to end, then run this again") from None
                if looked and not told:
                    tell(f"waiting for {who} to end")
                    told = True
                looked = True
                time.sleep(0.1)
                continue
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                undo.pop_all()
                return descriptor


def _holder(path: Path) -> dict[str, Any]:
    """`pid` and `purpose` of who holds the lock, or did last; empty where the file does not tell."""
    try:
        holder = json.loads(path.read_text())
        return {name: holder[name] for name in ("pid", "purpose")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
