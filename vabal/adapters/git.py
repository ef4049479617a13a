"""A git repository through git's command line: commits, tags, branches, remotes, signatures.

Every operation can be repeated: what is done already is left alone.
"""

import fnmatch
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from vabal.adapters import commands, limits
from vabal.adapters.commands import as_text, last_line
from vabal.errors import Unavailable, UserError
from vabal.files import write_bytes
from vabal.promotion.record import Copy
from vabal.rounds.versions import Tag

# Digests go by bytes: no system may change the ends of lines.
AS_THEY_ARE = ("-c", "core.autocrlf=false", "-c", "core.safecrlf=false")
NETWORK_VERBS = ("push", "fetch", "pull", "ls-remote", "clone")
GIT_SILENCES = 10  # what git moves is small: this many times a server's silence is more than it ever takes
# What git says when the network, not the repository, is at fault.
NETWORK_WORDS = (
    *("could not resolve", "failed to connect", "connection refused", "connection reset", "connection timed out"),
    *("timed out", "operation too slow", "transfer closed", "early eof", "hung up", "rpc failed", "empty reply"),
    *("requested url returned error: 5", "could not read from remote", "unable to access", "network is unreachable"),
)
# Who shows signatures in every log gets lines that are no answer.
PLAIN = ("-c", "log.showSignature=false")
FALLBACK = {"name": "vabal", "email": "vabal@localhost"}  # where git's configuration names nobody
OUR_TAGS = re.compile(r"(round|promotion)/")


class Git:
    """The git repository of a workspace's folder."""

    def __init__(self, root: Path, *, sign: bool = False) -> None:
        """`sign`: tags are signed, with the key and format (SSH, GPG) of git's own configuration."""
        self.root = root
        self.sign = sign

    # -- commits ------------------------------------------------------------------------------------------------

    def identity(self) -> str:
        """Who commits here, as `Name <address>`; a fallback where git has none configured."""
        found = FALLBACK | {key: value for key, value in self._user().items() if value}
        return f"{found['name']} <{found['email']}>"

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

    def commit_of(self, name: str) -> str | None:
        """The commit that a tag, branch or HEAD stands at; None if there is no such name."""
        done = self._run_git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{full_name(name)}^{{commit}}")
        return done.stdout.strip() if done.returncode == 0 else None

    def commits_of(self, path: str) -> list[str]:
        """The commits of HEAD's past that changed the file `path`, newest first."""
        done = self._run_git("rev-list", "--full-history", "HEAD", "--", path)
        if done.returncode != 0 and self.commit_of("HEAD") is not None:
            raise UserError(f"git rev-list failed in {self.root}: {_reason(done.stderr)}")
        return done.stdout.split()

    def committed(self, path: str, at: str = "HEAD") -> bytes | None:
        """The content of the file `path` (relative to the workspace) in the commit `at`; None if it is not there."""
        commit = self.commit_of(at)
        if commit is None:
            return None
        done = self._run_git_on_bytes("cat-file", "blob", f"{commit}:./{path}")
        return done.stdout if done.returncode == 0 else None

    def copies(self, path: str, at: Iterable[str]) -> dict[str, Copy | None]:
        """What the file `path` (relative to the workspace) is in each of the commits; None where it is not there."""
        names = list(at)
        asked = "".join(f"{full_name(name)}:./{path}\n" for name in names)
        done = self._run_git_on_bytes("cat-file", "--batch-check", given=asked.encode())
        if done.returncode != 0:
            raise UserError(f"git cat-file failed in {self.root}: {last_line(done.stderr.decode(errors='replace'))}")
        found: dict[str, Copy | None] = {}
        for name, line in zip(names, done.stdout.decode().splitlines(), strict=True):
            words = line.split()
            found[name] = Copy(words[0], int(words[2])) if len(words) == 3 and words[1] == "blob" else None
        return found

    def changed_in(self, commit: str, path: str) -> bool:
        """Whether the commit changed the file, against the commit before it (the first one: whether it has it)."""
        return self.committed(path, commit) != self.committed(path, f"{commit}^")

    def contains(self, name: str, commit: str) -> bool:
        """Whether `commit` is in the history of `name` (tags, branches, HEAD); so are a name's own commits.

        Not where one of them is not there.
        """
        return self._succeeds(
            "merge-base", "--is-ancestor", f"{full_name(commit)}^{{commit}}", f"{full_name(name)}^{{commit}}"
        )

    def precedes(self, commit: str, later: str) -> bool:
        """Whether `later` was built on `commit`, and is another one."""
        return commit != later and self._succeeds("merge-base", "--is-ancestor", commit, later)

    def take_back(self, path: str, content: bytes, tag: str) -> None:
        """Undo what was not pushed: the tag, HEAD's commit if it changed `path` alone, the file itself. Repeatable."""
        if tag in self.tags(tag):
            self.delete_tag(tag)
        changed = self._git("diff-tree", "--no-commit-id", "--name-only", "-r", "--relative", "HEAD").split()
        if changed == [path] and self.committed(path, "HEAD") != content:
            self._git("reset", "--quiet", "--soft", "HEAD~1")
        if content:
            write_bytes(self.root / path, content)
        else:
            (self.root / path).unlink(missing_ok=True)
        self._git("reset", "--quiet", "--", path)

    def is_shallow(self) -> bool:
        """Whether this is a clone that left older commits out."""
        return self._git("rev-parse", "--is-shallow-repository").strip() == "true"

    def damage(self) -> str | None:
        """The first object whose bytes are not those of its name, or that is gone, in git's words: it reads them so."""
        done = self._run_git("fsck", "--full", "--no-reflogs", "--no-dangling", "--no-progress")
        said = [*done.stderr.splitlines(), *done.stdout.splitlines()]
        return next((line for line in said if re.search(r"mismatch|^missing|corrupt|unable to", line)), None)

    # -- tags and signatures ----------------------------------------------------------------------------------

    def create_tag(self, name: str, message: str, at: str) -> None:
        """An annotated tag at the commit `at`, signed where `sign` says so. Raises UserError if git cannot."""
        how = "--sign" if self.sign else "--annotate"
        text = f"{message.strip()}\n"
        self._git(*self._as_someone(), "tag", how, "--cleanup=verbatim", "-m", text, name, at)

    def delete_tag(self, name: str) -> None:
        self._git("tag", "--delete", name)

    def tags(self, pattern: str = "round/*") -> list[str]:
        return self._git("for-each-ref", "--format=%(refname:strip=2)", f"refs/tags/{pattern}").split()

    def tag_message(self, name: str) -> str:
        """What the tag says, its signature left out."""
        words = "--format=%(contents:subject)%0a%0a%(contents:body)"
        return self._git("for-each-ref", words, f"refs/tags/{name}").strip()

    def tag_messages(self, pattern: str = "round/*", *, of_head: bool = False) -> dict[str, str]:
        """The messages of all tags of a kind, by name; `of_head`: of those alone that stand in HEAD's past."""
        merged = ["--merged=HEAD"] if of_head else []
        listed = self._git(
            "for-each-ref", "--format=%(refname:strip=2)%00%(contents)%00", *merged, f"refs/tags/{pattern}"
        )
        words = listed.split("\0")
        return {name.strip(): text.strip() for name, text in zip(words[::2], words[1::2], strict=False)}

    def tag_objects(self) -> dict[str, Tag]:
        """Every tag here, with its object and the commit that it stands at."""
        words = "%(refname:strip=2)%09%(objecttype)%09%(objectname)%09%(*objectname)%09%(*objecttype)"
        found = {}
        for line in self._git("for-each-ref", f"--format={words}", "refs/tags").splitlines():
            name, kind, own, peeled, what = line.split("\t")
            found[name] = Tag(own, peeled or own, annotated=(kind, what) == ("tag", "commit"))
        return found

    def signature_problem(self, tag: str) -> str | None:
        """What is wrong with a tag's signature, in git's words; None for a good one."""
        done = self._run_git("verify-tag", "--", full_name(tag))
        if done.returncode == 0:
            return None
        return f"no good signature ({last_line(done.stderr)})"

    # -- branches ---------------------------------------------------------------------------------------------

    def branch(self) -> str | None:
        """The branch that is checked out; None for a detached HEAD."""
        return self._git("branch", "--show-current").strip() or None

    def branches_with(self, name: str) -> list[str]:
        """Local branches that contain the tag `name`."""
        listed = self._git("for-each-ref", "--format=%(refname:strip=2)", f"--contains={full_name(name)}", "refs/heads")
        return listed.split()

    def is_on_a_branch(self, commit: str) -> bool:
        """Whether a branch, here or of a remote as it was last fetched, contains the commit."""
        holding = self._git("for-each-ref", "--count=1", f"--contains={commit}", "refs/heads", "refs/remotes")
        return bool(holding.strip())

    def go_to(self, name: str, branch: str | None = None) -> None:
        """Check out the tag `name` (a detached HEAD), or `branch` where one is given, with the files of that commit."""
        try:
            self._git("switch", "--quiet", *([branch] if branch else ["--detach", full_name(name)]))
        except UserError as error:
            raise UserError(f"git cannot go to {branch or name}: {error}; commit or undo what you changed") from None

    # -- remotes ----------------------------------------------------------------------------------------------

    def default_remote(self) -> str | None:
        """The git remote to ask where no setting names one: `origin`, or the only one."""
        names = self._git("remote").split()
        return "origin" if "origin" in names else names[0] if len(names) == 1 else None

    def remote_tag_objects(self, remote: str) -> dict[str, Tag]:
        """The tags of a git remote, as `tag_objects`. Raises Unavailable if it does not answer."""
        done = self._run_git("ls-remote", "--tags", "--", checked_remote(remote))
        if done.returncode != 0:
            raise Unavailable(f"git remote {remote} does not answer: {last_line(done.stderr)}")
        lines = [line.partition("\trefs/tags/") for line in done.stdout.splitlines()]
        peeled = {name.removesuffix("^{}"): commit for commit, _, name in lines if name.endswith("^{}")}
        own = {name: identifier for identifier, _, name in lines if not name.endswith("^{}")}
        return {name: Tag(item, peeled.get(name, item), annotated=name in peeled) for name, item in own.items()}

    def remote_tags(self, remote: str, pattern: str = "round/*") -> dict[str, str]:
        """The tags of a git remote, each with the commit it stands at. Raises Unavailable without an answer."""
        found = self.remote_tag_objects(remote)
        return {name: tag.commit for name, tag in found.items() if fnmatch.fnmatchcase(name, pattern)}

    def remote_branch(self, remote: str) -> str | None:
        """The commit of this branch in a git remote; None if it has none. Raises Unavailable without answer."""
        done = self._run_git("ls-remote", "--", checked_remote(remote), f"refs/heads/{self.branch()}")
        if done.returncode != 0:
            raise Unavailable(f"git remote {remote} does not answer: {last_line(done.stderr)}")
        return done.stdout.split()[0] if done.stdout.strip() else None

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
            self._run_git("rebase", "--abort")
            raise UserError(
                f"{error}: bring {branch} and that of {remote} together by hand: `git pull --rebase {remote} {branch}`"
            ) from None

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

    # -- git's own process ------------------------------------------------------------------------------------

    def _config(self, key: str) -> str:
        done = self._run_git("config", "--get", key)
        return done.stdout.strip()

    def _as_someone(self) -> list[str]:
        found = self._user()
        return [word for key, own in FALLBACK.items() if not found.get(key) for word in ("-c", f"user.{key}={own}")]

    def _user(self) -> dict[str, str]:
        """What git's configuration says of `user.name` and `user.email`, as far as it does."""
        listed = self._run_git("config", "--null", "--get-regexp", r"^user\.(name|email)$").stdout
        lines = [line.partition("\n") for line in listed.split("\0")]  # of one key the last one counts
        return {key.partition(".")[2]: value.strip() for key, _, value in lines}

    def _succeeds(self, *arguments: str) -> bool:
        return self._run_git(*arguments).returncode == 0

    def _git(self, *arguments: str) -> str:
        done = self._run_git(*arguments)
        if done.returncode != 0:
            said = done.stderr or done.stdout
            if arguments[0] in NETWORK_VERBS and any(word in said.lower() for word in NETWORK_WORDS):
                raise Unavailable(f"git {arguments[0]} got no answer: {_reason(said)}: try again later")
            raise UserError(f"git {_verb(arguments)} failed in {self.root}: {_reason(said)}")
        return done.stdout

    def _run_git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return as_text(self._run_git_on_bytes(*arguments))

    def _run_git_on_bytes(self, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        environment, silence = commands.environment(), limits.silence()
        environment["GIT_TERMINAL_PROMPT"] = "0"
        environment.setdefault("GIT_HTTP_LOW_SPEED_LIMIT", "1")
        environment.setdefault("GIT_HTTP_LOW_SPEED_TIME", f"{silence:.0f}")
        if arguments[0] in NETWORK_VERBS and not self._has_own_ssh(environment):
            alive = f"-oConnectTimeout={silence:.0f} -oServerAliveInterval={max(silence / 3, 1):.0f}"
            environment["GIT_SSH_COMMAND"] = f"ssh -oBatchMode=yes {alive} -oServerAliveCountMax=3"
        limit = min(GIT_SILENCES * silence, limits.transfer())
        return commands.run(["git", *arguments], folder=self.root, environment=environment, limit=limit, given=given)

    def _has_own_ssh(self, environment: Mapping[str, str]) -> bool:
        return "GIT_SSH_COMMAND" in environment or "GIT_SSH" in environment or bool(self._config("core.sshCommand"))

    def _remove_stale_index_lock(self) -> None:
        """A kill inside `git commit` leaves `index.lock`; git works for seconds, so an older one belongs to nobody."""
        path = self.root / ".git" / "index.lock"
        for _ in range(50):
            if not path.exists():
                return
            time.sleep(0.1)
        if time.time() - path.stat().st_mtime > 5:
            path.unlink(missing_ok=True)


def full_name(name: str) -> str:
    """The full name of one of our tags: a branch, or another ref, may have the same short one."""
    return f"refs/tags/{name}" if OUR_TAGS.match(name) else name


def checked_remote(remote: str) -> str:
    """The git remote, if git can only take it for a name or an address. Raises UserError otherwise."""
    if remote.startswith("-") or "::" in remote.partition("/")[0] or any(ord(letter) < 32 for letter in remote):
        raise UserError(f"storage.git_remote: {remote!r} is no name or address of a git remote: change params.yaml")
    return remote


def _verb(arguments: tuple[str, ...]) -> str:
    words = [word for word in arguments if not word.startswith("-") and "=" not in word]
    return words[0] if words else ""


def _reason(text: str) -> str:
    """What git said, in one line: its advice left out, the end kept where it is long."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("hint:")]
    joined = "; ".join(lines) or "no message"
    return joined if len(joined) <= 400 else f"...{joined[-400:]}"
