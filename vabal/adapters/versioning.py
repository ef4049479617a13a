"""git and DVC together: what rounds, promotion and the audit ask of version control.

The pools go to DVC (`data/` → `data.dvc` → S3), the pointer and the tags to git.
"""

from collections.abc import Sequence
from pathlib import Path

import yaml

from vabal.adapters.dvc import Dvc
from vabal.adapters.git import PLAIN, Git
from vabal.errors import UserError
from vabal.files import write_bytes
from vabal.promotion.record import RECORD
from vabal.rounds.versions import Pinned

# DVC refuses a `data.dvc` that the user's own excludes hide; the last lines win over those.
GIT_IGNORED = ("/data", "/inbox", "/quarantine", "/.vabal", "/mlruns", "!/data.dvc", "!/.dvc/")
GIT_ATTRIBUTES = ("data.dvc -text", "promotions.jsonl -text")


class Versioning(Git, Dvc):
    """One workspace's git repository and its DVC remote."""

    def init(self, url: str) -> list[str]:
        """Make `root` a git repository with DVC's configuration, if it is not one already; the files to commit."""
        if not (self.root / ".git").exists():
            self._git("init", "--quiet", "--initial-branch=main")
        self.configure(url)
        _add_lines(self.root / ".gitignore", GIT_IGNORED)
        _add_lines(self.root / ".gitattributes", GIT_ATTRIBUTES)
        return [".gitignore", ".gitattributes", ".dvcignore", ".dvc/config", ".dvc/.gitignore"]

    def clone_at(self, folder: Path, name: str) -> "Versioning":
        """A clone in the new folder `folder`, at the tag `name`, that shares DVC's cache with this workspace."""
        self._git("clone", "--quiet", "--shared", "--no-checkout", "--", str(self.root.absolute()), str(folder))
        clone = Versioning(folder)
        clone.go_to(name)
        clone.share_cache(self)
        return clone

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
            self.delete_tag(name)
        self.create_tag(name, message, self._place_of(name))

    def _place_of(self, name: str) -> str:
        """Where a tag belongs: at the commit that published a round or wrote a decision, though others came since."""
        path = "data.dvc" if name.startswith("round/") else RECORD
        return self._git("rev-list", "--max-count=1", "HEAD", "--", path).strip() or "HEAD"

    def undo(self, name: str, message: str) -> None:
        """Take back the tag `name` that says `message`, and the commit of `data.dvc` that it names in its first line.

        Where others came on top of that commit, a new one undoes it. `data.dvc` is as it was before.
        """
        if name in self.tags() and self.tag_message(name) == message.strip():
            self.delete_tag(name)
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


def _add_lines(path: Path, entries: Sequence[str]) -> None:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    missing = [entry for entry in entries if entry not in lines and f"{entry}/" not in lines]
    if missing:
        write_bytes(path, ("\n".join([*lines, *missing]) + "\n").encode())
