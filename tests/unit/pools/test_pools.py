import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_pools import catalog_of, events_of, small_pools
from vabal import pools
from vabal.errors import UserError


def test_the_small_pools_keep_every_invariant() -> None:
    pools.check(small_pools())


def test_pools_come_back_from_their_files_with_the_same_digests(tmp_path: Path) -> None:
    before = small_pools()
    pools.save(before, tmp_path)
    after = pools.load(tmp_path)
    assert pools.digests(after) == pools.digests(before)
    assert after.classes == ("cat", "dog")
    assert after.unlabeled["requested_round"].tolist() == [pd.NA, 1]


def test_the_same_values_make_the_same_file_with_nothing_of_pandas_in_it(tmp_path: Path) -> None:
    table = small_pools().labeled
    pools.write_table(table, tmp_path / "one.parquet", pools.SCHEMAS["labeled"])
    objects = table.astype({"sample_id": object, "round": "int64"}).set_index(pd.Index([7]))
    pools.write_table(objects, tmp_path / "two.parquet", pools.SCHEMAS["labeled"])
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "one.parquet").metadata.metadata is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.parquet", "two.parquet"]


def test_a_table_without_a_schema_keeps_its_own_types(tmp_path: Path) -> None:
    pools.write_table(pd.DataFrame({"name": ["x"], "score": [0.5]}), tmp_path / "t.parquet")
    assert pq.read_schema(tmp_path / "t.parquet").types == [pa.string(), pa.float64()]


def test_a_null_where_the_schema_wants_a_value_is_not_written(tmp_path: Path) -> None:
    table = small_pools().labeled.assign(annotator=None)
    with pytest.raises(ValueError, match="annotator holds nulls"):
        pools.write_table(table, tmp_path / "t.parquet", pools.SCHEMAS["labeled"])
    assert list(tmp_path.iterdir()) == []


def test_only_tables_that_differ_are_written(tmp_path: Path) -> None:
    before = small_pools()
    assert len(pools.save(before, tmp_path / "all")) == 6
    after = pools.mark_requested(before, ["b"], 2)
    assert pools.save(after, tmp_path / "some", before) == ["unlabeled.parquet"]
    assert pools.save(small_pools(), tmp_path / "none", before) == []


# --- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_is_that_of_the_bytes_which_its_description_promises() -> None:
    table = pd.DataFrame({"key": ["b", "a"], "n": [2, None], "x": [0.5, np.nan]}).astype({"n": "Int32"})
    expected = b"vabal table 1\n" + struct.pack("<qq", 2, 3)
    expected += struct.pack("<q", 3) + b"key" + b"s" + b"\x00" + struct.pack("<qq", 1, 1) + b"ab"
    expected += struct.pack("<q", 1) + b"n" + b"i" + b"\x01" + struct.pack("<qq", 0, 2)
    expected += struct.pack("<q", 1) + b"x" + b"f" + b"\x01" + struct.pack("<dd", 0.0, 0.5)
    assert pools.table_digest(table, ["key"]) == hashlib.sha256(expected).hexdigest()


def test_lists_times_and_truth_values_have_digests_of_their_own_layout() -> None:
    when = pd.Timestamp("1970-01-01T00:00:01Z")
    table = pd.DataFrame({"k": [1, 2], "list": [[0.5], []], "ok": [True, False], "when": [when, pd.NaT]})
    expected = b"vabal table 1\n" + struct.pack("<qq", 2, 4)
    expected += struct.pack("<q", 1) + b"k" + b"i\x00" + struct.pack("<qq", 1, 2)
    expected += struct.pack("<q", 4) + b"list" + b"l\x00" + struct.pack("<qq", 1, 0) + b"f\x00" + struct.pack("<d", 0.5)
    expected += struct.pack("<q", 2) + b"ok" + b"b\x00" + b"\x01\x00"
    expected += struct.pack("<q", 4) + b"when" + b"t\x02" + struct.pack("<qq", 1_000_000, 0)
    assert pools.table_digest(table, ["k"]) == hashlib.sha256(expected).hexdigest()


@pytest.mark.parametrize(
    "same",
    [
        pd.DataFrame({"id": ["y", "x"], "n": [2.0, 1.0], "s": [None, "p"]}),
        pd.DataFrame({"n": np.array([1, 2], np.int16), "s": ["p", np.nan], "id": ["x", "y"]}),
        pd.DataFrame({"id": pd.Categorical(["x", "y"]), "n": [1, 2], "s": pd.array(["p", pd.NA], dtype="string")}),
    ],
)
def test_order_and_dtypes_do_not_change_the_digest(same: pd.DataFrame) -> None:
    table = pd.DataFrame({"id": ["x", "y"], "n": [1, 2], "s": ["p", None]})
    assert pools.table_digest(same, ["id"]) == pools.table_digest(table, ["id"])


@pytest.mark.parametrize(
    "other",
    [
        {"id": ["x", "y"], "s": ["p", ""]},
        {"id": ["x", "y"], "s": [None, "p"]},
        {"id": ["x", "yp"], "s": ["", None]},
        {"id": ["x", "y"], "t": ["p", None]},
        {"id": ["x", "z"], "s": ["p", None]},
    ],
)
def test_every_other_value_changes_the_digest(other: dict[str, list[str]]) -> None:
    table = pd.DataFrame({"id": ["x", "y"], "s": ["p", None]})
    assert pools.table_digest(pd.DataFrame(other), ["id"]) != pools.table_digest(table, ["id"])


def test_a_key_that_does_not_identify_a_row_has_no_digest() -> None:
    with pytest.raises(ValueError, match="same in several rows"):
        pools.table_digest(pd.DataFrame({"id": ["x", "x"], "n": [1, 2]}), ["id"])
    with pytest.raises(ValueError, match="nulls"):
        pools.table_digest(pd.DataFrame({"id": ["x", None]}), ["id"])


def test_a_key_of_two_columns_sorts_by_both() -> None:
    table = pd.DataFrame({"a": ["x", "x", "w"], "b": [2, 1, 3], "v": [1, 2, 3]})
    assert pools.table_digest(table, ["a", "b"]) == pools.table_digest(table.iloc[[1, 2, 0]], ["a", "b"])


def test_the_order_of_label_events_is_part_of_their_digest() -> None:
    made = small_pools()
    turned = small_pools(label_events=made.label_events.iloc[::-1])
    assert pools.digests(turned)["label_events"] != pools.digests(made)["label_events"]
    assert pools.digests(turned)["labeled"] == pools.digests(made)["labeled"]


# --- damaged and edited files -----------------------------------------------------------------------------------------


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    pools.save(small_pools(), tmp_path)
    (tmp_path / "holdout.parquet").unlink()
    with pytest.raises(UserError, match=r"holdout\.parquet is missing.*vabal checkout"):
        pools.load(tmp_path)


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    pools.save(small_pools(), tmp_path)
    content = (tmp_path / "labeled.parquet").read_bytes()
    (tmp_path / "labeled.parquet").write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"labeled\.parquet: not a readable parquet file"):
        pools.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="round"), "column round is missing"),
        (lambda table: table.assign(note="x"), "unknown column note"),
        (lambda table: table.assign(round="seven"), "wrong types"),
        (lambda table: table.assign(label=None), "label holds nulls"),
    ],
)
def test_other_columns_or_types_are_refused(tmp_path: Path, change: object, said: str) -> None:
    pools.save(small_pools(), tmp_path)
    assert callable(change)
    change(pd.read_parquet(tmp_path / "labeled.parquet")).to_parquet(tmp_path / "labeled.parquet")
    with pytest.raises(UserError, match=said):
        pools.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("labeled", {"label": ["bird"]}, r"label 'bird' of sample a is not in classes\.json"),
        ("labeled", {"label": ["dog"]}, "sample a with a label that no event gave"),
        ("labeled", {"round": [-1]}, "round below 0: sample a"),
        ("labeled", {"annotator": [""]}, "no annotator: sample a"),
        ("labeled", {"sample_id": ["z"]}, r"labeled\.parquet: sample z not in catalog"),
        ("unlabeled", {"sample_id": ["b", "b"]}, "same sample_id twice: sample b"),
        ("unlabeled", {"sample_id": ["b", "a"]}, r"sample a also in unlabeled\.parquet"),
        ("unlabeled", {"status": ["lost", "requested"]}, "unknown status 'lost' of sample b"),
        ("unlabeled", {"status": ["requested", "requested"]}, "requested_round that does not fit the status: sample b"),
        ("unlabeled", {"status": ["rejected", "requested"]}, "sample b rejected, but no event says so"),
        ("unlabeled", {"requested_round": [None, -3]}, "requested_round below 0: sample c"),
        ("holdout", {"label": ["cat"]}, "sample d with a label that no event gave"),
        ("holdout", {"label": [None]}, "sample d labelled last, but without a label"),
        ("catalog", {"row": [0, 0, 2, 3]}, "samples a, b share one row"),
        ("catalog", {"row": [0, -1, 2, 3]}, "row or round below 0: sample b"),
        ("catalog", {"width": [0, 8, 8, 8]}, "width or height below 1: sample a"),
        ("catalog", {"sha256": ["", "f" * 64, "e" * 64, "d" * 64]}, "sha256 that is none: sample a"),
        ("catalog", {"sample_id": ["a", "a", "c", "d"]}, "same sample_id twice: sample a"),
        ("catalog", {"sample_id": ["", "b", "c", "d"]}, "empty sample_id"),
        ("catalog", {"shard": ["", "p", "p", "p"]}, "no shard: sample a"),
        ("label_events", {"sample_id": ["z", "d"]}, r"label_events\.parquet: sample z not in catalog"),
        ("label_events", {"label": ["cat", None]}, "no event gave"),
    ],
)
def test_an_edited_table_is_refused_with_its_name_and_samples(
    tmp_path: Path, name: str, change: dict[str, list[object]], said: str
) -> None:
    made = small_pools()
    pools.save(made, tmp_path)
    edited = getattr(made, name).assign(**change)
    pools.write_table(edited, tmp_path / f"{name}.parquet", pools.SCHEMAS[name])
    with pytest.raises(UserError, match=said) as error:
        pools.load(tmp_path)
    assert "\n" not in str(error.value)
    assert "vabal checkout" in str(error.value)


def test_a_sample_in_no_pool_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"samples e, f, g and 1 more in none of"):
        pools.check(small_pools(catalog=catalog_of(list("abcdefgh"))))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('["cat"]', "at least two classes"),
        ('["cat", "cat", "dog"]', "'cat' stands there twice"),
        ('["cat", " dog"]', "no class name"),
        ('["cat", 3]', "expected a list of class names"),
        ("[", "not valid JSON"),
    ],
)
def test_class_names_that_are_none_are_refused(tmp_path: Path, text: str, said: str) -> None:
    pools.save(small_pools(), tmp_path)
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=said):
        pools.load(tmp_path)


def test_pools_that_break_an_invariant_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        pools.save(small_pools(classes=("cat", "bird")), tmp_path)
    assert list(tmp_path.iterdir()) == []


# --- labels -----------------------------------------------------------------------------------------------------------


def test_a_new_label_moves_its_sample_into_the_labelled_pool() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("c", "dog")), 2)
    pools.check(after)
    row = after.labeled.set_index("sample_id").loc["c"]
    assert (row["label"], row["annotator"], row["round"]) == ("dog", "ann", 2)
    assert after.unlabeled["sample_id"].tolist() == ["b"]
    assert (report.received, report.new, report.corrected, report.outdated) == (1, 1, 0, 0)


def test_the_pools_that_are_changed_stay_as_they_were() -> None:
    before = small_pools()
    digests = pools.digests(before)
    pools.apply_labels(before, events_of(("c", "dog"), ("d", "cat"), ("a", None)), 2)
    pools.mark_requested(before, ["b"], 2)
    assert pools.digests(before) == digests


def test_the_same_label_again_changes_nothing_but_the_history() -> None:
    before = small_pools()
    after, report = pools.apply_labels(before, events_of(("a", "cat")), 3)
    assert pools.digests(after)["labeled"] == pools.digests(before)["labeled"]
    assert (report.repeated, report.new, report.corrected) == (1, 0, 0)
    assert len(after.label_events) == 3


def test_a_later_label_corrects_and_the_history_keeps_both() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("a", "dog")), 4)
    pools.check(after)
    assert after.labeled[["label", "round"]].to_numpy().tolist() == [["dog", 4]]
    assert after.label_events.loc[after.label_events["sample_id"] == "a", "label"].tolist() == ["cat", "dog"]
    assert report.corrected == 1


def test_within_one_file_the_later_line_counts() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("c", "dog"), ("c", "cat"), ("c", "cat")), 2)
    assert after.labeled.set_index("sample_id").loc["c", "label"] == "cat"
    assert (report.new, report.corrected, report.repeated) == (1, 1, 1)


def test_a_rejected_sample_is_not_asked_for_again_until_somebody_labels_it() -> None:
    rejected, report = pools.apply_labels(small_pools(), events_of(("c", None)), 2)
    pools.check(rejected)
    assert report.rejected == 1
    assert rejected.unlabeled.set_index("sample_id").loc["c", "status"] == "rejected"
    assert pools.open_requests(rejected).empty
    with pytest.raises(ValueError, match="not available, or named twice: sample c"):
        pools.mark_requested(rejected, ["c"], 3)
    labelled, report = pools.apply_labels(rejected, events_of(("c", "cat")), 3)
    pools.check(labelled)
    assert report.new == 1
    assert labelled.labeled["sample_id"].tolist() == ["a", "c"]


def test_rejecting_a_labelled_sample_takes_it_back() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("a", None)), 2)
    pools.check(after)
    assert after.labeled.empty
    assert after.unlabeled["status"].tolist() == ["rejected", "available", "requested"]
    assert report.rejected == 1


def test_rejecting_a_labelled_and_a_waiting_sample_at_once_keeps_the_order_of_ids() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("c", None), ("a", None)), 2)
    pools.check(after)
    assert after.unlabeled["sample_id"].tolist() == ["a", "b", "c"]
    assert after.unlabeled["status"].tolist() == ["rejected", "available", "rejected"]
    assert after.unlabeled["requested_round"].isna().all()
    assert report.rejected == 2


def test_a_label_of_the_holdout_is_corrected_in_place() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("d", "cat")), 2)
    pools.check(after)
    assert after.holdout["label"].tolist() == ["cat"]
    assert (len(after.labeled), report.corrected) == (1, 1)


def unlabelled_holdout() -> pools.Pools:
    made = small_pools()
    return small_pools(holdout=made.holdout.assign(label=None), label_events=made.label_events.iloc[:1])


def test_a_holdout_without_a_label_is_asked_for_until_it_is_labelled_or_rejected() -> None:
    before = unlabelled_holdout()
    pools.check(before)
    assert pools.open_requests(before).to_numpy().tolist() == [["d", 0, "holdout"], ["c", 1, "label"]]
    labelled, report = pools.apply_labels(before, events_of(("d", "dog")), 1)
    assert report.new == 1
    rejected, report = pools.apply_labels(before, events_of(("d", None)), 1)
    assert report.rejected == 1
    for after in (labelled, rejected):
        pools.check(after)
        assert pools.open_requests(after)["sample_id"].tolist() == ["c"]
    assert rejected.holdout["label"].isna().all()


def test_a_label_of_an_unknown_sample_is_left_out_and_told() -> None:
    after, report = pools.apply_labels(small_pools(), events_of(("zebra", "cat"), ("c", "cat")), 2)
    pools.check(after)
    assert report.unknown == ("zebra",)
    assert report.to_dict()["unknown"] == ["zebra"]
    assert "zebra" not in set(after.label_events["sample_id"])


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(UserError, match="label 'bird' of sample c"):
        pools.apply_labels(small_pools(), events_of(("c", "bird")), 2)


def test_no_events_change_nothing() -> None:
    before = small_pools()
    after, report = pools.apply_labels(before, events_of(), 2)
    assert after is before
    assert report.received == 0


# --- images and requests ----------------------------------------------------------------------------------------------


def arrival(name: str, content: str, row: int = 0) -> dict[str, object]:
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return {"sample_id": name, "shard": "ingest-1", "row": row, "sha256": sha256, "width": 4, "height": 5}


def test_new_images_become_available_with_the_round_that_took_them() -> None:
    after, report = pools.apply_images(small_pools(), pd.DataFrame([arrival("n", "new")]), 5)
    pools.check(after)
    assert after.catalog.set_index("sample_id").loc["n", "added_round"] == 5
    assert after.unlabeled.set_index("sample_id").loc["n", "status"] == "available"
    assert (report.images, report.duplicates) == (1, ())


def test_images_that_the_catalog_has_are_left_out_so_that_taking_them_twice_is_harmless() -> None:
    rows = pd.DataFrame(
        [arrival("n", "new", 0), arrival("m", "a", 1), arrival("b", "other", 2), arrival("o", "new", 3)]
    )
    once, report = pools.apply_images(small_pools(), rows, 5)
    assert (report.images, report.duplicates) == (1, ("m", "b", "o"))
    twice, report = pools.apply_images(once, rows, 6)
    assert twice is once
    assert report.images == 0


def test_requests_are_marked_with_their_round_and_listed_oldest_first() -> None:
    after = pools.mark_requested(small_pools(), ["b"], 3)
    pools.check(after)
    assert pools.open_requests(after).to_numpy().tolist() == [["c", 1, "label"], ["b", 3, "label"]]


@pytest.mark.parametrize("ids", [["a"], ["c"], ["b", "b"], ["nobody"]])
def test_only_available_samples_can_be_asked_for(ids: list[str]) -> None:
    with pytest.raises(ValueError, match="not available"):
        pools.mark_requested(small_pools(), ids, 3)


def test_class_names_keep_their_order_in_the_file(tmp_path: Path) -> None:
    pools.save(small_pools(classes=("dog", "cat")), tmp_path)
    assert json.loads((tmp_path / "classes.json").read_text()) == ["dog", "cat"]


# --- opinions and their times -----------------------------------------------------------------------------------------


def opinions(*rows: tuple[str, str | None, str, str | None]) -> pd.DataFrame:
    """Events of sample, label, labeled_at and imported_at, in the order of their arrival."""
    table = pd.DataFrame(rows, columns=["sample_id", "label", "labeled_at", "imported_at"], dtype=object)
    times = {name: pd.to_datetime(table[name], utc=True) for name in ("labeled_at", "imported_at")}
    return pools.typed(table.assign(**times, annotator="ann", source="f"), pools.EVENTS)


def test_events_of_earlier_versions_count_in_the_order_they_came_whatever_their_clock_said() -> None:
    events = opinions(
        ("b", "cat", "2024-01-05", None), ("b", "dog", "2024-01-03", None), ("b", "cat", "2024-01-04", None)
    )
    assert pools.standing(events).index.tolist() == [2]
    with_others = pd.concat([events, opinions(("c", "cat", "2024-01-01", "2024-01-09"))], ignore_index=True)
    assert pools.standing(with_others).index.tolist() == [2, 3]


def test_the_newest_opinion_stands_and_of_the_same_time_the_one_that_came_last() -> None:
    late, early = ("b", "dog", "2024-01-02", "2024-01-08"), ("b", "cat", "2024-01-01", "2024-01-09")
    assert pools.standing(opinions(late, early))["label"].tolist() == ["dog"]
    assert pools.standing(opinions(early, late))["label"].tolist() == ["dog"]
    assert pools.standing(opinions(late, (*late[:1], "cat", *late[2:])))["label"].tolist() == ["cat"]


def test_an_opinion_that_is_older_than_what_stands_enters_the_history_and_changes_nothing() -> None:
    before, _ = pools.apply_labels(small_pools(), opinions(("b", "dog", "2024-01-05", "2024-01-06")), 2)
    after, report = pools.apply_labels(before, opinions(("b", "cat", "2024-01-04", "2024-01-07")), 3)
    assert (report.received, report.outdated, report.corrected, report.repeated) == (1, 1, 0, 0)
    assert len(after.label_events) == len(before.label_events) + 1
    pools.check(after)
    assert pools.digests(after)["labeled"] == pools.digests(before)["labeled"]
    rejected, report = pools.apply_labels(after, opinions(("b", None, "2024-01-01", "2024-01-08")), 4)
    assert (report.rejected, report.outdated) == (0, 1)
    pools.check(rejected)


def test_times_that_no_file_gave_leave_tables_and_digests_as_earlier_versions_made_them(tmp_path: Path) -> None:
    made = small_pools()
    of_version_0_1 = "69541748df8518c02a6bbca2c7cba56733820afc3d6a7e7310118c0f844fa3d5"  # pragma: allowlist secret
    assert pools.digests(made)["label_events"] == of_version_0_1
    pools.save(made, tmp_path / "old")
    path = tmp_path / "old" / "label_events.parquet"
    assert "imported_at" not in pq.ParquetFile(path).schema_arrow.names
    assert pools.digests(pools.load(tmp_path / "old")) == pools.digests(made)
    after, _ = pools.apply_labels(made, opinions(("b", "dog", "2024-01-05", "2024-01-06")), 2)
    pools.save(after, tmp_path / "new")
    assert "imported_at" in pq.ParquetFile(tmp_path / "new" / "label_events.parquet").schema_arrow.names
    assert pools.digests(pools.load(tmp_path / "new")) == pools.digests(after)
    other = replace(after, label_events=after.label_events.assign(imported_at=None))
    assert pools.digests(other)["label_events"] != pools.digests(after)["label_events"]


def test_the_pools_arithmetic_tells_each_pool_and_each_part_of_the_unlabelled_one() -> None:
    sizes = {"catalog": 4, "labeled": 1, "unlabeled": 2, "available": 1, "requested": 1, "rejected": 0, "holdout": 1}
    assert pools.counts(small_pools(), 7) == {**sizes, "picks": 7}
    after, _ = pools.apply_labels(small_pools(), events_of(("b", None), ("c", None)), 2)
    assert pools.counts(after, 0) == {**sizes, "available": 0, "requested": 0, "rejected": 2, "picks": 0}


def test_no_frames_stack_to_an_empty_table_with_the_schemas_columns() -> None:
    assert list(pools.stack([], pools.SCHEMAS["holdout"]).columns) == ["sample_id", "label"]


def test_a_frame_without_a_column_of_the_schema_is_refused_and_the_column_named() -> None:
    with pytest.raises(ValueError, match="label"):
        pools.typed(pd.DataFrame({"sample_id": ["a"]}), pools.SCHEMAS["holdout"])


def test_an_image_of_one_pixel_is_an_image() -> None:
    pools.check(small_pools(catalog=catalog_of(list("abcd")).assign(width=1, height=1)))
