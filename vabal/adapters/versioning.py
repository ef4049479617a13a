"""DVC and git, through their command lines: DVC promises no Python interface.

The pools go to DVC (`data/` → `data.dvc` → S3), the pointer and the tags to git. Every operation can be repeated: what
is done already is left alone.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from vabal.errors import Unavailable, UserError

DVC_CONFIG = """\
[core]
    remote = vabal
    analytics = false
    check_update = false
['remote "vabal"']
    url = {url}
"""
GIT_IGNORED = ("/data", "/inbox", "/quarantine", "/.vabal", "/mlruns")
LOCK_PATIENCE_S = 60.0


class Versioning:
    """One workspace's git repository and its DVC remote."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- making a workspace -------------------------------------------------------------------------------------

    def init(self, url: str) -> None:
        """Make `root` a git repository with DVC's configuration, if it is not one already."""
        if not (self.root / ".git").exists():
            self._git("init", "--quiet", "--initial-branch=main")
        dvc = self.root / ".dvc"
        dvc.mkdir(exist_ok=True)
        config = dvc / "config"
        if not config.exists():
            config.write_text(DVC_CONFIG.format(url=url))
        (dvc / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
        dvcignore = self.root / ".dvcignore"
        if not dvcignore.exists():
            dvcignore.write_text("# Files that DVC passes over: half-written ones.\n.*.tmp\n")
        ignore = self.root / ".gitignore"
        lines = ignore.read_text().splitlines() if ignore.exists() else []
        missing = [entry for entry in GIT_IGNORED if entry not in lines and f"{entry}/" not in lines]
        if missing:
            ignore.write_text("\n".join([*lines, *missing]) + "\n")

    # -- DVC ----------------------------------------------------------------------------------------------------

    def add(self) -> None:
        """`dvc add data`: hashes what changed, fills the cache, writes `data.dvc`."""
        self._mend_rwlock()
        self._dvc("add", "data")

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

    def changed(self) -> list[str]:
        """Files below `data/` that differ from `data.dvc`: what somebody edited by hand. Fast where nothing changed."""
        if not (self.root / "data.dvc").exists():
            return []
        report = json.loads(self._dvc("data", "status", "--granular", "--json", "--no-remote-refresh") or "{}")
        uncommitted = report.get("uncommitted", {})
        names: list[str] = []
        for kind in ("added", "deleted", "modified", "unknown"):
            names += [_name(entry) for entry in uncommitted.get(kind, [])]
        return sorted(name for name in names if name != "data/")

    # -- git ----------------------------------------------------------------------------------------------------

    def identity(self) -> str:
        """Who commits here, as `Name <address>`; a fallback where git has none configured."""
        name = self._config("user.name")
        address = self._config("user.email")
        return f"{name or 'vabal'} <{address or 'vabal@localhost'}>"

    def commit(self, paths: list[str], message: str) -> bool:
        """Commit these files alone, whatever else is staged or changed. False if they are committed as they are."""
        self._remove_stale_index_lock()
        self._git("add", "--force", "--", *paths)
        if self._succeeds("diff", "--cached", "--quiet", "HEAD", "--", *paths):
            return False
        self._git(*self._as_someone(), "commit", "--quiet", "--no-verify", "--only", "-m", message, "--", *paths)
        return True

    def tag(self, name: str, message: str) -> None:
        """An annotated tag at HEAD. Raises UserError if it stands elsewhere or says something else."""
        if name in self.tags():
            if self.tag_message(name) == message.strip():
                return
            raise UserError(f"git tag {name} exists already and records another round: look at `git show {name}`")
        self._git(*self._as_someone(), "tag", "--annotate", "--cleanup=verbatim", "-m", message, name)

    def tags(self) -> list[str]:
        return self._git("tag", "--list", "round/*").split()

    def tag_message(self, name: str) -> str:
        return self._git("tag", "--list", "--format=%(contents)", name).strip()

    def push_git(self, remote: str, names: list[str]) -> None:
        """Push branch and tags atomically. Raises UserError if the remote refuses: another machine was first."""
        branch = self._git("rev-parse", "--abbrev-ref", "HEAD").strip()
        try:
            self._git("push", "--quiet", "--atomic", remote, branch, *names)
        except UserError as error:
            raise UserError(
                f"git remote {remote} refused the round (another machine published first?): {error}"
            ) from None

    # -- processes ----------------------------------------------------------------------------------------------

    def _config(self, key: str) -> str:
        done = self._run(["git", "config", "--get", key])
        return done.stdout.strip()

    def _as_someone(self) -> list[str]:
        name, address = self._config("user.name"), self._config("user.email")
        return ([] if name else ["-c", "user.name=vabal"]) + ([] if address else ["-c", "user.email=vabal@localhost"])

    def _succeeds(self, *arguments: str) -> bool:
        return self._run(["git", *arguments]).returncode == 0

    def _git(self, *arguments: str) -> str:
        done = self._run(["git", *arguments])
        if done.returncode != 0:
            raise UserError(f"git {_verb(arguments)} failed in {self.root}: {_last_line(done.stderr or done.stdout)}")
        return done.stdout

    def _dvc(self, *arguments: str) -> str:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while True:
            done = self._run([sys.executable, "-m", "dvc", *arguments])
            if done.returncode == 0:
                return done.stdout
            if "Unable to acquire lock" not in done.stderr or time.monotonic() > deadline:
                break
            time.sleep(1.0)  # a killed round's DVC is still ending
        raise _explain(arguments[0], done.stderr, self.root)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ)
        cache = self.root / ".vabal" / "dvc"
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        environment |= {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(cache),  # the default one is writable by all and read by pickle
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C.UTF-8",
        }
        return subprocess.run(
            command,
            cwd=self.root,
            env=environment,
            text=True,
            capture_output=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def _mend_rwlock(self) -> None:
        """A kill can leave DVC's `rwlock` as broken JSON, which stops every later command. We hold the workspace."""
        path = self.root / ".dvc" / "tmp" / "rwlock"
        if path.is_file():
            try:
                json.loads(path.read_text() or "{}")
            except ValueError:
                path.unlink()

    def _remove_stale_index_lock(self) -> None:
        """A kill inside `git commit` leaves `index.lock`; git works for seconds, so an older one belongs to nobody."""
        path = self.root / ".git" / "index.lock"
        for _ in range(50):
            if not path.exists():
                return
            time.sleep(0.1)
        if time.time() - path.stat().st_mtime > 5:
            path.unlink(missing_ok=True)


def _verb(arguments: tuple[str, ...]) -> str:
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    return words[0] if words else ""


def _name(entry: object) -> str:
    if isinstance(entry, dict):
        new = entry.get("new")
        return str(entry.get("path") or (new.get("path") if isinstance(new, dict) else new) or entry)
    return str(entry)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _explain(verb: str, stderr: str, root: Path) -> UserError:
    """DVC's error as one line with the way out."""
    lines = [re.sub(r"^ERROR:\s*", "", line.strip()) for line in stderr.splitlines() if "ERROR" in line]
    text = "; ".join(lines) or _last_line(stderr)
    lowered = stderr.lower()
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS's own")
    if any(
        word in lowered for word in ("could not connect", "connect to the endpoint", "connection refused", "timed out")
    ):
        return Unavailable(f"S3 is down: no answer at {endpoint}: start it (`vabal up`), then run this again")
    if any(
        word in lowered
        for word in ("credentials", "signaturedoesnotmatch", "invalidaccesskeyid", "accessdenied", "forbidden", "403")
    ):
        return Unavailable(f"S3 at {endpoint} refuses the keys: check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    return UserError(f"dvc {verb} failed in {root}: {text}")
