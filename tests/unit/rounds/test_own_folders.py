"""What is removed is this program's own: folders with other people's work beside ours stay as they are."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import demo
from tests.support.folders import contents
from tests.support.small_pools import WHEN, file_of, picture, small_pools
from vabal import audit, images, rounds
from vabal.adapters import stack
from vabal.benchmark import cells as benchmark_cells
from vabal.errors import UserError
from vabal.files import write_bytes
from vabal.flows import context
from vabal.labels import answers, arrivals, export
from vabal.rounds.stage_store import LocalStageStore
from vabal.settings import params
from vabal.settings.models import Params
from vabal.sources import ItemFilter, ingestion
from vabal.sources.files import files_below
from vabal.sources.folders import walk
from vabal.workspace import Workspace


def test_a_round_refuses_a_stage_store_in_a_folder_with_other_work_before_it_begins(tmp_path: Path) -> None:
    shared, root = tmp_path / "shared", tmp_path / "work"
    (shared / "thesis" / "chapter1").mkdir(parents=True)
    (root / "empty").mkdir(parents=True)
    place = Workspace(root)
    with pytest.raises(UserError, match="name a new or empty folder"):
        context.claim_stores(place, params.parse({"stages": str(shared)}))
    assert [path.name for path in shared.rglob("*")] == ["thesis", "chapter1"]
    for setting in ("empty", "empty", str(tmp_path / "new"), ".vabal/stages"):
        context.claim_stores(place, params.parse({"stages": setting}))
    with pytest.raises(UserError, match="another workspace"):
        context.claim_stores(Workspace(tmp_path / "work" / "empty"), params.parse({"stages": str(tmp_path / "new")}))


# -- foreign files beside ours ------------------------------------------------------------------------------------

HEX = "01" * 16
# Names that look much like ours, in the folders that we clear.
NEARLY = st.sampled_from(
    [
        *("notes.txt", ".notes.tmp", ".123.tmp", f".{HEX[:31]}.tmp", "000001-aaaa.parquet", "1-aaaaaaaa.parquet"),
        *("000001-aaaaaaaa.parquet.bak", "lock", "publish.old", f"publish.{HEX[:31]}", f"{HEX[:15]}", f"{HEX[:17]}"),
        *("mine.json", "digits-natural-random-0.json", f".{HEX[:16]}.bak", "train-vae.old", "evaluate2"),
    ]
)
FOLDERS = st.sampled_from(
    [
        *("inbox", "inbox/labels", "inbox/images", "quarantine", "requests", ".vabal", ".vabal/stages", "out/cells"),
        *(".vabal/stages/train-vae", "outside"),
    ]
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.tuples(FOLDERS, NEARLY, st.sampled_from(["file", "folder", "link"])), min_size=1, max_size=12))
def test_clearing_up_leaves_every_foreign_file_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, foreign: set[tuple[str, str, str]]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    place = Workspace(root)
    precious = root / "outside" / "precious"
    write_bytes(precious, b"years of work")
    for folder, name, kind in sorted(foreign):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() or path.is_symlink():
            continue
        if kind == "file":
            path.write_bytes(b"foreign")
        elif kind == "link":
            path.symlink_to(root / "outside")
        else:
            write_bytes(path / "inside", b"foreign")
    for path in root.rglob("*"):
        os.utime(path, (1000, 1000), follow_symlinks=False)
    before = contents(root)
    context.claim_stores(place, Params())
    context.stage_store(place, Params()).forget(before=4e9)
    (root / "labels.csv").write_text("sample_id,label,annotator\nb,cat,ann\n")
    answers.import_labels(place.inbox, small_pools(), root / "labels.csv", WHEN)
    write_bytes(root / "came" / "0.png", file_of(picture(100)))
    ingestion.ingest(place.inbox, small_pools(), root / "came", Params(), quarantine=place.quarantine, when=WHEN)
    images.quarantine(place.quarantine, "x.png", b"no image", "damaged", WHEN)
    arrivals.remove(place.inbox, [*arrivals.pending(place.inbox), *sorted(before), "../outside/precious"])
    benchmark_cells.read_cells(root / "out")
    benchmark_cells.known_cells(root / "out", lambda _line: None)
    rounds.carry_out(place, None)  # type: ignore[arg-type]  # nothing is pending
    after = contents(root)
    assert {name: after.get(name) for name in before} == before


def test_a_link_in_the_inbox_is_taken_out_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    write_bytes(tmp_path / "outside" / "precious", b"x")
    name = "images/000001-aaaaaaaa"
    (tmp_path / "inbox" / "images").mkdir(parents=True)
    (tmp_path / "inbox" / name).symlink_to(tmp_path / "outside")
    arrivals.remove(tmp_path / "inbox", [name])
    assert not (tmp_path / "inbox" / name).is_symlink()
    assert (tmp_path / "outside" / "precious").exists()


@pytest.mark.parametrize("name", ["results.csv", "grid.json", "cells/mine.json", "thesis/a.tex"])
def test_a_benchmark_refuses_a_folder_with_other_things(tmp_path: Path, name: str) -> None:
    write_bytes(tmp_path / name, b"[years of work")
    with pytest.raises(UserError, match=r"is not empty and holds no benchmark [^\n]*name a new folder with --out$"):
        benchmark_cells.own(tmp_path)
    benchmark_cells.own(tmp_path / "new")
    for own in (".lock", "mlflow.db", f".grid.json.{HEX}.tmp"):
        write_bytes(tmp_path / "begun" / own, b"")
    benchmark_cells.own(tmp_path / "begun")


def test_a_benchmarks_damaged_cell_goes_and_a_foreign_file_beside_it_stays(tmp_path: Path) -> None:
    cells = tmp_path / "cells"
    for name in ("digits-natural-random-0-0011223344556677.json", "my-notes.json"):
        write_bytes(cells / name, b"{half")
    assert benchmark_cells.known_cells(tmp_path, lambda _line: None) == {}
    assert [path.name for path in cells.iterdir()] == ["my-notes.json"]


def test_an_export_takes_no_name_that_could_be_somebody_elses(tmp_path: Path) -> None:
    beside = tmp_path / f".requests.{os.getpid()}.tmp"
    write_bytes(beside / "precious", b"x")
    made = small_pools()
    with pytest.raises(UserError, match=r"parquet is missing"):  # an export that fails clears up after itself alone
        export.export_requests(made, tmp_path, tmp_path / "requests")
    assert [path.name for path in tmp_path.iterdir()] == [beside.name]
    assert (beside / "precious").read_bytes() == b"x"
    (tmp_path / "link").symlink_to(beside)
    with pytest.raises(UserError, match="not an empty folder"):
        export.export_requests(made, tmp_path, tmp_path / "link")


def test_the_local_stacks_files_go_through_no_link_that_waits_there(tmp_path: Path) -> None:
    write_bytes(tmp_path / "precious", b"x")
    (tmp_path / f".env.{os.getpid()}.tmp").symlink_to(tmp_path / "precious")
    stack.write_private(tmp_path / "env", "KEY=1\n")
    assert (tmp_path / "precious").read_bytes() == b"x"
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["file", "link"])
def test_the_demo_clears_no_folder_with_other_things(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    write_bytes(tmp_path / "outside" / "precious", b"x")
    if kind == "file":
        (folder / "data").mkdir()
        (folder / "thesis.tex").touch()
    else:
        folder.rmdir()
        folder.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"move it away$"):
        demo._start_afresh(demo.Demo(folder))
    assert (tmp_path / "outside" / "precious").exists()
    assert folder.exists()


def test_a_stage_left_half_written_is_cleared_and_nothing_beside_it(tmp_path: Path) -> None:
    store = LocalStageStore(tmp_path / "stages")
    store.claim()
    write_bytes(tmp_path / "stages" / "train-vae" / f".{HEX[:16]}.{HEX}" / "f", b"")
    assert store.forget(before=4e9) == 1
    assert {path.name for path in (tmp_path / "stages").rglob("*")} == {".vabal-stages", "train-vae"}


# -- links to other people's files --------------------------------------------------------------------------------


def test_what_a_link_leads_to_is_noted_and_never_copied_to_quarantine(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_bytes(tmp_path / "outside" / "secret.png", b"root:x:0:0")
    write_bytes(source / "damaged.png", b"no image")
    write_bytes(tmp_path / "elsewhere" / "other.png", b"daemon:x:1:1")
    (source / "link.png").symlink_to(tmp_path / "elsewhere" / "other.png")
    (source / "class").symlink_to(tmp_path / "outside")
    (source / "gone.png").symlink_to(tmp_path / "nowhere")
    sieve = ItemFilter(Params().images)
    assert list(sieve.sift(files_below(walk(source)))) == []
    sieve.quarantine(tmp_path / "quarantine", WHEN)
    copied = [path.read_bytes() for path in (tmp_path / "quarantine").iterdir() if path.suffix != ".csv"]
    assert copied == [b"no image"]
    listed = (tmp_path / "quarantine" / "quarantine.csv").read_text()
    assert "link.png" in listed
    assert "class/secret.png" in listed


def test_show_writes_over_nothing(tmp_path: Path) -> None:
    write_bytes(tmp_path / "x.png", b"mine")
    with pytest.raises(UserError):
        audit.show(tmp_path, "x", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == b"mine"
