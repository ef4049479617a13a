"""Images that stay in S3: sources, shards of references, reading and keeping them; against moto's server."""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from tests.support.faulty_server import FaultyServer, faulty, serving
from tests.support.small_buckets import a_bucket, s3_server
from tests.support.small_pools import file_of, picture
from tests.support.small_sources import build
from vabal import images, objects, pools
from vabal.adapters.storage import S3StageStore
from vabal.audit import staying, verify
from vabal.audit.chain import read_records
from vabal.audit.places import Outside
from vabal.audit.staying import check_objects
from vabal.errors import Unavailable, UserError
from vabal.files import file_sha256, sha256
from vabal.images import DecodedShards, SharedShards, shard_files, shards
from vabal.images.shards import references, shard_digest
from vabal.labels import arrivals
from vabal.rounds.initial import round_zero
from vabal.rounds.stage_store import LocalStageStore
from vabal.settings.models import Params, PoolSettings
from vabal.sources import ingestion, open_source


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with a_bucket(server, monkeypatch, tmp_path / "kept") as made:
        yield made


def fill(bucket: Any, root: Path | None = None, *, count: int = 12, prefix: str = "cam") -> None:
    """Pictures of two classes below the prefix, and the same files below `root`."""
    for number in range(count):
        name = f"{'ab'[number % 2]}/{number:03d}.png"
        put(bucket, f"{prefix}/{name}", file_of(picture(number)))
        if root is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(file_of(picture(number)))


def put(bucket: Any, key: str, content: bytes) -> None:
    bucket.put_object(Key=key, Body=content)


def no_more_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for an object from here on fails."""

    def refuse() -> Any:
        raise AssertionError("an object was asked for")

    objects.reach(refuse)


def test_a_prefix_makes_the_same_pools_as_a_folder_and_holds_references(bucket: Any, tmp_path: Path) -> None:
    fill(bucket, tmp_path / "pics")
    here = build(open_source(f"folder:{tmp_path / 'pics'}"), tmp_path / "here").pools
    there = build(open_source("s3://photos/cam/"), tmp_path / "there").pools
    assert there.classes == ("a", "b")
    assert here.catalog.equals(there.catalog)
    assert pools.digests(here)["holdout"] == pools.digests(there)["holdout"]
    [shard] = there.catalog["shard"].unique()
    assert shard_digest(tmp_path / "here", shard) == shard_digest(tmp_path / "there", shard)
    rows = dict(references(tmp_path / "there", shard))
    assert rows["a-000"].uri == "s3://photos/cam/a/000.png"
    assert rows["a-000"].sha256 == sha256(file_of(picture(0)))
    assert "image" not in pq.read_schema(tmp_path / "there" / "images" / f"{shard}.parquet").names
    assert list(references(tmp_path / "here", shard)) == []


def test_every_reading_function_gives_the_bytes_of_the_objects(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket, tmp_path / "pics")
    catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    row = catalog[catalog["sample_id"] == "b-001"].iloc[0]
    assert images.encoded(tmp_path / "data", row["shard"], row["row"]) == file_of(picture(1))
    expected = {f"{'ab'[number % 2]}-{number:03d}": file_of(picture(number)) for number in range(12)}
    assert dict(images.encoded_many(tmp_path / "data", catalog)) == expected
    assert dict(shards.whole_shard(tmp_path / "data", row["shard"])) == expected
    build(open_source(f"folder:{tmp_path / 'pics'}"), tmp_path / "here")
    there, here = (DecodedShards(tmp_path / name, tmp_path / f"decoded-{name}", 8, 1) for name in ("data", "here"))
    for ours, theirs in zip(there.batches(row["shard"], 5), here.batches(row["shard"], 5), strict=True):
        assert (ours[1] == theirs[1]).all()
    no_more_reading(monkeypatch)  # what was read is kept
    assert dict(images.encoded_many(tmp_path / "data", catalog)) == expected
    assert (there.gather(catalog.iloc[[5, 2]]) == here.gather(catalog.iloc[[5, 2]])).all()


def test_keys_of_every_kind_are_read_or_named(bucket: Any, tmp_path: Path) -> None:
    fill(bucket, count=10)
    odd = ["a/tab\tstop.png", "b/größe ☃.png", f"a/{'long' * 200}.png", "a/b c?d#e%2F.png", "b/100%.png"]
    for number, name in enumerate(odd, start=100):
        put(bucket, f"cam/{name}", file_of(picture(number)))
    for name in ("a//twice.png", "a/../up.png", "./here.png", ".hidden/1.png"):
        put(bucket, f"cam/{name}", file_of(picture(200)))
    put(bucket, "cam/a/", b"")
    put(bucket, "cam/a/empty.png", b"")
    put(bucket, "cam/b/no.png", b"no image")
    put(bucket, "camera/other.png", file_of(picture(300)))
    told: list[str] = []
    source = open_source("s3://photos/cam")
    made = build(source, tmp_path / "data", quarantine=tmp_path / "aside", tell=told.append)
    assert len(made.pools.catalog) == 15
    reasons = dict(made.unreadable)
    assert reasons["s3://photos/cam/a/empty.png"] == "the file is empty"
    assert "no image" in reasons["s3://photos/cam/b/no.png"]
    said = "\n".join(told)
    assert "left out, keys that are no path (//, . or .. in them): ./here.png, a/../up.png, a//twice.png" in said
    assert "left out, empty objects that stand for folders: a/" in said
    assert "left out, hidden files and folders: .hidden/1.png" in said
    with (tmp_path / "aside" / "quarantine.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == set(reasons)
    assert [path.name for path in (tmp_path / "aside").iterdir() if "." not in path.name] == []  # nothing is copied
    assert len(dict(images.encoded_many(tmp_path / "data", made.pools.catalog))) == 15


def test_more_keys_than_a_page_of_the_listing_are_all_found(bucket: Any) -> None:
    for number in range(1003):  # not over HTTP, which takes a minute
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket.name, f"cam/{number:04d}.png", b"x")
    found = list(objects.store().below("s3://photos/cam"))
    assert [item.uri for item in found] == [f"s3://photos/cam/{number:04d}.png" for number in range(1003)]


def test_a_manifest_names_objects_with_labels_groups_and_splits(bucket: Any, tmp_path: Path) -> None:
    fill(bucket)
    rows = [f"s3://photos/cam/{'ab'[n % 2]}/{n:03d}.png,{'ok' if n < 6 else 'bad'},g{n // 4},train" for n in range(8)]
    rows += [f"s3://photos/cam/{'ab'[n % 2]}/{n:03d}.png,ok,,test" for n in range(8, 12)]
    rows += ["s3://photos/cam/a/gone.png,ok,,test"]
    text = "\n".join(["uri,label,group,split", *rows])
    (tmp_path / "few.csv").write_text(text)
    put(bucket, "lists/few.csv", text.encode())
    made = [
        build(open_source(f"uris:{tmp_path / 'few.csv'}"), tmp_path / "one", initial=2),
        build(open_source("s3://photos/lists/few.csv"), tmp_path / "two", initial=2),
    ]
    for report in made:
        assert report.pools.classes == ("bad", "ok")
        assert set(report.pools.holdout["sample_id"]) == {f"cam-{'ab'[n % 2]}-{n:03d}" for n in range(8, 12)}
        assert report.unreadable == (("s3://photos/cam/a/gone.png", "gone before it was read"),)
    assert made[0].pools.catalog.equals(made[1].pools.catalog)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\na,b\n", "the first line must name the column uri, found path, label"),
        ("uri\nhttp://x/y.png\n", "line 2: http://x/y.png is no s3://bucket/key"),
        ("uri\ns3://photos/a/../b.png\n", "line 2: .* the key is no path"),
        ("uri,label\ns3://photos/a.png,x\ns3://photos/a.png,y\n", "line 3: .* stands there twice, with different"),
        ("uri,split\ns3://photos/a.png,monday\n", "split 'monday': pool and holdout are known"),
        ("uri\n", "it names no object"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        open_source(f"uris:{tmp_path / 'list.csv'}")


def test_a_labels_csv_below_the_prefix_gives_labels_by_path_or_address(bucket: Any) -> None:
    fill(bucket, count=4)
    put(bucket, "cam/labels.csv", b"path,label\na/000.png,ok\ns3://photos/cam/b/001.png,bad\ncam/a/002.png,ok\n")
    source = open_source("s3://photos/cam")
    labels = {item.sample_id: item.label for item in source.items()}
    assert labels == {"a-000": "ok", "b-001": "bad", "a-002": "ok", "b-003": None}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("s3://photos/none", "s3://photos/none: no objects there"),
        ("s3://photos/none.csv", "s3://photos/none.csv: no such object"),
        ("s3:photos", "'s3:photos' is no s3://BUCKET/PREFIX"),
        ("s3://", "is no s3://bucket/key"),
        ("uris:x.txt", "'x.txt' is no s3://BUCKET/PREFIX, and no manifest"),
        ("uris:none.csv", "none.csv: No such file"),
        ("s3://nobucket/x", "NoSuchBucket when asked to list bucket `nobucket`"),
    ],
)
def test_a_place_that_is_none_is_told_in_one_line(bucket: Any, spec: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_source(spec)


def test_layouts_of_folders_are_those_of_prefixes(bucket: Any) -> None:
    for number in range(6):
        put(
            bucket, f"cam/{'train' if number < 4 else 'test'}/{'ab'[number % 2]}/{number}.png", file_of(picture(number))
        )
    with pytest.raises(UserError, match="--layout splits"):
        open_source("s3://photos/cam")
    items = list(open_source("s3+splits://photos/cam").items())
    assert [item.split for item in items].count("holdout") == 2


# --- what changed, what is gone, what fails ---------------------------------------------------------------------------


def test_an_object_that_changed_or_is_gone_is_told_with_its_sample(bucket: Any, tmp_path: Path) -> None:
    fill(bucket)
    catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    put(bucket, "cam/a/000.png", file_of(picture(50)))
    bucket.Object("cam/b/001.png").delete()
    assert len(dict(images.encoded_many(tmp_path / "data", catalog))) == 12  # from what was kept
    objects.keep_nowhere()
    for name, what in (("a-000", "holds other bytes than were taken in"), ("b-001", "is gone")):
        row = catalog[catalog["sample_id"] == name]
        with pytest.raises(UserError, match=rf"^sample {name}: s3://photos/cam/.*\.png {what}.*put the same bytes"):
            list(images.encoded_many(tmp_path / "data", row))


def test_a_bucket_with_versions_gives_what_was_taken_in(bucket: Any, tmp_path: Path) -> None:
    bucket.Versioning().enable()
    fill(bucket)
    catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    put(bucket, "cam/a/000.png", file_of(picture(50)))
    bucket.Object("cam/b/001.png").delete()
    objects.keep_nowhere()
    found = dict(images.encoded_many(tmp_path / "data", catalog))
    assert found["a-000"] == file_of(picture(0))
    assert found["b-001"] == file_of(picture(1))


def test_an_object_in_parts_is_known_by_a_tag_that_is_no_md5(bucket: Any, tmp_path: Path) -> None:
    fill(bucket)
    content = file_of(np.random.default_rng(0).integers(0, 256, (1400, 1400, 3), dtype=np.uint8), "BMP")
    upload = bucket.Object("cam/a/large.bmp").initiate_multipart_upload()
    halves = [content[: 5 << 20], content[5 << 20 :]]
    parts = [
        {"PartNumber": number, "ETag": upload.Part(number).upload(Body=half)["ETag"]}
        for number, half in enumerate(halves, start=1)
    ]
    upload.complete(MultipartUpload={"Parts": parts})
    catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    rows = dict(references(tmp_path / "data", str(catalog["shard"].iloc[0])))
    assert rows["a-large"].etag.endswith("-2")
    objects.keep_nowhere()
    large = catalog[catalog["sample_id"] == "a-large"]
    assert dict(images.encoded_many(tmp_path / "data", large)) == {"a-large": content}


def test_a_server_that_fails_now_and_then_costs_nothing_a_refusal_is_one_line(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket)
    seen: list[str] = []

    def flaky(method: str, path: str) -> str:
        seen.append(path)
        return {3: "503", 5: "cut", 8: "reset"}.get(len(seen), "")

    target = bucket.meta.client.meta.endpoint_url
    with serving(FaultyServer(flaky, target)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
        objects.reach(objects._open)  # type: ignore[arg-type]
        catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    assert len(catalog) == 12
    assert len(seen) > 12
    objects.keep_nowhere()
    with faulty("403", target) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        objects.reach(objects._open)  # type: ignore[arg-type]
        with pytest.raises(Unavailable, match=r"^not allowed to read from bucket `photos` at .*$"):
            list(images.encoded_many(tmp_path / "data", catalog.iloc[:1]))


def test_a_first_pass_that_was_cut_short_reads_no_object_again(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket)
    source = open_source("s3://photos/cam")
    items = source.items()
    for _ in range(12):
        next(items)
    items.close()  # type: ignore[attr-defined]
    no_more_reading(monkeypatch)
    made = build(source, tmp_path / "data")
    assert len(made.pools.catalog) == 12
    objects.keep_nowhere()


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_what_is_kept_stays_within_its_limit_the_oldest_goes_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = objects._Kept(tmp_path / "kept", lambda: 1e-4)  # 100 kB
    for number in range(40):
        kept.put(f"s3://b/{number}", "tag", None, bytes([number]) * 10_000)
        if number >= 3:
            assert kept.get("s3://b/3", "tag") is not None  # it is used again and again
    total = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*") if path.is_file())
    assert total <= 100_000
    assert kept.get("s3://b/0", "tag") is None
    assert kept.get("s3://b/39", "tag") is not None
    [line] = caplog.messages
    assert "dropped" in line
    assert "compute.objects_gigabytes = 0.0001" in line
    kept.put("s3://b/large", "tag", None, bytes(200_000))
    assert kept.get("s3://b/large", "tag") is None


def test_a_kept_object_that_is_damaged_or_of_another_tag_is_fetched_again(bucket: Any, tmp_path: Path) -> None:
    fill(bucket)
    catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file() and path.name[0] != "."]
    assert len(files) == 12
    for number, path in enumerate(files):
        content = path.read_bytes()
        path.write_bytes([content[:-7], b"", b"x" + content[1:], content[:3]][number % 4])
    assert len(dict(images.encoded_many(tmp_path / "data", catalog))) == 12


def test_a_shard_holds_images_or_references_and_never_both(tmp_path: Path) -> None:
    away = objects.Reference("s3://b/k", "tag", None, sha256(b"there"), 5)
    placed = images.write_shards(
        [("a", b"here"), ("b", away), ("c", away)], tmp_path / "images", settings=PoolSettings(), name_prefix="p"
    )
    assert placed == [("p-0000", 0, "a"), ("p-0001", 0, "b"), ("p-0001", 1, "c")]
    assert dict(references(tmp_path, "p-0001")) == {"b": away, "c": away}


# --- more images ------------------------------------------------------------------------------------------------------


@pytest.fixture
def ingest(bucket: Any, tmp_path: Path) -> Iterator[Any]:
    """Ingests an address into the pools of `s3://photos/cam`; returns the report and the requests that it took."""
    fill(bucket)
    made = build(open_source("s3://photos/cam"), tmp_path / "data", fingerprints=tmp_path / "prints").pools
    objects.keep_nowhere()
    asked: list[str] = []
    target = bucket.meta.client.meta.endpoint_url

    def noting(method: str, path: str) -> str:
        asked.append(f"{method} {path.partition('?')[0]}")
        return ""

    def run(address: str) -> tuple[ingestion.IngestReport, list[str]]:
        asked.clear()
        report = ingestion.ingest(
            tmp_path / "inbox",
            made,
            address,
            Params(),
            quarantine=tmp_path / "aside",
            when=datetime(2026, 1, 1, tzinfo=UTC),
            data=tmp_path / "data",
            fingerprints=tmp_path / "prints",
        )
        return report, list(asked)

    with serving(FaultyServer(noting, target)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        objects.reach(objects._open)  # type: ignore[arg-type]
        yield run


def test_a_prefix_that_was_taken_in_gives_its_new_objects_and_no_other_is_read(
    bucket: Any, tmp_path: Path, ingest: Any
) -> None:
    put(bucket, "cam/a/100.png", file_of(picture(100)))
    put(bucket, "cam/a/copy.png", file_of(picture(0)))
    put(bucket, "cam/a/no.png", b"no image")
    report, asked = ingest("s3://photos/cam/")
    assert report.sample_ids == ("a-100",)
    assert report.known == 12
    assert report.duplicates == ("s3://photos/cam/a/copy.png",)
    assert [path for path, _ in report.unreadable] == ["s3://photos/cam/a/no.png"]
    new = ["100", "copy", "no"]
    assert sorted(asked) == sorted(["GET /photos", *(f"GET /photos/cam/a/{name}.png" for name in new)])
    _, [arrival] = arrivals.read(tmp_path / "inbox", arrivals.pending(tmp_path / "inbox"))
    assert dict(images.encoded_many(arrival.shards.parent, arrival.catalog)) == {"a-100": file_of(picture(100))}
    again, asked = ingest("s3://photos/cam/")
    assert (again.sample_ids, again.name, again.known) == ((), None, 15)
    assert asked == ["GET /photos"]
    assert again.lines() == ["0 new images from s3://photos/cam/", "15 objects are known already, and the same"]


def test_an_object_that_changed_is_a_finding_and_no_new_image(bucket: Any, tmp_path: Path, ingest: Any) -> None:
    put(bucket, "cam/a/000.png", file_of(picture(60)))
    bucket.Object("cam/b/001.png").delete()
    bucket.Object("cam/b/no.png").put(Body=b"no image")
    report, asked = ingest("s3://photos/cam")
    assert report.sample_ids == ()
    assert report.changed == (("s3://photos/cam/a/000.png", "a-000, round 0"),)
    assert report.gone == (("s3://photos/cam/b/001.png", "b-001, round 0"),)
    assert "GET /photos/cam/a/000.png" not in asked
    said = "\n".join(report.lines())
    assert "1 changed since taken in, which is no new data: s3://photos/cam/a/000.png (a-000, round 0)" in said
    assert "1 of the pool's images gone from there: s3://photos/cam/b/001.png (b-001, round 0)" in said
    assert "changed since it was taken in (a-000, round 0)" in (tmp_path / "aside" / "left_out.csv").read_text()
    bucket.Object("cam/b/no.png").put(Body=file_of(picture(61)))  # what was no image is one now
    assert ingest("s3://photos/cam")[0].sample_ids == ("b-no",)


def test_a_manifest_that_grows_gives_what_is_new_in_it(bucket: Any, tmp_path: Path, ingest: Any) -> None:
    put(bucket, "cam/a/000.png", file_of(picture(60)))
    put(bucket, "other/100.png", file_of(picture(100)))
    rows = ["s3://photos/cam/a/000.png", "s3://photos/cam/b/001.png", "s3://photos/other/100.png"]
    (tmp_path / "list.csv").write_text("\n".join(["uri", *rows, "s3://photos/other/none.png"]))
    report, asked = ingest(f"uris:{tmp_path / 'list.csv'}")
    assert report.sample_ids == ("other-100",)
    assert [uri for uri, _ in report.changed] == rows[:1]
    assert (report.known, report.gone) == (1, ())
    assert [path for path, _ in report.unreadable] == ["s3://photos/other/none.png"]
    read = {line for line in asked if line.startswith("GET")}
    assert read == {"GET /photos/other/100.png", "GET /photos/other/none.png"}


# --- the audit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("versioned", [False, True])
def test_the_audit_names_images_whose_objects_changed_or_are_gone(
    bucket: Any, tmp_path: Path, *, versioned: bool
) -> None:
    if versioned:
        bucket.Versioning().enable()
    fill(bucket)
    build(open_source("s3://photos/cam"), tmp_path / "data")
    round_zero(tmp_path / "data", {}, 0)
    records, _ = read_records(tmp_path / "data")
    assert verify(tmp_path / "data").ok
    outside = Outside(repository=None, objects=objects.store())  # type: ignore[arg-type]  # it is not asked
    assert list(check_objects(tmp_path / "data", records, outside)) == []
    put(bucket, "cam/a/000.png", file_of(picture(50)))
    bucket.Object("cam/b/001.png").delete()
    found = list(check_objects(tmp_path / "data", records, outside))
    if versioned:
        assert found == []
        [note] = outside.notes
        assert note.startswith("2 objects were written over or deleted in S3; the bucket keeps the versions")
    else:
        [finding] = found
        assert (finding.round, finding.file) == (0, "images/pool-0000.parquet")
        assert "1 objects changed: s3://photos/cam/a/000.png (sample a-000)" in finding.what
        assert "1 objects are gone: s3://photos/cam/b/001.png (sample b-001)" in finding.what
    bucket.objects.all().delete() if not versioned else bucket.object_versions.all().delete()
    assert "12 objects are gone" in next(check_objects(tmp_path / "data", records, outside)).what


def test_the_audit_looks_at_each_object_where_a_prefix_holds_far_more(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bucket)
    rows = [f"s3://photos/cam/{'ab'[n % 2]}/{n:03d}.png,{'xy'[n % 2]}" for n in range(2, 10)]
    (tmp_path / "few.csv").write_text("\n".join(["uri,label", *rows]))
    build(open_source(f"uris:{tmp_path / 'few.csv'}"), tmp_path / "data", initial=2)
    round_zero(tmp_path / "data", {}, 0)
    records, _ = read_records(tmp_path / "data")
    bucket.Object("cam/b/009.png").delete()
    monkeypatch.setattr(staying, "_PAGE", 0)
    outside = Outside(repository=None, objects=objects.store())  # type: ignore[arg-type]  # it is not asked
    [finding] = check_objects(tmp_path / "data", records, outside)
    assert finding.what.startswith("1 objects are gone: s3://photos/cam/b/009.png (sample cam-b-009)")


def test_a_machine_that_shares_only_s3_with_the_pool_reads_its_images(bucket: Any, tmp_path: Path) -> None:
    fill(bucket)
    catalog = build(open_source("s3://photos/cam"), tmp_path / "data").pools.catalog
    [shard] = catalog["shard"].unique()
    store = S3StageStore("s3://nights/team", LocalStageStore(tmp_path / "store"))
    store.claim()
    sha256s = {shard: file_sha256(tmp_path / "data" / "images" / f"{shard}.parquet")}
    assert shard_files.share(store.shared, tmp_path / "data", sha256s) == [shard]
    assert shard_files.share(store.shared, tmp_path / "data", sha256s) == []
    objects.keep_in(tmp_path / "scratch" / "objects", lambda: 1.0)
    files = SharedShards(store.shared, sha256s, tmp_path / "scratch" / "shards")
    there = DecodedShards(files, tmp_path / "scratch" / "decoded", 8, 1, shared=store.shared)
    here = DecodedShards(tmp_path / "data", tmp_path / "decoded", 8, 1)
    assert (there.gather(catalog.iloc[[7, 3]]) == here.gather(catalog.iloc[[7, 3]])).all()
    assert list(there.sample_ids(shard)) == list(here.sample_ids(shard))
    assert any((tmp_path / "scratch" / "objects").iterdir())
