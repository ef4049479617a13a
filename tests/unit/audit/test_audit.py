"""The audit: what it tells of rounds, picks and samples, and that any change to a past round is found and named."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_books import Books, build, forge
from vabal import audit, files, images, pools, progress, rounds
from vabal.audit.curve import curve
from vabal.audit.findings import Finding
from vabal.cli import audited, render
from vabal.errors import UserError
from vabal.images import shards
from vabal.labels.inbox import take_labels
from vabal.promotion import champion
from vabal.rounds import tables


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Books:
    """For tests that only read."""
    return build(tmp_path_factory.mktemp("kept"))


@pytest.fixture
def books(kept: Books, tmp_path: Path) -> Books:
    """A copy of the same, to change."""
    return kept.copied(tmp_path)


@pytest.fixture
def full(tmp_path: Path) -> Books:
    """The same with all digits and columns, as earlier versions recorded them."""
    return build(tmp_path, record="full")


# -- what it tells ----------------------------------------------------------------------------------------------


def test_rounds_are_told_with_their_pools_their_picks_by_class_and_where_they_stand(kept: Books) -> None:
    told = audit.rounds(kept.data, kept.tags)
    assert [record["round"] for record in told] == [0, 1, 2, 3]
    assert [record["strategy"] for record in told] == ["initial", "random", "vabal", "entropy"]
    assert [record["labeled"] for record in told] == [9, 9, 13, 14]  # 4 answers in round 2, 1 in round 3
    assert [record["unlabeled"] for record in told] == [25, 25, 26, 25]  # 5 new images came with round 2
    assert told[1]["picks_by_class"] == {"cat": 0, "dog": 4, "emu": 0}
    assert (told[1]["picks"], told[1]["picks_open"], told[1]["picks_rejected"]) == (6, 1, 1)
    assert told[2]["picks_by_class"] == {"cat": 1, "dog": 0, "emu": 0}
    assert (told[3]["model"], told[3]["model_version"]) == ("vabal-classifier", "3")
    assert told[3]["mlflow_run"] == f"{3:032x}"
    assert [record["tag"] for record in told] == [f"round/000{number}" for number in range(4)]
    assert (told[0]["picks"], told[0]["model_version"], told[0]["metrics"]) == (0, None, {})


def test_without_git_no_round_claims_to_have_a_tag(kept: Books) -> None:
    assert {record["tag"] for record in audit.rounds(kept.data)} == {None}


def test_the_promotions_of_a_version_stand_beside_the_round_that_made_it(books: Books) -> None:
    promote(books.root, round_number=2)
    told = audit.rounds(books.data)
    assert [len(record["promotions"]) for record in told] == [0, 0, 1, 0]
    assert told[2]["promotions"][0]["who"] == "ann"


def test_picks_are_told_in_rank_order_with_the_label_known_by_now(kept: Books) -> None:
    first, second = audit.picks(kept.data, 1), audit.picks(kept.data, 2)
    assert first["rank"].tolist() == [1, 2, 3, 4, 5, 6]
    assert first["label"].fillna("-").tolist() == ["dog"] * 4 + ["-", "-"]
    assert first["rejected"].tolist() == [False] * 4 + [True, False]
    assert first["prior"].isna().all()
    assert second[["log_likelihood", "prior", "precision", "vae_class"]].notna().all(axis=None)
    assert second["score"].iloc[0] < second["score"].max()  # what covers most doubt is not what is doubted most
    assert (audit.picks(kept.data, 3)["score"].diff().dropna() <= 0).all()


def test_picks_are_told_with_margin_posterior_and_the_annotator_of_what_stands(kept: Books) -> None:
    first, third = audit.picks(kept.data, 1), audit.picks(kept.data, 3)
    assert first["annotator"].fillna("-").tolist() == ["ann"] * 5 + ["-"]
    assert first["margin"].isna().all()  # random looks at nothing
    candidates = pd.read_parquet(kept.data / "rounds/0003/candidates.parquet").set_index("sample_id")
    logits_N_C = np.stack(candidates["logits"].reindex(third["sample_id"]).to_list())
    posterior_N_C = np.exp(logits_N_C) / np.exp(logits_N_C).sum(axis=1, keepdims=True)
    assert np.allclose(third["posterior"], posterior_N_C.max(axis=1))
    assert np.allclose(third["margin"], np.diff(np.sort(posterior_N_C, axis=1)[:, -2:])[:, 0])


def test_a_label_that_waits_in_the_inbox_is_told_with_the_sample(kept: Books, tmp_path: Path) -> None:
    sample, when = kept.picked(3)[0], datetime(2026, 3, 9, 8, tzinfo=UTC)
    answers = pd.DataFrame([("line 2", sample, "dog", "ann", None)], columns=ANSWER)
    take_labels(tmp_path, kept.pools, answers, file="late.csv", content=b"late", when=when)
    assert audit.history(kept.data, sample)["waiting"] == []
    told = audit.history(kept.data, sample, tmp_path)
    [waiting] = told["waiting"]
    assert (told["state"], waiting["label"], waiting["annotator"]) == ("requested", "dog", "ann")
    assert (waiting["when"], waiting["source"][:9]) == ("2026-03-09T08:00:00+00:00", "late.csv#")
    assert audit.history(kept.data, "s006", tmp_path)["waiting"] == []


ANSWER = ["where", "sample_id", "label", "annotator", "problem"]


def test_an_image_that_waits_in_the_inbox_is_no_unknown_one(kept: Books, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "000001-00000000"
    folder.mkdir(parents=True)
    catalog = pd.read_parquet(kept.data / "catalog.parquet").head(1).assign(sample_id="fresh")
    pools.write_table(catalog.reindex(columns=pools.INCOMING.names), folder / "catalog.parquet", pools.INCOMING)
    with pytest.raises(UserError, match="'fresh' waits in the inbox: the next round takes it in"):
        audit.history(kept.data, "fresh", tmp_path)


@pytest.mark.parametrize(("number", "words"), [(0, "labels came with the source"), (7, "there are rounds 0 to 3")])
def test_a_round_without_picks_says_why(kept: Books, number: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        audit.picks(kept.data, number)


def test_an_opinion_that_came_late_is_told_as_outdated_and_the_record_verifies(tmp_path: Path) -> None:
    books = Books(tmp_path / "data").begin()
    sample = books.round(budget=2).picked(1)[0]
    books.round(labels={sample: "cat"}, said=datetime(2026, 2, 2, tzinfo=UTC))
    books.round(labels={sample: "emu"}, said=datetime(2026, 2, 1, tzinfo=UTC))
    assert books.verify().findings == ()
    told = audit.history(books.data, sample)
    assert (told["state"], told["label"]) == ("labeled", "cat")
    labels = [event for event in told["events"] if "label" in event]
    assert [(event["what"], event["when"], event["imported"][:10]) for event in labels] == [
        ("labelled", "2026-02-02T00:00:00+00:00", "2026-03-03"),
        ("outdated", "2026-02-01T00:00:00+00:00", "2026-03-04"),
    ]
    events = pd.read_parquet(books.data / "label_events.parquet")
    pools.write_table(
        events.assign(
            labeled_at=events["labeled_at"].mask(events["label"] == "emu", pd.Timestamp("2026-02-03", tz="UTC"))
        ),
        books.data / "label_events.parquet",
        pools.SCHEMAS["label_events"],
    )
    assert not books.verify().ok


def test_what_most_say_stands_and_is_derived_from_their_opinions(tmp_path: Path) -> None:
    books = Books(tmp_path / "data").begin()
    sample = books.round(budget=2).picked(1)[0]
    opinions = [(sample, "cat", "ann"), (sample, "cat", "bob"), (sample, "emu", "eve")]
    books.round(opinions=opinions, consensus="majority")
    assert books.verify().findings == ()
    told = audit.history(books.data, sample)
    assert (told["state"], told["label"]) == ("labeled", "cat")
    assert [event["annotator"] for event in told["events"] if "label" in event] == ["ann", "bob", "eve", "consensus"]
    manifest = json.loads((books.data / "rounds/0002/manifest.json").read_text())
    manifest["settings"]["labelling"]["consensus"] = "latest"
    books.write_manifest(manifest)
    [finding] = books.verify().findings
    assert finding.what == f"what was settled by latest does not follow from people's opinions: sample {sample}"


def test_a_samples_history_holds_everything_that_happened_to_it_in_order(kept: Books) -> None:
    sample = kept.picked(1)[4]
    told = audit.history(kept.data, sample)
    assert (told["state"], told["label"], told["added_round"]) == ("rejected", None, 0)
    assert [(event["round"], event["what"]) for event in told["events"]] == [
        (0, "added"),
        (1, "candidate"),
        (1, "requested"),
        (2, "rejected"),
    ]
    assert told["events"][1]["rank"] == told["events"][2]["rank"] == 5


def test_a_corrected_label_shows_both_labels_and_who_gave_them(kept: Books) -> None:
    told = audit.history(kept.data, "s006")
    labels = [(event["what"], event["label"], event["annotator"]) for event in told["events"][1:]]
    assert labels == [("labelled", "cat", "source"), ("corrected", "emu", "ann")]
    assert (told["state"], told["label"]) == ("labeled", "emu")


def test_a_sample_that_was_never_picked_shows_its_score_in_every_round(kept: Books) -> None:
    never = set(kept.pools.unlabeled.query("status == 'available'")["sample_id"]) - {f"n2-{k}" for k in range(5)}
    events = audit.history(kept.data, min(never))["events"]
    assert [(event["round"], event["rank"]) for event in events if event["what"] == "candidate"] == [
        (1, None),
        (2, None),
        (3, None),
    ]


@pytest.mark.parametrize(("sample", "state"), [("s000", "holdout"), ("s007", "labeled")])
def test_a_sample_of_another_pool_is_found_there(kept: Books, sample: str, state: str) -> None:
    assert audit.history(kept.data, sample)["state"] == state


def test_a_request_that_is_still_out_is_told(kept: Books) -> None:
    told = audit.history(kept.data, kept.picked(3)[0])
    assert (told["state"], told["requested_round"]) == ("requested", 3)


@pytest.mark.parametrize("question", [audit.history, audit.show])
def test_an_unknown_sample_is_refused(kept: Books, question: Callable[[Path, str], Any]) -> None:
    with pytest.raises(UserError, match="no sample 's9'"):
        question(kept.data, "s9")


# -- the image itself -------------------------------------------------------------------------------------------


READ_FOR_A_SAMPLE = [
    *("catalog", "label_events", "holdout", "labeled", "unlabeled"),
    *("rounds/0003/candidates", "rounds/0003/selection"),
]


@pytest.mark.parametrize("name", READ_FOR_A_SAMPLE)
def test_a_table_without_a_column_or_its_end_is_one_line(books: Books, name: str) -> None:
    path, sample = books.data / f"{name}.parquet", books.picked(3)[0]
    whole = pq.read_table(path)
    pq.write_table(whole.drop_columns(["sample_id"]), path)
    with pytest.raises(UserError, match=rf"{path.name}.*sample_id is missing"):
        audit.history(books.data, sample)
    pq.write_table(whole, path)
    audit.history(books.data, sample)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=path.name):
        audit.history(books.data, sample)
    if path.stem in ("label_events", "holdout", "selection"):
        with pytest.raises(UserError, match=path.name):
            audit.rounds(books.data)


def test_candidates_without_their_ranks_are_one_line(books: Books) -> None:
    path = books.data / "rounds" / "0003" / "candidates.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["rank"]), path)
    with pytest.raises(UserError, match="column rank is missing"):
        audit.history(books.data, books.picked(3)[0])


def test_the_images_own_bytes_are_written_with_the_extension_of_their_format(kept: Books, tmp_path: Path) -> None:
    path = audit.show(kept.data, "s027", tmp_path / "suspicious")
    assert path == tmp_path / "suspicious.png"
    row = kept.pools.catalog.set_index("sample_id").loc["s027"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]


def test_the_right_extension_is_kept_and_a_wrong_one_is_told_apart(kept: Books, tmp_path: Path) -> None:
    assert audit.show(kept.data, "s001", tmp_path / "a.PNG").name == "a.PNG"
    assert audit.show(kept.data, "s001", tmp_path / "a.jpg").name == "a.jpg.png"


def test_a_folder_or_nothing_names_the_file_after_the_sample(
    kept: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert audit.show(kept.data, "s001", tmp_path) == tmp_path / "s001.png"
    monkeypatch.chdir(tmp_path)
    assert audit.show(kept.data, "s002").read_bytes() == images.encoded(kept.data, "r0-0000", 2)


def test_a_file_that_exists_is_never_written_over(kept: Books, tmp_path: Path) -> None:
    (tmp_path / "s001.png").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        audit.show(kept.data, "s001", tmp_path)
    assert (tmp_path / "s001.png").read_text() == "mine"


def test_a_folder_that_is_not_there_is_refused_in_one_line(kept: Books, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written: No such file"):
        audit.show(kept.data, "s001", tmp_path / "no" / "a.png")


def test_an_image_that_was_exchanged_is_not_shown(books: Books, tmp_path: Path) -> None:
    exchange_image(books.data / "images/r0-0000.parquet", 3)
    with pytest.raises(UserError, match="are not those that were catalogued"):
        audit.show(books.data, "s003", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


# -- verification -----------------------------------------------------------------------------------------------


def promote(root: Path, round_number: int) -> None:
    entry = champion.Entry(
        1,
        "2026-03-04T00:00:00+00:00",
        "ann",
        "promote",
        "2",
        round_number,
        None,
        None,
        "better",
        {"promoted": True},
        None,
    )
    (root / champion.RECORD).write_bytes(entry.line() + b"\n")


def exchange_image(path: Path, row: int) -> None:
    """Another picture in one row, the file otherwise as it was."""
    table = pq.ParquetFile(path).read()
    pictures = table.column("image").to_pylist()
    pictures[row] = shards.png(np.full((5, 4), 7, dtype=np.uint8))
    changed = table.set_column(1, table.schema.field("image"), pa.array(pictures, pa.binary()))
    pq.write_table(changed, path, compression="none")


def found(report: audit.AuditReport) -> list[tuple[int | None, str]]:
    return [(finding.round, finding.file) for finding in report.findings]


def test_an_untouched_record_is_intact(kept: Books) -> None:
    report = kept.verify()
    assert report.findings == ()
    # selection, candidates and predictions of three rounds, one shortlist; three shards; six tables
    assert (report.rounds, report.files, report.images) == (4, 9 + 1 + 3 + 6, 45)


FILES = [
    *(f"rounds/000{number}/manifest.json" for number in range(4)),
    *(f"rounds/000{number}/{name}.parquet" for number in (1, 3) for name in ("selection", "candidates")),
    "rounds/0002/holdout_predictions.parquet",
    "rounds/0002/shortlist.parquet",
    "images/r0-0001.parquet",
    *(file for name, file in pools.TABLE_FILES.items() if name not in pools.SPARSE),
]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("place", [0.3, 0.99])
def test_a_single_changed_bit_is_found_and_its_file_named(books: Books, file: str, place: float) -> None:
    path = books.data / file
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    report = books.verify()
    assert not report.ok
    assert file in [name for _, name in found(report)]
    named = [number for number, name in found(report) if name == file]
    if file.startswith("rounds/"):
        assert set(named) == {int(file.split("/")[1])}


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_found_and_named(books: Books, file: str) -> None:
    (books.data / file).unlink()
    assert file in [name for _, name in found(books.verify())]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"{}", b"[1]", b"\xff\xfe"])
@pytest.mark.parametrize(
    "file", ["rounds/0001/manifest.json", "rounds/0002/candidates.parquet", "label_events.parquet"]
)
def test_a_file_that_cannot_be_read_is_a_finding_and_no_crash(books: Books, file: str, content: bytes) -> None:
    (books.data / file).write_bytes(content)
    assert file in [name for _, name in found(books.verify())]


def test_every_finding_is_listed_and_not_only_the_first(books: Books) -> None:
    (books.data / "rounds/0001/selection.parquet").write_bytes(b"x")
    (books.data / "rounds/0002/holdout_predictions.parquet").unlink()
    exchange_image(books.data / "images/r2-0000.parquet", 0)
    books.tags.pop("round/0003")
    assert {
        (1, "rounds/0001/selection.parquet"),
        (2, "rounds/0002/holdout_predictions.parquet"),
        (2, "images/r2-0000.parquet"),
        (3, "rounds/0003/manifest.json"),
    } <= set(found(books.verify()))


def test_a_file_that_no_round_published_is_found(books: Books) -> None:
    (books.data / "rounds/0001/extra.parquet").touch()
    (books.data / "notes.txt").touch()
    (books.data / ".labeled.parquet.123.tmp").touch()  # what a kill may leave; DVC passes it over too
    report = books.verify()
    assert found(report) == [(None, "notes.txt"), (1, "rounds/0001/extra.parquet")]
    assert all(finding.what == "belongs to no published round" for finding in report.findings)


def test_a_folder_without_rounds_is_not_intact(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    report = audit.verify(tmp_path / "data", {})
    assert Finding(None, "rounds", "there is no round") in report.findings


# the chain and the tags


def test_a_rewritten_manifest_breaks_the_chain_where_it_was_rewritten(books: Books) -> None:
    manifest = rounds.read_manifest(books.data, 1).to_json()
    books.write_manifest(manifest | {"mlflow_run": "f" * 32})  # its tag too
    report = books.verify()
    assert found(report) == [(1, "rounds/0001/manifest.json")]
    assert report.findings[0].what == "its sha256 is not the one that round 2 was built on"


def test_a_rewritten_head_is_found_by_its_tag_alone(books: Books) -> None:
    path = books.data / "rounds/0003/manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_bytes(files.canonical_json(manifest | {"mlflow_run": "f" * 32}))
    report = books.verify()
    assert found(report) == [(3, "rounds/0003/manifest.json")]
    assert report.findings[0].what == "its sha256 is not the one in git tag round/0003"
    assert audit.verify(books.data).ok  # without tags nothing speaks against it


def test_a_whole_chain_that_was_rewritten_is_found_by_the_old_tags(books: Books) -> None:
    tags = dict(books.tags)
    forge(books, 1, mlflow_run="f" * 32)
    assert books.verify().ok
    assert {number for number, _ in found(audit.verify(books.data, tags))} == {1, 2, 3}


def test_a_round_that_was_removed_is_missed_from_both_sides(books: Books) -> None:
    for path in (books.data / "rounds/0002").iterdir():
        path.unlink()
    (books.data / "rounds/0002").rmdir()
    report = books.verify()
    assert (2, "rounds/0002") in found(report)
    assert "no readable record of round 2" in [finding.what for finding in report.findings]
    way = "undone, or this branch is behind (`git pull`, `vabal checkout`)"
    gone = f"git tag round/0002 stands for a round that is not here: {way}"
    assert gone in [finding.what for finding in report.findings]


@pytest.mark.parametrize("message", ["", "round 3\n\nmanifest sha256:12"])
def test_a_tag_without_a_digest_is_found(books: Books, message: str) -> None:
    books.tags["round/0003"] = message
    assert [finding.what for finding in books.verify().findings] == ["git tag round/0003 names no manifest digest"]


def test_a_manifest_in_another_rounds_folder_is_found(books: Books) -> None:
    content = (books.data / "rounds/0001/manifest.json").read_bytes()
    (books.data / "rounds/0002/manifest.json").write_bytes(content)
    assert Finding(2, "rounds/0002/manifest.json", "it is the manifest of round 1") in books.verify().findings


# the pools, where files, manifests and tags were all made to agree


def change_table(books: Books, name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = change(getattr(books.pools, name).copy())
    pools.write_table(table, books.data / f"{name}.parquet", pools.SCHEMAS[name])


def test_a_label_changed_in_the_pool_is_found_though_every_digest_was_forged(books: Books) -> None:
    def to_cat(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["sample_id"] == "s006", "label"] = "cat"
        return table

    change_table(books, "labeled", to_cat)
    changed = replace(books.pools, labeled=to_cat(books.pools.labeled.copy()))
    forge(books, 3, pools_after=pools.digests(changed))
    whats = [finding.what for finding in books.verify().findings if finding.file == "labeled.parquet"]
    assert "is not what the label events and picks lead to: sample s006" in whats
    assert "made again from images, label events and picks, it is not what round 3 recorded" in whats


def test_a_label_event_changed_afterwards_is_dated_to_its_round(books: Books) -> None:
    def another(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(label=table["label"].mask(table["round"].eq(2) & table["label"].eq("emu"), "dog"))

    change_table(books, "label_events", another)
    change_table(books, "labeled", lambda table: table.assign(label=table["label"].replace("emu", "dog")))
    forge(books, 3)
    what = "made again from images, label events and picks, it is not what rounds 2 to 3 recorded"
    assert Finding(2, "label_events.parquet", what) in books.verify().findings


def test_a_request_struck_from_the_pool_is_found(books: Books) -> None:
    sample = books.picked(3)[0]

    def struck(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["sample_id"] == sample, ["status", "requested_round"]] = ["available", None]
        return table

    change_table(books, "unlabeled", struck)
    forge(books, 3)
    whats = [finding.what for finding in books.verify().findings if finding.file == "unlabeled.parquet"]
    assert f"is not what the label events and picks lead to: sample {sample}" in whats


def test_pools_that_overlap_are_found_in_the_words_of_their_check(books: Books) -> None:
    change_table(
        books, "holdout", lambda table: pd.concat([table, books.pools.labeled[["sample_id", "label"]].head(1)])
    )
    report = books.verify()
    assert any("also in holdout.parquet" in finding.what for finding in report.findings)


def test_wrong_counts_in_a_manifest_are_found(books: Books) -> None:
    counts = rounds.read_manifest(books.data, 2).to_json()["counts"]
    forge(books, 2, counts=counts | {"labeled": 99, "picks": 7})
    assert books.verify().findings == (
        Finding(2, "rounds/0002/manifest.json", "wrong counts: labeled 99, counted 13; picks 7, counted 6"),
    )


# the picks, where files, manifests and tags were all made to agree


def rewrite(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    schema = pq.ParquetFile(path).schema_arrow
    table = change(pq.ParquetFile(path).read().to_pandas())
    pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), path, store_schema=False)


def test_an_exchanged_pick_is_found_though_every_digest_was_forged(books: Books) -> None:
    folder = books.data / "rounds/0003"
    candidates = pq.ParquetFile(folder / "candidates.parquet").read().to_pandas()
    other = candidates.loc[candidates["rank"].isna(), "sample_id"].iloc[0]
    genuine = books.picked(3)[0]

    def exchange(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(sample_id=table["sample_id"].replace({genuine: other}))

    rewrite(folder / "selection.parquet", exchange)
    forge(books, 3)
    findings = [finding for finding in books.verify().findings if finding.file == "rounds/0003/selection.parquet"]
    assert [finding.round for finding in findings] == [3, 3]
    assert f"differs from candidates.parquet in sample {other}" in [finding.what for finding in findings]
    differing = f"they differ in samples {', '.join(sorted([genuine, other]))}"
    expected = f"its picks are not those that follow from the candidates: {differing}"
    assert expected in [finding.what for finding in findings]


def test_a_raised_score_is_found_because_it_no_longer_follows_from_its_likelihoods(books: Books) -> None:
    folder = books.data / "rounds/0002"

    def raised(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(score=table["score"].where(table["sample_id"] != "s022", 1e3))

    rewrite(folder / "candidates.parquet", raised)
    forge(books, 2)
    whats = [finding.what for finding in books.verify().findings if finding.file.endswith("candidates.parquet")]
    assert whats
    assert whats[0].startswith("the score of sample s022 does not follow from its other columns")


def test_a_raised_posterior_is_found_because_the_score_does_not_follow_from_it(full: Books) -> None:
    def raised(table: pd.DataFrame) -> pd.DataFrame:
        named = zip(table["sample_id"], table["posteriors"], strict=True)
        other = [[0.1, 0.1, 0.8] if name == "s022" else list(row) for name, row in named]
        return table.assign(posteriors=pd.Series(other))

    rewrite(full.data / "rounds/0002/candidates.parquet", raised)
    forge(full, 2)
    whats = [finding.what for finding in full.verify().findings]
    assert any(" of sample s022 does not follow from its other columns" in what for what in whats), whats


def test_a_pick_of_a_spread_batch_that_was_exchanged_everywhere_is_found(books: Books) -> None:
    """In selection and candidates alike: only the search among the shortlist tells."""
    folder = books.data / "rounds/0002"
    candidates = pq.ParquetFile(folder / "candidates.parquet").read().to_pandas().set_index("sample_id")
    genuine = books.picked(2)[2]
    other = candidates.index[candidates["rank"].isna()][0]

    def swap(table: pd.DataFrame) -> pd.DataFrame:
        ranks = table.set_index("sample_id")["rank"]
        ranks[other], ranks[genuine] = ranks[genuine], ranks[other]
        return table.assign(rank=ranks.to_numpy())

    def exchange(table: pd.DataFrame) -> pd.DataFrame:
        row = {name: candidates.loc[other, name] for name in table.columns if name in candidates.columns}
        table = table.copy()
        for name, value in (row | {"sample_id": other, "rank": 3}).items():
            table.loc[2, name] = value
        return table

    rewrite(folder / "candidates.parquet", swap)
    rewrite(folder / "selection.parquet", exchange)
    forge(books, 2)
    whats = [finding.what for finding in books.verify().findings if finding.file == "rounds/0002/selection.parquet"]
    assert any("not those that follow from the candidates: they differ in" in what for what in whats)


def test_a_shortlist_is_verified_by_the_length_that_its_round_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shorter than the pool, and of a version with another constant."""
    with monkeypatch.context() as patched:
        patched.setattr(import_module("vabal.strategies.spread"), "SHORTLIST", 2)
        books = Books(tmp_path).begin().round("vabal", budget=3)
    ids, *_ = tables.read_shortlist(books.data / "rounds/0001/shortlist.parquet")
    assert len(ids) == 6
    assert books.verify().findings == ()
    selection = rounds.read_manifest(books.data, 1).to_json()["selection"]
    forge(books, 1, selection=selection | {"shortlist": 3})
    assert found(books.verify()) == [(1, "rounds/0001/shortlist.parquet")]


def test_another_shortlist_than_the_best_candidates_is_found(books: Books) -> None:
    """A shorter one, in which exchanged picks would be the best, is none."""
    path = books.data / "rounds/0002/shortlist.parquet"
    ids, features_N_D, _ = tables.read_shortlist(path)
    assert len(ids) > 6
    tables.write_shortlist(np.array(ids[:6]), features_N_D[:6], path)
    forge(books, 2)
    (finding,) = books.verify().findings
    assert finding.file == "rounds/0002/shortlist.parquet"
    assert finding.what == "does not hold the candidates with the highest scores, the highest first"


def test_other_features_than_the_batch_was_searched_by_are_found(books: Books) -> None:
    path = books.data / "rounds/0002/shortlist.parquet"
    ids, features_N_D, distance_N = tables.read_shortlist(path)
    others_N_D = np.random.default_rng(1).normal(size=features_N_D.shape).astype(np.float32)
    tables.write_shortlist(np.array(ids), others_N_D, path, distance_N)
    forge(books, 2)
    whats = [finding.what for finding in books.verify().findings]
    assert len(whats) == 1
    assert "not those that follow from the candidates" in whats[0]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ("near", "not those that follow from the candidates"),
        ("gone", "its columns are not those of the rule coverage"),
        ("infinite", "labeled_distance: infinite, against the labelled pool"),
        ("one infinite", "labeled_distance: not all of them are distances"),
    ],
)
def test_other_distances_to_the_labelled_pool_than_the_batch_was_searched_by_are_found(
    books: Books, changed: str, told: str
) -> None:
    path = books.data / "rounds/0002/shortlist.parquet"
    ids, features_N_D, distance_N = tables.read_shortlist(path)
    assert distance_N is not None
    first = np.array(ids) == books.picked(2)[0]
    others = {
        "near": np.where(first, np.float32(0), np.float32(4)),
        "gone": None,
        "infinite": np.full(len(ids), np.inf, dtype=np.float32),
        "one infinite": np.where(first, np.float32(np.inf), distance_N),
    }
    tables.write_shortlist(np.array(ids), features_N_D, path, others[changed])
    forge(books, 2)
    (finding,) = books.verify().findings
    assert told in finding.what


def test_rounds_by_an_earlier_batch_rule_verify_beside_those_that_cover_doubt(tmp_path: Path) -> None:
    books = Books(tmp_path).begin(total=60)
    for batch in ("spread", "coverage", "quota_spread", "coverage"):
        books.round("vabal", batch=batch)
    assert books.verify().findings == ()
    path = books.data / "rounds/0001/shortlist.parquet"
    ids, features_N_D, distance_N = tables.read_shortlist(path)
    assert distance_N is None
    tables.write_shortlist(np.array(ids), features_N_D, path, np.zeros(len(ids), dtype=np.float32))
    forge(books, 1)
    assert "its columns are not those of the rule spread" in {finding.what for finding in books.verify().findings}


def test_a_shortlist_that_is_gone_is_named_once(books: Books) -> None:
    (books.data / "rounds/0002/shortlist.parquet").unlink()
    (finding,) = books.verify().findings
    assert (finding.file, finding.what) == ("rounds/0002/shortlist.parquet", "missing")
    forge(books, 2)  # the manifest does not name it either
    assert (2, "rounds/0002/shortlist.parquet") in found(books.verify())


@pytest.mark.parametrize("damage", ["no table", "no number", "null", "lengths", "no list"])
def test_a_shortlist_that_cannot_be_searched_is_a_finding_though_its_digest_was_forged(
    books: Books, damage: str
) -> None:
    """One number that is none would make every comparison of the search false."""
    path = books.data / "rounds/0002/shortlist.parquet"
    if damage == "no table":
        path.write_bytes(b"no table")
    else:
        ids, features_N_D, _ = tables.read_shortlist(path)
        lists: list[Any] = features_N_D.tolist()
        lists[-1] = {"no number": [np.nan] * 4, "null": [None] * 4, "lengths": [1.0], "no list": [0.0] * 4}[damage]
        column = pa.array(range(len(ids))) if damage == "no list" else pa.array(lists, pa.list_(pa.float32()))
        pq.write_table(pa.table({"sample_id": ids, "features": column}), path, store_schema=False)
    forge(books, 2)
    assert found(books.verify()) == [(2, "rounds/0002/shortlist.parquet")]


def test_one_posterior_left_out_does_not_switch_the_check_of_scores_off(full: Books) -> None:
    def doctored(table: pd.DataFrame) -> pd.DataFrame:
        table = table.copy()
        table.at[0, "posteriors"] = None
        return table.assign(score=table["score"].where(table["sample_id"] != "s022", 1e3))

    rewrite(full.data / "rounds/0002/candidates.parquet", doctored)
    forge(full, 2)
    whats = [finding.what for finding in full.verify().findings if finding.file.endswith("candidates.parquet")]
    assert any("posteriors: its lists are not all there" in what for what in whats)


def test_another_rule_than_the_settings_ask_for_is_found(books: Books) -> None:
    """Under `topk` no shortlist would be searched."""
    selection = rounds.read_manifest(books.data, 2).to_json()["selection"]
    forge(books, 2, selection=selection | {"rule": "topk"})
    whats = [finding.what for finding in books.verify().findings]
    assert any("has rule topk, its settings ask for coverage" in what for what in whats)


EARLIER = ("logits", "mean_posteriors", "expected_entropy", "votes", "predicted_loss")


def of_earlier_version(books: Books) -> None:
    """The history as an earlier version made it, whose tables had fewer columns."""
    for number in range(1, books.number + 1):
        path = books.data / f"rounds/{number:04d}/candidates.parquet"
        table = pq.ParquetFile(path).read().drop_columns(list(EARLIER))
        pq.write_table(table, path, store_schema=False)
        forge(books, number, version=1)


def test_a_history_of_an_earlier_version_verifies_as_it_did(full: Books) -> None:
    of_earlier_version(full)
    assert full.verify().findings == ()
    rewrite(full.data / "rounds/0002/candidates.parquet", lambda table: table.assign(margin=table["margin"] + 1e-3))
    forge(full, 2)
    assert any("margin" in finding.what for finding in full.verify().findings)


def test_a_round_does_not_get_out_of_a_check_by_an_earlier_version(books: Books) -> None:
    forge(books, 2, version=1)
    whats = " ".join(finding.what for finding in books.verify().findings)
    assert "version 1 follows version 2" in whats
    assert "a table of version 2 beside a manifest of version 1" in whats


@pytest.mark.parametrize("classes", ["posterior", "predicted"])
def test_a_spread_batch_of_a_version_that_recorded_places_for_scores_verifies_as_it_did(
    full: Books, classes: str
) -> None:
    of_earlier_version(full)
    folder, picked = full.data / "rounds/0002", full.picked(2)
    place_of = {sample_id: float(len(picked) - place) for place, sample_id in enumerate(picked)}
    for name in ("candidates.parquet", "selection.parquet"):
        rewrite(folder / name, lambda table: table.assign(score=table["sample_id"].map(place_of).fillna(-1.0)))
    table = pq.ParquetFile(folder / "candidates.parquet").read().drop_columns(["posteriors"])
    pq.write_table(table, folder / "candidates.parquet", store_schema=False)
    (folder / "shortlist.parquet").unlink()
    manifest = rounds.read_manifest(full.data, 2).to_json()
    settings = manifest["settings"]
    settings["probabilities"]["classes"] = classes
    settings["selection"]["batch"] = "spread"
    said = {name: manifest["selection"][name] for name in ("budget", "beta", "seed")} | {"rule": "topk"}
    forge(full, 2, selection=said, settings=settings)
    forge(full, 3, parent=rounds.read_manifest(full.data, 2).digest)
    assert full.verify().findings == ()
    rewrite(folder / "selection.parquet", lambda table: table.iloc[::-1].assign(rank=table["rank"].to_numpy()))
    forge(full, 2, selection=said, settings=settings)
    assert full.verify().findings


def test_other_class_terms_than_the_scores_were_made_with_are_found(books: Books) -> None:
    terms = rounds.read_manifest(books.data, 2).to_json()["class_terms"]
    forge(books, 2, class_terms=terms | {"log_prior": [-1.0, -1.0, -1.0]})
    files = {(2, "rounds/0002/candidates.parquet"), (2, "rounds/0002/manifest.json")}
    assert set(found(books.verify())) == files


@pytest.mark.parametrize(("number", "change"), [(1, {"seed": 1}), (1, {"budget": 5}), (2, {"rule": "gumbel"})])
def test_another_seed_budget_or_rule_than_the_picks_were_made_with_is_found(
    books: Books, number: int, change: dict[str, Any]
) -> None:
    selection = rounds.read_manifest(books.data, number).to_json()["selection"]
    forge(books, number, selection=selection | change)
    assert {round_number for round_number, _ in found(books.verify())} == {number}


def test_a_candidate_left_out_of_the_table_is_found(books: Books) -> None:
    rewrite(books.data / "rounds/0003/candidates.parquet", lambda table: table[table["sample_id"] != "s022"])
    forge(books, 3)
    what = "are not the samples that could be picked then: sample s022"
    assert Finding(3, "rounds/0003/candidates.parquet", what) in books.verify().findings


@pytest.mark.parametrize("change", [{"strategy": "gone"}, {"selection": None}, {"settings": {"seed": "x"}}])
def test_picks_that_cannot_be_derived_here_are_a_finding(books: Books, change: dict[str, Any]) -> None:
    forge(books, 3, **change)
    report = books.verify()
    assert {name for _, name in found(report)} <= {"rounds/0003/candidates.parquet", "rounds/0003/manifest.json"}
    assert any(finding.what.startswith("the picks cannot be derived from it") for finding in report.findings)


# images and promotions


def test_an_exchanged_image_is_named_by_its_sample_though_every_digest_was_forged(books: Books) -> None:
    exchange_image(books.data / "images/r0-0000.parquet", 3)
    forge(books, 0)
    assert books.verify().findings == (
        Finding(0, "images/r0-0000.parquet", "holds other images than the catalog says: sample s003"),
    )
    assert books.verify(images=False).ok


def test_a_shard_whose_digest_changed_between_rounds_is_found(books: Books) -> None:
    shards = rounds.read_manifest(books.data, 1).to_json()["shards"]
    forge(books, 1)
    manifest = rounds.read_manifest(books.data, 3).to_json()
    books.write_manifest(manifest | {"shards": manifest["shards"] | {"r0-0000": "0" * 64}})
    assert shards["r0-0000"] != "0" * 64
    what = "names another sha256 for images/r0-0000.parquet than round 0"
    assert books.verify().findings == (Finding(3, "rounds/0003/manifest.json", what),)


def test_the_chain_of_promotions_is_checked_too(books: Books) -> None:
    promote(books.root, round_number=2)
    assert books.verify().ok
    path = books.root / champion.RECORD
    path.write_bytes(path.read_bytes().replace(b"better", b"worse "))
    assert books.verify().ok  # one entry has no successor that would name its digest; git has it
    path.write_bytes(path.read_bytes().replace(b'"sequence":1', b'"sequence":3'))
    assert found(books.verify()) == [(None, champion.RECORD)]


# sources without labels


def test_a_first_random_request_is_part_of_the_record(tmp_path: Path) -> None:
    """A source without labels: round 0 asks for labels, of the pool and of the holdout."""
    books = Books(tmp_path).begin(labeled=0, asked=5)
    asked = books.picked(0)
    answers: dict[str, str | None] = dict.fromkeys([*asked, "s000", "s001"], "emu")
    books.round("random", labels=answers).round("vabal")
    assert books.verify().findings == ()
    told = audit.rounds(books.data, books.tags)
    assert told[0]["picks_by_class"] == {"cat": 0, "dog": 0, "emu": 5}
    assert [event["what"] for event in audit.history(books.data, asked[0])["events"]] == [
        "added",
        "requested",
        "labelled",
    ]


def test_progress_is_told_for_every_long_check(kept: Books) -> None:
    heard: dict[str, tuple[int, int | None]] = {}
    with progress.listening(lambda stage, done, total: heard.update({stage: (done, total)})):
        kept.verify()
    assert heard == {
        "verify files": (19, 19),
        "verify pools": (4, 4),
        "verify images": (3, 3),
    }


# -- tables and JSON --------------------------------------------------------------------------------------------


def test_json_holds_plain_values_only() -> None:
    table = pd.DataFrame({"x": [1.5, np.nan], "when": [pd.Timestamp("2026-01-02", tz="UTC"), pd.NaT], "n": [1, 2]})
    assert render.plain({"t": table, "path": Path("a"), "inf": np.float32("inf"), "na": pd.NA, "tuple": (1,)}) == {
        "t": [{"x": 1.5, "when": "2026-01-02T00:00:00+00:00", "n": 1}, {"x": None, "when": None, "n": 2}],
        "path": "a",
        "inf": None,
        "na": None,
        "tuple": [1],
    }


def test_every_reading_command_prints_json_that_parses(kept: Books, capsys: pytest.CaptureFixture[str]) -> None:
    audited.show_rounds(audit.rounds(kept.data, kept.tags), as_json=True)
    assert json.loads(capsys.readouterr().out)[2]["picks_by_class"] == {"cat": 1, "dog": 0, "emu": 0}
    audited.show_picks(audit.picks(kept.data, 1), as_json=True)
    first = json.loads(capsys.readouterr().out)[0]
    assert (first["rank"], first["prior"], first["label"], first["rejected"]) == (1, None, "dog", False)
    audited.show_history(audit.history(kept.data, "s006"), as_json=True)
    assert json.loads(capsys.readouterr().out)["events"][2]["when"] == "2026-03-03T06:30:00+00:00"
    audited.show_report(kept.verify(), as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "findings": [],
        "rounds": 4,
        "files": 19,
        "images": 45,
        "notes": [],
        "since": 0,
    }


def test_tables_fit_80_columns_whatever_they_hold(kept: Books, capsys: pytest.CaptureFixture[str]) -> None:
    long = "line-3/camera-02/2026-03-04T05-06-07/frame-000123456789-[left].png"
    picks = audit.picks(kept.data, 2).assign(
        sample_id=long, score=-1.2345e-05, log_likelihood=-1.2345e-105, predicted_class="rolled-in_scale"
    )
    audited.show_picks(picks.head(1))
    records = audit.rounds(kept.data, kept.tags)
    audited.show_rounds([{**record, "picks_by_class": {"rolled-in_scale": 9, long: 3}} for record in records])
    audited.show_history({**audit.history(kept.data, "s006"), "sample_id": long})
    audited.show_report(audit.AuditReport((Finding(1, f"rounds/{long}", long),), 1, 1, 1))
    audited.show_curve(curve(kept.data))
    assert max(len(line) for line in capsys.readouterr().out.splitlines()) <= 80


def test_the_table_of_picks_has_margin_posterior_and_annotator_and_no_empty_column(
    kept: Books, capsys: pytest.CaptureFixture[str]
) -> None:
    audited.show_picks(audit.picks(kept.data, 2))
    names = capsys.readouterr().out.splitlines()[0].split()
    assert {"margin", "post.", "by", "prior"} <= set(names)
    audited.show_picks(audit.picks(kept.data, 3))  # by entropy, and none of its labels is in
    assert capsys.readouterr().out.splitlines()[0].split() == ["rank", "sample", "score", "margin", "post.", "pred."]


SERVICES = [
    {"service": "s3", "state": "running", "pid": 7, "address": "http://localhost:1", "since": "now", "log": "s3.log"},
    {"service": "mlflow", "state": "not answering", "pid": 8, "address": None, "since": None, "log": "mlflow.log"},
]


def test_status_tells_of_services_newest_round_and_inbox(books: Books, capsys: pytest.CaptureFixture[str]) -> None:
    (books.root / "params.yaml").touch()
    (books.root / ".dvc").mkdir()
    render.show_status(SERVICES, books.data)
    printed = capsys.readouterr().out
    assert "mlflow is not answering: see mlflow.log" in printed
    assert "round: 3, strategy entropy" in printed
    assert "inbox: empty" in printed
    assert "champion: no version was promoted yet" in printed
    assert "labels: 0 of 6 of round 3's request are in; 6 are out" in printed
    assert "nights: not known while the Prefect server is away: `vabal up`" in printed
    assert " free; taken by .vabal " in printed
    render.show_status(SERVICES, books.data, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["services"], told["round"]["labeled"], told["inbox"]) == (SERVICES, 14, [])


def test_status_tells_of_the_newest_rounds_images_where_they_are_unlike_those_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    books = Books(tmp_path).begin()
    (books.root / "params.yaml").touch()
    (books.root / ".dvc").mkdir()
    for shift, found in ((0.0, False), (1.5, True), (0.0, False)):
        books.round("random", new=30, shift=shift)
        render.show_status([], books.data)
        printed = capsys.readouterr().out
        assert ("drift: round 2's new images are not like those before: p 0.001" in printed) == found
        render.show_status([], books.data, as_json=True)
        told = json.loads(capsys.readouterr().out)["drift"]
        assert (told["round"], told["new"]) == (2, 30) if found else told is None


def test_status_outside_a_workspace_tells_of_the_services_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render.show_status(SERVICES, tmp_path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told.pop("services") == SERVICES
    assert set(told) >= {"workspace", "round", "drift", "page", "nights", "champion", "labels", "inbox", "disk"}
    assert set(told.values()) == {None}


def test_a_report_says_in_words_whether_the_record_is_intact(kept: Books, capsys: pytest.CaptureFixture[str]) -> None:
    audited.show_report(kept.verify())
    assert capsys.readouterr().out.startswith("intact: 4 rounds, 19 files, 45 images")
    audited.show_report(audit.AuditReport((Finding(1, "rounds/0001/selection.parquet", "missing"),), 4, 18, 45))
    printed = capsys.readouterr().out
    assert "rounds/0001/selection.parquet" in printed
    assert "NOT intact: 1 finding in 4 rounds" in printed
