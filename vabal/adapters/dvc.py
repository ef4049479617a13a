"""DVC through its command line, for it promises no Python interface: `data/` to its cache and S3, and back.

Every operation can be repeated: what is done already is left alone.
"""

import configparser
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vabal.adapters import commands, dvc_process, limits
from vabal.adapters.commands import as_text, last_line
from vabal.errors import Unavailable, UserError
from vabal.files import canonical_json, sha256, write_bytes

DVC_CONFIG = """\
[core]
    remote = vabal
    analytics = false
    check_update = false
['remote "vabal"']
    url = {url}
"""
LOCK_PATIENCE_S = 60.0
# S3's own failures, which pass: what it says in its code, or by HTTP's status alone.
PASSING = (
    *("internalerror", "internal error", "internal server error"),
    *("slowdown", "service unavailable", "serviceunavailable"),
)
# What DVC says when S3 is away or breaks off.
NO_ANSWER = (
    *("could not connect", "connect to the endpoint", "connection refused", "timed out", "timeout on endpoint"),
    *("connection was closed", "connection reset", "not enough data", "incompleteread", "incomplete read"),
    *("response payload", *PASSING),
    *("server disconnected", "bad gateway", "gateway timeout", "http client raised"),
)


class Dvc:
    """DVC in a workspace's folder: `data/`, pinned by `data.dvc`."""

    _process: dvc_process.DvcProcess | None = None

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- configuration ------------------------------------------------------------------------------------------

    def configure(self, url: str) -> None:
        """DVC's files below `.dvc` and `.dvcignore`, as far as they are not there."""
        dvc = self.root / ".dvc"
        dvc.mkdir(exist_ok=True)
        config = dvc / "config"
        if not config.exists():
            config.write_text(DVC_CONFIG.format(url=url))
        (dvc / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        self.keep_cache_private()
        dvcignore = self.root / ".dvcignore"
        if not dvcignore.exists():
            dvcignore.write_text("# Files that DVC passes over: half-written ones.\n.*.tmp\n")

    def share_cache(self, other: "Dvc") -> None:
        """Use the cache of `other`, with a database of our own."""
        shared = other.root.absolute() / ".dvc" / "cache"
        settings = f"[core]\n    site_cache_dir = {self.site_cache}\n[cache]\n    dir = {shared}\n"
        write_bytes(self.root / ".dvc" / "config.local", settings.encode())

    def keep_cache_private(self) -> None:
        """`core.site_cache_dir` in DVC's local config: the default folder is writable by all and read by pickle."""
        self._make_site_cache()
        file = self.root / ".dvc" / "config.local"
        if not file.exists():
            write_bytes(file, f"[core]\n    site_cache_dir = {self.site_cache}\n".encode())
        local = configparser.ConfigParser(interpolation=None, strict=False)
        local.read(file, encoding="utf-8")
        if local.get("core", "site_cache_dir", fallback=None) != str(self.site_cache):
            self._dvc("config", "--local", "core.site_cache_dir", str(self.site_cache))

    def _make_site_cache(self) -> None:
        self.site_cache.parent.mkdir(mode=0o700, exist_ok=True)
        self.site_cache.mkdir(mode=0o700, exist_ok=True)

    @property
    def site_cache(self) -> Path:
        return self.root.absolute() / ".vabal" / "dvc"

    # -- to the cache and S3, and back -------------------------------------------------------------------------

    def add(self) -> None:
        """`dvc add data`: hashes what changed, fills the cache, writes `data.dvc`.

        Nothing below `data/` is touched. Without `--no-relink` DVC removes each file that has a second name (a round's
        view has) and copies it back: killed in between, the next call would publish the pools without it.
        """
        self._mend_rwlock()
        self._remove_cut_listings()
        before = self._files()
        self._dvc("add", "--no-relink", "data")
        self._note_unchanged(before)

    def push(self) -> None:
        """`dvc push`: sends what the remote lacks. Raises Unavailable if S3 is down or refuses."""
        deferred = self._deferred
        self._dvc("push", *(["--all-tags"] if deferred.exists() else []), "data.dvc")
        deferred.unlink(missing_ok=True)

    def defer_push(self) -> None:
        """The next `push` sends the state of every tag, this one's too."""
        self._deferred.parent.mkdir(mode=0o700, exist_ok=True)
        self._deferred.touch()

    @property
    def _deferred(self) -> Path:
        return self.root / ".vabal" / "push-deferred"

    def pull(self) -> None:
        self._dvc("pull", "data.dvc")

    def bring_back(self) -> None:
        """`data/` as `data.dvc` pins it, from the cache or S3, whatever is there now."""
        self._mend_rwlock()
        if self._run_dvc("checkout", "--force", "--quiet", "data.dvc").returncode != 0:
            self._dvc("pull", "--force", "data.dvc")

    def changed(self, kinds: Sequence[str] = ("added", "deleted", "modified", "unknown")) -> list[str]:
        """Files below `data/` that differ from `data.dvc`: what somebody edited by hand. Fast where nothing changed."""
        if not (self.root / "data.dvc").exists():
            return []
        before = self._files()
        if before and self._unchanged.is_file() and self._unchanged.read_bytes() == self._as_unchanged(before):
            return []
        report = json.loads(self._dvc("data", "status", "--granular", "--json", "--no-remote-refresh") or "{}")
        uncommitted = report.get("uncommitted", {})
        if not uncommitted:
            self._note_unchanged(before)
        names: list[str] = []
        for kind in kinds:
            names += [_name(entry) for entry in uncommitted.get(kind, [])]
        return sorted(name for name in names if name != "data/")

    @property
    def _unchanged(self) -> Path:
        """How `data/` looked when DVC last found it as `data.dvc` pins it: while it looks so, DVC need not be asked."""
        return self.root / ".vabal" / "data-unchanged"

    def _note_unchanged(self, before: str | None) -> None:
        """`before` is how the files looked before DVC was asked: one that was edited meanwhile may differ."""
        if before and before == self._files():
            write_bytes(self._unchanged, self._as_unchanged(before))

    def _as_unchanged(self, files: str) -> bytes:
        pinned = [
            sha256(path.read_bytes()) for path in (self.root / "data.dvc", self.root / ".dvcignore") if path.exists()
        ]
        return canonical_json({"pinned": pinned, "files": files})

    def _files(self) -> str | None:
        """A digest of what DVC goes by, which are the files' names, sizes, times and inodes; None if they do not tell.

        Not the time of an inode's last change, which every link renews: a round's view links.
        """
        seen: dict[str, list[int]] = {}
        try:
            for folder, folders, names in os.walk(self.root / "data"):
                for path in (Path(folder, name) for name in [*folders, *names]):
                    found = path.lstat()
                    if stat.S_ISREG(found.st_mode):
                        seen[str(path.relative_to(self.root))] = [found.st_size, found.st_mtime_ns, found.st_ino]
                    elif not stat.S_ISDIR(found.st_mode):
                        return None  # a link: what it points at may change
        except OSError:
            return None
        return sha256(canonical_json(seen))

    # -- what is in the cache ----------------------------------------------------------------------------------

    def listing(self, digest: str) -> dict[str, str] | None:
        """The files of a pinned folder with their md5, from DVC's cache; None where it is not there or is damaged."""
        path = self.cached(digest)
        try:
            content = path.read_bytes() if path else b""
        except OSError:
            return None
        return self.read_listing(content, digest)

    @staticmethod
    def read_listing(content: bytes, digest: str) -> dict[str, str] | None:
        """The files that a listing names, with their md5; None if it is not the one of that digest."""
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest.removesuffix(".dir"):
            return None
        try:
            return {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
        except (ValueError, TypeError, KeyError):
            return None

    @staticmethod
    def listing_digest(listing: Mapping[str, str]) -> str:
        """DVC's digest of a folder: the md5 of its listing as JSON, by names."""
        entries = [{"md5": md5, "relpath": name} for name, md5 in sorted(listing.items())]
        return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"

    @staticmethod
    def object_name(md5: str) -> str:
        """Where below the remote's prefix DVC keeps the content of that md5."""
        return f"files/md5/{md5[:2]}/{md5[2:]}"

    def cached(self, md5: str) -> Path | None:
        """The file of that md5 in DVC's cache; None where it is not there."""
        path = self.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        return path if path.is_file() else None

    # -- DVC's own process -------------------------------------------------------------------------------------

    def _dvc(self, *arguments: str) -> str:
        deadline, again = time.monotonic() + LOCK_PATIENCE_S, True
        while (done := self._run_dvc(*arguments)).returncode != 0:
            said = done.stderr.lower()
            if again and any(word in said for word in PASSING):
                again = False
            elif "unable to acquire lock" not in said or time.monotonic() > deadline:
                raise _explain(arguments[0], done, self.root)
            time.sleep(1.0)  # a killed round's DVC is still ending, or S3 had a bad moment
        return done.stdout

    def _run_dvc(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.in_one_process() as process:
            limit = limits.transfer()
            try:
                return as_text(process.run(arguments, limit))
            except TimeoutError:
                raise commands.without_end(f"dvc {arguments[0]}", limit) from None

    @contextmanager
    def in_one_process(self) -> Iterator[dvc_process.DvcProcess]:
        """Within the block DVC's commands share a process. It is begun now, for its imports take a while."""
        if self._process is not None:
            yield self._process
            return
        self._make_site_cache()
        environment = commands.environment() | {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.site_cache),  # the default one is writable by all and read by pickle
        }
        environment.setdefault("AWS_MAX_ATTEMPTS", "1")  # its S3 client waits 15 s an attempt, five times
        self._process = dvc_process.DvcProcess(self.root, environment)
        try:
            yield self._process
        finally:
            self._process.close()
            self._process = None

    def _mend_rwlock(self) -> None:
        """A kill can leave DVC's `rwlock` as broken JSON, which stops every later command. We hold the workspace."""
        path = self.root / ".dvc" / "tmp" / "rwlock"
        if path.is_file():
            try:
                json.loads(path.read_text() or "{}")
            except ValueError:
                path.unlink()

    def _remove_cut_listings(self) -> None:
        """A kill inside `dvc add` can leave a folder's listing half written in the cache, which DVC then takes as done.

        What DVC has finished there is read-only.
        """
        for path in (self.root / ".dvc" / "cache" / "files" / "md5").glob("*/*.dir"):
            if path.stat().st_mode & 0o200:
                try:
                    json.loads(path.read_bytes())
                except ValueError:
                    path.unlink()


def _name(entry: object) -> str:
    if isinstance(entry, dict):
        new = entry.get("new")
        return str(entry.get("path") or (new.get("path") if isinstance(new, dict) else new) or entry)
    return str(entry)


def _explain(verb: str, done: subprocess.CompletedProcess[str], root: Path) -> UserError:
    """DVC's error as one line with the way out."""
    stderr = done.stderr
    if done.returncode < 0:
        how = (signal.strsignal(-done.returncode) or f"signal {-done.returncode}").lower()
        return UserError(f"dvc {verb} was ended from outside in {root} ({how}; out of memory?): run this again")
    lines = [re.sub(r"^ERROR:\s*", "", line.strip()) for line in stderr.splitlines() if "ERROR" in line]
    text = "; ".join(lines) or last_line(stderr)
    lowered = stderr.lower()
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS's own")
    if any(word in lowered for word in NO_ANSWER):
        return Unavailable(f"S3 is down: no answer at {endpoint}: start it (`vabal up`), then run this again")
    if any(
        word in lowered
        for word in ("credentials", "signaturedoesnotmatch", "invalidaccesskeyid", "accessdenied", "forbidden", "403")
    ):
        return Unavailable(f"S3 at {endpoint} refuses the keys: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return UserError(f"dvc {verb} failed in {root}: {text}")
