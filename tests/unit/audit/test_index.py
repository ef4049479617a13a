"""The index of candidates says what their table says, of every sample, and nothing where it cannot be relied on."""

import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.small_books import Books, build
from vabal import audit, files
from vabal.audit import index, rows
from vabal.rounds import tables


@pytest.fixture(scope="module", params=["compact", "full"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Books:
    return build(tmp_path_factory.mktemp("kept"), record=request.param)


def candidates(count: int, *, random: np.random.Generator, ids: list[str] | None = None) -> pa.Table:
    """Columns of many numbers, of few, of none, and of some."""
    names = np.array(["cat", "dog", None, "emu"], dtype=object)
    rank: list[int | None] = [None] * count
    rank[count // 2] = 1
    return pa.table(
        {
            "rank": pa.array(rank, pa.int32()),
            "sample_id": ids or [f"s{number:07d}" for number in range(count)],
            "score": np.append(random.normal(size=count - 2), [-np.inf, 1e300]),
            "predicted_class": pa.array(names[random.integers(4, size=count)], pa.string()),
            "vae_class": pa.array(["dog"] * count, pa.string()),
            "log_likelihood": random.normal(size=count).astype(np.float32),
            "prior": random.choice([0.1, 1 / 3, float("nan")], size=count),
            "precision": pa.nulls(count, pa.float64()),
            "strategy": ["vabal"] * count,
        }
    )


def a_round(data: Path, table: pa.Table) -> Path:
    """Round 1 with these candidates; its table."""
    path = data / "rounds" / "0001" / tables.CANDIDATES_FILE
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    manifest = {"files": {tables.CANDIDATES_FILE: files.file_sha256(path)}}
    files.write_bytes(path.with_name("manifest.json"), files.canonical_json(manifest))
    return path


def told(folder: Path, data: Path, sample_id: str, number: int = 1) -> dict[str, Any] | None:
    digest = index.digest_of(data, number)
    assert digest is not None
    opened = index.Index.of(folder, digest)
    assert opened is not None
    return opened.row(sample_id)


def in_the_table(path: Path, sample_id: str) -> dict[str, Any] | None:
    return rows.row_of(path, sample_id, ["rank"], optional=index.TOLD[1:])


# -- the same ---------------------------------------------------------------------------------------------------


def test_a_samples_history_is_the_same_with_indices(kept: Books, tmp_path: Path) -> None:
    assert index.keep(kept.data, tmp_path) == [3, 2, 1]
    for sample_id in kept.pools.catalog["sample_id"]:
        assert audit.history(kept.data, sample_id, indices=tmp_path) == audit.history(kept.data, sample_id)


def test_no_table_is_read_where_an_index_answers(kept: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.keep(kept.data, tmp_path)
    read: list[str] = []

    def watched(path: Path, *arguments: Any, **named: Any) -> dict[str, Any] | None:
        read.append(path.name)
        return rows.row_of(path, *arguments, **named)

    monkeypatch.setattr(import_module("vabal.audit.sample"), "row_of", watched)
    audit.history(kept.data, "s006")
    assert tables.CANDIDATES_FILE in read
    read.clear()
    audit.history(kept.data, "s006", indices=tmp_path)
    assert tables.CANDIDATES_FILE not in read


@pytest.mark.parametrize("labeled", [False, True])
def test_an_answer_about_an_image_loads_no_pandas(kept: Books, tmp_path: Path, labeled: bool) -> None:
    index.keep(kept.data, tmp_path)
    waiting, events = kept.pools.unlabeled, kept.pools.label_events
    told_of = events[events["labeled_at"].notna()] if labeled else waiting[waiting["status"] == "available"]
    sample_id = told_of["sample_id"].iloc[0]
    asks = "import sys, pathlib; from vabal.audit import sample; data, place = map(pathlib.Path, sys.argv[2:]); "
    asks += "sample.history(data, sys.argv[1], None, place); sys.exit('pandas' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", asks, sample_id, kept.data, tmp_path], check=False)
    assert told.returncode == 0


def test_every_row_of_many_blocks_is_the_tables(tmp_path: Path) -> None:
    table = candidates(9000, random=np.random.default_rng(1))
    path, folder = a_round(tmp_path / "data", table), tmp_path / "indices"
    assert index.keep(tmp_path / "data", folder) == [1]
    for place in [*range(0, 9000, 97), 4095, 4096, 8191, 8192, 8999]:
        sample_id = f"s{place:07d}"
        found, wanted = told(folder, tmp_path / "data", sample_id), in_the_table(path, sample_id)
        assert found is not None
        assert wanted is not None
        assert repr(dict(sorted(found.items()))) == repr(dict(sorted(wanted.items())))  # NaN is NaN


@pytest.mark.parametrize("stranger", ["", "a", "s0000001x", "s000000", "s9", "\U0010ffff", "s0000001\0"])
def test_who_was_no_candidate_is_none(tmp_path: Path, stranger: str) -> None:
    a_round(tmp_path / "data", candidates(50, random=np.random.default_rng(1)))
    index.keep(tmp_path / "data", tmp_path / "indices")
    assert told(tmp_path / "indices", tmp_path / "data", stranger) is None


def test_ids_of_any_order_and_alphabet_are_found(tmp_path: Path) -> None:
    ids = ["z", "a/b c.png", "\u05d0\u05d1", "\U0001f600", "\uffff", "A" * 300, "a", "aa", "\n", "'"]
    path = a_round(tmp_path / "data", candidates(len(ids), random=np.random.default_rng(2), ids=ids))
    index.keep(tmp_path / "data", tmp_path / "indices")
    for sample_id in ids:
        found, wanted = told(tmp_path / "indices", tmp_path / "data", sample_id), in_the_table(path, sample_id)
        assert found is not None
        assert wanted is not None
        assert repr(sorted(found.items())) == repr(sorted(wanted.items()))


def test_a_round_without_candidates_has_an_index_too(tmp_path: Path) -> None:
    a_round(tmp_path / "data", candidates(5, random=np.random.default_rng(1)).slice(0, 0))
    assert index.keep(tmp_path / "data", tmp_path / "indices") == [1]
    assert told(tmp_path / "indices", tmp_path / "data", "s0000001") is None
    assert index.keep(tmp_path / "data", tmp_path / "indices") == []


def test_more_classes_than_one_number_holds_are_kept_apart(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    table = candidates(9000, random=random)
    for name in ("predicted_class", "vae_class"):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array([f"class-{value}" for value in random.integers(700, size=9000)]))
    path = a_round(tmp_path / "data", table)
    index.keep(tmp_path / "data", tmp_path / "indices")
    for place in range(0, 9000, 333):
        found, wanted = (
            told(tmp_path / "indices", tmp_path / "data", f"s{place:07d}"),
            in_the_table(path, f"s{place:07d}"),
        )
        assert repr(sorted((found or {}).items())) == repr(sorted((wanted or {}).items()))


# -- where it cannot be relied on -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_where_an_index_is_damaged_the_table_is_read(kept: Books, tmp_path: Path, damage: str) -> None:
    index.keep(kept.data, tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes({"cut": path.read_bytes()[:-40], "empty": b"", "other": b"not an index"}[damage])
    assert audit.history(kept.data, "s006", indices=tmp_path) == audit.history(kept.data, "s006")
    assert index.keep(kept.data, tmp_path) == [3, 2, 1]


def test_a_byte_that_changed_never_changes_what_is_told(kept: Books, tmp_path: Path) -> None:
    index.keep(kept.data, tmp_path)
    digest = index.digest_of(kept.data, 2)
    assert digest is not None
    path = index._path(tmp_path, digest)
    sample_id = pq.read_table(kept.data / "rounds" / "0002" / tables.CANDIDATES_FILE).column("sample_id")[3].as_py()
    wanted = told(tmp_path, kept.data, sample_id, 2)
    assert wanted is not None
    content, found = path.read_bytes(), 0
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        opened = index.Index.of(tmp_path, digest)
        found += opened is None
        with suppress(ValueError):
            assert opened is None or opened.row(sample_id) == wanted
    assert found


def test_a_table_that_is_not_the_records_gets_no_index(kept: Books, tmp_path: Path) -> None:
    books = kept.copied(tmp_path)
    path = books.data / "rounds" / "0003" / tables.CANDIDATES_FILE
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.schema.get_field_index("score"), "score", pa.array([0.0] * len(table))), path)
    (books.data / "rounds" / "0002" / tables.CANDIDATES_FILE).write_bytes(b"")
    assert index.keep(books.data, tmp_path / "indices") == [1]
    assert index.keep(books.data, tmp_path / "indices") == []


def test_what_no_manifest_names_goes_and_nothing_is_made_twice(kept: Books, tmp_path: Path) -> None:
    index.keep(kept.data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    index._path(tmp_path, "0" * 64).write_bytes(b"of a round that was undone")
    (tmp_path / ".half.tmp").write_bytes(b"of a process that was killed")
    assert index.keep(kept.data, tmp_path) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_beyond_the_limit_the_newest_rounds_are_kept(kept: Books, tmp_path: Path) -> None:
    index.keep(kept.data, tmp_path)
    size = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    newest = [index._path(tmp_path, str(index.digest_of(kept.data, number))).name for number in (3, 2)]
    most = sum(size[name] for name in newest)
    assert index.keep(kept.data, tmp_path, most) == []
    assert {path.name for path in tmp_path.iterdir()} == set(newest)
    assert index.keep(kept.data, tmp_path, most) == []
    assert index.keep(kept.data, tmp_path) == [1]
