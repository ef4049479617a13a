"""What vouches for the record from outside `data/`: changes there are found, with real git, DVC, ssh-keygen and S3."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.support.repositories import SOMEBODY, git
from tests.support.small_books import Books
from tests.support.small_buckets import s3_server
from tests.support.small_registry import Registered
from vabal import audit
from vabal.adapters.storage import Anchor, Bucket
from vabal.adapters.versioning import Versioning
from vabal.audit import AuditReport, chain
from vabal.audit.places import Outside
from vabal.audit.storage import check_bucket
from vabal.audit.witnesses import check_registry
from vabal.errors import UserError
from vabal.promotion import agreement, record
from vabal.rounds import tag_name
from vabal.rounds.versions import Pinned

ROUNDS = 3


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.Session().client("s3", endpoint_url=server)
    client.create_bucket(Bucket="vabal")
    yield client
    for item in client.list_objects_v2(Bucket="vabal").get("Contents", []):
        client.delete_object(Bucket="vabal", Key=item["Key"])


def heads(root: Path) -> dict[str, str]:
    versions = Versioning(root)
    return {name: versions.tag_message(name) for name in versions.tags()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published history of four rounds, with a bare git remote beside it and DVC's remote as a folder."""
    base = tmp_path_factory.mktemp("outside")
    root = base / "work"
    root.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
        git(base, "init", "--quiet", "--bare", "remote.git")
        versions = Versioning(root)
        versions.init(str(base / "dvc"))
        git(root, "remote", "add", "origin", str(base / "remote.git"))
        books = Books(root)
        for number in range(ROUNDS + 1):
            books.begin() if number == 0 else books.round(labels={books.pools.unlabeled["sample_id"].iloc[0]: "cat"})
            versions.add()
            versions.push()
            versions.commit(
                ["data.dvc", ".gitignore", ".gitattributes", ".dvcignore", ".dvc/config"], f"round {number}"
            )
            versions.tag(tag_name(number), books.tags[tag_name(number)])
            versions.push_git("origin", [tag_name(number)])
    return root


@pytest.fixture
def root(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    shutil.copytree(kept.parent, tmp_path / "copy", symlinks=True)
    copy = tmp_path / "copy" / "work"
    git(copy, "remote", "set-url", "origin", str(tmp_path / "copy" / "remote.git"))
    return copy


def verify(root: Path, **options: Any) -> AuditReport:
    return audit.verify(root / "data", heads(root), images=False, outside=Outside(Versioning(root), **options))


def found(report: AuditReport) -> str:
    return "; ".join(f"{finding.round} {finding.file}: {finding.what}" for finding in report.findings)


def test_an_untouched_history_is_intact_and_everything_was_looked_at(root: Path) -> None:
    report = verify(root, git_remote="origin")
    assert (found(report), report.notes) == ("", ())


# -- git ----------------------------------------------------------------------------------------------------------


def retag(root: Path, name: str, where: str, *how: str) -> None:
    message = Versioning(root).tag_message(name)
    git(root, *SOMEBODY, "tag", "-f", *(how or ("-a", "-m", message)), name, where)


def rewrite_pin(root: Path) -> None:
    """`data.dvc` of a past round pins round 0's pools instead, under the same tag."""
    old = git(root, "show", "round/0000:data.dvc")
    git(root, "checkout", "--quiet", "round/0002")
    (root / "data.dvc").write_text(old + "\n# changed\n")
    git(root, *SOMEBODY, "commit", "--quiet", "-am", "round 2")
    retag(root, "round/0002", "HEAD")
    git(root, "checkout", "--quiet", "main")


def undo_the_newest(root: Path) -> None:
    git(root, "reset", "--quiet", "--hard", "round/0002")
    Versioning(root).bring_back()


def damage_pin(root: Path) -> None:
    (root / "data.dvc").write_text("outs: [{md5: 0, path: data}]\n")
    git(root, *SOMEBODY, "commit", "--quiet", "--amend", "-am", "round 3")
    retag(root, "round/0003", "HEAD")


def to_a_commit_of_its_own(root: Path) -> None:
    git(root, *SOMEBODY, "commit", "--quiet", "--allow-empty", "-m", "x")
    retag(root, "round/0003", "HEAD")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "moved to an older commit": (lambda root: retag(root, "round/0002", "round/0001"), "2 data.dvc: pins"),
    "moved to a later commit": (lambda root: retag(root, "round/0001", "round/0003"), "1 data.dvc: pins"),
    "moved to a commit of its own": (
        to_a_commit_of_its_own,
        "round/0003 stands at a commit that published nothing",
    ),
    "no annotated tag any more": (
        lambda root: retag(root, "round/0002", "round/0002^{}", "--no-sign"),
        "round/0002 is no annotated tag",
    ),
    "data.dvc rewritten": (rewrite_pin, "round/0002 stands at a commit that is not in this history"),
    "data.dvc damaged": (damage_pin, "3 data.dvc: missing or damaged at git tag round/0003"),
    "the newest round undone": (undo_the_newest, "round/0003 stands for a round that is not here"),
}


def forge_under_its_name(root: Path, *, by_replacing: bool) -> None:
    """A forged tag under the name that the genuine object has: by `git replace`, or by its file's bytes."""
    genuine = git(root, "rev-parse", "refs/tags/round/0002")
    retag(root, "round/0002", "round/0002^{}", "-a", "-m", f"round 2\n\nmanifest sha256:{'0' * 64}")
    forged = git(root, "rev-parse", "refs/tags/round/0002")
    git(root, "update-ref", "refs/tags/round/0002", genuine)
    if by_replacing:
        git(root, "replace", genuine, forged)
        return
    objects = root / ".git" / "objects"
    file = objects / genuine[:2] / genuine[2:]
    file.chmod(0o644)
    shutil.copyfile(objects / forged[:2] / forged[2:], file)


def forged_parents(root: Path) -> None:
    """Commits of the same trees that do not go on from one another, but for a file of grafts."""
    alone = git(root, *SOMEBODY, "commit-tree", "round/0002^{tree}", "-m", "round 2")
    retag(root, "round/0002", alone)
    (root / ".git" / "info").mkdir(exist_ok=True)
    before, after = git(root, "rev-parse", "round/0001^{}"), git(root, "rev-parse", "round/0003^{}")
    (root / ".git" / "info" / "grafts").write_text(f"{alone} {before}\n{after} {alone}\n")


def pin_another(root: Path, *, commit: bool) -> None:
    (root / "data.dvc").write_text(git(root, "show", "round/0001:data.dvc") + "\n")
    if commit:
        git(root, *SOMEBODY, "commit", "--quiet", "-am", "x")


CHANGES |= {
    "data.dvc at HEAD alone": (lambda root: pin_another(root, commit=True), "3 data.dvc: at HEAD it is not that of"),
    "data.dvc in the workspace": (lambda root: pin_another(root, commit=False), "3 data.dvc: in the workspace it is"),
    "a tag of a tag": (lambda root: retag(root, "round/0002", "refs/tags/round/0002"), "round/0002 is no annotated"),
    "its bytes under their name": (lambda root: forge_under_its_name(root, by_replacing=False), "None git: the repos"),
    "commits joined by grafts": (forged_parents, "round/0002 stands at a commit that is not in this history"),
}


def test_a_tag_is_read_as_it_was_made_whatever_git_replace_says(root: Path) -> None:
    forge_under_its_name(root, by_replacing=True)
    assert "0" * 64 in git(root, "for-each-ref", "--format=%(contents)", "refs/tags/round/0002")
    assert found(verify(root, git_remote="origin")) == ""


@pytest.mark.parametrize("name", ["round/0003", "promotion/0001", "main"])
def test_other_refs_of_the_same_short_name_hide_nothing_and_raise_no_alarm(root: Path, name: str) -> None:
    decide_in_git(root, 2)
    for ref in (f"refs/heads/{name}", f"refs/{name}", *(["refs/tags/main"] if name == "main" else [])):
        if ref != "refs/heads/main":
            git(root, "update-ref", ref, "round/0001^{}")
    assert found(verify(root)) == ""
    versions = Versioning(root)
    versions.push_git("origin", ["round/0003", "promotion/0001", "promotion/0002"])
    assert found(verify(root, git_remote="origin")) == ""
    versions.go_to("round/0003")
    assert versions.commit_of("HEAD") == git(root, "rev-parse", "refs/tags/round/0003^{}")


def test_tags_of_somebody_elses_raise_no_alarm(root: Path) -> None:
    decide_in_git(root, 1)
    for name in ("promotion/summer", "promotion/1", "round/best", "round/12"):
        git(root, "tag", name)
    assert found(verify(root)) == ""


def test_settings_of_git_that_change_what_it_prints_change_no_answer(root: Path) -> None:
    decide_in_git(root, 2)
    for key, value in {
        "color.ui": "always",
        "column.ui": "always",
        "tag.sort": "-version:refname",
        "log.showSignature": "true",
        "core.abbrev": "4",
        "core.quotePath": "true",
        "i18n.logOutputEncoding": "latin1",
        "diff.external": "false",
    }.items():
        git(root, "config", key, value)
    assert Versioning(root).tag_message("round/0002").count("\n") == 2
    assert found(verify(root)) == ""


def test_a_clone_without_older_commits_says_how_to_bring_them_and_then_verifies(root: Path, tmp_path: Path) -> None:
    address = f"file://{root.parent / 'remote.git'}"
    git(tmp_path, "clone", "--quiet", "--depth", "1", "--branch", "main", address, "clone")
    clone = tmp_path / "clone"
    git(clone, "fetch", "--quiet", "--tags", "--depth", "1")
    shutil.copytree(root / "data", clone / "data")
    assert found(verify(clone)) == (
        "None git: this clone left older commits out: `git fetch --unshallow --tags` brings them"
    )
    git(clone, "fetch", "--quiet", "--unshallow", "--tags")
    assert found(verify(clone)) == ""


def test_a_half_published_round_is_told_as_such_and_is_no_alarm(root: Path) -> None:
    at = git(root, "rev-parse", "round/0002^{}")
    git(root, "tag", "--delete", "round/0003")
    assert "git has no tag round/0003" in found(verify(root))
    git(root, "reset", "--quiet", "--soft", at)
    report = verify(root, pending=3)
    assert (found(report), report.notes) == (
        "",
        ("round 3 is half published: `vabal round` finishes it, `vabal abandon` drops it",),
    )


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_in_git_is_found_and_named(root: Path, change: str) -> None:
    act, expected = CHANGES[change]
    act(root)
    assert expected in found(verify(root))


def test_the_newest_round_undone_with_its_tag_is_found_at_the_remote(root: Path) -> None:
    undo_the_newest(root)
    git(root, "tag", "--delete", "round/0003")
    assert found(verify(root)) == ""
    assert "git remote origin has the tag round/0003, which is not here" in found(verify(root, git_remote="origin"))


def test_a_tag_that_differs_at_the_remote_is_found(root: Path) -> None:
    retag(root, "round/0002", "round/0002^{}")
    assert "git tag round/0002 is another one at origin" in found(verify(root, git_remote="origin"))
    git(root, "push", "--quiet", "origin", ":refs/tags/round/0001")
    assert "git remote origin has no tag round/0001" in found(verify(root, git_remote="origin"))


def test_a_remote_that_does_not_answer_is_a_finding_not_a_crash(root: Path) -> None:
    git(root, "remote", "set-url", "origin", str(root / "nowhere"))
    assert "the tags of origin were not compared: git remote origin does not answer" in found(
        verify(root, git_remote="origin")
    )


# -- a checkout of an older round -----------------------------------------------------------------------------------


def test_a_checkout_of_an_older_round_verifies_its_past_and_says_so(root: Path) -> None:
    versions = Versioning(root)
    versions.go_to("round/0001")
    versions.bring_back()
    report = verify(root)
    assert found(report) == ""
    assert report.rounds == 2
    assert report.notes == (
        "this is a checkout of round 1: rounds 2 to 3 came later and stayed unseen (`vabal checkout newest` goes back)",
    )
    (root / "data" / "labeled.parquet").write_bytes(b"x")
    assert "labeled.parquet" in found(verify(root))


def test_a_round_that_no_branch_holds_is_an_alarm_in_an_older_checkout_too(root: Path) -> None:
    undo_the_newest(root)
    git(root, "update-ref", "-d", "refs/remotes/origin/main")
    git(root, "checkout", "--quiet", "--detach")
    assert "round/0003 stands for a round that is not here" in found(verify(root))


# -- DVC's pins -----------------------------------------------------------------------------------------------------


def test_a_forged_listing_in_the_cache_is_found(root: Path) -> None:
    """The bytes of a past table exchanged end to end: object, listing, `data.dvc`, tag."""
    import hashlib

    versions = Versioning(root)
    pinned = versions.pinned("round/0001")
    assert pinned is not None
    listing = versions.listing(pinned.digest)
    assert listing is not None
    cache = root / ".dvc" / "cache" / "files" / "md5"
    content = b"another table"
    md5 = hashlib.md5(content).hexdigest()  # noqa: S324 -- DVC's own
    (cache / md5[:2]).mkdir(exist_ok=True)
    (cache / md5[:2] / md5[2:]).write_bytes(content)
    listing["labeled.parquet"] = md5
    forged = json.dumps([{"md5": value, "relpath": name} for name, value in sorted(listing.items())]).encode()
    digest = hashlib.md5(forged).hexdigest() + ".dir"  # noqa: S324
    (cache / digest[:2]).mkdir(exist_ok=True)
    (cache / digest[:2] / digest[2:]).write_bytes(forged)

    class Forged(Versioning):
        def pinned(self, at: str | None) -> Pinned | None:
            found = super().pinned(at)
            return replace(found, digest=digest) if found is not None and found == pinned else found

    report = audit.verify(root / "data", heads(root), images=False, outside=Outside(Forged(root)))
    assert found(report) == (
        "1 data.dvc: pins another table than the manifest names for labeled.parquet at git tag round/0001"
    )


def test_without_a_cache_the_newest_pin_is_compared_and_the_others_are_said_to_be_unseen(root: Path) -> None:
    shutil.rmtree(root / ".dvc" / "cache")
    report = verify(root)
    assert found(report) == ""
    assert report.notes == (
        "data.dvc of rounds 0 to 2 was not compared: not in this machine's cache (--remote asks S3)",
    )
    (root / "data" / "rounds" / "0003" / "extra").write_text("x")
    assert "3 data.dvc: pins other files than data/ holds" in found(verify(root))


# -- S3 -------------------------------------------------------------------------------------------------------------


def upload(root: Path, s3: Any) -> None:
    remote = root.parent / "dvc"
    for path in remote.rglob("*"):
        if path.is_file():
            s3.put_object(Bucket="vabal", Key=f"dvc/{path.relative_to(remote).as_posix()}", Body=path.read_bytes())


def object_of(root: Path, tag: str, file: str) -> str:
    versions = Versioning(root)
    pinned = versions.pinned(tag)
    assert pinned is not None
    md5 = pinned.digest if file == ".dir" else (versions.listing(pinned.digest) or {})[file]
    return f"dvc/files/md5/{md5[:2]}/{md5[2:]}"


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("round/0000", ".dir"),
        ("round/0001", "label_events.parquet"),
        ("round/0002", "rounds/0002/manifest.json"),
        ("round/0003", "images/r0-0000.parquet"),
    ],
)
def test_an_object_that_is_gone_cut_or_exchanged_in_s3_is_found(root: Path, s3: Any, tag: str, file: str) -> None:
    def told() -> str:
        versions = Versioning(root)
        outside = Outside(versions, bucket=Bucket("vabal", "dvc"))
        findings = check_bucket(root / "data", records, versions.tag_objects(), outside)
        return "; ".join(f"{finding.round} {finding.file}: {finding.what}" for finding in findings)

    upload(root, s3)
    records, _ = chain.read_records(root / "data")
    assert found(verify(root, bucket=Bucket("vabal", "dvc"))) == ""
    key = object_of(root, tag, file)
    content = s3.get_object(Bucket="vabal", Key=key)["Body"].read()
    for cache in (True, False):
        if not cache:
            shutil.rmtree(root / ".dvc" / "cache")
        for other in (None, content[:-1], bytes([content[0] ^ 1]) + content[1:]):
            s3.delete_object(Bucket="vabal", Key=key)
            if other is not None:
                s3.put_object(Bucket="vabal", Key=key, Body=other)
            assert key.removeprefix("dvc/") in told()
            assert f"{int(tag[-1])} S3: " in told()
        s3.put_object(Bucket="vabal", Key=key, Body=content)
    assert told() == ""


def test_an_s3_that_is_away_is_a_finding_not_a_crash(root: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "the bucket was not looked at: no S3 server" in found(verify(root, bucket=Bucket("vabal", "dvc")))
    assert "anchor: not asked: no S3 server" in found(verify(root, anchor=Anchor("s3://vabal/anchor", 1)))


# -- the anchor -----------------------------------------------------------------------------------------------------


def anchored(root: Path) -> Anchor:
    anchor = Anchor("s3://vabal/anchor", 1)
    for name, message in heads(root).items():
        anchor.write(name, message.splitlines()[-1])
    return anchor


def test_the_newest_round_undone_with_its_tag_is_found_by_the_anchor(root: Path, s3: Any) -> None:
    anchor = anchored(root)
    assert found(verify(root, anchor=anchor)) == ""
    undo_the_newest(root)
    git(root, "tag", "--delete", "round/0003")
    assert "round 3 was anchored and is not here: undone, or not fetched" in found(verify(root, anchor=anchor))


def test_a_history_forged_with_all_digests_and_tags_is_found_by_the_anchor(root: Path, s3: Any) -> None:
    anchor = anchored(root)
    path = root / "data" / "rounds" / "0003" / "manifest.json"
    manifest = json.loads(path.read_bytes()) | {"mlflow_run": "another"}
    Books.write_manifest(books := Books(root), manifest)
    versions = Versioning(root)
    versions.add()
    versions.commit(["data.dvc"], "round 3")
    git(root, "tag", "--delete", "round/0003")
    versions.tag("round/0003", books.tags["round/0003"])
    told = found(verify(root, anchor=anchor))
    assert "3 rounds/0003/manifest.json: its sha256 is not the one that was anchored as round/0003" in told


def test_a_head_is_anchored_once_and_another_is_refused(root: Path, s3: Any) -> None:
    anchor = anchored(root)
    anchor.write("round/0001", heads(root)["round/0001"].splitlines()[-1])
    with pytest.raises(UserError, match="anchors another head"):
        anchor.write("round/0001", "manifest sha256:00")
    assert anchor.read()["round/0001"] == heads(root)["round/0001"].splitlines()[-1]


def test_two_that_anchor_at_once_do_not_write_over_each_other(root: Path, s3: Any) -> None:
    anchor = Anchor("s3://vabal/anchor", 1)
    known = anchor.known

    def late(name: str) -> str | None:
        answer = known(name)
        if answer is None:
            s3.put_object(Bucket="vabal", Key=f"anchor/{name}", Body=b"manifest sha256:theirs")
        return answer

    anchor.known = late  # type: ignore[method-assign]
    with pytest.raises(UserError, match="anchors another head"):
        anchor.write("round/0009", "manifest sha256:ours")
    assert anchor.read()["round/0009"] == "manifest sha256:theirs"


def test_a_bucket_with_object_lock_keeps_what_is_anchored(server: str, s3: Any) -> None:
    s3.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    Anchor("s3://locked/anchor", 2).write("round/0001", "manifest sha256:00")
    kept = s3.head_object(Bucket="locked", Key="anchor/round/0001")
    assert kept["ObjectLockMode"] == "COMPLIANCE"
    assert kept["ObjectLockRetainUntilDate"].year >= datetime.now(UTC).year + 1


# -- signatures -----------------------------------------------------------------------------------------------------


@pytest.fixture
def signer(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Git configured to sign with an SSH key."""
    if shutil.which("ssh-keygen") is None:
        pytest.skip("no ssh-keygen on this machine")
    for name in ("key", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    public = (tmp_path / "key.pub").read_text()
    (tmp_path / "allowed").write_text(f"a@example.org {public}")
    configuration = tmp_path / "gitconfig"
    configuration.write_text(
        f"[user]\n name = a\n email = a@example.org\n signingKey = {tmp_path}/key\n"
        f'[gpg]\n format = ssh\n[gpg "ssh"]\n allowedSignersFile = {tmp_path}/allowed\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    return configuration


def test_signed_tags_verify_and_one_that_is_not_signed_or_by_a_stranger_is_found(root: Path, signer: Path) -> None:
    versions = Versioning(root, sign=True)
    for number in (2, 3):
        message = versions.tag_message(tag_name(number))
        at = versions.commit_of(tag_name(number))
        git(root, "tag", "--delete", tag_name(number))
        git(root, "tag", "--sign", "-m", message, tag_name(number), str(at))
        assert versions.tag_message(tag_name(number)) == message
    assert found(verify(root, sign=True)) == ""
    retag(root, "round/0003", "round/0003^{}")
    assert "3 rounds/0003/manifest.json: git tag round/0003: no good signature" in found(verify(root, sign=True))
    signer.write_text(signer.read_text().replace("/key\n", "/stranger\n"))
    retag(root, "round/0003", "round/0003^{}", "--sign", "-m", versions.tag_message("round/0003"))
    assert "git tag round/0003: no good signature" in found(verify(root, sign=True))


def test_a_round_is_tagged_with_a_signature_where_the_setting_says_so(root: Path, signer: Path) -> None:
    (root / "data" / "labeled.parquet").write_bytes(b"next")
    versions = Versioning(root, sign=True)
    versions.add()
    versions.commit(["data.dvc"], "round 4")
    versions.tag("round/0004", "round 4\n\nmanifest sha256:00")
    assert versions.signature_problem("round/0004") is None
    versions.tag("round/0004", "round 4\n\nmanifest sha256:00")


def test_a_tag_stands_at_the_commit_that_published_though_others_came_since(root: Path) -> None:
    (root / "data" / "labeled.parquet").write_bytes(b"next")
    versions = Versioning(root)
    versions.add()
    versions.commit(["data.dvc"], "round 4")
    published = versions.commit_of("HEAD")
    git(root, *SOMEBODY, "commit", "--quiet", "--allow-empty", "-m", "notes")
    versions.tag("round/0004", "round 4")
    assert versions.commit_of("round/0004") == published
    assert os.environ["GIT_CONFIG_GLOBAL"] == "/dev/null"


def sign_again(root: Path, number: int) -> None:
    versions, name = Versioning(root), tag_name(number)
    message, at = versions.tag_message(name), str(versions.commit_of(name))
    git(root, "tag", "--delete", name)
    git(root, "tag", "--sign", "-m", message, name, at)


def test_signing_that_is_switched_on_off_and_on_again_raises_no_alarm_for_what_lay_between(
    root: Path, signer: Path
) -> None:
    decide_in_git(root, 2)
    report = verify(root, sign=True)  # switched on just now
    assert found(report) == ""
    assert "audit.sign is set, but no tag up to round/0003 is signed: the next one will be" in report.notes
    sign_again(root, 1)
    assert found(verify(root)) == ""  # and off again
    assert "round/0003: no good signature" in found(verify(root, sign=True))
    sign_again(root, 3)
    assert "promotion/0002: no good signature" in found(verify(root, sign=True))
    git(root, "tag", "--force", "--sign", "-m", Versioning(root).tag_message("promotion/0002"), "promotion/0002")
    assert found(verify(root, sign=True)) == ""


# -- decisions ------------------------------------------------------------------------------------------------------


def decide(root: Path, count: int) -> list[record.Entry]:
    """A record of that many refusals."""
    entries: list[record.Entry] = []
    for number in range(1, count + 1):
        entry = record.Entry(
            sequence=number,
            when="2026-03-09T00:00:00+00:00",
            who="a",
            action="refuse",
            version="1",
            round=1,
            previous_version=None,
            previous_round=None,
            why="no better",
            decision={"promoted": False},
            parent=entries[-1].digest() if entries else None,
        )
        record.append(root, entry)
        entries.append(entry)
    return entries


def decide_in_git(root: Path, count: int) -> None:
    """The same, each committed and tagged."""
    versions, path = Versioning(root), root / record.RECORD
    entries = decide(root, count)
    whole = path.read_bytes().splitlines(keepends=True)
    for number, entry in enumerate(entries, start=1):
        path.write_bytes(b"".join(whole[:number]))
        versions.commit([record.RECORD], f"decision {number}")
        versions.tag(record.tag_name(number), record.tag_message(entry, "refused"))


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("elsewhere", "git tag promotion/0001 stands at a commit that is not in this history"),
        ("at another file's commit", "git tag promotion/0002 stands at a commit that wrote no decision"),
        ("behind the next", "git tag promotion/0002 does not stand behind the tag of the decision before"),
        ("lightweight", "git tag promotion/0001 is no annotated tag"),
        ("of no round", "entry 3 is about round 99, which is not here"),
    ],
)
def test_a_decisions_tag_that_was_moved_or_made_otherwise_is_found(root: Path, how: str, expected: str) -> None:
    decide_in_git(root, 2)
    first, second = record.read_record(root)
    if how == "elsewhere":
        retag(root, "promotion/0001", git(root, *SOMEBODY, "commit-tree", "promotion/0001^{tree}", "-m", "x"))
    elif how == "at another file's commit":
        git(root, *SOMEBODY, "commit", "--quiet", "--allow-empty", "-m", "x")
        retag(root, "promotion/0002", "HEAD")
    elif how == "behind the next":
        record.append(root, replace(second, sequence=3, parent=second.digest()))
        Versioning(root).commit([record.RECORD], "decision 3")
        retag(root, "promotion/0001", "HEAD")
    elif how == "lightweight":
        git(root, "tag", "--force", "promotion/0001", "promotion/0001^{}")
    else:
        record.append(root, replace(second, sequence=3, parent=second.digest(), round=99, version="99"))
    versions = Versioning(root)
    witness = agreement.witness_here(root / "data", versions)
    report = audit.verify(root / "data", heads(root), images=False, outside=Outside(versions), promotions=witness)
    assert expected in found(report)
    assert first.sequence == 1


def test_a_record_that_was_cut_or_rewritten_with_its_tags_is_found_by_the_anchor(root: Path, s3: Any) -> None:
    anchor = anchored(root)
    for entry in decide(root, 3):
        anchor.write(record.tag_name(entry.sequence), f"record sha256:{entry.digest()}")
    assert "anchored" not in found(verify(root, anchor=anchor))
    path = root / record.RECORD
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
    assert "lacks the decision that was anchored as promotion/0003" in found(verify(root, anchor=anchor))
    path.unlink()
    assert "lacks the decision that was anchored as promotion/0001" in found(verify(root, anchor=anchor))
    path.write_bytes(whole.replace(b"no better", b"no worse!"))
    assert found(verify(root, anchor=anchor)) != ""


# -- registered versions ----------------------------------------------------------------------------------------------


class Shelf:
    """A registry whose files the test decides."""

    def __init__(self, files: dict[str, dict[str, str]]) -> None:
        self.held = files

    def version(self, version: str) -> Registered:
        if version not in self.held:
            raise UserError(f"no version {version}")
        return Registered(version, int(version), "0" * 64, {})

    def files(self, version: str) -> dict[str, str]:
        return self.held[version]


def test_registered_bytes_that_are_gone_or_exchanged_are_found(kept: Path, tmp_path: Path) -> None:
    books = Books(tmp_path / "made").begin()
    books.round().round()
    for number in (1, 2):
        path = books.data / "rounds" / f"{number:04d}" / "manifest.json"
        manifest = json.loads(path.read_bytes())
        manifest["model"] |= {"files": {"weights.safetensors": "0" * 64, "MLmodel": "1" * 64}}
        books.write_manifest(manifest)
    records, _ = chain.read_records(books.data)
    good = {"weights.safetensors": "0" * 64, "MLmodel": "1" * 64}

    def told(files: dict[str, dict[str, str]]) -> str:
        outside = Outside(Versioning(kept), registry=Shelf(files))
        return "; ".join(finding.what for finding in check_registry(books.data, records, outside))

    assert told({"1": good, "2": good}) == ""
    assert "MLmodel was changed or added" in told({"1": good, "2": good | {"MLmodel": "2" * 64}})
    assert "python_model.pkl was changed or added" in told({"1": good | {"python_model.pkl": "3" * 64}, "2": good})
    assert "MLmodel is missing" in told({"1": {"weights.safetensors": "0" * 64}, "2": good})
    assert "no version 2" in told({"1": good})
