"""DVC and git, through their command lines: DVC promises no Python interface.

The pools go to DVC (`data/` → `data.dvc` → S3), the pointer and the tags to git. Every operation can be repeated: what
is done already is left alone.
"""

import configparser
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from vabal.adapters import limits, processes
from vabal.errors import Unavailable, UserError
from vabal.files import write_bytes
from vabal.promotion.record import RECORD, Copy
from vabal.rounds.versions import Pinned, Tag

DVC_CONFIG = """\
[core]
    remote = vabal
    analytics = false
    check_update = false
['remote "vabal"']
    url = {url}
"""
# DVC refuses a `data.dvc` that the user's own excludes hide; the last lines win over those.
GIT_IGNORED = ("/data", "/inbox", "/quarantine", "/.vabal", "/mlruns", "!/data.dvc", "!/.dvc/")
# Digests go by bytes: no system may change the ends of lines.
AS_THEY_ARE = ("-c", "core.autocrlf=false", "-c", "core.safecrlf=false")
GIT_ATTRIBUTES = ("data.dvc -text", "promotions.jsonl -text")
LOCK_PATIENCE_S = 60.0
NETWORK_VERBS = ("push", "fetch", "pull", "ls-remote", "clone")
GIT_SILENCES = 10  # what git moves is small: this many times a server's silence is more than it ever takes
# What DVC says when S3 is away or breaks off.
NO_ANSWER = (
    *("could not connect", "connect to the endpoint", "connection refused", "timed out", "timeout on endpoint"),
    *("connection was closed", "connection reset", "not enough data", "incompleteread", "incomplete read"),
    *("response payload", "slowdown", "service unavailable", "serviceunavailable", "internal server error"),
    *("server disconnected", "bad gateway", "gateway timeout", "http client raised"),
)
# What git says when the network, not the repository, is at fault.
NETWORK_WORDS = (
    *("could not resolve", "failed to connect", "connection refused", "connection reset", "connection timed out"),
    *("timed out", "operation too slow", "transfer closed", "early eof", "hung up", "rpc failed", "empty reply"),
    *("requested url returned error: 5", "could not read from remote", "unable to access", "network is unreachable"),
)
# What would make git act on another repository than the workspace's (`git rev-parse --local-env-vars`): a hook sets it.
ELSEWHERE = {
    *("GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_DIR"),
    *("GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_GRAFT_FILE", "GIT_INDEX_FILE"),
    *("GIT_NO_REPLACE_OBJECTS", "GIT_REPLACE_REF_BASE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_COMMON_DIR"),
    *("GIT_INTERNAL_SUPER_PREFIX", "GIT_NAMESPACE", "GIT_CEILING_DIRECTORIES", "GIT_DISCOVERY_ACROSS_FILESYSTEM"),
}


# The history is what was committed: not what `git replace` or a file of grafts says in its place.
AS_COMMITTED = {"GIT_NO_REPLACE_OBJECTS": "1", "GIT_GRAFT_FILE": os.devnull}
# Who shows signatures in every log gets lines that are no answer.
PLAIN = ("-c", "log.showSignature=false")
OUR_TAGS = re.compile(r"(round|promotion)/")


class Versioning:
    """One workspace's git repository and its DVC remote."""

    def __init__(self, root: Path, *, sign: bool = False) -> None:
        """`sign`: tags are signed, with the key and format (SSH, GPG) of git's own configuration."""
        self.root = root
        self.sign = sign

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
        self.keep_cache_private()
        dvcignore = self.root / ".dvcignore"
        if not dvcignore.exists():
            dvcignore.write_text("# Files that DVC passes over: half-written ones.\n.*.tmp\n")
        _add_lines(self.root / ".gitignore", GIT_IGNORED)
        _add_lines(self.root / ".gitattributes", GIT_ATTRIBUTES)

    # -- DVC ----------------------------------------------------------------------------------------------------

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

    def add(self) -> None:
        """`dvc add data`: hashes what changed, fills the cache, writes `data.dvc`.

        Nothing below `data/` is touched. Without `--no-relink` DVC removes each file that has a second name (a round's
        view has) and copies it back: killed in between, the next call would publish the pools without it.
        """
        self._mend_rwlock()
        self._remove_cut_listings()
        self._dvc("add", "--no-relink", "data")

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
        if self._run([sys.executable, "-m", "dvc", "checkout", "--force", "--quiet", "data.dvc"]).returncode != 0:
            self._dvc("pull", "--force", "data.dvc")

    def go_to(self, name: str, branch: str | None = None) -> None:
        """Check out the tag `name` (a detached HEAD), or `branch` where one is given, with the files of that commit."""
        try:
            self._git("switch", "--quiet", *([branch] if branch else ["--detach", _ref(name)]))
        except UserError as error:
            raise UserError(f"git cannot go to {branch or name}: {error}; commit or undo what you changed") from None

    def clone_at(self, folder: Path, name: str) -> "Versioning":
        """A clone in the new folder `folder`, at the tag `name`, that shares DVC's cache with this workspace."""
        self._git("clone", "--quiet", "--shared", "--no-checkout", "--", str(self.root.absolute()), str(folder))
        clone = Versioning(folder)
        clone.go_to(name)
        shared = self.root.absolute() / ".dvc" / "cache"
        settings = f"[core]\n    site_cache_dir = {clone.site_cache}\n[cache]\n    dir = {shared}\n"
        write_bytes(folder / ".dvc" / "config.local", settings.encode())
        return clone

    def branches_with(self, name: str) -> list[str]:
        """Local branches that contain the tag `name`."""
        listed = self._git("for-each-ref", "--format=%(refname:strip=2)", f"--contains={_ref(name)}", "refs/heads")
        return listed.split()

    def changed(self, kinds: Sequence[str] = ("added", "deleted", "modified", "unknown")) -> list[str]:
        """Files below `data/` that differ from `data.dvc`: what somebody edited by hand. Fast where nothing changed."""
        if not (self.root / "data.dvc").exists():
            return []
        report = json.loads(self._dvc("data", "status", "--granular", "--json", "--no-remote-refresh") or "{}")
        uncommitted = report.get("uncommitted", {})
        names: list[str] = []
        for kind in kinds:
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
        self._git(*AS_THEY_ARE, "add", "--force", "--", *paths)
        if self._succeeds("diff", "--cached", "--quiet", "HEAD", "--", *paths):
            return False
        self._git(
            *AS_THEY_ARE, *self._as_someone(), "commit", "--quiet", "--no-verify", "--only", "-m", message, "--", *paths
        )
        return True

    def tag(self, name: str, message: str) -> None:
        """An annotated tag at the round's commit, signed where `sign` says so.

        One that says the same but stands beside the branch (a rebase) is moved there. Raises UserError if there is one
        that says something else, or git cannot sign.
        """
        if name in self.tags():
            if self.tag_message(name) != message.strip():
                raise UserError(f"git tag {name} exists already and records something else: look at `git show {name}`")
            if self.contains("HEAD", name) or not name.startswith("round/"):
                return
            self._git("tag", "--delete", name)
        how = "--sign" if self.sign else "--annotate"
        self._git(
            *self._as_someone(),
            "tag",
            how,
            "--cleanup=verbatim",
            "-m",
            f"{message.strip()}\n",
            name,
            self._place_of(name),
        )

    def _place_of(self, name: str) -> str:
        """Where a tag belongs: at the commit that published a round or wrote a decision, though others came since."""
        path = "data.dvc" if name.startswith("round/") else RECORD
        return self._git("rev-list", "--max-count=1", "HEAD", "--", path).strip() or "HEAD"

    def tag_messages(self, pattern: str = "round/*", *, of_head: bool = False) -> dict[str, str]:
        """The messages of all tags of a kind, by name; `of_head`: of those alone that stand in HEAD's past."""
        merged = ["--merged=HEAD"] if of_head else []
        listed = self._git(
            "for-each-ref", "--format=%(refname:strip=2)%00%(contents)%00", *merged, f"refs/tags/{pattern}"
        )
        words = listed.split("\0")
        return {name.strip(): text.strip() for name, text in zip(words[::2], words[1::2], strict=False)}

    def copies(self, path: str, at: Iterable[str]) -> dict[str, Copy | None]:
        """What the file `path` (relative to the workspace) is in each of the commits; None where it is not there."""
        names = list(at)
        asked = "".join(f"{_ref(name)}:./{path}\n" for name in names)
        done = self._run_bytes(["git", "cat-file", "--batch-check"], asked.encode())
        if done.returncode != 0:
            raise UserError(f"git cat-file failed in {self.root}: {_last_line(done.stderr.decode(errors='replace'))}")
        found: dict[str, Copy | None] = {}
        for name, line in zip(names, done.stdout.decode().splitlines(), strict=True):
            words = line.split()
            found[name] = Copy(words[0], int(words[2])) if len(words) == 3 and words[1] == "blob" else None
        return found

    def commits_of(self, path: str) -> list[str]:
        """The commits of HEAD's past that changed the file `path`, newest first."""
        if self.commit_of("HEAD") is None:
            return []
        return self._git("rev-list", "--full-history", "HEAD", "--", path).split()

    def take_back(self, path: str, content: bytes, tag: str) -> None:
        """Undo what was not pushed: the tag, HEAD's commit if it changed `path` alone, the file itself. Repeatable."""
        if tag in self.tags(tag):
            self._git("tag", "--delete", tag)
        changed = self._git("diff-tree", "--no-commit-id", "--name-only", "-r", "--relative", "HEAD").split()
        if changed == [path] and self.committed(path, "HEAD") != content:
            self._git("reset", "--quiet", "--soft", "HEAD~1")
        if content:
            write_bytes(self.root / path, content)
        else:
            (self.root / path).unlink(missing_ok=True)
        self._git("reset", "--quiet", "--", path)

    def undo(self, name: str, message: str) -> None:
        """Take back the tag `name` that says `message`, and the commit of `data.dvc` that it names in its first line.

        Where others came on top of that commit, a new one undoes it. `data.dvc` is as it was before.
        """
        if name in self.tags() and self.tag_message(name) == message.strip():
            self._git("tag", "--delete", name)
        subject = message.splitlines()[0]
        commit = self._commit_of_pointer(subject)
        if commit is not None and commit == self.commit_of("HEAD"):
            self._git("reset", "--quiet", "--soft", "HEAD~1")
        elif commit is not None and (before := self.committed("data.dvc", f"{commit}~1")) is not None:
            write_bytes(self.root / "data.dvc", before)
            self.commit(["data.dvc"], f"Undone: {subject}")
        if self.committed("data.dvc") is not None:
            self._git("checkout", "--quiet", "HEAD", "--", "data.dvc")

    def _commit_of_pointer(self, subject: str) -> str | None:
        """The newest of the last commits that has this subject and changes `data.dvc` alone."""
        if self.commit_of("HEAD") is None:
            return None
        for line in self._git(*PLAIN, "log", "--max-count=50", "--format=%H %s").splitlines():
            commit, _, said = line.partition(" ")
            changed = ("diff-tree", "--root", "--no-commit-id", "--name-only", "-r", "--relative", commit)
            if said == subject and self._git(*changed).split() == ["data.dvc"]:
                return commit
        return None

    def follow(self, remote: str) -> None:
        """The branch, with commits of our own on top, from where the remote's is; and its rounds' tags.

        Raises UserError, the branch being as it was, where that takes a decision.
        """
        branch = self.branch()
        if branch is None:
            raise UserError(f"{self.root} has a detached HEAD: `vabal checkout newest` goes back to the branch")
        address = checked_remote(remote)
        self._git("fetch", "--quiet", "--no-tags", "--", address, "refs/tags/round/*:refs/tags/round/*")
        self._git("fetch", "--quiet", "--no-tags", "--", address, f"refs/heads/{branch}")
        try:
            self._git(*self._as_someone(), "rebase", "--quiet", "--autostash", "FETCH_HEAD")
        except UserError as error:
            self._run(["git", "rebase", "--abort"])
            raise UserError(
                f"{error}: bring {branch} and that of {remote} together by hand: `git pull --rebase {remote} {branch}`"
            ) from None

    def tags(self, pattern: str = "round/*") -> list[str]:
        return self._git("for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{pattern}").split()

    def tag_message(self, name: str) -> str:
        """What the tag says, its signature left out."""
        words = "--format=%(contents:subject)%0a%0a%(contents:body)"
        return self._git("for-each-ref", words, f"refs/tags/{name}").strip()

    def branch(self) -> str | None:
        """The branch that is checked out; None for a detached HEAD."""
        return self._git("branch", "--show-current").strip() or None

    def commit_of(self, name: str) -> str | None:
        """The commit that a tag, branch or HEAD stands at; None if there is no such name."""
        done = self._run(["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{_ref(name)}^{{commit}}"])
        return done.stdout.strip() if done.returncode == 0 else None

    def contains(self, name: str, commit: str) -> bool:
        """Whether `commit` is in the history of `name` (tags, branches, HEAD); so are a name's own commits."""
        if self.commit_of(name) is None or self.commit_of(commit) is None:
            return False
        return self._succeeds("merge-base", "--is-ancestor", f"{_ref(commit)}^{{commit}}", f"{_ref(name)}^{{commit}}")

    def committed(self, path: str, at: str = "HEAD") -> bytes | None:
        """The content of the file `path` (relative to the workspace) in the commit `at`; None if it is not there."""
        commit = self.commit_of(at)
        if commit is None:
            return None
        done = self._run_bytes(["git", "cat-file", "blob", f"{commit}:./{path}"])
        return done.stdout if done.returncode == 0 else None

    def tag_objects(self) -> dict[str, Tag]:
        """Every tag here, with its object and the commit that it stands at."""
        words = "%(refname:strip=2)%09%(objecttype)%09%(objectname)%09%(*objectname)%09%(*objecttype)"
        found = {}
        for line in self._git("for-each-ref", f"--format={words}", "refs/tags").splitlines():
            name, kind, own, peeled, what = line.split("\t")
            found[name] = Tag(own, peeled or own, annotated=(kind, what) == ("tag", "commit"))
        return found

    def remote_tag_objects(self, remote: str) -> dict[str, Tag]:
        """The tags of a git remote, as `tag_objects`. Raises Unavailable if it does not answer."""
        done = self._run(["git", "ls-remote", "--tags", "--", checked_remote(remote)])
        if done.returncode != 0:
            raise Unavailable(f"git remote {remote} does not answer: {_last_line(done.stderr)}")
        lines = [line.partition("\trefs/tags/") for line in done.stdout.splitlines()]
        peeled = {name.removesuffix("^{}"): commit for commit, _, name in lines if name.endswith("^{}")}
        own = {name: identifier for identifier, _, name in lines if not name.endswith("^{}")}
        return {name: Tag(item, peeled.get(name, item), annotated=name in peeled) for name, item in own.items()}

    def default_remote(self) -> str | None:
        """The git remote to ask where no setting names one: `origin`, or the only one."""
        names = self._git("remote").split()
        return "origin" if "origin" in names else names[0] if len(names) == 1 else None

    def is_on_a_branch(self, commit: str) -> bool:
        """Whether a branch, here or of a remote as it was last fetched, contains the commit."""
        holding = self._git("for-each-ref", "--count=1", f"--contains={commit}", "refs/heads", "refs/remotes")
        return bool(holding.strip())

    def precedes(self, commit: str, later: str) -> bool:
        """Whether `later` was built on `commit`, and is another one."""
        return commit != later and self._succeeds("merge-base", "--is-ancestor", commit, later)

    def is_shallow(self) -> bool:
        """Whether this is a clone that left older commits out."""
        return self._git("rev-parse", "--is-shallow-repository").strip() == "true"

    def damage(self) -> str | None:
        """The first object whose bytes are not those of its name, or that is gone, in git's words: it reads them so."""
        done = self._run(["git", "fsck", "--full", "--no-reflogs", "--no-dangling", "--no-progress"])
        said = [*done.stderr.splitlines(), *done.stdout.splitlines()]
        return next((line for line in said if re.search(r"mismatch|^missing|corrupt|unable to", line)), None)

    def changed_in(self, commit: str, path: str) -> bool:
        """Whether the commit changed the file, against the commit before it (the first one: whether it has it)."""
        return self.committed(path, commit) != self.committed(path, f"{commit}^")

    def signature_problem(self, tag: str) -> str | None:
        """What is wrong with a tag's signature, in git's words; None for a good one."""
        done = self._run(["git", "verify-tag", "--", _ref(tag)])
        if done.returncode == 0:
            return None
        return f"no good signature ({_last_line(done.stderr)})"

    def pinned(self, at: str | None) -> Pinned | None:
        """What `data.dvc` names in the commit `at` (None: as it lies here); None where it is missing or damaged."""
        here = self.root / "data.dvc"
        content = self.committed("data.dvc", at) if at else here.read_bytes() if here.is_file() else None
        try:
            (out,) = yaml.safe_load(content or b"")["outs"]
            if out["path"] != "data":
                return None
            return Pinned(str(out["md5"]), int(out["size"]), int(out["nfiles"]))
        except (yaml.YAMLError, TypeError, KeyError, IndexError, ValueError):
            return None

    def listing(self, digest: str) -> dict[str, str] | None:
        """The files of a pinned folder with their md5, from DVC's cache; None where it is not there or is damaged."""
        path = self.cached(digest)
        try:
            content = path.read_bytes() if path else b""
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest.removesuffix(".dir"):
                return None
            return {str(entry["relpath"]): str(entry["md5"]) for entry in json.loads(content)}
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def cached(self, md5: str) -> Path | None:
        """The file of that md5 in DVC's cache; None where it is not there."""
        path = self.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        return path if path.is_file() else None

    def remote_tags(self, remote: str, pattern: str = "round/*") -> dict[str, str]:
        """The tags of a git remote, each with the commit it stands at. Raises Unavailable without an answer."""
        found = self.remote_tag_objects(remote)
        return {name: tag.commit for name, tag in found.items() if fnmatch.fnmatchcase(name, pattern)}

    def remote_branch(self, remote: str) -> str | None:
        """The commit of this branch in a git remote; None if it has none. Raises Unavailable without answer."""
        done = self._run(["git", "ls-remote", "--", checked_remote(remote), f"refs/heads/{self.branch()}"])
        if done.returncode != 0:
            raise Unavailable(f"git remote {remote} does not answer: {_last_line(done.stderr)}")
        return done.stdout.split()[0] if done.stdout.strip() else None

    def push_git(self, remote: str, names: list[str]) -> None:
        """Push branch and tags atomically, then the tags of past rounds that the remote lacks, as one named late does.

        Raises UserError if the remote refuses: another machine was first.
        """
        branch = self.branch()
        if branch is None:
            raise UserError(f"{self.root} has a detached HEAD: `vabal checkout newest` goes back to the branch")
        try:
            sent = [f"refs/heads/{branch}", *(f"refs/tags/{name}" for name in names)]
            self._git("push", "--quiet", "--atomic", "--", checked_remote(remote), *sent)
            there = self.remote_tags(remote)
            past = [name for name in self.tag_messages(of_head=True) if name not in there]
            if past:
                self._git("push", "--quiet", "--", checked_remote(remote), *(f"refs/tags/{name}" for name in past))
        except Unavailable as error:
            raise Unavailable(f"git remote {remote} is away, and the round waits for it: {error}") from None
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
            said = done.stderr or done.stdout
            if arguments[0] in NETWORK_VERBS and any(word in said.lower() for word in NETWORK_WORDS):
                raise Unavailable(f"git {arguments[0]} got no answer: {_reason(said)}: try again later")
            raise UserError(f"git {_verb(arguments)} failed in {self.root}: {_reason(said)}")
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
        done = self._run_bytes(command)
        out, err = (stream.decode("utf-8", errors="replace") for stream in (done.stdout, done.stderr))
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def _run_bytes(self, command: list[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
        self._make_site_cache()
        silence = limits.silence()
        environment |= {
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.site_cache),  # the default one is writable by all and read by pickle
            "GIT_TERMINAL_PROMPT": "0",
            # A server that has fallen silent is given up: DVC's S3 client waits 15 s an attempt, five times.
            "GIT_HTTP_LOW_SPEED_LIMIT": environment.get("GIT_HTTP_LOW_SPEED_LIMIT", "1"),
            "GIT_HTTP_LOW_SPEED_TIME": environment.get("GIT_HTTP_LOW_SPEED_TIME", f"{silence:.0f}"),
            "AWS_MAX_ATTEMPTS": environment.get("AWS_MAX_ATTEMPTS", "1"),
            "LC_ALL": "C.UTF-8",
            "LANGUAGE": "",
            **AS_COMMITTED,
        }
        if command[0] == "git" and command[1] in NETWORK_VERBS and not self._has_own_ssh(environment):
            alive = f"-oConnectTimeout={silence:.0f} -oServerAliveInterval={max(silence / 3, 1):.0f}"
            environment["GIT_SSH_COMMAND"] = f"ssh -oBatchMode=yes {alive} -oServerAliveCountMax=3"
        limit = limits.transfer() if command[0] != "git" else min(GIT_SILENCES * silence, limits.transfer())
        try:
            return processes.run(command, folder=self.root, environment=environment, limit=limit, given=given)
        except TimeoutError:
            words = [word for word in command if word not in (sys.executable, "-m")]
            raise Unavailable(
                f"`{words[0]} {words[1]}` was ended after {limit:g} s without an end: is its server there? "
                f"({limits.SILENCE} and {limits.TRANSFER} set the limits)"
            ) from None

    def _has_own_ssh(self, environment: Mapping[str, str]) -> bool:
        return "GIT_SSH_COMMAND" in environment or "GIT_SSH" in environment or bool(self._config("core.sshCommand"))

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

    def _remove_stale_index_lock(self) -> None:
        """A kill inside `git commit` leaves `index.lock`; git works for seconds, so an older one belongs to nobody."""
        path = self.root / ".git" / "index.lock"
        for _ in range(50):
            if not path.exists():
                return
            time.sleep(0.1)
        if time.time() - path.stat().st_mtime > 5:
            path.unlink(missing_ok=True)


def _ref(name: str) -> str:
    """The full name of one of our tags: a branch, or another ref, may have the same short one."""
    return f"refs/tags/{name}" if OUR_TAGS.match(name) else name


def checked_remote(remote: str) -> str:
    """The git remote, if git can only take it for a name or an address. Raises UserError otherwise."""
    if remote.startswith("-") or "::" in remote.partition("/")[0] or any(ord(letter) < 32 for letter in remote):
        raise UserError(f"storage.git_remote: {remote!r} is no name or address of a git remote: change params.yaml")
    return remote


def _add_lines(path: Path, entries: Sequence[str]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    missing = [entry for entry in entries if entry not in lines and f"{entry}/" not in lines]
    if missing:
        write_bytes(path, ("\n".join([*lines, *missing]) + "\n").encode())


def _verb(arguments: tuple[str, ...]) -> str:
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    return words[0] if words else ""


def _name(entry: object) -> str:
    if isinstance(entry, dict):
        new = entry.get("new")
        return str(entry.get("path") or (new.get("path") if isinstance(new, dict) else new) or entry)
    return str(entry)


def _reason(text: str) -> str:
    """What git said, in one line: its advice left out, the end kept where it is long."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
    joined = "; ".join(lines) or "no message"
    return joined if len(joined) <= 400 else f"...{joined[-400:]}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def _explain(verb: str, stderr: str, root: Path) -> UserError:
    """DVC's error as one line with the way out."""
    lines = [re.sub(r"^ERROR:\s*", "", line.strip()) for line in stderr.splitlines() if "ERROR" in line]
    text = "; ".join(lines) or _last_line(stderr)
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
